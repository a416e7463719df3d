# SPDX-License-Identifier: LGPL-3.0-or-later
"""From the kernel's description of mounts to results, a batch at a time."""

import errno
from collections.abc import Iterable, Sequence
from functools import partial, reduce
from itertools import accumulate, islice, pairwise, repeat
from operator import and_, or_
from typing import Any

from .._native import ffi, lib
from .arguments import ENCODING, ENCODING_ERRORS
from .errors import check
from .flags import StatmountMask
from .results import IdmapMapping, StatmountResult

# So many mounts cross from C at once; in the async face, per hop to a worker thread.
BATCH = 256
# One mount's description: the first try, and where doubling ends. The kernel has no limit of its
# own, but an overlay with 300 lowers needs 57 kB.
_FIRST_SIZE = 4096
_LAST_SIZE = 1 << 26
# A batch's texts fit if its mounts need no more than a sixteenth of the first size each.
_SHORT_MOUNTS = BATCH // 16
# Unique ids begin above the old ones.
_LAST_OLD_ID = 1 << 31
_LAST_ID = (1 << 64) - 1


def check_ids(*mount_ids: int) -> None:
    """Raise :exc:`ValueError` for what can be no mount's id."""
    if not all(0 <= mnt_id <= _LAST_ID for mnt_id in mount_ids):
        raise ValueError("a mount id is a number from 0 to 2^64 - 1")


def id_notes(*mount_ids: int) -> tuple[str, ...]:
    """Notes for an error that one of *mount_ids* may explain."""
    return tuple(
        f"mount id {mnt_id}"
        if mnt_id > _LAST_OLD_ID
        else f"{mnt_id} is no unique mount id (STATX_MNT_ID_UNIQUE), those are above 2^31"
        for mnt_id in mount_ids
    )


