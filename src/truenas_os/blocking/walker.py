# SPDX-License-Identifier: LGPL-3.0-or-later
"""Walking a filesystem: what both faces of the iterator have in common, and the synchronous one."""

import operator
import os
import select
from collections.abc import Generator, Iterator
from types import TracebackType
from typing import Any, NoReturn, Self, TypeVar

from typing_extensions import Buffer, Unpack

from .arguments import FileDescriptorLike, StrOrBytesPath
from .walk_items import FilesystemIterState, IterInstance
from .walk_options import (
    OnError,
    ProgressCallback,
    ReportingCallback,
    Root,
    WalkKeywords,
    WalkOptions,
    checked_options,
    checked_source,
    checked_start,
)
from .walk_steps import Call, Offload, Step, Wait, Walker
from .walk_tokens import ResumeToken

T = TypeVar("T")


class WalkIterator:
    """What the iterators of both faces have in common.

    The walker is an object of its own because its steps refer to it: an iterator that is dropped is
    to end at once, not when the collector comes to it.
    """

    def __init__(self, options: WalkOptions) -> None:
        self._walker = Walker(options)

    @property
    def options(self) -> WalkOptions:
        """What was asked for."""
        return self._walker.options

    def get_stats(self) -> FilesystemIterState:
        """How far the walk has come."""
        return self._walker.get_stats()

    def dir_stack(self) -> tuple[tuple[str, int], ...]:
        """The directories from the walk's root to the one that holds the last item.

        Each as its whole path and its inode number: of a very deep tree, much memory.
        """
        return self._walker.dir_stack()

    def skip(self) -> None:
        """Leave out what is in the directory that was handed out last.

        Raises :exc:`ValueError` if the last item was not a directory, and :exc:`RuntimeError`
        while another task or thread waits for a list.
        """
        self._walker.skip()

    def resume_token(self) -> ResumeToken:
        """Where the walk stands: what was handed out last is the last thing it will not repeat.

        Raises :exc:`ValueError` before the walk has begun, with a block or the first item.
        """
        return self._walker.resume_token()

    def __del__(self) -> None:
        if (walker := getattr(self, "_walker", None)) is not None:
            walker.drop(type(self).__name__)


class FilesystemIterator(WalkIterator, Generator[IterInstance, None, None]):
    """What :func:`iter_filesystem_contents` and :func:`walk` return.

    An iterator, and a context manager that closes it. Of several threads one at a time may ask for
    an item: RuntimeError tells the others. After :meth:`close` every call raises
    :exc:`ValueError`, in a forked child :exc:`RuntimeError`.
    """

    def __next__(self) -> IterInstance:
        for item in self._walker.ready:
            return item
        self._drive(self._walker.proceeding())
        for item in self._walker.ready:
            return item
        self._walker.check_end()
        raise StopIteration

    def _drive(self, steps: Generator[Step, Any, T]) -> T:
        self._walker.claim()
        answer: object = None
        try:
            while True:
                try:
                    step = steps.send(answer)
                except StopIteration as end:
                    result: T = end.value
                    return result
                answer = self._take(step)
        finally:
            steps.close()
            self._walker.release_claim()

    def _take(self, step: Step) -> object:
        if isinstance(step, Wait):
            return self._wait(step.timeout)
        if isinstance(step, Offload):
            return step.function()
        if isinstance(step, Call):
            try:
                return step.function(*step.arguments)
            except StopIteration as error:  # which would look like the end of the walk
                raise RuntimeError("a callback raised StopIteration") from error
        return None

    def _wait(self, timeout: float | None) -> bool:
        """Whether nothing happened for so long. Signal handlers run, and may raise."""
        if self._walker.native is None:
            return True
        poll = select.poll()
        poll.register(self._walker.native.fd, select.POLLIN)
        return not poll.poll(None if timeout is None else timeout * 1000)

    def batches(self, size: int) -> Iterator[list[IterInstance]]:
        """The rest of the items, in lists of *size*.

        The descriptors in a list are valid until the next one is asked for. Lists with descriptors
        have what is at hand, at most half of what may be read ahead. Raises :exc:`ValueError` for a
        *size* below 1.
        """
        self._walker.check()
        return _Batches(self, checked_size(size))

    def gather(self, size: int) -> list[IterInstance]:
        items = self._drive(self._walker.gathering(size))
        self._walker.check_end()
        return items

    def close(self) -> None:
        """End the walk and close its descriptors; a second call does nothing.

        Waits for system calls that are under way, but at most a second: one that is stuck in a dead
        filesystem is left behind, and what it opens is closed whenever it returns. Another thread
        that waits for an item gets :exc:`ValueError`.
        """
        if self._walker.close_begins():
            self._drive_end()

    def _drive_end(self) -> None:
        ending = self._walker.ending()
        try:
            for step in ending:
                self._take(step)
        finally:
            ending.close()

    def send(self, value: None) -> IterInstance:
        """The next item, as a generator's ``send(None)``; anything else is a TypeError."""
        if value is not None:
            raise TypeError("a walk takes nothing by send()")
        return next(self)

    def throw(self, typ: Any, val: Any = None, tb: Any = None) -> NoReturn:
        """Close the walk and raise that, as a generator does that does not catch it."""
        self.close()
        raise made_exception(typ, val, tb)

    def __enter__(self) -> Self:
        if self._walker.begun is None:
            self._drive(self._walker.beginning())
        self._walker.check()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._walker.pid == os.getpid():
            self.close()


