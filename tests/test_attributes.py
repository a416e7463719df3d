# SPDX-License-Identifier: LGPL-3.0-or-later
"""file_getattr and file_setattr, with the ioctl and lsattr(1) as witnesses."""

import contextlib
import errno
import fcntl
import os
import re
import struct
import subprocess
from concurrent.futures import ThreadPoolExecutor

import abandoned
import faults
import kernel
import pytest
from faces import on_both_faces
from filesystems import needs_root, written
from witness import notes

import truenas_os
from truenas_os import blocking
from truenas_os.blocking import (
    FS_XFLAG_APPEND,
    FS_XFLAG_IMMUTABLE,
    FS_XFLAG_NOATIME,
    FS_XFLAG_NODUMP,
)

FSGETXATTR = 0x801C581F
AGES = ["6.17", "before 6.17"]


@contextlib.contextmanager
def kernel_of(age):
    """For both calls at once, which the hook cannot: it fails one number."""
    if age == "6.17":
        yield
        return
    from truenas_os.blocking import attributes

    real = attributes.lib

    class Old:
        def __getattr__(self, name):
            if name in ("tos_file_getattr", "tos_file_setattr"):
                return lambda *_: -errno.ENOSYS
            return getattr(real, name)

    attributes.lib = Old()
    try:
        yield
    finally:
        attributes.lib = real


