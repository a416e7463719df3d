# SPDX-License-Identifier: LGPL-3.0-or-later
"""The mount table as a tree, seen at one moment."""

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from typing import Final, NamedTuple

from .arguments import FileDescriptorLike, StrOrBytesPath, fileno, path_bytes
from .files import openat2, statx
from .flags import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    RESOLVE_NO_SYMLINKS,
    STATMOUNT_MNT_BASIC,
    STATMOUNT_MNT_POINT,
    STATX_MNT_ID_UNIQUE,
    MountAttr,
    MsFlag,
)
from .mounts import ALL_FIELDS, iter_mount
from .results import StatmountResult

# What makes a tree of the mounts.
_SHAPE = STATMOUNT_MNT_BASIC | STATMOUNT_MNT_POINT
# So often the table is read until nothing has changed meanwhile.
_TRIES = 16

# In the order of mountinfo; the access time settings are values, not bits.
_ATTRIBUTES: Final = (
    (MountAttr.NOSUID, MountAttr.NOSUID, "nosuid"),
    (MountAttr.NODEV, MountAttr.NODEV, "nodev"),
    (MountAttr.NOEXEC, MountAttr.NOEXEC, "noexec"),
    (MountAttr.ATIME_MASK, MountAttr.NOATIME, "noatime"),
    (MountAttr.NODIRATIME, MountAttr.NODIRATIME, "nodiratime"),
    (MountAttr.ATIME_MASK, MountAttr.RELATIME, "relatime"),
    (MountAttr.NOSYMFOLLOW, MountAttr.NOSYMFOLLOW, "nosymfollow"),
    (MountAttr.IDMAP, MountAttr.IDMAP, "idmapped"),
)
_SUPERBLOCK: Final = (
    (MsFlag.SYNCHRONOUS, "sync"),
    (MsFlag.DIRSYNC, "dirsync"),
    (MsFlag.MANDLOCK, "mand"),
    (MsFlag.LAZYTIME, "lazytime"),
)


class Branches(NamedTuple):
    """What a tree is drawn with."""

    child: str
    last_child: str
    past: str
    past_last: str


BOX: Final = Branches("├─", "└─", "│ ", "  ")


