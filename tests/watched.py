# SPDX-License-Identifier: LGPL-3.0-or-later
"""What tests of watching share: changes made without the library, and batches applied one by one.

:class:`Replayed` checks each event against what was told before it; mountinfo is what the result
is compared with.
"""

import os
import struct
from collections.abc import Iterable
from types import SimpleNamespace

import anyio
import faces
import kernel
from stuck import AMPLE

from truenas_os.blocking import MountEventKind

SOURCES = ("fanotify", "mountinfo", "poll")
# A look comes so soon, where nothing wakes.
OFTEN = 0.05

RDONLY, NOSUID, NOATIME = 1, 2, 0x10
F_EMPTY_PATH, SET_GROUP, BENEATH = 0x4, 0x100, 0x200
_AT_FDCWD, _RECURSIVE, _CLONE = -100, 0x8000, 1
_NOT_COMPARED = {"mask", "supported_mask"}


# Changes


def setattr_(path, *, attr_set=0, attr_clr=0, propagation=0):
    """mount_setattr(2)."""
    wanted = struct.pack("=QQQQ", attr_set, attr_clr, propagation, 0)
    kernel.syscall(442, _AT_FDCWD, os.fsencode(path), 0, wanted, len(wanted))


def detached(fs_type="tmpfs"):
    """The descriptor of a mount that is attached nowhere."""
    context = kernel.syscall(430, fs_type.encode(), 0)
    try:
        kernel.syscall(431, context, 6, None, None, 0)  # FSCONFIG_CMD_CREATE
        return kernel.syscall(432, context, 0, 0)
    finally:
        os.close(context)


def attach(fd, path, flags=0):
    """move_mount(2) of a descriptor's mount, which is closed."""
    try:
        kernel.syscall(429, fd, b"", _AT_FDCWD, os.fsencode(path), F_EMPTY_PATH | flags)
    finally:
        os.close(fd)


def move_mount(path, target, flags=0):
    kernel.syscall(429, _AT_FDCWD, os.fsencode(path), _AT_FDCWD, os.fsencode(target), flags)


def reconfigure(path, *flags):
    """fspick(2), with flags such as ``ro``."""
    context = kernel.syscall(433, _AT_FDCWD, os.fsencode(path), 0)
    try:
        for flag in flags:
            kernel.syscall(431, context, 0, flag.encode(), None, 0)  # FSCONFIG_SET_FLAG
        kernel.syscall(431, context, 7, None, None, 0)  # FSCONFIG_CMD_RECONFIGURE
    finally:
        os.close(context)


# What is told, and what is true


def _tags(mount):
    if mount.mnt_peer_group:
        yield f"shared:{mount.mnt_peer_group}"
    if mount.mnt_master:
        yield f"master:{mount.mnt_master}"
        if mount.propagate_from and mount.propagate_from != mount.mnt_master:
            yield f"propagate_from:{mount.propagate_from}"
    if mount.mnt_propagation == kernel.MS_UNBINDABLE:
        yield "unbindable"


def _options(text):
    """Those of the filesystem itself."""
    flags = {"", "ro", "rw", "sync", "dirsync", "lazytime", "mand"}
    return tuple(option for option in text.split(",") if option not in flags)


def told(mount):
    """A mount as it was told of, in terms of mountinfo."""
    return (
        mount.mnt_id_old,
        mount.mnt_parent_id_old,
        mount.mnt_root,
        mount.mnt_point,
        mount.fs_type,
        mount.sb_source,
        tuple(_tags(mount)),
        bool(mount.mnt_attr & RDONLY),
        bool(mount.mnt_attr & NOSUID),
        bool(mount.mnt_attr & NOATIME),
        bool(mount.sb_flags & kernel.MS_RDONLY),
        _options(mount.mnt_opts),
    )


