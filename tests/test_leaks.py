# SPDX-License-Identifier: LGPL-3.0-or-later
"""Every call, made again and again: no descriptor and no memory is left behind."""

import contextlib
import errno
import gc
import os
import tracemalloc
from pathlib import Path

import faults
import kernel
import pytest

import truenas_os
from truenas_os import AT_FDCWD, blocking

ALL = ~blocking.StatmountMask(0)


def resident_kib():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0])


def root_id():
    return blocking.mount_of("/").mnt_id


def rename_there_and_back(directory):
    one, two = directory / "one", directory / "two"
    one.touch()
    blocking.renameat2(AT_FDCWD, one, AT_FDCWD, two)
    blocking.renameat2(AT_FDCWD, two, AT_FDCWD, one)


def handle(_):
    bytes(blocking.fhandle(path="/proc/self", flags=blocking.FH_AT_HANDLE_FID))


def through_a_namespace(_):
    with open("/proc/self/ns/mnt") as namespace:
        blocking.listmount(mnt_ns=namespace)


def file_in(directory):
    path = directory / "file"
    path.touch()
    return path


def replace(directory):
    blocking.atomic_replace(directory / "file", b"x" * 4096, durable=False)


def replace_and_fail(directory):
    with blocking.atomic_write(directory / "file", durable=False) as file:
        file.write("x")
        raise OSError


def open_and_read(directory):
    replace(directory)
    with blocking.safe_open("file", "rb", beneath=directory) as file:
        file.read()


def link(directory):
    for name in ("linked", "moved"):
        (directory / name).unlink(missing_ok=True)
    with blocking.openat2(AT_FDCWD, directory, os.O_TMPFILE | os.O_RDWR, 0o600) as fd:
        blocking.link_tmpfile(fd, directory / "linked")
    blocking.rename_noreplace(directory / "linked", directory / "moved")
    replace(directory)
    blocking.exchange(directory / "moved", directory / "file")


def xattrs(directory):
    path = file_in(directory)
    blocking.setxattr(path, "user.leak", b"x" * 300)
    blocking.getxattr(path, "user.leak")
    blocking.listxattr(path)
    blocking.removexattr(path, "user.leak")


def attributes(directory):
    path = file_in(directory)
    blocking.file_setattr(path, xflags_set=blocking.FS_XFLAG_NODUMP)
    blocking.file_getattr(path)


