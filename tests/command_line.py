# SPDX-License-Identifier: LGPL-3.0-or-later
"""Running the command line: as a subprocess, on a terminal, and what to compare it with."""

import errno
import json
import os
import pty
import re
import subprocess
import sys
import termios
from pathlib import Path

import kernel
import pytest

COMMAND = (sys.executable, "-m", "truenas_os")


# Code in front of the program, for what only the inside can arrange.
PREPARED = "import sys\n{}\nfrom truenas_os.cli import main\nraise SystemExit(main(sys.argv[1:]))"


NO_RICH = "sys.modules['rich'] = None"


# The C locale, as Python had it before it mended that by itself.
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


ENCODINGS = {
    "UTF-8": {},
    "LANG=C": {"LC_ALL": "", "LANG": "C"},
    "true ASCII": ASCII,
    "PYTHONIOENCODING=ascii": {"PYTHONIOENCODING": "ascii"},
    "latin-1 output": {"PYTHONIOENCODING": "latin-1"},
}


# What can be in a name, and what ought to hurt nobody who sees it.
HOSTILE = {
    "newline": b"two\nlines",
    "escape sequence": b"\x1b]0;title\x07\x1b[31mred",
    "control characters": b"\x01\r\t\x08\x7f",
    "C1 control characters": "\x9b31m\x85".encode(),
    "not UTF-8": b"\xff\xfe\xc3(\x80",
    "encoded surrogate": b"\xed\xa0\x80\xed\xb0\x80",
    "right to left override": "\u202etxt.exe".encode(),
    "letters of many scripts": "é漢字e\u0301😀".encode(),
    "backslashes": rb"\x41\\x0a\y\101",
    "spaces": b" a  b ",
    "line separators": "\u2028\u2029\xa0".encode(),
    "markup": b"[bold]red:smile:",
}


hostile = pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)


encodings = pytest.mark.parametrize("env", ENCODINGS.values(), ids=ENCODINGS)


buffering = pytest.mark.parametrize(
    "env", [{}, {"PYTHONUNBUFFERED": "1"}], ids=["buffered", "unbuffered"]
)


def environment(**changes):
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("LC_", "LANG", "PYTHON"))
        and name not in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TZ")
    }
    # A warning, of a descriptor left open for one, is then an error with a text on stderr.
    return kept | {"LC_ALL": "C.UTF-8", "TERM": "xterm", "PYTHONWARNINGS": "error"} | changes


def run(*arguments, prepared=None, env=None, command=(), **options):
    program = COMMAND if prepared is None else (sys.executable, "-c", PREPARED.format(prepared))
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    env = environment(**(env or {}))
    return subprocess.run([*command, *program, *arguments], env=env, **options)


def succeeded(*arguments, **options):
    done = run(*arguments, **options)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout


def on_terminal(*arguments, columns=200, prepared=NO_RICH, env=None):
    """What a terminal so wide gets."""
    program = COMMAND if prepared is None else (sys.executable, "-c", PREPARED.format(prepared))
    ours, theirs = pty.openpty()
    try:
        termios.tcsetwinsize(theirs, (24, columns))
        attributes = termios.tcgetattr(theirs)
        attributes[1] &= ~termios.OPOST  # no carriage returns that the program did not write
        termios.tcsetattr(theirs, termios.TCSANOW, attributes)
        process = subprocess.Popen(
            [*program, *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=subprocess.PIPE,
            env=environment(**(env or {})),
        )
        os.close(theirs)
        written = b""
        while True:
            try:
                chunk = os.read(ours, 1 << 16)
            except OSError as error:
                assert error.errno == errno.EIO  # the other side is closed
                break
            if not chunk:
                break
            written += chunk
        errors = process.communicate()[1]
    finally:
        os.close(ours)
    assert (process.returncode, errors) == (0, b"")
    return written


def without_styles(written):
    return re.sub(rb"\x1b\[[0-9;]*m", b"", written)


def unescaped(written):
    return re.sub(rb"\\x([0-9a-f]{2})", lambda found: bytes([int(found[1], 16)]), written)


def tmpfs(path, flags=0, data=None, source="tmpfs"):
    Path(os.fsdecode(path)).mkdir(exist_ok=True)
    kernel.mount(source, path, "tmpfs", flags, data)


def findmnt(*arguments, locale="C.UTF-8"):
    done = subprocess.run(
        ["findmnt", *arguments], env=environment(LC_ALL=locale), stdout=subprocess.PIPE, check=True
    )
    return done.stdout


def findmnt_rows():
    return json.loads(findmnt("-J", "-l", "-o", "ID,TARGET,SOURCE,FSTYPE,OPTIONS"))["filesystems"]


@pytest.fixture
def various_mounts(mount_dir):
    """Nested, stacked and bind mounts with options of all kinds."""
    nosuid, nodev, noexec, sync, dirsync, noatime, nodiratime = 2, 4, 8, 16, 128, 1 << 10, 1 << 11
    strictatime, lazytime, nosymfollow = 1 << 24, 1 << 25, 1 << 8
    for name, flags in {
        "plain": 0,
        "ro": kernel.MS_RDONLY,
        "careful": nosuid | nodev | noexec,
        "noatime": noatime,
        "nodiratime": nodiratime,
        "strictatime": strictatime,
        "superblock": sync | dirsync | lazytime,
        "nosymfollow": nosymfollow,
        "stacked": 0,
    }.items():
        tmpfs(mount_dir / name, flags, b"size=1m,mode=700", source=f"from-{name}")
    tmpfs(mount_dir / "stacked")
    tmpfs(mount_dir / "plain" / "deep")
    tmpfs(mount_dir / "plain" / "deep" / "deeper")
    (mount_dir / "plain" / "subdirectory").mkdir()
    (mount_dir / "bind").mkdir()
    kernel.mount(mount_dir / "plain" / "subdirectory", mount_dir / "bind", None, kernel.MS_BIND)
    kernel.mount(
        None,
        mount_dir / "bind",
        None,
        kernel.MS_BIND | kernel.MS_REMOUNT | kernel.MS_RDONLY | noexec,
    )
    return mount_dir


@pytest.fixture
def nearly_full_list(mount_dir):
    """A file with one line, to which the filesystem has room to add a few bytes."""
    page = os.sysconf("SC_PAGE_SIZE")
    full = mount_dir / "full"
    tmpfs(full, data=f"size={2 * page}".encode())
    (full / "list").write_bytes(b"x" * (page - 16) + b"\n")
    (full / "rest").write_bytes(bytes(page))
    return full / "list"


def make_room(path):
    """Have its filesystem take as much as it is told."""
    kernel.mount(None, path.parent, None, kernel.MS_REMOUNT, b"size=16m")


@pytest.fixture
def many_mounts(mount_dir):
    for number in range(500):
        tmpfs(mount_dir / f"{number:03}")
    return mount_dir


@pytest.fixture
def hostile_mounts(mount_dir):
    """The paths of mounts whose targets and sources have all those names."""
    paths = {os.fsencode(mount_dir) + b"/" + name: name for name in HOSTILE.values()}
    for path, name in paths.items():
        tmpfs(path, source=name)
    return paths
