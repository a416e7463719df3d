# SPDX-License-Identifier: LGPL-3.0-or-later
"""``truenas-os fuse``: the example filesystems, from wherever the package is installed."""

import contextlib
import re
import shlex
import signal
import subprocess
import zipfile
from pathlib import Path

import pytest
from command_line import COMMAND, environment, hostile, run, succeeded
from filesystems import require_fuse
from stuck import AMPLE, wait_until

EXAMPLES = Path(__file__).parents[1] / "examples" / "fuse"
NAMES = sorted(path.stem for path in EXAMPLES.glob("[!_]*.py"))


def is_mounted(point):
    return f" {point} " in Path("/proc/self/mountinfo").read_text()


@contextlib.contextmanager
def serving(*arguments, point):
    """The command, which serves at *point*; what it writes to stderr gathers in a file."""
    require_fuse()
    point.mkdir()
    log = point.with_suffix(".log")
    with (
        log.open("wb") as stderr,
        # Ctrl-C may be ignored here, as in a job in the background.
        subprocess.Popen(
            ["env", "--default-signal=INT", *COMMAND, "fuse", *arguments, point],
            env=environment(),
            stderr=stderr,
        ) as process,
    ):
        try:
            wait_until(lambda: is_mounted(point) or process.poll() is not None, "the mount")
            yield process, log
        finally:
            process.kill()


def test_every_example_has_a_help():
    assert {"hello", "memory", "passthrough"} <= {*NAMES}
    shown = succeeded("fuse", "--help").decode()
    assert "The exit status is 0" in shown
    assert ", ".join(NAMES) in " ".join(shown.split())
    for name in NAMES:
        shown = succeeded("fuse", name, "--help").decode("ascii")
        assert shown.startswith(f"usage: truenas-os fuse {name} ")
        assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("program", [("memory", "--size", "1"), ("hello",)], ids=lambda p: p[0])
def test_ctrl_c_unmounts_and_is_a_success(tmp_path, program, number):
    point = tmp_path / "point"
    with serving(*program, point=point) as (process, log):
        if program[0] == "memory":
            subprocess.run(["sh", "-c", 'echo text > "$0/message"', point], check=True)
        subprocess.run(["cat", point / "message"], stdout=subprocess.DEVNULL, check=True)
        process.send_signal(number)
        assert process.wait(AMPLE) == 0
    assert not is_mounted(point)
    assert log.read_bytes() == b""


@pytest.mark.parametrize("where", ["before", "after"])
def test_debug_is_a_line_for_each_request_with_its_reply_and_time(tmp_path, where):
    point = tmp_path / "point"
    words = ("--debug", "hello") if where == "before" else ("hello", "--debug")
    with serving(*words, point=point) as (process, log):
        with subprocess.Popen(["cat", point / "message", point / "a\nb"], stderr=-3) as client:
            assert client.wait(AMPLE) == 1
        subprocess.run(["umount", point], check=True)
        assert process.wait(AMPLE) == 0
    lines = log.read_text().splitlines()
    form = r"([A-Z]+) \d+ of inode (\d+)(?: b'(.*)')? from process (\d+): (.*), \d+\.\d{3} ms"
    told = [re.fullmatch(form, line).groups() for line in lines]
    assert told[0][0] == "INIT"
    of_client = [(*what, reply) for *what, pid, reply in told if int(pid) == client.pid]
    assert ("LOOKUP", "1", "message", "128 bytes") in of_client
    assert ("READ", "2", None, "13 bytes") in of_client
    assert ("LOOKUP", "1", r"a\nb", "ENOENT") in of_client


def test_a_mount_point_that_is_none_is_a_line_and_status_1(tmp_path):
    require_fuse()
    done = run("fuse", "memory", tmp_path / "missing")
    assert (done.returncode, done.stdout) == (1, b"")
    line = f"truenas-os: {tmp_path}/missing: No such file or directory\n"
    assert done.stderr.decode() == line


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("other", "/mnt"),
        ("hello",),
        ("memory", "--other"),
        ("memory", "-o", "bogus", "/mnt"),
        ("mirror", "-o", "bogus", "/", "/mnt"),
        ("passthrough", "-o", "bogus", "/", "/mnt"),
        ("archive", "/dev/null", "/mnt"),
        ("archive", __file__, "/mnt"),
    ],
    ids=shlex.join,
)
def test_wrong_usage_is_status_2(arguments):
    done = run("fuse", *arguments)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"usage: truenas-os fuse")
    assert b"Traceback" not in done.stderr


def test_an_option_that_an_archive_cannot_be_served_with_is_wrong_usage(tmp_path):
    with zipfile.ZipFile(tmp_path / "content.zip", "w"):
        pass
    done = run("fuse", "archive", "-o", "bogus", tmp_path / "content.zip", tmp_path)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"unknown option 'bogus'" in done.stderr
    assert b"Traceback" not in done.stderr


@hostile
def test_wrong_usage_repeats_no_hostile_argument(name):
    done = run("fuse", "memory", "/nonexistent", b"a" + name)
    assert done.returncode == 2
    assert re.findall(rb"[\x00-\x09\x0b-\x1f\x7f]", done.stderr) == []
    assert b"\nlines" not in done.stderr


def test_debug_behind_two_dashes_is_a_name(tmp_path):
    require_fuse()
    done = run("fuse", "passthrough", "--", "--debug", tmp_path, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(b"truenas-os: ")
    assert b"--debug: No such file or directory" in done.stderr
