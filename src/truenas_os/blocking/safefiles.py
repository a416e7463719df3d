# SPDX-License-Identifier: LGPL-3.0-or-later
"""Files opened without following a symlink, and names that change in one step."""

import codecs
import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

from .._native import lib
from .arguments import FileDescriptorLike, StrOrBytesPath, dir_fileno, fileno, path_bytes
from .errors import SymlinkInPathError, check
from .fds import Fd
from .files import kept, lost_to_a_rename, renameat2
from .flags import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_SYMLINK_FOLLOW,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    RESOLVE_BENEATH,
    RESOLVE_NO_SYMLINKS,
)

_NO_SYMLINKS = int(RESOLVE_NO_SYMLINKS)
_BENEATH = int(RESOLVE_BENEATH)
# How often a path may be seen missing to be created, then existing to be opened.
_CREATE_TRIES = 16


def safe_open(
    path: StrOrBytesPath,
    mode: str = "r",
    buffering: int = -1,
    *,
    dir_fd: FileDescriptorLike | None = None,
    beneath: StrOrBytesPath | FileDescriptorLike | None = None,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    special: bool = False,
) -> IO[Any]:
    """Open a regular file as the built-in :func:`open` does, but follow no symlink on the way.

    *mode*, *buffering*, *encoding*, *errors* and *newline* are those of :func:`open`, and so is the
    result. A symlink in any component of *path* is refused, a magic link too. *path* is relative to
    *dir_fd*. With *beneath*, a directory (by path, relative to *dir_fd*, or by descriptor), *path*
    is relative to that directory and cannot leave it.

    A FIFO, socket or device is opened only if *special* is true, and then as :func:`open` does: a
    FIFO waits for its other end. Otherwise it is found out without opening it, so nothing hangs
    and no device does anything; one that takes the file's place at that very moment is opened
    without waiting, and closed again. The descriptor is close-on-exec.

    Raises :exc:`SymlinkInPathError` (ELOOP); :exc:`OSError`: EXDEV (*path* leaves *beneath*),
    EISDIR, EOPNOTSUPP (a special file), and all that :manpage:`open(2)` lists. Linux 5.6.
    """
    name, base = os.fspath(path), dir_fileno(dir_fd)
    if buffering == 0 and "b" not in mode:
        raise ValueError("text cannot be unbuffered")
    if not encoding is errors is newline is None:
        check_text(mode, encoding, errors, newline)

    resolve = _NO_SYMLINKS if beneath is None else _NO_SYMLINKS | _BENEATH

    def opener(_: object, flags: int) -> int:
        with _directory(base, beneath, path) as (directory, number):
            ret = _open(directory, path_bytes(path), flags, resolve, special)
            return _opened(ret, path, number)

    # Python closes the descriptor with the file, also where it cannot make one of it.
    return open(name, mode, buffering, encoding, errors, newline, opener=opener)


def check_text(mode: str, encoding: str | None, errors: str | None, newline: str | None) -> None:
    """Raise what the built-in open raises for such arguments, which it does after opening."""
    if "b" in mode and not encoding is errors is newline is None:
        raise ValueError("binary mode takes no encoding, errors or newline")
    if encoding not in (None, "locale"):
        "".encode(encoding)  # also refuses what is no encoding of text
    if errors is not None:
        codecs.lookup_error(errors)
    if newline not in (None, "", "\n", "\r", "\r\n"):
        raise ValueError(f"illegal newline value: {newline!r}")


@contextmanager
def _directory(
    base: int, beneath: StrOrBytesPath | FileDescriptorLike | None, path: StrOrBytesPath
) -> Iterator[tuple[int, int]]:
    """Where *path* begins: a descriptor to open it by, and the number that an error names."""
    if isinstance(beneath, (str, bytes, os.PathLike)):
        with open_directory(base, beneath) as directory:
            yield directory, directory
        return
    if isinstance(beneath, bool):
        raise TypeError("beneath must be a directory, not a bool")
    number = base if beneath is None else fileno(beneath)
    with kept(number, path) as directory:
        yield directory, number


def open_directory(base: int, path: StrOrBytesPath, flags: int = os.O_PATH) -> Fd:
    """A descriptor of a directory, no component of whose path is a symlink."""
    ret = _no_symlinks(base, path_bytes(path), flags | os.O_DIRECTORY, 0, _NO_SYMLINKS)
    return Fd(_opened(ret, path, base))


def _open(base: int, path: bytes, flags: int, resolve: int, special: bool) -> int:
    """A descriptor or -errno."""
    if not (special or flags & os.O_CREAT):
        return _open_regular(base, path, flags, resolve)
    if special or flags & os.O_EXCL:
        return _no_symlinks(base, path, flags, 0o666 if flags & os.O_CREAT else 0, resolve)
    existing, new = flags & ~os.O_CREAT, flags & ~os.O_TRUNC | os.O_EXCL
    for _ in range(_CREATE_TRIES):
        ret = _open_regular(base, path, existing, resolve)
        if ret != -errno.ENOENT:
            break
        ret = _no_symlinks(base, path, new, 0o666, resolve)
        if ret != -errno.EEXIST:
            break
    return ret


