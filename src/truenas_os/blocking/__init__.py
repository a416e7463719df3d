# SPDX-License-Identifier: LGPL-3.0-or-later
"""The synchronous face: every call of :mod:`truenas_os` under the same name, for code in threads.

``from truenas_os import blocking as truenas_os`` gives the whole face, with constants and results.
"""

from . import flags
from .errors import SymlinkInPathError
from .fds import Fd
from .filehandle import fhandle
from .files import openat2, renameat2, statx
from .flags import *
from .mounts import iter_mount, listmount, mount_of, open_mount_by_id, statmount
from .results import (
    IdmapMapping,
    StatmountResult,
    StatxResult,
)
from .safefiles import exchange, link_tmpfile, rename_noreplace, safe_open

__all__ = [
    "Fd",
    "IdmapMapping",
    "StatmountResult",
    "StatxResult",
    "SymlinkInPathError",
    "exchange",
    "fhandle",
    "iter_mount",
    "link_tmpfile",
    "listmount",
    "mount_of",
    "open_mount_by_id",
    "openat2",
    "rename_noreplace",
    "renameat2",
    "safe_open",
    "statmount",
    "statx",
]
__all__ += flags.__all__
