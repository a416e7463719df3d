# SPDX-License-Identifier: LGPL-3.0-or-later
"""What a walk says of an entry, and the descriptor that comes with it."""

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import subprocess
import sys

import faults
import kernel
import pytest
from faces import on_both_faces
from grown import O_PATH, deep, filled, grown, tree
from stuck import wait_until
from walked import OPENING, old_descriptors, paths, walking
from witness import in_python

pytestmark = pytest.mark.usefixtures("ends")
LARGEFILE = 0o100000


def status_flags(fd):
    """The flags of an open descriptor, from /proc, without those that change nothing any more."""
    with open(f"/proc/self/fdinfo/{fd}") as lines:
        flags = next(int(line.split()[1], 8) for line in lines if line.startswith("flags:"))
    return flags & ~(LARGEFILE | os.O_NOFOLLOW)


# Fields


@pytest.mark.parametrize("opening", OPENING, ids=["with fds", "without"])
@on_both_faces
async def test_every_field_is_what_stat_says(face, place, opening):
    grown(place)
    async with walking(face, place, file_open_flags=opening, include_symlinks=True) as walk:
        async for item in walk:
            status = os.lstat(item.path)
            seen = item.statxinfo
            assert isinstance(seen, face.library.StatxResult)
            assert (seen.stx_ino, seen.stx_mode) == (status.st_ino, status.st_mode)
            assert (seen.stx_size, seen.stx_nlink) == (status.st_size, status.st_nlink)
            assert (seen.stx_uid, seen.stx_gid) == (status.st_uid, status.st_gid)
            assert (seen.stx_mtime_ns, seen.stx_ctime_ns) == (
                status.st_mtime_ns,
                status.st_ctime_ns,
            )
            assert os.makedev(seen.stx_dev_major, seen.stx_dev_minor) == status.st_dev
            expected = [test(status.st_mode) for test in (stat.S_ISDIR, stat.S_ISREG, stat.S_ISLNK)]
            told = [item.isdir, item.isreg, item.islnk]
            assert told == expected
            assert {type(one) for one in told} == {bool}
            assert item.ismount is False
            assert item.error is None
            assert (item.parent, item.name) == os.path.split(item.path)
            assert {type(one) for one in (item.path, item.parent, item.name)} == {str}
            assert item.depth == len(os.path.relpath(item.path, place).split("/"))


@on_both_faces
async def test_what_a_walk_tells_of_a_file_is_what_statx_tells(face, place):
    grown(place)
    mask = face.library.STATX_BASIC_STATS | face.library.STATX_BTIME
    async with walking(face, place) as walk:
        told = await walk.rest_of(lambda item: (item.path, item.statxinfo))
    for path, seen in told:
        again = await face.statx(face.library.AT_FDCWD, path, flags=0x100, mask=mask)
        for field in ("stx_btime_ns", "stx_blksize", "stx_blocks", "stx_attributes"):
            if os.path.isdir(path) and field != "stx_btime_ns":
                continue
            assert getattr(seen, field) == getattr(again, field), field
        assert seen.stx_mask & mask == again.stx_mask & mask


@on_both_faces
async def test_an_item_is_small_and_shows_itself(face, place):
    filled(place, "file")
    async with walking(face, place) as walk:
        item = await anext(walk)
        assert not hasattr(item, "__dict__")
        assert isinstance(item, face.library.IterInstance)
        assert "file" in repr(item)
        with pytest.raises(AttributeError):
            item.new = 1


# Descriptors


