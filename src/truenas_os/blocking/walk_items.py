# SPDX-License-Identifier: LGPL-3.0-or-later
"""What a walk hands out: entries, decoded as far as they are looked at, and its state."""

import struct
from itertools import repeat
from typing import Any, NamedTuple

from .._native import ffi, lib
from .arguments import ENCODING, ENCODING_ERRORS
from .files import STATX_FORMAT
from .results import StatxResult

_MOUNT: int = lib.TOS_WALK_MOUNT
_PLAIN: int = lib.TOS_WALK_ENTRY
# struct tos_walk_entry, and where some of it stands.
_ENTRY = struct.Struct("=QqQIii4B")
_FD, _KIND, _TYPE, _HANDLE_SIZE = 28 // 4, 36, 37, 38
_DIR, _REG, _LNK = 4, 8, 10
# What stands for more bytes in a batch than C can count.
_TOO_MANY_BYTES = (1 << 64) - 1
_STATX_SIZE = STATX_FORMAT.size
_INO = struct.Struct("=32xQ")
_BTIME = struct.Struct("=80xqI")
_unpack_statx, _new_tuple = STATX_FORMAT.unpack_from, tuple.__new__


class FilesystemIterState(NamedTuple):
    """How far a walk has come, in what was handed out."""

    cnt: int
    """Items."""
    cnt_bytes: int
    """Sizes of the regular files among them, in bytes."""
    current_directory: str
    """The path of the directory that holds the last item; at first, the walk's root."""
    cnt_skipped: int
    """Entries, and rests of directories, that *on_error* left out."""
    cnt_errors: int
    """Errors met: reported, raised or left out."""
    cnt_unmarked: int
    """Directories on which the mark could not be written."""


class WalkProgress(NamedTuple):
    """How far a walk has come, and how far it may have to go."""

    state: FilesystemIterState
    elapsed: float
    """Seconds since the walk began."""
    total: int | None
    """Inodes in use on the whole filesystem; None where it does not tell."""
    total_bytes: int
    """Bytes in use on the whole filesystem."""


class Entry(NamedTuple):
    """What the native layer says of an entry: ``struct tos_walk_entry``."""

    slot: int
    cookie: int
    bytes: int
    depth: int
    fd: int
    error: int
    kind: int
    type: int
    handle_size: int
    unused: int


class Directory:
    """A directory of a walk, as those in it know it. The walk's root has no parent."""

    __slots__ = ("_latest", "btime", "cookie", "handle", "ino", "name", "parent")

    def __init__(
        self,
        name: str,
        parent: "Directory | None",
        ino: int,
        btime: tuple[int, int],
        handle: bytes,
        cookie: int = 0,
    ) -> None:
        self.name: str = name
        self.parent: Directory | None = parent
        self.ino: int = ino
        self.btime: tuple[int, int] = btime
        """Seconds and nanoseconds; zeros where the filesystem tells none."""
        self.handle: bytes = handle
        """The kernel's ``struct file_handle``, or nothing."""
        self.cookie: int = cookie
        """Where its entry stands in the directory above."""
        # The path that was asked for last, shared by the directories of a walk: if each kept its
        # own, a deep tree's would be as large as its depth squared.
        self._latest: list[tuple[Directory, str] | None] = parent._latest if parent else [None]

    @property
    def path(self) -> str:
        latest = self._latest[0]
        names = []
        at: Directory | None = self
        while at is not None and (latest is None or at is not latest[0]):
            names.append(at.name)
            at = at.parent
        if at is not None and latest is not None:
            names.append(latest[1])
        names.reverse()
        path = joined(*names)
        self._latest[0] = self, path
        return path

    def line(self) -> list["Directory"]:
        """The directories from the walk's root to this one."""
        line = []
        at: Directory | None = self
        while at is not None:
            line.append(at)
            at = at.parent
        line.reverse()
        return line


def joined(first: str, *names: str) -> str:
    """*first* and what is below it, as a path."""
    return "/".join((first if first != "/" or not names else "", *names))


class IterInstance:
    """An entry of a directory.

    ``fd`` is a descriptor of it that belongs to the iterator and is valid until the next item is
    asked for; -1 where nothing is opened. Regular files are opened with the flags that were asked
    for, directories to be read, everything else with ``O_PATH``.
    """

    __slots__ = ("_batch", "_index", "directory", "fd", "name")

    def __init__(
        self, name: str, fd: int, directory: Directory, batch: "Batch", index: int
    ) -> None:
        self.name: str = name
        """Undecodable bytes are surrogates, as :func:`os.fsdecode` makes them."""
        self.fd: int = fd
        self.directory: Directory = directory
        self._batch = batch
        self._index = index

    def place(self) -> "tuple[Batch, int]":
        """Where it stands among what came with it; for the walk's own use."""
        return self._batch, self._index

    @property
    def parent(self) -> str:
        """The path of the directory that holds it."""
        return self.directory.path

    @property
    def path(self) -> str:
        """The path of the entry itself."""
        return joined(self.directory.path, self.name)

    @property
    def statxinfo(self) -> StatxResult:
        """Its attributes, as they were when it was opened; decoded anew each time."""
        return _new_tuple(StatxResult, _unpack_statx(self._batch.statx, self._index * _STATX_SIZE))

    @property
    def isdir(self) -> bool:
        """Whether it is a directory."""
        return self._batch.type(self._index) & ~_MOUNT == _DIR

    @property
    def isreg(self) -> bool:
        """Whether it is a regular file."""
        return self._batch.type(self._index) & ~_MOUNT == _REG

    @property
    def islnk(self) -> bool:
        """Whether it is a symlink."""
        return self._batch.type(self._index) & ~_MOUNT == _LNK

    @property
    def ismount(self) -> bool:
        """Whether something is mounted on it; what is mounted is what the item describes."""
        return self._batch.type(self._index) & _MOUNT != 0

    @property
    def depth(self) -> int:
        """1 for what is in the walk's root, and one more with each directory."""
        return self._batch.entry(self._index).depth

    @property
    def error(self) -> OSError | None:
        """Why it could not be opened, and ``fd`` only names it (``O_PATH``) or is -1."""
        return self._batch.failures.get(self._index)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.path!r}>"