def true_mounts():
    """The same of every line of mountinfo."""
    return {
        (
            line.id,
            line.parent,
            line.root,
            line.mount_point,
            line.fs_type,
            line.source,
            line.tags,
            "ro" in line.options.split(","),
            "nosuid" in line.options.split(","),
            "noatime" in line.options.split(","),
            "ro" in line.super_options.split(","),
            _options(line.super_options),
        )
        for line in kernel.mountinfo()
    }


class Replayed:
    """A snapshot with batches applied to it. Whatever does not follow from the last is refused."""

    def __init__(self, snapshot: Iterable):
        self.mounts = {mount.mnt_id: mount for mount in snapshot}
        self._ever = set(self.mounts)
        self.batches = []

    @property
    def events(self):
        return [event for batch in self.batches for event in batch]

    def apply(self, batch):
        ids = [event.mnt_id for event in batch]
        assert len(ids) == len(set(ids)), "a batch tells of each mount once"
        for event in batch:
            self._apply(event)
        self.batches.append(batch)

    def _apply(self, event):
        kind, mnt_id, old, new, fields, _ = event
        if kind is MountEventKind.RESYNC:
            assert (mnt_id, old, new, fields) == (None, None, None, ())
        elif kind is MountEventKind.TRANSIENT:
            assert mnt_id not in self._ever
            assert (new, fields) == (None, ())
        else:
            assert old == self.mounts.get(mnt_id)
            assert (old is None) == (kind is MountEventKind.ATTACHED)
            assert (new is None) == (kind is MountEventKind.DETACHED)
        if new is not None:
            # Nothing half-filled.
            assert new.mnt_id == mnt_id
            assert None not in (new.mnt_point, new.mnt_parent_id)
            self.mounts[mnt_id] = new
        elif old is not None:
            self.mounts.pop(mnt_id, None)
        if old is not None and new is not None:
            assert fields == tuple(
                name
                for name in old._fields
                if name not in _NOT_COMPARED and getattr(old, name) != getattr(new, name)
            )
            located = {"mnt_point", "mnt_parent_id", "mnt_parent_id_old"} & set(fields)
            assert fields
            assert (kind is MountEventKind.MOVED) == bool(located)
        self._ever.add(mnt_id)

    def is_true(self):
        return set(map(told, self.mounts.values())) == true_mounts()

    def difference(self):
        return sorted(set(map(told, self.mounts.values())) ^ true_mounts())

    def seen(self):
        """Each event as its kind, the last component of the mount point, and its fields."""
        return sorted(
            (
                event.kind.value,
                os.path.basename((event.new or event.old or _NOWHERE).mnt_point),
                " ".join(event.fields),
            )
            for event in self.events
        )


_NOWHERE = SimpleNamespace(mnt_point="")


class watching(Replayed):
    """``async with watching(face, ...) as watch``: a watch of either face, and what it told."""

    def __init__(self, face, **options):
        if face.name == "blocking":
            options = {"timeout": AMPLE} | options
        self._block = faces.block(face.library.watch_mounts(**options))
        self._is_blocking = face.name == "blocking"

    async def __aenter__(self):
        self.watch = await self._block.__aenter__()
        super().__init__(self.watch.snapshot)
        return self

    async def __aexit__(self, *exc):
        return await self._block.__aexit__(*exc)

    async def next_raw(self):
        """The next batch, which is not waited for without end and not applied."""
        if self._is_blocking:
            return next(self.watch)
        with anyio.fail_after(AMPLE):
            return await anext(self.watch)

    async def next(self):
        batch = await self.next_raw()
        assert batch, f"nothing was told of {self.difference()}"
        self.apply(batch)
        return batch

    async def catch_up(self):
        """Take batches until they make what mountinfo has."""
        while not self.is_true():
            await self.next()


def caught_up(changes, replayed):
    """The same for a watch of the blocking face that was made with a timeout."""
    while not replayed.is_true():
        batch = next(changes)
        assert batch, f"nothing was told of {replayed.difference()}"
        replayed.apply(batch)
