# SPDX-License-Identifier: LGPL-3.0-or-later
"""``watch``: what happens to mounts, as it happens."""

import argparse
import errno
import json
import os
import sys
import time
from typing import Any

from .. import blocking
from ..blocking import MountEvent, MountEventKind, MountFilter, StatmountResult
from ..blocking.trees import columns, options
from .mounts import json_object
from .output import encoding_of, escaped, flush, write

_DESCRIPTION = """\
Show what happens to mounts, as it happens, until Ctrl-C; with PATH only to
those at PATH or below.

A line for each event, with TIME KIND TARGET SOURCE FSTYPE DETAILS separated by
one space; a space inside a column is written \\x20, and an empty column is
"-". KIND is one of
  attached   a new mount; DETAILS are its options
  detached   it is gone
  moved      its mount point or parent is another; DETAILS are what differs
  changed    something else about it is different; likewise
  transient  it came and went before it could be looked at
  resync     the kernel has dropped events; what follows comes from a look at
             everything
"""
_EPILOG = """\
JSON is an object on a line for each event: kind, mnt_id, fields, pid (who did
it, where the kernel tells), and old and new, the mount as it was and as it is,
as 'mounts --json --all-fields' has it.

examples:
  truenas-os watch
  truenas-os watch /mnt --kind attached --kind detached
  truenas-os watch --json | jq -r 'select(.kind == "attached") | .new.mnt_point'
"""


def register(commands: "argparse._SubParsersAction[Any]") -> None:
    parser = commands.add_parser(
        "watch",
        help="show what happens to mounts",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "path", metavar="PATH", nargs="?", help="symlinks are followed; it need not exist yet"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--kind",
        action="append",
        choices=[kind.value for kind in MountEventKind],
        metavar="KIND",
        help="show these events only; can be given more than once",
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    if arguments.path == "":  # it would be the current directory
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), "")
    wanted = None if arguments.path is None else MountFilter(under=os.path.realpath(arguments.path))
    show = _json if arguments.json else _line
    with blocking.watch_mounts(mount_filter=wanted) as batches:
        for batch in batches:
            for event in batch:
                if arguments.kind is None or event.kind.value in arguments.kind:
                    write(show(event) + "\n")
            flush()


def _line(event: MountEvent) -> str:
    encoding = encoding_of(sys.stdout)
    at = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    mount = event.new or event.old
    shown = ("", "", "") if mount is None else columns(mount)
    details = ",".join(event.fields)
    if event.kind is MountEventKind.ATTACHED and event.new is not None:
        details = ",".join(options(event.new))
    texts = (escaped(text, encoding, also=" ") or "-" for text in (*shown, details))
    return " ".join((at, event.kind.value, *texts))


def _json(event: MountEvent) -> str:
    return json.dumps(
        {
            "kind": event.kind.value,
            "mnt_id": event.mnt_id,
            "fields": event.fields,
            "pid": event.pid,
            "old": event.old and json_object(event.old, StatmountResult._fields),
            "new": event.new and json_object(event.new, StatmountResult._fields),
        }
    )
