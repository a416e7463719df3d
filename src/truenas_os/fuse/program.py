# SPDX-License-Identifier: LGPL-3.0-or-later
"""A process that is one filesystem: init, main, terminate, close, as asyncio bindings have them."""

import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Final

import anyio

from ..blocking.arguments import StrOrBytesPath
from . import notifications
from .current import active_session
from .datatypes import FileNameT, InodeT
from .operations import Operations
from .options import default_options, parse_options
from .pathcallbacks import PathOperations
from .session import MAX_TASKS, Session

_log = logging.getLogger("truenas_os.fuse")

trio_token: Any = None
"""The token of the trio run in which :func:`main` serves, else None."""

# Whose handlers of SIGINT cancel what they run.
_RUNNERS: Final = ("asyncio.runners", "trio._core._ki")

_session: Session | None = None
_stop: anyio.Event | None = None


def init(
    ops: Operations | PathOperations,
    mountpoint: StrOrBytesPath,
    options: Collection[str] = default_options,
) -> None:
    """Mount *ops* at *mountpoint*, for :func:`main` to serve; until then, who looks at it waits.

    *options* are texts such as ``"fsname=hello"``; see :func:`mount` for their names. Raises
    :exc:`RuntimeError` if this process has a filesystem of that kind already, and as
    :func:`mount`.
    """
    global _session
    if _session is not None:
        if _session.is_ours:
            raise RuntimeError("a filesystem is mounted already: close() comes first")
        close()  # the parent's
    session = Session(ops, mountpoint, parse_options(options))
    session.open()
    _session = session


def _initialized() -> Session:
    if _session is None:
        raise RuntimeError("init() comes first")
    _session.check_process()
    return _session


async def main(min_tasks: int = 1, max_tasks: int = MAX_TASKS) -> None:
    """Serve until the filesystem is unmounted, :func:`terminate` is called, or a signal comes.

    At most *max_tasks* handlers are under way at once; *min_tasks* has no effect. What ends here
    unmounts the filesystem while it still serves, so that nothing that was written is lost. In the
    main thread, SIGINT and SIGTERM end it, unless they have handlers of the program's own. A child
    that was forked after :func:`init` may call this in place of its parent, as daemons do.
    """
    global _stop, trio_token
    if _session is not None:
        await _session.inherit()
    session = _initialized()
    session.set_max_tasks(max_tasks)
    stop = _stop = anyio.Event()
    trio_token = _current_trio_token()
    try:
        with ended_by_signals(stop):
            async with anyio.create_task_group() as tasks:
                try:
                    await session.serve()
                    tasks.start_soon(wait_for, session, stop)
                    await stop.wait()
                finally:
                    await session.aclose()
                tasks.cancel_scope.cancel()
        await session.wait()
    finally:
        _stop = trio_token = None


async def wait_for(session: Session, stop: anyio.Event) -> None:
    """Set *stop* when the session has ended."""
    with contextlib.suppress(OSError):  # which main() itself will raise
        await session.wait()
    stop.set()


def _current_trio_token() -> Any:
    lowlevel: Any = getattr(sys.modules.get("trio"), "lowlevel", None)
    in_trio = lowlevel is not None and lowlevel.in_trio_task()
    return lowlevel.current_trio_token() if in_trio else None


# Whom signals end: what each of them waits for, and how it is told in its event loop. While there
# is anybody, the handlers that the signals had before are kept here.
_ending: dict[anyio.Event, Callable[..., object]] = {}
_before: dict[int, Any] = {}


@contextlib.contextmanager
def ended_by_signals(stop: anyio.Event) -> Iterator[None]:
    """Set *stop* for SIGINT and SIGTERM, in the main thread and unless they have handlers.

    All end together. The handlers that there were before the first of them are restored for the
    last, for a second signal, and in a forked child.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _ending[stop] = _teller()
    if not _before:
        _take_signals()
    try:
        yield
    finally:
        _ending.pop(stop, None)
        if not _ending:
            _give_back_signals()


def _teller() -> Callable[..., object]:
    """What a signal's handler is to call a function through."""
    token = _current_trio_token()
    if token is None:
        return asyncio.get_running_loop().call_soon_threadsafe
    tell: Callable[..., object] = token.run_sync_soon
    return tell


