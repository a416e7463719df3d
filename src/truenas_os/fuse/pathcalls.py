# SPDX-License-Identifier: LGPL-3.0-or-later
"""Calling the callbacks of the path level: on the event loop or on a thread, one by one or not."""

import errno
import inspect
import logging
import reprlib
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from contextvars import ContextVar, copy_context
from time import perf_counter
from typing import Any, Final, NamedTuple, TypeVar

import anyio

from .._threads import offload
from . import notifications
from .current import current_request
from .datatypes import FUSEError
from .loops import running_loop
from .pathcallbacks import PathOperations, defined
from .pathforms import UnfitError

_log = logging.getLogger("truenas_os.fuse")

T = TypeVar("T")

# Seconds within which, at its end, a session removes what it has hidden.
_PATIENCE: Final = 5.0

_shown = reprlib.Repr()
_shown.maxstring = _shown.maxother = 80
_shown.maxtuple = 14


class Context(NamedTuple):
    """Who makes a call, as the mount's user namespace has it; 0 for an invisible pid."""

    uid: int
    gid: int
    pid: int
    umask: int
    """Of who makes something, else 0; it has been applied to the mode already."""
    private_data: Any
    """What ``init`` has returned."""


_context: ContextVar[Context] = ContextVar("context")


def fuse_get_context() -> Context:
    """Who has made the call that a callback serves, and the filesystem's ``private_data``.

    For ``init`` and ``destroy``, which nobody has asked for, the ids are 0. Raises
    :exc:`LookupError` outside a callback.
    """
    return _context.get()


class Calls:
    """The callbacks that a filesystem has, and how they are called."""

    def __init__(self, operations: PathOperations) -> None:
        self._callbacks: Final = defined(operations)
        self._threaded = operations.threaded
        self._debug = operations.debug
        self._private_data: Any = None
        # What one callback at a time has: its turn, and while it is on a thread, the mark that it
        # still is there, even if nobody waits for it any more.
        self._turn: anyio.Lock
        self._on_thread = threading.Lock()
        self._ready: anyio.Event
        self._beginning: anyio.CancelScope | None = None
        self.ended: bool = False

    def __contains__(self, name: str) -> bool:
        return name in self._callbacks

    def begin(self) -> None:
        """Have ``init`` called; until it has returned, other callbacks wait."""
        self._turn = anyio.Lock(fast_acquire=True)
        self._ready = anyio.Event()
        if "init" in self._callbacks:
            self._beginning = anyio.CancelScope()
            running_loop().spawn(self._init)
        else:
            self._ready.set()

    async def _init(self) -> None:
        assert self._beginning is not None
        try:
            with self._beginning:
                self._private_data = await self._call("init", (), _nobody(None))
        except Exception:
            _log.exception("init has raised an exception, which it must not")
        finally:
            self._ready.set()

    async def end(self, leftovers: Sequence[str]) -> None:
        """Call ``unlink`` for paths, then ``destroy``; wait for no callback any longer."""
        self._threaded = True  # what is under way may never return
        if self._beginning is not None:
            self._beginning.cancel()
            await self._ready.wait()
        context = _nobody(self._private_data)
        try:
            with anyio.move_on_after(_PATIENCE):
                for path in leftovers if "unlink" in self._callbacks else ():
                    with suppress(Exception):  # nobody is left to be told
                        await self._call("unlink", (path,), context)
            if "destroy" in self._callbacks:
                await self._call("destroy", (self._private_data,), context)
        finally:
            self.ended = True

    async def __call__(
        self,
        name: str,
        *args: Any,
        form: Callable[[Any], T],
        umask: int = 0,
        late: Callable[[Any], object] | None = None,
    ) -> T:
        """Call a callback, whose result *form* makes into what it stands for.

        A result that comes after a cancellation goes to *late*. Raises :exc:`FUSEError` with ENOSYS
        if there is no such callback, and with EIO if *form* finds its result unfit.
        """
        if name not in self._callbacks:
            raise FUSEError(errno.ENOSYS)
        if not self._ready.is_set():
            await self._ready.wait()
        request = current_request()
        data = self._private_data
        context = Context(request.uid, request.gid, request.pid, umask, data)
        value = await self._call(name, args, context, late)
        try:
            return form(value)
        except UnfitError:
            _log.error("%s has returned %s, which it must not", name, _shown.repr(value))
            raise FUSEError(errno.EIO) from None

    async def _call(
        self,
        name: str,
        args: tuple[Any, ...],
        context: Context,
        late: Callable[[Any], object] | None = None,
    ) -> Any:
        callback, count, is_async = self._callbacks[name]
        args = args[:count]
        _context.set(context)
        if not self._debug:
            return await self._take_turn(callback, is_async, args, late)
        began = perf_counter()
        outcome = "?"
        try:
            value = await self._take_turn(callback, is_async, args, late)
            outcome = _shown.repr(value)
            return value
        except BaseException as error:
            code = getattr(error, "errno", None)
            outcome = errno.errorcode.get(code, "") if isinstance(code, int) else ""
            outcome = outcome or repr(error)
            raise
        finally:
            shown = ", ".join(map(_shown.repr, args))
            _log.info("%s(%s) = %s in %.2f ms", name, shown, outcome, _since(began))

    def undo(
        self, name: str, arguments: Callable[[Any], tuple[Any, ...]]
    ) -> Callable[[Any], None] | None:
        """What undoes a plain callback's success that comes late: one more call, on its thread.

        *arguments* makes the arguments from the result, and raises what that says of a failure.
        None if the one to call is not there, or not a plain one.
        """
        callback, count, is_async = self._callbacks.get(name, (None, 0, True))
        if is_async:
            return None

        def call(value: object) -> None:
            if inspect.isawaitable(value):
                return  # it has not begun
            args = arguments(value)
            with nullcontext() if self._threaded else self._on_thread:
                _plainly(callback, args[:count])

        return call

    async def _take_turn(
        self,
        callback: Any,
        is_async: bool,
        args: tuple[Any, ...],
        late: Callable[[Any], object] | None,
    ) -> Any:
        if self._threaded:
            return await (callback(*args) if is_async else _on_thread(callback, args, late))
        async with self._turn:
            if self._on_thread.locked():  # one that nobody waits for
                await offload(self._wait_for_thread)
            if is_async:
                return await callback(*args)
            return await _on_thread(callback, args, late, self._on_thread)

    def _wait_for_thread(self) -> None:
        with self._on_thread:
            pass


