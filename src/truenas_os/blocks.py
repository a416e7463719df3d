# SPDX-License-Identifier: LGPL-3.0-or-later
"""``async with`` for what the synchronous face does in a ``with`` block."""

from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

import anyio

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
        self._error: BaseException | None = None

    async def __aenter__(self) -> T:
        return await changing(self._block.__enter__, late=lambda _: self._block.undo())()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        try:
            return await offload(
                self._end, exc_type, exc, traceback, certain=True, grace=GRACE_CHANGE
            )
        except anyio.get_cancelled_exc_class() as cancellation:
            error, self._error = self._error, None
            if error is not None:
                # It has not ended as it should: that is not to be lost.
                raise error from cancellation
            raise

    def _end(self, *exc: Any) -> bool | None:
        try:
            return self._block.__exit__(*exc)
        except BaseException as error:
            self._error = error
            raise
