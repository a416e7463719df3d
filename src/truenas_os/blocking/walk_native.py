# SPDX-License-Identifier: LGPL-3.0-or-later
"""The native side of a walk: its producer, and how it begins."""

import contextlib
import os
import threading
from typing import Any, Final, NamedTuple

from .._native import ffi, lib
from .arguments import path_bytes
from .errors import check
from .fds import Fd
from .walk_items import Directory
from .walk_options import WalkOptions, naming, open_root
from .walk_tokens import Identity, Level, Position, identity_of, trusts_cookies

_MOST_AT_ONCE: Final = 512
_NAMES_SIZE, _HANDLES_SIZE = 1 << 16, 1 << 14
_MOST_HELPERS: Final = 3
# Filesystems of this machine, where no description of a file waits for another one.
_LOCAL: Final = frozenset(
    ("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "bcachefs", "tmpfs", "ramfs")
    + ("squashfs", "erofs", "vfat", "exfat", "ntfs3", "iso9660", "udf")
)


class NativeWalk:
    """The native side of a walk, and the buffers that entries cross in."""

    def __init__(self, pointer: Any, capacity: int) -> None:
        self._pointer: Any = pointer
        # Reentrant: a signal handler may close the walk that it interrupts.
        self._lock = threading.RLock()
        self.fd: int = lib.tos_walk_fd(pointer)
        self.released: int = 0
        # The consumer has at most half of what the ring holds, and is woken before the other half
        # is full: until it has come, the producer is not to stand still.
        count = max(1, min(capacity // 2, _MOST_AT_ONCE))
        self.enough: int = max(1, count // 2)
        self._buffers = {
            "entries": ffi.new("struct tos_walk_entry[]", count),
            "statx": ffi.new("unsigned char[]", lib.TOS_WALK_STATX_SIZE * count),
            "names": ffi.new("char[]", _NAMES_SIZE),
            "handles": ffi.new("unsigned char[]", _HANDLES_SIZE),
            "turns": ffi.new("uint32_t[]", count),
        }
        self.batch: Any = ffi.new("struct tos_walk_batch *", self._buffers)
        self.batch.capacity = count
        self.batch.names_size, self.batch.handles_size = _NAMES_SIZE, _HANDLES_SIZE
        self.batch.depth = 1

    @property
    def taken(self) -> int:
        """The first slot that was not handed out."""
        return int(self.batch.taken)

    def start(self) -> None:
        _checked(lib.tos_walk_start(self._pointer), "pthread_create")

    def take(self, want: int) -> int:
        """Put what is ready into ``batch``, if there are so many: how many there are now."""
        return int(lib.tos_walk_take(self._pointer, want, self.batch))

    def release(self, slot: int) -> None:
        self.released = slot
        lib.tos_walk_release(self._pointer, slot)

    def add_level(self, level: Level, number: int, trusted: bool, unmarkable: bool) -> None:
        """Add a directory on the path to where the walk goes on; number 0 is the root."""
        kept = [
            ffi.new("char[]", path_bytes(level.name if number else "")),
            ffi.from_buffer(level.handle),
            ffi.new("char[]", path_bytes(level.after)),
        ]
        given = ffi.new("struct tos_walk_level *")
        given.name, given.handle, given.after = kept
        given.handle_size = len(level.handle)
        given.ino = level.ino
        given.btime_sec, given.btime_nsec = level.btime
        given.cookie = level.cookie if trusted else 0
        if trusted or not level.after:
            given.after = ffi.NULL
        given.unmarkable = unmarkable
        _checked(lib.tos_walk_level(self._pointer, given), "tos_walk_level")

    # What may be called while another thread, or a signal handler, frees it.

    def skip(self, slot: int, depth: int) -> None:
        with self._lock:
            if self._pointer is not None:
                lib.tos_walk_skip(self._pointer, slot, depth)

    def unmarked(self) -> int:
        with self._lock:
            return 0 if self._pointer is None else int(lib.tos_walk_unmarked(self._pointer))

    def close(self, slot: int) -> None:
        with self._lock:
            if self._pointer is not None:
                lib.tos_walk_close(self._pointer, slot)

    def free(self) -> None:
        with self._lock:
            pointer, self._pointer = self._pointer, None
            if pointer is not None:
                lib.tos_walk_free(pointer)

    def ended(self) -> bool:
        with self._lock:
            return self._pointer is None or bool(lib.tos_walk_ended(self._pointer))

    # What only the one thread calls that asks for items.

    def drain(self) -> None:
        """Make the descriptor wait for what comes next."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.fd)


class Begun(NamedTuple):
    """A walk whose root is open."""

    native: NativeWalk
    identity: Identity
    exact: bool
    line: list[Directory]
    total: int | None
    total_bytes: int

    @property
    def root(self) -> Directory:
        """The directory that the walk is about."""
        return self.line[0]

    def discard(self) -> None:
        """End it; nobody wanted it any more."""
        self.native.free()


def begin(options: WalkOptions) -> Begun:
    """Open the root of a walk, find out where to go on, and start the producer."""
    fd, path, mount = open_root(options.root, options.relative)
    with fd, naming(path):
        identity = identity_of(fd, mount)
        position = None if options.resume_from is None else options.resume_from.position
        if position and not position.identity.matches(identity):
            raise ValueError("this resume token is of another filesystem or another directory")
        exact = trusts_cookies(identity.fs_type)
        filesystem = os.statvfs(fd)
        native = _new_native(options, fd, identity.fs_type)
    try:
        root = Directory(path, None, identity.ino, identity.btime, identity.handle)
        line = [root] if position is None else _restore(native, root, position, exact)
        native.start()
    except BaseException:
        native.free()
        raise
    return Begun(
        native,
        identity,
        exact,
        line,
        filesystem.f_files - filesystem.f_ffree if filesystem.f_files else None,
        (filesystem.f_blocks - filesystem.f_bfree) * filesystem.f_frsize,
    )


def _checked(ret: int, call: str) -> None:
    if ret < 0:
        check(ret, call)


def _new_native(options: WalkOptions, root: Fd, fs_type: str) -> NativeWalk:
    budget = options.budget()
    config = ffi.new("struct tos_walk_config *")
    config.open_flags = -1 if options.file_open_flags is None else options.file_open_flags
    config.include_symlinks = options.include_symlinks
    config.include_mountpoints = options.include_mountpoints
    config.trusts_cookies = trusts_cookies(fs_type)
    config.is_local = fs_type in _LOCAL
    config.btime_cutoff = options.btime_cutoff
    config.capacity = budget.entries
    config.max_dirs = budget.max_dirs
    config.helpers = min(_MOST_HELPERS, len(os.sched_getaffinity(0)) - 1)
    if options.mark is not None:
        kept = [ffi.new("char[]", options.mark[0]), ffi.from_buffer(options.mark[1])]
        config.mark_name, config.mark_data = kept
        config.mark_size = len(options.mark[1])
    pointer = ffi.new("struct tos_walker **")
    config.root_fd = root.detach()  # the native side's, whatever comes of it
    _checked(lib.tos_walk_new(config, pointer), "tos_walk_new")
    return NativeWalk(pointer[0], budget.entries)


def _restore(
    native: NativeWalk, root: Directory, position: Position, exact: bool
) -> list[Directory]:
    line: list[Directory] = []
    trusted = exact and position.exact
    for number, level in enumerate(position.levels):
        native.add_level(level, number, trusted, position.failed)
        if number:
            # What was consumed of the directory above ends with the entry of this one.
            cookie = position.levels[number - 1].cookie
            line.append(
                Directory(level.name, line[-1], level.ino, level.btime, level.handle, cookie)
            )
        else:
            line.append(root)
    native.batch.depth = len(line)
    return line
