# SPDX-License-Identifier: LGPL-3.0-or-later
"""The mounts as a tree on a terminal."""

import shutil
import sys
import unicodedata
from collections.abc import Iterable
from typing import Final, NamedTuple

from ..blocking.trees import BOX, Branches
from .output import can_encode, write


class Characters(NamedTuple):
    """What a tree is drawn with, and what a text that is cut ends with."""

    branches: Branches
    ellipsis: str


_BOX: Final = Characters(BOX, "…")
_ASCII: Final = Characters(Branches("|-", "`-", "| ", "  "), "...")

# However long the other columns are, so much of OPTIONS stays.
_LEAST_OPTIONS = 16

Row = tuple[str, str, str, str]


def characters(encoding: str) -> Characters:
    """Those of findmnt, in ASCII if *encoding* has no others."""
    return _BOX if can_encode("".join(_BOX.branches) + _BOX.ellipsis, encoding) else _ASCII


def write_tree(header: Row, rows: Iterable[tuple[str, Row]], drawn: Characters) -> None:
    """Write aligned columns, the first behind what is drawn before it, the last cut to fit."""
    table = [("", header), *rows]
    first = max(_width(before + row[0]) for before, row in table)
    second = max(_width(row[1]) for _, row in table)
    third = max(_width(row[2]) for _, row in table)
    room = shutil.get_terminal_size().columns - first - second - third - 3
    lines = [
        (
            before,
            _padded(row[0], first - _width(before) + 1),
            _padded(row[1], second + 1) + _padded(row[2], third + 1),
            _cut(row[3], max(room, _LEAST_OPTIONS), drawn.ellipsis),
        )
        for before, row in table
    ]
    try:
        from rich.console import Console
        from rich.text import Text
    except ImportError:
        write("".join("".join(line) + "\n" for line in lines))
        return
    console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
    console.print(Text("".join(lines[0]), "bold"))
    for before, target, source_and_type, options in lines[1:]:
        console.print(
            Text.assemble((before, "dim"), (target, "bold"), source_and_type, (options, "dim"))
        )


def _width(text: str) -> int:
    """The columns that *text* takes on a terminal."""
    if text.isascii():
        return len(text)
    return sum(
        0
        if unicodedata.category(char) in ("Mn", "Me")
        else 2
        if unicodedata.east_asian_width(char) in "WF"
        else 1
        for char in text
    )


def _padded(text: str, width: int) -> str:
    return text + " " * (width - _width(text))


def _cut(text: str, room: int, ellipsis: str) -> str:
    if _width(text) <= room:
        return text
    text = text[:room]
    while _width(text) > room - len(ellipsis):
        text = text[:-1]
    return text + ellipsis
