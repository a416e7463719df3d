# SPDX-License-Identifier: LGPL-3.0-or-later
"""The handlers that a filesystem may have, at the level of inodes."""

import errno
from collections.abc import Awaitable, Collection, Sequence
from typing import TYPE_CHECKING, NoReturn

from .datatypes import (
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
from .tracing import log_stacks

if TYPE_CHECKING:
    from .listing import ReaddirToken
    from .notifications import PollHandle


def _unimplemented() -> NoReturn:
    raise FUSEError(errno.ENOSYS)


class Operations:
    """A filesystem: derive from it, and define the handlers that yours has.

    Every handler is called on the event loop that serves, many at a time. It returns what the
    system call is to give, or raises :exc:`FUSEError` (an :exc:`OSError` with an errno does as
    well) with what it is to fail with. Anything else it raises is logged, and the call fails with
    EIO. What is not defined here by a subclass the kernel is told once; it then does without, where
    it can. :func:`current_request` tells a handler more about its request than it is given.

    Sizes and offsets are in bytes, times in nanoseconds since the epoch. A handler that returns the
    attributes of an entry has increased the lookup count of that inode by one: ``lookup``,
    ``create``, ``link``, ``mkdir``, ``mknod``, ``symlink``, ``tmpfile``, and ``readdir`` for each
    entry that :func:`readdir_reply` has taken, but for ``.`` and ``..``. ``forget`` takes it back.
    """

    supports_dot_lookup: bool = True
    """Whether ``.`` and ``..`` can be looked up, which a filesystem shared over NFS needs."""

    enable_writeback_cache: bool = True
    """Whether the kernel may gather what is written before it calls ``write``.

    It then also reads where a file is only open for writing, so ``open`` and ``create`` see
    O_RDWR for O_WRONLY, and it appends by itself, so they see no O_APPEND.
    """

    enable_acl: bool = False
    """Whether the kernel is to enforce POSIX ACLs, which it keeps as extended attributes.

    Implies ``default_permissions``. It is for the filesystem to keep a file's mode and its ACL in
    step, and to have new files inherit a directory's default ACL. That takes the place of the
    umask, so for what is made ``current_request().mode`` has the mode before the umask.
    """

    enable_passthrough: bool = False
    """Whether the kernel is to take the ``backing_fd`` of a :class:`FileInfo` that has one.

    What is read, written or mapped then comes to no handler. All who have an inode open share the
    backing file of the first; if that had none, neither have they. Excludes the writeback cache.
    Without CAP_SYS_ADMIN in the initial user namespace, or if the backing file is on a stacked
    filesystem such as overlayfs, the handlers serve as they would without it. Needs an ``open``
    handler. Linux 6.9.
    """

    enable_idmap: bool = False
    """Whether mounts of the filesystem may be idmapped.

    Implies ``default_permissions``. The kernel then tells no handler who asks, but for those that
    make something: the others get 0xFFFFFFFF as uid and gid. Linux 6.12.
    """

    interruptible: Collection[str] = frozenset(("setlk", "flock"))
    """The names of the handlers that are cancelled when who waits for them gets a signal.

    The caller then gets EINTR, and the handler must have left nothing half done; all others go on,
    and their own reply counts. ``setlk`` and ``flock`` are cancelled only where they wait for a
    lock.
    """

    # The session.

    def init(self) -> None:
        """Prepare: called once, just before the first request. Must not raise."""

    def destroy(self) -> Awaitable[None] | None:
        """Clean up: called exactly once when the session has ended, however it has; may be async.

        Inodes may have lookup counts still: the kernel does not forget them one by one at the end.
        """

    def stacktrace(self) -> None:
        """Help to find out why nothing goes on: ``setfattr -n fuse_stacktrace -v 1 MOUNTPOINT``.

        Logs where every thread of the process and every handler under way is. Must not raise.
        """
        log_stacks()

    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        """The state of the filesystem: :manpage:`statvfs(3)`.

        Where this is not defined, it has no blocks and no inodes, and names of 255 bytes.
        """
        _unimplemented()

    # Names.

    async def lookup(
        self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        """The attributes of the entry *name* of a directory.

        If there is none: raise ENOENT, or return attributes with an ``st_ino`` of 0 for the kernel
        to remember its absence for ``entry_timeout`` seconds. Must know ``.`` and ``..`` if
        ``supports_dot_lookup`` is set. Adds one to the inode's lookup count.
        """
        _unimplemented()

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        """Take back lookups, for each inode so many. Must not raise.

        At a count of 0 the kernel does not know the inode any more; if no entry of a directory
        leads to it either, it is to be removed now.
        """

    async def mknod(
        self,
        parent_inode: InodeT,
        name: FileNameT,
        mode: ModeT,
        rdev: int,
        ctx: RequestContext,
    ) -> EntryAttributes:
        """Make a file of the type that *mode* says; *rdev* is a device's number.

        Adds one to the inode's lookup count. :manpage:`mknod(2)`.
        """
        _unimplemented()

    async def mkdir(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, ctx: RequestContext
    ) -> EntryAttributes:
        """Make a directory; *mode* says that it is one. :manpage:`mkdir(2)`.

        Adds one to the inode's lookup count.
        """
        _unimplemented()

    async def unlink(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        """Remove an entry that is no directory. :manpage:`unlink(2)`.

        While the inode has a lookup count or other entries, only the entry goes; the inode itself
        is then for ``forget`` to remove.
        """
        _unimplemented()

    async def rmdir(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        """Remove a directory, ENOTEMPTY if it has entries. :manpage:`rmdir(2)`.

        While the inode has a lookup count, only the entry goes; ``forget`` removes the inode.
        """
        _unimplemented()

    async def symlink(
        self, parent_inode: InodeT, name: FileNameT, target: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        """Make a symlink to *target*. Adds one to the inode's lookup count."""
        _unimplemented()

    async def readlink(self, inode: InodeT, ctx: RequestContext) -> FileNameT:
        """The target of a symlink, of 4095 bytes at most."""
        _unimplemented()

    async def rename(
        self,
        parent_inode_old: InodeT,
        name_old: FileNameT,
        parent_inode_new: InodeT,
        name_new: FileNameT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> None:
        """Rename an entry, replacing *name_new* if that exists. :manpage:`rename(2)`.

        *flags*: ``RENAME_NOREPLACE`` (EEXIST if it does) or ``RENAME_EXCHANGE`` (both must exist
        and change places, atomically). What was replaced goes as with ``unlink`` and ``rmdir``.
        """
        _unimplemented()

    async def link(
        self,
        inode: InodeT,
        new_parent_inode: InodeT,
        new_name: FileNameT,
        ctx: RequestContext,
    ) -> EntryAttributes:
        """Make another entry for *inode*. Adds one to its lookup count. :manpage:`link(2)`."""
        _unimplemented()

    # Attributes.

    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        """The attributes of an inode; ``entry_timeout`` is ignored. :manpage:`stat(2)`."""
        _unimplemented()

    async def setattr(
        self,
        inode: InodeT,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: FileHandleT | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        """Set those attributes that *fields* names to what *attr* has; the result has all of them.

        *fh* is the open file where the caller has named one, as with :manpage:`ftruncate(2)`.
        """
        _unimplemented()

    async def statx(
        self,
        inode: InodeT,
        fh: FileHandleT | None,
        flags: FlagT,
        mask: int,
        ctx: RequestContext,
    ) -> EntryAttributes:
        """As ``getattr``, and ``st_birthtime_ns`` reaches the caller. :manpage:`statx(2)`.

        *mask*: ``STATX_*``, what the caller wants; *flags*: ``AT_STATX_*``. Linux 6.6.
        """
        _unimplemented()

    async def access(self, inode: InodeT, mode: ModeT, ctx: RequestContext) -> bool:
        """Whether the caller may do what *mode* (``os.R_OK``...) says. :manpage:`access(2)`.

        Not called with the option ``default_permissions``.
        """
        _unimplemented()

    async def getxattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> bytes:
        """The value of an extended attribute; ENOATTR if there is none."""
        _unimplemented()

    async def setxattr(
        self, inode: InodeT, name: XAttrNameT, value: bytes, ctx: RequestContext
    ) -> None:
        """Set an extended attribute, whether or not there is one.

        That there must or must not be one has been checked. ``current_request().flags`` has
        ``XATTR_CREATE`` and ``XATTR_REPLACE``, for who wants that atomically.
        """
        _unimplemented()

    async def listxattr(self, inode: InodeT, ctx: RequestContext) -> Sequence[XAttrNameT]:
        """The names of an inode's extended attributes."""
        _unimplemented()

    async def removexattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> None:
        """Remove an extended attribute; ENOATTR if there is none."""
        _unimplemented()

    # Files.

    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        """Open a file; *flags* are those of :manpage:`open(2)` without what creates or truncates.

        Where this is not defined, files are opened without a request and have the handle 0.
        """
        _unimplemented()

    async def create(
        self,
        parent_inode: InodeT,
        name: FileNameT,
        mode: ModeT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> tuple[FileInfo, EntryAttributes]:
        """Make a regular file and open it. Adds one to the inode's lookup count.

        Where this is not defined, ``mknod`` and ``open`` are called.
        """
        _unimplemented()

    async def tmpfile(
        self, parent_inode: InodeT, mode: ModeT, flags: FlagT, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        """Make a regular file without a name and open it. Adds one to the inode's lookup count.

        ``link`` may give it a name. O_TMPFILE of :manpage:`open(2)`; Linux 6.1.
        """
        _unimplemented()

    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        """What the file has from *off* on, *size* bytes unless it ends before.

        Any buffer will do as a result, and is sent without being copied.
        """
        _unimplemented()

    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        """Write at *off*; how many bytes. All must be written, but for files with ``direct_io``."""
        _unimplemented()

    async def flush(self, fh: FileHandleT) -> None:
        """A descriptor of the file was closed, of possibly several; errors reach its close.

        The file's POSIX locks of ``current_request().lock_owner`` end here.
        """
        _unimplemented()

    async def release(self, fh: FileHandleT) -> None:
        """The last descriptor and the last mapping of the file are gone; errors reach nobody.

        What the kernel has not sent when others unmount the filesystem, it never sends. Without an
        ``open`` handler there are no releases, not even of what ``create`` has opened.
        """
        _unimplemented()

    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        """Put the file on stable storage, with *datasync* just its data. :manpage:`fsync(2)`."""
        _unimplemented()

    async def lseek(self, fh: FileHandleT, off: int, whence: int, ctx: RequestContext) -> int:
        """The offset of the next data or hole at or after *off*, ENXIO behind the end.

        *whence*: ``os.SEEK_DATA`` or ``os.SEEK_HOLE``. Where this is not defined, files have no
        holes but at their end. Not called with the writeback cache, since the kernel asks without
        having written what it has gathered.
        """
        _unimplemented()

    async def fallocate(
        self, fh: FileHandleT, mode: int, off: int, length: int, ctx: RequestContext
    ) -> None:
        """Allocate, punch or zero a range; *mode*: ``FALLOC_FL_*``. :manpage:`fallocate(2)`."""
        _unimplemented()

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
        """Copy from one open file to another; how many bytes. :manpage:`copy_file_range(2)`.

        Where this is not defined, the caller's data is read and written.
        """
        _unimplemented()

    async def bmap(self, inode: InodeT, blocksize: int, index: int, ctx: RequestContext) -> int:
        """The number of the device's block that has the block *index*, of *blocksize* bytes."""
        _unimplemented()

    async def ioctl(
        self,
        fh: FileHandleT,
        command: int,
        argument: int,
        data: bytes,
        out_size: int,
        ctx: RequestContext,
    ) -> bytes | tuple[int, bytes]:
        """A :manpage:`ioctl(2)` whose *command* encodes the size of what it takes and gives.

        *argument* is the address that the caller gave, *data* what is there, if the command takes
        any. Returns what is to be put there, of *out_size* bytes at most, and before it the result
        if that is not 0. ``current_request().flags`` has ``IOCTL_DIR`` for a directory.
        """
        _unimplemented()

    async def poll(
        self, fh: FileHandleT, poll_handle: "PollHandle | None", ctx: RequestContext
    ) -> int:
        """What the file is ready for, ``select.POLLIN`` and so on. :manpage:`poll(2)`.

        If there is a *poll_handle*, the caller is about to sleep: its ``notify()`` is to be called
        once when something changes. Only the latest handle of a file needs to be notified. A
        ``poll(inode, fh, poll_handle, ctx)`` is given the inode as well.
        """
        _unimplemented()

    # Locks.

    async def getlk(
        self, fh: FileHandleT, owner: int, lock: FileLock, ctx: RequestContext
    ) -> FileLock:
        """A lock that another owner has in the way of *lock*; else one with the type F_UNLCK.

        ``getlk`` and ``setlk`` go together; where they are not defined, the kernel keeps the locks.
        """
        _unimplemented()

    async def setlk(
        self,
        fh: FileHandleT,
        owner: int,
        lock: FileLock,
        sleep: bool,
        ctx: RequestContext,
    ) -> None:
        """Take a lock, or release it (F_UNLCK). :manpage:`fcntl_locking(2)`.

        If another owner's is in the way: EAGAIN, or with *sleep* wait; this handler is cancelled if
        the caller gets a signal.
        """
        _unimplemented()

    async def flock(self, fh: FileHandleT, owner: int, operation: int, ctx: RequestContext) -> None:
        """Take a lock on the whole file, or release it. :manpage:`flock(2)`.

        *operation*: ``fcntl.LOCK_SH``, ``LOCK_EX`` or ``LOCK_UN``, with ``LOCK_NB`` if not to wait
        (EWOULDBLOCK); this handler, too, is cancelled if the caller gets a signal. The locks of an
        owner that are left end with ``release``.
        """
        _unimplemented()

    # Directories.

    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        """Open a directory. Where this is not defined, it has the handle 0."""
        _unimplemented()

    async def readdir(self, fh: FileHandleT, start_id: int, token: "ReaddirToken") -> None:
        """Pass the entries of a directory to :func:`readdir_reply` until that returns False.

        *start_id* is 0, or the ``next_id`` that came with the last entry that was taken. Entries
        that come or go meanwhile may be missed, but must not move others. ``.`` and ``..`` may be
        left out.
        """
        _unimplemented()

    async def readdirplus(self, fh: FileHandleT, start_id: int, token: "ReaddirToken") -> None:
        """As ``readdir``, which it is unless a filesystem defines it otherwise.

        The kernel keeps the attributes of the entries.
        """
        await self.readdir(fh, start_id, token)

    async def releasedir(self, fh: FileHandleT) -> None:
        """The last descriptor of a directory is gone: once for each ``opendir``."""
        _unimplemented()

    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        """Put a directory on stable storage, with *datasync* just its entries."""
        _unimplemented()
