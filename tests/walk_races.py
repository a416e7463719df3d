# SPDX-License-Identifier: LGPL-3.0-or-later
"""Processes that change a tree again and again until they are told to end.

``main(kind, directory)`` does one kind of change in a loop; it says when it has begun, and ends
when its standard input does.
"""

import contextlib
import ctypes
import itertools
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import kernel

_EXCHANGE = 2
_libc = ctypes.CDLL(None, use_errno=True)


def exchange(one, two):
    """renameat2(2): each gets the name of the other."""
    if _libc.renameat2(-100, os.fsencode(one), -100, os.fsencode(two), _EXCHANGE):
        raise OSError(ctypes.get_errno(), "renameat2")


def swap(directory):
    """What "one" and "two" name, in each directory below."""
    pairs = [(d / "one", d / "two") for d in directory.iterdir() if d.is_dir()]
    while True:
        for pair in pairs:
            exchange(*pair)
        yield


def come_and_go(directory):
    """Files and directories that are made and removed beside others."""
    for number in itertools.count():
        for place in (directory, directory / "a", directory / "a" / "b"):
            path = place / f"passing {number % 50}"
            with contextlib.suppress(OSError):
                if number % 3:
                    path.touch()
                else:
                    path.mkdir()
                    (path / "passing").touch()
            path = place / f"passing {(number - 7) % 50}"
            with contextlib.suppress(OSError):
                (path / "passing").unlink()
            with contextlib.suppress(OSError):
                path.rmdir()
            with contextlib.suppress(OSError):
                path.unlink()
        yield


def move(directory):
    """A directory from one to another and back."""
    here, there = directory / "tree" / "here" / "moving", directory / "tree" / "there" / "moving"
    while True:
        here.rename(there)
        there.rename(here)
        yield


def mount(directory):
    """Over a directory, another filesystem and one that is outside of the tree."""
    target = directory / "tree" / "target"
    while True:
        kernel.mount("other", target, "tmpfs")
        (target / "outside in a mount").touch()
        yield
        kernel.umount(target, kernel.MNT_DETACH)
        kernel.mount(directory / "outside", target, None, kernel.MS_BIND)
        yield
        kernel.umount(target, kernel.MNT_DETACH)
        yield


def main(kind, directory):
    changes = {"swap": swap, "come and go": come_and_go, "move": move, "mount": mount}[kind]
    print("begun", flush=True)
    for _ in changes(Path(directory)):
        if select.select([0], [], [], 0)[0]:
            return


@contextlib.contextmanager
def changed_by_another(kind: str, directory: Path) -> Iterator[None]:
    """Changes of that kind are made all the time, until the end of the block."""
    program = f"import walk_races; walk_races.main({kind!r}, {str(directory)!r})"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", program]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, **pipes) as changing:
        try:
            assert changing.stdout.readline() == b"begun\n"
            yield
            assert changing.poll() is None, "it has ended by itself"
        finally:
            changing.stdin.close()
            changing.wait()
