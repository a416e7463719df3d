#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-3.0-or-later
"""A filesystem that shows a directory at another place, with everything that is below it.

Usage: passthrough.py SOURCE MOUNTPOINT. Ctrl-C or umount end it.

For each inode that the kernel knows there is a descriptor, opened with O_PATH: no path is ever
looked up again, so whoever renames directories or puts symlinks in their places, in the source,
leads nobody astray. If there are too many, the kernel is asked to forget some. As root, what is
made belongs to who makes it.

The system calls are made on the event loop, since a local filesystem answers most of them sooner
than a thread would; those that may take their time go to threads.
"""

import argparse
import asyncio
import contextlib
import ctypes
import errno
import itertools
import os
import resource
import stat
from collections.abc import Iterator, Sequence

import anyio

from truenas_os import blocking, fuse
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

COPIED_AT_ONCE = 64 << 20
# What of the flags of open(2) is for the file in the source as well. Where appended data goes is
# the kernel's to say: what it writes back from memory must not go to the end.
OPEN_FLAGS = os.O_ACCMODE | os.O_SYNC | os.O_DSYNC | os.O_NOATIME
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP = 28, 1 << 2

# What the os module lacks.
libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class Timespec(ctypes.Structure):
    _fields_ = (("sec", ctypes.c_long), ("nsec", ctypes.c_long))


def check(ret: int) -> None:
    if ret < 0:
        raise FUSEError(ctypes.get_errno())


class Node:
    """An inode that the kernel knows."""

    __slots__ = ("fd", "inode", "key", "lookups", "path")

    def __init__(self, inode: InodeT, fd: int, key: tuple[int, int]) -> None:
        self.inode = inode
        self.fd = fd
        self.key = key
        # For calls that take no descriptor of this kind. It leads to the inode, even to a symlink.
        self.path = f"/proc/self/fd/{fd}"
        self.lookups = 0


