# SPDX-License-Identifier: LGPL-3.0-or-later
"""openat2, with the standard library as witness."""

import errno
import fcntl
import os
import stat
import struct
import subprocess
import sys
import time
from pathlib import Path

import abandoned
import faults
import kernel
import pytest
from faces import on_both_faces, opened
from faults import failing_counted
from filesystems import written
from stuck import AMPLE

import truenas_os
from truenas_os.blocking import (
    AT_FDCWD,
    RESOLVE_BENEATH,
    RESOLVE_CACHED,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    RESOLVE_NO_XDEV,
)

SCOPED = pytest.mark.parametrize(
    "resolve", [RESOLVE_BENEATH, RESOLVE_IN_ROOT], ids=["BENEATH", "IN_ROOT"]
)


# -- openat2 -------------------------------------------------------------------------------------


async def fails(face, code, *args, **kwargs):
    """Whether openat2 fails with *code* and leaves no descriptor behind."""
    before = kernel.open_fds()
    with pytest.raises(OSError) as failed:
        await face.openat2(*args, **kwargs)
    assert errno.errorcode[failed.value.errno] == errno.errorcode[code]
    assert kernel.open_fds() == before
    return True


@pytest.fixture
def tree(mount_dir):
    """A directory descriptor with every way out of it below."""
    (mount_dir / "secret").write_text("outside")
    top = mount_dir / "top"
    (top / "sub").mkdir(parents=True)
    written(top / "file")
    written(top / "sub" / "file")
    for name, target in {
        "link": "file",
        "dirlink": "sub",
        "absolute": "/file",
        "up": "../secret",
        "sub/around": "../file",
        "sub/far": "../../secret",
    }.items():
        (top / name).symlink_to(target)
    (top / "inner").mkdir()
    kernel.mount("tmpfs", top / "inner", "tmpfs")
    written(top / "inner" / "file")
    fd = os.open(top, os.O_PATH)
    yield fd
    os.close(fd)


async def same_file(face, dirfd, path, resolve, witness):
    """Whether openat2 opens what os.stat finds at *witness*."""
    async with opened(face, dirfd, path, os.O_RDONLY, resolve=resolve) as fd:
        return os.path.samestat(os.fstat(fd), os.stat(witness, dir_fd=dirfd))


@on_both_faces
async def test_no_xdev_forbids_crossing_a_mount_point_either_way(face, tree):
    assert await same_file(face, tree, "inner/file", 0, "inner/file")
    assert await fails(face, errno.EXDEV, tree, "inner/file", 0, resolve=RESOLVE_NO_XDEV)
    assert await fails(face, errno.EXDEV, tree, "inner", os.O_PATH, resolve=RESOLVE_NO_XDEV)
    assert await same_file(face, tree, "sub/file", RESOLVE_NO_XDEV, "sub/file")
    async with opened(face, tree, "inner", os.O_PATH) as inner:
        assert await fails(face, errno.EXDEV, inner, "../file", 0, resolve=RESOLVE_NO_XDEV)
        assert await same_file(face, inner, "file", RESOLVE_NO_XDEV, "file")


@on_both_faces
async def test_no_symlinks_forbids_them_anywhere_in_the_path(face, tree):
    for path in ("link", "dirlink/file", "/proc/self/fd/0"):
        assert await fails(face, errno.ELOOP, tree, path, 0, resolve=RESOLVE_NO_SYMLINKS)
    assert await same_file(face, tree, "link", 0, "file")
    assert await same_file(face, tree, "dirlink/file", 0, "sub/file")
    assert await same_file(face, tree, "sub/file", RESOLVE_NO_SYMLINKS, "sub/file")
    flags = os.O_PATH | os.O_NOFOLLOW
    async with opened(face, tree, "link", flags, resolve=RESOLVE_NO_SYMLINKS) as fd:
        assert stat.S_ISLNK(os.fstat(fd).st_mode)


@on_both_faces
async def test_no_magiclinks_forbids_those_of_proc_but_not_plain_ones(face, tree):
    magic = f"/proc/self/fd/{tree}"
    assert await same_file(face, tree, magic, 0, ".")
    assert await fails(face, errno.ELOOP, tree, magic, 0, resolve=RESOLVE_NO_MAGICLINKS)
    assert await fails(face, errno.ELOOP, tree, magic + "/file", 0, resolve=RESOLVE_NO_MAGICLINKS)
    # /proc/self is a symlink, but a plain one.
    assert await same_file(face, tree, "/proc/self/maps", RESOLVE_NO_MAGICLINKS, "/proc/self/maps")
    assert await same_file(face, tree, "link", RESOLVE_NO_MAGICLINKS, "file")


