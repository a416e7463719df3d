#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-3.0-or-later
"""A filesystem that shows a directory at another place, with callbacks that are given paths.

Usage: mirror.py SOURCE MOUNTPOINT. Ctrl-C or umount end it.

The callbacks are plain functions, called on threads. Each looks its path up anew, so it is for a
SOURCE that nobody else changes; passthrough.py, which holds on to what it has looked up, is not as
short. As root, what is made belongs to who makes it.
"""

import argparse
import asyncio
import contextlib
import ctypes
import os
from collections.abc import Iterator
from typing import Any

from truenas_os import fuse
from truenas_os.fuse.path import fuse_get_context

# What of the flags of open(2) is for the file in the source as well. Where appended data goes is
# the kernel's to say.
OPEN_FLAGS = os.O_ACCMODE | os.O_SYNC | os.O_DSYNC | os.O_NOATIME
PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP = 28, 1 << 2

libc = ctypes.CDLL(None, use_errno=True)


class Mirror(fuse.PathOperations):
    """The filesystem."""

    threaded = True
    nullpath_ok = True
    utimens_as_array = True

    def __init__(self, source: str) -> None:
        self._source = source

    def _at(self, path: str) -> str:
        return self._source + path

    # Attributes.

    def getattr(self, path: str) -> os.stat_result:
        return os.lstat(self._at(path))

    def fgetattr(self, path: str, fh: int) -> os.stat_result:
        return os.fstat(fh)

    def chmod(self, path: str, mode: int) -> None:
        os.chmod(self._at(path), mode)

    def chown(self, path: str, uid: int, gid: int) -> None:
        os.lchown(self._at(path), uid, gid)

    def truncate(self, path: str, size: int) -> None:
        # Through a descriptor, since open(2) with O_TRUNC, which this may come from, counts as a
        # change even of a file that is empty.
        fd = os.open(self._at(path), os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.ftruncate(fd, size)
        finally:
            os.close(fd)

    def ftruncate(self, path: str, size: int, fh: int) -> None:
        os.ftruncate(fh, size)

    def utimens(self, path: str, atime: tuple[int, int], mtime: tuple[int, int]) -> None:
        ns = atime[0] * 10**9 + atime[1], mtime[0] * 10**9 + mtime[1]
        os.utime(self._at(path), ns=ns, follow_symlinks=False)

    def statfs(self) -> os.statvfs_result:
        return os.statvfs(self._source)

    # Names.

    def readlink(self, path: str) -> str:
        return os.readlink(self._at(path))

    def mknod(self, path: str, mode: int, rdev: int) -> None:
        with acting_for_caller():
            os.mknod(self._at(path), mode, rdev)

    def mkdir(self, path: str, mode: int) -> None:
        with acting_for_caller():
            os.mkdir(self._at(path), mode)

    def symlink(self, target: str, path: str) -> None:
        with acting_for_caller():
            os.symlink(target, self._at(path))

    def unlink(self, path: str) -> None:
        os.unlink(self._at(path))

    def rmdir(self, path: str) -> None:
        os.rmdir(self._at(path))

    def rename(self, old: str, new: str) -> None:
        os.rename(self._at(old), self._at(new))

    def link(self, old: str, new: str) -> None:
        os.link(self._at(old), self._at(new), follow_symlinks=False)

    # Files, whose descriptors are their handles.

    def create(self, path: str, mode: int, flags: int) -> int:
        ours = flags & OPEN_FLAGS | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with acting_for_caller():
            return os.open(self._at(path), ours, mode)

    def open(self, path: str, flags: int, info: fuse.FileInfo) -> int:
        return os.open(self._at(path), flags & OPEN_FLAGS | os.O_NOFOLLOW | os.O_CLOEXEC)

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return os.pread(fh, size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        return os.pwrite(fh, data, offset)

    def flush(self, path: str, fh: int) -> None:
        os.close(os.dup(fh))  # a filesystem may have errors to tell at a close

    def release(self, path: str, flags: int, fh: int) -> None:
        os.close(fh)

    def fsync(self, path: str, datasync: int, fh: int) -> None:
        (os.fdatasync if datasync else os.fsync)(fh)

    # Extended attributes.

    def getxattr(self, path: str, name: str) -> bytes:
        return os.getxattr(self._at(path), name, follow_symlinks=False)

    def setxattr(self, path: str, name: str, value: bytes, flags: int) -> None:
        os.setxattr(self._at(path), name, value, flags, follow_symlinks=False)

    def listxattr(self, path: str) -> list[str]:
        names = os.listxattr(self._at(path), follow_symlinks=False)
        is_root = fuse_get_context().uid == 0
        return [name for name in names if is_root or not name.startswith("trusted.")]

    def removexattr(self, path: str, name: str) -> None:
        os.removexattr(self._at(path), name, follow_symlinks=False)

    # Directories.

    def opendir(self, path: str) -> int:
        return os.open(self._at(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def readdir(self, path: str, offset: int, fh: int) -> list[Any]:
        entries: list[Any] = [(0, "."), (0, "..")]
        for name in os.listdir(fh):
            with contextlib.suppress(FileNotFoundError):  # it may have been removed meanwhile
                entries.append((0, name, os.stat(name, dir_fd=fh, follow_symlinks=False)))
        return entries

    def releasedir(self, path: str, fh: int) -> None:
        os.close(fh)

    def fsyncdir(self, path: str, datasync: int, fh: int) -> None:
        self.fsync(path, datasync, fh)


@contextlib.contextmanager
def acting_for_caller() -> Iterator[None]:
    """Make what is to belong to the caller. The ids are those of this thread alone."""
    ctx = fuse_get_context()
    uid, gid = os.geteuid(), os.getegid()
    try:
        libc.setfsgid(ctx.gid)
        libc.setfsuid(ctx.uid)
        # They tell of no error, only what the id was before, and -1 is none.
        if (libc.setfsuid(-1), libc.setfsgid(-1)) != (ctx.uid, ctx.gid):
            raise PermissionError(1, "the caller's ids cannot be had")
        yield
    finally:
        libc.setfsuid(uid)
        libc.setfsgid(gid)


def main() -> None:
    parser = argparse.ArgumentParser(description="A directory, shown at another place.")
    parser.add_argument("source")
    parser.add_argument("mountpoint")
    parser.add_argument(
        "-o", dest="options", metavar="OPTIONS", default="", help="mount options, as allow_other"
    )
    args = parser.parse_args()
    os.umask(0)  # the kernel applies the caller's
    # Keep the capabilities of root, such as to make files in any directory, when acting for others.
    libc.prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP, 0, 0, 0)
    # Of those that exclude each other, the last one counts.
    options = [f"fsname={args.source}", *fuse.default_options]
    options += filter(None, args.options.split(","))
    try:
        fuse.init(Mirror(os.path.abspath(args.source)), args.mountpoint, options)
    except ValueError as error:
        parser.error(str(error))
    try:
        asyncio.run(fuse.main())
    finally:
        fuse.close()


if __name__ == "__main__":
    main()
