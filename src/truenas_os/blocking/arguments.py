# SPDX-License-Identifier: LGPL-3.0-or-later
"""What callers may pass for a path or a descriptor, and how it reaches the kernel."""

import operator
import os
import sys
from typing import Protocol, TypeAlias

from .flags import AT_FDCWD


class HasFileno(Protocol):
    """Anything with a ``fileno()`` method: a file object, a socket, an :class:`Fd`."""

    def fileno(self) -> int: ...


FileDescriptorLike: TypeAlias = int | HasFileno
StrOrBytesPath: TypeAlias = str | bytes | os.PathLike[str] | os.PathLike[bytes]

ENCODING = sys.getfilesystemencoding()
ENCODING_ERRORS = sys.getfilesystemencodeerrors()
_UTF8 = ENCODING == "utf-8"


def path_bytes(path: StrOrBytesPath) -> bytes:
    """The bytes of *path* as the kernel gets them.

    Raises :exc:`TypeError` for what is no path, :exc:`ValueError` for an embedded NUL.
    """
    if _UTF8 and type(path) is str and "\0" not in path:
        try:
            return path.encode()  # three times as fast as with an error handler
        except UnicodeEncodeError:
            pass
    raw = os.fsencode(path)
    if b"\0" in raw:
        raise ValueError(f"embedded null byte in path {path!r}")
    return raw


def unfollowed(path: StrOrBytesPath) -> str | bytes:
    """*path* without the slashes at its end, for which the kernel would follow a symlink."""
    given = os.fspath(path)
    if isinstance(given, bytes):
        return given.rstrip(b"/") or given[:1]
    return given.rstrip("/") or given[:1]


def fileno(fd: FileDescriptorLike) -> int:
    """The number of a descriptor given as an int or as anything with ``fileno()``."""
    if type(fd) is int:
        return fd
    try:
        return fd.fileno()  # type: ignore[union-attr]
    except AttributeError:
        return operator.index(fd)  # type: ignore[arg-type]


def dir_fileno(dir_fd: FileDescriptorLike | None) -> int:
    """The number of a directory's descriptor, that of the working directory for None."""
    return AT_FDCWD if dir_fd is None else fileno(dir_fd)
