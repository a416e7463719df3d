# SPDX-License-Identifier: LGPL-3.0-or-later
"""``mounts``: the mount table."""

import argparse
import sys
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final

from .. import blocking
from ..blocking import MountAttr, MsFlag, StatmountMask, StatmountResult
from ..blocking.trees import TreeOfMounts, columns, options
from .output import encoding_of, escaped, flag_names, is_terminal, write, write_json
from .tree import Row, characters, write_tree

_HEADER: Final[Row] = ("TARGET", "SOURCE", "FSTYPE", "OPTIONS")

_DESCRIPTION = """\
List the mounts that this process can see, or with PATH only the one that holds
that path.

On a terminal: a tree, children below their parents, with a header, the options
cut to fit. Otherwise, for scripts: no header, a line for each mount in the
order of their ids, with TARGET SOURCE FSTYPE OPTIONS separated by one space.
Spaces inside a column are written \\x20, and an empty column is "-".

Bytes that a terminal must not get, or cannot show, are written \\xNN
everywhere but in JSON.
"""
_EPILOG = """\
JSON is an array of objects, also for one mount; the keys are the fields of
StatmountResult. A byte in a name that is not UTF-8 is the escape of a lone
surrogate, \\udc80 to \\udcff, as os.fsdecode makes it and os.fsencode takes it
back.

examples:
  truenas-os mounts
  truenas-os mounts /home --all-fields
  truenas-os mounts --json | jq -r '.[] | select(.fs_type == "zfs").mnt_point'
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
        write_json([json_object(mount, fields) for mount in mounts])
    elif arguments.all_fields:
        write("\n".join(map(_block, mounts)))
    elif is_terminal():
        escape = partial(escaped, encoding=encoding_of(sys.stdout))
        drawn = characters(encoding_of(sys.stdout))
        branches = TreeOfMounts(mounts).branches(drawn.branches)
        rows = ((before, _row(mount, escape)) for before, mount in branches)
        write_tree(_HEADER, rows, drawn)
    else:
        escape = partial(escaped, encoding=encoding_of(sys.stdout), also=" ")
        write("".join(" ".join(_row(mount, escape)) + "\n" for mount in mounts))


def _row(mount: StatmountResult, escape: Callable[[str], str]) -> Row:
    target, source, fs_type = (escape(text) or "-" for text in columns(mount))
    return target, source, fs_type, _joined(options(mount), escape)


def _joined(words: Iterable[str], escape: Callable[[str], str]) -> str:
    # A comma inside an option is no separator.
    return ",".join(escape(word).replace(",", r"\x2c") for word in words)


def json_object(mount: StatmountResult, fields: tuple[str, ...]) -> dict[str, object]:
    """The *fields* of a mount as JSON has them."""
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