@on_both_faces
async def test_beneath_forbids_every_escape(face, tree):
    for path in ("..", "../secret", "sub/../../secret", "/", "/etc", "absolute", "up", "sub/far"):
        assert await fails(face, errno.EXDEV, tree, path, os.O_PATH, resolve=RESOLVE_BENEATH)
    assert await same_file(face, tree, "sub/around", RESOLVE_BENEATH, "file")
    assert await same_file(face, tree, "sub/../sub/../file", RESOLVE_BENEATH, "file")
    assert await same_file(face, tree, "inner/../link", RESOLVE_BENEATH, "file")
    fds = os.open("/proc/self/fd", os.O_PATH)
    assert await fails(face, errno.EXDEV, fds, str(tree), os.O_PATH, resolve=RESOLVE_BENEATH)
    os.close(fds)


@on_both_faces
async def test_in_root_takes_the_descriptor_for_the_root(face, tree):
    for path in ("/file", "absolute", "../file", "/../../sub/../file", "sub/around", "link"):
        assert await same_file(face, tree, path, RESOLVE_IN_ROOT, "file")
    for path in ("up", "sub/far", "/etc/passwd", "../secret"):
        assert await fails(face, errno.ENOENT, tree, path, 0, resolve=RESOLVE_IN_ROOT)


@on_both_faces
async def test_cached_gives_eagain_once_for_what_would_have_to_wait(face, tree):
    for resolve in (RESOLVE_CACHED, RESOLVE_CACHED | RESOLVE_BENEATH):
        for path, flags in [("never looked up " + str(resolve), 0), ("file", os.O_TRUNC)]:
            with faults.count("openat2") as calls:
                assert await fails(
                    face, errno.EAGAIN, tree, path, flags | os.O_WRONLY, resolve=resolve
                )
            assert calls.seen == 1


@on_both_faces
async def test_cached_opens_what_is_in_the_cache(face, tree):
    os.stat("file", dir_fd=tree)
    for _ in range(100):  # a mount made anywhere meanwhile makes it fail
        try:
            assert await same_file(face, tree, "file", RESOLVE_CACHED, "file")
            return
        except BlockingIOError:
            pass
    pytest.fail("never opened")


@SCOPED
@pytest.mark.parametrize("times", [1, 2, 50])
@on_both_faces
async def test_a_lookup_that_lost_a_race_is_tried_again(face, tree, resolve, times):
    with failing_counted("openat2", errno.EAGAIN, times=times) as calls:
        assert await same_file(face, tree, "file", resolve, "file")
    assert calls.seen == times + 1


@SCOPED
@on_both_faces
async def test_a_lookup_that_always_loses_fails_in_the_end(face, tree, resolve):
    with failing_counted("openat2", errno.EAGAIN) as calls:
        assert await fails(face, errno.EAGAIN, tree, "file", 0, resolve=resolve)
    assert 1 < calls.seen <= 1000
    for single in (resolve | RESOLVE_CACHED, RESOLVE_CACHED, RESOLVE_NO_XDEV, 0):
        with failing_counted("openat2", errno.EAGAIN) as calls:
            assert await fails(face, errno.EAGAIN, tree, "file", 0, resolve=single)
        assert calls.seen == 1


RENAME_FOREVER = """
import os
print("begun", flush=True)
while True:
    os.rename("a", "b/c/a")
    os.rename("b/c/a", "a")
"""


