# SPDX-License-Identifier: LGPL-3.0-or-later
"""The one place that turns a negative result of the native layer into an exception."""

import errno
import os

from .arguments import FileDescriptorLike, StrOrBytesPath, fileno
from .flags import AT_FDCWD

# The Linux version that brought each system call.
_SINCE = {
    "clone3": "5.3",
    "faccessat2": "5.8",
    "fanotify_init": "2.6.37",
    "fanotify_mark": "2.6.37",
    "file_getattr": "6.17",
    "file_setattr": "6.17",
    "fsconfig": "5.2",
    "fsmount": "5.2",
    "fsopen": "5.2",
    "fspick": "5.2",
    "getxattrat": "6.13",
    "listmount": "6.8",
    "listxattrat": "6.13",
    "mount_setattr": "5.12",
    "move_mount": "5.2",
    "name_to_handle_at": "2.6.39",
    "open_by_handle_at": "2.6.39",
    "open_tree": "5.2",
    "open_tree_attr": "6.15",
    "openat2": "5.6",
    "removexattrat": "6.13",
    "renameat2": "3.15",
    "setxattrat": "6.13",
    "statmount": "6.8",
    "statx": "4.11",
}


class SymlinkInPathError(OSError):
    """A symlink stands in a path where none is followed: ``errno`` is ELOOP, ``filename`` the path.

    Magic links, as those in /proc/PID/fd, count as symlinks.
    """


def check(
    ret: int,
    call: str,
    filename: StrOrBytesPath | int | None = None,
    *,
    filename2: StrOrBytesPath | None = None,
    dirfds: tuple[FileDescriptorLike, ...] = (),
    notes: tuple[str, ...] = (),
    kind: type[OSError] = OSError,
) -> None:
    """Raise the error that *ret*, a negative result of the system call *call*, stands for.

    It is of the class *kind*; OSError itself becomes the one that Python has for the errno.

    Returns only for ``-EINTR``: the caller then makes the call again, which is also the moment at
    which Python has run the signal's handler.
    """
    if ret != -errno.EINTR:
        # Made elsewhere: an error in a local variable here would be in a cycle with its traceback.
        raise _error(-ret, call, filename, filename2, dirfds, notes, kind)


def _error(
    code: int,
    call: str,
    filename: StrOrBytesPath | int | None,
    filename2: StrOrBytesPath | None,
    dirfds: tuple[FileDescriptorLike, ...],
    notes: tuple[str, ...],
    kind: type[OSError],
) -> OSError:
    names = [os.fspath(n) if isinstance(n, os.PathLike) else n for n in (filename, filename2)]
    if names[0] in ("", b"") and len(dirfds) == 1 and fileno(dirfds[0]) != AT_FDCWD:
        names[0] = fileno(dirfds[0])  # what an empty path with a descriptor stands for
    about = () if filename is None else (names[0], None, names[1])
    error = kind(code, os.strerror(code), *about)
    if code == errno.ENOSYS and call in _SINCE:
        error.add_note(
            f"{call}() needs Linux {_SINCE[call]}; this kernel is {os.uname().release}, "
            "or a seccomp filter hides the call"
        )
    for name, dirfd in zip(names, dirfds, strict=False):
        absolute = isinstance(name, (str, bytes)) and os.path.isabs(name)
        if not absolute and (fd := fileno(dirfd)) != AT_FDCWD:
            error.add_note(f"{call}() began at descriptor {fd}{_where(fd)}")
    for note in notes:
        error.add_note(note)
    return error


def _where(fd: int) -> str:
    try:
        return f", {os.readlink(f'/proc/self/fd/{fd}')}"
    except OSError:
        return ", which is not open" if fd < 0 or not is_open(fd) else ""


def is_open(fd: int) -> bool:
    """Whether the process has that descriptor."""
    try:
        os.get_inheritable(fd)
    except OSError:
        return False
    return True
