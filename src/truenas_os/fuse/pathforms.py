# SPDX-License-Identifier: LGPL-3.0-or-later
"""What callbacks of the path level return, in either of its forms, made into what we use.

Each function raises :exc:`FUSEError` for an error that was returned, and :exc:`UnfitError` for what
has no such form. A bool is no number here: what it says about success is not clear.
"""

import os
import stat
import struct
from collections.abc import Collection, Sequence
from dataclasses import fields
from operator import attrgetter
from typing import Any, Final, TypeAlias

from .datatypes import ENOATTR, EntryAttributes, FUSEError, StatvfsData
from .wire import ERRNO_MAX, NAME_MAX

_NS: Final = 1_000_000_000
_KINDS: Final = frozenset(
    {
        stat.S_IFREG,
        stat.S_IFDIR,
        stat.S_IFLNK,
        stat.S_IFCHR,
        stat.S_IFBLK,
        stat.S_IFIFO,
        stat.S_IFSOCK,
    }
)
_values: Final = attrgetter(*(field.name for field in fields(EntryAttributes)))
_FIT: Final = struct.Struct("=2QH4I2QI")
_numbers: Final = attrgetter(
    *("st_ino", "st_mode", "st_nlink", "st_uid", "st_gid", "st_rdev"),
    *("st_size", "st_blocks", "st_blksize"),
)
# Seconds for which attributes are kept if the callback does not say.
_TIMEOUT: Final = 1.0
_STATVFS: Final = (
    "f_bsize",
    "f_frsize",
    "f_blocks",
    "f_bfree",
    "f_bavail",
    "f_files",
    "f_ffree",
    "f_favail",
    "f_namemax",
)


class UnfitError(ValueError):
    """A result that has no form which the callback may return."""


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check(code: object) -> None:
    """Take a result that is to be 0, or a negative errno."""
    if not _is_number(code):
        raise UnfitError
    assert isinstance(code, int)
    if -ERRNO_MAX <= code < 0:
        raise FUSEError(-code)
    if code:
        raise UnfitError


def done(value: object) -> None:
    """None, or 0 or a negative errno."""
    if value is not None:
        _check(value)


def _failure(value: object) -> FUSEError | UnfitError:
    """What a result amounts to that stands for no success: a negative errno, or it is unfit."""
    try:
        _check(value)
    except FUSEError as error:
        return error
    except UnfitError as error:
        return error
    return UnfitError()


def text(value: object) -> bytes:
    """A str or bytes, or a negative errno."""
    if isinstance(value, (str, bytes)):
        return _encoded(value)
    raise _failure(value)


def _encoded(value: str | bytes) -> bytes:
    try:
        return os.fsencode(value)
    except UnicodeEncodeError:
        raise UnfitError from None


