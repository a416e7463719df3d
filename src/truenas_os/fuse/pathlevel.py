# SPDX-License-Identifier: LGPL-3.0-or-later
"""A filesystem of the path level as one of the inode level."""

import errno
import fcntl
import itertools
import os
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, TypeVar

from . import pathforms, wire
from .current import current_request
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
    StatvfsData,
    XAttrNameT,
)
from .listing import ReaddirToken
from .notifications import PollHandle
from .operations import Operations
from .pathcallbacks import Flock, PathOperations
from .pathcalls import PollHandle as PathPollHandle
from .pathnames import PathNames
from .pathnodes import Node, OpenFile

T = TypeVar("T")

_END: Final = (1 << 63) - 1
_MASK: Final = (1 << 32) - 1
_UNKNOWN_INODE: Final = _MASK
_VALUE_MAX: Final = 1 << 16
_IOC_WRITE: Final = 1 << 30

# The callbacks of which each handler needs one, where that is not the one of the same name. For
# what is removed while it is open, opening has to be known of, and so has closing.
_NEEDED: Final = {
    "lookup": ("getattr",),
    "getattr": ("getattr", "fgetattr"),
    "setattr": ("chmod", "chown", "truncate", "ftruncate", "utime", "utimens"),
    "open": ("open", "release", "unlink", "rename"),
    "release": ("open", "release", "unlink", "rename", "create"),
    "flush": ("flush", "lock"),
    "getlk": ("lock",),
    "setlk": ("lock",),
    "opendir": ("opendir", "releasedir", "readdir", "getdir"),
    "releasedir": ("opendir", "releasedir", "readdir", "getdir"),
    "readdir": ("readdir", "getdir"),
}
_ALWAYS: Final = {"init", "destroy", "forget", "stacktrace"}


