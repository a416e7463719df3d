# SPDX-License-Identifier: LGPL-3.0-or-later
"""``truenas-os walk``, against find(1): on terminals, in pipes, interrupted and gone on with."""

import errno
import fcntl
import json
import os
import pty
import random
import re
import signal
import stat
import subprocess
import sys
import termios
from collections import Counter
from pathlib import Path

import kernel
import pytest
from command_line import (
    COMMAND,
    HOSTILE,
    NO_RICH,
    PREPARED,
    buffering,
    encodings,
    environment,
    make_room,
    run,
    succeeded,
    unescaped,
    without_styles,
)
from stuck import AMPLE

from truenas_os import blocking

# The signals may be ignored here, as in a job in the background.
HEARD = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"


def find(top, *tests):
    """The paths of all that is below *top*, as find tells them."""
    command = ["find", top, "-mindepth", "1", "-xdev", *tests, "-print0"]
    found = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    return sorted(found.split(b"\0")[:-1])


@pytest.fixture
def hostile_tree(mount_dir):
    """Files of all kinds, with names of all kinds."""
    for name in HOSTILE.values():
        directory = os.fsencode(mount_dir) + b"/" + name
        os.mkdir(directory)
        with open(directory + b"/" + name, "wb") as file:
            file.write(name)
        os.symlink(name, directory + b"/link")
        os.mkfifo(directory + b"/fifo")
        os.mknod(directory + b"/socket", stat.S_IFSOCK)
    return mount_dir


@pytest.fixture
def large_tree(mount_dir):
    for number in range(40):
        (mount_dir / f"directory-{number}").mkdir()
        for file in range(75):
            (mount_dir / f"directory-{number}" / f"file-{file}").touch()
    return mount_dir


def test_everything_is_printed_that_find_finds(hostile_tree):
    without, with_symlinks = find(hostile_tree, "!", "-type", "l"), find(hostile_tree)
    assert sorted(succeeded("walk", "-0", hostile_tree).split(b"\0")[:-1]) == without
    shown = succeeded("walk", "--null", "--symlinks", hostile_tree)
    assert sorted(shown.split(b"\0")[:-1]) == with_symlinks
    assert len(with_symlinks) == len(without) + len(HOSTILE) == 5 * len(HOSTILE)


@encodings
def test_hostile_names_are_escaped_and_can_be_told_again(hostile_tree, env):
    shown = succeeded("walk", "--symlinks", hostile_tree, env=env)
    assert re.search(rb"[\x00-\x09\x0b-\x1f\x7f]", shown) is None
    if "latin-1" not in env.values():
        assert sorted(map(unescaped, shown.splitlines())) == find(hostile_tree)


@encodings
def test_json_is_an_object_on_a_line_and_tells_what_stat_tells(hostile_tree, env):
    shown = succeeded("walk", "--json", "--symlinks", hostile_tree, env=env)
    assert re.fullmatch(rb"[\n -~]+", shown)
    items = [json.loads(line) for line in shown.splitlines()]
    assert sorted(os.fsencode(item["path"]) for item in items) == find(hostile_tree)
    top = len(Path(hostile_tree).parts)
    for item in items:
        seen = os.lstat(item["path"])
        assert (item["stx_ino"], item["stx_mode"], item["stx_size"], item["stx_mtime_ns"]) == (
            (seen.st_ino, seen.st_mode, seen.st_size, seen.st_mtime_ns)
        )
        assert item["depth"] == len(Path(item["path"]).parts) - top
        assert (item["type"] == "symbolic link") == stat.S_ISLNK(seen.st_mode)


def test_mount_points_are_printed_on_request_and_never_entered(mount_dir):
    for name in ("a", "mounted", "z"):
        (mount_dir / name).mkdir()
    kernel.mount("tmpfs", mount_dir / "mounted", "tmpfs")
    (mount_dir / "mounted" / "hidden").touch()
    paths = {f"{mount_dir}/{name}" for name in ("a", "mounted", "z")}
    shown = succeeded("walk", mount_dir).decode().splitlines()
    assert set(shown) == paths - {f"{mount_dir}/mounted"}
    assert set(succeeded("walk", "--mountpoints", mount_dir).decode().splitlines()) == paths


