# SPDX-License-Identifier: LGPL-3.0-or-later
"""Shell completion, by shtab, which makes it of the parser."""

import argparse
from collections.abc import Iterator

import shtab

# What of the arguments is a path, by its name in the help.
_PATHS = frozenset({"FILE", "MOUNT", "PATH", "ROOT", "SOURCE", "TARGET"})


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """What *shell* is to read."""
    for action in _actions(parser):
        if action.metavar in _PATHS:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    return shtab.complete(parser, shell=shell) + "\n"


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
