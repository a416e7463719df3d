# SPDX-License-Identifier: LGPL-3.0-or-later
"""The synchronous face: every call of :mod:`truenas_os` under the same name, for code in threads.

``from truenas_os import blocking as truenas_os`` gives the whole face, with constants and results.
"""

from . import flags
from .access import check_access
from .attributes import file_getattr, file_setattr
from .errors import SymlinkInPathError
from .events import MountEvent, MountEventKind, MountFilter
from .fds import Fd
from .filehandle import fhandle
from .files import openat2, renameat2, statx
from .flags import *
from .loop import LoopDevice, loop_device
from .mountapi import (
    fsconfig,
    fscontext_messages,
    fsmount,
    fsopen,
    fspick,
    mount_setattr,
    move_mount,
    open_tree,
    open_tree_attr,
    umount2,
)
from .mounting import Mount, bind, mounted, overlay, remount, set_attr
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
from .trees import MountTree, mount_tree
from .unmounting import umount
from .userns import idmap_userns
from .walk_items import FilesystemIterState, IterInstance, WalkProgress
from .walk_options import FilesystemMismatchError
from .walk_tokens import IteratorRestoreError, ResumeToken
from .walker import FilesystemIterator, iter_filesystem_contents, walk
from .watcher import wait_for_mount, wait_for_unmount, watch_mounts
from .xattrs import getxattr, listxattr, removexattr, setxattr

__all__ = [
    "Access",
    "Credentials",
    "Fd",
    "FileAttr",
    "FilesystemIterState",
    "FilesystemIterator",
    "FilesystemMismatchError",
    "IdmapMapping",
    "IterInstance",
    "IteratorRestoreError",
    "LoopDevice",
    "Mount",
    "MountEvent",
    "MountEventKind",
    "MountFilter",
    "MountTree",
    "ResumeToken",
    "StatmountResult",
    "StatxResult",
    "SymlinkInPathError",
    "WalkProgress",
    "atomic_replace",
    "atomic_write",
    "bind",
    "check_access",
    "exchange",
    "fhandle",
    "file_getattr",
    "file_setattr",
    "fsconfig",
    "fscontext_messages",
    "fsmount",
    "fsopen",
    "fspick",
    "getxattr",
    "idmap_userns",
    "iter_filesystem_contents",
    "iter_mount",
    "link_tmpfile",
    "listmount",
    "listxattr",
    "loop_device",
    "mount_of",
    "mount_setattr",
    "mount_tree",
    "mounted",
    "move_mount",
    "open_mount_by_id",
    "open_tree",
    "open_tree_attr",
    "openat2",
    "overlay",
    "remount",
    "removexattr",
    "rename_noreplace",
    "renameat2",
    "safe_open",
    "set_attr",
    "setxattr",
    "statmount",
    "statx",
    "umount",
    "umount2",
    "wait_for_mount",
    "wait_for_unmount",
    "walk",
    "watch_mounts",
]
__all__ += flags.__all__
