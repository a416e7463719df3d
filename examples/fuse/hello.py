#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-3.0-or-later
"""A filesystem with one file, ``message``, that cannot be changed.

Usage: hello.py MOUNTPOINT, and ``cat MOUNTPOINT/message`` elsewhere. Ctrl-C or umount end it.
"""

import argparse
import asyncio
import errno
import os
import stat

from truenas_os import fuse

MESSAGE_INODE = 2
NAME = b"message"
CONTENT = b"hello, world\n"


class Hello(fuse.Operations):
    async def getattr(self, inode, ctx):
        attr = fuse.EntryAttributes(st_ino=inode, st_uid=os.getuid(), st_gid=os.getgid())
        if inode == fuse.ROOT_INODE:
            attr.st_mode = stat.S_IFDIR | 0o755
            attr.st_nlink = 2
        elif inode == MESSAGE_INODE:
            attr.st_mode = stat.S_IFREG | 0o644
            attr.st_size = len(CONTENT)
        else:
            raise fuse.FUSEError(errno.ENOENT)
        return attr

    async def lookup(self, parent_inode, name, ctx):
        if name in (b".", b".."):
            return await self.getattr(fuse.ROOT_INODE, ctx)
        if parent_inode != fuse.ROOT_INODE or name != NAME:
            raise fuse.FUSEError(errno.ENOENT)
        return await self.getattr(MESSAGE_INODE, ctx)

    async def opendir(self, inode, ctx):
        return inode

    async def readdir(self, fh, start_id, token):
        if start_id == 0:
            fuse.readdir_reply(token, NAME, await self.getattr(MESSAGE_INODE, None), 1)

    async def open(self, inode, flags, ctx):
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise fuse.FUSEError(errno.EROFS)
        return fuse.FileInfo(fh=inode)

    async def read(self, fh, off, size):
        return CONTENT[off : off + size]


def main():
    parser = argparse.ArgumentParser(description="A filesystem with one file, named message.")
    parser.add_argument("mountpoint")
    fuse.init(Hello(), parser.parse_args().mountpoint, {"fsname=hello", *fuse.default_options})
    try:
        asyncio.run(fuse.main())
    finally:
        fuse.close()


if __name__ == "__main__":
    main()
