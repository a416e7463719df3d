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
from .blocking.events import MountEvent, MountEventKind, MountFilter
from .blocking.flags import *
from .blocking.loop import LoopDevice
from .blocking.mounting import Mount
from .blocking.results import (
    Access,
    Credentials,
    FileAttr,
    IdmapMapping,
    StatmountResult,
    StatxResult,
)
from .blocking.walk_items import FilesystemIterState, IterInstance, WalkProgress
from .blocking.walk_options import FilesystemMismatchError
from .blocking.walk_tokens import IteratorRestoreError, ResumeToken
from .calls import (
    atomic_replace,
    check_access,
    exchange,
    file_getattr,
    file_setattr,
    fsconfig,
    fscontext_messages,
    fsmount,
    fsopen,
    fspick,
    getxattr,
    idmap_userns,
    iter_mount,
    link_tmpfile,
    listmount,
    listxattr,
    mount_of,
    mount_setattr,
    move_mount,
    open_mount_by_id,
    open_tree,
    open_tree_attr,
    openat2,
    remount,
    removexattr,
    rename_noreplace,
    renameat2,
    set_attr,
    setxattr,
    statmount,
    statx,
    umount,
    umount2,
)
from .events import wait_for_mount, wait_for_unmount, watch_mounts
from .fds import Fd
from .filehandle import fhandle
from .mounting import (
    MountTree,
    bind,
    loop_device,
    mount_tree,
    mounted,
    overlay,
)
from .safefiles import AsyncFile, atomic_write, safe_open
from .walker import FilesystemIterator, iter_filesystem_contents, walk

__all__ = [
    "Access",
    "AsyncFile",
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
    "set_thread_limit",
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