@pytest.fixture
def renamer(tree):
    """A process that renames directories beside; a thread would wait for the GIL too often."""
    for name in ("a", "b/c"):
        os.makedirs(f"/proc/self/fd/{tree}/{name}")
    with subprocess.Popen(
        [sys.executable, "-c", RENAME_FOREVER], cwd=f"/proc/self/fd/{tree}", stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout.readline() == b"begun\n"
            yield process
            assert process.poll() is None
        finally:
            process.kill()


@SCOPED
@on_both_faces
async def test_opening_through_dotdot_beside_renames_never_fails(face, tree, renamer, resolve):
    how = struct.pack("=QQQ", os.O_RDONLY, 0, resolve)
    tried = lost = 0
    # The race is real only if the bare system call loses it; a longer way loses more often.
    long_way = b"sub/../" * 60 + b"file"
    deadline = time.monotonic() + AMPLE
    while tried < 1000 or (lost == 0 and time.monotonic() < deadline):
        tried += 1
        try:
            os.close(kernel.syscall(437, tree, long_way, how, len(how)))
        except BlockingIOError:
            lost += 1
        async with opened(face, tree, "sub/../file", os.O_RDONLY, resolve=resolve):
            pass
    assert lost


@pytest.mark.parametrize("umask", [0, 0o027, 0o777])
@pytest.mark.parametrize("mode", [0, 0o600, 0o666, 0o7777])
@on_both_faces
async def test_mode_and_umask_act_as_in_open(face, place, mode, umask):
    old = os.umask(umask)
    try:
        os.close(os.open(place / "witness", os.O_CREAT | os.O_WRONLY, mode))
        async with opened(face, AT_FDCWD, place / "file", os.O_CREAT | os.O_WRONLY, mode):
            pass
    finally:
        os.umask(old)
    assert oct(os.stat(place / "file").st_mode) == oct(os.stat(place / "witness").st_mode)


@on_both_faces
async def test_o_tmpfile_makes_a_file_without_a_name(face, place):
    async with opened(face, AT_FDCWD, place, os.O_TMPFILE | os.O_RDWR, 0o640) as fd:
        assert os.write(fd, b"content") == 7
        found = os.fstat(fd)
        assert (found.st_nlink, found.st_size) == (0, 7)
        assert found.st_mode == stat.S_IFREG | 0o640 & ~current_umask()
        assert os.listdir(place) == []


def current_umask():
    text = Path("/proc/self/status").read_text()
    return int(text.split("Umask:")[1].split()[0], 8)


@on_both_faces
async def test_o_path_gives_a_descriptor_that_cannot_read(face, place):
    path = written(place / "file")
    async with opened(face, AT_FDCWD, path, os.O_PATH) as fd:
        assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_PATH
        with pytest.raises(OSError) as failed:
            os.read(fd, 1)
        assert failed.value.errno == errno.EBADF
        assert os.fstat(fd).st_ino == os.stat(path).st_ino


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_PATH, os.O_RDONLY | os.O_CLOEXEC])
@on_both_faces
async def test_descriptors_are_close_on_exec_whatever_the_flags(face, tmp_path, flags):
    path = written(tmp_path / "file")
    witness = os.open(path, os.O_RDONLY)
    os.set_inheritable(witness, True)
    async with opened(face, AT_FDCWD, path, flags) as fd:
        assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        seen = subprocess.check_output(["ls", "/proc/self/fd"], close_fds=False, text=True).split()
    os.close(witness)
    assert str(witness) in seen
    assert str(int(fd)) not in seen


@pytest.mark.parametrize(
    "arguments",
    [
        {"flags": os.O_RDONLY, "mode": 0o600},
        {"flags": 1 << 40},
        {"flags": 1 << 31},
        {"flags": os.O_CREAT | os.O_WRONLY, "mode": 0o10000},
        {"flags": os.O_RDONLY, "resolve": 1 << 30},
        {"flags": os.O_RDONLY, "resolve": RESOLVE_BENEATH | RESOLVE_IN_ROOT},
        {"flags": os.O_PATH | os.O_RDWR | os.O_APPEND},
    ],
    ids=str,
)
@on_both_faces
async def test_what_openat2_does_not_know_is_einval(face, tree, arguments):
    assert await fails(face, errno.EINVAL, tree, "file", **arguments)


@pytest.mark.anyio
async def test_an_abandoned_open_that_is_tried_again_begins_where_it_began(tmp_path, monkeypatch):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for directory in (ours, theirs):
        directory.mkdir()
        written(directory / "file")

    def truncate(fd):
        flags = os.O_WRONLY | os.O_TRUNC
        return truenas_os.openat2(fd, "file", flags, resolve=RESOLVE_BENEATH)

    fds = kernel.open_fds()
    assert await abandoned.at_each_system_call(
        truncate, ours, theirs, monkeypatch, "openat2", errno.EAGAIN
    )
    assert (ours / "file").read_bytes() == b""
    assert (theirs / "file").read_bytes() == b"content"
    assert kernel.open_fds().keys() <= fds.keys()
