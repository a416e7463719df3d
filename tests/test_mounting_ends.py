# SPDX-License-Identifier: LGPL-3.0-or-later
"""How a block ends: what it mounted is unmounted wherever it is, and nothing else."""

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import anyio
import faults
import kernel
import pytest
import traces
from faces import block, on_both_faces
from stuck import AMPLE, wait_until
from traces import at
from witness import in_python, make, notes

import truenas_os
from truenas_os.blocking import mounted, unmounting

TESTS = Path(__file__).parent


@pytest.fixture
def target(mount_dir):
    (mount_dir / "above" / "target").mkdir(parents=True)
    return mount_dir / "above" / "target"


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(unmounting, "_PATIENCE", 0.02)


def contexts(error):
    """The exceptions in whose handling one was raised."""
    while error is not None:
        yield error
        error = error.__context__


def sources(path):
    return [mount.source for mount in at(path)]


# Wherever it is


@on_both_faces
async def test_a_mount_that_was_moved_is_unmounted(face, target, mount_dir):
    (elsewhere := mount_dir / "elsewhere").mkdir()
    async with block(face.library.mounted("tmpfs", target)):
        kernel.mount(target, elsewhere, None, kernel.MS_MOVE)
        assert (len(at(target)), len(at(elsewhere))) == (0, 1)
    assert traces.below(mount_dir) == []


@on_both_faces
async def test_a_mount_above_which_a_directory_was_renamed_is_unmounted(face, target, mount_dir):
    async with block(face.library.mounted("tmpfs", target)):
        target.parent.rename(mount_dir / "new\nname")
        assert len(traces.below(mount_dir)) == 1
    assert traces.below(mount_dir) == []


@on_both_faces
async def test_a_mount_that_is_gone_needs_no_unmounting(face, target, mount_dir):
    make(target.parent, "target", source="below")
    async with block(face.library.mounted("tmpfs", target)) as mount:
        await face.close(mount.fd)
        kernel.umount(target)
    assert sources(target) == ["below"]


@on_both_faces
async def test_what_replaced_the_mount_stays(face, target):
    async with block(face.library.mounted("tmpfs", target)):
        kernel.umount(target, kernel.MNT_DETACH)
        make(target.parent, "target", source="foreign")
    assert sources(target) == ["foreign"]


@on_both_faces
async def test_a_mount_that_was_moved_is_found_and_what_replaced_it_stays(face, target, mount_dir):
    (elsewhere := mount_dir / "elsewhere").mkdir()
    async with block(face.library.mounted("tmpfs", target)):
        kernel.mount(target, elsewhere, None, kernel.MS_MOVE)
        make(target.parent, "target", source="foreign")
    assert sources(target) == ["foreign"]
    assert at(elsewhere) == []


@on_both_faces
async def test_what_was_put_on_top_stays_and_the_end_is_EBUSY(face, target, impatient):
    with pytest.raises(OSError) as failed:
        async with block(face.library.mounted("tmpfs", target, source="ours")) as mount:
            make(target.parent, "target", source="foreign")
    assert failed.value.errno == errno.EBUSY
    assert failed.value.filename == str(target)
    assert str(mount.mnt_id) in notes(failed.value)
    assert sources(target) == ["ours", "foreign"]


@on_both_faces
async def test_mounts_below_stay_and_are_named_by_the_EBUSY(face, target, impatient):
    with pytest.raises(OSError) as failed:
        async with block(face.library.mounted("tmpfs", target)):
            inner = make(target, "inner")
    assert failed.value.errno == errno.EBUSY
    assert failed.value.filename == str(target)
    assert str(inner) in notes(failed.value)
    assert (len(at(target)), len(at(inner))) == (1, 1)


@on_both_faces
async def test_what_was_on_top_only_for_a_while_is_waited_for(face, target):
    async with block(face.library.mounted("tmpfs", target)):
        make(target.parent, "target")
        threading.Timer(0.1, kernel.umount, [target]).start()
    assert at(target) == []


@on_both_faces
async def test_a_mount_whose_directories_were_replaced_by_symlinks_is_unmounted(
    face, target, mount_dir
):
    async with block(face.library.mounted("tmpfs", target)):
        target.parent.rename(mount_dir / "renamed")
        (mount_dir / "decoy").mkdir()
        foreign = make(mount_dir / "decoy", "target", source="foreign")
        (mount_dir / "above").symlink_to("decoy")
    assert traces.below(mount_dir) == [str(foreign)]


