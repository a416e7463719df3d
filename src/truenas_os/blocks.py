# SPDX-License-Identifier: LGPL-3.0-or-later
"""``async with`` for what the synchronous face does in a ``with`` block."""

from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

from ._threads import GRACE_CHANGE, changing, offload

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Undoable(Protocol[T_co]):
    """A context manager that can also take back its beginning, as if it had never been."""

    def __enter__(self) -> T_co: ...

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None: ...

    def undo(self) -> None: ...


class Block(AbstractAsyncContextManager[T], Generic[T]):
    """A block whose beginning and end change something, each on a worker thread.

    A cancelled beginning is waited for and undone; an end is made in any case. Each of them holds
    up a cancellation as a call that changes something does.
    """

    def __init__(self, block: Undoable[T]) -> None:
        self._block = block

    async def __aenter__(self) -> T:
        return await changing(self._block.__enter__, late=lambda _: self._block.undo())()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        end: Any = self._block.__exit__
        return await offload(end, exc_type, exc, traceback, certain=True, grace=GRACE_CHANGE)
