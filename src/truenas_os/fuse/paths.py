# SPDX-License-Identifier: LGPL-3.0-or-later
"""What programs around a filesystem need of the system; these calls block."""

import os
from typing import Final

from .._native import lib
from ..blocking.arguments import StrOrBytesPath
from ..blocking.errors import check
from ..blocking.fds import Fd

_NAMESPACES: Final = ("user", "system")


def get_sup_groups(pid: int) -> set[int]:
    """The supplementary groups of a process, as /proc tells them."""
    with open(f"/proc/{pid}/status", "rb") as status:
        for line in status:
            if line.startswith(b"Groups:"):
                return {int(group) for group in line.split()[1:]}
    return set()


def listdir(path: StrOrBytesPath) -> list[str]:
    """As :func:`os.listdir`: the names as str."""
    return [os.fsdecode(name) for name in os.listdir(path)]


def syncfs(path: StrOrBytesPath) -> None:
    """Put on stable storage all that was written to the filesystem of *path*.

    Raises :exc:`OSError`: what opening *path* raises, EIO, ENOSPC, EDQUOT. :manpage:`syncfs(2)`.
    """
    with Fd(os.open(path, os.O_RDONLY | os.O_CLOEXEC)) as fd:
        while (ret := lib.tos_syncfs(fd)) < 0:
            check(ret, "syncfs", path)


def setxattr(path: StrOrBytesPath, name: str, value: bytes, namespace: str = "user") -> None:
    """Set an extended attribute. On Linux *name* has its namespace in it, as in ``user.mime``.

    Raises :exc:`ValueError` for a *namespace* that is neither ``user`` nor ``system``.
    """
    _check(namespace)
    os.setxattr(path, name, value)


def getxattr(
    path: StrOrBytesPath, name: str, size_guess: int = 128, namespace: str = "user"
) -> bytes:
    """The value of an extended attribute; *size_guess* has no effect. See :func:`setxattr`."""
    _check(namespace)
    return os.getxattr(path, name)


def _check(namespace: str) -> None:
    if namespace not in _NAMESPACES:
        raise ValueError(f"namespace must be 'user' or 'system', not {namespace!r}")
