# SPDX-License-Identifier: LGPL-3.0-or-later
"""The synchronous face: every call of :mod:`truenas_os` under the same name, for code in threads.

``from truenas_os import blocking as truenas_os`` gives the whole face, with constants and results.
"""

from . import flags
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
from .results import IdmapMapping, StatmountResult, StatxResult
from .trees import MountTree, mount_tree
from .unmounting import umount
from .userns import idmap_userns
from .watcher import wait_for_mount, wait_for_unmount, watch_mounts

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
    "statmount",
    "statx",
    "umount",
    "umount2",
    "wait_for_mount",
    "wait_for_unmount",
    "watch_mounts",
]
__all__ += flags.__all__
