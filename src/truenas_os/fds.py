# SPDX-License-Identifier: LGPL-3.0-or-later
"""Descriptors that are closed on a worker thread: a close can hang as an open can."""

from types import TracebackType
from typing import Self

from . import _threads, blocking


class Fd(blocking.Fd):
    """A file descriptor: an int that is also a context manager (``async with``, ``with``).

    It can be passed wherever a descriptor is expected. Leaving its block closes it exactly once,
    also when the block was cancelled. It is not closed by garbage collection, so code that ends it
    with ``os.close(fd)`` stays right. Every descriptor that this library returns is close-on-exec,
    whatever the flags.
    """

    async def aclose(self) -> None:
        """Close the descriptor on a worker thread; a second call does nothing.

        A cancellation ends the wait, not the close. Raises :exc:`OSError` as :meth:`close` does.
        """
        if not self.closed:
            await _threads.offload(self.close, certain=True)

    async def __aenter__(self) -> Self:
        self.fileno()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()
