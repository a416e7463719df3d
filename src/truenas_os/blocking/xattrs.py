# SPDX-License-Identifier: LGPL-3.0-or-later
"""Extended attributes of a file by descriptor, by path, or by path below a directory."""

import errno
import os
from collections.abc import Callable
from typing import Any

from typing_extensions import Buffer

from .._native import ffi, lib
from .arguments import FileDescriptorLike, StrOrBytesPath, path_bytes
from .errors import is_open
from .targets import Target, link_of

# Most values and lists fit. For one that does not, its size is asked; it may grow meanwhile, but
# not so often without somebody meaning to keep us here.
_FIRST_SIZE = 256
_TRIES = 16
_NAME_MAX = 255


def getxattr(
    path_or_fd: StrOrBytesPath | FileDescriptorLike,
    name: str | bytes,
    *,
    dir_fd: FileDescriptorLike | None = None,
) -> bytes:
    """The value of the extended attribute *name* of a file.

    The file is given by a path, relative to *dir_fd*, whose last component is not followed if it is
    a symlink, or by a descriptor, which may be one of ``O_PATH``. The value may have any size that
    the filesystem has; Linux itself allows 64 KiB.

    Raises :exc:`OSError`: ENODATA (no such attribute), EOPNOTSUPP (the filesystem has none of that
    kind), EACCES, ENOENT, ERANGE (the value grew each time it was read). :manpage:`getxattr(2)`.
    Linux 5.6; from 6.13 on without /proc.
    """
    target, raw = Target(path_or_fd, dir_fd), _name(name)

    def get(buffer: Any, size: int) -> int:
        return _call(target, "getxattr", raw, buffer, size)

    return _read(target, get, "getxattrat")


def listxattr(
    path_or_fd: StrOrBytesPath | FileDescriptorLike, *, dir_fd: FileDescriptorLike | None = None
) -> list[str]:
    """The names of a file's extended attributes that the caller may see.

    The file is given as for :func:`getxattr`.

    Raises :exc:`OSError`: EOPNOTSUPP, EACCES, ENOENT, ERANGE (the list grew each time it was read).
    :manpage:`listxattr(2)`. Linux 5.6; from 6.13 on without /proc.
    """
    target = Target(path_or_fd, dir_fd)

    def get(buffer: Any, size: int) -> int:
        return _call(target, "listxattr", buffer, size)

    return [os.fsdecode(name) for name in _read(target, get, "listxattrat").split(b"\0")[:-1]]


def setxattr(
    path_or_fd: StrOrBytesPath | FileDescriptorLike,
    name: str | bytes,
    value: Buffer,
    flags: int = 0,
    *,
    dir_fd: FileDescriptorLike | None = None,
) -> None:
    """Set the extended attribute *name* of a file to *value*.

    The file is given as for :func:`getxattr`. *flags*: ``XATTR_CREATE`` (EEXIST if the attribute
    exists), ``XATTR_REPLACE`` (ENODATA if it does not).

    Raises :exc:`OSError`: E2BIG (more than 64 KiB), ENOSPC and EDQUOT (also where the value is more
    than the filesystem takes), EPERM (on a symlink, for example), EOPNOTSUPP, EEXIST, ENODATA.
    :manpage:`setxattr(2)`. Linux 5.6; from 6.13 on without /proc.
    """
    target, raw, data = Target(path_or_fd, dir_fd), _name(name), ffi.from_buffer(value)
    _done(target, "setxattr", raw, data, len(data), flags)


def removexattr(
    path_or_fd: StrOrBytesPath | FileDescriptorLike,
    name: str | bytes,
    *,
    dir_fd: FileDescriptorLike | None = None,
) -> None:
    """Remove the extended attribute *name* of a file, which is given as for :func:`getxattr`.

    Raises :exc:`OSError`: ENODATA (no such attribute), EPERM, EOPNOTSUPP, EACCES, ENOENT.
    :manpage:`removexattr(2)`. Linux 5.6; from 6.13 on without /proc.
    """
    _done(Target(path_or_fd, dir_fd), "removexattr", _name(name))


def has_xattr(fd: int, name: str) -> bool:
    """Whether an open file has the extended attribute *name*."""
    return _call(Target(fd, None), "getxattr", name.encode(), ffi.NULL, 0) >= 0


def _name(name: str | bytes) -> bytes:
    if not isinstance(name, (str, bytes)):
        raise TypeError(f"an attribute's name must be str or bytes, not {type(name).__name__}")
    raw = path_bytes(name)
    if not 0 < len(raw) <= _NAME_MAX:
        raise ValueError(f"an attribute's name has 1 to {_NAME_MAX} bytes, not {len(raw)}")
    return raw


def _read(target: Target, get: Callable[[Any, int], int], call: str) -> bytes:
    size = _FIRST_SIZE
    for left in reversed(range(_TRIES)):
        buffer = ffi.new("char[]", size)
        ret = get(buffer, size)
        if ret >= 0:
            return bytes(ffi.buffer(buffer, ret))
        if ret == -errno.ERANGE and left:
            ret = get(ffi.NULL, 0)
        if ret < 0:
            target.failed(ret, call)
        size = max(ret, 1)
    raise AssertionError


def _done(target: Target, call: str, *args: Any) -> None:
    ret = _call(target, call, *args)
    if ret < 0:
        target.failed(ret, f"{call}at")


def _call(target: Target, call: str, *args: Any) -> int:
    """The ``...at`` form of *call*, or the old one through /proc/self/fd where that fails."""
    ret = _uninterrupted(f"{call}at", *target.where, *args)
    # EBADF is also what those calls say to a descriptor of O_PATH.
    if ret == -errno.ENOSYS or (ret == -errno.EBADF and target.path is None):
        with target.pinned() as fd:
            there = _uninterrupted(call, link_of(fd), *args)
            if there != -errno.ENOENT:
                return there
            # Without such a link, there is no /proc, or no such descriptor.
            return ret if is_open(fd) else -errno.EBADF
    return ret


def _uninterrupted(call: str, *args: Any) -> int:
    ret: int = -errno.EINTR
    while ret == -errno.EINTR:
        ret = getattr(lib, f"tos_{call}")(*args)
    return ret
