# SPDX-License-Identifier: LGPL-3.0-or-later
"""The command line: hostile names, errors, pipes and signals."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
from importlib import metadata
from pathlib import Path

import pytest
from command_line import (
    ASCII,
    COMMAND,
    ENCODINGS,
    HOSTILE,
    PREPARED,
    buffering,
    encodings,
    environment,
    hostile,
    on_terminal,
    run,
    succeeded,
    unescaped,
    without_styles,
)

from truenas_os import blocking, cli


def told_text(written, env):
    """What a terminal shows, decoded as it would, with nothing in it that moves its cursor."""
    text = written.decode(env.get("PYTHONIOENCODING") or ("ascii" if env == ASCII else "utf-8"))
    assert [char for char in text if not char.isprintable() and char != "\n"] == []
    return text


@encodings
def test_hostile_names_are_escaped_and_can_be_told_again(hostile_mounts, env):
    lines = told_text(succeeded("mounts", env=env), env).splitlines()
    shown = [line.split(" ") for line in lines[-len(hostile_mounts) :]]
    # As the terminal's text is not in the encoding of names when it is in latin-1.
    told = [tuple(unescaped(name.encode()) for name in columns[:2]) for columns in shown]
    if env != ENCODINGS["latin-1 output"]:
        assert told == list(hostile_mounts.items())
    else:
        assert shown[list(HOSTILE).index("letters of many scripts")][1].startswith("é\\xe6")
    assert {len(columns) for columns in shown} == {4}


@encodings
def test_no_hostile_name_reaches_a_terminal(hostile_mounts, env):
    mounts = Path("/proc/self/mountinfo").read_bytes().count(b"\n")
    table = told_text(on_terminal("mounts", env=env, columns=1000), env)
    assert len(table.splitlines()) == 1 + mounts
    fields = told_text(on_terminal("mounts", "--all-fields", env=env), env)
    names = len(blocking.StatmountResult._fields)
    assert len(fields.splitlines()) == mounts * names + mounts - 1


@hostile
def test_stat_shows_no_hostile_name_to_a_terminal(hostile_mounts, name):
    path = next(path for path, its_name in hostile_mounts.items() if its_name == name)
    for env in ({}, ASCII):
        first, *rest = told_text(on_terminal("stat", path, env=env), env).splitlines()
        assert unescaped(first.encode()) == b"name:          " + path
        (mount,) = (line for line in rest if line.startswith("mount id:"))
        assert unescaped(mount.encode()).endswith(b" (" + path + b")")


def test_rich_gets_hostile_names_escaped(hostile_mounts):
    styled = on_terminal("mounts", prepared=None, columns=1000)
    assert without_styles(styled) == on_terminal("mounts", columns=1000)


@encodings
@pytest.mark.parametrize("options", [(), ("--all-fields",)])
def test_json_is_ascii_and_tells_every_byte(hostile_mounts, env, options):
    shown = succeeded("mounts", "--json", *options, env=env)
    assert re.fullmatch(rb"[\n -~]+", shown)
    mounts = json.loads(shown)[-len(hostile_mounts) :]
    assert [
        (os.fsencode(mount["mnt_point"]), os.fsencode(mount["sb_source"])) for mount in mounts
    ] == list(hostile_mounts.items())


@hostile
@pytest.mark.parametrize("command", ["mounts", "stat", "umount"])
def test_hostile_names_are_escaped_in_errors(mount_dir, name, command):
    path = os.fsencode(mount_dir) + b"/" + name
    for env in ({}, ASCII):
        done = run(command, path, env=env)
        assert (done.returncode, done.stdout) == (1, b"")
        line = told_text(done.stderr, env)
        told = b"truenas-os: " + path + b": No such file or directory\n"
        assert line.count("\n") == 1
        assert unescaped(line.encode()) == told


@pytest.mark.parametrize("command", ["mounts", "stat"])
@pytest.mark.parametrize("options", [(), ("--json",)])
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing", "No such file or directory"),
        ("file/below", "Not a directory"),
        ("loop/below", "Too many levels of symbolic links"),
        ("x" * 256, "File name too long"),
        ("x/" * 2100, "File name too long"),
    ],
)
def test_a_bad_path_is_one_line_and_status_1(tmp_path, command, options, name, reason):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    done = run(command, *options, name, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode() == f"truenas-os: {name}: {reason}\n"


@pytest.mark.parametrize("command", ["mounts", "stat", "umount", "watch", "walk", "handle"])
def test_an_empty_path_is_one_line_and_status_1(command):
    done = run(command, "")
    assert (done.returncode, done.stdout) == (1, b"")
    assert re.fullmatch(rb"truenas-os: '': No such file or directory\n", done.stderr)


@pytest.mark.parametrize("command", ["mounts", "stat", "umount", "walk", "handle"])
def test_a_path_without_permission_is_one_line_and_status_1(tmp_path, command):
    closed = tmp_path / "closed"
    closed.mkdir(0)
    # No capability survives the exec, so the mode counts for root too.
    powerless = ("setpriv", "--bounding-set", "-all", "--inh-caps", "-all")
    done = run(command, closed / "below", command=powerless)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode() == f"truenas-os: {closed}/below: Permission denied\n"


def test_a_mount_that_is_not_visible_is_explained_in_one_line():
    done = run("mounts", "/proc/self/fd/0", stdin=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (1, b"")
    assert re.fullmatch(
        rb"truenas-os: /proc/self/fd/0: No such file or directory \(.*is not visible in this mount "
        rb"namespace\)\n",
        done.stderr,
    )


@pytest.mark.parametrize(
    "arguments",
    [(), ("nonsense",), ("--nonsense",), ("stat",), ("stat", "a", "b"), ("mounts", "a", "b")],
    ids=shlex.join,
)
def test_wrong_usage_is_status_2(arguments):
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"usage: truenas-os")


@hostile
def test_wrong_usage_repeats_no_hostile_argument(name):
    for arguments in (("stat", "a", name), (name,)):
        done = run(*arguments)
        assert done.returncode == 2
        assert re.findall(rb"[\x00-\x09\x0b-\x1f\x7f]", done.stderr) == []
        assert b"\nlines" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [(), ("mounts",), ("mount",), ("bind",), ("umount",), ("stat",), ("watch",)]
    + [("walk",), ("handle",), ("fuse",)],
    ids=shlex.join,
)
def test_help_has_an_example(arguments):
    shown = succeeded(*arguments, "-h").decode("ascii")
    assert re.search(r"examples?:\s+truenas-os \w+", shown)
    assert max(map(len, shown.splitlines())) <= 80
    assert arguments or "exit status:" in shown


def test_the_version_is_that_of_the_package():
    assert succeeded("--version").decode() == f"truenas-os {metadata.version('truenas-os')}\n"


@pytest.mark.parametrize(
    "arguments",
    [("mounts",), ("mounts", "--json"), ("mounts", "--all-fields"), ("stat", "/"), ("-h",)]
    + [("--version",)],
    ids=shlex.join,
)
def test_a_closed_pipe_is_quiet(arguments):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = run(*arguments, stdout=writer)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


def test_a_reader_that_leaves_early_is_quiet(many_mounts):
    script = f"{shlex.join(COMMAND)} mounts --json --all-fields | head -1"
    done = subprocess.run(["sh", "-c", script], env=environment(), capture_output=True)
    assert (done.stdout, done.stderr) == (b"[\n", b"")


@pytest.mark.parametrize("arguments", [("mounts",), ("stat", "/"), ("mounts", "--json")])
def test_a_full_device_is_one_line_and_status_1(arguments):
    with open("/dev/full", "wb") as full:
        done = run(*arguments, stdout=full)
    assert done.returncode == 1
    assert done.stderr == b"truenas-os: No space left on device\n"


@buffering
@pytest.mark.parametrize(
    "arguments", [("mounts",), ("stat", "/"), ("mounts", "--json"), ("walk", "DIR"), ("-h",)]
)
def test_what_a_disk_has_no_room_for_is_one_line_and_status_1(nearly_full_list, arguments, env):
    arguments = [str(nearly_full_list.parent) if word == "DIR" else word for word in arguments]
    with nearly_full_list.open("ab") as output:
        done = run(*arguments, stdout=output, env=env)
    assert done.returncode == 1
    assert done.stderr == b"truenas-os: No space left on device\n"


def test_a_stdout_that_is_closed_is_one_line_and_status_1():
    for arguments in (("mounts",), ("stat", "/")):
        done = run(*arguments, command=("sh", "-c", 'exec "$@" >&-', "sh"))
        assert done.returncode == 1
        assert done.stderr == b"truenas-os: standard output: Bad file descriptor\n"


def test_ctrl_c_is_quiet_and_status_130(many_mounts):
    # More than a pipe holds, and nobody reads it: once the first byte is there, the rest waits.
    # The signal may be ignored here, as in a job in the background.
    prepared = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    process = subprocess.Popen(
        [sys.executable, "-c", PREPARED.format(prepared), "mounts", "--json", "--all-fields"],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
    )
    with process:
        assert process.stdout.read(1) == b"["
        process.send_signal(signal.SIGINT)
        assert process.wait() == 128 + signal.SIGINT
        assert process.stderr.read() == b""


def test_ctrl_c_does_not_wait_for_a_reader_of_what_was_buffered():
    prepared = """if True:
        from truenas_os import blocking, cli

        def iter_mount(**_):
            sys.stdout.write("some")
            raise KeyboardInterrupt

        blocking.iter_mount = iter_mount
    """
    reader, writer = os.pipe()
    try:
        os.set_blocking(writer, False)
        while True:
            try:
                os.write(writer, bytes(1 << 12))
            except BlockingIOError:
                break
        os.set_blocking(writer, True)
        # It would wait for ever; how long it takes to do so is not what is tested.
        done = run("mounts", prepared=prepared, stdout=writer, timeout=300)
    finally:
        os.close(reader)
        os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGINT, b"")


def completed(*words):
    """What bash offers in place of the last word."""
    script = succeeded("--print-completion", "bash").decode() + textwrap.dedent(
        """
        COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
        _shtab_truenas_os
        printf '%s\\n' "${COMPREPLY[@]}"
        """
    )
    done = subprocess.run(["bash", "-c", script, "bash", "truenas-os", *words], capture_output=True)
    assert done.stderr == b""
    return done.stdout.decode().split()


def test_the_shell_completes_commands_options_and_paths(tmp_path):
    (tmp_path / "directory").mkdir()
    assert sorted(completed("wa")) == ["walk", "watch"]
    assert completed("walk", "--res") == ["--resume"]
    assert completed("watch", "--kind", "tr") == ["transient"]
    assert completed("walk", f"{tmp_path}/di") == [f"{tmp_path}/directory"]
    assert sorted(completed("fuse", "me")) == ["memory"]
    assert succeeded("--print-completion", "zsh").startswith(b"#compdef truenas-os\n")


def test_completion_without_shtab_is_a_line_and_status_1():
    done = run("--print-completion", "bash", prepared="sys.modules['shtab'] = None")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == b"truenas-os: completion needs shtab: pip install 'truenas-os[cli]'\n"


def test_the_console_script_is_the_same_program():
    (script,) = metadata.entry_points(group="console_scripts", name="truenas-os")
    assert script.load() is cli.main
