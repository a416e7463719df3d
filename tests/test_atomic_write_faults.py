# SPDX-License-Identifier: LGPL-3.0-or-later
"""atomic_write against kill -9, failing system calls, full disks, cancellation and each other."""

import errno
import functools
import json
import os
import threading
from pathlib import Path

import anyio
import faults
import kernel
import pytest
import replacing
from faces import block, on_both_faces
from filesystems import written
from replacing import NEW, OLD, VARIANTS, without_tmpfile
from stuck import until
from witness import in_python

import truenas_os
from truenas_os import blocking

each_variant = pytest.mark.parametrize("variant", VARIANTS)
SYSCALLS = "openat2 fchmod fchown flock fsync linkat renameat2 getxattr getxattrat listxattr \
    listxattrat setxattrat removexattrat statx".split()


def names(directory):
    return sorted(os.listdir(directory))


def content(path):
    return path.read_bytes() if path.exists() else None


@each_variant
def test_kill_9_before_any_system_call_leaves_old_or_new_and_nothing_else(place, variant):
    script = "import replacing; replacing.main({!r}, {!r})"
    result = json.loads(in_python(script.format(str(place), variant)))
    assert (result["end"], result["left"]) == ("new", [])
    _, exists, _ = VARIANTS[variant]
    deaths = result["deaths"]
    assert len(deaths) > 5
    assert {death["content"] for death in deaths} == {"old" if exists else "none", "new"}
    for death in deaths:
        # What the next one to replace the file finds, it removes.
        assert death["left later"] == []
        if "without" in variant:
            assert len(death["left"]) <= 1
        elif not exists:
            assert death["left"] == []
    if variant.startswith("old file"):
        # Only between the link and the rename.
        assert sum(bool(death["left"]) for death in deaths) == 1


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.ENOMEM, errno.EACCES])
@each_variant
@on_both_faces
async def test_whichever_system_call_fails_old_or_new_stands_and_nothing_else(
    face, place, variant, code
):
    way, exists, arguments = VARIANTS[variant]
    path = place / "target"
    failed = 0
    with way():
        for syscall in SYSCALLS:
            for nth in range(99):
                replacing.emptied(place)
                if exists:
                    written(path, OLD)
                before = content(path)
                fds = kernel.open_fds()
                with faults.failing(syscall, code, skip=nth, times=1):
                    try:
                        await face.atomic_replace(path, NEW, **arguments)
                        raised = False
                    except OSError as error:
                        raised = True
                        assert error.filename == str(path)
                    made = faults.lib.tos_fault_disarm()
                failed += raised
                assert content(path) in ((before, NEW) if raised else (NEW,))
                if raised and content(path) == NEW:
                    assert syscall == "fsync"
                assert names(place) in ([], ["target"])
                assert kernel.open_fds() == fds
                if made <= nth:
                    break
    assert failed > 2


@pytest.fixture
def full(mount_dir):
    """A filesystem of 1 MiB with an old file on it."""
    target = mount_dir / "small"
    target.mkdir()
    kernel.mount("tmpfs", target, "tmpfs", data=b"size=1m")
    written(target / "file", OLD)
    return target


@pytest.mark.parametrize("way", ["with O_TMPFILE", "without O_TMPFILE"])
@on_both_faces
async def test_a_full_disk_leaves_the_old_file_and_nothing_else(face, full, way):
    path = full / "file"
    free = os.statvfs(full).f_bavail
    manage = without_tmpfile if way.startswith("without") else faults.contextlib.nullcontext
    with manage():
        with pytest.raises(OSError) as failed:
            await face.atomic_replace(path, b"x" * (2 << 20))
        assert failed.value.errno == errno.ENOSPC
        # What fits a buffer is written only when the block ends.
        written(full / "filler", b"x" * (free * os.statvfs(full).f_frsize))
        with pytest.raises(OSError) as failed:
            async with block(face.library.atomic_write(path)) as file:
                await face.call(file.write, "x")
        assert (failed.value.errno, failed.value.filename) == (errno.ENOSPC, str(path))
    assert path.read_bytes() == OLD
    assert names(full) == ["file", "filler"]
    (full / "filler").unlink()
    assert os.statvfs(full).f_bavail == free


# -- Leftovers -----------------------------------------------------------------------------------


