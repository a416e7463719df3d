# SPDX-License-Identifier: LGPL-3.0-or-later
"""Calls and files of a filesystem whose server hangs, or dies meanwhile."""

import errno
import os

import anyio
import kernel
import pytest
from faulted import fds_close, small
from filesystems import IS_ROOT
from stuck import AMPLE, until
from test_cancellation import by_anyio_scope, each_way_to_cancel

import truenas_os
from truenas_os import AT_FDCWD, MOUNT_ATTR_NOATIME, AsyncFile, _threads

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("ends")]

# What is asked of a path or opens it, and where that hangs. What is opened comes late.
ASKING = {
    "statx": ("lookup", lambda path: truenas_os.statx(AT_FDCWD, path)),
    "statx, attributes": ("statx", lambda path: truenas_os.statx(AT_FDCWD, path)),
    "openat2": ("open", lambda path: truenas_os.openat2(AT_FDCWD, path, os.O_RDONLY)),
    "openat2, a directory": (
        "opendir",
        lambda path: truenas_os.openat2(AT_FDCWD, path.parent, os.O_RDONLY),
    ),
    "safe_open": ("open", lambda path: truenas_os.safe_open(path)),
    "getxattr": ("getxattr", lambda path: truenas_os.getxattr(path, "user.name")),
    "listxattr": ("listxattr", lambda path: truenas_os.listxattr(path)),
    "file_getattr": ("lookup", lambda path: truenas_os.file_getattr(path)),
    "mount_of": ("lookup", lambda path: truenas_os.mount_of(path)),
    "fhandle": ("lookup", lambda path: truenas_os.fhandle(path, AT_FDCWD)),
    "open_tree": ("lookup", lambda path: truenas_os.open_tree(AT_FDCWD, path.parent)),
    "check_access": (
        "lookup",
        lambda path: truenas_os.check_access([(0, 0, ())], path.parts, os.R_OK),
    ),
    "fspick": ("lookup", lambda path: truenas_os.fspick(AT_FDCWD, path)),
    "a walk": ("opendir", lambda path: anext(truenas_os.walk(path.parent))),
    "a walk, the room on it": ("statfs", lambda path: anext(truenas_os.walk(path.parent))),
}
# What changes something, and is waited for.
CHANGING = {
    "setxattr": ("setxattr", lambda path: truenas_os.setxattr(path, "user.name", b"value")),
    "removexattr": ("lookup", lambda path: truenas_os.removexattr(path, "user.name")),
    "rename_noreplace": (
        "rename",
        lambda path: truenas_os.rename_noreplace(path, path.with_name("other")),
    ),
    "exchange": ("lookup", lambda path: truenas_os.exchange(path, path.with_name("two"))),
    "set_attr": ("lookup", lambda path: truenas_os.set_attr(path, MOUNT_ATTR_NOATIME)),
    "remount": ("lookup", lambda path: truenas_os.remount(path, ro=True)),
    "umount": ("lookup", lambda path: truenas_os.umount(path)),
    "umount, recursive": ("lookup", lambda path: truenas_os.umount(path, recursive=True)),
}


@pytest.fixture
def file(faulty):
    """A file that the server shows."""
    small(faulty.source)
    return faulty.top / "a" / "one"


@pytest.fixture
def impatient(monkeypatch):
    """What is waited for is not to come; the tests need not wait as long."""
    monkeypatch.setattr(_threads, "GRACE_CHANGE", 0.01)
    monkeypatch.setattr(truenas_os.safefiles, "GRACE_CHANGE", 0.01)


async def hung_and_cancelled(faulty, rule, call, cancelling):
    """Cancel a call that hangs as *rule* says; others go on meanwhile."""
    with faulty.rules(rule):
        await cancelling(call, faulty.is_hanging)
        assert faulty.is_hanging()
        with anyio.fail_after(AMPLE):
            await truenas_os.statx(AT_FDCWD, "/")
    await until(lambda: not _threads._portal().workers, "the end of every call")


async def test_whatever_hangs_is_cancelled_and_holds_up_no_other(
    faulty, file, anyio_backend, impatient
):
    await truenas_os.statx(AT_FDCWD, "/")
    before = kernel.open_fds()
    for name, (operation, call) in (ASKING | CHANGING).items():
        if name == "check_access" and not IS_ROOT:
            continue  # it is root's
        rule = f"{operation} hang"
        await hung_and_cancelled(faulty, rule, lambda call=call: call(file), by_anyio_scope)
        await fds_close(before)


@each_way_to_cancel
async def test_whatever_hangs_is_cancelled_in_every_way(
    faulty, file, cancelling, anyio_backend, impatient
):
    await truenas_os.statx(AT_FDCWD, "/")
    before = kernel.open_fds()
    for name in ("openat2", "openat2, a directory", "setxattr"):
        operation, call = (ASKING | CHANGING)[name]
        rule = f"{operation} hang"
        await hung_and_cancelled(faulty, rule, lambda call=call: call(file), cancelling)
        await fds_close(before)


async def test_whatever_hangs_fails_when_the_server_is_killed(faulty_server, anyio_backend):
    faulty = faulty_server
    small(faulty.source)
    file = faulty.top / "a" / "one"
    await truenas_os.statx(AT_FDCWD, "/")
    before = kernel.open_fds()
    faulty.do(*(f"{operation} hang" for operation, _ in ASKING.values()))
    portal = _threads._portal()
    errors = []

    async def ask(call):
        with pytest.raises(OSError) as failed:
            await call(file)
        errors.append(failed.value.errno)

    calls = {name: call for name, (_, call) in ASKING.items() if not name.startswith("a walk")}
    if not IS_ROOT:
        del calls["check_access"]
    async with anyio.create_task_group() as group:
        for number, call in enumerate(calls.values(), 1):
            group.start_soon(ask, call)
            # Of several that look up the same name, the kernel asks for one.
            await until(lambda number=number: len(portal.workers) >= number)
        await anyio.to_thread.run_sync(faulty.kill)
    assert len(errors) == len(calls)
    assert set(errors) <= {errno.ENOTCONN, errno.ECONNABORTED}
    await fds_close(before)


