# SPDX-License-Identifier: LGPL-3.0-or-later
"""Filesystems in user space, their handlers written as ``async def``, without libfuse.

Derive from :class:`Operations`, define the handlers that your filesystem has, and serve it::

    import anyio
    from truenas_os import fuse

    class Empty(fuse.Operations):
        async def getattr(self, inode, ctx):
            return fuse.EntryAttributes(st_ino=inode, st_mode=0o40755)

    async def main():
        async with fuse.mount(Empty(), "/mnt/scratch", fsname="empty") as session:
            print(session.features.protocol)  # await session.wait() serves until the unmounting

    anyio.run(main)

or, as a program that is one filesystem, with :func:`init`, :func:`main` and :func:`close`. With
:class:`PathOperations` and :mod:`truenas_os.fuse.path`, handlers are given paths.
"""

from typing import Any

from . import asyncio, path, program, protocol
from .current import current_request
from .datatypes import (
    ENOATTR,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    ROOT_INODE,
    XATTR_CREATE,
    XATTR_REPLACE,
    EntryAttributes,
    FileHandleT,
    FileInfo,
    FileLock,
    FileNameT,
    FlagT,
    FUSEError,
    InodeT,
    ModeT,
    RequestContext,
    SetattrFields,
    StatvfsData,
    XAttrNameT,
)
from .listing import ReaddirToken, readdir_reply
from .negotiation import Features
from .notifications import PollHandle
from .operations import Operations
from .options import default_options
from .pathcallbacks import PathOperations
from .paths import get_sup_groups, getxattr, listdir, setxattr, syncfs
from .program import (
    close,
    expire_entry,
    init,
    invalidate_entry,
    invalidate_entry_async,
    invalidate_inode,
    main,
    notify_store,
    prune,
    terminate,
)
from .protocol import Request
from .server import SessionEnd, SessionStats
from .session import Session, mount

__all__ = [
    "ENOATTR",
    "EntryAttributes",
    "FUSEError",
    "Features",
    "FileHandleT",
    "FileInfo",
    "FileLock",
    "FileNameT",
    "FlagT",
    "InodeT",
    "ModeT",
    "Operations",
    "PathOperations",
    "PollHandle",
    "RENAME_EXCHANGE",
    "RENAME_NOREPLACE",
    "ROOT_INODE",
    "ReaddirToken",
    "Request",
    "RequestContext",
    "Session",
    "SessionEnd",
    "SessionStats",
    "SetattrFields",
    "StatvfsData",
    "XAttrNameT",
    "XATTR_CREATE",
    "XATTR_REPLACE",
    "asyncio",
    "close",
    "current_request",
    "default_options",
    "expire_entry",
    "get_sup_groups",
    "getxattr",
    "init",
    "invalidate_entry",
    "invalidate_entry_async",
    "invalidate_inode",
    "listdir",
    "main",
    "mount",
    "notify_store",
    "path",
    "protocol",
    "prune",
    "readdir_reply",
    "setxattr",
    "syncfs",
    "terminate",
]


def __getattr__(name: str) -> Any:
    if name == "trio_token":  # changes while main() runs
        return program.trio_token
    if name == "__version__":
        from importlib import metadata

        return metadata.version("truenas-os")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
