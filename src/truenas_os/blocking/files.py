# SPDX-License-Identifier: LGPL-3.0-or-later
"""Files by path: openat2, statx, renameat2."""

import errno
import fcntl
import os
import struct
import time
from contextlib import AbstractContextManager, nullcontext

from .._native import ffi, lib
from .arguments import FileDescriptorLike, StrOrBytesPath, fileno, path_bytes
from .errors import check
from .fds import Fd
from .flags import (
    AT_FDCWD,
    RESOLVE_BENEATH,
    RESOLVE_CACHED,
    RESOLVE_IN_ROOT,
    STATX_BASIC_STATS,
    STATX_BTIME,
)
from .results import StatxResult

# A rename anywhere on the system makes a scoped lookup fail with EAGAIN if it happens at its "..".
# Beside a process that does nothing but rename, only stepping aside now and then gets through.
_SCOPED_TRIES = 128
_SCOPED = int(RESOLVE_BENEATH | RESOLVE_IN_ROOT)
_CACHED = int(RESOLVE_CACHED)

# No copy takes the place of a standard stream.
_FIRST_FD = 3

# What the kernel has defined of struct statx; 64 bytes more are reserved.
STATX_FORMAT = struct.Struct("=2IQ3IH2x4Q" + "qI4x" * 4 + "4IQ2IQ5I4x")
_STATX_SIZE = 256
_unpack, _new_tuple = STATX_FORMAT.unpack, tuple.__new__
# Buffers that no call is using: taking one and giving it back costs a third of making one.
_spare: "list[tuple[ffi.CData, ffi.buffer]]" = []


def openat2(
    dirfd: FileDescriptorLike,
    pathname: StrOrBytesPath,
    flags: int,
    mode: int = 0,
    resolve: int = 0,
) -> Fd:
    """Open *pathname*, relative to *dirfd*, with control over how the path is resolved.

    *flags* are ``os.O_*``, *mode* the permissions for ``O_CREAT`` and ``O_TMPFILE``, *resolve*
    ``RESOLVE_*``. The descriptor is close-on-exec whatever the flags. The EAGAIN with which
    ``RESOLVE_BENEATH`` and ``RESOLVE_IN_ROOT`` answer a concurrent rename is retried for about
    0.1 s, except with ``RESOLVE_CACHED``, where it means that the lookup would have to wait.

    Raises :exc:`OSError`: ELOOP (a symlink that *resolve* forbids), EXDEV (a mount point or an
    escape that it forbids), EAGAIN, EINVAL (unknown flags, or a mode without ``O_CREAT``), E2BIG,
    and all that :manpage:`open(2)` lists. :manpage:`openat2(2)`. Linux 5.6.
    """
    path = path_bytes(pathname)
    fd = fileno(dirfd)
    tries = 1
    with kept(fd, pathname) if resolve & _SCOPED else nullcontext(fd) as base:
        while (ret := lib.tos_openat2(base, path, flags, mode, resolve)) < 0:
            if not lost_to_a_rename(ret, resolve, tries):
                check(ret, "openat2", pathname, dirfds=(fd,))
            tries += 1
    return Fd(ret)


def kept(fd: int, path: StrOrBytesPath | None = None) -> AbstractContextManager[int]:
    """A copy of a directory's descriptor, for what makes more than one system call with it.

    A call that was cancelled may go on when the caller has closed his own and another file has its
    number. Not for files: to close a copy would release the process's locks. An error names *path*.
    """
    if fd == AT_FDCWD:
        return nullcontext(fd)
    try:
        return Fd(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST_FD))
    except OSError as error:
        if error.errno == errno.EBADF:
            return nullcontext(fd)  # an absolute path needs none; else the system call says so
        error.filename = fd if path is None else os.fspath(path)
        raise


def lost_to_a_rename(ret: int, resolve: int, tries: int) -> bool:
    """Whether a lookup that gave *ret* is to be made again, after a pause longer each time."""
    if ret != -errno.EAGAIN or not resolve & _SCOPED or resolve & _CACHED or tries == _SCOPED_TRIES:
        return False
    if tries > 4:
        time.sleep(min(1e-5 * 2 ** (tries - 5), 1e-3))
    return True


def statx(
    dirfd: FileDescriptorLike,
    pathname: StrOrBytesPath,
    flags: int = 0,
    mask: int = STATX_BASIC_STATS | STATX_BTIME,
) -> StatxResult:
    """The attributes of the file *pathname*, relative to *dirfd*.

    *flags* are ``AT_*`` (``AT_EMPTY_PATH`` with ``""`` asks about *dirfd* itself), *mask* the
    wanted fields (``STATX_*``).

    Raises :exc:`OSError`: EACCES, EBADF, EFAULT, EINVAL, ELOOP, ENAMETOOLONG, ENOENT, ENOMEM,
    ENOTDIR. :manpage:`statx(2)`. Linux 4.11.
    """
    path = path_bytes(pathname)
    fd = fileno(dirfd)
    try:
        spare = _spare.pop()
    except IndexError:
        out = ffi.new("char[]", _STATX_SIZE)
        spare = out, ffi.buffer(out, STATX_FORMAT.size)
    while (ret := lib.tos_statx(fd, path, flags, mask, spare[0])) < 0:
        check(ret, "statx", pathname, dirfds=(fd,))
    fields = _unpack(spare[1])
    _spare.append(spare)
    return _new_tuple(StatxResult, fields)


def renameat2(
    olddirfd: FileDescriptorLike,
    oldpath: StrOrBytesPath,
    newdirfd: FileDescriptorLike,
    newpath: StrOrBytesPath,
    flags: int = 0,
) -> None:
    """Rename *oldpath*, relative to *olddirfd*, to *newpath*, relative to *newdirfd*.

    *flags*: ``RENAME_NOREPLACE`` (EEXIST if *newpath* exists), ``RENAME_EXCHANGE`` (swap the two),
    ``RENAME_WHITEOUT``.

    Raises :exc:`OSError` with both names: EEXIST, EINVAL (a flag that the filesystem lacks),
    ENOENT, EXDEV, and all that :manpage:`rename(2)` lists. :manpage:`renameat2(2)`. Linux 3.15.
    """
    old, new = path_bytes(oldpath), path_bytes(newpath)
    old_fd, new_fd = fileno(olddirfd), fileno(newdirfd)
    while (ret := lib.tos_renameat2(old_fd, old, new_fd, new, flags)) < 0:
        check(ret, "renameat2", oldpath, filename2=newpath, dirfds=(old_fd, new_fd))
