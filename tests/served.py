# SPDX-License-Identifier: LGPL-3.0-or-later
"""The example filesystems, each served by a process of its own, and programs that use them.

A thread that touches a filesystem whose server does not answer cannot even be killed. So what uses
one is always a third process, with a timeout, after which the server is killed.
"""

import contextlib
import json
import select
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kernel
import pytest
from stuck import wait_until

EXAMPLES = Path(__file__).parents[1] / "examples" / "fuse"
TESTS = Path(__file__).parent
AMPLE = 60

# How each filesystem is started, with "source" for the directory that is to be shown. The first one
# is native: the witness for what a filesystem is to do.
SYSTEMS = {
    "tmpfs": [],
    "memory": ["memory.py"],
    "writeback": ["memory.py", "--writeback"],
    "passthrough": ["passthrough.py", "source"],
    "mirror": ["mirror.py", "source"],
    # Every read and write comes to this one, even if those of passthrough.py go past it.
    "faulty": ["faulty.py", "source"],
}


class Served:
    """A filesystem: its name, its root directory, and directories of other filesystems.

    What it shows, if it shows something, is the directory ``source``.
    """

    def __init__(self, name: str, places: dict[str, Path]) -> None:
        self.name = name
        self.top, self.source, self.elsewhere = (places[n] for n in ("top", "source", "elsewhere"))
        self.process: subprocess.Popen[bytes] | None = None
        self._posix: subprocess.Popen[str] | None = None

    def run(self, *command: Any, timeout: float = AMPLE) -> str:
        """Run a Python program that uses the filesystem; what it has printed."""
        program = subprocess.Popen(
            [sys.executable, *map(str, command)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=TESTS,
        )
        try:
            out, err = program.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self._abort()
            program.kill()
            raise
        assert program.returncode == 0, err
        return out

    def run_posix(self, name: str) -> None:
        """Run a program of :mod:`posix_programs`."""
        if self._posix is None:
            self._posix = subprocess.Popen(
                [sys.executable, TESTS / "posix_programs.py", self.top, self.elsewhere],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        into, out = self._posix.stdin, self._posix.stdout
        assert into is not None and out is not None
        into.write(name + "\n")
        into.flush()
        if not select.select([out], [], [], AMPLE)[0]:
            self._abort()
            self._posix.kill()
            self._posix = None
            pytest.fail(f"{name} does not end on {self.name}")
        complaint = json.loads(out.readline())
        assert not complaint, complaint

    def _abort(self) -> None:
        """Fail whatever waits for the server: its end closes /dev/fuse."""
        if self.process is not None:
            self.process.kill()

    def close(self) -> None:
        if self._posix is not None:
            self._posix.communicate(timeout=AMPLE)


@contextlib.contextmanager
def serving(name: str, base: Path, *arguments: str, files: int = 4096) -> Iterator[Served]:
    """The filesystem of that name, mounted below *base*; *arguments* go to the example.

    *files*: how many files its process may have open.
    """
    places = {place: base / place for place in ("top", "source", "elsewhere")}
    for place in places.values():
        place.mkdir()
    for place in ("source", "elsewhere") if SYSTEMS[name] else ("top", "elsewhere"):
        kernel.mount("tmpfs", places[place], "tmpfs", data=b"mode=755")
    served = Served(name, places)
    try:
        if SYSTEMS[name]:
            with _example([*SYSTEMS[name], *arguments], places, files) as served.process:
                yield served
                served.close()
        else:
            yield served
            served.close()
    finally:
        for mount in reversed(kernel.mountinfo()):
            if Path(mount.mount_point).is_relative_to(base):
                kernel.umount(mount.mount_point, kernel.MNT_DETACH)


@contextlib.contextmanager
def _example(
    command: list[str], places: dict[str, Path], files: int
) -> Iterator["subprocess.Popen[bytes]"]:
    example, *arguments = [str(places.get(word, word)) for word in command]
    arguments += [str(places["top"]), "-o", "allow_other,suid,dev"]
    limited = ["sh", "-c", 'ulimit -n "$0" && exec "$@"', str(files)]
    program = subprocess.Popen([*limited, sys.executable, EXAMPLES / example, *arguments])
    try:
        # Not ismount(), which asks the server.
        wait_until(lambda: is_mounted(places["top"]), "the mount")
        yield program
        subprocess.run(["umount", places["top"]], check=True, timeout=AMPLE)
        assert program.wait(AMPLE) == 0
    finally:
        program.kill()
        program.wait(AMPLE)


def is_mounted(path: Path) -> bool:
    return any(mount.mount_point == str(path) for mount in kernel.mountinfo())


@contextlib.contextmanager
def mounted_example(
    example: str, source: Path, base: Path, *arguments: str, stderr: Any = None
) -> Iterator[Callable[[str], str]]:
    """An example that shows what is in a file; the result runs a program that looks at it."""
    top = base / "top"
    top.mkdir()
    command = [sys.executable, EXAMPLES / example, source, top, *arguments]
    program = subprocess.Popen(command, stderr=stderr)

    def run(code: str) -> str:
        code = f"import errno, os\ntop = {str(top)!r}\n{textwrap.dedent(code)}"
        try:
            done = subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, timeout=AMPLE
            )
        except subprocess.TimeoutExpired:
            program.kill()
            raise
        assert done.returncode == 0, done.stderr
        return done.stdout

    try:
        wait_until(lambda: is_mounted(top), "the mount")
        yield run
        program.send_signal(signal.SIGTERM)
        assert program.wait(AMPLE) == 0
        assert not is_mounted(top)
    finally:
        program.kill()
        program.wait(AMPLE)
