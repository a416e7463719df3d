# SPDX-License-Identifier: LGPL-3.0-or-later
"""File attributes beyond permissions: immutable and other flags, project id, extent sizes."""

import errno
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from .._native import ffi, lib
from .arguments import FileDescriptorLike, StrOrBytesPath
from .fds import Fd
from .flags import AT_FDCWD
from .results import FileAttr
from .targets import Target, link_of

_ATTR = struct.Struct("=Q4I")


def file_getattr(
    path_or_fd: StrOrBytesPath | FileDescriptorLike, *, dir_fd: FileDescriptorLike | None = None
) -> FileAttr:
    """The flags (``FS_XFLAG_*``), the project id and the extent size hints of a file.

    The file is given by a path, relative to *dir_fd*, whose last component is not followed if it is
    a symlink, or by a descriptor.

    Raises :exc:`OSError`: EOPNOTSUPP (the filesystem has none, or not of that file), EACCES,
    ENOENT. :manpage:`file_getattr(2)`. Linux 6.17; before that by ioctl, for which a regular file
    or directory is opened for reading.
    """
    return FileAttr._make(_ATTR.unpack(_read(Target(path_or_fd, dir_fd), None)))


def file_setattr(
    path_or_fd: StrOrBytesPath | FileDescriptorLike,
    *,
    xflags_set: int = 0,
    xflags_clr: int = 0,
    projid: int | None = None,
    extsize: int | None = None,
    cowextsize: int | None = None,
    dir_fd: FileDescriptorLike | None = None,
) -> None:
    """Change the attributes that are given, and no others; the file is given as for file_getattr.

    *xflags_set* and *xflags_clr* are flags to set and to clear (``FS_XFLAG_*``), *projid* the
    project id, *extsize* and *cowextsize* extent size hints in bytes. What is not given is read
    first and written back as it was, so of two changes made at once one can be lost.

    Raises :exc:`OSError`: EPERM (immutable and append-only need CAP_LINUX_IMMUTABLE), EOPNOTSUPP (a
    flag or a file that the filesystem cannot do it with), EINVAL, EROFS, and what
    :func:`file_getattr` raises. :manpage:`file_setattr(2)`. Linux 6.17; before that by ioctl.
    """
    target = Target(path_or_fd, dir_fd)
    _check(xflags_set, xflags_clr, projid=projid, extsize=extsize, cowextsize=cowextsize)
    with _held(target) as pin:
        buffer = _read(target, pin)
        old = FileAttr._make(_ATTR.unpack(buffer))
        new = FileAttr(
            old.fa_xflags & ~xflags_clr | xflags_set,
            old.fa_extsize if extsize is None else extsize,
            old.fa_nextents,
            old.fa_projid if projid is None else projid,
            old.fa_cowextsize if cowextsize is None else cowextsize,
        )
        _ATTR.pack_into(buffer, 0, *new)
        _call("file_setattr", target, pin, buffer)


@contextmanager
def _held(target: Target) -> Iterator[int | None]:
    """A descriptor of our own, of ``O_PATH``: what is read and what is written is one file.

    Its path may come to stand for another file, and so may the descriptor of a caller who waits for
    us no longer. None where there is no /proc.
    """
    fd, path, _ = target.where
    if target.path is None:
        where = AT_FDCWD, link_of(fd), os.O_PATH
    else:
        where = fd, path, os.O_PATH | os.O_NOFOLLOW
    while (ret := lib.tos_openat2(*where, 0, 0)) < 0:
        if ret == -errno.ENOENT and target.path is None:
            yield None
            return
        target.failed(ret, "openat2")
    with Fd(ret) as pin:
        yield pin if os.path.lexists(link_of(pin)) else None


def _check(xflags_set: int, xflags_clr: int, **numbers: int | None) -> None:
    if xflags_set & xflags_clr:
        raise ValueError(f"flags {xflags_set & xflags_clr:#x} are to be set and to be cleared")
    for bits, given in (
        (64, {"xflags_set": xflags_set, "xflags_clr": xflags_clr}),
        (32, numbers),
    ):
        for name, value in given.items():
            if value is not None and not 0 <= value < 1 << bits:
                raise OverflowError(f"{name} must fit {bits} bits without a sign, not {value}")


def _read(target: Target, pin: int | None) -> bytearray:
    buffer = bytearray(_ATTR.size)
    _call("file_getattr", target, pin, buffer)
    return buffer


_IOCTLS = {"file_getattr": "tos_fsgetxattr", "file_setattr": "tos_fssetxattr"}


def _call(call: str, target: Target, pin: int | None, buffer: bytearray) -> None:
    data, function = ffi.from_buffer(buffer), getattr(lib, f"tos_{call}")
    fd, path, at_flags = target.where if pin is None else (AT_FDCWD, link_of(pin), 0)
    while (ret := function(fd, path, data, at_flags)) < 0:
        if ret == -errno.ENOSYS:
            return _by_ioctl(_IOCTLS[call], target, pin, data)
        if ret == -errno.EBADF and not path:
            # It may be a descriptor of O_PATH: that works by its link, if it is open at all.
            fd, path, at_flags = AT_FDCWD, link_of(fd), 0
        else:
            lost = ret == -errno.ENOENT and not target.where[1]
            target.failed(-errno.EBADF if lost else ret, call)
    return None


def _by_ioctl(ioctl: str, target: Target, held: int | None, data: Any) -> None:
    function = getattr(lib, ioctl)
    with target.pinned() if held is None else nullcontext(held) as pin:
        # A device's ioctl would be answered by its driver, and opening it may do something.
        if stat.S_IFMT(os.fstat(pin).st_mode) not in (stat.S_IFREG, stat.S_IFDIR):
            target.failed(-errno.EOPNOTSUPP, "ioctl")
        if target.path is None:
            ret = _uninterrupted(function, target.where[0], data)
        if target.path is not None or ret == -errno.EBADF:  # one of O_PATH
            flags = os.O_RDONLY | os.O_NONBLOCK
            while (opened := lib.tos_openat2(AT_FDCWD, link_of(pin), flags, 0, 0)) < 0:
                target.failed(opened, "openat2")
            with Fd(opened) as fd:
                ret = _uninterrupted(function, fd, data)
        if ret < 0:
            # What has no such ioctl says ENOTTY, which file_getattr(2) translates too.
            target.failed(-errno.EOPNOTSUPP if ret == -errno.ENOTTY else ret, "ioctl")


def _uninterrupted(function: Any, fd: int, data: Any) -> int:
    while (ret := function(fd, data)) == -errno.EINTR:
        pass
    return int(ret)