async def test_what_is_asked_about_mounts_does_not_ask_their_servers(faulty, anyio_backend):
    (there,) = [m for m in kernel.mountinfo() if m.mount_point == str(faulty.top)]
    with faulty.rules("* hang"):
        with anyio.fail_after(AMPLE):
            tree = await truenas_os.mount_tree()
            found = tree.at(faulty.top)
            assert found.mnt_id_old == there.id
            assert (await truenas_os.statmount(found.mnt_id)).mnt_id == found.mnt_id
            assert found.mnt_id in await truenas_os.listmount()
            assert found.mnt_id in [mount.mnt_id async for mount in truenas_os.iter_mount()]
        assert faulty.counts()[0].matched == 0


# Files


def buffered(path):
    """More than a page, of which a page has been read."""
    path.write_bytes(bytes(range(256)) * 64)
    return path


@pytest.mark.parametrize("how", [AsyncFile.read, anext], ids=["read", "line"])
async def test_reading_that_hangs_is_cancelled_and_the_next_call_waits_for_it(
    faulty, file, how, anyio_backend
):
    buffered(faulty.source / "a" / "one")
    before = kernel.open_fds()
    results = []
    async with await truenas_os.safe_open(file, "rb") as opened:

        async def read():
            await opened.seek(10)
            results.append(await opened.read(3))

        with faulty.rules("read hang"):
            await by_anyio_scope(lambda: how(opened), faulty.is_hanging)
            async with anyio.create_task_group() as group:
                group.start_soon(read)
                for _ in range(10):
                    await anyio.sleep(0.001)
                assert faulty.is_hanging() and not results
                faulty.do("clear")
    assert results == [b"\x0a\x0b\x0c"]
    await fds_close(before)


@pytest.mark.parametrize(
    ("operation", "how"),
    [
        ("write", lambda file: file.flush()),
        ("fsync", lambda file: file.fsync()),
        ("setattr", lambda file: file.truncate(1)),
        ("setxattr", lambda file: truenas_os.setxattr(file, "user.name", b"value")),
        ("write", lambda file: file.aclose()),
        ("flush", lambda file: file.aclose()),
    ],
    ids=["flush", "fsync", "truncate", "setxattr", "the last write", "close"],
)
async def test_changes_of_a_file_that_hang_are_cancelled_and_happen_later(
    faulty, file, operation, how, anyio_backend, impatient
):
    await truenas_os.statx(AT_FDCWD, "/")
    before = kernel.open_fds()
    opened = await truenas_os.safe_open(file, "w")
    await opened.write("written")
    if operation == "setattr":
        await opened.flush()
    await hung_and_cancelled(faulty, f"{operation} hang", lambda: how(opened), by_anyio_scope)
    await opened.aclose()
    source = faulty.source / "a" / "one"
    await until(lambda: source.read_text() == ("w" if operation == "setattr" else "written"))
    assert operation != "setxattr" or os.getxattr(source, "user.name") == b"value"
    await fds_close(before)


async def test_a_close_that_hangs_holds_up_nobody(faulty, file, anyio_backend):
    await truenas_os.statx(AT_FDCWD, "/")
    before = kernel.open_fds()

    async def descriptor():
        async with await truenas_os.openat2(AT_FDCWD, file, os.O_RDONLY):
            pass

    async def opened():
        async with await truenas_os.safe_open(file):
            pass

    async def walked():
        async with truenas_os.walk(file.parent) as items:
            [item async for item in items]

    for close in (descriptor, opened, walked):
        await hung_and_cancelled(faulty, "flush hang", close, by_anyio_scope)
        await fds_close(before)


@pytest.mark.parametrize("operation", ["read", "write", "fsync", "flush"])
async def test_what_the_server_reports_is_raised(faulty, file, operation, anyio_backend):
    """At the latest when the file is closed, and it is closed all the same."""
    buffered(faulty.source / "a" / "one")
    before = kernel.open_fds()
    with faulty.rules(f"{operation} fail EIO"):
        with pytest.raises(OSError) as failed:
            async with await truenas_os.safe_open(file, "rb+") as opened:
                await opened.read()
                await opened.write(b"more")
                await opened.fsync()
    assert failed.value.errno == errno.EIO
    await fds_close(before)


async def test_what_was_written_when_the_server_is_killed_is_an_error(faulty_server, anyio_backend):
    faulty = faulty_server
    small(faulty.source)
    await truenas_os.statx(AT_FDCWD, "/")
    before = kernel.open_fds()
    opened = await truenas_os.safe_open(faulty.top / "file", "w")
    await opened.write("lost")
    faulty.do("write hang")
    failed = []

    async def close():
        with pytest.raises(OSError) as error:
            await opened.aclose()
        failed.append(error.value.errno)

    async with anyio.create_task_group() as group:
        group.start_soon(close)
        await faulty.hangs()
        await anyio.to_thread.run_sync(faulty.kill)
    assert failed[0] in (errno.ENOTCONN, errno.ECONNABORTED)
    assert opened.closed
    await fds_close(before)
