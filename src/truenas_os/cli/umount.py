# SPDX-License-Identifier: LGPL-3.0-or-later
"""``umount``: what is mounted, no more."""

import argparse
from contextlib import nullcontext
from typing import Any

from .. import blocking
from ..blocking import StatxAttr, StatxResult
from .targets import explained

_DESCRIPTION = """\
Unmount what is on top at TARGET. A symlink as TARGET is not followed.
"""
_EPILOG = """\
What -R cannot unmount is listed, a line for each mount; the rest is unmounted
all the same.

examples:
  truenas-os umount /mnt
  truenas-os umount -R /srv/containers/7
"""


def register(commands: "argparse._SubParsersAction[Any]") -> None:
    parser = commands.add_parser(
        "umount",
        help="unmount",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("target", metavar="TARGET", help="a mount point")
    parser.add_argument(
        "-R", "--recursive", action="store_true", help="with all mounts below, children first"
    )
    parser.add_argument(
        "-l",
        "--lazy",
        action="store_true",
        help="out of sight at once, with all mounts below; unmounted when nothing uses them",
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    by_id = arguments.recursive and not arguments.lazy  # which explains itself
    explaining = explained(arguments.target, _is_mount_point, "no mount point")
    with nullcontext() if by_id else explaining:
        blocking.umount(arguments.target, recursive=arguments.recursive, lazy=arguments.lazy)


def _is_mount_point(found: StatxResult) -> bool:
    return bool(found.stx_attributes & StatxAttr.MOUNT_ROOT)
