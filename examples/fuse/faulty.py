#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-3.0-or-later
"""A directory at another place, as passthrough.py shows it, with faults on
command.

Usage: faulty.py SOURCE MOUNTPOINT. Ctrl-C or umount end it.

Commands are written to the file .faulty in the mount's root, one a line:

    echo 'open fail EIO photos/*.jpg' > MOUNTPOINT/.faulty
    cat MOUNTPOINT/.faulty

    OPERATION fail ERRNO      [PATH] [nth=N | from=N]
    OPERATION delay SECONDS   [PATH] [nth=N | from=N]
    OPERATION hang            [PATH] [nth=N | from=N]
    OPERATION hang-intr       [PATH] [nth=N | from=N]
    release
    clear

OPERATION is the name of a handler (lookup, getattr, open, readdir...), PATH
what it is about, relative to the root, which itself is "."; both may have *, ?
and [...], and * matches slashes as well. Of the calls that match, a rule
strikes all, the N-th, or all from the N-th on. What hangs does so until
"release", which leaves the rules as they are, or "clear", which removes them;
a signal ends the wait only of hang-intr. Words are quoted as in a shell, and #
begins a comment.

If several rules strike a call, they do it one after the other, as they were
given. What hangs holds up nobody else. A bad command gives EINVAL, and nothing
of what was written with it is done. Reading the file gives the rules, and of
each how many calls have matched, how many it has struck, and how many hang
now.

The file is not listed. No rule is for it, but to open it is to look at the
root: keep it open if rules are for that. Nothing is kept by the kernel for
later (but what it reads of files that are open), so that every call gets here.
To stat a file is a lookup, which tells the attributes, and then a getattr, or
a statx if somebody asks for the time of birth; opening it asks both of every
directory on the way. A directory is listed by readdir until that gives nothing
more. The close of a file is a flush; release comes later, and nobody waits for
it. If looking up a name fails that the kernel knows, it detaches what is
mounted there or below, and asks once more.
"""

import argparse
import fnmatch
import functools
import inspect
import itertools
import math
import os
import shlex
import stat
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from errno import EINTR, EINVAL, ENOTSUP, errorcode
from typing import Any, NamedTuple

import anyio
from passthrough import Passthrough, arguments_of, prepare, serve

from truenas_os import fuse
from truenas_os.fuse import EntryAttributes, FileInfo, FUSEError, InodeT

OPERATIONS = frozenset(
    name
    for name, handler in vars(Passthrough).items()
    if hasattr(fuse.Operations, name) and inspect.iscoroutinefunction(handler)
) - {"forget", "destroy"}
# Those that are about a name in the directory that the request is about.
NAMED = frozenset(
    ("lookup", "mknod", "mkdir", "symlink", "link", "unlink", "rmdir", "rename", "create")
)
ERRNOS = {name: number for number, name in errorcode.items()}
MANY = 1 << 20  # no rule is to use up the handlers that may be under way


class Rule(NamedTuple):
    """What is to happen to which calls. ``str()`` gives the command."""

    operation: str
    action: str
    argument: str = ""
    path: str = "*"
    first: int = 1
    last: float = math.inf

    def matches(self, operation: str, path: str) -> bool:
        return fnmatch.fnmatchcase(operation, self.operation) and fnmatch.fnmatchcase(
            path, self.path
        )

    def __str__(self) -> str:
        words = [self.operation, self.action, *filter(None, [self.argument]), self.path]
        if self.last == self.first:
            words.append(f"nth={self.first}")
        elif self.first > 1:
            words.append(f"from={self.first}")
        return shlex.join(words)


def parse(line: str) -> Rule | str | None:
    """The rule of a line, or ``"release"`` or ``"clear"``; None if it says nothing.

    Raises :exc:`ValueError` for what is no command.
    """
    words = shlex.split(line, comments=True)
    if not words:
        return None
    if words in (["release"], ["clear"]):
        return words[0]
    operation, action, *words = words
    if not fnmatch.filter(OPERATIONS, operation):
        raise ValueError(f"no operation is called {operation}")
    argument = ""
    if action in ("fail", "delay"):
        argument, *words = words
        if action == "fail" and argument not in ERRNOS:
            raise ValueError(f"there is no error {argument}")
        if action == "delay" and not 0 <= float(argument) < math.inf:
            raise ValueError(f"{argument} is not so many seconds")
    elif action not in ("hang", "hang-intr"):
        raise ValueError(f"no action is called {action}")
    first, last = 1, math.inf
    if words and words[-1].startswith(("nth=", "from=")):
        which, _, number = words.pop().partition("=")
        first = int(number)
        last = first if which == "nth" else math.inf
        if first < 1:
            raise ValueError("calls are counted from 1 on")
    (path,) = words or ["*"]
    if not path or path.startswith(("/", "nth=", "from=")):
        raise ValueError(f"{path!r} is no path relative to the root")
    return Rule(operation, action, argument, path, first, last)


