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

_DESCRIPTION = """\
Serve a filesystem at a mount point, until it is unmounted. Ctrl-C and SIGTERM
unmount it.

NAME is one of
  {}
What each takes, 'truenas-os fuse NAME --help' tells; the last argument is the
mount point.
"""
_EPILOG = """\
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
    parser.add_argument("name", metavar="NAME", choices=[*programs])
    parser.add_argument("arguments", metavar="...", nargs=argparse.REMAINDER)
    parser.set_defaults(run=partial(_run, programs))


def _programs() -> dict[str, Path]:
    """The filesystems by name; none where this package was not installed as a whole."""
    package = find_spec(f"{__package__}._filesystems")
    folders = package.submodule_search_locations if package else None
    found = [path for folder in folders or () for path in Path(folder).glob("[!_]*.py")]
    return {path.stem: path for path in sorted(found)}


def _run(programs: dict[str, Path], arguments: argparse.Namespace) -> None:
    program = programs[arguments.name]
    rest = [argument for argument in arguments.arguments if argument != "--debug"]
    if arguments.debug or rest != arguments.arguments:
        logging.basicConfig(format="%(message)s")
        logging.getLogger("truenas_os.fuse").setLevel(logging.DEBUG)
    # As if it had been called itself: it may import what is beside it.
    sys.argv = [f"truenas-os fuse {arguments.name}", *rest]
    sys.path.insert(0, str(program.parent))
    main = sys.modules["__main__"] = ModuleType("__main__")
    main.__file__ = str(program)
    exec(compile(program.read_bytes(), program, "exec"), vars(main))