class PathLevel(PathNames):
    """What the kernel is served with for :class:`PathOperations`."""

    supports_dot_lookup: bool = False

    def __init__(self, operations: PathOperations) -> None:
        super().__init__(operations)
        self.enable_writeback_cache: bool = operations.enable_writeback_cache
        self.enable_acl: bool = operations.enable_acl
        self._numbers = itertools.count(1)
        for name in vars(Operations):
            handler = getattr(Operations, name)
            if name.startswith("_") or not callable(handler) or name in _ALWAYS:
                continue
            if not any(needed in self._call for needed in _NEEDED.get(name, (name,))):
                # As if it were not defined here.
                setattr(self, name, handler.__get__(self))

    # The session.

    def init(self) -> None:
        self._call.begin()

    async def destroy(self) -> None:
        await self._call.end(self._nodes.hidden_paths())

    async def access(self, inode: InodeT, mode: ModeT, ctx: RequestContext) -> bool:
        await self._at("access", self._node(inode), mode)
        return True

    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        return await self._call("statfs", form=pathforms.state)

    # Files.

    def _file(self, fh: int) -> OpenFile:
        # What the kernel has opened without asking has no handle.
        file = self._files.get(fh)
        return file or OpenFile(self._node(current_request().nodeid), 0, None)

    def _opened(self, node: Node, flags: int, handle: object) -> FileHandleT:
        fh = next(self._numbers)
        file = self._files[fh] = OpenFile(node, flags, handle)
        self._nodes.open(file)
        return FileHandleT(fh)

    def _closing(self, name: str, path: str, *args: Any) -> Callable[[Any], None] | None:
        """What closes a file or directory that a plain callback has opened too late."""
        path = "" if self._nullpath else path
        return self._call.undo(name, lambda value: (path, *args, pathforms.handle(value)))

    async def _of_file(self, name: str, fh: int, *args: Any, form: Callable[[Any], T]) -> T:
        """Call a callback that is given the path of an open file, and its handle at the end."""
        file = self._file(fh)
        async with self._using_file(file) as path:
            return await self._call(name, path, *args, file.handle, form=form)

    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        node, info, handle = self._node(inode), FileInfo(keep_cache=False), None
        async with self._using(node) as path:
            if "open" in self._call:
                late = self._closing("release", path, flags)
                args = path, flags, info
                handle = await self._call("open", *args, form=pathforms.handle, late=late)
            info.fh = self._opened(node, flags, handle)
        return info

    async def create(
        self,
        parent_inode: InodeT,
        name: FileNameT,
        mode: ModeT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> tuple[FileInfo, EntryAttributes]:
        parent, entry = self._node(parent_inode), os.fsdecode(name)
        async with self._keeping(lambda: self._nodes.chain(parent)):
            path = self._new_path(parent, entry)
            form, late = pathforms.handle, self._closing("release", path, flags)
            args = path, mode, flags
            handle = await self._call("create", *args, form=form, umask=ctx.umask, late=late)
            try:
                node, attr = await self._entry(parent, entry, path, handle, is_open=True)
            except BaseException:
                with suppress(FUSEError, OSError):
                    await self._call("release", path, flags, handle, form=pathforms.done)
                raise
            info = FileInfo(fh=self._opened(node, flags, handle), keep_cache=False)
        return info, attr

    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        return await self._of_file(
            "read", fh, size, off, form=partial(pathforms.content, size=size)
        )

    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        form = partial(pathforms.count, size=len(buf))
        written = await self._of_file("write", fh, buf, off, form=form)
        status = self._file(fh).node.status
        if status is not None:
            status.st_size = max(status.st_size, off + written)
        return written

    async def flush(self, fh: FileHandleT) -> None:
        try:
            if "flush" in self._call:
                await self._of_file("flush", fh, form=pathforms.done)
        except (FUSEError, OSError) as error:
            # The kernel would not ask again, and the next one's locks would not be released.
            if error.errno != errno.ENOSYS or "lock" not in self._call:
                raise
        finally:
            owner = current_request().lock_owner
            owners = self._file(fh).node.lock_owners
            if owner in owners:
                owners.discard(owner)
                everything = _flock(FileLock(0, _END, fcntl.F_UNLCK, current_request().pid))
                await self._of_file("lock", fh, fcntl.F_SETLK, everything, form=pathforms.done)

    async def release(self, fh: FileHandleT) -> None:
        file = self._files.pop(fh)
        try:
            if "release" in self._call:
                async with self._using_file(file) as path:
                    args = path, file.flags, file.handle
                    await self._call("release", *args, form=pathforms.done)
        finally:
            try:
                await self._remove_hidden(file.node, file)
            finally:
                self._nodes.close(file)

    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        await self._of_file("fsync", fh, int(datasync), form=pathforms.done)

    async def bmap(self, inode: InodeT, blocksize: int, index: int, ctx: RequestContext) -> int:
        async with self._using(self._node(inode)) as path:
            form = partial(pathforms.number, most=(1 << 64) - 1)
            return await self._call("bmap", path, blocksize, index, form=form)

    async def ioctl(
        self,
        fh: FileHandleT,
        command: int,
        argument: int,
        data: bytes,
        out_size: int,
        ctx: RequestContext,
    ) -> bytes:
        taken = data if command & _IOC_WRITE else None
        flags = current_request().flags
        form = partial(pathforms.data, size=out_size)
        file = self._file(fh)
        async with self._using_open(file.node) as path:
            args = path, command, flags, taken, file.handle
            return await self._call("ioctl", *args, form=form)

    async def poll(
        self, fh: FileHandleT, poll_handle: PollHandle | None, ctx: RequestContext
    ) -> int:
        handle = None if poll_handle is None else PathPollHandle(self._call, poll_handle)
        events = wire.POLL_IN.unpack_from(current_request().body)[3]
        form = partial(pathforms.number, most=_MASK)
        file = self._file(fh)
        async with self._using_open(file.node) as path:
            return await self._call("poll", path, handle, events, file.handle, form=form)

    # Locks.

    async def getlk(
        self, fh: FileHandleT, owner: int, lock: FileLock, ctx: RequestContext
    ) -> FileLock:
        asked = _flock(lock)
        await self._of_file("lock", fh, fcntl.F_GETLK, asked, form=pathforms.done)
        end = asked.l_start + asked.l_len - 1 if asked.l_len else _END
        return FileLock(asked.l_start, end, asked.l_type, asked.l_pid)

    async def setlk(
        self, fh: FileHandleT, owner: int, lock: FileLock, sleep: bool, ctx: RequestContext
    ) -> None:
        file = self._file(fh)
        async with self._using_file(file) as path:
            pass  # it may be renamed while its lock is waited for
        command = fcntl.F_SETLKW if sleep else fcntl.F_SETLK
        released = _flock(lock._replace(type=fcntl.F_UNLCK))

        def to_release(value: object) -> tuple[Any, ...]:
            pathforms.done(value)
            return path, fcntl.F_SETLK, released, file.handle

        args = path, command, _flock(lock), file.handle
        late = self._call.undo("lock", to_release)
        await self._call("lock", *args, form=pathforms.done, late=late)
        if lock.type != fcntl.F_UNLCK:
            file.node.lock_owners.add(owner)

    # Extended attributes.

    async def getxattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> bytes:
        async with self._using(self._node(inode)) as path:
            form = partial(pathforms.value, size=_VALUE_MAX)
            return await self._call("getxattr", path, os.fsdecode(name), form=form)

    async def setxattr(
        self, inode: InodeT, name: XAttrNameT, value: bytes, ctx: RequestContext
    ) -> None:
        flags = current_request().flags
        await self._at("setxattr", self._node(inode), os.fsdecode(name), value, flags)

    async def listxattr(self, inode: InodeT, ctx: RequestContext) -> Sequence[XAttrNameT]:
        async with self._using(self._node(inode)) as path:
            names = await self._call("listxattr", path, form=pathforms.names)
            return [XAttrNameT(name) for name in names]

    async def removexattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> None:
        await self._at("removexattr", self._node(inode), os.fsdecode(name))

    # Directories.

    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        node, handle = self._node(inode), None
        async with self._using(node) as path:
            if "opendir" in self._call:
                late = self._closing("releasedir", path)
                handle = await self._call("opendir", path, form=pathforms.handle, late=late)
            return self._opened(node, 0, handle)

    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        directory = self._file(fh)
        if start_id == 0:
            directory.listing = None
        is_new = directory.listing is None
        if directory.listing is None:
            entries = await self._list(directory, start_id)
            # Nothing, where it goes on behind an offset, is the end, and not all that there is.
            if not any(offset for offset, _, _ in entries) and (entries or start_id == 0):
                directory.listing = entries
        if directory.listing is not None:
            numbered = enumerate(directory.listing, 1)
            entries = [(number, name, attr) for number, (_, name, attr) in numbered]
            entries = entries[start_id:]
        elif start_id in (offsets := [offset for offset, _, _ in entries]):
            # A callback that returns everything, wherever it is to begin.
            entries = entries[offsets.index(start_id) + 1 :]
        for offset, name, attr in entries:
            # The attributes of what was listed earlier may not be true any more.
            if not self._listed(directory.node, name, attr, offset, token, is_new):
                return

    async def _list(self, directory: OpenFile, start_id: int) -> list[pathforms.Entry]:
        node = directory.node
        if not node.names and node is not self._nodes.root:
            return []  # it was removed
        if "readdir" not in self._call:
            async with self._using(node) as path:
                return await self._call("getdir", path, form=pathforms.plain_entries)
        async with self._using_file(directory) as path:
            args = path, start_id, directory.handle
            return await self._call("readdir", *args, form=pathforms.entries)

    def _listed(
        self,
        directory: Node,
        name: str,
        attr: "tuple[int, EntryAttributes] | None",
        offset: int,
        token: ReaddirToken,
        is_new: bool,
    ) -> bool:
        """Add an entry to what is listed; False if there is no room."""
        raw = FileNameT(os.fsencode(name))
        if name in (".", ".."):
            above = next(iter(directory.names), (directory, ""))[0]
            number = (directory if name == "." else above).number
            return token.add_name(raw, number, stat.S_IFDIR, offset)
        if self._is_hidden(directory, name):
            return True
        if attr is not None and token.plus and is_new:
            device, known = attr
            node, shown = self._known(directory, name, (device, pathforms.copied(known)))
            is_told = False
            try:
                is_told = token.add(raw, shown, offset)
            finally:
                if not is_told:
                    self._nodes.forget(node, 1)
            return is_told
        child = directory.entries.get(name)
        number, kind = (0, 0) if attr is None else (attr[1].st_ino, attr[1].st_mode)
        if child is not None:
            number, kind = child.number, child.kind
        return token.add_name(raw, number or _UNKNOWN_INODE, kind, offset)

    async def releasedir(self, fh: FileHandleT) -> None:
        file = self._files.pop(fh)
        try:
            if "releasedir" in self._call:
                async with self._using_file(file) as path:
                    await self._call("releasedir", path, file.handle, form=pathforms.done)
        finally:
            self._nodes.close(file)

    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        await self._of_file("fsyncdir", fh, int(datasync), form=pathforms.done)


def _flock(lock: FileLock) -> Flock:
    length = 0 if lock.end >= _END else lock.end - lock.start + 1
    return Flock(lock.type, os.SEEK_SET, lock.start, length, lock.pid)