def left_behind(target):
    """Die between link and rename; what is then beside the target."""
    script = f"""
import os, signal
from truenas_os import blocking
from truenas_os.blocking import replacement
from replacing import WithoutTmpfile

class Deadly(WithoutTmpfile):
    def __getattr__(self, name):
        if name == "tos_renameat2":
            os.kill(os.getpid(), signal.SIGKILL)
        return getattr(self._lib, name)

if not os.fork():
    replacement.lib = Deadly(replacement.lib)
    blocking.atomic_replace({str(target)!r}, b"dead")
os.wait()
"""
    before = set(target.parent.iterdir())
    in_python(script)
    (left,) = set(target.parent.iterdir()) - before
    return left


@pytest.mark.parametrize("mode", [0o600, 0o444, 0])
def test_what_the_dead_left_is_removed_by_the_next_who_replaces_that_file(place, mode):
    path, other = written(place / "file", OLD), written(place / "other", OLD)
    os.chmod(path, mode)
    for _ in range(2):
        left = left_behind(path)
        assert left.read_bytes() == b"dead"
        blocking.atomic_replace(other, NEW)
        assert left.exists()
        blocking.atomic_replace(path, NEW)
        assert names(place) == ["file", "other"]
    left_behind(path)
    with without_tmpfile():
        blocking.atomic_replace(path, NEW)
    assert names(place) == ["file", "other"]


def test_a_temporary_of_the_living_is_not_removed(place):
    path = written(place / "file", OLD)
    with without_tmpfile():
        with blocking.atomic_write(path, "wb") as one:
            one.write(b"one")
            for _ in range(3):
                blocking.atomic_replace(path, NEW)
            assert len(names(place)) == 2
        assert path.read_bytes() == b"one"
        assert names(place) == ["file"]


@pytest.mark.parametrize("kind", ["directory", "symlink", "fifo", "locked"])
def test_who_occupies_the_common_name_stops_nobody(place, monkeypatch, kind):
    import fcntl

    from truenas_os.blocking import temporaries

    monkeypatch.setattr(temporaries, "_TRIES", 5)
    path = written(place / "file", OLD)
    left = left_behind(path)
    victim = written(place / "victim", b"victim")
    if kind != "locked":
        left.unlink()
        {
            "directory": left.mkdir,
            "symlink": lambda: left.symlink_to(victim),
            "fifo": lambda: os.mkfifo(left),
        }[kind]()
    with left.open("rb") if kind == "locked" else faults.contextlib.nullcontext() as lock:
        if lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
        blocking.atomic_replace(path, NEW)
    assert path.read_bytes() == NEW
    assert names(place) == sorted([left.name, "file", "victim"])
    assert victim.read_bytes() == b"victim"


def test_a_filesystem_without_locks_is_written_to_all_the_same(place):
    path = written(place / "file", OLD)
    with faults.failing("flock", errno.EOPNOTSUPP):
        blocking.atomic_replace(path, NEW)
        with without_tmpfile():
            blocking.atomic_replace(path, OLD)
    assert path.read_bytes() == OLD
    assert names(place) == ["file"]


# -- Each other ----------------------------------------------------------------------------------

ROUNDS, WRITERS, SIZE = 15, 16, 50_000


@pytest.mark.parametrize("way", ["with O_TMPFILE", "without O_TMPFILE"])
def test_sixteen_writers_and_a_reader_who_never_sees_a_mixture(place, way):
    path = written(place / "file", b"z" * SIZE)
    done = threading.Event()
    mixed, errors = [], []

    def read():
        while not done.is_set():
            data = path.read_bytes()
            if len(data) != SIZE or data.count(data[:1]) != SIZE:
                mixed.append(data)

    def write(number):
        try:
            for _ in range(ROUNDS):
                blocking.atomic_replace(path, bytes([number]) * SIZE, durable=number % 4 == 0)
        except BaseException as error:
            errors.append(error)

    manage = without_tmpfile if way.startswith("without") else faults.contextlib.nullcontext
    with manage():
        reader = threading.Thread(target=read)
        writers = [threading.Thread(target=write, args=(n,)) for n in range(WRITERS)]
        for thread in (reader, *writers):
            thread.start()
        for thread in writers:
            thread.join()
        done.set()
        reader.join()
    assert not errors
    assert not mixed
    assert names(place) == ["file"]


