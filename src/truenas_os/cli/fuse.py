# SPDX-License-Identifier: LGPL-3.0-or-later
"""``fuse``: serve one of the example filesystems."""

import argparse
import logging
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from .output import Parser

_DESCRIPTION = """\
Serve a filesystem at a mount point, until it is unmounted. Ctrl-C and SIGTERM
unmount it.

NAME is one of
  {}
What each takes, 'truenas-os fuse NAME --help' tells; the last argument is the
mount point.
"""
_EPILOG = """\
The exit status is 0 when the filesystem was unmounted, by Ctrl-C or SIGTERM
too.

With --debug there is a line on stderr for each request: what was asked, by
which process, what the answer was (the size of the reply, or the error), and
how long it took.

examples:
  truenas-os fuse memory --size 100 /mnt
  truenas-os fuse --debug passthrough /srv/data /mnt
"""


def register(commands: "argparse._SubParsersAction[Any]") -> None:
    programs = _programs()
    parser = commands.add_parser(
        "fuse",
        help="serve a filesystem",
        description=_DESCRIPTION.format(", ".join(programs)),
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--debug", action="store_true", help="tell of every request")
    # With a further argument for the rest, two dashes between them would be lost.
    parser.add_argument("words", metavar="NAME", choices=[*programs], nargs=argparse.PARSER)
    parser.set_defaults(run=partial(_run, programs))


def _programs() -> dict[str, Path]:
    """The filesystems by name; none where this package was not installed as a whole."""
    package = find_spec(f"{__package__}._filesystems")
    folders = package.submodule_search_locations if package else None
    found = [path for folder in folders or () for path in Path(folder).glob("[!_]*.py")]
    return {path.stem: path for path in sorted(found)}


def _run(programs: dict[str, Path], arguments: argparse.Namespace) -> None:
    name, *words = arguments.words
    end = words.index("--") if "--" in words else len(words)
    rest = [word for word in words[:end] if word != "--debug"] + words[end:]
    if arguments.debug or "--debug" in words[:end]:
        logging.basicConfig(format="%(message)s")
        logging.getLogger("truenas_os.fuse").setLevel(logging.DEBUG)
    program = programs[name]
    # As if it had been called itself, but for what it says of hostile arguments: it may import what
    # is beside it.
    argparse.ArgumentParser.error = Parser.error  # type: ignore[assignment, method-assign]
    sys.argv = [f"truenas-os fuse {name}", *rest]
    sys.path.insert(0, str(program.parent))
    main = sys.modules["__main__"] = ModuleType("__main__")
    main.__file__ = str(program)
    exec(compile(program.read_bytes(), program, "exec"), vars(main))