@on_both_faces
async def test_a_mount_moved_below_a_deep_path_is_unmounted(face, target, mount_dir, monkeypatch):
    async with block(face.library.mounted("tmpfs", target)):
        monkeypatch.chdir(mount_dir)
        for _ in range(25):
            os.mkdir("d" * 200)
            os.chdir("d" * 200)
        kernel.mount(target, ".", None, kernel.MS_MOVE)
        (point,) = traces.below(mount_dir)
        assert len(point) > 5000
        os.chdir("/")
    assert traces.below(mount_dir) == []


@on_both_faces
async def test_a_mount_below_a_shared_one_leaves_no_copies(face, mount_dir):
    (shared := mount_dir / "shared").mkdir()
    (peer := mount_dir / "peer").mkdir()
    kernel.mount("tmpfs", shared, "tmpfs")
    kernel.mount(None, shared, None, kernel.MS_SHARED)
    kernel.mount(shared, peer, None, kernel.MS_BIND)
    (shared / "m").mkdir()
    async with block(face.library.mounted("tmpfs", shared / "m")):
        assert (len(at(shared / "m")), len(at(peer / "m"))) == (1, 1)
    assert sorted(traces.below(mount_dir)) == [str(peer), str(shared)]


# Races: something happens just before each system call of the end


def put_on_top(target, elsewhere):
    make(target.parent, "target", source="foreign")


def replaced(target, elsewhere):
    kernel.umount(target, kernel.MNT_DETACH)
    make(target.parent, "target", source="foreign")


def moved(target, elsewhere):
    kernel.mount(target, elsewhere, None, kernel.MS_MOVE)
    make(target.parent, "target", source="foreign")


def moved_on_top(target, elsewhere):
    """What was mounted elsewhere is on top, and was looked at there."""
    kernel.mount("foreign", elsewhere, "tmpfs")
    kernel.mount(elsewhere, target, None, kernel.MS_MOVE)


def renamed(target, elsewhere):
    target.parent.rename(elsewhere.parent / "renamed")
    target.mkdir(parents=True)
    make(target.parent, "target", source="foreign")


def unmounted(target, elsewhere):
    kernel.umount(target, kernel.MNT_DETACH)


def filled(target, elsewhere):
    make(target, "foreign", source="foreign")


# What the end cannot get past.
BUSY = (put_on_top, moved_on_top, filled)


@pytest.mark.parametrize(
    "meanwhile",
    [put_on_top, replaced, moved, moved_on_top, renamed, unmounted, filled],
    ids=lambda function: function.__name__,
)
def test_whatever_happens_before_whichever_call_of_the_end_only_our_mount_goes(
    tmp_path, meanwhile, monkeypatch
):
    if meanwhile in BUSY:
        monkeypatch.setattr(unmounting, "_PATIENCE", 0.02)
    nth = happened = 0
    while happened == nth:
        nth += 1
        place = tmp_path / str(nth)
        place.mkdir()
        kernel.mount("tmpfs", place, "tmpfs")
        try:
            happened += _disturbed(place, meanwhile, nth)
        finally:
            kernel.umount(place, kernel.MNT_DETACH)
    assert happened > 5


def _disturbed(place, meanwhile, nth):
    """Whether the end made as many calls; it is disturbed before the last of them."""
    (elsewhere := place / "elsewhere").mkdir()
    (target := place / "above" / "target").mkdir(parents=True)
    outcome = []

    def end():
        try:
            manager.__exit__(None, None, None)
        except OSError as error:
            outcome.append(error)

    manager = mounted("tmpfs", target, source="ours")
    manager.__enter__()
    with faults.stopped(None, skip=nth - 1) as stop:
        thread = threading.Thread(target=end)
        thread.start()
        wait_until(lambda: stop.reached() or not thread.is_alive())
        happened = stop.reached()
        if happened:
            busy = any(mount.source == "ours" for mount in kernel.mountinfo())
            if busy:
                meanwhile(target, elsewhere)
            stop.go()
        thread.join(AMPLE)
    remaining = [m.source for m in kernel.mountinfo() if m.mount_point.startswith(f"{place}/")]
    foreign = int(happened and busy and meanwhile is not unmounted)
    assert remaining.count("foreign") == foreign
    if outcome:
        assert outcome[0].errno == errno.EBUSY
        assert remaining.count("ours") == 1
        assert meanwhile in BUSY
    else:
        assert remaining.count("ours") == 0
    return happened