def _take_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        if _is_default(handler := signal.getsignal(number)):
            _before[number] = handler
            signal.signal(number, _received)


def _give_back_signals() -> None:
    while _before:
        number, handler = _before.popitem()
        if signal.getsignal(number) is _received:
            signal.signal(number, handler)


def _start_without() -> None:
    _ending.clear()
    _give_back_signals()


os.register_at_fork(after_in_child=_start_without)


def _received(number: int, frame: object) -> None:
    _give_back_signals()
    while _ending:
        stop, tell = _ending.popitem()
        with contextlib.suppress(RuntimeError):  # its event loop has ended without it
            tell(_end, stop, number)


def _end(stop: anyio.Event, number: int) -> None:
    _log.info("ending because of %s", signal.Signals(number).name)
    stop.set()


def _is_default(handler: Any) -> bool:
    """Whether it ends the process or the event loop."""
    if handler in (signal.SIG_DFL, signal.default_int_handler):
        return True
    function = getattr(handler, "func", handler)
    return getattr(function, "__module__", "") in _RUNNERS


def terminate() -> None:
    """Have :func:`main` end: it unmounts the filesystem and returns. Nothing if it does not run."""
    if _stop is not None:
        _initialized()
        _stop.set()


def close(unmount: bool = True) -> None:
    """Clean up what :func:`init` has begun, after :func:`main`; a second call does nothing.

    If the filesystem is still mounted it is detached, unless *unmount* is False: then all who use
    it get ENOTCONN. In a forked child, the filesystem stays as it is.
    """
    global _session
    session, _session = _session, None
    if session is not None:
        session.abandon(unmount)


def _post(notice: notifications.Notice, ignore_enoent: bool = True, ahead: bool = True) -> None:
    """Tell the kernel, in the session whose handler calls this, or else in that of :func:`init`."""
    session = active_session() or _initialized()
    session.post(notice, ignore_enoent, ahead)


def invalidate_inode(inode: InodeT, attr_only: bool = False) -> None:
    """Have the kernel forget an inode's attributes, and its data unless *attr_only*, soon.

    In an event loop it does not wait. If a handler calls it, the kernel has forgotten before it has
    the reply, unless it needs more than 0.1 s. A thread of no event loop, which is no handler's
    either, waits until the kernel has forgotten. So with the functions below.
    """
    _post(notifications.inval_inode(inode, attr_only))


def invalidate_entry(inode_p: InodeT, name: FileNameT, deleted: InodeT | int = 0) -> None:
    """Have the kernel look up an entry of a directory again, soon; see the session's method."""
    _post(notifications.inval_entry(inode_p, name, deleted))


def invalidate_entry_async(
    inode_p: InodeT,
    name: FileNameT,
    deleted: InodeT | int = 0,
    ignore_enoent: bool = False,
) -> None:
    """The same, at any time: before or after the reply to the handler that calls it.

    That the kernel does not know the entry is logged unless *ignore_enoent*.
    """
    _post(notifications.inval_entry(inode_p, name, deleted), ignore_enoent, ahead=False)


def notify_store(inode: InodeT, offset: int, data: bytes) -> None:
    """Put *data* into the page cache of an inode, soon."""
    _post(notifications.store(inode, offset, data))


def expire_entry(inode_p: InodeT, name: FileNameT) -> None:
    """Have the kernel look up an entry of a directory when it is next used. Linux 6.2."""
    _post(notifications.expire_entry(inode_p, name))


def prune(inodes: Sequence[InodeT]) -> None:
    """Have the kernel forget inodes that nobody uses, soon. Linux 6.18; before, it is logged."""
    _post(notifications.prune(inodes))
