# SPDX-License-Identifier: LGPL-3.0-or-later
"""What a filesystem tells the kernel unasked: that something has changed, is ready, or is known.

The kernel may hold up such a message until the server has answered a request that is under way, so
none is written by a thread that serves, but for the one that only wakes those who poll.
"""

import errno
import itertools
import logging
import os
import struct
import threading
from collections.abc import Sequence
from queue import SimpleQueue
from typing import Final

import anyio

from .._threads import offload
from . import wire
from .forks import check_process, own
from .protocol import Request
from .wire import NotifyCode

_log = logging.getLogger("truenas_os.fuse")

Notice = Sequence[bytes]

# How many tasks may wait for the kernel at once, each with a thread; and how many messages, and
# bytes of them, may wait for the one thread that writes what nobody waits for.
_WAITING: Final = 64
_POSTED: Final = 1 << 16
_POSTED_BYTES: Final = 1 << 26


def _notice(code: NotifyCode, *parts: bytes) -> Notice:
    size = wire.OUT_HEADER.size + sum(map(len, parts))
    return (wire.OUT_HEADER.pack(size, code, 0), *parts)


def inval_inode(inode: int, attr_only: bool) -> Notice:
    """Attributes, and unless *attr_only* data, are not to be taken from the cache any more."""
    first = -1 if attr_only else 0
    return _notice(NotifyCode.INVAL_INODE, wire.INVAL_INODE_OUT.pack(inode, first, 0))


def inval_entry(parent: int, name: bytes, deleted: int = 0) -> Notice:
    """An entry is to be looked up again; with *deleted*, the inode is gone for good."""
    if deleted:
        body = wire.DELETE_OUT.pack(parent, deleted, len(name))
        return _notice(NotifyCode.DELETE, body, name + b"\0")
    body = wire.INVAL_ENTRY_OUT.pack(parent, len(name), 0)
    return _notice(NotifyCode.INVAL_ENTRY, body, name + b"\0")


def expire_entry(parent: int, name: bytes) -> Notice:
    """An entry is to be looked up again when it is next used."""
    body = wire.INVAL_ENTRY_OUT.pack(parent, len(name), wire.EXPIRE_ONLY)
    return _notice(NotifyCode.INVAL_ENTRY, body, name + b"\0")


def store(inode: int, offset: int, data: bytes) -> Notice:
    """Put data into the page cache."""
    return _notice(NotifyCode.STORE, wire.STORE_OUT.pack(inode, offset, len(data)), data)


def retrieve(unique: int, inode: int, offset: int, size: int) -> Notice:
    """Ask for data of the page cache."""
    return _notice(NotifyCode.RETRIEVE, wire.RETRIEVE_OUT.pack(unique, inode, offset, size))


def prune(inodes: Sequence[int]) -> Notice:
    """Inodes are not needed any more, unless they are in use."""
    packed = struct.pack(f"={len(inodes)}Q", *inodes)
    return _notice(NotifyCode.PRUNE, wire.PRUNE_OUT.pack(len(inodes)), packed)


def resend() -> Notice:
    """Requests without a reply are to be sent once more."""
    return _notice(NotifyCode.RESEND)


def poll(kh: int) -> Notice:
    """Who polls is to look again."""
    return _notice(NotifyCode.POLL, wire.NOTIFY_POLL_OUT.pack(kh))


class _Retrieval:
    def __init__(self) -> None:
        self.answered = anyio.Event()
        self.data: bytes | None = None


class Notifier:
    """Writes to /dev/fuse what answers nothing, and never touches a descriptor that is closed."""

    def __init__(self, fd: int) -> None:
        self._fd = os.dup(fd)
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._users = 0
        self._closed = False
        # What a thread is to write: how much it is, and the last to be put in is None.
        self._queue: SimpleQueue[tuple[Notice, bool, threading.Event] | None] = SimpleQueue()
        self._queued = 0
        self._thread: threading.Thread | None = None
        self._waiting = anyio.Semaphore(_WAITING)
        self._uniques = itertools.count(1)
        self._retrievals: dict[int, _Retrieval] = {}
        own(self)

    def write(self, notice: Notice, ignore_enoent: bool = True) -> None:
        """Write now, which may take as long as the filesystem takes to answer a request.

        Raises :exc:`OSError`: ENOTCONN once the session has ended, and, unless *ignore_enoent*,
        ENOENT if the kernel does not know what the message is about. :exc:`RuntimeError` in a
        forked child.
        """
        check_process(self._pid)
        with self._lock:
            self._check_open()
            self._users += 1
        try:
            os.writev(self._fd, notice)
        except FileNotFoundError:
            if not ignore_enoent:
                raise
        finally:
            with self._lock:
                self._users -= 1
                self._close_unused()

    def _check_open(self) -> None:
        if self._closed:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))

    async def tell(self, notice: Notice, ignore_enoent: bool = True) -> None:
        """Write from another thread, and wait for that."""
        async with self._waiting:
            await offload(self.write, notice, ignore_enoent)

    def post(self, notice: Notice, ignore_enoent: bool = True) -> threading.Event:
        """Have a thread write it; errors are logged. The event is set once it is written.

        Raises :exc:`OSError` with ENOBUFS if too much is waiting already.
        """
        check_process(self._pid)
        size = sum(map(len, notice))
        with self._lock:
            self._check_open()
            if self._queue.qsize() >= _POSTED or self._queued + size > _POSTED_BYTES:
                raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._write_posted, name="truenas_os.fuse notifier", daemon=True
                )
                self._thread.start()
            self._queued += size
            written = threading.Event()
            self._queue.put((notice, ignore_enoent, written))
        return written

    def _write_posted(self) -> None:
        while (posted := self._queue.get()) is not None:
            notice, ignore_enoent, written = posted
            with self._lock:
                self._queued -= sum(map(len, notice))
            try:
                self.write(notice, ignore_enoent)
            except OSError as error:
                if not self._closed:
                    _log.warning("a notification has failed: %s", error)
            written.set()

    async def retrieve(self, inode: int, offset: int, size: int) -> bytes:
        """Ask for data of the page cache, and wait for it."""
        unique = next(self._uniques)
        found = self._retrievals[unique] = _Retrieval()
        try:
            await self.tell(retrieve(unique, inode, offset, size), False)
            await found.answered.wait()
            if found.data is None:
                self._check_open()
            return found.data or b""
        finally:
            self._retrievals.pop(unique, None)

    def retrieved(self, request: Request) -> None:
        """The kernel has answered."""
        found = self._retrievals.get(request.unique)
        size = request.pop(wire.NOTIFY_REPLY_IN)[1]
        if found is not None:
            found.data = request.take(size)
            found.answered.set()

    def close(self) -> None:
        """Write nothing more."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._close_unused()
            self._queue.put(None)
        for each in self._retrievals.values():
            each.answered.set()

    def disown(self) -> None:
        """Be of no further use, in a forked child; who held the lock is not there."""
        self._closed = True
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _close_unused(self) -> None:
        if self._closed and not self._users and self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)


class PollHandle:
    """Somebody who waits in :manpage:`poll(2)` for a file to change."""

    __slots__ = ("_kh", "_notifier")

    def __init__(self, notifier: Notifier, kh: int) -> None:
        self._notifier: Final = notifier
        self._kh: Final = kh

    def notify(self) -> None:
        """Wake them; ``poll`` is then called again. Nothing, if they wait no longer.

        Any thread may call it. Raises :exc:`RuntimeError` in a forked child.
        """
        try:
            self._notifier.write(poll(self._kh))
        except OSError as error:
            if error.errno != errno.ENOTCONN:
                raise
