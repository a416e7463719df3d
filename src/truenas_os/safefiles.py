# SPDX-License-Identifier: LGPL-3.0-or-later
"""Files whose every call runs on a worker thread: what safe_open and atomic_write give."""

import functools
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import IO, Any, AnyStr, Final, Generic, ParamSpec, Self, TypeVar

from typing_extensions import Buffer

from . import blocking
from ._threads import GRACE_CHANGE, changing, in_thread, offload
from .blocking.replacement import Replacement
from .blocking.safefiles import sync_file
from .blocks import Block
from .signatures import returns

P = ParamSpec("P")
T = TypeVar("T")

# Lines are read ahead, in bytes or characters, because going to a worker costs more than reading.
_AHEAD = 1 << 16


class AsyncFile(AsyncIterator[AnyStr], Generic[AnyStr]):
    """A file object whose calls are awaited, each made on a worker thread, one after the other.

    The calls are those of Python's file objects. Leaving ``async with`` closes it, and
    ``async for`` gives its lines. It belongs to one task at a time.

    A cancelled call that reads is abandoned at once: the position is then anywhere between where it
    was and where the call would have left it. One that writes is waited for, for at most 5 s, and
    may have written a part, or do so later. The close is made in any case, after them.
    """

    def __init__(self, file: IO[AnyStr]) -> None:
        self._file: Any = file
        self._lock = threading.Lock()
        # Lines read ahead, where they began, and how many of them have been given out.
        self._lines: deque[AnyStr] = deque()
        self._begin = 0
        self._given = 0

    @property
    def wrapped(self) -> IO[AnyStr]:
        """The synchronous file object."""
        file: IO[AnyStr] = self._file
        return file

    @property
    def name(self) -> Any:
        """The path it was opened by."""
        return self._file.name

    @property
    def mode(self) -> str:
        """The mode it was opened with."""
        return str(self._file.mode)

    @property
    def closed(self) -> bool:
        """Whether it is closed."""
        return bool(self._file.closed)

    def fileno(self) -> int:
        """The descriptor's number. Raises :exc:`ValueError` once the file is closed."""
        return int(self._file.fileno())

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._file!r}>"

    async def read(self, size: int = -1) -> AnyStr:
        """Read at most *size* bytes or characters, all there are if it is negative."""
        return await _asking(self, self._file.read, size)

    async def readinto(self, buffer: Buffer) -> int:
        """Read into *buffer* what it has room for; return how many bytes.

        *buffer* is changed only by a call that is not cancelled.
        """
        target = memoryview(buffer).cast("B")
        # A worker that was left behind must not write to memory that is the caller's again.
        data = bytearray(len(target))
        count: int = await _asking(self, self._file.readinto, data)
        target[:count] = data[:count]
        return count

    async def readline(self, size: int = -1) -> AnyStr:
        """Read one line, or *size* bytes or characters of it; what is empty is the end."""
        return await _asking(self, self._file.readline, size)

    async def readlines(self, hint: int = -1) -> list[AnyStr]:
        """Read all lines, or so many that they have *hint* bytes or characters."""
        return await _asking(self, self._file.readlines, hint)

    async def write(self, data: AnyStr | Buffer) -> int:
        """Write *data*; return how many bytes or characters."""
        return await _altering(self, self._file.write, data)

    async def writelines(self, lines: Iterable[AnyStr | Buffer]) -> None:
        """Write all *lines*, which have their ends already."""
        await _altering(self, self._file.writelines, lines)

    async def truncate(self, size: int | None = None) -> int:
        """Make the file *size* bytes long, or as long as the position is."""
        return await _altering(self, self._file.truncate, size)

    async def flush(self) -> None:
        """Hand to the kernel what is buffered."""
        await _altering(self, self._file.flush)

    async def fsync(self) -> None:
        """Flush, and wait until the file is on the disk. See :manpage:`fsync(2)`."""
        await _altering(self, sync_file, self._file)

    async def seek(self, offset: int, whence: int = 0) -> int:
        """Move the position; return it."""
        return await _asking(self, self._file.seek, offset, whence)

    async def tell(self) -> int:
        """The position."""
        return await _asking(self, self._file.tell)

    async def aclose(self) -> None:
        """Close the file on a worker thread; a second call does nothing.

        A cancellation ends the wait, for a file that is written to after at most 5 s, not the
        close. Raises what the last flush raises; the file is closed all the same.
        """
        if not self._file.closed:
            grace = GRACE_CHANGE if self._file.writable() else 0.0
            await offload(self.after_all, self._file.close, certain=True, grace=grace)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def __anext__(self) -> AnyStr:
        if not self._lines:
            await _asking(self, self._read_ahead)
            if not self._lines:
                raise StopAsyncIteration
        self._given += 1
        return self._lines.popleft()

    # On a worker.

    def after_all(self, function: Callable[..., T], *args: Any) -> T:
        """Call *function* when no other call of this file is under way, abandoned ones included."""
        with self._lock:
            return function(*args)

    def from_here(self, function: Callable[..., T], *args: Any) -> T:
        """The same, with the position where the lines that were given out end."""
        with self._lock:
            if self._lines and not self._file.closed and self._file.seekable():
                self._file.seek(self._begin)
                for _ in range(self._given):
                    self._file.readline()
            self._lines.clear()
            return function(*args)

    def _read_ahead(self) -> None:
        ahead = _AHEAD if self._file.seekable() else 1
        self._begin = self._file.tell() if ahead > 1 else 0
        self._given = 0
        while ahead > 0 and (line := self._file.readline()):
            self._lines.append(line)
            ahead -= len(line)


@in_thread
def _asking(file: AsyncFile[Any], function: Callable[..., T], *args: Any) -> T:
    return file.from_here(function, *args)


@changing
def _altering(file: AsyncFile[Any], function: Callable[..., T], *args: Any) -> T:
    return file.from_here(function, *args)


def _opening(
    function: Callable[P, IO[Any]],
) -> Callable[P, Coroutine[Any, Any, AsyncFile[Any]]]:
    open_late_closed = in_thread(function, late=lambda file: file.close())

    @functools.wraps(function)
    async def call(*args: P.args, **kwargs: P.kwargs) -> AsyncFile[Any]:
        return AsyncFile(await open_late_closed(*args, **kwargs))

    returns(call, AsyncFile[Any])
    return call


class _AsyncReplacement:
    """The block of atomic_write, with the file that the async face has."""

    def __init__(self, block: Replacement) -> None:
        self._block = block

    def __enter__(self) -> AsyncFile[Any]:
        self._file = AsyncFile(self._block.__enter__())
        return self._file

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.after_all(self._block.__exit__, exc_type, exc, traceback)

    def undo(self) -> None:
        self._block.undo()


def _replacing(
    function: Callable[P, Replacement],
) -> Callable[P, AbstractAsyncContextManager[AsyncFile[Any]]]:
    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> AbstractAsyncContextManager[AsyncFile[Any]]:
        return Block(_AsyncReplacement(function(*args, **kwargs)))

    returns(call, AbstractAsyncContextManager[AsyncFile[Any]])
    return call


safe_open: Final = _opening(blocking.safe_open)
atomic_write: Final = _replacing(blocking.atomic_write)