@pytest.mark.parametrize(
    "flags",
    [
        *(os.O_RDONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND, os.O_RDONLY | os.O_NONBLOCK),
        *(os.O_RDONLY | os.O_NOATIME, os.O_RDWR | os.O_SYNC, os.O_RDONLY | os.O_CLOEXEC),
        os.O_RDONLY | os.O_NOFOLLOW,
    ],
    ids=oct,
)
@on_both_faces
async def test_a_file_is_opened_with_the_flags_of_the_caller(face, place, flags):
    grown(place)
    async with walking(face, place, file_open_flags=flags) as walk:
        async for item in walk:
            assert fcntl.fcntl(item.fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
            found = status_flags(item.fd)
            if item.isreg:
                with open_as(item.path, flags) as fd:
                    assert found == status_flags(fd)
            elif item.isdir:
                assert found & (os.O_ACCMODE | O_PATH | os.O_DIRECTORY) == os.O_DIRECTORY
            else:
                assert found & O_PATH


@contextlib.contextmanager
def open_as(path, flags):
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


@on_both_faces
async def test_a_descriptor_is_that_of_its_item_until_the_next_is_asked_for(face, place):
    grown(place)
    async with walking(face, place, include_symlinks=True) as walk:
        async for item in walk:
            status = os.fstat(item.fd)
            assert os.path.samestat(status, os.lstat(item.path))
            assert status.st_ino == item.statxinfo.stx_ino
            if item.isreg:
                assert os.read(item.fd, 1000) == b"x" * status.st_size


@on_both_faces
async def test_to_list_a_directory_through_its_descriptor_disturbs_nothing(face, place):
    grown(place)
    found = []
    async with walking(face, place, read_ahead=1) as walk:
        async for item in walk:
            found.append(os.fsencode(item.path))
            if item.isdir:
                assert os.lseek(item.fd, 0, os.SEEK_CUR) == 0
                assert sorted(os.listdir(item.fd)) == sorted(os.listdir(item.path))
                os.lseek(item.fd, 0, os.SEEK_SET)
                assert sorted(os.listdir(item.fd)) == sorted(os.listdir(item.path))
    assert found == tree(place)


@on_both_faces
async def test_without_descriptors_nothing_but_directories_is_opened(face, mount_dir):
    grown(mount_dir)
    opened = len([path for path in tree(mount_dir) if os.path.isdir(path)])
    with faults.count("openat2") as calls:
        async with walking(face, mount_dir, file_open_flags=None, include_symlinks=True) as walk:
            assert {item.fd for item in await walk.rest()} == {-1}
    assert opened <= calls.seen < 3 * opened + 10


@on_both_faces
async def test_a_walk_leaves_no_descriptor(face, place):
    grown(place)
    async with walking(face, place) as walk:
        await walk.rest()
    before = kernel.open_fds()
    for count in (None, 0, 1, 20):
        async with walking(face, place) as walk:
            await (walk.rest() if count is None else walk.take(count))
        await old_descriptors(face, before)


@pytest.mark.parametrize("read_ahead", [1, 5, 50])
@on_both_faces
async def test_no_more_is_read_ahead_than_asked_for(face, mount_dir, read_ahead):
    """Beside the entries read ahead and the one handed out: the directories, and a few more."""
    grown(mount_dir)
    before = len(kernel.open_fds())
    if face.name != "blocking":
        await face.statx(face.library.AT_FDCWD, "/")
    async with walking(face, mount_dir, read_ahead=read_ahead) as walk:
        async for _ in walk:
            assert len(kernel.open_fds()) - before <= read_ahead + 1 + 4 + 12


# What cannot be opened


@on_both_faces
async def test_a_running_program_cannot_be_opened_for_writing_but_is_told(face, place):
    program = place / "program"
    shutil.copy(shutil.which("sleep"), program)
    filled(place, "file")
    running = subprocess.Popen([program, "1000"])
    try:
        wait_until(lambda: os.readlink(f"/proc/{running.pid}/exe") == str(program))
        async with walking(face, place, file_open_flags=os.O_RDWR) as walk:
            seen = {}
            async for item in walk:
                seen[item.name] = item.error and item.error.errno
                if item.error:
                    assert status_flags(item.fd) & O_PATH
                    assert item.error.filename == str(program) == item.path
                    assert item.isreg
                    assert item.statxinfo.stx_size == program.stat().st_size
            stats = walk.get_stats()
    finally:
        running.kill()
        running.wait()
    assert seen == {"program": errno.ETXTBSY, "file": None}
    assert stats[3:5] == (0, 1)


HOLD = """
import fcntl, os, signal, sys
signal.signal(signal.SIGIO, signal.SIG_IGN)
fd = os.open(sys.argv[1], os.O_RDWR)
fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
print("held", flush=True)
sys.stdin.read()
"""


@on_both_faces
async def test_a_file_under_a_lease_is_not_waited_for(face, place):
    """Its holder would have 45 seconds to let go."""
    filled(place, "before", "leased", "after", size=10)
    command = [sys.executable, "-c", HOLD, place / "leased"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        async with walking(face, place) as walk:
            seen = {}
            async for item in walk:
                seen[item.name] = item.error and item.error.errno
                if item.error:
                    assert status_flags(item.fd) & O_PATH
        assert seen == {"before": None, "leased": errno.EWOULDBLOCK, "after": None}
        holder.stdin.close()
    async with walking(face, place) as walk:
        assert [item.error for item in await walk.rest()] == [None] * 3


@on_both_faces
async def test_a_file_that_grows_shows_what_was_seen(face, mount_dir):
    filled(mount_dir, "file")
    async with walking(face, mount_dir) as walk:
        item = await anext(walk)
        (mount_dir / "file").write_bytes(b"x" * 500)
        assert item.statxinfo.stx_size == 0
        assert item.statxinfo is item.statxinfo or item.statxinfo == item.statxinfo
        assert os.fstat(item.fd).st_size == 500


FEW = """
import os, resource, sys
from truenas_os import blocking

resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
fds = []
with blocking.walk({place!r}, read_ahead=1000) as walk:
    found = 0
    errors = 0
    for item in walk:
        found += 1
        errors += item.error is not None
print(found, errors)
"""


def test_a_greedy_read_ahead_is_cut_to_the_limit_of_descriptors(place):
    grown(place)
    assert in_python(FEW.format(place=str(place))).split() == [str(len(tree(place))), "0"]


def test_descriptors_that_others_use_up_end_no_walk_silently(mount_dir):
    """EMFILE is told like any other error."""
    grown(mount_dir)
    script = """
import os, resource
from truenas_os import blocking

resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
told = found = 0
with blocking.walk({place!r}) as walk:
    next(walk)
    taken = []
    try:
        while True:
            taken.append(os.dup(0))
    except OSError:
        pass
    seen = 1
    while True:
        try:
            next(walk)
            seen += 1
        except StopIteration:
            break
        except OSError:
            told += 1
        assert told < 1000
    stats = walk.get_stats()
print(seen, told, stats.cnt_errors, stats.cnt_skipped)
"""
    seen, told, errors, _ = map(int, in_python(script.format(place=str(mount_dir))).split())
    assert seen == len(tree(mount_dir)) or errors
    assert told <= errors


def test_the_way_back_up_waits_for_descriptors_that_the_consumer_has(mount_dir):
    deep(mount_dir, b"d", 60)
    script = """
import os, resource
from truenas_os import blocking

resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
seen, depth, taken = 0, 0, []
with blocking.walk({place!r}, read_ahead=1, on_error="raise") as walk:
    for item in walk:
        seen += 1
        on_the_way_up, depth = item.depth < depth, item.depth
        if on_the_way_up and not taken:
            try:
                while True:
                    taken.append(os.dup(0))
            except OSError:
                pass
print(seen)
"""
    assert int(in_python(script.format(place=str(mount_dir)))) == len(tree(mount_dir))


@on_both_faces
async def test_paths_of_items_that_are_kept_stay_right(face, place):
    grown(place)
    kept = []
    async with walking(face, place, read_ahead=3) as walk:
        async for item in walk:
            kept.append(item)
    assert paths(kept) == tree(place)
    assert [item.statxinfo.stx_ino for item in kept] == [
        os.lstat(path).st_ino for path in tree(place)
    ]
