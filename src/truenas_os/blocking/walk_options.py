# SPDX-License-Identifier: LGPL-3.0-or-later
"""What a walk is asked for, checked, and where it begins."""

import errno
import operator
import os
import re
import resource
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, Literal, NamedTuple, Self, TypeAlias, TypedDict

from typing_extensions import Buffer

from .arguments import FileDescriptorLike, StrOrBytesPath, fileno, path_bytes, unfollowed
from .fds import Fd
from .files import openat2, statx
from .flags import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    RESOLVE_NO_SYMLINKS,
    RESOLVE_NO_XDEV,
    STATMOUNT_FS_TYPE,
    STATMOUNT_MNT_BASIC,
    STATMOUNT_MNT_POINT,
    STATMOUNT_SB_SOURCE,
    STATX_MNT_ID,
)
from .mounts import mount_of
from .results import StatmountResult
from .walk_items import FilesystemIterState, WalkProgress, joined
from .walk_tokens import ResumeToken

Verdict: TypeAlias = Literal["raise", "skip", "yield"]
OnError: TypeAlias = (
    Literal["report", "raise", "skip"] | Callable[[OSError], Verdict | Awaitable[Verdict]]
)
ReportingCallback: TypeAlias = Callable[[FilesystemIterState, Any], object]
ProgressCallback: TypeAlias = Callable[[WalkProgress], object]

_POLICIES: Final = ("report", "raise", "skip")
_MARK_SIZE = 16
_NOT_FOR_WALKING = (
    ("O_CREAT", os.O_CREAT),
    ("O_TRUNC", os.O_TRUNC),
    ("O_TMPFILE", os.O_TMPFILE & ~os.O_DIRECTORY),
    ("O_DIRECTORY", os.O_DIRECTORY),
)
# Descriptors of a walk are at most this share of the process's limit.
_SHARE = 10
_MOST_DIRS, _MOST_FDS, _MOST_ENTRIES = 64, 512, 1024
# One more than were asked for is what a number in C is to hold.
_TOO_MANY_ENTRIES = (1 << 32) - 1
# The walk's own: the eventfd, and a directory that is being opened.
_OWN_FDS = 4
_OPEN_DIR = os.O_RDONLY | os.O_DIRECTORY


class FilesystemMismatchError(OSError):
    """Something else is mounted: ``errno`` is ENODEV, ``filename`` the mount point."""

    def __init__(self, mountpoint: str, expected: str, found: str | None) -> None:
        super().__init__(errno.ENODEV, os.strerror(errno.ENODEV), mountpoint)
        self.expected: str = expected
        self.found: str | None = found
        self.add_note(f"expected the filesystem {expected!r}, found {found!r}")

    def __reduce__(self) -> tuple[type[Self], tuple[str, str, str | None]]:
        return type(self), (self.filename, self.expected, self.found)


class WalkKeywords(TypedDict, total=False):
    """The keywords of :func:`iter_filesystem_contents`, which :func:`walk` takes as well."""

    relative_path: StrOrBytesPath | None
    btime_cutoff: int
    file_open_flags: int | None
    resume_token_name: str | None
    resume_token_data: Buffer | None
    reporting_increment: int
    reporting_callback: ReportingCallback | None
    reporting_private_data: Any
    include_symlinks: bool
    include_mountpoints: bool
    resume_from: Buffer | None
    on_error: OnError
    read_ahead: int | None
    progress: ProgressCallback | None
    progress_interval: float


class Root(NamedTuple):
    """Where a walk begins: a path or a descriptor, and the source that its mount must have."""

    at: StrOrBytesPath | FileDescriptorLike
    source: str | None


class Budget(NamedTuple):
    """What a walk may use."""

    entries: int
    max_dirs: int