def test_what_was_born_later_is_left_out(mount_dir):
    (mount_dir / "directory").mkdir()
    (mount_dir / "directory" / "file").touch()
    born = int(subprocess.check_output(["stat", "-c", "%W", mount_dir / "directory" / "file"]))
    assert born > 0
    for cutoff, names in (("1", ["directory"]), (str(born + 1), ["directory", "directory/file"])):
        shown = succeeded("walk", "--btime-cutoff", cutoff, mount_dir).decode().splitlines()
        assert shown == [f"{mount_dir}/{name}" for name in names]


@pytest.mark.parametrize("cutoff", ["-1", "1.5", "now", str(1 << 63), "²"])
def test_a_cutoff_that_is_no_time_is_status_2(cutoff):
    done = run("walk", f"--btime-cutoff={cutoff}", "/")
    assert (done.returncode, done.stdout) == (2, b"")


def test_a_directory_that_cannot_be_read_is_a_line_and_status_1(mount_dir):
    mount_dir.chmod(0o755)
    for name in ("a", "closed", "z"):
        (mount_dir / name).mkdir()
        (mount_dir / name / "file").touch()
    (mount_dir / "closed").chmod(0)
    powerless = ("setpriv", "--bounding-set", "-all", "--inh-caps", "-all")
    done = run("walk", mount_dir, command=powerless)
    assert done.returncode == 1
    assert done.stderr.decode() == f"truenas-os: {mount_dir}/closed: Permission denied\n"
    names = ("a", "a/file", "closed", "z", "z/file")
    assert sorted(done.stdout.decode().splitlines()) == [f"{mount_dir}/{name}" for name in names]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing", "No such file or directory"),
        ("file", "Not a directory"),
        ("link", "Too many levels of symbolic links"),
    ],
)
def test_a_root_that_is_no_directory_is_a_line_and_status_1(tmp_path, name, reason):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path)
    done = run("walk", name, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, b"")
    assert re.fullmatch(rf"truenas-os: {name}: {reason}( \(.*\))?\n", done.stderr.decode())


# Interrupted.


def interrupted(arguments, number, after, prepared=HEARD, env=None):
    """What the command prints that gets a signal after so many bytes, and how it ends.

    The pipe is a small one, so that what is printed is what was read, and not much more.
    """
    program = [sys.executable, "-c", PREPARED.format(prepared), "walk", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    env = environment(**(env or {}))
    with subprocess.Popen(program, env=env, bufsize=0, **pipes) as process:
        fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 4096)
        shown = b""
        while len(shown) < after and (read := process.stdout.read(min(4096, after - len(shown)))):
            shown += read
        if len(shown) == after:  # or it is ending already
            process.send_signal(number)
        shown += process.stdout.read()
        errors = process.stderr.read()
        return shown, process.wait(AMPLE), errors


@buffering
@pytest.mark.parametrize("form", [(), ("-0",), ("--json",)], ids=["lines", "null", "json"])
def test_an_interrupted_walk_goes_on_with_exactly_the_next_line(large_tree, tmp_path, form, env):
    chance = random.Random(len(form))
    file = tmp_path / "file"
    shown, ends = b"", Counter()
    while not ends[0]:
        number = chance.choice([signal.SIGINT, signal.SIGTERM])
        after = chance.choice([1, chance.randrange(1, 60_000)])
        arguments = (*form, "--resume", file, large_tree)
        part, status, errors = interrupted(arguments, number, after, env=env)
        shown += part
        ends[status] += 1
        if status:
            lines = part.count(b"\0" if form == ("-0",) else b"\n")
            assert (status, errors.decode()) == (
                128 + number,
                f"truenas-os: stopped after {lines} lines; to go on, run the same command again "
                f"(it is kept in {file})\n",
            )
            assert sum(ends.values()) < 100, "no progress"
    assert errors == b""
    assert ends[0] == 1 and ends[130] and ends[143], ends
    if form == ("--json",):
        paths = [os.fsencode(json.loads(line)["path"]) for line in shown.splitlines()]
    else:
        paths = shown.split(b"\0" if form else b"\n")[:-1]
    assert sorted(paths) == find(large_tree)
    assert not file.exists()


def test_a_killed_walk_leaves_nothing_out(large_tree, tmp_path):
    prepared = "from truenas_os.cli import walk; walk._SAVED_EVERY = 0"
    arguments = ("-0", "--resume", tmp_path / "file", large_tree)
    shown = []
    for after in (30_000, 60_000, 90_000, 120_000):
        part, status, errors = interrupted(arguments, signal.SIGKILL, after, prepared)
        assert (status, errors) == (-signal.SIGKILL, b"")
        shown += part.split(b"\0")[:-1]
    rest = succeeded("walk", *arguments).split(b"\0")[:-1]
    paths = find(large_tree)
    assert sorted({*shown, *rest}) == paths
    assert 0 < len(rest) < len(paths)


