# SPDX-License-Identifier: LGPL-3.0-or-later
"""``python -m truenas_os watch``: a line for each event, until Ctrl-C."""

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
from pathlib import Path

import kernel
import pytest
import watched
from command_line import COMMAND, HOSTILE, PREPARED, environment, run, unescaped
from filesystems import IS_ROOT
from stuck import AMPLE
from witness import bind, id_of, make

# The signal may be ignored here, as in a job in the background. When it waits, that is announced.
READY = """if True:
    import functools, signal
    from truenas_os.blocking.watcher import MountWatch
    from truenas_os import blocking
    signal.signal(signal.SIGINT, signal.default_int_handler)
    blocking.watch_mounts = functools.partial(blocking.watch_mounts, interval=0.1)
    wait = MountWatch.__next__

    def ready(watch):
        print("ready", flush=True)
        MountWatch.__next__ = wait
        return wait(watch)

    MountWatch.__next__ = ready
"""


# Who makes the changes here, as far as the command is told: an ordinary user's listener is told of
# no other process.
ACTOR = os.getpid() if IS_ROOT else None


class Lines:
    """What the command has written so far, line by line."""

    def __init__(self, process):
        self.process, self.rest = process, b""

    def next(self):
        while b"\n" not in self.rest:
            assert select.select([self.process.stdout], [], [], AMPLE)[0], "no line has come"
            read = os.read(self.process.stdout.fileno(), 1 << 16)
            assert read, "the command has ended"
            self.rest += read
        line, _, self.rest = self.rest.partition(b"\n")
        return line


@contextlib.contextmanager
def watching(*arguments, env=None, **options):
    """The command, which has begun to watch; Ctrl-C ends it, at once and quietly."""
    program = [sys.executable, "-c", PREPARED.format(READY), "watch", *arguments]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "bufsize": 0} | options
    with subprocess.Popen(program, env=environment(**(env or {})), **options) as process:
        lines = Lines(process)
        try:
            assert lines.next() == b"ready"
            yield lines
            process.send_signal(signal.SIGINT)
            assert process.wait(AMPLE) == 128 + signal.SIGINT
            assert process.stderr.read() == b""
        finally:
            process.kill()


def columns(line):
    """A line without its time."""
    at, *rest = line.decode().split(" ")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4}", at)
    assert len(rest) == 5
    return rest


def do_everything(place):
    """Changes of every kind but an overflow, each awaited with what it makes the command say."""
    target, elsewhere = place / "m", place / "elsewhere"
    elsewhere.mkdir()
    make(place, "m", source="source")
    yield "attached", target, ""
    watched.setattr_(target, attr_set=watched.RDONLY)
    yield "changed", target, "mnt_attr"
    watched.move_mount(target, elsewhere)
    yield "moved", elsewhere, "mnt_point"
    kernel.umount(elsewhere)
    yield "detached", elsewhere, ""


def test_each_event_is_a_line(mount_dir):
    with watching(mount_dir) as lines:
        for kind, point, fields in do_everything(mount_dir):
            *first, told = columns(lines.next())
            assert first == [kind, str(point), "source", "tmpfs"]
            if kind == "attached":
                assert told.split(",")[0] == "rw"
            else:
                assert told == (fields or "-")


def test_each_event_is_an_object_in_json(mount_dir):
    with watching("--json", mount_dir) as lines:
        for kind, point, fields in do_everything(mount_dir):
            event = json.loads(lines.next())
            mount = event["new"] or event["old"]
            assert list(event) == ["kind", "mnt_id", "fields", "pid", "old", "new"]
            assert (event["kind"], event["fields"]) == (kind, fields.split())
            assert (mount["mnt_point"], mount["sb_source"]) == (str(point), "source")
            assert mount["mnt_id"] == event["mnt_id"]
            assert (event["old"] is None, event["new"] is None) == (
                kind == "attached",
                kind == "detached",
            )
            assert event["pid"] == (None if kind == "changed" else ACTOR)


def pause(lines):
    """While the command is stopped, changes gather."""
    lines.process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, lines.process.pid, os.WSTOPPED)


def test_what_came_and_went_is_told_by_its_id(mount_dir):
    for arguments in ((), ("--json",)):
        with watching(*arguments) as lines:
            pause(lines)
            gone = id_of(make(mount_dir))
            kernel.umount(mount_dir / "m")
            lines.process.send_signal(signal.SIGCONT)
            line = lines.next()
            if arguments:
                nothing = {"fields": [], "old": None, "new": None, "pid": ACTOR}
                assert json.loads(line) == {"kind": "transient", "mnt_id": gone} | nothing
            else:
                assert columns(line) == ["transient", "-", "-", "-", "-"]