def _no_symlinks(base: int, path: bytes, flags: int, mode: int, resolve: int) -> int:
    return _retried(resolve, lambda: lib.tos_openat2(base, path, flags, mode, resolve))


def _open_regular(base: int, path: bytes, flags: int, resolve: int) -> int:
    return _retried(resolve, lambda: lib.tos_open_regular(base, path, flags, resolve))


def _retried(resolve: int, lookup: Callable[[], int]) -> int:
    tries = 1
    while (ret := lookup()) == -errno.EINTR or lost_to_a_rename(ret, resolve, tries):
        tries += 1
    return ret


def _opened(ret: int, path: StrOrBytesPath, base: int) -> int:
    if ret < 0:
        kind = SymlinkInPathError if ret == -errno.ELOOP else OSError
        special = "it is no regular file: special=True opens a FIFO or a device"
        notes = (special,) if ret == -errno.EOPNOTSUPP else ()
        check(ret, "openat2", path, dirfds=(base,), notes=notes, kind=kind)
    return ret


def sync_file(file: IO[Any]) -> None:
    """Flush a file object, and wait until the file is on the disk."""
    file.flush()
    while (ret := lib.tos_fsync(file.fileno())) < 0:
        check(ret, "fsync", file.name)


def exchange(
    a: StrOrBytesPath,
    b: StrOrBytesPath,
    *,
    a_dir_fd: FileDescriptorLike | None = None,
    b_dir_fd: FileDescriptorLike | None = None,
) -> None:
    """Swap two names of one filesystem in one step: each then stands for what the other did.

    They may be of different types. *a* is relative to *a_dir_fd*, *b* to *b_dir_fd*. A symlink that
    is itself named is swapped, one on the way is followed.

    Raises :exc:`OSError` with both names: ENOENT, EXDEV, EINVAL (the filesystem cannot do it, or
    one is inside of the other), and all that :manpage:`rename(2)` lists. Linux 3.15.
    """
    renameat2(dir_fileno(a_dir_fd), a, dir_fileno(b_dir_fd), b, RENAME_EXCHANGE)


def rename_noreplace(
    a: StrOrBytesPath,
    b: StrOrBytesPath,
    *,
    a_dir_fd: FileDescriptorLike | None = None,
    b_dir_fd: FileDescriptorLike | None = None,
) -> None:
    """Rename *a* to *b*, unless *b* exists: nobody can create it in between.

    *a* is relative to *a_dir_fd*, *b* to *b_dir_fd*. A symlink at the end of either is not
    followed, one on the way is.

    Raises :exc:`FileExistsError`; :exc:`OSError` with both names: ENOENT, EXDEV, EINVAL (the
    filesystem cannot do it), and all that :manpage:`rename(2)` lists. Linux 3.15.
    """
    renameat2(dir_fileno(a_dir_fd), a, dir_fileno(b_dir_fd), b, RENAME_NOREPLACE)


def link_tmpfile(
    fd: FileDescriptorLike, path: StrOrBytesPath, *, dir_fd: FileDescriptorLike | None = None
) -> None:
    """Give the file that *fd* was opened as with ``O_TMPFILE`` the name *path*.

    *path* is relative to *dir_fd*; nothing may have that name, and a symlink at its end is not
    followed. Without CAP_DAC_READ_SEARCH this needs /proc.

    Raises :exc:`FileExistsError`; :exc:`OSError`: EXDEV (another filesystem), ENOENT (also for a
    file that was opened with ``O_EXCL``, or whose last name is gone), and all that
    :manpage:`linkat(2)` lists. Linux 3.11.
    """
    file, base, raw = fileno(fd), dir_fileno(dir_fd), path_bytes(path)
    with kept(base, path) as directory:
        while (ret := link_descriptor(file, directory, raw)) < 0:
            check(ret, "linkat", path, dirfds=(base,))


def link_descriptor(fd: int, dir_fd: int, name: bytes) -> int:
    """linkat(2) of an open file: 0 or -errno."""
    ret: int = lib.tos_linkat(fd, b"", dir_fd, name, int(AT_EMPTY_PATH))
    if ret == -errno.ENOENT:  # what the kernel says to who lacks CAP_DAC_READ_SEARCH
        link = f"/proc/self/fd/{fd}".encode()
        ret = lib.tos_linkat(AT_FDCWD, link, dir_fd, name, int(AT_SYMLINK_FOLLOW))
    return ret
