# SPDX-License-Identifier: LGPL-3.0-or-later
"""faulty.py does to each call what it was told, and to no other."""

import errno
import importlib
import inspect
import os
import signal
import subprocess
import sys
import time

import kernel
import pytest
from faulted import Count, small
from hypothesis import given
from hypothesis import strategies as st
from served import EXAMPLES
from stuck import AMPLE, wait_until

from truenas_os import AT_FDCWD, blocking

pytestmark = pytest.mark.usefixtures("ends")


@pytest.fixture(scope="module")
def program():
    """The program as a module, which finds its neighbour beside it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        yield importlib.import_module("faulty")


# Rules

NUMBERS = st.integers(1, 10**9)
PATHS = st.text(min_size=1).filter(
    lambda path: not path.startswith(("/", "nth=", "from=")) and "\n" not in path
)
ACTIONS = st.one_of(
    st.tuples(st.just("fail"), st.sampled_from(sorted(errno.errorcode.values()))),
    st.tuples(st.just("delay"), st.floats(0, 1e9).map(str)),
    st.tuples(st.sampled_from(["hang", "hang-intr"]), st.just("")),
)
CALLS = st.one_of(
    NUMBERS.map(lambda n: (n, n)), NUMBERS.map(lambda n: (n, float("inf"))), st.just((1, 1))
)
RULES = st.tuples(st.sampled_from(["open", "*attr", "?", "[rw]*"]), ACTIONS, PATHS, CALLS)
BAD = [
    *("open", "nonsense hang", "open nonsense", "open fail", "open fail EFOO", "open fail 5"),
    *("open delay", "open delay soon", "open delay -1", "open delay nan", "open delay inf"),
    *("open hang a b", "open hang /a", "open hang ''", "open hang 'a", "open hang nth=0"),
    *("open hang nth=x", "open hang nth=1 from=1", "open hang from=-1", "release 1", "clear all"),
    *("forget fail EIO", "destroy hang", "init hang", "Open hang", "open hang nth="),
]


def made(program, drawn):
    operation, (action, argument), path, (first, last) = drawn
    return program.Rule(operation, action, argument, path, first, last)


@given(RULES)
def test_a_rule_is_what_it_is_written_as(program, drawn):
    rule = made(program, drawn)
    if rule.operation == "?":
        with pytest.raises(ValueError):
            program.parse(str(rule))  # no operation has a name of one letter
    else:
        assert program.parse(str(rule)) == rule
        assert program.parse(str(program.Armed(rule))) == rule


@given(st.one_of(st.text(), st.lists(st.sampled_from(" ".join(BAD).split())).map(" ".join)))
def test_any_line_is_a_command_or_refused(program, line):
    try:
        said = program.parse(line)
    except ValueError:
        return
    assert said in (None, "release", "clear") or program.parse(str(said)) == said


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_command_changes_nothing(program, bad):
    rules = program.Rules()
    rules.command("open hang\n\n  # nothing\nread fail EIO a nth=2  # what for")
    before = str(rules)
    assert before.count("\n") == 2
    for text in (bad, f"clear\n{bad}", f"{bad}\nclear", f"write hang\n{bad}\nrelease"):
        with pytest.raises(ValueError):
            rules.command(text)
        assert str(rules) == before
    rules.command("clear")
    assert str(rules) == ""


def test_a_rule_strikes_the_calls_that_it_is_for(program):
    rules = program.Rules()
    rules.command("*attr fail EIO a/*\nopen hang nth=2\nopen delay 1 . from=3")
    calls = ["getattr a/b", "getattr a", "setattr a/b/c", "open .", "open x", "open .", "open ."]
    struck = [
        [armed.rule.action for armed in rules.striking(*call.split())]
        for call in [*calls, "open ."]
    ]
    assert struck == [["fail"], [], ["fail"], [], ["hang"], [], ["delay"], ["delay"]]
    assert [(each.matched, each.struck) for each in rules.striking("read", "x")] == []
    assert "matched 5, struck 1" in str(rules) and "matched 4, struck 2" in str(rules)


# The program


def test_it_tells_how_it_is_used(tmp_path):
    def run(*arguments):
        command = [sys.executable, EXAMPLES / "faulty.py", *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=AMPLE, cwd=tmp_path, check=False
        )

    told = run("--help")
    assert told.returncode == 0
    for words in ("source", "mountpoint", "--control NAME", "OPERATION fail ERRNO", "release"):
        assert words in told.stdout
    for name in ("a/b", "", ".", ".."):
        refused = run(".", ".", "--control", name)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert "--control" in refused.stderr


def opened(path, flags):
    """Open and close a file."""
    os.close(os.open(path, flags, 0o600))


def using(path, flags, function):
    fd = os.open(path, flags)
    try:
        function(fd)
    finally:
        os.close(fd)


def closed(path):
    fd = os.open(path, os.O_RDONLY)
    os.close(fd)


# What a process does in a directory with the files "file", "a/one" and so on, for each operation.
# The errors of release and releasedir reach nobody.
SYSTEM_CALLS = {
    "lookup": lambda top: os.stat(top / "file"),
    "getattr": lambda top: os.stat(top / "file"),
    "statx": lambda top: blocking.statx(AT_FDCWD, top / "file", 0, blocking.STATX_BTIME),
    "setattr": lambda top: os.chmod(top / "file", 0o600),
    "readlink": lambda top: os.readlink(top / "link"),
    "symlink": lambda top: os.symlink("x", top / "new"),
    "mknod": lambda top: os.mkfifo(top / "new"),
    "mkdir": lambda top: os.mkdir(top / "new"),
    "unlink": lambda top: os.unlink(top / "file"),
    "rmdir": lambda top: os.rmdir(top / "empty"),
    "rename": lambda top: os.rename(top / "file", top / "new"),
    "link": lambda top: os.link(top / "file", top / "new"),
    "statfs": os.statvfs,
    "getxattr": lambda top: os.getxattr(top / "file", "user.x"),
    "setxattr": lambda top: os.setxattr(top / "file", "user.x", b""),
    "listxattr": lambda top: os.listxattr(top / "file"),
    "removexattr": lambda top: os.removexattr(top / "file", "user.x"),
    "open": lambda top: closed(top / "file"),
    "create": lambda top: opened(top / "new", os.O_CREAT | os.O_WRONLY),
    "tmpfile": lambda top: opened(top, os.O_TMPFILE | os.O_RDWR),
    "read": lambda top: using(top / "a/two", os.O_RDONLY, lambda fd: os.read(fd, 1)),
    "write": lambda top: using(top / "file", os.O_WRONLY, lambda fd: os.write(fd, b"x")),
    "flush": lambda top: closed(top / "file"),
    "fsync": lambda top: using(top / "file", os.O_RDONLY, os.fsync),
    "lseek": lambda top: using(
        top / "a/two", os.O_RDONLY, lambda fd: os.lseek(fd, 0, os.SEEK_HOLE)
    ),
    "fallocate": lambda top: using(
        top / "file", os.O_WRONLY, lambda fd: os.posix_fallocate(fd, 0, 100)
    ),
    "copy_file_range": lambda top: using(
        top / "a/two", os.O_RDWR, lambda fd: os.copy_file_range(fd, fd, 1, 0, 1)
    ),
    "opendir": os.listdir,
    "readdir": os.listdir,
    "fsyncdir": lambda top: using(top, os.O_RDONLY | os.O_DIRECTORY, os.fsync),
}


def prepared(faulty):
    small(faulty.source)
    (faulty.source / "link").symlink_to("file")
    return faulty.top


def test_every_operation_of_the_mirror_can_be_struck(program):
    mirror = program.Passthrough
    handlers = {name for name in vars(mirror) if inspect.iscoroutinefunction(getattr(mirror, name))}
    silent = {"release", "releasedir"}
    assert SYSTEM_CALLS.keys() | silent == program.OPERATIONS
    # Nobody waits for these.
    unheard = {"forget", "destroy"}
    assert {name for name in handlers if name[0] != "_"} - unheard == program.OPERATIONS


@pytest.mark.parametrize("operation", SYSTEM_CALLS)
def test_a_call_fails_as_it_is_told(faulty, operation):
    top = prepared(faulty)
    before = sorted(os.walk(faulty.source))
    with faulty.rules(f"{operation} fail EREMOTEIO"):
        with pytest.raises(OSError) as failed:
            SYSTEM_CALLS[operation](top)
        assert faulty.counts()[0].struck
    # Older kernels tell EIO of whatever does not come into the page cache.
    cached = {errno.EIO} if operation == "read" else set()
    assert failed.value.errno in {errno.EREMOTEIO} | cached
    assert sorted(os.walk(faulty.source)) == before


def test_a_rule_is_for_paths_and_for_the_nth_call(faulty):
    top = prepared(faulty)
    with faulty.rules("open fail EIO a/t* nth=2", "opendir fail EACCES ."):
        for name in ("file", "a/one", "a/two", "a/b/three"):
            closed(top / name)
        with pytest.raises(OSError) as failed:
            closed(top / "a/two")
        assert (failed.value.errno, failed.value.filename) == (errno.EIO, str(top / "a/two"))
        closed(top / "a/two")
        assert sorted(os.listdir(top / "a")) == ["b", "one", "two"]
        with pytest.raises(PermissionError):
            os.listdir(top)
        assert faulty.counts() == [Count(3, 1, 0), Count(1, 1, 0)]


def test_a_rule_is_for_where_a_file_is_now(faulty):
    top = prepared(faulty)
    fd = os.open(top / "file", os.O_RDONLY)
    try:
        with faulty.rules("fsync fail EIO a/moved"):
            os.fsync(fd)
            os.rename(top / "file", top / "a" / "moved")
            with pytest.raises(OSError):
                os.fsync(fd)
    finally:
        os.close(fd)


def test_a_delayed_call_takes_its_time_and_then_what_follows_strikes_it(faulty):
    top = prepared(faulty)
    with faulty.rules("statfs delay 0.2", "statfs fail EIO from=2"):
        start = time.monotonic()
        os.statvfs(top)
        assert time.monotonic() - start >= 0.2
        with pytest.raises(OSError):
            os.statvfs(top)
        assert faulty.counts() == [Count(2, 2, 0), Count(2, 1, 0)]


def started(path):
    """A process that looks at a file."""
    return subprocess.Popen([sys.executable, "-c", f"open({str(path)!r}).close()"], stderr=-3)


def test_what_hangs_goes_on_when_it_is_released_and_the_rule_stays(faulty):
    top = prepared(faulty)
    with faulty.rules("open hang file"):
        first, second = started(top / "file"), started(top / "file")
        wait_until(lambda: faulty.is_hanging(2), "two calls that hang")
        assert os.listdir(top) and open(top / "a/one").close() is None
        faulty.do("release")
        assert (first.wait(AMPLE), second.wait(AMPLE)) == (0, 0)
        assert faulty.counts() == [Count(2, 2, 0)]
        third = started(top / "file")
        wait_until(faulty.is_hanging)
    assert third.wait(AMPLE) == 0
    assert faulty.counts() == []


def test_not_even_a_kill_ends_what_hangs_but_a_signal_what_heeds_it(faulty):
    top = prepared(faulty)
    with faulty.rules("open hang file", "open hang-intr a/one"):
        deaf, heeding = started(top / "file"), started(top / "a/one")
        wait_until(lambda: faulty.is_hanging(2), "two calls that hang")
        deaf.kill()
        heeding.send_signal(signal.SIGINT)
        assert heeding.wait(AMPLE) == -signal.SIGINT
        assert faulty.counts() == [Count(1, 1, 1), Count(1, 1, 0)]
        assert deaf.poll() is None
    assert deaf.wait(AMPLE) == -signal.SIGKILL


def test_the_rules_can_be_read_and_written_back(faulty):
    """What is written with a bad command is not done."""
    prepared(faulty)
    control = faulty.top / ".faulty"
    control.write_text("open fail EIO 'a name' nth=3\nstatfs hang\n")
    text = control.read_text()
    assert text.splitlines()[0].startswith("open fail EIO 'a name' nth=3  # matched 0")
    with pytest.raises(OSError) as failed:
        control.write_text("clear\nopen sesame\n")
    assert failed.value.errno == errno.EINVAL
    assert control.read_text() == text
    control.write_text(f"clear\n{text}")
    assert control.read_text() == text
    faulty.do("clear")
    assert control.read_text() == ""


def test_the_control_file_is_there_for_its_owner_alone_and_not_listed(faulty):
    top = prepared(faulty)
    control = top / ".faulty"
    (faulty.source / ".faulty").write_text("hidden")
    assert ".faulty" in os.listdir(top)  # that of the source
    assert control.read_text() == ""
    os.unlink(faulty.source / ".faulty")
    assert ".faulty" not in os.listdir(top)
    assert control.stat().st_mode == 0o100600
    for change in (
        lambda: control.unlink(),
        lambda: control.rename(top / "new"),
        lambda: (top / "file").rename(control),
        lambda: os.link(control, top / "new"),
        lambda: os.link(top / "file", control),
        lambda: control.symlink_to("file"),
        lambda: os.setxattr(control, "user.x", b""),
    ):
        with pytest.raises(OSError) as failed:
            change()
        assert failed.value.errno in (errno.ENOTSUP, errno.EEXIST)
    assert sorted(os.listdir(faulty.source)) == ["a", "empty", "file", "link"]


def test_rules_for_everything_are_not_for_the_control_file(faulty):
    prepared(faulty)
    with faulty.rules("* fail EIO"):
        with pytest.raises(OSError):
            os.stat(faulty.top / "file")
        os.fsync(faulty.control)
        assert os.fstat(faulty.control).st_size == 0
        assert faulty.counts()[0].struck == 1


def test_commands_are_taken_from_those_whose_writes_take_setuid_away(faulty):
    """Before each write of theirs to what is not cached, the session asks for the attributes."""
    top = prepared(faulty)
    write = "import os; os.write(os.open('.faulty', os.O_WRONLY), b'unlink fail EXDEV')"
    without = ["setpriv", "--bounding-set=-fsetid", sys.executable, "-c", write]
    subprocess.run(without, cwd=top, check=True)
    with pytest.raises(OSError) as failed:
        os.unlink(top / "file")
    assert failed.value.errno == errno.EXDEV
    assert faulty.counts() == [Count(1, 1, 0)]


def test_hundreds_of_calls_may_hang(faulty):
    """More than a server has handlers at once otherwise."""
    top = prepared(faulty)
    program = (
        "import os, sys, threading\n"
        "for n in range(200):\n"
        "    threading.Thread(target=os.statvfs, args=[sys.argv[1]]).start()"
    )
    with faulty.rules("statfs hang"):
        client = subprocess.Popen([sys.executable, "-c", program, top])
        wait_until(lambda: faulty.is_hanging(200), "hundreds of calls that hang")
        assert sorted(os.listdir(top)) == ["a", "empty", "file", "link"]
    assert client.wait(AMPLE) == 0


def test_a_server_that_is_killed_has_all_that_hangs_fail(faulty_server):
    small(faulty_server.source)
    faulty_server.do("open hang")
    client = started(faulty_server.top / "file")
    wait_until(faulty_server.is_hanging)
    faulty_server.kill()
    assert client.wait(AMPLE) == 1
    wait_until(
        lambda: str(faulty_server.top) not in [m.mount_point for m in kernel.mountinfo()],
        "the end of the mount",
    )