def witness(path):
    """xflags, extsize, nextents, projid, cowextsize by ioctl."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return struct.unpack_from("=5I", fcntl.ioctl(fd, FSGETXATTR, bytes(28)))
    finally:
        os.close(fd)


both_kernels = pytest.mark.parametrize("age", AGES)


@both_kernels
@on_both_faces
async def test_flags_are_set_and_cleared_and_nothing_else_changes(face, place, age):
    path = written(place / "file")
    before = witness(path)
    with kernel_of(age):
        assert tuple(await face.file_getattr(path)) == before
        await face.file_setattr(path, xflags_set=FS_XFLAG_NODUMP)
        await face.file_setattr(path, xflags_set=FS_XFLAG_NOATIME)
        flags = before[0] | FS_XFLAG_NODUMP | FS_XFLAG_NOATIME
        assert witness(path) == (flags, *before[1:])
        assert (await face.file_getattr(path)).fa_xflags == flags
        await face.file_setattr(path, xflags_clr=FS_XFLAG_NODUMP | FS_XFLAG_NOATIME, xflags_set=0)
        assert witness(path) == before


@needs_root
@pytest.mark.parametrize("flag", [FS_XFLAG_IMMUTABLE, FS_XFLAG_APPEND])
@both_kernels
@on_both_faces
async def test_immutable_and_append_only_files_are(face, place, age, flag):
    path = written(place / "file")
    with kernel_of(age):
        await face.file_setattr(path, xflags_set=flag)
        try:
            listed = subprocess.check_output(["lsattr", "-l", path], text=True)
            assert ("Immutable" if flag == FS_XFLAG_IMMUTABLE else "Append_Only") in listed
            with pytest.raises(PermissionError):
                path.unlink()
            with pytest.raises(PermissionError):
                await face.atomic_replace(path, b"new")
            assert os.listdir(place) == ["file"]
        finally:
            await face.file_setattr(path, xflags_clr=flag)
    path.unlink()


@needs_root
@both_kernels
@on_both_faces
async def test_the_project_id_is_set_alone(face, place, age):
    if "xfs" not in str(place):
        pytest.skip("of these filesystems only xfs has project ids without a special mkfs")
    path = written(place / "file", b"")
    with kernel_of(age):
        await face.file_setattr(path, xflags_set=FS_XFLAG_NODUMP, projid=7)
        await face.file_setattr(path, projid=0xFFFFFFFE)
        assert (await face.file_getattr(path)).fa_projid == witness(path)[3] == 0xFFFFFFFE
        assert witness(path)[0] & FS_XFLAG_NODUMP
        await face.file_setattr(path, xflags_set=blocking.FS_XFLAG_EXTSIZE, extsize=65536)
        found = await face.file_getattr(path)
        assert (found.fa_extsize, found.fa_projid) == (65536, 0xFFFFFFFE)


@both_kernels
@on_both_faces
async def test_the_file_may_be_given_in_every_form(face, place, age):
    path = written(place / "file")
    fds = [
        os.open(path, os.O_RDONLY),
        os.open(path, os.O_PATH),
        os.open(place, os.O_PATH),
    ]
    try:
        with kernel_of(age):
            for file, where in (
                (path, {}),
                (os.fsencode(path), {}),
                (fds[0], {}),
                (blocking.Fd(fds[1]), {}),
                ("file", {"dir_fd": fds[2]}),
            ):
                await face.file_setattr(file, xflags_set=FS_XFLAG_NODUMP, **where)
                assert witness(path)[0] & FS_XFLAG_NODUMP
                assert (await face.file_getattr(file, **where)).fa_xflags & FS_XFLAG_NODUMP
                await face.file_setattr(file, xflags_clr=FS_XFLAG_NODUMP, **where)
                assert not witness(path)[0] & FS_XFLAG_NODUMP
    finally:
        for fd in fds:
            os.close(fd)


@both_kernels
@on_both_faces
async def test_a_symlink_is_not_followed_and_special_files_are_not_opened(face, place, age):
    path = written(place / "file")
    (place / "link").symlink_to("file")
    os.mkfifo(place / "fifo")
    with kernel_of(age):
        for special in ("link", "fifo"):
            # Some filesystems have flags even of those; none may reach the file itself.
            with contextlib.suppress(OSError):
                await face.file_setattr(place / special, xflags_set=FS_XFLAG_NODUMP)
            if age != "6.17":
                with pytest.raises(OSError) as failed:
                    await face.file_getattr(place / special)
                assert failed.value.errno == errno.EOPNOTSUPP
                assert failed.value.filename == str(place / special)
    assert not witness(path)[0] & FS_XFLAG_NODUMP


@both_kernels
@on_both_faces
async def test_errors_name_the_file(face, place, age):
    closed = os.open(place, os.O_RDONLY)
    os.close(closed)
    with kernel_of(age):
        with pytest.raises(FileNotFoundError) as failed:
            await face.file_getattr(place / "none")
        assert failed.value.filename == str(place / "none")
        with pytest.raises(OSError) as failed:
            await face.file_getattr(closed)
        assert failed.value.errno == errno.EBADF
        with pytest.raises(OSError) as failed:
            await face.file_getattr("/proc/version")
        assert failed.value.errno == errno.EOPNOTSUPP


def test_an_error_of_the_kernel_is_passed_on(place):
    path = written(place / "file")
    for call in ("file_getattr", "file_setattr"):
        with faults.failing(call, errno.EIO), pytest.raises(OSError) as failed:
            blocking.file_setattr(path, xflags_set=FS_XFLAG_NODUMP)
        assert (failed.value.errno, failed.value.filename) == (errno.EIO, str(path))
    with faults.failing("file_setattr", errno.EPERM), pytest.raises(PermissionError) as refused:
        blocking.file_setattr(path, xflags_set=FS_XFLAG_IMMUTABLE)
    assert notes(refused.value) == ""


@on_both_faces
async def test_bad_arguments_are_found_before_any_system_call(face, tmp_path):
    with faults.count(None) as calls:
        for error, arguments in (
            (ValueError, {"xflags_set": 8, "xflags_clr": 8}),
            (OverflowError, {"projid": -1}),
            (OverflowError, {"projid": 1 << 32}),
            (OverflowError, {"extsize": 1 << 32}),
            (OverflowError, {"cowextsize": -1}),
            (OverflowError, {"xflags_set": 1 << 64}),
            (OverflowError, {"xflags_clr": -1}),
        ):
            with pytest.raises(error):
                await face.file_setattr(tmp_path, **arguments)
    assert calls.seen == 0


@pytest.mark.parametrize(
    ("age", "syscall", "nth"), [("6.17", "file_setattr", 0), ("before 6.17", "openat2", 2)]
)
def test_what_is_read_and_what_is_written_is_the_same_file(place, age, syscall, nth):
    path, other = written(place / "file"), written(place / "other")
    blocking.file_setattr(path, xflags_set=FS_XFLAG_NOATIME)
    with kernel_of(age), ThreadPoolExecutor(1) as thread:
        with faults.stopped(syscall, skip=nth) as stop:
            changing = thread.submit(blocking.file_setattr, path, xflags_set=FS_XFLAG_NODUMP)
            stop.wait_reached()
            path.rename(place / "old")
            other.rename(path)
            stop.go()
            changing.result()
    assert not witness(path)[0] & (FS_XFLAG_NOATIME | FS_XFLAG_NODUMP)
    assert witness(place / "old")[0] & FS_XFLAG_NOATIME
    assert witness(place / "old")[0] & FS_XFLAG_NODUMP


@pytest.mark.anyio
@pytest.mark.skipif(
    tuple(map(int, re.findall(r"\d+", os.uname().release)[:2])) < (6, 17), reason="Linux 6.17"
)
async def test_an_abandoned_change_is_not_made_to_the_file_that_has_the_number_by_then(
    place, monkeypatch
):
    ours, theirs = written(place / "ours"), written(place / "theirs")
    before = witness(theirs)

    def change(fd):
        return truenas_os.file_setattr(fd, xflags_set=FS_XFLAG_NODUMP)

    # What opens the file a second time comes before them, and takes no time.
    for syscall in ("file_getattr", "file_setattr"):
        assert await abandoned.at_each_system_call(change, ours, theirs, monkeypatch, syscall)
    assert witness(ours)[0] & FS_XFLAG_NODUMP
    assert witness(theirs) == before


@both_kernels
def test_no_call_leaves_a_descriptor(place, age):
    path = written(place / "file")
    fds = kernel.open_fds()
    with kernel_of(age):
        blocking.file_setattr(path, xflags_set=FS_XFLAG_NODUMP)
        blocking.file_getattr(path)
        for nth in range(2):
            with faults.failing("ioctl", errno.EIO, skip=nth), contextlib.suppress(OSError):
                blocking.file_setattr(path, xflags_clr=FS_XFLAG_NODUMP)
    assert kernel.open_fds() == fds