class Armed:
    """A rule, and what has come of it."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.matched = self.struck = self.hanging = 0

    def __str__(self) -> str:
        counts = f"matched {self.matched}, struck {self.struck}, hanging {self.hanging}"
        return f"{self.rule}  # {counts}\n"


class Rules:
    """The rules in force."""

    def __init__(self) -> None:
        self._armed: list[Armed] = []
        # What hangs waits for these, each for its own.
        self.hanging: set[anyio.Event] = set()

    def __str__(self) -> str:
        return "".join(map(str, self._armed))

    def command(self, text: str) -> None:
        """Do what all lines say. Raises :exc:`ValueError`, and does nothing, if one is bad."""
        for said in [parse(line) for line in text.split("\n")]:
            if isinstance(said, Rule):
                self._armed.append(Armed(said))
            elif said is not None:
                if said == "clear":
                    self._armed.clear()
                for event in self.hanging:
                    event.set()

    def striking(self, operation: str, path: str) -> list[Armed]:
        """Count a call; the rules that strike it."""
        striking = []
        for armed in self._armed:
            rule = armed.rule
            if rule.matches(operation, path):
                armed.matched += 1
                if rule.first <= armed.matched <= rule.last:
                    armed.struck += 1
                    striking.append(armed)
        return striking


class Control:
    """The file that takes the commands; these are all the operations that it knows."""

    def __init__(self, name: bytes, inode: InodeT, rules: Rules) -> None:
        self.name = name
        self.inode = inode
        self._rules = rules
        self._handles = itertools.count(1)
        # What each open file has read from the beginning: it may change while it is read.
        self._texts: dict[int, bytes] = {}

    def concerns(self, request: Any, args: Sequence[Any]) -> bool:
        """Whether a request is about this file, or its name, rather than another one."""
        named = (fuse.ROOT_INODE, self.name) in itertools.pairwise(args)
        return named or self.inode in (request.nodeid, *args[:1])

    async def attributes(self, *_: Any) -> EntryAttributes:
        return EntryAttributes(
            st_ino=self.inode,
            entry_timeout=0,
            attr_timeout=0,
            st_mode=stat.S_IFREG | 0o600,
            st_uid=os.getuid(),
            st_gid=os.getgid(),
        )

    # The shell truncates what it writes to.
    lookup = getattr = statx = setattr = attributes

    async def getxattr(self, *_: Any) -> bytes:
        raise FUSEError(fuse.ENOATTR)

    async def open(self, *_: Any) -> FileInfo:
        return FileInfo(fh=next(self._handles), direct_io=True)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        if off == 0:
            self._texts[fh] = os.fsencode(str(self._rules))
        return self._texts.get(fh, b"")[off : off + size]

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        try:
            self._rules.command(os.fsdecode(buf))
        except ValueError:
            raise FUSEError(EINVAL) from None
        return len(buf)

    async def flush(self, *_: Any) -> None:
        pass

    fsync = flush

    async def release(self, fh: int) -> None:
        self._texts.pop(fh, None)


class Faulty(Passthrough):
    """The filesystem."""

    def __init__(self, source: str, control: str) -> None:
        super().__init__(source, timeout=0, passthrough=False)  # or reads could not fail
        self._rules = Rules()
        self._control = Control(os.fsencode(control), InodeT(next(self._numbers)), self._rules)

    async def serve(
        self, operation: str, handler: Callable[..., Awaitable[Any]], args: Sequence[Any]
    ) -> Any:
        """What a handler gives, after what the rules say."""
        request = fuse.current_request()
        if self._control.concerns(request, args):
            own = getattr(self._control, operation, None)
            if own is None:
                raise FUSEError(ENOTSUP)
            return await own(*args)
        for armed in self._rules.striking(operation, self._path(operation, request.nodeid, args)):
            await self._strike(armed)
        return await handler(self, *args)

    def _path(self, operation: str, inode: int, args: Sequence[Any]) -> str:
        """Where in the source a call is, as it is now."""
        root = os.readlink(self._node(fuse.ROOT_INODE).path)
        path = os.readlink(self._node(inode).path)
        if operation in NAMED:
            name = next(arg for arg in args if isinstance(arg, bytes))
            path = os.path.join(path, os.fsdecode(name))
        return os.path.relpath(path, root)

    async def _strike(self, armed: Armed) -> None:
        rule = armed.rule
        if rule.action == "fail":
            raise FUSEError(ERRNOS[rule.argument])
        if rule.action == "delay":
            await anyio.sleep(float(rule.argument))
            return
        armed.hanging += 1
        self._rules.hanging.add(go := anyio.Event())
        try:
            await _hang(go, rule.action == "hang-intr")
        finally:
            self._rules.hanging.remove(go)
            armed.hanging -= 1

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        await super().forget([each for each in inode_list if each[0] != self._control.inode])


async def _hang(go: anyio.Event, heeds_signals: bool) -> None:
    request = fuse.current_request()
    while not go.is_set():
        if heeds_signals and request.interrupted:
            raise FUSEError(EINTR)
        with anyio.move_on_after(0.02 if heeds_signals else None):
            await go.wait()


# Handlers call each other, which is no call of the kernel's.
is_served: ContextVar[bool] = ContextVar("is_served", default=False)


def served(operation: str) -> Callable[..., Any]:
    handler = getattr(Passthrough, operation)

    @functools.wraps(handler)
    async def serve(self: Faulty, *args: Any) -> Any:
        if is_served.get():
            return await handler(self, *args)
        token = is_served.set(True)
        try:
            return await self.serve(operation, handler, args)
        finally:
            # Before a write, the session itself may ask for the attributes.
            is_served.reset(token)

    return serve


for operation in OPERATIONS:
    setattr(Faulty, operation, served(operation))


def main() -> None:
    parser = arguments_of(__doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--control",
        metavar="NAME",
        default=".faulty",
        help="the file in the mount's root that takes the commands (default: .faulty)",
    )
    args = parser.parse_args()
    if "/" in args.control or args.control in ("", ".", ".."):
        parser.error("--control: a name without slashes is needed")
    prepare()
    serve(Faulty(args.source, args.control), parser, args, max_tasks=MANY)


if __name__ == "__main__":
    main()
