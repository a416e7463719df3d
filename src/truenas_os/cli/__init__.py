# SPDX-License-Identifier: LGPL-3.0-or-later
"""The command line: ``truenas-os COMMAND``.

A command is a module of this package, named in ``_COMMANDS``. Its ``register(commands)`` adds a
parser that sets ``run``, a function of the parsed arguments; an :exc:`OSError` that leaves ``run``
becomes one line on stderr, and a group of them a line for each.
"""

import argparse
import signal
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
    "walk",
    "watch",
    "handle",
    "fuse",
)

_EPILOG = """\
exit status:
    0  success
    1  failure; a line on stderr for each says which
    2  wrong usage
  130  ended by Ctrl-C (SIGINT), but for fuse
  141  ended because nobody reads the output any more (SIGPIPE)
  143  ended by SIGTERM, but for fuse

examples:
  truenas-os mounts /home
  truenas-os --print-completion bash >> ~/.bash_completion
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that *argv* (else ``sys.argv``) names; the result is the exit status."""
    try:
        output.gather()
        try:
            arguments = _parser().parse_args(argv)
            status: int = arguments.run(arguments) or 0
        except KeyboardInterrupt:
            # Who pressed Ctrl-C does not wait for a reader of the rest.
            output.discard()
            raise
        finally:
            output.flush()
    except KeyboardInterrupt as interrupt:
        return 128 + int(getattr(interrupt, "number", signal.SIGINT))
    except BrokenPipeError:
        # What a program killed by the signal, as others are, would leave to its shell.
        return 128 + signal.SIGPIPE
    except (OSError, ExceptionGroup) as error:
        for each in _errors(error):
            output.write_error(output.explained(each))
        return 1
    return status


class _Version(argparse.Action):
    """Finding out the version takes longer than most commands do, so only on request."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        output.write(f"truenas-os {metadata.version('truenas-os')}\n")
        parser.exit()


class _Completion(argparse.Action):
    """A script for a shell, made of the parser."""

    def __call__(
        self, parser: argparse.ArgumentParser, _: argparse.Namespace, shell: Any, *__: Any
    ) -> NoReturn:
        try:
            from .completion import script
        except ImportError:
            parser.exit(1, "truenas-os: completion needs shtab: pip install 'truenas-os[cli]'\n")
        output.write(script(parser, shell))
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser = output.Parser(
        prog="truenas-os",
        description="Ask the Linux kernel about mounts and files; mount, walk, watch and serve.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    parser.add_argument(
        "--print-completion",
        action=_Completion,
        choices=("bash", "zsh", "tcsh"),
        help="print what makes that shell complete commands, and exit",
    )
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
