# SPDX-License-Identifier: LGPL-3.0-or-later
"""``stat``: what the kernel knows of one file."""

import argparse
import grp
import os
import pwd
import stat
import sys
import time
from collections.abc import Callable
from typing import Any, Final

from .. import blocking
from ..blocking import AtFlag, StatmountMask, StatxAttr, StatxMask, StatxResult
from .output import encoding_of, escaped, flag_names, write, write_json

_DESCRIPTION = """\
Show what statx(2) says of PATH; of a symlink, not of what it leads to.

Bytes that a terminal must not get, or cannot show, are written \\xNN. What the
file system does not tell is "-".
"""
_EPILOG = """\
JSON is one object: the fields of StatxResult, the times in nanoseconds too
(stx_atime_ns ...), and the device numbers as os.makedev makes them (stx_dev,
stx_rdev). stx_mask tells which fields the file system filled in (STATX_*);
others are 0.

examples:
  truenas-os stat /etc/hosts
  truenas-os stat /etc/hosts --json | jq .stx_btime_ns
"""

# All that there is, except the bit that the kernel refuses.
_MASK: Final = ~StatxMask(0) & ~StatxMask.RESERVED

_TYPES: Final = {
    stat.S_IFREG: "regular file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symbolic link",
    stat.S_IFBLK: "block device",
    stat.S_IFCHR: "character device",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}
_DERIVED: Final = (
    "stx_atime_ns",
    "stx_btime_ns",
    "stx_ctime_ns",
    "stx_mtime_ns",
    "stx_dev",
    "stx_rdev",
)


def register(commands: "argparse._SubParsersAction[Any]") -> None:
    parser = commands.add_parser(
        "stat",
        help="show the attributes of a file",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", metavar="PATH", help="a final symlink is not followed")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    # Like stat(1), which asks no server to mount what is only looked at.
    flags = AtFlag.SYMLINK_NOFOLLOW | AtFlag.NO_AUTOMOUNT
    found = blocking.statx(blocking.AT_FDCWD, arguments.path, flags, _MASK)
    if arguments.json:
        write_json(found._asdict() | {name: getattr(found, name) for name in _DERIVED})
    else:
        write("".join(f"{name + ':':15}{value}\n" for name, value in _lines(arguments.path, found)))


def _lines(path: str, found: StatxResult) -> list[tuple[str, str]]:
    def told(bit: StatxMask, text: str) -> str:
        return text if found.stx_mask & bit else "-"

    kind = stat.S_IFMT(found.stx_mode)
    lines = [
        ("name", _name(path, kind)),
        ("type", told(StatxMask.TYPE, type_name(found.stx_mode))),
        ("size", told(StatxMask.SIZE, f"{found.stx_size} bytes")),
        ("blocks", told(StatxMask.BLOCKS, f"{found.stx_blocks} of 512 bytes")),
        ("block size", f"{found.stx_blksize} bytes"),
        ("device", f"{found.stx_dev_major}:{found.stx_dev_minor}"),
    ]
    if kind in (stat.S_IFBLK, stat.S_IFCHR):
        lines.append(("device type", f"{found.stx_rdev_major}:{found.stx_rdev_minor}"))
    mode = f"{stat.S_IMODE(found.stx_mode):04o} {stat.filemode(found.stx_mode)}"
    lines += [
        ("inode", told(StatxMask.INO, str(found.stx_ino))),
        ("links", told(StatxMask.NLINK, str(found.stx_nlink))),
        ("mode", told(StatxMask.MODE, mode)),
        ("uid", told(StatxMask.UID, _owner(found.stx_uid, lambda n: pwd.getpwuid(n).pw_name))),
        ("gid", told(StatxMask.GID, _owner(found.stx_gid, lambda n: grp.getgrgid(n).gr_name))),
        ("access", told(StatxMask.ATIME, _time(found.stx_atime_sec, found.stx_atime_nsec))),
        ("modification", told(StatxMask.MTIME, _time(found.stx_mtime_sec, found.stx_mtime_nsec))),
        ("change", told(StatxMask.CTIME, _time(found.stx_ctime_sec, found.stx_ctime_nsec))),
        ("birth", told(StatxMask.BTIME, _time(found.stx_btime_sec, found.stx_btime_nsec))),
        ("attributes", flag_names(StatxAttr, found.stx_attributes) or "-"),
        ("mount id", _mount(found)),
    ]
    return lines + _extras(found)


def type_name(mode: int) -> str:
    """What kind of file it is."""
    kind = stat.S_IFMT(mode)
    return _TYPES.get(kind, f"{kind:#o}")


def _name(path: str, kind: int) -> str:
    encoding = encoding_of(sys.stdout)
    name = escaped(path, encoding)
    if kind != stat.S_IFLNK:
        return name
    try:
        return f"{name} -> {escaped(os.readlink(path), encoding)}"
    except OSError:  # it was a symlink a moment ago
        return name


def _owner(number: int, name_of: Callable[[int], str]) -> str:
    try:
        return f"{number} ({escaped(name_of(number), encoding_of(sys.stdout))})"
    except KeyError:
        return str(number)


def _time(seconds: int, nanoseconds: int) -> str:
    """ISO 8601, in local time."""
    try:
        at = time.localtime(seconds)
    except (OverflowError, OSError):  # a year beyond what the C library can count
        return f"@{seconds}.{nanoseconds:09}"
    sign, offset = "-" if at.tm_gmtoff < 0 else "+", abs(at.tm_gmtoff)
    return (
        f"{at.tm_year:04}-{at.tm_mon:02}-{at.tm_mday:02}"
        f"T{at.tm_hour:02}:{at.tm_min:02}:{at.tm_sec:02}.{nanoseconds:09}"
        f"{sign}{offset // 3600:02}:{offset // 60 % 60:02}"
    )


def _mount(found: StatxResult) -> str:
    if not found.stx_mask & StatxMask.MNT_ID_UNIQUE:
        return "-"
    try:
        point = blocking.statmount(found.stx_mnt_id, StatmountMask.MNT_POINT).mnt_point
    except OSError:  # a mount of another namespace, or of none
        point = None
    where = "not visible here" if point is None else escaped(point, encoding_of(sys.stdout))
    return f"{found.stx_mnt_id} ({where})"


def _extras(found: StatxResult) -> list[tuple[str, str]]:
    """What only some file systems have."""
    lines = []
    if found.stx_mask & StatxMask.SUBVOL:
        lines.append(("subvolume", str(found.stx_subvol)))
    if found.stx_mask & StatxMask.DIOALIGN:
        memory, offset = found.stx_dio_mem_align, found.stx_dio_offset_align
        direct = f"memory {memory}, offset {offset}"
        if found.stx_mask & StatxMask.DIO_READ_ALIGN and found.stx_dio_read_offset_align:
            direct += f", read offset {found.stx_dio_read_offset_align}"
        lines.append(("direct I/O", f"{direct} bytes" if offset else "not supported"))
    if found.stx_mask & StatxMask.WRITE_ATOMIC and found.stx_atomic_write_unit_max:
        units = f"{found.stx_atomic_write_unit_min} to {found.stx_atomic_write_unit_max} bytes"
        lines.append(("atomic write", units))
    return lines