def test_an_overflow_is_told(mount_dir):
    target = os.fsencode(make(mount_dir))
    limit = int(Path("/proc/sys/fs/fanotify/max_queued_events").read_text())
    with watching("--kind", "resync") as lines:
        pause(lines)
        for _ in range(limit // 2 + 10):
            kernel._libc.mount(b"short", target, b"tmpfs", 0, None)
            kernel._libc.umount2(target, 0)
        lines.process.send_signal(signal.SIGCONT)
        assert columns(lines.next()) == ["resync", "-", "-", "-", "-"]


def test_only_the_kinds_that_are_wanted_are_shown(mount_dir):
    with watching("--kind", "detached", "--kind", "changed") as lines:
        (mount_dir / "elsewhere").mkdir()
        target = make(mount_dir)
        watched.move_mount(target, mount_dir / "elsewhere")
        watched.setattr_(mount_dir, attr_set=watched.NOSUID)
        assert columns(lines.next())[0] == "changed"
        kernel.umount(mount_dir / "elsewhere")
        make(mount_dir)
        watched.setattr_(mount_dir, attr_set=watched.RDONLY)
        assert "detached" in {columns(lines.next())[0] for _ in range(2)}


def test_only_what_is_below_the_path_is_shown(mount_dir):
    (mount_dir / "wanted").mkdir()
    with watching("wanted", cwd=mount_dir) as lines:
        make(mount_dir, "other")
        make(mount_dir, "wanted-not")
        make(mount_dir, "wanted")
        assert columns(lines.next())[1] == f"{mount_dir}/wanted"
        make(mount_dir / "wanted", "inner")
        assert columns(lines.next())[1] == f"{mount_dir}/wanted/inner"


def test_the_path_need_not_exist_yet(mount_dir):
    with watching(mount_dir / "m") as lines:
        make(mount_dir)
        assert columns(lines.next())[1] == f"{mount_dir}/m"


def test_symlinks_in_the_path_are_followed(mount_dir):
    (mount_dir / "link").symlink_to(mount_dir)
    with watching(mount_dir / "link" / "m") as lines:
        make(mount_dir)
        assert columns(lines.next())[1] == f"{mount_dir}/m"


def test_a_bind_mount_is_shown_with_its_root(mount_dir):
    (mount_dir / "a").mkdir()
    (mount_dir / "b").mkdir()
    with watching(mount_dir) as lines:
        bind(mount_dir / "a", mount_dir / "b")
        assert columns(lines.next())[1:3] == [f"{mount_dir}/b", "tmpfs[/a]"]


@pytest.mark.parametrize("arguments", [(), ("--json",)], ids=["lines", "json"])
def test_hostile_names_are_harmless_and_can_be_told_again(mount_dir, arguments):
    with watching(*arguments, mount_dir) as lines:
        for name in HOSTILE.values():
            path = os.fsencode(mount_dir) + b"/" + name
            os.mkdir(path)
            kernel.mount(name, path, "tmpfs")
            line = lines.next()
            assert line.decode().isprintable()
            if arguments:
                new = json.loads(line)["new"]
                told = [os.fsencode(new[field]) for field in ("mnt_point", "sb_source")]
            else:
                told = [unescaped(column.encode()) for column in columns(line)[1:3]]
            assert told == [path, name]


def test_ctrl_c_ends_it_while_nothing_happens_and_while_much_does(mount_dir):
    with watching():
        pass
    with watching():
        for number in range(100):
            make(mount_dir, str(number))


def test_ctrl_c_does_not_wait_for_a_reader(mount_dir):
    with watching("--json") as lines:
        for number in range(300):
            make(mount_dir, str(number))
        # More than a pipe holds, and nobody reads it.
        assert select.select([lines.process.stdout], [], [], AMPLE)[0]


def test_a_reader_that_leaves_ends_it_quietly(mount_dir):
    with subprocess.Popen(
        [sys.executable, "-c", PREPARED.format(READY), "watch"],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
    ) as process:
        assert Lines(process).next() == b"ready"
        process.stdout.close()
        make(mount_dir)
        assert process.wait(AMPLE) == 128 + signal.SIGPIPE
        assert process.stderr.read() == b""


def test_a_stdout_that_is_closed_is_one_line_and_status_1(mount_dir):
    script = 'exec "$@" >&-'
    with subprocess.Popen(
        ["sh", "-c", script, "sh", *COMMAND, "watch"], env=environment(), stderr=subprocess.PIPE
    ) as process:
        while process.poll() is None:
            kernel.umount(make(mount_dir))
        assert process.returncode == 1
        assert process.stderr.read() == b"truenas-os: standard output: Bad file descriptor\n"


@pytest.mark.parametrize("arguments", [("--kind", "other"), ("a", "b"), ("--kind",)], ids=str)
def test_an_unknown_kind_or_a_second_path_is_status_2(arguments):
    done = run("watch", *arguments)
    assert (done.returncode, done.stdout) == (2, b"")