@pytest.mark.parametrize("where", ["on top", "in place"])
def test_foreign_mounts_that_come_and_go_are_never_unmounted(target, where):
    ended = threading.Event()
    robbed, times = [], 0

    def come_and_go():
        nonlocal times
        if where == "in place":
            kernel.umount(target, kernel.MNT_DETACH)
        most = times + 200
        while not ended.is_set() and times < most:
            kernel.mount(f"foreign {times}", target, "tmpfs")
            if f"foreign {times}" not in sources(target):
                robbed.append(times)
            kernel.umount(target, kernel.MNT_DETACH)
            times += 1

    for _ in range(20):
        ended.clear()
        thread = threading.Thread(target=come_and_go)
        try:
            with mounted("tmpfs", target, source="ours"):
                thread.start()
                before = times
                wait_until(lambda: times > before)
        except OSError as error:
            assert error.errno == errno.EBUSY
        finally:
            ended.set()
            thread.join(AMPLE)
            while at(target):
                kernel.umount(target)
    assert robbed == []


# Busy


@on_both_faces
async def test_a_file_left_open_makes_the_end_EBUSY(face, target, impatient):
    with pytest.raises(OSError) as failed:
        async with block(face.library.mounted("tmpfs", target)):
            file = open(target / "file", "w")
    assert failed.value.errno == errno.EBUSY
    assert failed.value.filename == str(target)
    assert len(at(target)) == 1
    file.close()


@on_both_faces
async def test_the_exception_of_the_block_is_the_context_of_that_of_its_end(
    face, target, impatient
):
    expected = KeyError("expected")
    with pytest.raises(OSError) as failed:
        async with block(face.library.mounted("tmpfs", target)):
            file = open(target / "file", "w")
            raise expected
    assert expected in contexts(failed.value)
    file.close()


@on_both_faces
async def test_a_user_that_soon_ends_is_waited_for(face, target):
    async with block(face.library.mounted("tmpfs", target)):
        file = open(target / "file", "w")
        threading.Timer(0.1, file.close).start()
    assert at(target) == []


def test_a_mount_that_is_looked_at_all_the_time_is_unmounted(target):
    ended = threading.Event()

    def look():
        while not ended.is_set():
            os.access(target / "file", os.F_OK)

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            with mounted("tmpfs", target):
                pass
            assert at(target) == []
    finally:
        ended.set()
        for thread in threads:
            thread.join(AMPLE)


# Other processes


PREAMBLE = "import os, sys\nfrom pathlib import Path\nfrom truenas_os.blocking import mounted\n"


def test_a_forked_child_that_leaves_the_block_does_not_unmount_the_parents_mount(target):
    script = f"""
import kernel
with mounted("tmpfs", {str(target)!r}, source="ours") as mount:
    pid = os.fork()
    if pid:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        print([m.source for m in kernel.mountinfo() if m.mount_point == mount.target])
        assert not mount.fd.closed
        os.fstat(mount.fd)
assert mount.fd.closed
if pid:
    print([m.source for m in kernel.mountinfo() if m.mount_point == mount.target])
os._exit(0) if not pid else None
"""
    assert in_python(PREAMBLE + script).split("\n")[:2] == ["['ours']", "[]"]


