# SPDX-License-Identifier: LGPL-3.0-or-later
"""From a request to a call of the filesystem's handler, and from its result to a reply.

There is no I/O here. A function of :class:`Handlers` serves one operation code; it returns what
follows the reply's header, None if nothing does.
"""

import errno
import fcntl
import inspect
import logging
import os
import stat
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

import anyio

from . import protocol, wire
from .backing import Backing
from .datatypes import (
    ENOATTR,
    EntryAttributes,
    FileInfo,
    FileLock,
    FileNameT,
    FlagT,
    FUSEError,
    RequestContext,
    SetattrFields,
    StatvfsData,
    XAttrNameT,
)
from .listing import ReaddirToken
from .negotiation import INTERRUPTIBLE, NEEDED, Features, implemented
from .operations import Operations
from .privileges import left_mode, take_away, without_privileges, without_setgid
from .protocol import Request
from .wire import InitFlag, Opcode

if TYPE_CHECKING:
    from .notifications import PollHandle

_log = logging.getLogger("truenas_os.fuse")

Reply: TypeAlias = bytes | bytearray | memoryview
Handler: TypeAlias = Callable[[Request], Coroutine[Any, Any, Reply | None]]
T = TypeVar("T")

_STACKTRACE: Final = b"fuse_stacktrace"
_TIME: Final = 1_000_000_000
# A reply to COPY_FILE_RANGE tells of so many bytes; whole pages of them.
_MOST_COPIED: Final = (1 << 32) - wire.PAGE
# What a change of attributes has if it takes the setuid and setgid bits away.
_PRIVILEGED: Final = wire.FATTR_UID | wire.FATTR_GID | wire.FATTR_KILL_SUIDGID


