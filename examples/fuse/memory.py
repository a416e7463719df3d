#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-3.0-or-later
"""A filesystem that keeps everything in memory, and loses it when it is unmounted.

Usage: memory.py MOUNTPOINT. Ctrl-C or umount end it.

An inode outlives its last name for as long as the kernel knows it, for instance because somebody
has the file open: what is removed or replaced goes away in ``forget``. Nothing but the kernel
changes anything here, so it may remember names and attributes for long.
"""

import argparse
import asyncio
import bisect
import errno
import itertools
import os
import stat
import struct
import time
from collections.abc import Collection, Iterator, Sequence

from truenas_os import fuse
from truenas_os.fuse import (
    EntryAttributes,
    FileHandleT,
    FileInfo,
    FileNameT,
    FlagT,
    FUSEError,
    InodeT,
    ModeT,
    RequestContext,
    SetattrFields,
    XAttrNameT,
)

PAGE = 4096
ZEROS = bytes(PAGE)
NAME_MAX = 255
DAY = 86400 * 10**9
COPIED_AT_ONCE = 16 << 20
ACL_ACCESS = XAttrNameT(b"system.posix_acl_access")
ACL_DEFAULT = XAttrNameT(b"system.posix_acl_default")
FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE = 1, 2, 16


class Space:
    """How many pages there may be, and how many are left."""

    def __init__(self, pages: int) -> None:
        self.pages = self.left = pages

    def take(self, pages: int) -> None:
        if pages > self.left:
            raise FUSEError(errno.ENOSPC)
        self.left -= pages


