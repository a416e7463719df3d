# SPDX-License-Identifier: LGPL-3.0-or-later
"""``mounts``: the mount table."""

import argparse
import sys
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final

from .. import blocking
from ..blocking import MountAttr, MsFlag, StatmountMask, StatmountResult
from .output import encoding_of, escaped, flag_names, is_terminal, write, write_json
from .tree import Row, characters, ordered, write_tree

_HEADER: Final[Row] = ("TARGET", "SOURCE", "FSTYPE", "OPTIONS")

_DESCRIPTION = """\
List the mounts that this process can see, or with PATH only the one that holds that path.

On a terminal: a tree, children below their parents, with a header, the options cut to fit.
Otherwise, for scripts: no header, a line for each mount in the order of their ids, with
TARGET SOURCE FSTYPE OPTIONS separated by one space. Spaces inside a column are written
\\x20, and an empty column is "-".

Bytes that a terminal must not get, or cannot show, are written \\xNN everywhere but in JSON.
"""
_EPILOG = """\
JSON is an array of objects, also for one mount; the keys are the fields of StatmountResult.
A byte in a name that is not UTF-8 is the escape of a lone surrogate, \\udc80 to \\udcff, as
os.fsdecode makes it and os.fsencode takes it back.

examples:
  python -m truenas_os mounts
  python -m truenas_os mounts /home --all-fields
  python -m truenas_os mounts --json | jq -r '.[] | select(.fs_type == "zfs") | .mnt_point'
"""

_TABLE_MASK: Final = (
    StatmountMask.MNT_BASIC
    | StatmountMask.SB_BASIC
    | StatmountMask.MNT_ROOT
    | StatmountMask.MNT_POINT
    | StatmountMask.FS_TYPE
    | StatmountMask.FS_SUBTYPE
    | StatmountMask.MNT_OPTS
    | StatmountMask.SB_SOURCE
    | StatmountMask.OPT_ARRAY
    | StatmountMask.OPT_SEC_ARRAY
)
_TABLE_FIELDS: Final = (
    "mnt_id",
    "mnt_parent_id",
    "mnt_root",
    "mnt_point",
    "mnt_attr",
    "fs_type",
    "mnt_opts",
    "sb_flags",
    "fs_subtype",
    "sb_source",
    "opt_array",
    "opt_sec_array",
)
_FLAGS: Final = {
    "mnt_attr": MountAttr,
    "mnt_propagation": MsFlag,
    "sb_flags": MsFlag,
    "mask": StatmountMask,
    "supported_mask": StatmountMask,
}

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


def register(commands: "argparse._SubParsersAction[Any]") -> None:
    parser = commands.add_parser(
        "mounts",
        help="list mounts",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", metavar="PATH", nargs="?", help="symlinks in it are followed")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--all-fields",
        action="store_true",
        help="everything the kernel tells, as 'field: value' lines with an empty line between "
        "mounts, or as JSON",
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    mask = ~StatmountMask(0) if arguments.all_fields else _TABLE_MASK
    if arguments.path is None:
        mounts = list(blocking.iter_mount(statmount_flags=mask))
    else:
        mounts = [blocking.mount_of(arguments.path, mask=mask, resolve=0)]

    if arguments.json:
        fields = StatmountResult._fields if arguments.all_fields else _TABLE_FIELDS
        write_json([_json_object(mount, fields) for mount in mounts])
    elif arguments.all_fields:
        write("\n".join(map(_block, mounts)))
    elif is_terminal():
        escape = partial(escaped, encoding=encoding_of(sys.stdout))
        drawn = characters(encoding_of(sys.stdout))
        rows = ((before, _row(mount, escape)) for before, mount in ordered(mounts, drawn))
        write_tree(_HEADER, rows, drawn)
    else:
        escape = partial(escaped, encoding=encoding_of(sys.stdout), also=" ")
        write("".join(" ".join(_row(mount, escape)) + "\n" for mount in mounts))


def _row(mount: StatmountResult, escape: Callable[[str], str]) -> Row:
    source = mount.sb_source or ""
    if mount.mnt_root not in (None, "/"):
        source += f"[{mount.mnt_root}]"
    fs_type = mount.fs_type or ""
    if mount.fs_subtype:
        fs_type += f".{mount.fs_subtype}"
    return (
        escape(mount.mnt_point or "") or "-",
        escape(source) or "-",
        escape(fs_type) or "-",
        _joined(_options(mount), escape),
    )


def _joined(options: Iterable[str], escape: Callable[[str], str]) -> str:
    # A comma inside an option is no separator.
    return ",".join(escape(option).replace(",", r"\x2c") for option in options)


def _options(mount: StatmountResult) -> list[str]:
    """The options of the mount, of its superblock, and of its file system."""
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


def _json_object(mount: StatmountResult, fields: tuple[str, ...]) -> dict[str, object]:
    values = mount._asdict()
    for name in ("mnt_uidmap", "mnt_gidmap"):
        if values[name] is not None:
            values[name] = [mapping._asdict() for mapping in values[name]]
    return {field: values[field] for field in fields}


def _block(mount: StatmountResult) -> str:
    return "".join(f"{name}: {_value(name, value)}\n" for name, value in mount._asdict().items())


def _value(name: str, value: Any) -> str:
    if value is None or value in ("", ()):
        return "-"
    if name in _FLAGS:
        names = flag_names(_FLAGS[name], value)
        return f"{value:#x} ({names})" if names else "0"
    if name == "sb_magic":
        return f"{value:#x}"
    if name in ("mnt_uidmap", "mnt_gidmap"):
        return ",".join(f"{inside}:{outside}:{length}" for inside, outside, length in value)
    escape = partial(escaped, encoding=encoding_of(sys.stdout))
    return _joined(value, escape) if isinstance(value, tuple) else escape(str(value))