class TreeOfMounts:
    """The mounts of a tree, and who is below whom: what the trees of both faces have in common.

    Iterating goes in mount order: that of the unique ids, in which the mounts were created.
    """

    def __init__(self, mounts: Iterable[StatmountResult]) -> None:
        self._mounts: dict[int, StatmountResult] = {_id(mount): mount for mount in mounts}
        self._children: dict[int, list[StatmountResult]] = defaultdict(list)
        self._roots: list[StatmountResult] = []
        for mount in self:
            parent = mount.mnt_parent_id
            if parent is not None and parent in self._mounts and parent != mount.mnt_id:
                self._children[parent].append(mount)
            else:
                self._roots.append(mount)
        self._cut_cycles()
        # The root of a namespace may be its own parent.
        self._at = {
            (mount.mnt_parent_id, mount.mnt_point): mount
            for mount in self
            if mount.mnt_parent_id != mount.mnt_id
        }

    def _cut_cycles(self) -> None:
        # Mounts that were moved while the table was read may name each other as parents.
        reached = {mount.mnt_id for mount in self.depth_first()}
        for mount in self:
            if mount.mnt_id not in reached and mount.mnt_parent_id is not None:
                self._children[mount.mnt_parent_id].remove(mount)
                self._roots.append(mount)
                reached.add(mount.mnt_id)
                reached.update(below.mnt_id for below in self.descendants(_id(mount)))

    def __len__(self) -> int:
        return len(self._mounts)

    def __iter__(self) -> Iterator[StatmountResult]:
        return iter(self._mounts.values())

    def __contains__(self, mnt_id: object) -> bool:
        return mnt_id in self._mounts

    def __getitem__(self, mnt_id: int) -> StatmountResult:
        """The mount with that unique id. Raises :exc:`KeyError` if the tree has none."""
        return self._mounts[mnt_id]

    def get(self, mnt_id: int) -> StatmountResult | None:
        """The mount with that unique id, or None."""
        return self._mounts.get(mnt_id)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self)} mounts>"

    @property
    def root(self) -> StatmountResult | None:
        """The mount that holds ``/``; None if this process's root directory is not a mount's."""
        return next((mount for mount in self._roots if mount.mnt_point == "/"), None)

    def children(self, mnt_id: int) -> tuple[StatmountResult, ...]:
        """The mounts directly below the mount *mnt_id*, in mount order."""
        return tuple(self._children[mnt_id]) if mnt_id in self._children else ()

    def descendants(self, mnt_id: int) -> tuple[StatmountResult, ...]:
        """All mounts below the mount *mnt_id*, depth first: parents before their children."""
        below = self._branches(self.children(mnt_id), Branches("", "", "", ""))
        return tuple(mount for _, mount in below)

    def depth_first(self) -> Iterator[StatmountResult]:
        """All mounts, each before those below it; siblings in mount order."""
        for _, mount in self.branches(Branches("", "", "", "")):
            yield mount

    def under(self, path: StrOrBytesPath) -> tuple[StatmountResult, ...]:
        """The mounts at *path* or below it, in mount order.

        An absolute path, by its components: ``/a`` is above ``/a/b``, not above ``/ab``.
        """
        prefix = normal_path(path)
        return tuple(mount for mount in self if is_under(mount.mnt_point, prefix))

    def at(self, path: StrOrBytesPath) -> StatmountResult | None:
        """The mount that is on top at the mount point *path*; None if that is no mount point."""
        stack = self.stack(path)
        return stack[-1] if stack else None

    def stack(self, path: StrOrBytesPath) -> tuple[StatmountResult, ...]:
        """All mounts at the mount point *path* that a lookup passes, the one on top last."""
        point = normal_path(path)
        return tuple(mount for mount in self._passed(point) if mount.mnt_point == point)

    def select(
        self,
        *,
        fs_type: str | None = None,
        source: str | None = None,
        under: StrOrBytesPath | None = None,
        zfs_snapshots: bool = True,
    ) -> tuple[StatmountResult, ...]:
        """The mounts that match everything given, in mount order.

        *fs_type*: the filesystem. *source*: a shell pattern for the source. *under*: as
        :meth:`under`. Without *zfs_snapshots*, those of ZFS snapshots are left out.
        """
        return tuple(
            mount
            for mount in (self if under is None else self.under(under))
            if (fs_type is None or mount.fs_type == fs_type)
            and (source is None or matches_source(mount, source))
            and (zfs_snapshots or not _is_zfs_snapshot(mount))
        )

    def branches(self, drawn: Branches = BOX) -> Iterator[tuple[str, StatmountResult]]:
        """Each mount below its parent, with what is drawn before it."""
        for root in self._roots:
            yield "", root
            yield from self._branches(self.children(_id(root)), drawn)

    def _branches(
        self, mounts: tuple[StatmountResult, ...], drawn: Branches
    ) -> Iterator[tuple[str, StatmountResult]]:
        # A stack of our own: mounts can be stacked deeper than Python calls.
        stack: list[tuple[str, str, StatmountResult]] = []

        def push(below: str, children: tuple[StatmountResult, ...]) -> None:
            branch, under = drawn.last_child, drawn.past_last
            for child in reversed(children):
                stack.append((below + branch, below + under, child))
                branch, under = drawn.child, drawn.past

        push("", mounts)
        while stack:
            before, below, mount = stack.pop()
            yield before, mount
            push(below, self.children(_id(mount)))

    def _passed(self, path: str) -> Iterator[StatmountResult]:
        """The mounts that a lookup of *path* crosses into, from the root on."""
        at: set[int | None]
        if self.root is not None:
            yield self.root
            at = {self.root.mnt_id}
        else:  # a directory below the root of a mount that is not listed
            at = {mount.mnt_parent_id for mount in self._roots}
        passed = at.copy()
        for point in _prefixes(path):
            # A lookup begins at the process's root, and not at what is mounted on that.
            if point == "/" != path:
                continue
            while found := [self._at[id_, point] for id_ in at if (id_, point) in self._at]:
                at = {found[0].mnt_id}
                if at <= passed:
                    break  # two that were moved while the table was read
                passed |= at
                yield found[0]

    def __str__(self) -> str:
        """A table as that of :manpage:`findmnt(8)`."""
        rows = [("TARGET", "SOURCE", "FSTYPE", "OPTIONS")]
        for before, mount in self.branches():
            target, source, fs_type = map(_printable, columns(mount))
            rows.append((before + target, source, fs_type, _printable(",".join(options(mount)))))
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        return "\n".join(
            " ".join(
                (*(text.ljust(width) for text, width in zip(row, widths, strict=False)), row[3])
            ).rstrip()
            for row in rows
        )


class MountTree(TreeOfMounts):
    """The mounts of a mount namespace, as :func:`mount_tree` returns them."""

    def containing(
        self,
        path_or_fd: StrOrBytesPath | FileDescriptorLike,
        *,
        resolve: int = RESOLVE_NO_SYMLINKS,
    ) -> StatmountResult | None:
        """The mount that holds a path or an open descriptor; None if the tree does not have it.

        The path is looked up now; *resolve* is as for :func:`mount_of`. Raises :exc:`OSError` as
        :func:`openat2` does.
        """
        return self.get(mnt_id_of(path_or_fd, resolve))