class Content:
    """What is in a file: pages by their numbers. Those that are not there are holes.

    A page that is the very object ``ZEROS`` is one that was allocated and not written yet.
    """

    def __init__(self, space: Space) -> None:
        self.pages: dict[int, bytes] = {}
        self._space = space

    def read(self, off: int, size: int) -> bytes:
        first, skipped = divmod(off, PAGE)
        numbers = range(first, (off + size - 1) // PAGE + 1)
        data = b"".join([self.pages.get(number, ZEROS) for number in numbers])
        return data if skipped == 0 and len(data) == size else data[skipped : skipped + size]

    def write(self, off: int, data: bytes) -> None:
        numbers = range(off // PAGE, (off + len(data) - 1) // PAGE + 1)
        self._space.take(sum(number not in self.pages for number in numbers))
        done = 0
        for number, start, end in _parts(off, len(data)):
            piece = data[done : done + end - start]
            done += len(piece)
            if len(piece) < PAGE:
                page = self.pages.get(number, ZEROS)
                piece = page[:start] + piece + page[end:]
            self.pages[number] = piece

    def allocate(self, off: int, length: int) -> None:
        numbers = range(off // PAGE, (off + length - 1) // PAGE + 1)
        if len(numbers) > self._space.pages:
            raise FUSEError(errno.ENOSPC)
        missing = [number for number in numbers if number not in self.pages]
        self._space.take(len(missing))
        self.pages.update(dict.fromkeys(missing, ZEROS))

    def discard(self, off: int, length: int) -> None:
        """Make a hole."""
        if length <= 0:
            return
        first, last = off // PAGE, (off + length - 1) // PAGE
        edges = {first, last} & self.pages.keys()
        inside: Collection[int] = range(first + 1, last)
        if len(inside) > len(self.pages):
            inside = [number for number in self.pages if first < number < last]
        for number in inside:
            self._drop(number)
        for number in edges:
            start = max(off - number * PAGE, 0)
            end = min(off + length - number * PAGE, PAGE)
            if end - start == PAGE:
                self._drop(number)
            else:
                page = self.pages[number]
                self.pages[number] = page[:start] + bytes(end - start) + page[end:]

    def _drop(self, number: int) -> None:
        if self.pages.pop(number, None) is not None:
            self._space.left += 1

    def next_data(self, off: int) -> int | None:
        """Where the first data at or behind *off* is."""
        first = off // PAGE
        written = (n for n, page in self.pages.items() if n >= first and page is not ZEROS)
        number = first if self._is_data(first) else min(written, default=None)
        return None if number is None else max(off, number * PAGE)

    def next_hole(self, off: int) -> int:
        number = off // PAGE
        while self._is_data(number):
            number += 1
        return max(off, number * PAGE)

    def _is_data(self, number: int) -> bool:
        return self.pages.get(number, ZEROS) is not ZEROS


def _parts(off: int, size: int) -> Iterator[tuple[int, int, int]]:
    """The pages of a range: their numbers, and from where to where in each page it goes."""
    number, start = divmod(off, PAGE)
    while size > 0:
        end = min(PAGE, start + size)
        yield number, start, end
        size -= end - start
        number, start = number + 1, 0


class Acl:
    """An access control list, made of the value of an extended attribute."""

    USER_OBJ, GROUP_OBJ, MASK, OTHER = 1, 4, 16, 32

    def __init__(self, value: bytes) -> None:
        # Of each entry the tag, the permissions, and the id of a user or a group.
        self.entries = [list(entry) for entry in struct.iter_unpack("<HHI", value[4:])]
        has_mask = any(tag == self.MASK for tag, _, _ in self.entries)
        group = self.MASK if has_mask else self.GROUP_OBJ
        # The entries that are in step with the mode, and where they are in it.
        self._shifts = {self.USER_OBJ: 6, group: 3, self.OTHER: 0}

    @property
    def mode(self) -> int:
        return sum(
            perm << self._shifts[tag] for tag, perm, _ in self.entries if tag in self._shifts
        )

    @mode.setter
    def mode(self, mode: int) -> None:
        for entry in self.entries:
            if entry[0] in self._shifts:
                entry[1] = mode >> self._shifts[entry[0]] & 7

    def is_just_the_mode(self) -> bool:
        return len(self.entries) == len(self._shifts)

    def __bytes__(self) -> bytes:
        return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *e) for e in self.entries)


class Node:
    """An inode of any kind."""

    def __init__(self, attr: EntryAttributes) -> None:
        self.attr = attr
        self.lookups = 0
        self.xattrs: dict[bytes, bytes] = {}
        now = time.time_ns()
        attr.st_atime_ns = attr.st_mtime_ns = attr.st_ctime_ns = attr.st_birthtime_ns = now

    def changed(self) -> None:
        """The inode has changed."""
        self.attr.st_ctime_ns = time.time_ns()

    def modified(self) -> None:
        """The content has changed."""
        self.attr.st_mtime_ns = self.attr.st_ctime_ns = time.time_ns()

    def accessed(self) -> None:
        """The content was read."""
        if self.is_access_due():
            self.attr.st_atime_ns = time.time_ns()

    def set_mode(self, mode: int) -> None:
        self.attr.st_mode = stat.S_IFMT(self.attr.st_mode) | stat.S_IMODE(mode)
        if ACL_ACCESS in self.xattrs:
            acl = Acl(self.xattrs[ACL_ACCESS])
            acl.mode = mode
            self.xattrs[ACL_ACCESS] = bytes(acl)

    def set_acl(self, acl: Acl) -> None:
        self.xattrs[ACL_ACCESS] = bytes(acl)
        self.set_mode(self.attr.st_mode & ~0o777 | acl.mode)
        if acl.is_just_the_mode():
            del self.xattrs[ACL_ACCESS]

    def inherit(self, default: bytes, mode: int) -> None:
        """Take over a directory's default ACL; *mode* is what was asked for, without the umask."""
        acl = Acl(default)
        acl.mode &= mode
        self.set_acl(acl)
        if stat.S_ISDIR(self.attr.st_mode):
            self.xattrs[ACL_DEFAULT] = default

    def is_access_due(self) -> bool:
        """Whether the next access counts, as with the mount option ``relatime``."""
        attr = self.attr
        is_older = attr.st_atime_ns <= max(attr.st_mtime_ns, attr.st_ctime_ns)
        return is_older or attr.st_atime_ns < time.time_ns() - DAY


class File(Node):
    """A regular file."""

    def __init__(self, attr: EntryAttributes, space: Space) -> None:
        super().__init__(attr)
        self.content = Content(space)

    def write(self, off: int, data: bytes) -> None:
        self.content.write(off, data)
        self.resized(max(self.attr.st_size, off + len(data)))

    def truncate(self, size: int) -> None:
        self.content.discard(size, (1 << 63) - size)
        self.resized(size)

    def resized(self, size: int) -> None:
        self.attr.st_size = size
        self.attr.st_blocks = len(self.content.pages) * (PAGE // 512)
        self.modified()


class Directory(Node):
    """A directory. Each entry has a number that no later one will have, to list from there."""

    def __init__(self, attr: EntryAttributes) -> None:
        super().__init__(attr)
        self.parent = self
        self.entries: dict[bytes, tuple[int, Node]] = {}
        self._numbers = itertools.count(3)
        attr.st_nlink = 2

    def __getitem__(self, name: bytes) -> Node:
        try:
            return self.entries[name][1]
        except KeyError:
            raise FUSEError(errno.ENOENT) from None

    def put(self, name: bytes, node: Node) -> None:
        """Have *name* lead to *node*. If it has led elsewhere, it keeps its number."""
        if name in self.entries:
            number, old = self.entries[name]
            self._left_by(old)
        else:
            number = next(self._numbers)
        self.entries[name] = (number, node)
        if isinstance(node, Directory):
            node.parent = self
            self.attr.st_nlink += 1
        self.modified()

    def remove(self, name: bytes) -> None:
        self._left_by(self.entries.pop(name)[1])
        self.modified()

    def _left_by(self, node: Node) -> None:
        if isinstance(node, Directory):
            self.attr.st_nlink -= 1


class Symlink(Node):
    """A symlink."""

    def __init__(self, attr: EntryAttributes, target: FileNameT) -> None:
        super().__init__(attr)
        self.target = target
        attr.st_size = len(target)


class Listing:
    """An open directory: the numbers and names of the entries that it had at its beginning."""

    def __init__(self, directory: Directory) -> None:
        self.directory = directory
        self.entries: list[tuple[int, bytes]] = []

    def rewind(self) -> None:
        numbered = self.directory.entries.items()
        self.entries = sorted((number, name) for name, (number, _) in numbered)
        self.entries[:0] = [(1, b"."), (2, b"..")]

    def after(self, number: int) -> Iterator[tuple[int, bytes, Node]]:
        """What is behind the entry *number*, and still there."""
        directory = self.directory
        start = bisect.bisect_left(self.entries, (number + 1, b""))
        for number, name in itertools.islice(self.entries, start, None):
            if number <= 2:
                yield number, name, directory if number == 1 else directory.parent
                continue
            found, node = directory.entries.get(name, (0, None))
            if node is not None and found == number:
                yield number, name, node


class Memory(fuse.Operations):
    """The filesystem."""

    enable_acl = True

    def __init__(self, size: int, *, writeback: bool = False) -> None:
        self.enable_writeback_cache = writeback
        self._space = Space(size // PAGE)
        root = EntryAttributes(st_mode=stat.S_IFDIR | 0o755, st_uid=os.getuid(), st_gid=os.getgid())
        root.st_ino = fuse.ROOT_INODE
        self._nodes: dict[int, Node] = {fuse.ROOT_INODE: Directory(root)}
        self._numbers = itertools.count(fuse.ROOT_INODE + 1)
        self._listings: dict[int, Listing] = {}
        self._handles = itertools.count()

    # What inodes there are.

    def _node(self, inode: int) -> Node:
        try:
            return self._nodes[inode]
        except KeyError:
            raise FUSEError(errno.ESTALE) from None

    def _file(self, inode: int) -> File:
        node = self._node(inode)
        if not isinstance(node, File):
            raise FUSEError(errno.EINVAL)
        return node

    def _directory(self, inode: int) -> Directory:
        node = self._node(inode)
        if not isinstance(node, Directory):
            raise FUSEError(errno.ENOTDIR)
        return node

    def _new(self, parent: Directory, mode: int, ctx: RequestContext) -> EntryAttributes:
        """What a new inode begins with; a set-group-ID directory hands down its group."""
        attr = EntryAttributes(st_ino=next(self._numbers), st_mode=mode, st_uid=ctx.uid)
        attr.st_gid = ctx.gid
        if parent.attr.st_mode & stat.S_ISGID:
            attr.st_gid = parent.attr.st_gid
            if stat.S_ISDIR(mode):
                attr.st_mode |= stat.S_ISGID
        return attr

    def _enter(self, parent: Directory, name: bytes, node: Node) -> EntryAttributes:
        if len(name) > NAME_MAX:
            raise FUSEError(errno.ENAMETOOLONG)
        if name in parent.entries:
            raise FUSEError(errno.EEXIST)
        if parent.attr.st_nlink == 0:
            raise FUSEError(errno.ENOENT)
        self._nodes[node.attr.st_ino] = node
        parent.put(name, node)
        return self._looked_up(node)

    def _make(self, parent: Directory, name: bytes, node: Node) -> EntryAttributes:
        """Enter what is new."""
        attr = self._enter(parent, name, node)
        self._inherit(parent, node)
        return attr

    def _inherit(self, parent: Directory, node: Node) -> None:
        mode = fuse.current_request().mode
        if mode is not None and ACL_DEFAULT in parent.xattrs:
            node.inherit(parent.xattrs[ACL_DEFAULT], mode)

    def _looked_up(self, node: Node) -> EntryAttributes:
        node.lookups += 1
        return node.attr

    def _unlinked(self, node: Node) -> None:
        """An entry that led to *node* is gone."""
        node.attr.st_nlink = 0 if isinstance(node, Directory) else node.attr.st_nlink - 1
        node.changed()
        self._remove_unused(node)

    def _remove_unused(self, node: Node) -> None:
        if node.lookups == 0 and node.attr.st_nlink == 0:
            del self._nodes[node.attr.st_ino]
            if isinstance(node, File):
                node.truncate(0)

    # Names.

    async def lookup(
        self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        if name == b".":
            return self._looked_up(self._node(parent_inode))
        parent = self._directory(parent_inode)
        if name == b"..":
            return self._looked_up(parent.parent)
        if len(name) > NAME_MAX:
            raise FUSEError(errno.ENAMETOOLONG)
        if name not in parent.entries:
            return EntryAttributes(st_ino=0)  # the kernel will remember that
        return self._looked_up(parent[name])

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        for inode, count in inode_list:
            node = self._nodes[inode]
            node.lookups -= count
            self._remove_unused(node)

    async def mknod(
        self,
        parent_inode: InodeT,
        name: FileNameT,
        mode: ModeT,
        rdev: int,
        ctx: RequestContext,
    ) -> EntryAttributes:
        parent = self._directory(parent_inode)
        attr = self._new(parent, mode, ctx)
        if stat.S_ISREG(mode):
            return self._make(parent, name, File(attr, self._space))
        attr.st_rdev = rdev
        return self._make(parent, name, Node(attr))

    async def mkdir(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, ctx: RequestContext
    ) -> EntryAttributes:
        parent = self._directory(parent_inode)
        mode = ModeT(stat.S_IFDIR | stat.S_IMODE(mode))
        return self._make(parent, name, Directory(self._new(parent, mode, ctx)))

    async def symlink(
        self, parent_inode: InodeT, name: FileNameT, target: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        parent = self._directory(parent_inode)
        attr = self._new(parent, stat.S_IFLNK | 0o777, ctx)
        return self._make(parent, name, Symlink(attr, target))

    async def readlink(self, inode: InodeT, ctx: RequestContext) -> FileNameT:
        node = self._node(inode)
        if not isinstance(node, Symlink):
            raise FUSEError(errno.EINVAL)
        node.accessed()
        return node.target

    async def link(
        self,
        inode: InodeT,
        new_parent_inode: InodeT,
        new_name: FileNameT,
        ctx: RequestContext,
    ) -> EntryAttributes:
        node = self._node(inode)
        attr = self._enter(self._directory(new_parent_inode), new_name, node)
        attr.st_nlink += 1
        node.changed()
        return attr

    async def unlink(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        parent = self._directory(parent_inode)
        node = parent[name]
        if isinstance(node, Directory):
            raise FUSEError(errno.EISDIR)
        parent.remove(name)
        self._unlinked(node)

    async def rmdir(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        parent = self._directory(parent_inode)
        node = parent[name]
        if not isinstance(node, Directory):
            raise FUSEError(errno.ENOTDIR)
        if node.entries:
            raise FUSEError(errno.ENOTEMPTY)
        parent.remove(name)
        self._unlinked(node)

    async def rename(
        self,
        parent_inode_old: InodeT,
        name_old: FileNameT,
        parent_inode_new: InodeT,
        name_new: FileNameT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> None:
        # That no directory becomes its own ancestor, the kernel has made sure of.
        source = self._directory(parent_inode_old)
        destination = self._directory(parent_inode_new)
        node = source[name_old]
        if flags not in (0, fuse.RENAME_NOREPLACE, fuse.RENAME_EXCHANGE):
            raise FUSEError(errno.EINVAL)
        if len(name_new) > NAME_MAX:
            raise FUSEError(errno.ENAMETOOLONG)
        if flags == fuse.RENAME_EXCHANGE:
            other = destination[name_new]
            source.put(name_old, other)
            destination.put(name_new, node)
            other.changed()
            node.changed()
            return
        replaced = destination.entries.get(name_new, (0, None))[1]
        if replaced is node:
            return
        if replaced is not None and flags == fuse.RENAME_NOREPLACE:
            raise FUSEError(errno.EEXIST)
        if isinstance(replaced, Directory) and replaced.entries:
            raise FUSEError(errno.ENOTEMPTY)
        source.remove(name_old)
        destination.put(name_new, node)
        node.changed()
        if replaced is not None:
            self._unlinked(replaced)

    # Attributes.

    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        return self._node(inode).attr

    async def statx(
        self,
        inode: InodeT,
        fh: FileHandleT | None,
        flags: FlagT,
        mask: int,
        ctx: RequestContext,
    ) -> EntryAttributes:
        return self._node(inode).attr

    async def setattr(
        self,
        inode: InodeT,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: FileHandleT | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        node = self._node(inode)
        own = node.attr
        now = time.time_ns()
        if fields.update_size:
            self._file(inode).truncate(attr.st_size)
        if fields.update_mode:
            node.set_mode(attr.st_mode)
        if fields.update_uid:
            own.st_uid = attr.st_uid
        if fields.update_gid:
            own.st_gid = attr.st_gid
        if fields.update_atime:
            own.st_atime_ns = now if fields.atime_now else attr.st_atime_ns
        if fields.update_mtime:
            own.st_mtime_ns = now if fields.mtime_now else attr.st_mtime_ns
        own.st_ctime_ns = attr.st_ctime_ns if fields.update_ctime else now
        return own

    async def statfs(self, ctx: RequestContext) -> fuse.StatvfsData:
        blocks, left = self._space.pages, self._space.left
        return fuse.StatvfsData(
            f_bsize=PAGE,
            f_frsize=PAGE,
            f_blocks=blocks,
            f_bfree=left,
            f_bavail=left,
            f_files=len(self._nodes) + left,
            f_ffree=left,
            f_favail=left,
            f_namemax=NAME_MAX,
        )

    # Extended attributes.

    async def getxattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> bytes:
        try:
            return self._node(inode).xattrs[name]
        except KeyError:
            raise FUSEError(fuse.ENOATTR) from None

    async def setxattr(
        self, inode: InodeT, name: XAttrNameT, value: bytes, ctx: RequestContext
    ) -> None:
        node = self._node(inode)
        if name == ACL_ACCESS:
            node.set_acl(Acl(value))
        elif name == ACL_DEFAULT or name.startswith((b"user.", b"trusted.", b"security.")):
            node.xattrs[name] = value
        else:
            raise FUSEError(errno.ENOTSUP)
        node.changed()

    async def listxattr(self, inode: InodeT, ctx: RequestContext) -> Sequence[XAttrNameT]:
        names = self._node(inode).xattrs
        return [XAttrNameT(n) for n in names if ctx.uid == 0 or not n.startswith(b"trusted.")]

    async def removexattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> None:
        node = self._node(inode)
        if node.xattrs.pop(name, None) is None and name not in (ACL_ACCESS, ACL_DEFAULT):
            raise FUSEError(fuse.ENOATTR)
        node.changed()

    # Files, whose inodes' numbers serve as their handles.

    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        # What the kernel reads from its cache does not come to be known here. So if the next
        # reading of the file is to change its access time, it has to ask.
        return FileInfo(fh=inode, keep_cache=not self._file(inode).is_access_due())

    async def create(
        self,
        parent_inode: InodeT,
        name: FileNameT,
        mode: ModeT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> tuple[FileInfo, EntryAttributes]:
        parent = self._directory(parent_inode)
        attr = self._make(parent, name, File(self._new(parent, mode, ctx), self._space))
        return FileInfo(fh=attr.st_ino), attr

    async def tmpfile(
        self, parent_inode: InodeT, mode: ModeT, flags: FlagT, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        parent = self._directory(parent_inode)
        file = File(self._new(parent, mode, ctx), self._space)
        file.attr.st_nlink = 0
        self._inherit(parent, file)
        self._nodes[file.attr.st_ino] = file
        return FileInfo(fh=file.attr.st_ino), self._looked_up(file)

    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        file = self._file(fh)
        file.accessed()
        size = min(size, file.attr.st_size - off)
        return file.content.read(off, size) if size > 0 else b""

    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        self._file(fh).write(off, buf)
        return len(buf)

    async def lseek(self, fh: FileHandleT, off: int, whence: int, ctx: RequestContext) -> int:
        file = self._file(fh)
        size = file.attr.st_size
        if off >= size:
            raise FUSEError(errno.ENXIO)
        if whence == os.SEEK_HOLE:
            return min(file.content.next_hole(off), size)
        found = file.content.next_data(off)
        if found is None or found >= size:
            raise FUSEError(errno.ENXIO)
        return found

    async def fallocate(
        self, fh: FileHandleT, mode: int, off: int, length: int, ctx: RequestContext
    ) -> None:
        file = self._file(fh)
        keep = mode & FALLOC_FL_KEEP_SIZE
        if mode & ~(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE):
            raise FUSEError(errno.EOPNOTSUPP)
        if mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE):
            file.content.discard(off, length)
        if not mode & FALLOC_FL_PUNCH_HOLE:
            file.content.allocate(off, length)
        file.resized(file.attr.st_size if keep else max(file.attr.st_size, off + length))

    async def copy_file_range(
        self,
        fh_in: FileHandleT,
        off_in: int,
        fh_out: FileHandleT,
        off_out: int,
        length: int,
        flags: int,
        ctx: RequestContext,
    ) -> int:
        # A copy may be shorter than was asked for: the caller goes on, and others get a turn.
        data = await self.read(fh_in, off_in, min(length, COPIED_AT_ONCE))
        if data:
            self._file(fh_out).write(off_out, data)
        return len(data)

    # Directories.

    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        fh = FileHandleT(next(self._handles))
        self._listings[fh] = Listing(self._directory(inode))
        return fh

    async def readdir(self, fh: FileHandleT, start_id: int, token: fuse.ReaddirToken) -> None:
        listing = self._listings[fh]
        listing.directory.accessed()
        if start_id == 0:
            listing.rewind()
        for number, name, node in listing.after(start_id):
            if not fuse.readdir_reply(token, FileNameT(name), node.attr, number):
                return
            if name not in (b".", b".."):
                node.lookups += 1

    async def releasedir(self, fh: FileHandleT) -> None:
        del self._listings[fh]


def main() -> None:
    parser = argparse.ArgumentParser(description="A filesystem that keeps everything in memory.")
    parser.add_argument("mountpoint")
    parser.add_argument(
        "-o", dest="options", metavar="OPTIONS", default="", help="mount options, as allow_other"
    )
    parser.add_argument("--size", type=int, help="in MiB, how much fits; half the memory if unset")
    parser.add_argument("--writeback", action="store_true", help="let the kernel gather writes")
    args = parser.parse_args()
    size = (args.size or memory() // 2) << 20
    # Of those that exclude each other, the last one counts.
    options = ["fsname=memory", *fuse.default_options, *filter(None, args.options.split(","))]
    try:
        fuse.init(Memory(size, writeback=args.writeback), args.mountpoint, options)
    except ValueError as error:
        parser.error(str(error))
    try:
        asyncio.run(fuse.main())
    finally:
        fuse.close()


def memory() -> int:
    """How much memory there is, in MiB."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20


if __name__ == "__main__":
    main()