class _Batches(Iterator[list[IterInstance]]):
    def __init__(self, walker: FilesystemIterator, size: int) -> None:
        self._walker = walker
        self._size = size

    def __next__(self) -> list[IterInstance]:
        if items := self._walker.gather(self._size):
            return items
        raise StopIteration


def checked_size(size: int) -> int:
    """The size of a list, which must be at least 1."""
    if operator.index(size) < 1:
        raise ValueError(f"a list of items has at least 1, not {size}")
    return size


def made_exception(typ: Any, val: Any, tb: Any) -> BaseException:
    """The exception that the arguments of ``throw()`` stand for."""
    exception = typ if isinstance(typ, BaseException) else val
    if exception is None:
        exception = typ()
    elif not isinstance(exception, BaseException):
        exception = typ(exception)
    made: BaseException = exception.with_traceback(tb) if tb is not None else exception
    return made


def iter_filesystem_contents(
    mountpoint: StrOrBytesPath,
    filesystem_name: str,
    /,
    *,
    relative_path: StrOrBytesPath | None = None,
    btime_cutoff: int = 0,
    file_open_flags: int | None = os.O_RDONLY,
    resume_token_name: str | None = None,
    resume_token_data: Buffer | None = None,
    reporting_increment: int = 1000,
    reporting_callback: ReportingCallback | None = None,
    reporting_private_data: Any = None,
    include_symlinks: bool = False,
    include_mountpoints: bool = False,
    resume_from: Buffer | None = None,
    on_error: OnError = "report",
    read_ahead: int | None = None,
    progress: ProgressCallback | None = None,
    progress_interval: float = 1.0,
) -> FilesystemIterator:
    """What is on the filesystem *filesystem_name*, mounted at *mountpoint*, depth first.

    A directory comes before what is in it; the root of the walk itself does not come. Other mounts
    are not entered, symlinks not followed, also if they are swapped in meanwhile: every step is an
    :manpage:`openat2(2)` from the directory above. What vanishes meanwhile does not come. Iterate
    best inside ``with`` (``async with``); nothing is asked before the block or the first item.

    *filesystem_name* must be the mount's source. *relative_path*: begin at that directory of it.
    *btime_cutoff*: leave out what was born later, in seconds since the epoch; 0: nothing; never
    directories, nor anything on filesystems that tell no birth time. *file_open_flags*
    (``os.O_*``): how regular files are opened; None: nothing is opened, which is fastest.
    *include_symlinks*, *include_mountpoints*: hand these out as well, as ``O_PATH`` descriptors.

    *resume_token_name*, *resume_token_data* (16 bytes): a directory whose contents were all
    consumed without an error gets that extended attribute, and a directory that has it is left out:
    a later walk with the same goes on after it. Where it cannot be written, that is counted.
    *resume_from*: a :class:`ResumeToken` that ``resume_token()`` of an earlier walk of the same
    directory gave: go on with the item after it.

    *on_error*: ``"report"`` (hand out a file that cannot be opened, with its ``error`` and an
    ``O_PATH`` descriptor; raise for a directory that cannot be read, and go on after it if another
    item is asked for), ``"raise"`` (and end), ``"skip"``, or a function of the :exc:`OSError` that
    returns ``"raise"``, ``"skip"`` or ``"yield"``. *read_ahead*: how many entries are prepared
    beyond the last item; None: a number that keeps descriptors below a tenth of RLIMIT_NOFILE.

    *reporting_callback* (:class:`FilesystemIterState`, *reporting_private_data*) is called every
    *reporting_increment* items and at the end, *progress* (:class:`WalkProgress`) every
    *progress_interval* seconds and at the end. One that raises ends the walk. In the async face
    these, and *on_error*, may be coroutine functions.

    Raises :exc:`ValueError` for arguments that make no sense and, when it begins, for a token of
    something else; :exc:`FilesystemMismatchError` (ENODEV), :exc:`IteratorRestoreError` (ESTALE) if
    a directory on the way to where to go on is gone, and what :func:`openat2` raises. Linux 5.8;
    6.8 for *filesystem_name*.
    """
    return FilesystemIterator(
        checked_options(
            Root(mountpoint, checked_source(filesystem_name)),
            relative_path=relative_path,
            btime_cutoff=btime_cutoff,
            file_open_flags=file_open_flags,
            resume_token_name=resume_token_name,
            resume_token_data=resume_token_data,
            reporting_increment=reporting_increment,
            reporting_callback=reporting_callback,
            reporting_private_data=reporting_private_data,
            include_symlinks=include_symlinks,
            include_mountpoints=include_mountpoints,
            resume_from=resume_from,
            on_error=on_error,
            read_ahead=read_ahead,
            progress=progress,
            progress_interval=progress_interval,
        )
    )


def walk(
    path_or_fd: StrOrBytesPath | FileDescriptorLike, **keywords: Unpack[WalkKeywords]
) -> FilesystemIterator:
    """What is below a directory, given by path or descriptor, on whatever filesystem that is.

    As :func:`iter_filesystem_contents`, whose keywords it takes. The path must not have a symlink
    in any component.
    """
    return FilesystemIterator(checked_options(Root(checked_start(path_or_fd), None), **keywords))
