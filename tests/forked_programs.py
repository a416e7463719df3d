# SPDX-License-Identifier: LGPL-3.0-or-later
"""Runs Python programs, each in a fork of an interpreter that has imported what they import.

A program runs as ``python -W error`` would run it, with a fresh ``__main__``, and ends with its
interpreter; only the imports, which take longer than most programs do, are made once.
"""

import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

_SECONDS = 60
_IMPORTS = "asyncio anyio trio tempfile subprocess truenas_os.fuse truenas_os.blocking"


class Ended(NamedTuple):
    """How a program has ended."""

    status: int
    stdout: str
    stderr: str


class Runner:
    """The interpreter; a context manager."""

    def __enter__(self):
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        self._process.wait(_SECONDS)
        self._process.stdout.close()

    def run(self, code: str, name: str, directory: Path) -> Ended:
        """Run *code*, its working directory and its output being in *directory*."""
        for each in ("stdout", "stderr"):
            (directory / each).touch()
        work = directory / "work"
        work.mkdir()
        print(json.dumps([code, name, str(directory)]), file=self._process.stdin, flush=True)
        status = int(self._process.stdout.readline())
        return Ended(status, *((directory / each).read_text() for each in ("stdout", "stderr")))


def _serve() -> None:
    for module in _IMPORTS.split():
        importlib.import_module(module)
    while line := sys.stdin.readline():
        code, name, directory = json.loads(line)
        if (pid := os.fork()) == 0:
            signal.alarm(_SECONDS)
            os.chdir(f"{directory}/work")
            os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
            os.dup2(os.open(f"{directory}/stdout", os.O_WRONLY), 1)
            os.dup2(os.open(f"{directory}/stderr", os.O_WRONLY), 2)
            main = sys.modules["__main__"].__dict__
            for each in [each for each in main if not each.startswith("__")]:
                del main[each]
            exec(compile(code, name, "exec"), main)
            return
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    _serve()