def content(value: object, size: int) -> bytes:
    """At most *size* bytes, or 0 for none, or a negative errno."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        if memoryview(value).nbytes > size:
            raise UnfitError
        return bytes(value)
    _check(value)
    return b""


def count(value: object, size: int) -> int:
    """How many bytes of *size* were written, None for all; or a negative errno."""
    return size if value is None else number(value, size)


def value(found: object, size: int) -> bytes:
    """The value of an extended attribute, of at most *size* bytes; None or 0 if there is none."""
    if found is None or (_is_number(found) and found == 0):
        raise FUSEError(ENOATTR)
    return content(found, size)


def number(value: object, most: int) -> int:
    """A number up to *most*, alone or in a pair behind an errno, or a negative errno."""
    if isinstance(value, (tuple, list)) and len(value) == 2:
        _check(value[0])
        value = value[1]
        if not _is_natural(value):
            raise UnfitError
    if not isinstance(value, int) or isinstance(value, bool) or value > most:
        raise UnfitError
    if value < 0:
        _check(value)
    return value


def data(value: object, size: int) -> bytes:
    """At most *size* bytes, alone or in a pair behind an errno; None or 0 for none; an errno."""
    if isinstance(value, (tuple, list)) and len(value) == 2:
        _check(value[0])
        value = value[1]
    return b"" if value is None else content(value, size)


def handle(value: object) -> object:
    """The handle of an open file, None if it has none.

    It may be a number from 1 on, or an object that is no plain data; in a pair behind an errno it
    may be anything.
    """
    if isinstance(value, (tuple, list)):
        if len(value) != 2:
            raise UnfitError
        _check(value[0])
        return value[1]
    if isinstance(value, (bool, float, str, bytes, bytearray, dict, set, EntryAttributes)):
        raise UnfitError
    if isinstance(value, int) and value <= 0:
        _check(value)
        return None
    return value


def attributes(value: object) -> tuple[int, EntryAttributes]:
    """The number of a device, and attributes whose ``st_ino`` is 0 if there is none.

    They come from an :class:`os.stat_result`, :class:`EntryAttributes`, or the 13 values dev, ino,
    mode, nlink, uid, gid, rdev, size, atime, mtime, ctime, blksize and blocks. A negative errno.
    """
    device = 0
    if isinstance(value, EntryAttributes):
        attr = copied(value)
    elif isinstance(value, os.stat_result):
        device = value.st_dev
        attr = EntryAttributes(
            st_ino=value.st_ino,
            entry_timeout=_TIMEOUT,
            attr_timeout=_TIMEOUT,
            st_mode=value.st_mode,
            st_nlink=value.st_nlink,
            st_uid=value.st_uid,
            st_gid=value.st_gid,
            st_rdev=value.st_rdev or 0,
            st_size=value.st_size,
            st_blksize=value.st_blksize or 4096,
            st_blocks=value.st_blocks or 0,
            st_atime_ns=_time(value, "st_atime"),
            st_ctime_ns=_time(value, "st_ctime"),
            st_mtime_ns=_time(value, "st_mtime"),
        )
    elif isinstance(value, (tuple, list)) and len(value) == 13:
        device, attr = _thirteen(value)
    else:
        raise _failure(value)
    try:
        # Only what all of these fit can be told to the kernel.
        _FIT.pack(device, *_numbers(attr))
    except struct.error:
        raise UnfitError from None
    if stat.S_IFMT(attr.st_mode) not in _KINDS or attr.st_size >> 63:
        raise UnfitError
    return device, attr


def copied(attr: EntryAttributes) -> EntryAttributes:
    """The same attributes, to be changed."""
    return EntryAttributes(*_values(attr))


def _is_natural(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 64


def _thirteen(values: Sequence[Any]) -> tuple[int, EntryAttributes]:
    dev, ino, mode, nlink, uid, gid, rdev, size, atime, mtime, ctime, blksize, blocks = values
    attr = EntryAttributes(
        st_ino=ino,
        entry_timeout=_TIMEOUT,
        attr_timeout=_TIMEOUT,
        st_mode=mode,
        st_nlink=nlink,
        st_uid=uid,
        st_gid=gid,
        st_rdev=rdev,
        st_size=size,
        st_blksize=blksize,
        st_blocks=blocks,
        st_atime_ns=_nanoseconds(atime),
        st_mtime_ns=_nanoseconds(mtime),
        st_ctime_ns=_nanoseconds(ctime),
    )
    return dev, attr


def _time(status: os.stat_result, name: str) -> int:
    """A time in nanoseconds; who makes a result of ten values has only given seconds."""
    exact: int | None = getattr(status, f"{name}_ns")
    return _nanoseconds(getattr(status, name)) if exact is None else exact


def _nanoseconds(value: object) -> int:
    """A time: seconds as a number, or a pair of seconds and nanoseconds."""
    if isinstance(value, (tuple, list)):
        if len(value) == 2 and all(map(_is_number, value)) and 0 <= value[1] < _NS:
            return int(value[0]) * _NS + int(value[1])
        raise UnfitError
    if _is_number(value):
        assert isinstance(value, int)
        return value * _NS
    if isinstance(value, float):
        try:
            whole = int(value // 1)
        except (OverflowError, ValueError):  # infinite, or not a number
            raise UnfitError from None
        return whole * _NS + int((value % 1) * _NS)
    raise UnfitError


def state(value: object) -> StatvfsData:
    """The state of the filesystem.

    From :class:`StatvfsData`, :class:`os.statvfs_result`, or six numbers: the longest name, files,
    free files, blocks, blocks available, the block's size; an errno may come before them.
    """
    if isinstance(value, StatvfsData):
        return value
    if isinstance(value, os.statvfs_result):
        return StatvfsData(**{name: getattr(value, name) for name in _STATVFS})
    if not isinstance(value, (tuple, list)):
        raise _failure(value)
    if len(value) == 7:
        _check(value[0])
        value = value[1:]
    if len(value) != 6 or not all(map(_is_natural, value)):
        raise UnfitError
    namemax, files, ffree, blocks, bavail, bsize = value
    return StatvfsData(
        f_bsize=bsize,
        f_frsize=bsize,
        f_blocks=blocks,
        f_bfree=bavail,
        f_bavail=bavail,
        f_files=files,
        f_ffree=ffree,
        f_favail=ffree,
        f_namemax=namemax,
    )


def _listed(value: object) -> list[Any]:
    """What there is in a collection, but for an errno at its end."""
    if isinstance(value, (str, bytes, bytearray, memoryview)) or not isinstance(value, Collection):
        raise _failure(value)
    listed = list(value)
    if listed and isinstance(listed[-1], int):
        _check(listed.pop())
    return listed


def names(value: object) -> list[bytes]:
    """Names, and perhaps an errno behind them; or just an errno."""
    listed = _listed(value)
    if not all(isinstance(each, (str, bytes)) for each in listed):
        raise UnfitError
    return [_encoded(each) for each in listed]


Entry: TypeAlias = tuple[int, str, tuple[int, EntryAttributes] | None]
"""An entry of a directory: where the listing goes on behind it (0: anywhere), its name, and its
attributes with their device, if they were given."""


def entries(value: object) -> list[Entry]:
    """Entries of a directory, each a name, or (offset, name), or (offset, name, attributes).

    The offsets are all 0, or none of them is.
    """
    found = [_entry(each) for each in _listed(value)]
    if any(offset for offset, _, _ in found) and not all(offset for offset, _, _ in found):
        raise UnfitError
    return found


def plain_entries(value: object) -> list[Entry]:
    """Entries of a directory that are names only."""
    return entries(names(value))


def _entry(value: object) -> Entry:
    offset, attr = 0, None
    if isinstance(value, (tuple, list)) and 2 <= len(value) <= 3:
        offset = value[0]
        attr = attributes(value[2]) if len(value) == 3 and value[2] is not None else None
        value = value[1]
    if not _is_number(offset) or not 0 <= offset < 1 << 63:
        raise UnfitError
    if not isinstance(value, (str, bytes)):
        raise UnfitError
    name = os.fsdecode(value)
    if not 0 < len(_encoded(name)) <= NAME_MAX or "/" in name or "\0" in name:
        raise UnfitError
    return offset, name, attr
