# SPDX-License-Identifier: LGPL-3.0-or-later
"""The Linux filesystem interface for async Python.

Every call that may block runs on a worker thread and is awaited; :mod:`truenas_os.blocking` has the
same names for code that is synchronous. Arguments are checked before any system call: what has the
wrong type is a :exc:`TypeError`, what no kernel would take a :exc:`ValueError`, and a number that
does not fit the kernel's type an :exc:`OverflowError`, as in :mod:`os`.
"""

from ._threads import set_thread_limit
from .blocking import flags
from .blocking.events import MountEvent, MountEventKind, MountFilter
from .blocking.flags import *
from .blocking.results import IdmapMapping, StatmountResult, StatxResult
from .calls import (
    fsconfig,
    fscontext_messages,
    fsmount,
    fsopen,
    fspick,
    idmap_userns,
    iter_mount,
    listmount,
    mount_of,
    mount_setattr,
    move_mount,
    open_mount_by_id,
    open_tree,
    open_tree_attr,
    openat2,
    remount,
    renameat2,
    set_attr,
    statmount,
    statx,
    umount,
    umount2,
)
from .events import wait_for_mount, wait_for_unmount, watch_mounts
from .fds import Fd
from .filehandle import fhandle
from .mounting import (
    LoopDevice,
    Mount,
    MountTree,
    bind,
    loop_device,
    mount_tree,
    mounted,
    overlay,
)

__all__ = [
    "Fd",
    "IdmapMapping",
    "LoopDevice",
    "Mount",
    "MountEvent",
    "MountEventKind",
    "MountFilter",
    "MountTree",
    "StatmountResult",
    "StatxResult",
    "bind",
    "fhandle",
    "fsconfig",
    "fscontext_messages",
    "fsmount",
    "fsopen",
    "fspick",
    "idmap_userns",
    "iter_mount",
    "listmount",
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
    "renameat2",
    "set_attr",
    "set_thread_limit",
    "statmount",
    "statx",
    "umount",
    "umount2",
    "wait_for_mount",
    "wait_for_unmount",
    "watch_mounts",
]
__all__ += flags.__all__
