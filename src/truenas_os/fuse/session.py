# SPDX-License-Identifier: LGPL-3.0-or-later
"""A filesystem that is mounted and served."""

import contextlib
import errno
import logging
import os
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import anyio

from .._threads import GRACE_CHANGE, offload
from ..blocking.arguments import StrOrBytesPath, path_bytes
from . import notifications
from .datatypes import FileNameT, InodeT
from .forks import check_process
from .loops import Loop, running_loop
from .mounting import FuseMount, open_mount
from .negotiation import INTERRUPTIBLE, Features
from .operations import Operations
from .options import MountOptions, parse_options
from .pathcallbacks import PathOperations
from .pathlevel import PathLevel
from .request_log import LoggingServer
from .server import Server, SessionEnd, SessionStats

_log = logging.getLogger("truenas_os.fuse")

MAX_TASKS = 99
UNMOUNT_TIMEOUT = 5.0


class Session:
    """A mounted filesystem, served on the event loop of the ``async with`` block that holds it.

    See :func:`mount`.
    """

    def __init__(
        self,
        operations: Operations | PathOperations,
        mountpoint: StrOrBytesPath,
        options: MountOptions,
        *,
        max_tasks: int = MAX_TASKS,
        unmount_timeout: float = UNMOUNT_TIMEOUT,
    ) -> None:
        path_bytes(mountpoint)
        self._name = type(operations).__name__
        if isinstance(operations, PathOperations):
            operations = PathLevel(operations)
        self.set_max_tasks(max_tasks)
        if operations.enable_passthrough and operations.enable_writeback_cache:
            raise ValueError(
                "enable_passthrough and enable_writeback_cache exclude each other: "
                "the filesystem's class must set one of them to False"
            )
        if unknown := {*operations.interruptible} - {*INTERRUPTIBLE.values(), "setlk", "flock"}:
            raise ValueError(
                f"interruptible: {', '.join(sorted(unknown))}: there is no such handler"
            )
        if operations.enable_acl or operations.enable_idmap:
            options.settings["default_permissions"] = True
        self._operations = operations
        self._mountpoint = os.fsdecode(mountpoint)
        self._options = options
        self._timeout = unmount_timeout
        self._mount: FuseMount | None = None
        self._server: Server | None = None
        self._loop: Loop | None = None
        # The process that it was begun in.
        self._pid = 0
        # Set once it is closed; and what closing it has raised.
        self._closing: anyio.Event | None = None
        self._failure: BaseException | None = None

    # What it is like.

    @property
    def mountpoint(self) -> str:
        """Where it is mounted."""
        return self._mountpoint

    @property
    def features(self) -> Features:
        """What has been negotiated. Raises :exc:`ValueError` before the session has begun."""
        features = self._serving().features
        if features is None:
            raise ValueError("the kernel has not asked yet")
        return features

    @property
    def stats(self) -> SessionStats:
        """What has been done so far. Raises :exc:`ValueError` before the session has begun."""
        return self._serving().stats

    def check_process(self) -> None:
        """Raise :exc:`RuntimeError` in a forked child."""
        if self._pid:
            check_process(self._pid)

    @property
    def is_ours(self) -> bool:
        """Whether it has been begun, and in this process."""
        return self._pid == os.getpid()

    def _serving(self) -> Server:
        self.check_process()
        if self._server is None:
            raise ValueError("this session has not begun: use async with")
        return self._server

    def __repr__(self) -> str:
        return f"<Session of {self._name} at {self._mountpoint!r}>"

    # Beginning and end.

    async def __aenter__(self) -> Self:
        self._begin()
        self._mount = await offload(
            open_mount, self._mountpoint, self._options, late=FuseMount.close, grace=GRACE_CHANGE
        )
        try:
            await self.serve()
            await offload(self._mount.attach, grace=GRACE_CHANGE)
        except BaseException:
            await self.aclose()
            raise
        return self

    def _begin(self) -> None:
        self.check_process()
        if self._pid:
            raise RuntimeError("this session has begun already")
        self._pid = os.getpid()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def open(self) -> None:
        """Mount without serving yet: who looks at it waits. For a thread that may block."""
        self._begin()
        self._mount = open_mount(self._mountpoint, self._options)
        try:
            self._mount.attach()
        except BaseException:
            self._mount.close()
            raise
        self._mount.heritable = True

    async def inherit(self) -> None:
        """In a forked child, take over what the parent has mounted and nobody serves yet."""
        if self._mount is not None and self._mount.heritable and not self.is_ours:
            await offload(self._mount.inherit)
            self._pid = os.getpid()

    def set_max_tasks(self, limit: int) -> None:
        """Set how many handlers are to be under way at once, before serving has begun."""
        if limit < 1:
            raise ValueError(f"max_tasks must be at least 1, not {limit}")
        self._max_tasks = limit

    async def serve(self) -> None:
        """Begin to serve what is mounted, in the background; return once the kernel is content."""
        self.check_process()
        assert self._mount is not None
        self._mount.begin()
        loop = self._loop = running_loop()
        make = LoggingServer if self._options.debug or _log.isEnabledFor(logging.DEBUG) else Server
        server = self._server = make(
            self._operations,
            self._mount.device,
            loop,
            max_tasks=self._max_tasks,
            grace=self._timeout,
            root_mode=self._mount.root_mode,
            request_timeout=self._options.request_timeout,
        )
        loop.spawn(self._run)
        await server.ready.wait()
        if isinstance(server.error, OSError):
            raise server.error
        if server.features is None:
            error = OSError(errno.EPROTO, os.strerror(errno.EPROTO), self._mountpoint)
            raise error from server.error
        if self._options.read_ahead_kb is not None:
            await offload(self._mount.set_read_ahead, self._options.read_ahead_kb)

    async def _run(self) -> None:
        server, mount = self._serving(), self._mount
        assert mount is not None
        try:
            await server.run()
            # The kernel ends a connection whose server is too slow without telling it so.
            if server.end is SessionEnd.UNMOUNTED and await offload(mount.is_mounted):
                server.end = SessionEnd.ABORTED
        except BaseException:
            mount.drop()  # the event loop ends, and nobody may be left to close the session
            raise
        finally:
            # Who waits for an answer must not wait for ever.
            mount.hang_up()
            server.finished.set()

    async def wait(self) -> SessionEnd:
        """Wait until the session has ended, and tell how: unmounted or aborted, by whomever.

        Raises :exc:`OSError` if /dev/fuse has failed.
        """
        server = self._serving()
        await server.finished.wait()
        assert server.end is not None
        if server.error is not None:
            raise server.error
        return server.end

    async def aclose(self) -> None:
        """Unmount, while serving what that takes, and end the session; a second call does nothing.

        A mount that is in use, or a handler that does not return, is waited for until the session's
        ``unmount_timeout`` has passed; then the connection is aborted and the mount detached. A
        cancelled call waits for all that, too. In a forked child, nothing is done.
        """
        if self._mount is None or not self.is_ours:
            return
        if self._closing is None:
            self._closing = anyio.Event()
            (self._loop or running_loop()).spawn(self._close)
        await _wait_certainly(self._closing)
        if self._failure is not None:
            raise self._failure

    async def _close(self) -> None:
        # A task of its own, which is cancelled only if the event loop ends; each step is made even
        # then.
        assert self._mount is not None and self._closing is not None
        try:
            with anyio.CancelScope(shield=True):
                await self._end(self._mount, self._server)
        except Exception as error:
            self._failure = error
        finally:
            self._closing.set()

    async def _end(self, mount: FuseMount, server: Server | None) -> None:
        try:
            if server is not None and mount.attached:
                if server.end is None:
                    # What unmounting takes is not given once more to handlers that do not return.
                    server.deadline = anyio.current_time() + self._timeout
                    await self._unmount(mount, server)
                else:  # an abort leaves the mount behind
                    await offload(mount.take_away, certain=True)
        finally:
            try:
                if server is not None:
                    server.stop(SessionEnd.CLOSED)
                    await server.finished.wait()
            finally:
                await offload(mount.close, certain=True)

    async def _unmount(self, mount: FuseMount, server: Server) -> None:
        assert server.deadline is not None
        await server.wait_for_releases()
        patience = max(0.0, server.deadline - anyio.current_time())
        with anyio.move_on_after(patience + 1):
            try:
                await offload(mount.unmount, patience, certain=True)
            except OSError:
                pass  # busy, or no longer ours to unmount
            else:
                await server.ended.wait()
                return
        with anyio.move_on_after(1):
            await offload(mount.abort, certain=True)
            await server.ended.wait()

    def abandon(self, unmount: bool) -> None:
        """End what nobody serves any more: close the device, then detach the mount.

        In a forked child that does not serve it, the mount stays.
        """
        if self._mount is not None and not self.is_ours:
            self._mount.renounce()
        elif self._mount is not None and self._closing is None:
            self._closing = anyio.Event()
            self._closing.set()
            if self._server is not None:
                self._server.hang_up()
                # The event loop may be closed, of which asyncio and trio tell in their own ways.
                with contextlib.suppress(RuntimeError, ValueError):
                    self._server.stop(SessionEnd.CLOSED)
            self._mount.close(leave=not unmount)

    # What it tells the kernel.

    async def invalidate_inode(self, inode: InodeT, attr_only: bool = False) -> None:
        """Have the kernel forget an inode's attributes, and its data unless *attr_only*.

        Waits until that is done, which takes until reads of the inode are answered. A handler does
        not wait, since the kernel may wait for that very handler: its reply does, for 0.1 s at the
        most. That the kernel does not know the inode is no error.
        """
        await self._tell(notifications.inval_inode(inode, attr_only))

    async def invalidate_entry(
        self, inode_p: InodeT, name: FileNameT, deleted: InodeT | int = 0
    ) -> None:
        """Have the kernel forget an entry of the directory *inode_p*, and all that is below it.

        *deleted*: the inode that the entry led to, if it was deleted: who has it open sees it
        without links. What is mounted below it is detached. Waits until that is done, which takes
        until lookups in the directory are answered; a handler does not wait. That the kernel does
        not know the entry is no error.
        """
        await self._tell(notifications.inval_entry(inode_p, name, deleted))

    async def expire_entry(self, inode_p: InodeT, name: FileNameT) -> None:
        """Have the kernel look up an entry of the directory *inode_p* when it is next used.

        As if its ``entry_timeout`` had passed: an entry that still leads to the same inode stays as
        it is, with what is known of it and mounted below it. Waits as :meth:`invalidate_entry`.
        Linux 6.2.
        """
        await self._tell(notifications.expire_entry(inode_p, name))

    async def prune(self, inodes: Sequence[InodeT]) -> None:
        """Have the kernel forget inodes that nobody uses, and their names; others stay known.

        Raises :exc:`OSError` with EINVAL if the kernel is too old. Linux 6.18.
        """
        await self._tell(notifications.prune(inodes))

    async def notify_store(self, inode: InodeT, offset: int, data: bytes) -> None:
        """Put *data* into the page cache of an inode that the kernel knows.

        Waits until that is done; a handler does not wait.
        """
        await self._tell(notifications.store(inode, offset, data))

    async def notify_retrieve(self, inode: InodeT, offset: int, size: int) -> bytes:
        """What the page cache has of an inode, from *offset* on; empty if it has nothing.

        Raises :exc:`OSError` with ENOENT if the kernel does not know the inode.
        """
        return await self._serving().notifier.retrieve(inode, offset, size)

    async def resend(self) -> None:
        """Have the kernel send once more every request that it has sent and has no reply to.

        A request whose handler is under way is recognized, and the handler not called again; what
        somebody else has read from a copy of the descriptor, and has not answered, is served now.
        Raises :exc:`OSError` with EINVAL if the kernel is too old. Linux 6.9.
        """
        await self._serving().resend()

    async def _tell(self, notice: notifications.Notice) -> None:
        server = self._serving()
        if server.is_asking():
            server.post(notice)
        else:
            await server.notifier.tell(notice)

    def post(
        self, notice: notifications.Notice, ignore_enoent: bool = True, ahead: bool = True
    ) -> None:
        """Have a thread tell the kernel something, and do not wait."""
        self._serving().post(notice, ignore_enoent, ahead)