def mount_tree(*, mask: int = ALL_FIELDS, mnt_ns: FileDescriptorLike | None = None) -> MountTree:
    """All mounts that this process can see, as they are at one moment.

    *mask* says which fields of each are wanted (``STATMOUNT_*``); those that make the tree are
    always there. *mnt_ns* is the descriptor of a mount namespace other than one's own. The table is
    read until no mount has come, gone or moved meanwhile, 16 times at most: where mounts change
    without a pause, what is returned was not all seen at one moment.

    Raises :exc:`OSError` as :func:`listmount` does. Linux 6.8; *mnt_ns* 6.11.
    """
    return MountTree(snapshot(mask, mnt_ns))


def snapshot(mask: int, mnt_ns: FileDescriptorLike | None) -> list[StatmountResult]:
    """The mounts of :func:`mount_tree`."""
    for _ in range(_TRIES):
        mounts = list(iter_mount(statmount_flags=mask | _SHAPE, mnt_ns=mnt_ns))
        again = iter_mount(statmount_flags=_SHAPE, mnt_ns=mnt_ns)
        if list(map(_shape, mounts)) == list(map(_shape, again)):
            break
    return mounts


def mnt_id_of(path_or_fd: StrOrBytesPath | FileDescriptorLike, resolve: int) -> int:
    """The unique id of the mount that holds a path or an open descriptor."""
    if isinstance(path_or_fd, (str, bytes, os.PathLike)):
        with openat2(AT_FDCWD, path_or_fd, os.O_PATH, resolve=resolve) as fd:
            return mnt_id_of(fd, resolve)
    return statx(fileno(path_or_fd), "", AT_EMPTY_PATH, STATX_MNT_ID_UNIQUE).stx_mnt_id


def columns(mount: StatmountResult) -> tuple[str, str, str]:
    """Where a mount is, its source with the directory that is its root, its filesystem."""
    source = mount.sb_source or ""
    if mount.mnt_root not in (None, "/"):
        source += f"[{mount.mnt_root}]"
    fs_type = mount.fs_type or ""
    if mount.fs_subtype:
        fs_type += f".{mount.fs_subtype}"
    return mount.mnt_point or "", source, fs_type


def options(mount: StatmountResult) -> list[str]:
    """The options of the mount, of its superblock, and of its filesystem."""
    attributes, flags = mount.mnt_attr or 0, mount.sb_flags or 0
    read_only = attributes & MountAttr.RDONLY or flags & MsFlag.RDONLY
    own = mount.opt_array
    if own is None:  # before Linux 6.13
        own = tuple(filter(None, (mount.mnt_opts or "").split(",")))
    return [
        "ro" if read_only else "rw",
        *(word for bits, value, word in _ATTRIBUTES if attributes & bits == value),
        *(word for bit, word in _SUPERBLOCK if flags & bit),
        *(mount.opt_sec_array or ()),
        *own,
    ]


def _id(mount: StatmountResult) -> int:
    assert mount.mnt_id is not None  # it is always asked for
    return mount.mnt_id


def _shape(mount: StatmountResult) -> tuple[int | None, int | None, str | None]:
    return mount.mnt_id, mount.mnt_parent_id, mount.mnt_point


def normal_path(path: StrOrBytesPath) -> str:
    """An absolute path as the kernel writes it. Raises :exc:`ValueError` for any other."""
    text = os.fsdecode(path_bytes(path))
    names = [name for name in text.split("/") if name not in ("", ".")]
    if not text.startswith("/") or ".." in names:
        raise ValueError(f"the path must be absolute and without '..', not {text!r}")
    return "/" + "/".join(names)


def _prefixes(path: str) -> Iterator[str]:
    """``/``, ``/a``, ``/a/b`` for ``/a/b``."""
    yield "/"
    end = 0
    while path != "/" and end != len(path):
        end = path.find("/", end + 1)
        end = len(path) if end < 0 else end
        yield path[:end]


def is_under(point: str | None, prefix: str) -> bool:
    """Whether a mount point is *prefix* or below it, by components."""
    return point is not None and (
        prefix == "/" or point == prefix or point.startswith(prefix + "/")
    )


def matches_source(mount: StatmountResult, pattern: str) -> bool:
    """Whether the source of a mount matches a shell pattern."""
    return fnmatchcase(mount.sb_source or "", pattern)


def _is_zfs_snapshot(mount: StatmountResult) -> bool:
    return mount.fs_type == "zfs" and "@" in (mount.sb_source or "")


def _printable(text: str) -> str:
    return (text if text.isprintable() else repr(text)[1:-1]) or "-"
