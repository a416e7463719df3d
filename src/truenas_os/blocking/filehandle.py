# SPDX-License-Identifier: LGPL-3.0-or-later
"""File handles: names of files that outlive renames and reboots."""

import errno
import os
import struct
from contextlib import AbstractContextManager, nullcontext

from typing_extensions import Buffer

from .._native import ffi, lib
from .arguments import FileDescriptorLike, StrOrBytesPath, fileno, path_bytes
from .errors import check
from .fds import Fd
from .files import openat2, statx
from .flags import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_HANDLE_MNT_ID_UNIQUE,
    FH_AT_EMPTY_PATH,
    FH_AT_HANDLE_CONNECTABLE,
    FH_AT_SYMLINK_FOLLOW,
    STATX_MNT_ID_UNIQUE,
)
from .mount_records import check_ids

_HEADER = struct.Struct("=Ii")
_MAX_HANDLE_SZ = 128
_UNIQUE = int(AT_HANDLE_MNT_ID_UNIQUE)
# What a handle is asked for without, once its file is open.
_BY_PATH = _UNIQUE | int(FH_AT_SYMLINK_FOLLOW)


class HandleContent:
    """What the file handles of both faces have in common: the content, and what it compares by."""

    __slots__ = ("_handle", "_mount_id")

    _handle: bytes
    _mount_id: int | None

    @property
    def mount_id(self) -> int | None:
        """The unique id of the mount where the handle was made, as :func:`statmount` takes it."""
        bytes(self)
        return self._mount_id

    def __bytes__(self) -> bytes:
        """The kernel's ``struct file_handle``: size, type (native byte order) and the handle."""
        try:
            return self._handle
        except AttributeError:
            raise RuntimeError("a file handle made from a path must be awaited first") from None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, HandleContent):
            return NotImplemented
        return (bytes(self), self._mount_id) == (bytes(other), other._mount_id)

    def __hash__(self) -> int:
        return hash((bytes(self), self._mount_id))

    def __repr__(self) -> str:
        name = type(self).__name__
        if not hasattr(self, "_handle"):
            return f"<{name} not awaited>"
        size, kind = _HEADER.unpack_from(self._handle)
        content = self._handle[_HEADER.size :].hex()
        return f"<{name} type={kind:#x} bytes={size} {content} mount_id={self._mount_id}>"


class fhandle(HandleContent):
    """A file handle, made from a path or restored from bytes; see :manpage:`name_to_handle_at(2)`.

    Give either *path*, relative to *dir_fd*, with *flags* ``FH_AT_*``; or *handle_bytes*, which
    ``bytes(handle)`` returned, with the *mount_id* that belongs to it, if it is known. Handles are
    equal, and hash alike, by content and mount.

    Raises :exc:`ValueError` for malformed *handle_bytes* and a *mount_id* that can be none;
    :exc:`OSError` with EOPNOTSUPP where the filesystem has no handles (some have them with
    ``FH_AT_HANDLE_FID``, for comparing only), EINVAL for flags that exclude each other, ENOENT, and
    so on. Linux 5.6; before 6.8 without a mount id.
    """

    __slots__ = ()

    def __init__(
        self,
        path: StrOrBytesPath | None = None,
        dir_fd: FileDescriptorLike = AT_FDCWD,
        flags: int = 0,
        handle_bytes: Buffer | None = None,
        mount_id: int | None = None,
    ) -> None:
        check_source(path, handle_bytes, mount_id)
        if path is not None:
            self._handle, self._mount_id = handle_of(path, dir_fd, flags)
        elif handle_bytes is not None:
            self._handle, self._mount_id = checked_handle(handle_bytes), mount_id

    def open(self, mount_fd: FileDescriptorLike, flags: int = 0) -> Fd:
        """Open the file, on the filesystem that *mount_fd* is on, with *flags* (``os.O_*``).

        Needs CAP_DAC_READ_SEARCH. The descriptor is close-on-exec.

        Raises :exc:`OSError`: ESTALE (the file is gone), EPERM, EINVAL (not a handle of this
        filesystem), ELOOP (a symlink, without ``O_PATH``). :manpage:`open_by_handle_at(2)`.
        Linux 2.6.39.
        """
        return open_handle(bytes(self), mount_fd, flags)