def test_a_second_ctrl_c_does_not_wait_for_a_reader(large_tree, tmp_path):
    file = tmp_path / "file"
    program = [sys.executable, "-c", PREPARED.format(HEARD), "walk", "--resume", file, large_tree]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(program, env=environment(), bufsize=0, **pipes) as process:
        fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 4096)
        shown = process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.send_signal(signal.SIGINT)
        assert process.wait(AMPLE) == 128 + signal.SIGINT
        assert process.stderr.read() == b""
        shown += process.stdout.read()
    rest = succeeded("walk", "--resume", file, large_tree)
    assert {*(shown + rest).splitlines()} >= {*find(large_tree)}


def test_ctrl_c_without_a_file_is_quiet(large_tree):
    shown, status, errors = interrupted((large_tree,), signal.SIGINT, 1)
    assert (status, errors) == (128 + signal.SIGINT, b"")
    assert {*shown.splitlines()[:-1]} < {*find(large_tree)}


def test_a_reader_that_leaves_ends_it_quietly(large_tree, tmp_path):
    for resume in ((), ("--resume", tmp_path / "file")):
        reader, writer = os.pipe()
        os.close(reader)
        done = run("walk", *resume, large_tree, stdout=writer)
        os.close(writer)
        assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


def test_what_could_not_be_written_comes_again(large_tree, tmp_path):
    with open("/dev/full", "wb") as full:
        done = run("walk", "--resume", tmp_path / "file", large_tree, stdout=full)
    assert (done.returncode, done.stderr) == (1, b"truenas-os: No space left on device\n")
    rest = succeeded("walk", "--resume", tmp_path / "file", large_tree)
    assert sorted(rest.splitlines()) == find(large_tree)


@buffering
@pytest.mark.parametrize("form", [(), ("-0",), ("--json",)], ids=["lines", "null", "json"])
def test_a_line_that_a_full_disk_cut_short_is_ended_and_comes_again(
    large_tree, nearly_full_list, tmp_path, form, env
):
    # "full", where the list is, is a mount point.
    arguments = ("walk", "--mountpoints", *form, "--resume", tmp_path / "file", large_tree)
    before = nearly_full_list.stat().st_size
    with nearly_full_list.open("ab") as output:
        done = run(*arguments, stdout=output, env=env)
    assert (done.returncode, done.stderr) == (1, b"truenas-os: No space left on device\n")
    make_room(nearly_full_list)
    with nearly_full_list.open("ab") as output:
        assert run(*arguments, stdout=output, env=env).returncode == 0
    terminator = b"\0" if form == ("-0",) else b"\n"
    cut, *shown, last = nearly_full_list.read_bytes()[before:].split(terminator)
    assert last == b""
    assert 0 < len(cut) < len(shown[0])
    assert shown[0].startswith(cut)
    if form == ("--json",):
        shown = [os.fsencode(json.loads(line)["path"]) for line in shown]
    assert sorted(shown) == find(large_tree)


def test_what_the_file_tells_has_reached_the_disk_in_the_list(large_tree, tmp_path):
    prepared = """if True:
        import os
        from truenas_os import blocking
        from truenas_os.cli import walk

        fsync, replace, unlink = os.fsync, blocking.atomic_replace, os.unlink
        walk._SAVED_EVERY, safe = 0, 0

        def synced(fd):
            global safe
            fsync(fd)
            safe = os.fstat(1).st_size

        def saved(*arguments):
            assert safe == os.fstat(1).st_size
            replace(*arguments)

        def removed(path):
            assert safe == os.fstat(1).st_size
            unlink(path)

        os.fsync, blocking.atomic_replace, os.unlink = synced, saved, removed
    """
    with (tmp_path / "list").open("wb") as output:
        file = tmp_path / "file"
        done = run("walk", "--resume", file, large_tree, stdout=output, prepared=prepared)
    assert (done.returncode, done.stderr) == (0, b"")
    assert sorted((tmp_path / "list").read_bytes().splitlines()) == find(large_tree)