@pytest.mark.anyio
async def test_sixteen_tasks_replace_one_file(place):
    path = place / "file"
    contents = [bytes([number]) * SIZE for number in range(WRITERS)]
    async with anyio.create_task_group() as tasks:
        for data in contents:
            tasks.start_soon(functools.partial(truenas_os.atomic_replace, path, data))
    assert path.read_bytes() in contents
    assert names(place) == ["file"]


def test_sixteen_who_do_not_clobber_make_one_file(place):
    made = []

    def write(number):
        try:
            blocking.atomic_replace(place / "file", bytes([number]), noclobber=True, durable=False)
            made.append(number)
        except FileExistsError:
            pass

    writers = [threading.Thread(target=write, args=(n,)) for n in range(WRITERS)]
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join()
    (only,) = made
    assert (place / "file").read_bytes() == bytes([only])
    assert names(place) == ["file"]


# -- Cancellation --------------------------------------------------------------------------------


async def write_all(path, arguments, progress):
    async with truenas_os.atomic_write(path, "wb", **arguments) as file:
        progress.append("begun")
        for _ in range(2):
            await file.write(NEW[: len(NEW) // 2])
        await file.flush()
        progress.append("written")


@pytest.mark.anyio
@each_variant
async def test_cancelled_at_every_system_call_old_or_new_stands_and_nothing_else(tmp_path, variant):
    way, exists, arguments = VARIANTS[variant]
    path = tmp_path / "target"
    await truenas_os.statx(truenas_os.AT_FDCWD, "/")
    fds = kernel.open_fds()
    outcomes = set()
    with way():
        for nth in range(99):
            replacing.emptied(tmp_path)
            if exists:
                written(path, OLD)
            before, progress = content(path), []
            with faults.stopped(None, skip=nth) as stop, anyio.CancelScope() as scope:
                async with anyio.create_task_group() as group:

                    async def write_then_tell():
                        await write_all(path, arguments, progress)
                        progress.append("done")

                    group.start_soon(write_then_tell)
                    await until(lambda: stop.reached() or "done" in progress)
                    if stop.reached():
                        scope.cancel()
                        stop.go()
            found = content(path)
            outcomes.add(found)
            # Once all is written, the block's end is made whatever is cancelled.
            assert found == (NEW if "written" in progress else before)
            assert names(tmp_path) == (["target"] if found is not None else [])
            with anyio.CancelScope(shield=True):
                await until(lambda: kernel.open_fds().keys() == fds.keys())
            if not scope.cancelled_caught:
                break
    assert outcomes == {NEW, OLD if exists else None}


@pytest.mark.anyio
async def test_an_async_block_that_is_cancelled_leaves_the_old_file(tmp_path):
    path = written(tmp_path / "file", OLD)
    with anyio.CancelScope() as scope:
        async with truenas_os.atomic_write(path, "wb") as file:
            await file.write(NEW)
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert path.read_bytes() == OLD
    assert names(tmp_path) == ["file"]


@pytest.mark.anyio
async def test_a_cancelled_replacement_happens_whole_or_not_at_all(tmp_path):
    path = written(tmp_path / "file", OLD)
    for nth in range(6):
        with faults.stopped(None, skip=nth) as stop, anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(truenas_os.atomic_replace, path, NEW)
                await until(stop.reached)
                scope.cancel()
                stop.go()
        assert scope.cancelled_caught
        assert path.read_bytes() == NEW  # waited for
        assert names(tmp_path) == ["file"]
        written(path, OLD)


def test_the_reader_process_of_another_program_sees_only_whole_contents(tmp_path):
    path = written(tmp_path / "file", b"a" * SIZE)
    script = f"""
import sys
from pathlib import Path
path = Path({str(path)!r})
seen = set()
while len(seen) < 3:
    data = path.read_bytes()
    assert data.count(data[:1]) == len(data) == {SIZE}, "a mixture"
    seen.add(data[:1])
print(sorted(seen))
"""
    stop = threading.Event()

    def write():
        while not stop.is_set():
            for letter in b"abc":
                blocking.atomic_replace(path, bytes([letter]) * SIZE, durable=False)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert in_python(script, timeout=60) == "[b'a', b'b', b'c']\n"
    finally:
        stop.set()
        writer.join()
    assert names(tmp_path) == ["file"]
    assert Path(path).exists()
