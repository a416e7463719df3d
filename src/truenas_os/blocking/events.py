# SPDX-License-Identifier: LGPL-3.0-or-later
"""What can happen to mounts, and the difference between two looks at them."""

import enum
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from .arguments import StrOrBytesPath
from .flags import STATMOUNT_FS_TYPE, STATMOUNT_SB_SOURCE
from .results import StatmountResult
from .trees import is_under, matches_source, normal_path

# struct fanotify_event_metadata; what follows it for a mount: struct fanotify_event_info_mnt.
_METADATA = struct.Struct("=IBBHQii")
_INFO = struct.Struct("=BBHxxxxQ")
_INFO_TYPE_MNT = 7
_OVERFLOW = 0x4000
_ATTACH = 0x1000000

_LOCATION = {"mnt_parent_id", "mnt_parent_id_old", "mnt_point"}
# These say what was asked of the kernel, not what the mount is.
_NOT_OF_THE_MOUNT = {"mask", "supported_mask"}
_COMPARED = tuple(
    (index, name)
    for index, name in enumerate(StatmountResult._fields)
    if name not in _NOT_OF_THE_MOUNT
)
# More mounts that came and went are not kept for a consumer that does not ask.
MOST_TRANSIENTS = 1 << 16


class MountEventKind(enum.Enum):
    """What has happened to a mount."""

    ATTACHED = "attached"
    DETACHED = "detached"
    MOVED = "moved"
    """It has another mount point or another parent."""
    CHANGED = "changed"
    TRANSIENT = "transient"
    """It came and went before it could be looked at."""
    RESYNC = "resync"
    """Events were lost; what follows comes from a look at the whole mount table."""


