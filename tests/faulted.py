# SPDX-License-Identifier: LGPL-3.0-or-later
"""faulty.py in a process of its own, and commands to it from the tests that use what it serves.

Here, unlike elsewhere, it is the test's own process that uses the filesystem: its threads are what
must not be held up. That is why every test has a time limit, after which the server is killed:
then whatever hangs fails, and the test with it.
"""

import contextlib
import itertools
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import kernel
import pytest
from filesystems import require_fuse
from grown import filled, tree
from served import EXAMPLES, is_mounted
from stuck import AMPLE, until, wait_until

LIMIT = 60
# So many bytes the rules never have.
_ALL = 1 << 20


class Count(NamedTuple):
    """What has come of a rule."""

    matched: int
    struck: int
    hanging: int


class Faulty:
    """A server: ``top`` is where it shows ``source``."""

    def __init__(self, base: Path) -> None:
        self.source, self.top = base / "source", base / "top"
        self.source.mkdir()
        self.top.mkdir()
        kernel.mount("tmpfs", self.source, "tmpfs")
        command = [sys.executable, EXAMPLES / "faulty.py", self.source, self.top]
        self.control = -1
        self.process = subprocess.Popen([*map(str, command), "-o", "suid,dev"])
        try:
            wait_until(lambda: is_mounted(self.top), "the mount")
            with self.limited():
                # Kept open, so that no rule is in the way.
                self.control = os.open(self.top / ".faulty", os.O_RDWR)
        except BaseException:
            self.kill()
            raise

    def do(self, *commands: str) -> None:
        text = "\n".join(commands).encode()
        assert os.write(self.control, text) == len(text)

    def counts(self) -> list[Count]:
        """What has come of each rule."""
        lines = os.pread(self.control, _ALL, 0).decode().splitlines()
        return [Count(*map(int, re.findall(r"\d+", line.rpartition("#")[2]))) for line in lines]

    @contextlib.contextmanager
    def rules(self, *commands: str) -> Iterator[None]:
        """Rules that are in force inside the block; at its end, what hangs goes on."""
        self.do("clear", *commands)
        try:
            yield
        finally:
            if self.process.poll() is None:
                self.do("clear")

    def rounds(self, rule: str, which: str = "nth") -> Iterator[AbstractContextManager[None]]:
        """Blocks in which the rule is in force for the first call, then for the second, and so on.

        Of the last one it has struck no call.
        """
        for n in itertools.count(1):
            struck = [0]

            @contextlib.contextmanager
            def armed(n: int = n, struck: list[int] = struck) -> Iterator[None]:
                with self.rules(f"{rule} {which}={n}"):
                    yield
                    struck.append(self.counts()[0].struck)

            yield armed()
            if not struck[-1]:
                assert n > 1, "nothing was struck"
                return

    def is_hanging(self, count: int = 1) -> bool:
        return sum(each.hanging for each in self.counts()) >= count

    async def hangs(self, count: int = 1) -> None:
        """Wait until so many calls hang."""
        await until(lambda: self.is_hanging(count), "a call that hangs")

    def kill(self) -> None:
        """Nothing that waits for the server waits any longer."""
        self.process.kill()
        self.process.wait(AMPLE)
        control, self.control = self.control, -1
        with contextlib.suppress(OSError):  # it was closed, or there is nobody to be told of it
            os.close(control)

    def kill_with_guard(self) -> None:
        """Leave a mount that is dead, and stays: nobody detaches it."""
        tasks = Path(f"/proc/{self.process.pid}/task")
        for child in " ".join(p.read_text() for p in tasks.glob("*/children")).split():
            os.kill(int(child), 9)
        self.kill()

    def close(self) -> None:
        self.kill()
        kernel.umount(self.source, kernel.MNT_DETACH)
        wait_until(lambda: not is_mounted(self.top), "the end of the mount")

    @contextlib.contextmanager
    def limited(self) -> Iterator["Faulty"]:
        """Kill the server if the block does not end in time."""
        over = threading.Timer(LIMIT, self.process.kill)
        over.start()
        try:
            yield self
        finally:
            over.cancel()


@contextlib.contextmanager
def served(base: Path) -> Iterator[Faulty]:
    require_fuse()
    base.mkdir(exist_ok=True)
    server = Faulty(base)
    try:
        yield server
    finally:
        server.close()


@pytest.fixture(scope="module")
def server_of_the_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faulty]:
    with served(tmp_path_factory.mktemp("faulty")) as server:
        yield server


@pytest.fixture
def faulty(server_of_the_module: Faulty) -> Iterator[Faulty]:
    """A server for the whole module, whose source is empty, and which has no rules."""
    server = server_of_the_module
    with server.limited():
        try:
            yield server
        finally:
            assert server.process.poll() is None, "the test was too slow, or hangs"
            server.do("clear")
    subprocess.run(["find", server.source, "-mindepth", "1", "-delete"], check=True)


@pytest.fixture
def faulty_server(tmp_path: Path) -> Iterator[Faulty]:
    """A server of the test's own, which it may kill."""
    with served(tmp_path / "faulty") as server, server.limited():
        yield server


def small(root: Path) -> list[bytes]:
    """A small tree; the paths in it, relative to the root, in the order of a walk."""
    (root / "a" / "b").mkdir(parents=True)
    (root / "empty").mkdir()
    for directory, names in (("", "file"), ("a", "one two"), ("a/b", "three")):
        filled(root / directory, *names.split())
    return relative(tree(root), root)


def smaller(root: Path) -> list[bytes]:
    """The same, with next to nothing in it."""
    (root / "a").mkdir()
    for directory in ("", "a"):
        filled(root / directory, "file")
    return relative(tree(root), root)


def relative(paths: list[bytes], root: Path) -> list[bytes]:
    return [os.path.relpath(path, os.fsencode(root)) for path in paths]


# Nothing here is left to the garbage collector, which would take its time for every round.


async def fds_close(before: dict[int, str]) -> None:
    await until(lambda: kernel.open_fds().keys() <= before.keys(), "the end of new descriptors")


def fds_close_without_a_loop(before: dict[int, str]) -> None:
    wait_until(lambda: kernel.open_fds().keys() <= before.keys(), "the end of new descriptors")
