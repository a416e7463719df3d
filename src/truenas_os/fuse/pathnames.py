# SPDX-License-Identifier: LGPL-3.0-or-later
"""Names and attributes of a filesystem of the path level, for the inode level."""

import errno
import itertools
import os
import stat
import time
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    asynccontextmanager,
    nullcontext,
    suppress,
)
from dataclasses import replace
from typing import Any, Final

from . import pathforms
from .current import current_request
from .datatypes import (
    RENAME_NOREPLACE,
    EntryAttributes,
    FileHandleT,
    FileNameT,
    FlagT,
    FUSEError,
    InodeT,
    ModeT,
    RequestContext,
    SetattrFields,
)
from .operations import Operations
from .pathcallbacks import PathOperations
from .pathcalls import Calls
from .pathlocks import Entry, PathLocks
from .pathnodes import HIDDEN, Node, NodeTable, OpenFile

_NS: Final = 1_000_000_000
_TRIES: Final = 10


class PathNames(Operations):
    """What :class:`PathLevel` has of it: the tree, and what is asked of it by name."""

    def __init__(self, operations: PathOperations) -> None:
        self._call = Calls(operations)
        self._nullpath = operations.nullpath_ok
        self._pairs = operations.utimens_as_array
        can_hide = "rename" in self._call and "unlink" in self._call
        self._hides = can_hide and not operations.hard_remove
        self._nodes = NodeTable()
        self._locks = PathLocks()
        self._hidden_numbers = itertools.count(1)
        # The open files by their numbers, of which 0 is none.
        self._files: dict[int, OpenFile] = {}

    # Paths.

    def _node(self, inode: int) -> Node:
        try:
            return self._nodes[inode]
        except KeyError:
            raise FUSEError(errno.ESTALE) from None

    def _path(self, node: Node) -> str:
        return _existing(self._nodes.path(node))

    def _path_in(self, directory: Node, name: str) -> str:
        return _existing(self._nodes.path_in(directory, name))

    @asynccontextmanager
    async def _keeping(
        self, find: Callable[[], Sequence[Node]], entry: Entry | None = None
    ) -> AsyncIterator[None]:
        """Have the nodes that *find* finds, and *entry*, stay where they are."""
        used = await self._locks.use(find, entry)
        try:
            yield
        finally:
            self._locks.leave(used)

    @asynccontextmanager
    async def _using(self, node: Node) -> AsyncIterator[str]:
        """The path of a node, which does not change meanwhile."""
        used = await self._locks.use(lambda: self._nodes.chain(node))
        try:
            yield self._path(node)
        finally:
            self._locks.leave(used)

    def _leading_to(self, parent: Node, name: str) -> list[Node]:
        """The nodes of an entry's path, whether or not there is one."""
        child = parent.entries.get(name)
        return self._nodes.chain(parent) + ([] if child is None else [child])

    @asynccontextmanager
    async def _changing(self, *entries: Entry) -> AsyncIterator[None]:
        """Have entries for this caller alone."""

        def find() -> tuple[list[Node], list[Node]]:
            chains = (self._nodes.chain(parent) for parent, _ in entries)
            nodes = (parent.entries.get(name) for parent, name in entries)
            return list(itertools.chain(*chains)), list({n for n in nodes if n is not None})

        used, moved = await self._locks.begin_change(entries, find)
        try:
            yield
        finally:
            self._locks.end_change(entries, used, moved)

    @asynccontextmanager
    async def _using_open(self, node: Node) -> AsyncIterator[str]:
        """The path of a node that is open; ``""`` if it was removed."""
        async with self._keeping(lambda: self._nodes.chain(node)):
            yield self._nodes.path(node) or ""

    def _using_file(self, file: OpenFile) -> AbstractAsyncContextManager[str]:
        """The same for callbacks that may do without the path."""
        return nullcontext("") if self._nullpath else self._using_open(file.node)

    # Attributes.

    async def _entry(
        self, parent: Node, name: str, path: str, handle: object = None, is_open: bool = False
    ) -> tuple[Node, EntryAttributes]:
        """The attributes of an entry, and its node, known once more."""
        before = parent.entries.get(name)
        try:
            found = await self._ask_attributes(path, handle, is_open)
        except (FUSEError, OSError) as error:
            # It may have been made while it was looked for.
            if error.errno == errno.ENOENT and parent.entries.get(name) is before:
                self._nodes.remove(parent, name)
            raise
        return self._known(parent, name, found)

    def _known(
        self, parent: Node, name: str, found: tuple[int, EntryAttributes]
    ) -> tuple[Node, EntryAttributes]:
        attr = found[1]
        node = self._nodes.look_up(parent, name, *_identity(*found), attr.st_ino)
        return node, self._attributes(node, attr)

    async def _ask_attributes(
        self, path: str, handle: object, is_open: bool
    ) -> tuple[int, EntryAttributes]:
        if is_open and "fgetattr" in self._call:
            path = "" if self._nullpath else path
            return await self._call("fgetattr", path, handle, form=pathforms.attributes)
        return await self._call("getattr", path, form=pathforms.attributes)

    def _attributes(self, node: Node, attr: EntryAttributes) -> EntryAttributes:
        """What the filesystem says of a node, as the kernel is to see it."""
        attr.st_ino = node.number
        if node.hidden is not None and attr.st_nlink:
            attr.st_nlink -= 1
        node.status = attr
        return attr

    async def _look(self, node: Node, fh: int | None) -> EntryAttributes:
        file = self._files.get(fh or 0)
        if node.names or node is self._nodes.root:
            async with self._using(node) as path:
                handle = None if file is None else file.handle
                found = await self._ask_attributes(path, handle, file is not None)
                return self._attributes(node, found[1])
        file = file or next(iter(node.files), None)
        if file is not None and "fgetattr" in self._call:
            found = await self._call("fgetattr", "", file.handle, form=pathforms.attributes)
            return self._attributes(node, found[1])
        # It was removed, and its path would lead to something else.
        if node.status is None:
            raise FUSEError(errno.ESTALE)
        return replace(node.status, st_nlink=0)

    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        return await self._look(self._node(inode), current_request().fh)

    async def setattr(
        self,
        inode: InodeT,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: FileHandleT | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        node = self._node(inode)
        if fields.update_size:
            await self._truncate(node, attr.st_size, fh)
        # A change of the owner takes bits away from the mode: it comes before that.
        if fields.update_uid or fields.update_gid:
            uid = attr.st_uid if fields.update_uid else -1
            gid = attr.st_gid if fields.update_gid else -1
            await self._at("chown", node, uid, gid)
        elif not any(fields) and "chown" in self._call:
            await self._at("chown", node, -1, -1)  # which counts as a change
        if fields.update_mode:
            await self._at("chmod", node, attr.st_mode)
        # Who changes the size changes the time.
        if (fields.update_atime or fields.update_mtime) and not fields.update_size:
            await self._set_times(node, attr, fields)
        return await self._look(node, fh)

    async def _at(self, name: str, node: Node, *args: Any) -> None:
        """Call a callback whose first argument is a node's path."""
        async with self._using(node) as path:
            await self._call(name, path, *args, form=pathforms.done)

    async def _truncate(self, node: Node, size: int, fh: int | None) -> None:
        file = self._files.get(fh or 0)
        if file is not None and "ftruncate" in self._call:
            async with self._using_file(file) as path:
                await self._call("ftruncate", path, size, file.handle, form=pathforms.done)
        else:
            await self._at("truncate", node, size)
        if node.status is not None:
            node.status.st_size = size

    async def _set_times(self, node: Node, attr: EntryAttributes, fields: SetattrFields) -> None:
        now = time.time_ns()
        atime = now if fields.atime_now else attr.st_atime_ns
        mtime = now if fields.mtime_now else attr.st_mtime_ns
        if not (fields.update_atime and fields.update_mtime):
            before = await self._look(node, None)
            atime = atime if fields.update_atime else before.st_atime_ns
            mtime = mtime if fields.update_mtime else before.st_mtime_ns
        if "utimens" not in self._call:
            await self._at("utime", node, atime // _NS, mtime // _NS)
        elif self._pairs:
            await self._at("utimens", node, divmod(atime, _NS), divmod(mtime, _NS))
        else:
            await self._at("utimens", node, atime / _NS, mtime / _NS)

    # Names.

    async def lookup(
        self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        parent, entry = self._node(parent_inode), os.fsdecode(name)
        async with self._keeping(lambda: self._leading_to(parent, entry), (parent, entry)):
            if self._is_hidden(parent, entry):
                raise FUSEError(errno.ENOENT)
            return (await self._entry(parent, entry, self._path_in(parent, entry)))[1]

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        for inode, count in inode_list:
            self._nodes.forget(self._nodes[inode], count)

    async def _make(
        self, callback: str, parent_inode: int, name: bytes, *args: Any, umask: int = 0
    ) -> EntryAttributes:
        parent, entry = self._node(parent_inode), os.fsdecode(name)
        async with self._keeping(lambda: self._nodes.chain(parent)):
            path = self._new_path(parent, entry)
            # Where a symlink leads comes first.
            args = (*args, path) if callback == "symlink" else (path, *args)
            await self._call(callback, *args, form=pathforms.done, umask=umask)
            return (await self._entry(parent, entry, path))[1]

    async def mknod(
        self,
        parent_inode: InodeT,
        name: FileNameT,
        mode: ModeT,
        rdev: int,
        ctx: RequestContext,
    ) -> EntryAttributes:
        return await self._make("mknod", parent_inode, name, mode, rdev, umask=ctx.umask)

    async def mkdir(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, ctx: RequestContext
    ) -> EntryAttributes:
        return await self._make("mkdir", parent_inode, name, stat.S_IMODE(mode), umask=ctx.umask)

    async def symlink(
        self, parent_inode: InodeT, name: FileNameT, target: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        return await self._make("symlink", parent_inode, name, os.fsdecode(target))

    async def readlink(self, inode: InodeT, ctx: RequestContext) -> FileNameT:
        async with self._using(self._node(inode)) as path:
            return FileNameT(await self._call("readlink", path, form=pathforms.text))

    async def link(
        self, inode: InodeT, new_parent_inode: InodeT, new_name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        node = self._node(inode)
        parent, entry = self._node(new_parent_inode), os.fsdecode(new_name)
        async with self._keeping(lambda: self._nodes.chain(node) + self._nodes.chain(parent)):
            if node.hidden is not None and len(node.names) == 1:
                raise FUSEError(errno.ENOENT)
            path = self._new_path(parent, entry)
            await self._call("link", self._path(node), path, form=pathforms.done)
            return (await self._entry(parent, entry, path))[1]

    async def unlink(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        parent, entry = self._node(parent_inode), os.fsdecode(name)
        async with self._changing((parent, entry)):
            node = parent.entries.get(entry)
            if await self._hide(parent, entry):
                await self._remove_closed(node)
            else:
                await self._unlink(parent, entry)

    async def _unlink(self, parent: Node, name: str) -> None:
        await self._call("unlink", self._path_in(parent, name), form=pathforms.done)
        self._nodes.remove(parent, name)

    async def rmdir(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        parent, entry = self._node(parent_inode), os.fsdecode(name)
        async with self._changing((parent, entry)):
            await self._clear_out(parent, entry)
            path = self._path_in(parent, entry)
            await self._call("rmdir", path, form=pathforms.done)
            self._nodes.remove(parent, entry)

    async def rename(
        self,
        parent_inode_old: InodeT,
        name_old: FileNameT,
        parent_inode_new: InodeT,
        name_new: FileNameT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> None:
        old = self._node(parent_inode_old), os.fsdecode(name_old)
        new = self._node(parent_inode_new), os.fsdecode(name_new)
        if flags & ~RENAME_NOREPLACE:
            raise FUSEError(errno.EINVAL)
        async with self._changing(old, new):
            path = self._new_path(*new)
            if flags and await self._exists(path):
                raise FUSEError(errno.EEXIST)
            await self._clear_out(*new)
            replaced = new[0].entries.get(new[1])
            is_hidden = replaced is not old[0].entries.get(old[1]) and await self._hide(*new)
            try:
                await self._rename(old, new)
            except Exception:
                if is_hidden and replaced is not None and replaced.hidden is not None:
                    with suppress(FUSEError, OSError):
                        await self._rename(replaced.hidden, new)
                        replaced.hidden = None
                raise
            await self._remove_closed(replaced)

    async def _rename(self, old: tuple[Node, str], new: tuple[Node, str]) -> None:
        paths = self._path_in(*old), self._path_in(*new)
        await self._call("rename", *paths, form=pathforms.done)
        self._nodes.move(*old, *new)

    async def _exists(self, path: str) -> bool:
        try:
            await self._call("getattr", path, form=pathforms.attributes)
        except (FUSEError, OSError) as error:
            if error.errno == errno.ENOENT:
                return False
            raise
        return True

    # What is removed while it is open.

    def _is_hidden(self, parent: Node, name: str) -> bool:
        node = parent.entries.get(name)
        return node is not None and node.hidden == (parent, name)

    def _new_path(self, parent: Node, name: str) -> str:
        """The path of what is about to be made, which must not replace what is hidden."""
        if self._is_hidden(parent, name):
            raise FUSEError(errno.EEXIST)
        return self._path_in(parent, name)

    async def _hide(self, parent: Node, name: str) -> bool:
        """Rename what is open, so that it goes on; False if there is no need."""
        node = parent.entries.get(name)
        if not self._hides or node is None or not node.files or node.kind == stat.S_IFDIR:
            return False
        if await self._has_other_name(node, (parent, name)):
            return False
        node.hidden = await self._rename_to_hidden((parent, name), parent)
        return True

    async def _rename_to_hidden(self, entry: Entry, parent: Node) -> Entry:
        """Rename an entry to what is free in *parent*; the entry that it has become."""
        number = entry[0].entries[entry[1]].number
        for _ in range(_TRIES):
            hidden = parent, f"{HIDDEN}{number:016x}{next(self._hidden_numbers):08x}"
            if not await self._exists(self._path_in(*hidden)):
                await self._rename(entry, hidden)
                return hidden
        raise FUSEError(errno.EBUSY)

    async def _has_other_name(self, node: Node, entry: Entry) -> bool:
        """Whether another name leads to a node; those that do not are forgotten."""
        for other in [each for each in node.names if each != entry]:
            with suppress(FUSEError, OSError):
                path = self._path_in(*other)
                found = await self._call("getattr", path, form=pathforms.attributes)
                if _identity(*found) == (node.kind, node.key):
                    return True
            self._nodes.remove(*other)
        return False

    async def _clear_out(self, parent: Node, name: str) -> None:
        """Before a directory goes, have what is hidden in it go to its parent."""
        directory = parent.entries.get(name)
        for child in [] if directory is None else list(directory.entries.values()):
            if child.hidden is not None and child.hidden[0] is directory:
                await self._rename_to_hidden(child.hidden, parent)

    async def _remove_closed(self, node: Node | None) -> None:
        """Remove what was closed while it was being hidden."""
        if node is not None and node.hidden is not None and not node.files:
            await self._unlink(*node.hidden)

    async def _remove_hidden(self, node: Node, last: OpenFile) -> None:
        """Remove what is hidden, and open as *last* only."""
        while (hidden := node.hidden) is not None and node.files.keys() <= {last}:
            async with self._changing(hidden):
                # It may have been moved meanwhile, or opened through /proc.
                if node.hidden == hidden and node.files.keys() <= {last}:
                    await self._unlink(*hidden)


def _identity(device: int, attr: EntryAttributes) -> tuple[int, Hashable]:
    """The type of a file, and what it has in common with its other names; None if nothing."""
    kind = stat.S_IFMT(attr.st_mode)
    return kind, (device, attr.st_ino) if attr.st_ino and kind != stat.S_IFDIR else None


def _existing(path: str | None) -> str:
    if path is None:
        raise FUSEError(errno.ESTALE)  # the kernel looks its caller's path up again
    return path
