# SPDX-License-Identifier: LGPL-3.0-or-later
"""The synchronous face: every call of :mod:`truenas_os` under the same name, for code in threads.

``from truenas_os import blocking as truenas_os`` gives the whole face, with constants and results.
"""

from . import flags
from .access import check_access
from .attributes import file_getattr, file_setattr
from .errors import SymlinkInPathError
from .fds import Fd
from .filehandle import fhandle
from .files import openat2, renameat2, statx
from .flags import *
from .mounts import iter_mount, listmount, mount_of, open_mount_by_id, statmount
from .replacement import atomic_replace, atomic_write
from .results import (
    Access,
    Credentials,
    FileAttr,
    IdmapMapping,
    StatmountResult,
    StatxResult,
)
from .safefiles import exchange, link_tmpfile, rename_noreplace, safe_open
from .xattrs import getxattr, listxattr, removexattr, setxattr

__all__ = [
    "Access",
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
    "setxattr",
    "statmount",
    "statx",
]
__all__ += flags.__all__
