# SPDX-License-Identifier: LGPL-3.0-or-later
"""Walking a filesystem as an async iterator."""

import functools
import inspect
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator
from types import TracebackType
from typing import Any, Final, NoReturn, ParamSpec, Self, TypeVar

import anyio
import anyio.lowlevel

from . import blocking
from ._threads import GRACE_FD, offload
from .blocking.walk_items import IterInstance
from .blocking.walk_steps import Call, Offload, Step, Wait
from .blocking.walker import WalkIterator, checked_size, made_exception
from .signatures import returns

P = ParamSpec("P")
T = TypeVar("T")


class FilesystemIterator(WalkIterator, AsyncGenerator[IterInstance, None]):
    """What :func:`iter_filesystem_contents` and :func:`walk` return.

    An async iterator, and an async context manager that closes it. One task at a time may ask for
    an item: RuntimeError tells the others. A cancelled wait for an item loses nothing. After
    :meth:`aclose` every call raises :exc:`ValueError`, in a forked child :exc:`RuntimeError`.
    """

    # Set when the task that asks for an item is done; and what ends its wait for the beginning.
    _asking: anyio.Event | None = None
    _beginning: anyio.CancelScope | None = None
    # Whether that task is in a callback, which may be what closes.
    _calling = False

    async def __anext__(self) -> IterInstance:
        for item in self._walker.ready:
            return item
        await self._drive(self._walker.proceeding())
        for item in self._walker.ready:
            return item
        self._walker.check_end()
        raise StopAsyncIteration

    async def _drive(self, steps: Generator[Step, Any, T]) -> T:
        self._walker.claim()
        done = self._asking = anyio.Event()
        answer: object = None
        try:
            while True:
                try:
                    step = steps.send(answer)
                except StopIteration as end:
                    result: T = end.value
                    return result
                answer = await self._take(step)
        finally:
            steps.close()
            self._walker.release_claim()
            done.set()

    async def _take(self, step: Step) -> object:
        if isinstance(step, Wait):
            return await self._wait(step.timeout)
        if isinstance(step, Offload):
            # The caller's descriptor, if that is where the walk begins, is read by the worker.
            with anyio.CancelScope() as self._beginning:
                return await offload(step.function, late=step.late, grace=GRACE_FD)
            return None
        if isinstance(step, Call):
            self._calling = True
            try:
                result = step.function(*step.arguments)
                return await result if inspect.isawaitable(result) else result
            except StopAsyncIteration as error:  # which would look like the end of the walk
                raise RuntimeError("a callback raised StopAsyncIteration") from error
            finally:
                self._calling = False
        await anyio.lowlevel.checkpoint()
        return None

    async def _wait(self, timeout: float | None) -> bool:
        """Whether nothing happened for so long."""
        if self._walker.native is None:
            return True
        with anyio.move_on_after(timeout) as scope:
            await anyio.wait_readable(self._walker.native.fd)
        return scope.cancelled_caught

    def batches(self, size: int) -> AsyncIterator[list[IterInstance]]:
        """The rest of the items, in lists of *size*.

        The descriptors in a list are valid until the next one is asked for. Lists with descriptors
        have what is at hand, at most half of what may be read ahead. Raises :exc:`ValueError` for a
        *size* below 1.
        """
        self._walker.check()
        return _Batches(self, checked_size(size))

    async def gather(self, size: int) -> list[IterInstance]:
        """The next list of :meth:`batches`; empty at the end."""
        items = await self._drive(self._walker.gathering(size))
        self._walker.check_end()
        return items

    async def aclose(self) -> None:
        """End the walk and close its descriptors; a second call does nothing.

        Waits for system calls that are under way, but at most a second: one that is stuck in a dead
        filesystem is left behind, and what it opens is closed whenever it returns. Another task
        that waits for an item gets :exc:`ValueError`.
        """
        if self._walker.close_begins():
            ending = self._walker.ending()
            try:
                for step in ending:
                    await self._take(step)
            finally:
                ending.close()
        elif self._walker.busy and self._asking is not None:
            if self._beginning is not None:
                self._beginning.cancel()
            if not self._calling:
                await self._asking.wait()

    async def asend(self, value: None) -> IterInstance:
        """The next item, as an async generator's ``asend(None)``; anything else is a TypeError."""
        if value is not None:
            raise TypeError("a walk takes nothing by asend()")
        return await self.__anext__()

    async def athrow(self, typ: Any, val: Any = None, tb: Any = None) -> NoReturn:
        """Close the walk and raise that, as a generator does that does not catch it."""
        await self.aclose()
        raise made_exception(typ, val, tb)

    async def __aenter__(self) -> Self:
        if self._walker.begun is None:
            await self._drive(self._walker.beginning())
        self._walker.check()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._walker.pid == os.getpid():
            await self.aclose()


class _Batches(AsyncIterator[list[IterInstance]]):
    def __init__(self, walker: FilesystemIterator, size: int) -> None:
        self._walker = walker
        self._size = size

    async def __anext__(self) -> list[IterInstance]:
        if items := await self._walker.gather(self._size):
            return items
        raise StopAsyncIteration


def _awaited(
    function: Callable[P, blocking.FilesystemIterator],
) -> Callable[P, FilesystemIterator]:
    """The async form of what makes a walk, which begins only when it is iterated over."""

    @functools.wraps(function)
    def make(*args: P.args, **kwargs: P.kwargs) -> FilesystemIterator:
        return FilesystemIterator(function(*args, **kwargs).options)

    returns(make, FilesystemIterator)
    return make


iter_filesystem_contents: Final = _awaited(blocking.iter_filesystem_contents)
walk: Final = _awaited(blocking.walk)
