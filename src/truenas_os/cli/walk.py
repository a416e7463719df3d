# SPDX-License-Identifier: LGPL-3.0-or-later
"""``walk``: everything below a directory, and what was left of it another day."""

import argparse
import errno
import json
import os
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Literal

from .. import blocking
from ..blocking import FilesystemIterator, IterInstance, StatxMask
from . import output
from .interruption import Interrupted, Interruption
from .progress import Display, display
from .stat import type_name

_DESCRIPTION = """\
Print the path of everything below ROOT, depth first: a line for each, without
ROOT itself. No symlink is followed and no other mount entered, not even if one
is put in place meanwhile. On a terminal, a progress bar is shown.

Bytes that a terminal must not get, or cannot show, are written \\xNN, except
with --json and -0.
"""
_EPILOG = """\
With --resume, a walk that was interrupted by Ctrl-C or SIGTERM goes on with
exactly the next line when the same command is run again, on filesystems that
allow it (ext4, xfs, btrfs, tmpfs and others), perhaps with some of the last
lines once more on others. FILE is kept up to date while the walk goes on: after
a crash or kill -9, what was printed in the last few seconds comes again, and
nothing is left out. A line that was cut short in a file is ended first, and
comes again. When all is done, FILE is removed. Of a pipe, Ctrl-C ends the
reader too: what it had not read is lost.

A directory that cannot be read is a line on stderr, and the exit status is 1:
that of the run in which it was found, not of one that goes on after it.

JSON is an object on a line for each: path, type, depth, ismount, and fields of
StatxResult, the times in nanoseconds, or null where there is none. A byte in a
path that is not UTF-8 is the escape of a lone surrogate, as os.fsdecode makes
it.

examples:
  truenas-os walk /srv/data --resume ~/data.walk >> list
  truenas-os walk -0 --symlinks /srv | xargs -0 ls -ld
  truenas-os walk --json / | jq -r 'select(.stx_size > 1e9) | .path'
"""

_AT_ONCE: Final = 256
_SHOWN_EVERY: Final = 0.2
# How much may come again after the process was killed, in seconds.
_SAVED_EVERY: Final = 5.0
_TIMES: Final = (
    ("stx_mtime_ns", StatxMask.MTIME),
    ("stx_ctime_ns", StatxMask.CTIME),
    ("stx_btime_ns", StatxMask.BTIME),
)
_FIELDS: Final = (
    "stx_ino",
    "stx_nlink",
    "stx_mode",
    "stx_uid",
    "stx_gid",
    "stx_size",
    "stx_blocks",
)


def register(commands: "argparse._SubParsersAction[Any]") -> None:
    parser = commands.add_parser(
        "walk",
        help="list everything below a directory",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("root", metavar="ROOT", help="a directory, without symlinks in its path")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument(
        "-0", "--null", action="store_true", help="the bytes of each path as they are, then a zero"
    )
    parser.add_argument("--resume", metavar="FILE", help="keep in FILE where the walk stands")
    parser.add_argument("--symlinks", action="store_true", help="print symlinks as well")
    parser.add_argument("--mountpoints", action="store_true", help="print mount points as well")
    parser.add_argument(
        "--btime-cutoff",
        metavar="SECONDS",
        type=_seconds,
        default=0,
        help="leave out what was born later than that, since 1970; no directories",
    )
    parser.set_defaults(run=_run)


def _seconds(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) < 1 << 63):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return int(text)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.root == "":
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), "")
    failures = 0

    def failed(error: OSError) -> Literal["yield"]:
        nonlocal failures
        failures += 1
        output.write_error(output.explained(error))
        return "yield"

    mark = None if arguments.resume is None else _Mark(arguments.resume)
    shown = display(with_bar=not arguments.null)
    with ExitStack() as stack:
        interruption = Interruption()
        if mark is not None or shown.is_bar:
            stack.enter_context(interruption)
        stack.enter_context(shown)
        with _of(mark):
            items = blocking.walk(
                arguments.root,
                file_open_flags=None,
                btime_cutoff=arguments.btime_cutoff,
                include_symlinks=arguments.symlinks,
                include_mountpoints=arguments.mountpoints,
                resume_from=None if mark is None else mark.found,
                on_error=failed,
                progress=shown.show,
                progress_interval=_SHOWN_EVERY,
            )
            interruption.call(stack.enter_context, items)
        if mark is None:
            batches = items.batches(_AT_ONCE)
            while (batch := interruption.call(next, batches, None)) is not None:
                _print(batch, arguments, shown)
        else:
            _print_resumably(items, arguments, shown, mark, interruption)
    return 1 if failures else 0


def _print_resumably(
    items: FilesystemIterator,
    arguments: argparse.Namespace,
    shown: Display,
    mark: "_Mark",
    interruption: Interruption,
) -> None:
    printed, token = 0, items.resume_token()
    if mark.found is not None:
        output.end_line(b"\0" if arguments.null else b"\n")
    mark.save(token)
    batches = items.batches(_AT_ONCE)
    while True:
        try:
            batch = interruption.call(next, batches, None)
        except Interrupted:
            # The token is that of what was printed, whatever became of the call.
            output.sync()
            mark.save(token)
            output.write_error(
                f"stopped after {printed} lines; to go on, run the same command again "
                f"(it is kept in {arguments.resume})"
            )
            raise
        if batch is None:
            break
        _print(batch, arguments, shown)
        printed, token = printed + len(batch), items.resume_token()
        if mark.is_old():
            output.sync()
            mark.save(token)
    output.sync()
    mark.remove()


def _print(items: list[IterInstance], arguments: argparse.Namespace, shown: Display) -> None:
    if arguments.null:
        output.write_bytes(b"".join(os.fsencode(item.path) + b"\0" for item in items))
    elif arguments.json:
        shown.write("".join(json.dumps(_fields(item)) + "\n" for item in items))
    else:
        encoding = output.encoding_of(sys.stdout)
        shown.write("".join(output.escaped(item.path, encoding) + "\n" for item in items))


def _fields(item: IterInstance) -> dict[str, object]:
    found = item.statxinfo
    fields: dict[str, object] = {
        "path": item.path,
        "type": type_name(found.stx_mode) if found.stx_mask & StatxMask.TYPE else None,
        "depth": item.depth,
        "ismount": item.ismount,
    }
    for name in _FIELDS:
        fields[name] = getattr(found, name)
    for name, bit in _TIMES:
        fields[name] = getattr(found, name) if found.stx_mask & bit else None
    return fields


class _Mark:
    """The file that tells where the walk stands."""

    def __init__(self, path: str) -> None:
        self.name = path
        self._path = os.path.realpath(path)
        self._saved_at = time.monotonic()
        self.found: bytes | None = None
        with suppress(FileNotFoundError):
            if not stat.S_ISREG(os.stat(self._path).st_mode):
                raise OSError(errno.EINVAL, "this is no regular file", path)
            self.found = Path(self._path).read_bytes()

    def is_old(self) -> bool:
        return time.monotonic() - self._saved_at > _SAVED_EVERY

    def save(self, token: bytes) -> None:
        blocking.atomic_replace(self._path, token)
        self._saved_at = time.monotonic()

    def remove(self) -> None:
        with suppress(FileNotFoundError):  # another walk may have been told the same FILE
            os.unlink(self._path)


@contextmanager
def _of(mark: _Mark | None) -> Iterator[None]:
    """What is wrong with the file is an error of the file."""
    try:
        yield
    except ValueError as error:
        if mark is None:
            raise
        raise OSError(errno.EINVAL, str(error), mark.name) from error