class MountEvent(NamedTuple):
    """One change of one mount."""

    kind: MountEventKind
    mnt_id: int | None
    """The unique id; None for RESYNC."""
    old: StatmountResult | None
    """The mount as it was last seen; None if it was not there, or came and went unseen."""
    new: StatmountResult | None
    """The mount as it is now; None if it is gone."""
    fields: tuple[str, ...] = ()
    """For MOVED and CHANGED: the names of the fields in which *old* and *new* differ."""
    pid: int | None = None
    """The process that attached, detached or moved it, where the kernel tells."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MountFilter:
    """Mounts that match everything given.

    *path*: the mount point; *under*: the path at or below which it is; *fs_type*: the filesystem;
    *source*: a shell pattern for the source.
    """

    path: StrOrBytesPath | None = None
    under: StrOrBytesPath | None = None
    fs_type: str | None = None
    source: str | None = None

    def __post_init__(self) -> None:
        for name in ("path", "under"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, normal_path(value))

    @property
    def mask(self) -> int:
        """The fields that it looks at (``STATMOUNT_*``), which are then asked for."""
        by_type = STATMOUNT_FS_TYPE if self.fs_type is not None else 0
        return by_type | (STATMOUNT_SB_SOURCE if self.source is not None else 0)

    def __call__(self, mount: StatmountResult) -> bool:
        return (
            (self.path is None or mount.mnt_point == self.path)
            and (self.under is None or is_under(mount.mnt_point, str(self.under)))
            and (self.fs_type is None or mount.fs_type == self.fs_type)
            and (self.source is None or matches_source(mount, self.source))
        )


MountPredicate: TypeAlias = Callable[[StatmountResult], bool]


class MountChanges:
    """The mounts as they were last seen, and what has happened since that was last taken.

    Told what was found, it says what has changed; it looks at nothing itself.
    """

    def __init__(self, mounts: Iterable[StatmountResult]) -> None:
        self.mounts: dict[int, StatmountResult] = {}
        self._places: dict[tuple[int | None, str | None], int] = {}
        for mount in mounts:
            self._put(mount.mnt_id or 0, mount)
        # What the touched ones were when the changes were last taken, and who touched them.
        self._before: dict[int, StatmountResult | None] = {}
        self._gone: dict[int, StatmountResult] = {}
        self._pids: dict[int, int] = {}
        self._transients: dict[int, None] = {}
        self._resync = False

    def _put(self, mnt_id: int, mount: StatmountResult) -> None:
        self._forget_place(mnt_id)
        self.mounts[mnt_id] = mount
        self._places[mount.mnt_parent_id, mount.mnt_point] = mnt_id

    def _forget_place(self, mnt_id: int) -> None:
        if (known := self.mounts.get(mnt_id)) is not None:
            place = known.mnt_parent_id, known.mnt_point
            if self._places.get(place) == mnt_id:
                del self._places[place]

    def has_in_place_of(self, mount: StatmountResult) -> bool:
        """Whether another mount was last seen where *mount* is: it must be elsewhere now."""
        place = mount.mnt_parent_id, mount.mnt_point
        return self._places.get(place, mount.mnt_id) != mount.mnt_id

    def __bool__(self) -> bool:
        return bool(self._before or self._transients or self._resync)

    def is_there(self, mount: StatmountResult) -> None:
        """The mount was found, as it is now."""
        mnt_id = mount.mnt_id or 0
        known = self.mounts.get(mnt_id)
        if known != mount:
            self._before.setdefault(mnt_id, known)
            self._put(mnt_id, mount)

    def is_gone(self, mnt_id: int) -> None:
        """The mount was not found."""
        if (known := self.mounts.get(mnt_id)) is not None:
            self._before.setdefault(mnt_id, known)
            self._gone[mnt_id] = known
            self._forget_place(mnt_id)
            del self.mounts[mnt_id]

    def came_and_went(self, mnt_id: int) -> None:
        """The kernel has told of a mount that was never found."""
        if len(self._transients) < MOST_TRANSIENTS:
            self._transients[mnt_id] = None
        else:
            self.lost()

    def acted(self, mnt_id: int, pid: int) -> None:
        """The process *pid* has attached, detached or moved the mount."""
        if pid:
            self._pids[mnt_id] = pid

    def forget_actors(self) -> None:
        """What :meth:`acted` was told is of no change that is still to be taken."""
        self._pids.clear()

    def lost(self) -> None:
        """Events were lost."""
        self._transients.clear()
        self._resync = True

    def initial(self, wanted: MountPredicate | None = None) -> tuple[MountEvent, ...]:
        """All mounts, as if they were attached now."""
        return tuple(
            MountEvent(MountEventKind.ATTACHED, mnt_id, None, mount)
            for mnt_id, mount in self.mounts.items()
            if wanted is None or wanted(mount)
        )

    def take(self, wanted: MountPredicate | None = None) -> tuple[MountEvent, ...]:
        """What has happened since this was last asked, each mount once.

        What is detached comes first, children before their parents as far as their ids tell, and
        what is attached last. A mount whose state is again what it was is left out.
        """
        events = [MountEvent(MountEventKind.RESYNC, None, None, None)] if self._resync else []
        found = [
            *(self._event(mnt_id, None, None) for mnt_id in self._transients),
            *(self._event(mnt_id, old, self.mounts.get(mnt_id)) for mnt_id, old in self._touched()),
        ]
        events += [event for event in found if event is not None and _passes(event, wanted)]
        self._before.clear()
        self._gone.clear()
        self._pids.clear()
        self._transients.clear()
        self._resync = False
        return tuple(events)

    def _touched(self) -> Iterable[tuple[int, StatmountResult | None]]:
        gone = sorted((id_ for id_ in self._before if id_ not in self.mounts), reverse=True)
        there = sorted(id_ for id_ in self._before if id_ in self.mounts)
        old = [id_ for id_ in there if self._before[id_] is not None]
        new = [id_ for id_ in there if self._before[id_] is None]
        return [(id_, self._before[id_]) for id_ in (*gone, *old, *new)]

    def _event(
        self, mnt_id: int, old: StatmountResult | None, new: StatmountResult | None
    ) -> MountEvent | None:
        pid = self._pids.get(mnt_id)
        if old is None and new is None:
            kind = MountEventKind.TRANSIENT
            return MountEvent(kind, mnt_id, self._gone.get(mnt_id), None, (), pid)
        if new is None:
            return MountEvent(MountEventKind.DETACHED, mnt_id, old, None, (), pid)
        if old is None:
            return MountEvent(MountEventKind.ATTACHED, mnt_id, None, new, (), pid)
        fields = tuple(name for index, name in _COMPARED if old[index] != new[index])
        if not fields:
            return None
        moved = not _LOCATION.isdisjoint(fields)
        if not moved:
            return MountEvent(MountEventKind.CHANGED, mnt_id, old, new, fields)
        return MountEvent(MountEventKind.MOVED, mnt_id, old, new, fields, pid)


def _passes(event: MountEvent, wanted: MountPredicate | None) -> bool:
    # Of a mount that nobody has seen, nothing says that it is wanted.
    mounts = [mount for mount in (event.old, event.new) if mount is not None]
    return wanted is None or any(map(wanted, mounts))


def parsed(buffer: bytes) -> tuple[list[tuple[int, int, bool]], bool]:
    """What was read from a fanotify group, and whether events were lost.

    For each event: the id of the mount, the process, whether the mount is gone (neither attached
    nor moved). Raises :exc:`ValueError` for what is no such thing.
    """
    events: list[tuple[int, int, bool]] = []
    overflow = False
    at = 0
    while at < len(buffer):
        try:
            length, _, _, start, mask, _, pid = _METADATA.unpack_from(buffer, at)
            if length < _METADATA.size or length > len(buffer) - at:
                raise ValueError(f"an event of {length} bytes")
            if mask & _OVERFLOW:
                overflow = True  # and no information follows
            elif start + _INFO.size > length:
                raise ValueError("an event of mounts that is cut")
            else:
                kind, _, _, mnt_id = _INFO.unpack_from(buffer, at + start)
                if kind != _INFO_TYPE_MNT:
                    raise ValueError(f"an event of mounts with information of type {kind}")
                events.append((mnt_id, pid, not mask & _ATTACH))
        except struct.error as error:
            raise ValueError("an event of mounts that is cut") from error
        at += length
    return events, overflow