class StatmountBatches:
    """Describes the mounts *ids*, a batch a call, in buffers that grow with what they must hold."""

    def __init__(self, ids: Sequence[int], mask: int, ns: tuple[int, int]) -> None:
        self._ids = ffi.new("uint64_t[]", ids)
        self._done = 0
        self.left: int = len(ids)
        self._mask = int(mask)
        self._ns = ns
        capacity = min(self.left, BATCH)
        self._numbers = ffi.new("uint64_t[]", lib.TOS_NUMBERS * capacity)
        self._batch = ffi.new(
            "struct tos_mount_batch *", {"capacity": capacity, "numbers": self._numbers}
        )
        self._allocate(_FIRST_SIZE)

    def _allocate(self, size: int) -> None:
        # Room for a whole batch while its mounts are short, for one mount when that is long.
        areas = max(1, min(self.left, _SHORT_MOUNTS, _SHORT_MOUNTS * _FIRST_SIZE // size))
        self._scratch = ffi.new("char[]", size)
        self._texts = ffi.new("char[]", size * areas)
        self._lists = ffi.new("char[]", size * areas)
        batch = self._batch
        batch.scratch, batch.scratch_size = self._scratch, size
        batch.texts, batch.texts_size = self._texts, size * areas
        batch.lists, batch.lists_size = self._lists, size * areas

    def next_batch(self) -> list[StatmountResult]:
        """The next few hundred mounts, or those of them that still exist."""
        batch = self._batch
        ids = self._ids + self._done
        mask = self._mask | StatmountMask.SUPPORTED_MASK.value
        while (ret := lib.tos_statmounts(*self._ns, ids, self.left, mask, batch)) < 0:
            if ret == -errno.EOVERFLOW and batch.scratch_size < _LAST_SIZE:
                self._allocate(2 * batch.scratch_size)
            else:
                check(ret, "statmount", notes=id_notes(ids[0]))
        self._done += batch.consumed
        self.left -= batch.consumed
        return _decode(self._mask, batch) if batch.count else []


_NUMBERS = {
    "mnt_id": (StatmountMask.MNT_BASIC, lib.TOS_MNT_ID),
    "mnt_parent_id": (StatmountMask.MNT_BASIC, lib.TOS_MNT_PARENT_ID),
    "mnt_id_old": (StatmountMask.MNT_BASIC, lib.TOS_MNT_ID_OLD),
    "mnt_parent_id_old": (StatmountMask.MNT_BASIC, lib.TOS_MNT_PARENT_ID_OLD),
    "mnt_attr": (StatmountMask.MNT_BASIC, lib.TOS_MNT_ATTR),
    "mnt_propagation": (StatmountMask.MNT_BASIC, lib.TOS_MNT_PROPAGATION),
    "mnt_peer_group": (StatmountMask.MNT_BASIC, lib.TOS_MNT_PEER_GROUP),
    "mnt_master": (StatmountMask.MNT_BASIC, lib.TOS_MNT_MASTER),
    "propagate_from": (StatmountMask.PROPAGATE_FROM, lib.TOS_PROPAGATE_FROM),
    "mnt_ns_id": (StatmountMask.MNT_NS_ID, lib.TOS_MNT_NS_ID),
    "sb_dev_major": (StatmountMask.SB_BASIC, lib.TOS_SB_DEV_MAJOR),
    "sb_dev_minor": (StatmountMask.SB_BASIC, lib.TOS_SB_DEV_MINOR),
    "sb_magic": (StatmountMask.SB_BASIC, lib.TOS_SB_MAGIC),
    "sb_flags": (StatmountMask.SB_BASIC, lib.TOS_SB_FLAGS),
    "supported_mask": (StatmountMask.SUPPORTED_MASK, lib.TOS_SUPPORTED_MASK),
}
_TEXTS = {
    "mnt_root": (StatmountMask.MNT_ROOT, lib.TOS_MNT_ROOT),
    "mnt_point": (StatmountMask.MNT_POINT, lib.TOS_MNT_POINT),
    "fs_type": (StatmountMask.FS_TYPE, lib.TOS_FS_TYPE),
    "mnt_opts": (StatmountMask.MNT_OPTS, lib.TOS_MNT_OPTS),
    "fs_subtype": (StatmountMask.FS_SUBTYPE, lib.TOS_FS_SUBTYPE),
    "sb_source": (StatmountMask.SB_SOURCE, lib.TOS_SB_SOURCE),
}
# In the order in which their elements follow each other.
_LISTS = {
    "opt_array": (StatmountMask.OPT_ARRAY, lib.TOS_OPT_NUM),
    "opt_sec_array": (StatmountMask.OPT_SEC_ARRAY, lib.TOS_OPT_SEC_NUM),
    "mnt_uidmap": (StatmountMask.MNT_UIDMAP, lib.TOS_MNT_UIDMAP_NUM),
    "mnt_gidmap": (StatmountMask.MNT_GIDMAP, lib.TOS_MNT_GIDMAP_NUM),
}
_BITS = {field: bit.value for field, (bit, _) in (_NUMBERS | _TEXTS | _LISTS).items()}
_SOME_TEXT = sum(bit.value for bit, _ in _TEXTS.values())
_SOME_LIST = sum(bit.value for bit, _ in _LISTS.values())
# The kernel clears the bit of an empty value; for these, empty is a value.
_MAY_BE_EMPTY = frozenset({"mnt_opts", "fs_subtype", *_LISTS})

_result = partial(tuple.__new__, StatmountResult)


def _decode(asked: int, batch: Any) -> list[StatmountResult]:
    """Column by column: of what is asked for, most is the same kind of value in every mount."""
    masks = _column(batch, lib.TOS_MASK)
    columns: dict[str, Iterable[Any]] = {}
    for field, (bit, index) in _NUMBERS.items():
        if asked & bit.value:
            columns[field] = _column(batch, index)
    if asked & _SOME_TEXT:
        texts = _split(batch.texts, batch.texts_len)
        for field, (_, index) in _TEXTS.items():
            columns[field] = texts[index : -1 : lib.TOS_TEXTS]
    if asked & _SOME_LIST:
        columns |= _list_columns(batch)

    every, some = reduce(and_, masks), reduce(or_, masks)
    supported = batch.numbers[lib.TOS_SUPPORTED_MASK * batch.capacity]
    for field, wanted in _BITS.items():
        empty_is_a_value = supported & wanted and field in _MAY_BE_EMPTY
        if not asked & wanted or not (some & wanted or empty_is_a_value):
            columns[field] = repeat(None)
        elif not (every & wanted or empty_is_a_value):
            columns[field] = [
                value if mask & wanted else None
                for value, mask in zip(columns[field], masks, strict=False)
            ]
    # The supported mask is always asked for, on our own account.
    shown = ~(StatmountMask.SUPPORTED_MASK.value & ~asked)
    columns["mask"] = [mask & shown for mask in masks]
    # Not strict: what repeats has no end.
    rows = zip(*(columns[field] for field in StatmountResult._fields), strict=False)
    return list(map(_result, rows))


def _column(batch: Any, index: int) -> list[int]:
    column = ffi.buffer(batch.numbers + index * batch.capacity, 8 * batch.count)
    return memoryview(column).cast("Q").tolist()


def _split(area: Any, length: int) -> list[str]:
    raw: bytes = ffi.unpack(area, length)
    return raw.decode(ENCODING, ENCODING_ERRORS).split("\0")


def _list_columns(batch: Any) -> dict[str, Iterable[tuple[Any, ...]]]:
    elements = _split(batch.lists, batch.lists_len)
    counts = [_column(batch, index) for _, index in _LISTS.values()]
    if not any(map(any, counts[1:])):
        # Options and nothing else, as nearly always.
        ends = [0, *accumulate(counts[0])]
        opts: list[tuple[Any, ...]] = [tuple(elements[a:b]) for a, b in pairwise(ends)]
        return dict(zip(_LISTS, (opts, *[repeat(())] * 3), strict=True))
    each = iter(elements)
    rows = [
        (
            tuple(islice(each, n_opt)),
            tuple(islice(each, n_sec)),
            tuple(map(_mapping, islice(each, n_uid))),
            tuple(map(_mapping, islice(each, n_gid))),
        )
        for n_opt, n_sec, n_uid, n_gid in zip(*counts, strict=True)
    ]
    return dict(zip(_LISTS, zip(*rows, strict=True), strict=True))


def _mapping(text: str) -> IdmapMapping:
    inside, outside, length = text.split()
    return IdmapMapping(int(inside), int(outside), int(length))
