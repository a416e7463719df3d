# SPDX-License-Identifier: LGPL-3.0-or-later
"""The one place that turns a negative result of the native layer into an exception."""

import errno
import os

from .arguments import FileDescriptorLike, StrOrBytesPath, fileno
from .flags import AT_FDCWD

# The Linux version that brought each system call.
_SINCE = {
    "clone3": "5.3",
    "fanotify_init": "2.6.37",
    "fanotify_mark": "2.6.37",
    "fsconfig": "5.2",
    "fsmount": "5.2",
    "fsopen": "5.2",
    "fspick": "5.2",
    "listmount": "6.8",
    "mount_setattr": "5.12",
    "move_mount": "5.2",
    "name_to_handle_at": "2.6.39",
    "open_by_handle_at": "2.6.39",
    "open_tree": "5.2",
    "open_tree_attr": "6.15",
    "openat2": "5.6",
    "renameat2": "3.15",
    "statmount": "6.8",
    "statx": "4.11",
}


def check(
    ret: int,
    call: str,
    filename: StrOrBytesPath | int | None = None,
    *,
    filename2: StrOrBytesPath | None = None,
    dirfds: tuple[FileDescriptorLike, ...] = (),
    notes: tuple[str, ...] = (),
) -> None:
    """Raise the OSError that *ret*, a negative result of the system call *call*, stands for.

    Returns only for ``-EINTR``: the caller then makes the call again, which is also the moment at
    which Python has run the signal's handler.
    """
    if ret != -errno.EINTR:
        # Made elsewhere: an error in a local variable here would be in a cycle with its traceback.
        raise _error(-ret, call, filename, filename2, dirfds, notes)


def _error(
    code: int,
    call: str,
    filename: StrOrBytesPath | int | None,
    filename2: StrOrBytesPath | None,
    dirfds: tuple[FileDescriptorLike, ...],
    notes: tuple[str, ...],
) -> OSError:
    names = [os.fspath(n) if isinstance(n, os.PathLike) else n for n in (filename, filename2)]
    if names[0] in ("", b"") and len(dirfds) == 1 and fileno(dirfds[0]) != AT_FDCWD:
        names[0] = fileno(dirfds[0])  # what an empty path with a descriptor stands for
    about = () if filename is None else (names[0], None, names[1])
    error = OSError(code, os.strerror(code), *about)
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
        return ", which is not open" if fd < 0 or not _is_open(fd) else ""


def _is_open(fd: int) -> bool:
    try:
        os.get_inheritable(fd)
    except OSError:
        return False
    return True
