# SPDX-License-Identifier: LGPL-3.0-or-later
"""``bind``: a part of the file tree, in another place too."""

import argparse
import os
import re
import stat
from functools import partial
from pathlib import Path
from typing import Any

from .. import blocking
from ..blocking import IdmapMapping, MountAttr, StatxResult
from .targets import explained

_DESCRIPTION = """\
Bind SOURCE, a directory or a file, to TARGET, which must exist and be of the
same kind. Symlinks in SOURCE are followed, a symlink as TARGET is not.
"""
_EPILOG = """\
A MAPPING is KIND:INSIDE:OUTSIDE:LENGTH. Of so many ids, what is INSIDE on the
filesystem shows as OUTSIDE in the mount. KIND is u for users, g for groups, b
for both. Ids of a kind that has no MAPPING stay as they are; of a kind that
has, the others show as nobody.

examples:
  truenas-os bind --ro /srv/www /mnt
  truenas-os bind -R --idmap b:0:100000:65536 /srv/containers/7 /mnt
"""

_KINDS = {"u": "u", "g": "g", "b": "ug"}


def register(commands: "argparse._SubParsersAction[Any]") -> None:
    parser = commands.add_parser(
        "bind",
        help="bind a directory or file to another place",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("target", metavar="TARGET")
    parser.add_argument("--ro", action="store_true", help="read-only")
    parser.add_argument(
        "-R", "--recursive", action="store_true", help="with the mounts below SOURCE"
    )
    parser.add_argument(
        "--idmap",
        metavar="MAPPING",
        action="append",
        type=_mapping,
        default=[],
        help="map users and groups; may be repeated",
    )
    parser.set_defaults(run=partial(_run, parser))


def _run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    try:
        mounting = blocking.bind(
            arguments.source,
            arguments.target,
            recursive=arguments.recursive,
            attr=MountAttr.RDONLY if arguments.ro else 0,
            idmap=_idmap(arguments.idmap) if arguments.idmap else None,
            keep=True,
        )
    except (TypeError, ValueError) as error:
        parser.error(str(error))

    def is_of_the_same_kind(found: StatxResult) -> bool:
        return stat.S_ISDIR(found.stx_mode) == os.path.isdir(arguments.source)

    with explained(arguments.target, is_of_the_same_kind, "not of the kind of SOURCE"), mounting:
        pass


def _mapping(text: str) -> tuple[str, IdmapMapping]:
    found = re.fullmatch(r"([ugb]):([0-9]{1,10}):([0-9]{1,10}):([0-9]{1,10})", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not u, g or b, then :INSIDE:OUTSIDE:LENGTH")
    kind, *numbers = found.groups()
    return kind, IdmapMapping(*map(int, numbers))


def _idmap(
    given: list[tuple[str, IdmapMapping]],
) -> tuple[list[IdmapMapping], list[IdmapMapping]]:
    def side(letter: str) -> list[IdmapMapping]:
        mappings = [mapping for kind, mapping in given if letter in _KINDS[kind]]
        return mappings or _as_they_are(letter)

    return side("u"), side("g")


def _as_they_are(letter: str) -> list[IdmapMapping]:
    """Every id that this user namespace has, to itself."""
    lines = Path(f"/proc/self/{letter}id_map").read_text().splitlines()
    ranges = [[int(number) for number in line.split()] for line in lines]
    return [IdmapMapping(first, first, length) for first, _, length in ranges]