class Handlers:
    """The filesystem's handlers by operation code."""

    def __init__(
        self,
        operations: Operations,
        poll_handle: "Callable[[int], PollHandle]",
        root_mode: int = stat.S_IFDIR,
    ) -> None:
        self._fs = operations
        self._poll_handle = poll_handle
        self._writeback = False
        self._setxattr_ext = False
        self._takes_privileges = False
        # The types of inodes, as the bits of a mode above 12, until they are forgotten.
        self._kinds: dict[int, int] = {wire.FUSE_ROOT_ID: root_mode >> 12}
        self._backing: Backing | None = None
        self.table: dict[int, Handler] = {
            opcode: getattr(self, f"_{opcode.name.lower()}")
            for opcode, needed in NEEDED.items()
            if implemented(operations, needed)
        }
        self.table[Opcode.FORGET] = self._forget
        self.table[Opcode.BATCH_FORGET] = self._batch_forget
        # Served in any case, since setting fuse_stacktrace is.
        self.table[Opcode.SETXATTR] = self._setxattr
        self.table[Opcode.STATFS] = self._statfs
        if implemented(operations, "readdir") or implemented(operations, "readdirplus"):
            self.table[Opcode.READDIRPLUS] = self._readdirplus
        if implemented(operations, "setlk") or implemented(operations, "flock"):
            self.table[Opcode.SETLK] = self.table[Opcode.SETLKW] = self._setlk
        if Opcode.POLL in self.table:
            self._poll_file = _taking_inode(operations.poll)
        for opcode, name in INTERRUPTIBLE.items():
            if opcode in self.table and name in operations.interruptible:
                self.table[opcode] = _interruptible(self.table[opcode])

    def agree(self, features: Features, backing: Backing) -> None:
        """Take note of what has been negotiated."""
        if features.flags & InitFlag.PASSTHROUGH:
            self._backing = backing
            self.table[Opcode.RELEASE] = self._release
        self._writeback = bool(features.flags & InitFlag.WRITEBACK_CACHE)
        self._setxattr_ext = bool(features.flags & InitFlag.SETXATTR_EXT)
        self._takes_privileges = bool(features.flags & InitFlag.HANDLE_KILLPRIV_V2)
        if self._writeback:
            # What the kernel has not written yet would be taken for a hole.
            self.table.pop(Opcode.LSEEK, None)

    # Names.

    async def _lookup(self, request: Request) -> Reply:
        name = request.name()
        ctx = _context(request)
        attr = await self._fs.lookup(request.nodeid, name, ctx)
        if attr.st_ino:
            request.granted = ((attr.st_ino, 1),)
            if attr.st_ino == wire.FUSE_ROOT_ID:
                if name not in (b".", b".."):
                    raise ValueError(f"the entry {name!r} has the inode of the root")
                self._check_kind(attr.st_ino, attr)
            self._kinds[attr.st_ino] = attr.st_mode >> 12
        return protocol.entry(attr)

    async def _forget(self, request: Request) -> None:
        await self.forget(((request.nodeid, request.read(wire.FORGET_IN)[0]),))

    async def _batch_forget(self, request: Request) -> None:
        count = request.pop(wire.BATCH_FORGET_IN)[0]
        size = wire.FORGET_ONE.size
        await self.forget(list(wire.FORGET_ONE.iter_unpack(request.take(count * size))))

    async def forget(self, inode_list: Sequence[tuple[Any, int]]) -> None:
        """Have the filesystem forget lookups; what it raises is only logged."""
        for inode, _ in inode_list:
            if inode != wire.FUSE_ROOT_ID:
                self._kinds.pop(inode, None)
        try:
            await self._fs.forget(inode_list)
        except Exception:
            _log.exception("forget has raised an exception, which it must not")

    async def _mknod(self, request: Request) -> Reply:
        mode, rdev, umask = request.pop(wire.MKNOD_IN)
        ctx = _context(request, umask)
        attr = await self._fs.mknod(request.nodeid, request.name(), mode & ~umask, rdev, ctx)
        return self._made(request, attr, stat.S_IFMT(mode) or stat.S_IFREG)

    async def _mkdir(self, request: Request) -> Reply:
        mode, umask = request.pop(wire.MKDIR_IN)
        ctx = _context(request, umask)
        mode = stat.S_IFDIR | (mode & ~umask)
        attr = await self._fs.mkdir(request.nodeid, request.name(), mode, ctx)
        return self._made(request, attr, stat.S_IFDIR)

    async def _symlink(self, request: Request) -> Reply:
        name, target = request.name(), FileNameT(request.parse_s())
        attr = await self._fs.symlink(request.nodeid, name, target, _context(request))
        return self._made(request, attr, stat.S_IFLNK)

    async def _link(self, request: Request) -> Reply:
        (inode,) = request.pop(wire.LINK_IN)
        attr = await self._fs.link(inode, request.nodeid, request.name(), _context(request))
        return self._made(request, attr, stat.S_IFMT(attr.st_mode))

    def _made(self, request: Request, attr: EntryAttributes, kind: int) -> bytes:
        """The reply to what has made an entry: no other inode than the kernel has asked for."""
        if attr.st_ino:
            request.granted = ((attr.st_ino, 1),)
        if attr.st_ino in (0, wire.FUSE_ROOT_ID):
            raise ValueError(f"the inode {attr.st_ino} cannot be that of a new entry")
        if stat.S_IFMT(attr.st_mode) != kind:
            raise ValueError(f"the mode {attr.st_mode:#o} is not of the type that was asked for")
        self._kinds[attr.st_ino] = attr.st_mode >> 12
        return protocol.entry(attr)

    def _created(self, request: Request, info: FileInfo, attr: EntryAttributes) -> bytes:
        request.opened = info.fh
        made = self._made(request, attr, stat.S_IFREG)
        return made + self._opened(request, attr.st_ino, info)

    async def _unlink(self, request: Request) -> None:
        await self._fs.unlink(request.nodeid, request.name(), _context(request))

    async def _rmdir(self, request: Request) -> None:
        await self._fs.rmdir(request.nodeid, request.name(), _context(request))

    async def _rename(self, request: Request) -> None:
        (parent,) = request.pop(wire.RENAME_IN)
        await self._rename_to(request, parent, 0)

    async def _rename2(self, request: Request) -> None:
        parent, flags = request.pop(wire.RENAME2_IN)
        await self._rename_to(request, parent, flags)

    async def _rename_to(self, request: Request, parent: Any, flags: int) -> None:
        old, new = request.name(), request.name()
        ctx = _context(request)
        await self._fs.rename(request.nodeid, old, parent, new, FlagT(flags), ctx)

    async def _readlink(self, request: Request) -> Reply:
        target = await self._fs.readlink(request.nodeid, _context(request))
        return protocol.data(target, 4095)

    # Attributes.

    async def _getattr(self, request: Request) -> Reply:
        ctx = _context(request)
        attr = await self._fs.getattr(request.nodeid, ctx)
        self._check_kind(request.nodeid, attr)
        return protocol.attributes(attr)

    def _check_kind(self, inode: int, attr: EntryAttributes) -> None:
        """The kernel gives up an inode whose type has changed."""
        kind = attr.st_mode >> 12
        known = self._kinds.setdefault(inode, kind)
        if kind != known:
            raise ValueError(f"the type of inode {inode} has changed, from {known:#o} to {kind:#o}")

    async def _statx(self, request: Request) -> Reply:
        has, fh, flags, mask = request.read(wire.STATX_IN)
        file = fh if has & wire.GETATTR_FH else None
        attr = await self._fs.statx(request.nodeid, file, flags, mask, _context(request))
        self._check_kind(request.nodeid, attr)
        return protocol.statx_attributes(attr)

    async def _setattr(self, request: Request) -> Reply:
        (
            valid,
            fh,
            size,
            _,
            atime,
            mtime,
            ctime,
            atime_ns,
            mtime_ns,
            ctime_ns,
            mode,
            uid,
            gid,
        ) = request.read(wire.SETATTR_IN)
        attr = EntryAttributes(
            st_ino=request.nodeid,
            st_mode=mode,
            st_uid=uid,
            st_gid=gid,
            st_size=size,
            st_atime_ns=atime * _TIME + atime_ns,
            st_ctime_ns=ctime * _TIME + ctime_ns,
            st_mtime_ns=mtime * _TIME + mtime_ns,
        )
        fields = SetattrFields(
            update_atime=bool(valid & wire.FATTR_ATIME),
            update_mtime=bool(valid & wire.FATTR_MTIME),
            update_ctime=bool(valid & wire.FATTR_CTIME),
            update_mode=bool(valid & wire.FATTR_MODE),
            update_uid=bool(valid & wire.FATTR_UID),
            update_gid=bool(valid & wire.FATTR_GID),
            update_size=bool(valid & wire.FATTR_SIZE),
            atime_now=bool(valid & wire.FATTR_ATIME_NOW),
            mtime_now=bool(valid & wire.FATTR_MTIME_NOW),
        )
        file = fh if valid & wire.FATTR_FH else None
        ctx = _context(request)
        if self._takes_privileges and valid & _PRIVILEGED and not fields.update_mode:
            left = await left_mode(self._fs, request.nodeid, ctx, without_privileges)
            if left is not None:
                attr.st_mode = left
                fields = fields._replace(update_mode=True)
        result = await self._fs.setattr(request.nodeid, attr, fields, file, ctx)
        self._check_kind(request.nodeid, result)
        return protocol.attributes(result)

    async def _access(self, request: Request) -> None:
        (mask,) = request.read(wire.ACCESS_IN)
        if not await self._fs.access(request.nodeid, mask, _context(request)):
            raise FUSEError(errno.EACCES)

    async def _statfs(self, request: Request) -> Reply:
        try:
            state = await self._fs.statfs(_context(request))
        except (FUSEError, OSError) as error:
            if error.errno != errno.ENOSYS:
                raise
            state = StatvfsData()  # programs ask before they look at anything else
        return protocol.statfs(state)

    # Extended attributes.

    async def _getxattr(self, request: Request) -> Reply:
        (size,) = request.pop(wire.GETXATTR_IN)
        name = XAttrNameT(request.parse_s())
        value = await self._fs.getxattr(request.nodeid, name, _context(request))
        return _fitting(value, size)

    async def _listxattr(self, request: Request) -> Reply:
        (size,) = request.pop(wire.GETXATTR_IN)
        names = await self._fs.listxattr(request.nodeid, _context(request))
        return _fitting(protocol.xattr_names(names), size)

    async def _setxattr(self, request: Request) -> None:
        size, flags = request.pop(wire.SETXATTR_IN)
        extra = request.pop(wire.SETXATTR_EXT)[0] if self._setxattr_ext else 0
        name = XAttrNameT(request.parse_s())
        value = request.take(size)
        if name == _STACKTRACE and request.nodeid == wire.FUSE_ROOT_ID:
            try:
                self._fs.stacktrace()
            except Exception:
                _log.exception("stacktrace has raised an exception, which it must not")
            return
        if not implemented(self._fs, "setxattr"):
            # ENOSYS would keep the kernel from ever asking again, even for the name above.
            raise FUSEError(errno.ENOTSUP)
        ctx = _context(request)
        if flags & (os.XATTR_CREATE | os.XATTR_REPLACE):
            await self._check_presence(request, name, flags, ctx)
        await self._fs.setxattr(request.nodeid, name, value, ctx)
        if extra & wire.SETXATTR_ACL_KILL_SGID:
            await take_away(self._fs, request.nodeid, ctx, without_setgid)

    async def _check_presence(
        self, request: Request, name: Any, flags: int, ctx: RequestContext
    ) -> None:
        try:
            await self._fs.getxattr(request.nodeid, name, ctx)
        except (FUSEError, OSError) as error:
            if error.errno == errno.ENOSYS:
                return  # it cannot be known; the handler may look at the flags
            if error.errno != ENOATTR:
                raise
            if flags & os.XATTR_REPLACE:
                raise
        else:
            if flags & os.XATTR_CREATE:
                raise FUSEError(errno.EEXIST)

    async def _removexattr(self, request: Request) -> None:
        await self._fs.removexattr(request.nodeid, XAttrNameT(request.parse_s()), _context(request))

    # Files.

    def _open_flags(self, flags: int) -> FlagT:
        if self._writeback:
            if flags & os.O_ACCMODE == os.O_WRONLY:
                flags = flags & ~os.O_ACCMODE | os.O_RDWR
            flags &= ~os.O_APPEND
        return FlagT(flags)

    async def _open(self, request: Request) -> Reply:
        flags = self._open_flags(request.read(wire.OPEN_IN)[0])
        ctx = _context(request)
        info = await self._fs.open(request.nodeid, flags, ctx)
        request.opened = info.fh
        return self._opened(request, request.nodeid, info)

    def _opened(self, request: Request, inode: Any, info: FileInfo) -> bytes:
        if self._backing is None:
            return protocol.opened(info)
        backing_id = self._backing.open(inode, info)
        request.backed = inode
        return protocol.opened(info, backing_id)

    async def _create(self, request: Request) -> Reply:
        flags, mode, umask, _ = request.pop(wire.CREATE_IN)
        name = request.name()
        ctx = _context(request, umask)
        mode &= ~umask
        made = await self._fs.create(request.nodeid, name, mode, self._open_flags(flags), ctx)
        return self._created(request, *made)

    async def _tmpfile(self, request: Request) -> Reply:
        flags, mode, umask, _ = request.pop(wire.CREATE_IN)
        ctx = _context(request, umask)
        mode &= ~umask
        made = await self._fs.tmpfile(request.nodeid, mode, self._open_flags(flags), ctx)
        return self._created(request, *made)

    async def _read(self, request: Request) -> Reply:
        fh, off, size, _, _, _ = request.read(wire.READ_IN)
        content = await self._fs.read(fh, off, size)
        return protocol.data(content, size)

    async def _write(self, request: Request) -> Reply:
        fh, off, size, flags, _, _ = request.read(wire.WRITE_IN)
        content = request.data
        if len(content) != size:
            raise protocol.ProtocolError(f"{request} has {len(content)} bytes of {size}")
        if flags & wire.WRITE_KILL_SUIDGID:
            await take_away(self._fs, request.nodeid, _context(request), without_privileges)
        return protocol.written(await self._fs.write(fh, off, content), size)

    async def _flush(self, request: Request) -> None:
        await self._fs.flush(request.read(wire.FLUSH_IN)[0])

    async def _release(self, request: Request) -> None:
        if self._backing is not None:
            self._backing.release(request.nodeid)
        await self.release(self._fs.release, request.read(wire.RELEASE_IN)[0])

    async def release(self, handler: Callable[[Any], Coroutine[Any, Any, None]], fh: int) -> None:
        """Call a handler whose errors reach nobody, and log what it must not raise."""
        try:
            await handler(fh)
        except (FUSEError, OSError):
            pass
        except Exception:
            _log.exception("releasing the file handle %d has failed", fh)

    async def _fsync(self, request: Request) -> None:
        fh, flags = request.read(wire.FSYNC_IN)
        await self._fs.fsync(fh, bool(flags & wire.FSYNC_FDATASYNC))

    async def _lseek(self, request: Request) -> Reply:
        fh, off, whence = request.read(wire.LSEEK_IN)
        found = await self._fs.lseek(fh, off, whence, _context(request))
        if not 0 <= found < 1 << 63:
            raise ValueError(f"{found} is no offset")
        return wire.LSEEK_OUT.pack(found)

    async def _fallocate(self, request: Request) -> None:
        fh, off, length, mode = request.read(wire.FALLOCATE_IN)
        await self._begin_change(request, request.nodeid)
        await self._fs.fallocate(fh, mode, off, length, _context(request))

    async def _begin_change(self, request: Request, inode: Any) -> None:
        """Of these changes the kernel does not tell whether the bits stay, as they do for root."""
        if self._takes_privileges and request.uid:
            await take_away(self._fs, inode, _context(request), without_privileges)

    async def _copy_file_range(self, request: Request) -> Reply:
        return protocol.written(*await self._copied(request, _MOST_COPIED))

    async def _copy_file_range_64(self, request: Request) -> Reply:
        count, length = await self._copied(request)
        if not 0 <= count <= length:
            raise ValueError(f"{count} bytes cannot have been copied of {length}")
        return wire.COPIED_OUT.pack(count)

    async def _copied(self, request: Request, most: int = 1 << 63) -> tuple[int, int]:
        fh_in, off_in, out, fh_out, off_out, length, flags = request.read(wire.COPY_FILE_RANGE_IN)
        length = min(length, most)
        await self._begin_change(request, out)
        ctx = _context(request)
        copy = self._fs.copy_file_range
        return await copy(fh_in, off_in, fh_out, off_out, length, flags, ctx), length

    async def _bmap(self, request: Request) -> Reply:
        index, blocksize = request.read(wire.BMAP_IN)
        found = await self._fs.bmap(request.nodeid, blocksize, index, _context(request))
        return protocol.bmap(found)

    async def _ioctl(self, request: Request) -> Reply:
        fh, _, command, argument, in_size, out_size = request.pop(wire.IOCTL_IN)
        data = request.take(in_size)
        ctx = _context(request)
        result = await self._fs.ioctl(fh, command, argument, data, out_size, ctx)
        code, content = result if isinstance(result, tuple) else (0, result)
        return protocol.ioctl(code, content, out_size)

    async def _poll(self, request: Request) -> Reply:
        fh, kh, flags, _ = request.read(wire.POLL_IN)
        handle = self._poll_handle(kh) if flags & wire.POLL_SCHEDULE_NOTIFY else None
        ready = await self._poll_file(request.nodeid, fh, handle, _context(request))
        return wire.POLL_OUT.pack(ready or 0)

    # Locks.

    async def _getlk(self, request: Request) -> Reply:
        fh, owner, start, end, kind, pid, _ = request.read(wire.LK_IN)
        wanted = FileLock(start, end, kind, pid)
        return protocol.lock(await self._fs.getlk(fh, owner, wanted, _context(request)))

    async def _setlk(self, request: Request) -> None:
        fh, owner, start, end, kind, pid, flags = request.read(wire.LK_IN)
        sleep = request.opcode == Opcode.SETLKW
        ctx = _context(request)
        if flags & wire.LK_FLOCK:
            name = "flock"
            operation = _FLOCK[kind] | (0 if sleep else fcntl.LOCK_NB)
            locking = self._fs.flock(fh, owner, operation, ctx)
        else:
            name = "setlk"
            locking = self._fs.setlk(fh, owner, FileLock(start, end, kind, pid), sleep, ctx)
        # What takes no time is not interrupted, and least of all what gives a lock back.
        if sleep and kind != fcntl.F_UNLCK and name in self._fs.interruptible:
            await _interrupted(request, locking)
        else:
            await locking

    # Directories.

    async def _opendir(self, request: Request) -> Reply:
        ctx = _context(request)
        fh = await self._fs.opendir(request.nodeid, ctx)
        request.opened = fh
        return protocol.opened_directory(fh)

    async def _readdir(self, request: Request) -> Reply:
        fh, off, size, _, _, _ = request.read(wire.READ_IN)
        token = ReaddirToken(size)
        await self._listed(request, token, self._fs.readdir(fh, off, token))
        # The kernel counts no lookups for a plain listing, but the filesystem has.
        request.granted = ()
        if token.granted:
            await self.forget(token.granted)
        return token.reply.content

    async def _readdirplus(self, request: Request) -> Reply:
        fh, off, size, _, _, _ = request.read(wire.READ_IN)
        token = ReaddirToken(size, self._kinds)
        await self._listed(request, token, self._fs.readdirplus(fh, off, token))
        return token.reply.content

    async def _listed(
        self, request: Request, token: ReaddirToken, listing: Coroutine[Any, Any, None]
    ) -> None:
        request.granted = token.granted
        try:
            await listing
        finally:
            token.close()

    async def _releasedir(self, request: Request) -> None:
        await self.release(self._fs.releasedir, request.read(wire.RELEASE_IN)[0])

    async def _fsyncdir(self, request: Request) -> None:
        fh, flags = request.read(wire.FSYNC_IN)
        await self._fs.fsyncdir(fh, bool(flags & wire.FSYNC_FDATASYNC))

    async def take_back(self, request: Request) -> None:
        """Undo what a handler has promised in a reply that did not get through."""
        granted, request.granted = request.granted, ()
        fh, request.opened = request.opened, None
        if request.backed is not None and self._backing is not None:
            self._backing.release(request.backed)
        if granted:
            await self.forget(granted)
        if fh is not None:
            is_directory = request.opcode == Opcode.OPENDIR
            name = "releasedir" if is_directory else "release"
            if implemented(self._fs, name):
                await self.release(getattr(self._fs, name), fh)


