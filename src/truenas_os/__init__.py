# SPDX-License-Identifier: LGPL-3.0-or-later
"""The Linux filesystem interface for async Python.

Every call that may block runs on a worker thread and is awaited; :mod:`truenas_os.blocking` has the
same names for code that is synchronous. Arguments are checked before any system call: what has the
wrong type is a :exc:`TypeError`, what no kernel would take a :exc:`ValueError`, and a number that
does not fit the kernel's type an :exc:`OverflowError`, as in :mod:`os`.
"""

from ._threads import set_thread_limit
from .blocking import flags
from .blocking.errors import SymlinkInPathError
from .blocking.flags import *
from .blocking.results import (
    Access,
    Credentials,
    FileAttr,
    IdmapMapping,
    StatmountResult,
    StatxResult,
)
from .calls import (
    atomic_replace,
    check_access,
    exchange,
    file_getattr,
    file_setattr,
    getxattr,
    iter_mount,
    link_tmpfile,
    listmount,
    listxattr,
    mount_of,
    open_mount_by_id,
    openat2,
    removexattr,
    rename_noreplace,
    renameat2,
    setxattr,
    statmount,
    statx,
)
from .fds import Fd
from .filehandle import fhandle
from .safefiles import AsyncFile, atomic_write, safe_open

__all__ = [
    "Access",
    "AsyncFile",
    "Credentials",
    "Fd",
    "FileAttr",
    "IdmapMapping",
    "StatmountResult",
    "StatxResult",
    "SymlinkInPathError",
    "atomic_replace",
    "atomic_write",
    "check_access",
    "exchange",
    "fhandle",
    "file_getattr",
    "file_setattr",
    "getxattr",
    "iter_mount",
    "link_tmpfile",
    "listmount",
    "listxattr",
    "mount_of",
    "open_mount_by_id",
    "openat2",
    "removexattr",
    "rename_noreplace",
    "renameat2",
    "safe_open",
    "set_thread_limit",
    "setxattr",
    "statmount",
    "statx",
]
__all__ += flags.__all__