async def _wait_certainly(event: anyio.Event) -> None:
    """Wait, deaf to any cancellation until then."""
    cancelled = None
    while not event.is_set():
        try:
            with anyio.CancelScope(shield=True):
                await event.wait()
        except anyio.get_cancelled_exc_class() as error:
            cancelled = error  # Task.cancel() knows no shields
    if cancelled is not None:
        raise cancelled


def mount(
    operations: Operations | PathOperations,
    mountpoint: StrOrBytesPath,
    *,
    max_tasks: int = MAX_TASKS,
    unmount_timeout: float = UNMOUNT_TIMEOUT,
    **options: bool | int | str,
) -> Session:
    """Mount a filesystem and serve it on the running event loop, for an ``async with`` block.

    The block gets the :class:`Session`. At its end, however it ends, the filesystem is unmounted.
    While a program waits in the block, requests are served in the background; as many as
    *max_tasks* handlers are under way at once, those of locks that wait not counted.
    *unmount_timeout*: seconds for which the end waits for what is in use and for handlers, before
    it aborts the connection and detaches the mount.

    *options*: ``default_permissions`` (the kernel checks modes; the default here), ``allow_other``
    (others than the mounting user may enter), ``fsname`` and ``subtype`` (what the mount table
    shows), ``ro``, ``nosuid`` and ``nodev`` (the default; ``suid`` and ``dev`` undo them),
    ``noexec``, ``noatime``, ``max_read``, ``read_ahead_kb`` (what the kernel reads ahead, in KiB),
    ``request_timeout`` (in seconds), ``debug`` (log every request with its reply and
    its time, at the level INFO, as is done when the logger ``truenas_os.fuse`` is at DEBUG) and so
    on.

    If the process is killed, the mount does not stay behind: a small process that watches over each
    session detaches it, and nothing that covers it or has taken its place. (What kills all
    processes of a control group at once kills that one, too.) A forked child can use nothing of a
    session; it raises :exc:`RuntimeError`.

    The beginning raises :exc:`ValueError` for an unknown option, or for a filesystem that wants
    what excludes each other; :exc:`OSError` as :func:`fsopen`
    and so on: EPERM where this process must not mount and fusermount3 is not installed, ENOENT,
    ENOTDIR, EPROTO (the kernel is too old). Linux 6.8.

    The process that serves must not use the filesystem itself but through awaited calls that leave
    the event loop free; a thread that touches it while the event loop waits for that thread hangs
    for ever.
    """
    given = {"default_permissions": True} | options
    return Session(
        operations,
        mountpoint,
        parse_options(given),
        max_tasks=max_tasks,
        unmount_timeout=unmount_timeout,
    )