async def _on_thread(
    callback: Any,
    args: tuple[Any, ...],
    late: Callable[[Any], object] | None,
    lock: "threading.Lock | None" = None,
) -> Any:
    def call() -> Any:
        with nullcontext() if lock is None else lock:
            return _plainly(callback, args)

    late = None if late is None else _in_this_context(late)
    value = await offload(call, late=late)
    # Such as a partial or a lambda that calls what is async.
    return await value if inspect.isawaitable(value) else value


def _plainly(callback: Any, args: tuple[Any, ...]) -> Any:
    """Call a plain callback, which cannot end the server: sys.exit() is an error as any other."""
    try:
        return callback(*args)
    except Exception:
        raise
    except BaseException as error:
        raise RuntimeError(f"a plain callback has raised {error!r}") from error


def _in_this_context(function: Callable[[Any], object]) -> Callable[[Any], object]:
    context = copy_context()
    return lambda value: context.run(function, value)


def _nobody(private_data: Any) -> Context:
    return Context(0, 0, 0, 0, private_data)


def _since(began: float) -> float:
    return (perf_counter() - began) * 1000


class PollHandle:
    """Somebody who waits in :manpage:`poll(2)`; see :func:`notify_poll`."""

    __slots__ = ("_calls", "_handle")

    def __init__(self, calls: Calls, handle: "notifications.PollHandle") -> None:
        self._calls = calls
        self._handle: notifications.PollHandle | None = handle

    def _alive(self) -> "notifications.PollHandle":
        if self._handle is None or self._calls.ended:
            raise ValueError("this poll handle is of no use any more")
        return self._handle


def _known(handle: PollHandle) -> "notifications.PollHandle":
    if not isinstance(handle, PollHandle):
        raise ValueError(f"{handle!r} is no poll handle")
    return handle._alive()


def notify_poll(handle: PollHandle) -> None:
    """Wake who polls, whereupon ``poll`` is called again; from any thread.

    Nothing happens if they wait no longer. Raises :exc:`ValueError` for what is no poll handle or
    has been destroyed, also with its session, and :exc:`RuntimeError` in a forked child.
    """
    _known(handle).notify()


def pollhandle_destroy(handle: PollHandle) -> None:
    """Have no more use for a poll handle. Raises :exc:`ValueError` as :func:`notify_poll`."""
    _known(handle)
    handle._handle = None