class WalkOptions(NamedTuple):
    """The arguments of a walk; see :func:`iter_filesystem_contents`."""

    root: Root
    relative: tuple[str, ...]
    btime_cutoff: int
    file_open_flags: int | None
    mark: tuple[bytes, bytes] | None
    reporting_increment: int
    reporting_callback: ReportingCallback | None
    reporting_private_data: Any
    include_symlinks: bool
    include_mountpoints: bool
    resume_from: ResumeToken | None
    on_error: OnError
    read_ahead: int | None
    progress: ProgressCallback | None
    progress_interval: float

    def budget(self) -> Budget:
        """How many entries may be prepared, and how many directories kept open."""
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if limit == resource.RLIM_INFINITY:
            limit = 1 << 20
        fds = limit // _SHARE - _OWN_FDS
        max_dirs = max(3, min(fds // 4, _MOST_DIRS))
        if self.read_ahead is not None:
            return Budget(self.read_ahead + 1, max_dirs)
        if self.file_open_flags is None and self.mark is None:
            return Budget(_MOST_ENTRIES, max_dirs)
        return Budget(max(2, min(fds - max_dirs, _MOST_FDS)), max_dirs)


def checked_options(
    root: Root,
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
) -> WalkOptions:
    """The options of a walk, or TypeError or ValueError for those that make no sense."""
    if file_open_flags is not None:
        file_open_flags = operator.index(file_open_flags)
        if not 0 <= file_open_flags < 1 << 31:
            raise ValueError(f"file_open_flags must be flags of open(2), not {file_open_flags}")
        for name, flag in _NOT_FOR_WALKING:
            if file_open_flags & flag:
                raise ValueError(
                    f"file_open_flags must not have {name}: a walk opens what is there"
                )
    if operator.index(reporting_increment) < 1:
        raise ValueError(f"reporting_increment must be at least 1, not {reporting_increment}")
    if read_ahead is not None and not 1 <= operator.index(read_ahead) < _TOO_MANY_ENTRIES:
        raise ValueError(f"read_ahead must be at least 1 and fit in 32 bits, not {read_ahead}")
    if not callable(on_error) and on_error not in _POLICIES:
        raise ValueError(f"on_error must be callable or one of {_POLICIES}, not {on_error!r}")
    if not progress_interval >= 0:
        raise ValueError(f"progress_interval must not be negative: {progress_interval}")
    for name, callback in (("reporting_callback", reporting_callback), ("progress", progress)):
        if callback is not None and not callable(callback):
            raise TypeError(f"{name} must be callable, not {type(callback).__name__}")
    if not 0 <= operator.index(btime_cutoff) < 1 << 63:
        raise ValueError(f"btime_cutoff must be seconds since the epoch, not {btime_cutoff}")
    return WalkOptions(
        root,
        _relative(relative_path),
        btime_cutoff,
        file_open_flags,
        _mark(resume_token_name, resume_token_data),
        reporting_increment,
        reporting_callback,
        reporting_private_data,
        include_symlinks,
        include_mountpoints,
        None if resume_from is None else ResumeToken(resume_from),
        on_error,
        read_ahead,
        progress,
        progress_interval,
    )


def checked_source(filesystem_name: str) -> str:
    """What a mount's source must be; TypeError for what cannot be one."""
    if not isinstance(filesystem_name, str):
        raise TypeError(f"filesystem_name must be str, not {type(filesystem_name).__name__}")
    return filesystem_name


def checked_start(
    path_or_fd: StrOrBytesPath | FileDescriptorLike,
) -> StrOrBytesPath | FileDescriptorLike:
    """Where a walk begins; TypeError or ValueError for what is neither a path nor a descriptor."""
    if isinstance(path_or_fd, (str, bytes, os.PathLike)):
        path_bytes(path_or_fd)
    else:
        fileno(path_or_fd)
    return path_or_fd


def _relative(path: StrOrBytesPath | None) -> tuple[str, ...]:
    if path is None:
        return ()
    text = os.fsdecode(path_bytes(path))
    if text.startswith("/"):
        raise ValueError(f"relative_path must not be absolute: {text!r}")
    names = tuple(name for name in text.split("/") if name not in ("", "."))
    if ".." in names:
        raise ValueError(f"relative_path must not leave the mount point: {text!r}")
    return names


def _mark(name: str | None, data: Buffer | None) -> tuple[bytes, bytes] | None:
    if (name is None) != (data is None):
        raise ValueError("resume_token_name and resume_token_data belong together")
    if name is None or data is None:
        return None
    value = bytes(memoryview(data))
    if len(value) != _MARK_SIZE:
        raise ValueError(f"resume_token_data must be {_MARK_SIZE} bytes, got {len(value)}")
    return path_bytes(name), value


class Beginning(NamedTuple):
    """The opened root of a walk."""

    fd: Fd
    path: str
    mount: StatmountResult | None


def open_root(root: Root, relative: tuple[str, ...]) -> Beginning:
    """Open where a walk begins, without following a symlink, and look what is mounted there.

    Raises :exc:`FilesystemMismatchError`, and what :func:`openat2` and :func:`mount_of` raise;
    EXDEV if *relative* leads into another mount.
    """
    if isinstance(root.at, (str, bytes, os.PathLike)):
        path = os.fsdecode(unfollowed(root.at))
        fd = openat2(AT_FDCWD, path, _OPEN_DIR, resolve=RESOLVE_NO_SYMLINKS)
    else:
        fd = openat2(fileno(root.at), ".", _OPEN_DIR)
        path = f"/proc/self/fd/{fileno(root.at)}"
        with suppress(OSError):  # or it stays that: the kernel tells no path beyond 4095 bytes
            path = os.readlink(f"/proc/self/fd/{fd}")
    try:
        with naming(path):
            mount = _mount(fd, root.source is not None)
        found = mount.sb_source if mount else None
        if root.source is not None and found != root.source:
            raise FilesystemMismatchError(path, root.source, found)
        for name in relative:
            path = joined(path, name)
            with fd:
                fd = _descend(fd, name, path)
        return Beginning(fd, path, mount)
    except BaseException:
        fd.close()
        raise


@contextmanager
def naming(path: str) -> Iterator[None]:
    """Have errors of calls that take a descriptor name the path that it is for."""
    try:
        yield
    except OSError as error:
        if not isinstance(error.filename, (str, bytes)):
            error.filename = path
        raise


def _descend(fd: Fd, name: str, path: str) -> Fd:
    try:
        return openat2(fd, name, _OPEN_DIR, resolve=RESOLVE_NO_XDEV | RESOLVE_NO_SYMLINKS)
    except OSError as error:
        error.filename = path
        raise


def _mount(fd: Fd, needed: bool) -> StatmountResult | None:
    """The mount that holds *fd*; None if this mount namespace does not have it.

    If it is not *needed*, None before Linux 6.8 as well.
    """
    mask = STATMOUNT_MNT_BASIC | STATMOUNT_MNT_POINT | STATMOUNT_FS_TYPE | STATMOUNT_SB_SOURCE
    try:
        mount = mount_of(fd, mask=mask)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno != errno.ENOSYS or needed:
            raise
        return None
    if mount.sb_source is None:  # before Linux 6.13, statmount(2) does not tell it
        mount = mount._replace(sb_source=_source_in_mountinfo(fd))
    return mount


def _source_in_mountinfo(fd: Fd) -> str | None:
    wanted = str(statx(fd, "", AT_EMPTY_PATH, STATX_MNT_ID).stx_mnt_id)
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            left, _, right = os.fsdecode(line).partition(" - ")
            if left.split(" ", 1)[0] == wanted:
                source = right.split(" ")[1]
                return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), source)
    return None
