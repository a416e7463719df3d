# SPDX-License-Identifier: LGPL-3.0-or-later
"""A small filesystem of the path level, in memory, which notes how it is called."""

import errno
import functools
import os
import stat
import threading

from truenas_os import fuse


def _called(function, *args):
    return function(*args)


class Item:
    """What a path leads to; a hard link leads to the same."""

    def __init__(self, ino, mode, content=b"", rdev=0):
        self.ino = ino
        self.mode = mode
        self.content = bytearray(content)
        self.rdev = rdev
        self.uid, self.gid = os.getuid(), os.getgid()
        self.times = [(1, 500), (2, 500)]
        self.xattrs = {}


class Tree(fuse.PathOperations):
    """Returns what it has in the form of negative errnos and lists; derive, and add callbacks.

    *kind*: ``"plain"``, ``"async"``, or ``"awaitable"`` for plain functions that return what is to
    be awaited. What is called is in ``seen``, as tuples of the callback's name and its arguments.
    """

    def __init__(self, kind="plain", **files):
        self.items = {}
        self.seen = []
        self.threads = set()
        self.add("/", stat.S_IFDIR | 0o755)
        for name, content in files.items():
            self.add("/" + name, stat.S_IFREG | 0o644, content)
        for name in fuse.path.CALLBACKS:
            callback = getattr(self, name)
            if callback.__func__ is not getattr(fuse.PathOperations, name):
                setattr(self, name, self.noted(kind, name, callback))

    def noted(self, kind, name, callback):
        @functools.wraps(callback)
        def call(*args):
            self.seen.append((name, *args))
            self.threads.add(threading.get_ident())
            return callback(*args)

        @functools.wraps(callback)
        async def wait(*args):
            return call(*args)

        return {"plain": call, "async": wait, "awaitable": functools.partial(_called, wait)}[kind]

    def add(self, path, mode, content=b"", rdev=0):
        ino = 100 + len(self.items) + len(self.seen)
        self.items[path] = item = Item(ino, mode, content, rdev)
        return item

    def calls(self, *names):
        return [call for call in self.seen if call[0] in names]

    def attributes(self, item):
        links = sum(each is item for each in self.items.values())
        atime, mtime = item.times
        size = len(item.content)
        ids = item.uid, item.gid, item.rdev
        return (0, item.ino, item.mode, links, *ids, size, atime, mtime, 3.25, 512, 1)

    def item(self, path):
        try:
            return self.items[path]
        except KeyError:
            raise fuse.FUSEError(errno.ENOENT) from None

    def getattr(self, path):
        item = self.items.get(path)
        return -errno.ENOENT if item is None else self.attributes(item)

    def readlink(self, path):
        return self.item(path).content.decode()

    def getdir(self, path):
        return [".", "..", *self.below(path), 0]

    def below(self, path):
        prefix = path.rstrip("/") + "/"
        names = (each.removeprefix(prefix) for each in self.items if each.startswith(prefix))
        return sorted(name for name in names if name and "/" not in name)

    def mknod(self, path, mode, rdev):
        self.add(path, mode, rdev=rdev)
        return 0

    def mkdir(self, path, mode):
        self.add(path, stat.S_IFDIR | mode)

    def symlink(self, target, path):
        self.add(path, stat.S_IFLNK | 0o777, target.encode())

    def unlink(self, path):
        del self.items[path]
        return 0

    def rmdir(self, path):
        if self.below(path):
            return -errno.ENOTEMPTY
        del self.items[path]
        return 0

    def rename(self, old, new):
        for path in [each for each in self.items if each == old or each.startswith(old + "/")]:
            self.items[new + path.removeprefix(old)] = self.items.pop(path)
        return 0

    def link(self, old, new):
        self.items[new] = self.item(old)
        return 0

    def chmod(self, path, mode):
        self.item(path).mode = mode
        return 0

    def chown(self, path, uid, gid):
        item = self.item(path)
        item.uid = item.uid if uid == -1 else uid
        item.gid = item.gid if gid == -1 else gid
        return 0

    def truncate(self, path, size):
        content = self.item(path).content
        content[size:] = bytes(max(0, size - len(content)))
        return 0

    def utime(self, path, atime, mtime):
        self.item(path).times = [atime, mtime]
        return 0

    def read(self, path, size, offset, fh):
        return bytes(self.item(path).content[offset : offset + size])

    def write(self, path, data, offset, fh):
        content = self.item(path).content
        content[offset : offset + len(data)] = bytes(max(0, offset - len(content))) + data
        return len(data)
