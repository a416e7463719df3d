# SPDX-License-Identifier: LGPL-3.0-or-later
"""What serving needs of an event loop: to be told of requests, and to start handlers at once."""

import asyncio
import functools
import select
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from .tracing import stack_of

if TYPE_CHECKING:
    import trio

Handling = Coroutine[Any, Any, None]
T = TypeVar("T")

_READER: Final = "truenas_os.fuse reader"
# Seconds for which cancelled handlers are waited for, where one may ignore that.
_PATIENCE: Final = 1.0


class Loop(Protocol):
    """An event loop that serves."""

    def spawn(self, function: Callable[[], Handling]) -> None:
        """Run a task that the cancellation of no other task reaches."""

    def handlers(self) -> AbstractAsyncContextManager[object]:
        """What :meth:`start` needs around it; cancels at its end what has not returned."""

    def watch(self, fd: int, drain: Callable[[], object]) -> None:
        """Call *drain* whenever *fd* has something to be read, an error included."""

    def unwatch(self) -> None:
        """Do so no more."""

    def start(self, handling: Handling, done: Callable[[T], object], argument: T) -> bool:
        """Run a handler. True if it has returned already, else *done* will be called then."""

    def cancel(self) -> None:
        """Cancel the handlers under way."""

    def describe(self) -> list[str]:
        """Where each of them is."""


class AsyncioLoop:
    """asyncio, and every loop that is one (uvloop). From Python 3.12 on handlers begin at once."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._spawned: set[asyncio.Task[None]] = set()
        self._epoll: select.epoll | None = None

    def spawn(self, function: Callable[[], Handling]) -> None:
        task = self._loop.create_task(function())
        self._spawned.add(task)  # the loop itself does not keep it
        task.add_done_callback(self._spawned.discard)

    @asynccontextmanager
    async def handlers(self) -> AsyncIterator[None]:
        try:
            yield
        finally:
            self.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=_PATIENCE)

    def watch(self, fd: int, drain: Callable[[], object]) -> None:
        # libuv takes the error by which /dev/fuse announces its end for its own. An epoll that has
        # an error to report is simply readable.
        self._epoll = select.epoll()
        self._epoll.register(fd, select.EPOLLIN)
        self._loop.add_reader(self._epoll.fileno(), drain)

    def unwatch(self) -> None:
        if self._epoll is not None:
            if not self._loop.is_closed():
                self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None

    if sys.version_info >= (3, 12):

        def start(self, handling: Handling, done: Callable[[T], object], argument: T) -> bool:
            task = asyncio.Task(handling, loop=self._loop, eager_start=True)
            if task.done():
                return True
            self._keep(task, done, argument)
            return False

    else:

        def start(self, handling: Handling, done: Callable[[T], object], argument: T) -> bool:
            self._keep(self._loop.create_task(handling), done, argument)
            return False

    def _keep(self, task: "asyncio.Task[None]", done: Callable[[T], object], argument: T) -> None:
        self._tasks.add(task)

        def finish(task: "asyncio.Task[None]") -> None:
            self._tasks.discard(task)
            done(argument)

        task.add_done_callback(finish)

    def cancel(self) -> None:
        for task in self._tasks:
            task.cancel()

    def describe(self) -> list[str]:
        return [f"handler {task.get_name()}:\n{stack_of(task.get_coro())}" for task in self._tasks]


class TrioLoop:
    """trio: a system task has the handlers in a nursery of its own."""

    def __init__(self) -> None:
        from trio import lowlevel

        self._nursery: trio.Nursery | None = None
        self._reading: trio.CancelScope | None = None
        # Ctrl-C is for the main task: one that ended a system task would end the whole run.
        self._protected = lowlevel.enable_ki_protection
        self._run = self._protected(_run_and_tell)

    def spawn(self, function: Callable[[], Handling]) -> None:
        import trio

        trio.lowlevel.spawn_system_task(function, name="truenas_os.fuse", context=copy_context())

    @asynccontextmanager
    async def handlers(self) -> AsyncIterator[None]:
        import trio

        async with trio.open_nursery() as self._nursery:
            try:
                yield
            finally:
                self.cancel()

    def watch(self, fd: int, drain: Callable[[], object]) -> None:
        assert self._nursery is not None
        self._nursery.start_soon(self._protected(self._read), fd, drain, name=_READER)

    async def _read(self, fd: int, drain: Callable[[], object]) -> None:
        import trio

        with trio.CancelScope() as self._reading:
            while True:
                await trio.lowlevel.wait_readable(fd)
                drain()

    def unwatch(self) -> None:
        if self._reading is not None:
            self._reading.cancel()

    def start(self, handling: Handling, done: Callable[[T], object], argument: T) -> bool:
        assert self._nursery is not None
        # What *done* starts next is to know nothing of this handler's context variables.
        tell = functools.partial(copy_context().run, done, argument)
        self._nursery.start_soon(self._run, handling, tell)
        return False

    def cancel(self) -> None:
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()

    def describe(self) -> list[str]:
        if self._nursery is None:
            return []
        return [
            f"handler {task.name}:\n{stack_of(task.coro)}"
            for task in self._nursery.child_tasks
            if task.name != _READER
        ]


async def _run_and_tell(handling: Handling, tell: Callable[[], object]) -> None:
    try:
        await handling
    finally:
        tell()


def running_loop() -> Loop:
    """The event loop that runs. :exc:`RuntimeError` if none does."""
    lowlevel: Any = getattr(sys.modules.get("trio"), "lowlevel", None)
    if lowlevel is not None and lowlevel.in_trio_task():
        return TrioLoop()
    return AsyncioLoop()


def in_event_loop() -> bool:
    """Whether an event loop runs in this thread."""
    try:
        running_loop()
    except RuntimeError:
        return False
    return True