def start(script, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", PREAMBLE + script, *arguments],
        env=os.environ | {"PYTHONPATH": str(TESTS)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_KeyboardInterrupt_in_the_block_unmounts(target):
    script = f"""
import time
with mounted("tmpfs", {str(target)!r}, mkdir=True):
    print("mounted", flush=True)
    time.sleep({AMPLE})
"""
    with start(script) as process:
        assert process.stdout.readline() == b"mounted\n"
        assert len(at(target)) == 1
        process.send_signal(signal.SIGINT)
        assert b"KeyboardInterrupt" in process.communicate(timeout=AMPLE)[1]
    assert at(target) == []


def test_KeyboardInterrupt_at_any_moment_of_the_beginning_leaves_no_mount(target):
    """The signal comes just before a system call, and its handler runs after it."""
    script = """
import signal, threading, faults, traces
target, leaked = sys.argv[1], []
manager = mounted("tmpfs", target, mkdir=True)
with faults.count(None) as calls:
    manager.__enter__()
manager.__exit__(None, None, None)
main = threading.main_thread().ident
for nth in range(calls.seen):
    with faults.stopped(None, skip=nth) as stop:
        def interrupt():
            stop.wait_reached()
            signal.pthread_kill(main, signal.SIGINT)
            stop.go()
        thread = threading.Thread(target=interrupt)
        thread.start()
        try:
            with mounted("tmpfs", target, mkdir=True):
                print("not interrupted")
        except KeyboardInterrupt:
            pass
        thread.join()
    if traces.at(target) or os.path.exists(target):
        leaked.append(nth)
print(leaked)
"""
    with start(script, str(target / "made")) as process:
        printed, errors = process.communicate(timeout=AMPLE)
    assert (printed, errors, process.returncode) == (b"[]\n", b"", 0)


EXHAUSTED = """
import errno, resource, kernel
from truenas_os.blocking import unmounting
unmounting._PATIENCE = 0.02
target = sys.argv[1]
with mounted("tmpfs", target):
    pass
highest = max(kernel.open_fds())
for room in range(1, 12):
    held = []
    before = kernel.open_fds().keys()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + room, limits[1]))
    outcome = "mounted"
    try:
        with mounted("tmpfs", target):
            outcome = "begun"
            try:
                while sys.argv[2] == "end":
                    held.append(os.open("/dev/null", os.O_RDONLY))
            except OSError:
                pass
    except OSError as error:
        assert error.errno == errno.EMFILE, error
        outcome += " failed"
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    for fd in held:
        os.close(fd)
    still = [m for m in kernel.mountinfo() if m.mount_point == target]
    if still:
        kernel.umount(target)
    print(outcome, len(still), kernel.open_fds().keys() == before)
"""


def exhausted(target, moment):
    with start(EXHAUSTED, str(target), moment) as process:
        printed, errors = process.communicate(timeout=AMPLE)
    assert errors == b""
    return printed.decode().splitlines()


def test_without_descriptors_to_mount_with_nothing_is_left(target):
    lines = exhausted(target, "beginning")
    assert set(lines) == {"mounted failed 0 True", "begun 0 True"}


def test_without_descriptors_to_unmount_with_the_mount_is_unmounted_or_the_end_says_so(target):
    lines = exhausted(target, "end")
    assert set(lines) <= {"mounted failed 0 True", "begun 0 True", "begun failed 1 True"}
    assert any(line.startswith("begun") for line in lines)


LOCKED = """
import kernel, os, tempfile
from truenas_os import blocking
point = tempfile.mkdtemp(dir=os.environ["PLACE"])
def below():
    return [m.mount_point for m in kernel.mountinfo() if m.mount_point.startswith(point)]
with blocking.bind("/sys", point, recursive=True):
    print(len(below()) > 1)
print(below())
"""


def test_a_recursive_bind_of_mounts_that_a_user_namespace_locks_ends(tmp_path):
    kernel_path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", sys.executable, "-c", LOCKED],
        env=os.environ | {"PYTHONPATH": kernel_path, "PLACE": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("True\n[]\n", "")


@pytest.mark.anyio
async def test_an_end_that_fails_is_told_of_when_it_was_cancelled_as_well(target, impatient):
    with pytest.raises(OSError) as failed, anyio.move_on_after(0.1):
        async with truenas_os.mounted("tmpfs", target):
            left_open = (target / "file").open("w")
            await anyio.sleep(30)
    assert failed.value.errno == errno.EBUSY
    left_open.close()
    kernel.umount(target)


@on_both_faces
async def test_of_a_recursive_bind_only_what_is_busy_stays(face, mount_dir, impatient):
    source = make(mount_dir, "source")
    for name in "abc":
        make(source, name)
    (mount_dir / "view").mkdir()
    with pytest.raises(OSError) as failed:
        async with block(face.library.bind(source, mount_dir / "view", recursive=True)):
            left_open = (mount_dir / "view" / "b" / "file").open("w")
    assert failed.value.errno == errno.EBUSY
    view = f"{mount_dir}/view"
    points = [m.mount_point for m in kernel.mountinfo() if m.mount_point.startswith(view)]
    assert points == [view, f"{view}/b"]
    left_open.close()


def test_a_directory_that_took_the_place_of_one_that_was_made_is_not_removed(mount_dir):
    (mount_dir / "precious" / "new").mkdir(parents=True)
    with mounted("tmpfs", mount_dir / "made" / "new", mkdir=True):
        os.rename(mount_dir / "made", mount_dir / "elsewhere")
        os.symlink("precious", mount_dir / "made")
    assert (mount_dir / "precious" / "new").is_dir()


def test_a_deleted_working_directory_matters_only_to_a_relative_target(mount_dir, monkeypatch):
    (mount_dir / "gone").mkdir()
    monkeypatch.chdir(mount_dir / "gone")
    (mount_dir / "gone").rmdir()
    with mounted("tmpfs", mount_dir / "made", mkdir=True):
        assert len(at(mount_dir / "made")) == 1
    with pytest.raises(FileNotFoundError), mounted("tmpfs", "made", mkdir=True):
        raise AssertionError("mounted")
    monkeypatch.undo()