class Batch:
    """Entries as they crossed from the native layer.

    Items refer to it, and it to none of them: a cycle would leave all of them to the collector.
    """

    __slots__ = ("_handles", "entries", "failures", "special", "statx")

    def __init__(self, taken: Any, count: int) -> None:
        self.special: bool = bool(taken.special)
        """Whether not everything is an entry without an error."""
        self.failures: dict[int, OSError] = {}
        """What is told of entries with an error, by index."""
        self.statx: bytes = ffi.buffer(taken.statx, count * _STATX_SIZE)[:]
        self.entries: bytes = ffi.buffer(taken.entries, count * _ENTRY.size)[:]
        self._handles: bytes = ffi.buffer(taken.handles, taken.handles_len)[:]

    def __len__(self) -> int:
        return len(self.entries) // _ENTRY.size

    def fds(self) -> list[int]:
        """The descriptors of all."""
        return memoryview(self.entries).cast("i")[_FD :: _ENTRY.size // 4].tolist()

    def entry(self, index: int) -> Entry:
        """What is said of one beside its name, its attributes and its handle."""
        return Entry._make(_ENTRY.unpack_from(self.entries, index * _ENTRY.size))

    def kind(self, index: int) -> int:
        """The kind of what stands there, ``TOS_WALK_*``."""
        return self.entries[index * _ENTRY.size + _KIND]

    def type(self, index: int) -> int:
        """``DT_*``, and whether it is a mount point."""
        return self.entries[index * _ENTRY.size + _TYPE]

    def is_special(self, index: int) -> bool:
        """Whether that is no entry, or one with an error."""
        if not self.special:
            return False
        entry = self.entry(index)
        return entry.kind != _PLAIN or entry.error != 0

    def next_special(self, start: int) -> int:
        """Where the plain entries that begin at *start* end."""
        if not self.special:
            return len(self)
        return next((i for i in range(start, len(self)) if self.is_special(i)), len(self))

    def directory(self, index: int, name: str, parent: Directory) -> Directory:
        """The directory whose entry stands at *index*."""
        sizes = self.entries[_HANDLE_SIZE : (index + 1) * _ENTRY.size : _ENTRY.size]
        end = sum(sizes)
        handle = self._handles[end - sizes[-1] : end]
        at = index * _STATX_SIZE
        (ino,) = _INO.unpack_from(self.statx, at)
        btime = _BTIME.unpack_from(self.statx, at)
        return Directory(name, parent, ino, btime, handle, self.entry(index).cookie)


class Decoder:
    """Makes batches of what the native layer hands out, following it through the directories."""

    def __init__(self, line: list[Directory]) -> None:
        self._line = line
        self._last: IterInstance | None = None

    def decode(self, taken: Any, count: int) -> tuple[Batch, list[IterInstance]]:
        batch = Batch(taken, count)
        text: str = ffi.buffer(taken.names, taken.names_len)[:].decode(ENCODING, ENCODING_ERRORS)
        names = text.split("\0")
        fds = batch.fds()
        items: list[IterInstance] = []
        line = self._line
        ends = [*ffi.unpack(taken.turns, taken.turn_count), count]
        start = 0
        for end in ends:
            # Entries between two turns are in one directory.
            items += map(
                IterInstance,
                names[start:end],
                fds[start:end],
                repeat(line[-1]),
                repeat(batch),
                range(start, end),
            )
            if items:
                self._last = items[-1]
            start = end
            if end < count:
                self._turn(batch.entry(end).depth)
        return batch, items

    def _turn(self, depth: int) -> None:
        if depth <= len(self._line):
            del self._line[max(depth, 1) :]
        else:
            self._line.append(entered(self._last))


def entered(item: IterInstance | None) -> Directory:
    """The directory that an item is."""
    assert item is not None, "the first entry of a walk is in its root"
    batch, index = item.place()
    return batch.directory(index, item.name, item.directory)


def bytes_in(items: list[IterInstance]) -> int:
    """The sizes of the regular files among *items*, which follow each other."""
    if not items:
        return 0
    (batch, first), (last_batch, last) = items[0].place(), items[-1].place()
    if batch is not last_batch or (total := batch.entry(last).bytes) == _TOO_MANY_BYTES:
        return sum(item.statxinfo.stx_size for item in items if item.isreg and not item.ismount)
    return total - (batch.entry(first - 1).bytes if first else 0)
