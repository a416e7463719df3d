# SPDX-License-Identifier: LGPL-3.0-or-later
"""The setuid and setgid bits of who changes a file, as far as the kernel leaves them to the server.

It does so for ACLs, and with ``HANDLE_KILLPRIV_V2``. Without that, it asks before every write
whether the file has capabilities, and takes the bits away by a ``setattr`` of the mode.
"""

import stat
from collections.abc import Callable
from typing import Any

from .datatypes import EntryAttributes, RequestContext, SetattrFields
from .negotiation import implemented
from .operations import Operations


def without_setgid(mode: int) -> int:
    """The *mode* after a change of its ACL by who is not in the file's group."""
    return mode & ~stat.S_ISGID


def without_privileges(mode: int) -> int:
    """The *mode* of a file after a write, or a change of its owner or size."""
    if not stat.S_ISREG(mode):
        return mode
    mode &= ~stat.S_ISUID
    return mode & ~stat.S_ISGID if mode & stat.S_IXGRP else mode


async def left_mode(
    operations: Operations, inode: Any, ctx: RequestContext, left: Callable[[int], int]
) -> int | None:
    """The mode that an inode is to have according to *left*; None if it has it already."""
    if not (implemented(operations, "getattr") and implemented(operations, "setattr")):
        return None
    mode = (await operations.getattr(inode, ctx)).st_mode
    return None if left(mode) == mode else left(mode)


async def take_away(
    operations: Operations, inode: Any, ctx: RequestContext, left: Callable[[int], int]
) -> None:
    """Have an inode get the mode that it is to have according to *left*."""
    mode = await left_mode(operations, inode, ctx, left)
    if mode is not None:
        attr = EntryAttributes(st_ino=inode, st_mode=mode)
        await operations.setattr(inode, attr, SetattrFields(update_mode=True), None, ctx)