class Passthrough(fuse.Operations):
    """The filesystem."""

    # An inode that was forgotten cannot be found again by its number.
    supports_dot_lookup = False
    # The source may change by itself.
    enable_writeback_cache = False
    # The source keeps them; the kernel has to ask for them to heed them.
    enable_acl = True

    def __init__(self, source: str, timeout: float, passthrough: bool = True) -> None:
        # Where the process may, the kernel reads and writes the files in the source by itself.
        self.enable_passthrough = passthrough
        self._timeout = timeout
        self._numbers = itertools.count(1 << 63)
        fd = os.open(source, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        status = os.stat(fd)
        self._device = status.st_dev
        root = Node(fuse.ROOT_INODE, fd, (status.st_dev, status.st_ino))
        root.lookups = 1
        self._nodes: dict[int, Node] = {fuse.ROOT_INODE: root}
        self._by_key = {root.key: root}
        self._listings: dict[int, list[str]] = {}
        # How many inodes the kernel may know; the other descriptors are for open files.
        self._most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2
        self._added = 0

    # What inodes there are.

    def _node(self, inode: int) -> Node:
        try:
            return self._nodes[inode]
        except KeyError:
            raise FUSEError(errno.ESTALE) from None

    def _known_by(self, fd: int) -> Node:
        """The node of the inode that *fd*, which was opened with O_PATH, is for; it takes *fd*."""
        status = os.stat(fd)
        key = (status.st_dev, status.st_ino)
        node = self._by_key.get(key)
        if node is not None:
            os.close(fd)
            return node
        # An inode keeps its number, if no other filesystem can have the same.
        is_unique = status.st_dev == self._device and fuse.ROOT_INODE < status.st_ino < 1 << 63
        number = status.st_ino if is_unique else next(self._numbers)
        node = Node(InodeT(number), fd, key)
        self._nodes[number] = self._by_key[key] = node
        self._added += 1
        if len(self._nodes) > self._most and self._added >= self._most // 16:
            self._make_room()
        return node

    def _make_room(self) -> None:
        """Have the kernel forget what it has known longest, unless it is in use."""
        self._added = 0
        oldest = list(itertools.islice(self._nodes.values(), self._most // 8))
        for node in oldest:
            self._nodes[node.inode] = self._nodes.pop(node.inode)
        fuse.prune([node.inode for node in oldest])

    async def _wait_for_room(self) -> None:
        """Let the kernel keep pace: it forgets in its own time."""
        if len(self._nodes) > self._most * 3 // 2:
            with anyio.move_on_after(1):
                while len(self._nodes) > self._most:
                    await anyio.sleep(0.001)

    def _found(self, parent: Node, name: FileNameT) -> tuple[Node, os.stat_result]:
        status = os.stat(name, dir_fd=parent.fd, follow_symlinks=False)
        node = self._by_key.get((status.st_dev, status.st_ino))
        if node is None:
            flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
            node = self._known_by(os.open(name, flags, dir_fd=parent.fd))
            status = os.stat(node.fd)
        return node, status

    def _looked_up(self, parent: Node, name: FileNameT) -> EntryAttributes:
        node, status = self._found(parent, name)
        node.lookups += 1
        return self._attributes(node.inode, status)

    def _opened(self, fd: int) -> tuple[FileInfo, EntryAttributes]:
        """The result for a file that was made, and is open as *fd*."""
        try:
            node = self._known_by(os.open(f"/proc/self/fd/{fd}", os.O_PATH | os.O_CLOEXEC))
        except BaseException:
            os.close(fd)
            raise
        node.lookups += 1
        return self._file(fd), self._attributes(node.inode, os.stat(fd))

    def _attributes(self, inode: int, status: os.stat_result) -> EntryAttributes:
        # Writing to a backing file takes these bits away, of which the kernel tells nobody.
        is_special = status.st_mode & (stat.S_ISUID | stat.S_ISGID)
        return EntryAttributes(
            st_ino=inode,
            entry_timeout=self._timeout,
            attr_timeout=0 if is_special else self._timeout,
            st_mode=status.st_mode,
            st_nlink=status.st_nlink,
            st_uid=status.st_uid,
            st_gid=status.st_gid,
            st_rdev=status.st_rdev,
            st_size=status.st_size,
            st_blksize=status.st_blksize,
            st_blocks=status.st_blocks,
            st_atime_ns=status.st_atime_ns,
            st_ctime_ns=status.st_ctime_ns,
            st_mtime_ns=status.st_mtime_ns,
        )

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        for inode, count in inode_list:
            node = self._nodes[inode]
            node.lookups -= count
            self._close_unused(node)

    def _close_unused(self, node: Node) -> None:
        if node.lookups == 0:
            del self._nodes[node.inode], self._by_key[node.key]
            os.close(node.fd)

    async def destroy(self) -> None:
        for node in self._nodes.values():
            os.close(node.fd)
        self._nodes.clear()

    # Names.

    async def lookup(
        self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        await self._wait_for_room()
        return self._looked_up(self._node(parent_inode), name)

    async def mknod(
        self,
        parent_inode: InodeT,
        name: FileNameT,
        mode: ModeT,
        rdev: int,
        ctx: RequestContext,
    ) -> EntryAttributes:
        parent = self._node(parent_inode)
        with acting_for(ctx):
            os.mknod(name, unmasked_mode(), rdev, dir_fd=parent.fd)
        return self._looked_up(parent, name)

    async def mkdir(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, ctx: RequestContext
    ) -> EntryAttributes:
        parent = self._node(parent_inode)
        with acting_for(ctx):
            os.mkdir(name, unmasked_mode(), dir_fd=parent.fd)
        return self._looked_up(parent, name)

    async def symlink(
        self, parent_inode: InodeT, name: FileNameT, target: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        parent = self._node(parent_inode)
        with acting_for(ctx):
            os.symlink(target, name, dir_fd=parent.fd)
        return self._looked_up(parent, name)

    async def readlink(self, inode: InodeT, ctx: RequestContext) -> FileNameT:
        return FileNameT(os.readlink(b"", dir_fd=self._node(inode).fd))

    async def link(
        self,
        inode: InodeT,
        new_parent_inode: InodeT,
        new_name: FileNameT,
        ctx: RequestContext,
    ) -> EntryAttributes:
        parent = self._node(new_parent_inode)
        os.link(self._node(inode).path, new_name, dst_dir_fd=parent.fd, follow_symlinks=True)
        return self._looked_up(parent, new_name)

    async def unlink(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        os.unlink(name, dir_fd=self._node(parent_inode).fd)

    async def rmdir(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        os.rmdir(name, dir_fd=self._node(parent_inode).fd)

    async def rename(
        self,
        parent_inode_old: InodeT,
        name_old: FileNameT,
        parent_inode_new: InodeT,
        name_new: FileNameT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> None:
        source, destination = self._node(parent_inode_old).fd, self._node(parent_inode_new).fd
        blocking.renameat2(source, name_old, destination, name_new, flags)

    # Attributes.

    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        return self._attributes(inode, os.stat(self._node(inode).fd))

    async def statx(
        self,
        inode: InodeT,
        fh: FileHandleT | None,
        flags: FlagT,
        mask: int,
        ctx: RequestContext,
    ) -> EntryAttributes:
        node = self._node(inode)
        attr = self._attributes(inode, os.stat(node.fd))
        found = blocking.statx(
            node.fd, "", blocking.flags.AT_EMPTY_PATH | flags, blocking.flags.STATX_BTIME
        )
        attr.st_birthtime_ns = found.stx_btime_ns
        return attr

    async def setattr(
        self,
        inode: InodeT,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: FileHandleT | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        node = self._node(inode)
        if fields.update_size and fh is not None:
            os.ftruncate(fh, attr.st_size)
        elif fields.update_size:
            # Through a descriptor, since open(2) with O_TRUNC, which this may come from, counts as
            # a change even of a file that is empty.
            fd = os.open(node.path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.ftruncate(fd, attr.st_size)
            finally:
                os.close(fd)
        # A change of the owner takes bits away from the mode: it comes before that.
        if fields.update_uid or fields.update_gid or not any(fields):
            uid = attr.st_uid if fields.update_uid else -1
            gid = attr.st_gid if fields.update_gid else -1
            os.chown(node.path, uid, gid)
        if fields.update_mode:
            os.chmod(node.path, stat.S_IMODE(attr.st_mode))
        if fields.update_atime or fields.update_mtime:
            times = (Timespec * 2)(
                timespec(attr.st_atime_ns, fields.update_atime, fields.atime_now),
                timespec(attr.st_mtime_ns, fields.update_mtime, fields.mtime_now),
            )
            check(libc.utimensat(-1, node.path.encode(), times, 0))
        return await self.getattr(inode, ctx)

    async def statfs(self, ctx: RequestContext) -> fuse.StatvfsData:
        # There may be other filesystems below the source.
        found = os.statvfs(self._node(fuse.current_request().nodeid).fd)
        return fuse.StatvfsData(
            f_bsize=found.f_bsize,
            f_frsize=found.f_frsize,
            f_blocks=found.f_blocks,
            f_bfree=found.f_bfree,
            f_bavail=found.f_bavail,
            f_files=found.f_files,
            f_ffree=found.f_ffree,
            f_favail=found.f_favail,
            f_namemax=found.f_namemax,
        )

    # Extended attributes.

    async def getxattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> bytes:
        try:
            return os.getxattr(self._node(inode).path, name)
        except OSError as error:
            if error.errno == errno.ENOTSUP and name.startswith(b"system.posix_acl_"):
                raise FUSEError(fuse.ENOATTR) from None  # or the kernel denies access
            raise

    async def setxattr(
        self, inode: InodeT, name: XAttrNameT, value: bytes, ctx: RequestContext
    ) -> None:
        flags = fuse.current_request().flags or 0
        os.setxattr(self._node(inode).path, name, value, flags)

    async def listxattr(self, inode: InodeT, ctx: RequestContext) -> Sequence[XAttrNameT]:
        names = map(os.fsencode, os.listxattr(self._node(inode).path))
        return [XAttrNameT(n) for n in names if ctx.uid == 0 or not n.startswith(b"trusted.")]

    async def removexattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> None:
        os.removexattr(self._node(inode).path, name)

    # Files, whose descriptors are their handles.

    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        fd = os.open(self._node(inode).path, flags & OPEN_FLAGS | os.O_CLOEXEC)
        return self._file(fd)

    def _file(self, fd: int) -> FileInfo:
        # Who may write without losing these bits, the kernel tells only to handlers.
        is_special = os.stat(fd).st_mode & (stat.S_ISUID | stat.S_ISGID)
        return FileInfo(fh=fd, keep_cache=False, backing_fd=None if is_special else fd)

    async def create(
        self,
        parent_inode: InodeT,
        name: FileNameT,
        mode: ModeT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> tuple[FileInfo, EntryAttributes]:
        ours = flags & OPEN_FLAGS | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            with acting_for(ctx):
                fd = os.open(name, ours, unmasked_mode(), dir_fd=self._node(parent_inode).fd)
        except FileExistsError:
            if flags & os.O_EXCL:
                raise
            # It has appeared in the source just now. The kernel looks again, and checks whether
            # the caller may open it.
            raise FUSEError(errno.ESTALE) from None
        return self._opened(fd)

    async def tmpfile(
        self, parent_inode: InodeT, mode: ModeT, flags: FlagT, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        ours = flags & (OPEN_FLAGS | os.O_EXCL) | os.O_TMPFILE | os.O_CLOEXEC
        with acting_for(ctx):
            fd = os.open(self._node(parent_inode).path, ours, unmasked_mode())
        return self._opened(fd)

    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        return os.pread(fh, size, off)

    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        return os.pwrite(fh, buf, off)

    async def flush(self, fh: FileHandleT) -> None:
        os.close(os.dup(fh))  # a filesystem may have errors to tell at a close

    async def release(self, fh: FileHandleT) -> None:
        os.close(fh)

    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        await anyio.to_thread.run_sync(os.fdatasync if datasync else os.fsync, fh)

    async def lseek(self, fh: FileHandleT, off: int, whence: int, ctx: RequestContext) -> int:
        return os.lseek(fh, off, whence)

    async def fallocate(
        self, fh: FileHandleT, mode: int, off: int, length: int, ctx: RequestContext
    ) -> None:
        def fallocate() -> None:
            check(libc.fallocate(fh, mode, off, length))

        await anyio.to_thread.run_sync(fallocate)

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
        length = min(length, COPIED_AT_ONCE)
        copy = os.copy_file_range
        return await anyio.to_thread.run_sync(copy, fh_in, fh_out, length, off_in, off_out)

    # Directories. What is listed is what there was at the beginning, so that the place of an entry
    # does not depend on what is removed meanwhile.

    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        fd = os.open(self._node(inode).path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return FileHandleT(fd)

    async def readdir(self, fh: FileHandleT, start_id: int, token: fuse.ReaddirToken) -> None:
        await self._wait_for_room()
        if start_id == 0 or fh not in self._listings:
            self._listings[fh] = [".", "..", *os.listdir(fh)]
        directory = self._node(fuse.current_request().nodeid)
        names = itertools.islice(self._listings[fh], start_id, None)
        for next_id, name in enumerate(map(os.fsencode, names), start_id + 1):
            with contextlib.suppress(FileNotFoundError):  # it may have been removed meanwhile
                if not self._listed(directory, FileNameT(name), next_id, token):
                    return

    def _listed(
        self, directory: Node, name: FileNameT, next_id: int, token: fuse.ReaddirToken
    ) -> bool:
        if name in (b".", b".."):
            inode = directory.inode if name == b"." else self._parent(directory)
            attr = EntryAttributes(st_ino=inode, st_mode=stat.S_IFDIR)
            return fuse.readdir_reply(token, name, attr, next_id)
        node, status = self._found(directory, name)
        if fuse.readdir_reply(token, name, self._attributes(node.inode, status), next_id):
            node.lookups += 1
            return True
        self._close_unused(node)
        return False

    def _parent(self, directory: Node) -> int:
        """The number of a directory's parent; what is above the source is nobody's business."""
        if directory.inode == fuse.ROOT_INODE:
            return fuse.ROOT_INODE
        status = os.stat(b"..", dir_fd=directory.fd)
        node = self._by_key.get((status.st_dev, status.st_ino))
        return status.st_ino if node is None else node.inode

    async def releasedir(self, fh: FileHandleT) -> None:
        self._listings.pop(fh, None)
        os.close(fh)

    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        await self.fsync(fh, datasync)


@contextlib.contextmanager
def acting_for(ctx: RequestContext) -> Iterator[None]:
    """Make what is to belong to the caller, under the caller's umask.

    The ids are those of this thread alone. That the caller may do it, the kernel has checked.
    """
    os.umask(ctx.umask)
    uid, gid = os.geteuid(), os.getegid()
    if (ctx.uid, ctx.gid) == (uid, gid):
        yield
        return
    try:
        libc.setfsgid(ctx.gid)
        libc.setfsuid(ctx.uid)
        # They tell of no error, only what the id was before, and -1 is none.
        if (libc.setfsuid(-1), libc.setfsgid(-1)) != (ctx.uid, ctx.gid):
            raise FUSEError(errno.EPERM)
        yield
    finally:
        libc.setfsuid(uid)
        libc.setfsgid(gid)


def unmasked_mode() -> int:
    """The mode that the caller has asked for: a default ACL may take the place of the umask."""
    mode = fuse.current_request().mode
    assert mode is not None
    return mode


def timespec(time: int, is_set: bool, is_now: bool) -> Timespec:
    if not is_set:
        return Timespec(0, UTIME_OMIT)
    return Timespec(0, UTIME_NOW) if is_now else Timespec(*divmod(time, 10**9))


def arguments_of(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("source")
    parser.add_argument("mountpoint")
    parser.add_argument(
        "-o", dest="options", metavar="OPTIONS", default="", help="mount options, as allow_other"
    )
    return parser


def prepare() -> None:
    """Have the process be able to do what a filesystem of this kind does, before there is one."""
    # The more descriptors, the more inodes the kernel can know.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # Keep the capabilities of root, such as to make files in any directory, when acting for others.
    libc.prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP, 0, 0, 0)


def serve(
    filesystem: Passthrough,
    parser: argparse.ArgumentParser,
    args: argparse.Namespace,
    max_tasks: int = 99,
) -> None:
    # Of those that exclude each other, the last one counts.
    options = [f"fsname={args.source}", *fuse.default_options]
    options += filter(None, args.options.split(","))
    try:
        fuse.init(filesystem, args.mountpoint, options)
    except ValueError as error:
        parser.error(str(error))
    try:
        asyncio.run(fuse.main(max_tasks=max_tasks))
    finally:
        fuse.close()


def main() -> None:
    parser = arguments_of("A directory, shown at another place.")
    parser.add_argument(
        "--timeout",
        type=float,
        default=1,
        help="seconds after which changes of the source itself are seen at the latest (default: 1)",
    )
    parser.add_argument(
        "--no-passthrough",
        dest="passthrough",
        action="store_false",
        help="have every read and write come to this process",
    )
    args = parser.parse_args()
    prepare()
    serve(Passthrough(args.source, args.timeout, args.passthrough), parser, args)


if __name__ == "__main__":
    main()