async def _interrupted(request: Request, handling: Coroutine[Any, Any, T]) -> T:
    """What a handler returns, unless a signal cancels it."""
    with anyio.CancelScope() as request.scope:
        if request.interrupted:
            request.scope.cancel()
        return await handling
    raise FUSEError(errno.EINTR)


def _interruptible(handler: Handler) -> Handler:
    async def handle(request: Request) -> Reply | None:
        return await _interrupted(request, handler(request))

    return handle


_FLOCK: Final = {
    fcntl.F_RDLCK: fcntl.LOCK_SH,
    fcntl.F_WRLCK: fcntl.LOCK_EX,
    fcntl.F_UNLCK: fcntl.LOCK_UN,
}


def _taking_inode(poll: Callable[..., Awaitable[int]]) -> Callable[..., Awaitable[int]]:
    """A filesystem's ``poll``, which may be of those that do not take an inode before *fh*."""
    if len(inspect.signature(poll).parameters) == 4:
        return poll
    return lambda inode, *args: poll(*args)


def _context(request: Request, umask: int = 0) -> RequestContext:
    # As RequestContext(...), in half the time.
    return tuple.__new__(RequestContext, (request.uid, request.gid, request.pid, umask))


def _fitting(value: bytes, size: int) -> Reply:
    reply = protocol.xattr(value, size)
    if reply is None:
        raise FUSEError(errno.ERANGE)
    return reply