def test_a_resume_file_that_is_no_use_is_a_line_and_status_1(mount_dir, tmp_path):
    for top in ("one", "two"):
        (mount_dir / top / "directory").mkdir(parents=True)
    elsewhere = tmp_path / "of two"
    with blocking.walk(mount_dir / "two") as items:
        elsewhere.write_bytes(items.resume_token())
    (tmp_path / "damaged").write_bytes(elsewhere.read_bytes()[:-1])
    (tmp_path / "empty").touch()
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    for name, reason in {
        "of two": "this resume token is of another .*",
        "damaged": "this resume token is damaged",
        "empty": "this is no resume token of a walk",
        "directory": "this is no regular file",
        "fifo": "this is no regular file",
        "loop": "Too many levels of symbolic links",
        "missing/file": "No such file or directory",
    }.items():
        done = run("walk", "--resume", tmp_path / name, mount_dir / "one")
        assert (done.returncode, done.stdout) == (1, b"")
        line = done.stderr.decode()
        assert re.fullmatch(rf"truenas-os: {tmp_path}/{name}: {reason}\n", line), line


def test_a_resume_file_that_another_walk_has_removed_is_no_failure(large_tree, tmp_path):
    prepared = """if True:
        import os
        from truenas_os.cli import walk

        remove = walk._Mark.remove
        walk._Mark.remove = lambda mark: (os.unlink(mark.name), remove(mark))
    """
    shown = succeeded("walk", "--resume", tmp_path / "file", large_tree, prepared=prepared)
    assert sorted(shown.splitlines()) == find(large_tree)


# On a terminal.


def on_terminals(*arguments, prepared=None, stdout=None, number=None):
    """What a terminal gets that is there for all but perhaps *stdout*, and the exit status.

    With *number*, that signal is sent when the cursor has been hidden.
    """
    program = COMMAND if prepared is None else (sys.executable, "-c", PREPARED.format(prepared))
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 60))
    attributes = termios.tcgetattr(theirs)
    attributes[1] &= ~termios.OPOST
    termios.tcsetattr(theirs, termios.TCSANOW, attributes)
    written = b""
    with subprocess.Popen(
        [*program, *arguments],
        stdin=theirs,
        stdout=theirs if stdout is None else stdout,
        stderr=theirs,
        env=environment(),
    ) as process:
        os.close(theirs)
        try:
            while read := os.read(ours, 1 << 10):
                written += read
                if number and HIDDEN in written:
                    process.send_signal(number)
                    number = None
        except OSError as error:
            assert error.errno == errno.EIO  # the other side is closed
        finally:
            os.close(ours)
    return written, process.returncode


HIDDEN, SHOWN = b"\x1b[?25l", b"\x1b[?25h"
BAR = re.compile(rb"\d+ +[^\n]*\d:\d\d:\d\d")


def test_a_terminal_gets_a_bar_and_every_line(hostile_tree):
    lines = succeeded("walk", hostile_tree)
    written, status = on_terminals("walk", hostile_tree)
    assert status == 0
    assert BAR.search(without_styles(written))
    shown = re.sub(rb"\x1b\[[0-9;?]*[a-zA-Z]", b"", written)
    shown = [line.rpartition(b"\r")[2] for line in shown.split(b"\n")]
    assert [line for line in shown if line in lines.splitlines()] == lines.splitlines()


def test_a_terminal_for_errors_gets_a_bar_and_the_output_gets_the_lines(hostile_tree, tmp_path):
    with open(tmp_path / "output", "wb") as output:
        written, status = on_terminals("walk", hostile_tree, stdout=output)
    assert status == 0
    assert BAR.search(without_styles(written))
    assert os.fsencode(hostile_tree / "spaces") not in written
    assert (tmp_path / "output").read_bytes() == succeeded("walk", hostile_tree)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_terminal_gets_its_cursor_back_from_a_walk_that_is_ended(large_tree, number):
    written, status = on_terminals("walk", large_tree, number=number, prepared=HEARD)
    assert status == 128 + number
    assert written.rindex(SHOWN) > written.rindex(HIDDEN)
    assert written.count(b"file-") < 40 * 75


@pytest.mark.parametrize("how", ["without rich", "null"])
def test_a_terminal_gets_no_bar(hostile_tree, how):
    options = ("--null",) if how == "null" else ()
    written = on_terminals(
        "walk", *options, hostile_tree, prepared=NO_RICH if not options else None
    )
    assert written == (succeeded("walk", *options, hostile_tree), 0)