def check_source(path: object, handle_bytes: object, mount_id: object) -> None:
    """Raise TypeError unless the arguments of a file handle are one of its two forms."""
    if (path is None) == (handle_bytes is None):
        raise TypeError("fhandle() takes either path or handle_bytes")
    if path is not None and mount_id is not None:
        raise TypeError(
            "fhandle() takes mount_id with handle_bytes only; of a path it is found out"
        )
    if not isinstance(mount_id, int | None):
        raise TypeError(f"mount_id must be an int, not {type(mount_id).__name__}")
    if mount_id is not None:
        check_ids(mount_id)


def checked_handle(handle_bytes: Buffer) -> bytes:
    """*handle_bytes* as bytes, or ValueError with what is wrong with them."""
    handle = bytes(memoryview(handle_bytes))
    if len(handle) < _HEADER.size:
        raise ValueError(
            f"a file handle begins with {_HEADER.size} bytes of header, got {len(handle)} bytes"
        )
    size, _ = _HEADER.unpack_from(handle)
    if not 0 < size <= _MAX_HANDLE_SZ:
        raise ValueError(f"a file handle holds 1 to {_MAX_HANDLE_SZ} bytes, its header says {size}")
    if len(handle) != _HEADER.size + size:
        raise ValueError(
            f"the file handle's header announces {size} bytes, {len(handle) - _HEADER.size} follow"
        )
    return handle


def handle_of(
    path: StrOrBytesPath, dir_fd: FileDescriptorLike, flags: int
) -> tuple[bytes, int | None]:
    """The handle of the file at *path* and the unique id of the mount it is on."""
    raw, fd = path_bytes(path), fileno(dir_fd)
    handle = ffi.new("char[]", _HEADER.size + _MAX_HANDLE_SZ)
    mount_id = ffi.new("uint64_t *")

    def encode(dirfd: int, name: bytes, at_flags: int) -> int:
        size = -errno.EINTR
        while size == -errno.EINTR:
            size = lib.tos_name_to_handle_at(dirfd, name, handle, mount_id, at_flags)
        return size

    size = encode(fd, raw, flags | _UNIQUE)
    if size >= 0:
        return ffi.buffer(handle)[:size], mount_id[0]
    if flags & FH_AT_HANDLE_CONNECTABLE or size not in (-errno.EINVAL, -errno.EOPNOTSUPP):
        check(size, "name_to_handle_at", path, dirfds=(fd,))
    # This kernel or this filesystem may not give the unique id. statx gives it too, and one
    # descriptor makes sure that both speak of the same file.
    with _pinned(fd, path, flags) as pin:
        size = encode(pin, b"", flags & ~_BY_PATH | AT_EMPTY_PATH)
        if size < 0:
            check(size, "name_to_handle_at", path, dirfds=(fd,))
        found = statx(pin, "", AT_EMPTY_PATH, STATX_MNT_ID_UNIQUE)
    known = found.stx_mask & STATX_MNT_ID_UNIQUE
    return ffi.buffer(handle)[:size], found.stx_mnt_id if known else None


def _pinned(fd: int, path: StrOrBytesPath, flags: int) -> AbstractContextManager[int]:
    if flags & FH_AT_EMPTY_PATH and not path_bytes(path):
        return nullcontext(fd)
    return openat2(fd, path, os.O_PATH | (0 if flags & FH_AT_SYMLINK_FOLLOW else os.O_NOFOLLOW))


def open_handle(handle: bytes, mount_fd: FileDescriptorLike, flags: int) -> Fd:
    """open_by_handle_at(2) of a checked *handle*."""
    fd = fileno(mount_fd)
    while (ret := lib.tos_open_by_handle_at(fd, handle, flags)) < 0:
        check(ret, "open_by_handle_at", dirfds=(fd,), notes=(f"file handle {handle.hex()}",))
    return Fd(ret)