CALLS = {
    "statx": lambda _: blocking.statx(AT_FDCWD, "/"),
    "openat2": lambda _: blocking.openat2(AT_FDCWD, "/", os.O_PATH).close(),
    "listmount": lambda _: blocking.listmount(),
    "statmount": lambda _: blocking.statmount(root_id(), ALL),
    "iter_mount": lambda _: list(blocking.iter_mount(statmount_flags=ALL)),
    "mount_of": lambda _: blocking.mount_of("/"),
    "open_mount_by_id": lambda _: blocking.open_mount_by_id(root_id()).close(),
    "fhandle": handle,
    "renameat2": rename_there_and_back,
    "mnt_ns": through_a_namespace,
    "atomic_replace": replace,
    "safe_open": open_and_read,
    "link_tmpfile": link,
    "xattrs": xattrs,
    "attributes": attributes,
}
FAILING = {
    "statx": lambda _: blocking.statx(AT_FDCWD, "/nonexistent"),
    "openat2": lambda _: blocking.openat2(AT_FDCWD, "/nonexistent", os.O_RDONLY),
    "statmount": lambda _: blocking.statmount(1 << 62),
    "mount_of": lambda _: blocking.mount_of("/proc/self"),
    "open_mount_by_id": lambda _: blocking.open_mount_by_id(1 << 62),
    "fhandle": lambda _: blocking.fhandle(path="/proc/self"),
    "renameat2": lambda _: blocking.renameat2(AT_FDCWD, "/nonexistent", AT_FDCWD, "/proc"),
    "mnt_ns": lambda _: blocking.listmount(mnt_ns=0),
    "atomic_write": replace_and_fail,
    "atomic_replace": lambda _: blocking.atomic_replace("/proc/self/none", b""),
    "safe_open": lambda _: blocking.safe_open("/dev/null"),
    "link_tmpfile": lambda _: blocking.link_tmpfile(0, "/nonexistent/name"),
    "xattrs": lambda directory: blocking.getxattr(directory, "user.none"),
    "attributes": lambda _: blocking.file_getattr("/proc/version"),
    "check_access": lambda _: blocking.check_access([], ["/nonexistent"], must_exist=True),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_leaks_nothing(name, tmp_path):
    call = CALLS[name]
    check_for_leaks(lambda: call(tmp_path))


@pytest.mark.parametrize("name", FAILING)
def test_a_failing_call_leaks_nothing(name, tmp_path):
    def fail():
        with contextlib.suppress(OSError):
            FAILING[name](tmp_path)

    with pytest.raises(OSError):
        FAILING[name](tmp_path)
    check_for_leaks(fail)


def check_for_leaks(call):
    for _ in range(200):
        call()
    gc.collect()
    fds = kernel.open_fds()
    resident = resident_kib()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(500):
            call()
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert kernel.open_fds() == fds
    assert grown < 20_000  # 40 bytes a call would be one lost object in each
    for _ in range(2000):
        call()
    # What C allocates is not traced; 1 KiB a call would show.
    assert resident_kib() - resident < 2000


# A close that is made to fail has not closed anything, which no real one does.
SYSCALLS = (
    "ioctl listmount name_to_handle_at open_by_handle_at openat2 renameat2 statmount statx "
    "fchmod fchown fcntl file_getattr file_setattr flock fsync getxattrat linkat listxattr "
    "listxattrat removexattrat setxattrat".split()
)


@pytest.mark.parametrize("name", CALLS)
def test_whichever_system_call_fails_nothing_leaks(name, tmp_path):
    call = CALLS[name]
    call(tmp_path)
    fds = kernel.open_fds()
    failed = 0
    for syscall in SYSCALLS:
        with faults.count(syscall) as calls:
            call(tmp_path)
        for nth in range(calls.seen):
            for error in (errno.EIO, errno.ENOENT, errno.ENOMEM, errno.EMFILE, errno.EINVAL):
                with faults.failing(syscall, error, skip=nth, times=1):
                    with contextlib.suppress(OSError):
                        call(tmp_path)
                failed += 1
                assert kernel.open_fds() == fds
    assert failed


@pytest.mark.anyio
async def test_the_async_face_leaks_nothing(tmp_path):
    namespace = open("/proc/self/ns/mnt")

    async def every_call():
        await truenas_os.statx(AT_FDCWD, "/")
        async with await truenas_os.openat2(AT_FDCWD, "/", os.O_PATH):
            pass
        ids = await truenas_os.listmount(mnt_ns=namespace)
        await truenas_os.statmount(ids[-1])
        async for _ in truenas_os.iter_mount():
            break
        async for _ in truenas_os.iter_mount(statmount_flags=ALL):
            pass
        mount = await truenas_os.mount_of("/")
        assert mount.mnt_id is not None
        await (await truenas_os.open_mount_by_id(mount.mnt_id)).aclose()
        await truenas_os.fhandle(path="/proc/self", flags=truenas_os.FH_AT_HANDLE_FID)
        async with truenas_os.atomic_write(tmp_path / "file", durable=False) as file:
            await file.write("line\n")
        async with await truenas_os.safe_open(tmp_path / "file") as file:
            async for _ in file:
                break
        await truenas_os.listxattr(tmp_path)

    with namespace:
        for _ in range(20):
            await every_call()
        gc.collect()
        fds, objects = kernel.open_fds(), len(gc.get_objects())
        for _ in range(100):
            await every_call()
        gc.collect()
        assert kernel.open_fds() == fds
        assert len(gc.get_objects()) - objects < 100
