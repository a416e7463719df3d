# SPDX-License-Identifier: LGPL-3.0-or-later
"""The command line: ``python -m truenas_os COMMAND``.

A command is a module of this package, named in ``_COMMANDS``. Its ``register(commands)`` adds a
parser that sets ``run``, a function of the parsed arguments; an :exc:`OSError` that leaves ``run``
becomes one line on stderr, and a group of them a line for each.
"""

import argparse
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module, metadata
from typing import Any, NoReturn

from . import output

_COMMANDS = (
    "mounts",
    "mount",
    "bind",
    "umount",
    "stat",
    "watch",
)

_STATUS = """\
exit status:
  0 success, 1 failure (a line on stderr for each says which), 2 wrong usage
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that *argv* (else ``sys.argv``) names; the result is the exit status."""
    try:
        try:
            arguments = _parser().parse_args(argv)
            arguments.run(arguments)
        except KeyboardInterrupt:
            # Who pressed Ctrl-C does not wait for a reader of the rest.
            output.discard()
            raise
        finally:
            output.flush()
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # What a program killed by the signal, as others are, would leave to its shell.
        return 128 + signal.SIGPIPE
    except (OSError, ExceptionGroup) as error:
        for each in _errors(error):
            output.write_error(_explained(each))
        return 1
    return 0


class _Parser(argparse.ArgumentParser):
    """The messages of argparse repeat arguments as they came, control characters included."""

    def error(self, message: str) -> NoReturn:
        super().error(output.escaped(message, output.encoding_of(sys.stderr)))


class _Version(argparse.Action):
    """Finding out the version takes longer than most commands do, so only on request."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        output.write(f"truenas_os {metadata.version('truenas-os')}\n")
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m truenas_os",
        description="Ask the Linux kernel about mounts and files; mount and unmount.",
        epilog=_STATUS + "\nexample: python -m truenas_os mounts /home",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in _COMMANDS:
        import_module(f".{name}", __name__).register(commands)
    return parser


def _errors(error: OSError | ExceptionGroup) -> Iterator[OSError]:
    """The errors that are to be told. What else is in a group is a mistake of this program's."""
    if isinstance(error, OSError):
        yield error
        return
    for each in error.exceptions:
        if not isinstance(each, (OSError, ExceptionGroup)):
            raise error
        yield from _errors(each)


def _explained(error: OSError) -> str:
    """The path, what is wrong with it, and the notes that the library left."""
    text = error.strerror or str(error)
    if isinstance(error.filename, (str, bytes)):
        name = os.fsdecode(error.filename) or "''"
        text = f"{name}: {text}"
    if notes := getattr(error, "__notes__", ()):
        text += f" ({'; '.join(notes)})"
    return text
