# SPDX-License-Identifier: LGPL-3.0-or-later
"""Mounts below, of and beside a filesystem whose server fails, hangs or is dead."""

import contextlib
import errno
import os
import signal

import anyio
import kernel
import pytest
from faces import block, on_both_faces
from faulted import fds_close, fds_close_without_a_loop, small
from served import is_mounted
from stuck import AMPLE, until

import truenas_os
from truenas_os import AT_FDCWD, _threads, blocking, blocks
from truenas_os.blocking import unmounting

pytestmark = pytest.mark.usefixtures("ends")
ERRORS_OF_THE_DEAD = (errno.ENOTCONN, errno.ECONNABORTED)


def tmpfs(library, top, elsewhere):
    return library.mounted("tmpfs", top / "empty")


def in_a_new_directory(library, top, elsewhere):
    return library.mounted("tmpfs", top / "new", mkdir=True)


def bound(library, top, elsewhere):
    return library.bind(top / "a", top / "empty", attr=truenas_os.MOUNT_ATTR_RDONLY)


def bound_elsewhere(library, top, elsewhere):
    return library.bind(top / "a" / "b", elsewhere, recursive=True)


def overlaid(library, top, elsewhere):
    return library.overlay(elsewhere, [top / "a", top / "empty"])


each_block = pytest.mark.parametrize(
    "making", [tmpfs, in_a_new_directory, bound, bound_elsewhere, overlaid]
)


@pytest.fixture
def elsewhere(mount_dir):
    directory = mount_dir / "elsewhere"
    directory.mkdir()
    return directory


@pytest.fixture
def impatient(monkeypatch):
    """A call that hangs is not to come back; the tests need not wait for it as long."""
    monkeypatch.setattr(_threads, "GRACE_CHANGE", 0.01)
    monkeypatch.setattr(blocks, "GRACE_CHANGE", 0.01)


def tidy(faulty):
    """Remove the directory that was made: the call that failed may be that by which it goes."""
    with contextlib.suppress(FileNotFoundError):
        (faulty.source / "new").rmdir()


# Errors in the middle


@each_block
def test_whichever_call_fails_no_mount_is_left(faulty, elsewhere, making):
    small(faulty.source)

    def make(library):
        return making(library, faulty.top, elsewhere)

    before, fds = kernel.mountinfo(), kernel.open_fds()
    failures = 0
    for armed in faulty.rounds("* fail EIO"):
        with armed:
            try:
                with make(blocking):
                    pass
            except OSError as error:
                failures += 1
                assert error.errno == errno.EIO
                assert isinstance(error.filename, str)
        assert kernel.mountinfo() == before
        fds_close_without_a_loop(fds)
        tidy(faulty)
    assert failures


@each_block
def test_whatever_fails_from_some_call_on_no_mount_is_left_that_was_not_told_of(
    faulty, elsewhere, making, monkeypatch
):
    monkeypatch.setattr(unmounting, "_PATIENCE", 0.01)
    small(faulty.source)

    def make(library):
        return making(library, faulty.top, elsewhere)

    before, fds = kernel.mountinfo(), kernel.open_fds()
    for armed in faulty.rounds("* fail EIO", "from"):
        begun = failed = False
        with armed:
            try:
                with make(blocking) as mount:
                    begun = True
            except OSError as error:
                failed = True
                assert error.errno == errno.EIO
        left = [each for each in kernel.mountinfo() if each not in before]
        assert not left or (begun and failed)
        for each in left:
            blocking.umount(each.mount_point)
            assert mount.target == each.mount_point
        assert kernel.mountinfo() == before
        fds_close_without_a_loop(fds)
        tidy(faulty)


CHANGES = {
    "remount": lambda target: blocking.remount(target, size="1M"),
    "set_attr": lambda target: blocking.set_attr(target, truenas_os.MOUNT_ATTR_NOATIME),
    "umount": blocking.umount,
    "umount, recursive": lambda target: blocking.umount(target, recursive=True),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whichever_call_fails_a_change_is_made_or_its_error_names_the_mount(faulty, change):
    small(faulty.source)
    target = faulty.top / "a" / "b"
    for armed in faulty.rounds("* fail EIO"):
        kernel.mount("tmpfs", target, "tmpfs")
        fds = kernel.open_fds()
        with armed:
            try:
                CHANGES[change](target)
            except* OSError as group:
                (error,) = group.exceptions
                assert os.fspath(error.filename) == str(target)
                # If a lookup fails, the kernel itself detaches what is mounted there.
                assert error.errno == (errno.EIO if is_mounted(target) else errno.EINVAL)
            else:
                assert is_mounted(target) == (not change.startswith("umount"))
        fds_close_without_a_loop(fds)
        if is_mounted(target):
            kernel.umount(target)


# A server that hangs


@pytest.mark.anyio
@each_block
async def test_wherever_it_hangs_a_block_is_cancelled_and_leaves_no_mount_later(
    faulty, elsewhere, making, impatient, anyio_backend
):
    small(faulty.source)

    def make(library):
        return making(library, faulty.top, elsewhere)

    await truenas_os.statx(AT_FDCWD, "/")
    before, fds = kernel.mountinfo(), kernel.open_fds()
    for armed in faulty.rounds("* hang"):
        ended = False

        async def run():
            nonlocal ended
            async with make(truenas_os):
                pass
            ended = True

        with armed:
            async with anyio.create_task_group() as group:
                group.start_soon(run)
                await until(lambda: ended or faulty.is_hanging())
                group.cancel_scope.cancel()
            assert ended or faulty.is_hanging()
            with anyio.fail_after(AMPLE):
                await truenas_os.statx(AT_FDCWD, "/")
        # What was cancelled goes on, and may only now begin to mount.
        await until(lambda: not _threads._portal().workers, "the end of every call")
        assert kernel.mountinfo() == before
        await fds_close(fds)
        tidy(faulty)


@pytest.mark.anyio
async def test_an_end_that_has_waited_for_the_server_is_tried_again_when_that_fails(
    faulty, anyio_backend, monkeypatch
):
    monkeypatch.setattr(unmounting, "_PATIENCE", 0.05)
    small(faulty.source)
    target = faulty.top / "a" / "b"

    async def go():
        await faulty.hangs()
        await anyio.sleep(0.1)
        faulty.do("release")

    async with anyio.create_task_group() as group:
        async with truenas_os.mounted("tmpfs", target):
            faulty.do("getattr hang nth=1", "getattr fail EIO nth=1")
            group.start_soon(go)
    assert [count.struck for count in faulty.counts()] == [1, 1]
    assert not is_mounted(target)


# Unmounting what does not answer

FORMS = [{}, {"lazy": True}, {"lazy_fallback": True}, {"recursive": True}]
each_form = pytest.mark.parametrize("form", FORMS, ids=lambda form: " ".join(form) or "plain")


@contextlib.contextmanager
def stopped(faulty):
    """The whole server stands still."""
    faulty.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        faulty.process.send_signal(signal.SIGCONT)


@pytest.fixture
def shown(faulty, elsewhere):
    """What the server shows at another place, which can be unmounted without ending the server."""
    small(faulty.source)
    kernel.mount(faulty.top, elsewhere, None, kernel.MS_BIND)
    return elsewhere


@each_form
@on_both_faces
async def test_what_hangs_is_unmounted_without_asking_it(face, faulty, shown, form):
    with faulty.rules("* hang"):
        await face.umount(shown, **form)
        assert not is_mounted(shown)
        assert faulty.counts()[0].matched == 0


@each_form
@on_both_faces
async def test_what_stands_still_is_unmounted(face, faulty, shown, form):
    with stopped(faulty):
        await face.umount(shown, **form)
        assert not is_mounted(shown)


@on_both_faces
async def test_a_block_of_what_hangs_ends_without_asking_it(face, faulty, elsewhere):
    small(faulty.source)
    async with block(face.library.bind(faulty.top, elsewhere)) as mount:
        assert is_mounted(elsewhere)
        faulty.do("* hang")
    assert not is_mounted(elsewhere) and mount.fd.closed
    assert faulty.counts()[0].matched == 0


@pytest.mark.anyio
@each_form
async def test_what_hangs_in_a_call_is_busy_unless_it_is_detached(
    faulty, shown, form, anyio_backend
):
    found = []

    async def use():
        found.append(await truenas_os.statx(AT_FDCWD, shown / "file"))

    with faulty.rules("lookup hang"):
        async with anyio.create_task_group() as group:
            group.start_soon(use)
            await faulty.hangs()
            if form.keys() & {"lazy", "lazy_fallback"}:
                await truenas_os.umount(shown, **form)
                assert not is_mounted(shown)
            else:
                with pytest.raises((OSError, ExceptionGroup)) as failed:
                    await truenas_os.umount(shown, **form)
                errors = getattr(failed.value, "exceptions", [failed.value])
                assert [error.errno for error in errors] == [errno.EBUSY]
                assert is_mounted(shown)
            assert faulty.is_hanging() and not found
            faulty.do("clear")
    assert found[0].stx_ino == (faulty.source / "file").stat().st_ino


@pytest.mark.anyio
async def test_a_block_that_hangs_in_a_call_ends_busy_and_the_mount_stays(
    faulty, elsewhere, anyio_backend
):
    small(faulty.source)
    with faulty.rules("lookup hang"):
        async with anyio.create_task_group() as group:
            with pytest.raises(OSError) as failed:
                async with truenas_os.bind(faulty.top, elsewhere):
                    group.start_soon(truenas_os.statx, AT_FDCWD, elsewhere / "file")
                    await faulty.hangs()
            assert failed.value.errno == errno.EBUSY
            assert is_mounted(elsewhere)
            faulty.do("clear")


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("form", [{}, {"recursive": True}, {"lazy": True}], ids=str)
async def test_force_has_what_hangs_give_up(faulty_server, form, anyio_backend):
    faulty = faulty_server
    small(faulty.source)
    before = kernel.open_fds()
    failed = []

    async def use():
        with pytest.raises(OSError) as error:
            await truenas_os.statx(AT_FDCWD, faulty.top / "file")
        failed.append(error.value.errno)

    faulty.do("lookup hang")
    async with anyio.create_task_group() as group:
        group.start_soon(use)
        await faulty.hangs()
        with contextlib.suppress(OSError, ExceptionGroup):
            await truenas_os.umount(faulty.top, force=True, **form)
    assert failed[0] in ERRORS_OF_THE_DEAD
    await fds_close(before)


# A server that is dead


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@each_form
async def test_a_dead_mount_is_unmounted(faulty_server, form, anyio_backend):
    faulty = faulty_server
    before = kernel.open_fds()
    faulty.kill_with_guard()
    assert is_mounted(faulty.top)
    with pytest.raises(OSError) as failed:
        await truenas_os.statx(AT_FDCWD, faulty.top / "file")
    assert failed.value.errno in ERRORS_OF_THE_DEAD
    with anyio.fail_after(AMPLE):
        await truenas_os.umount(faulty.top, **form)
    assert not is_mounted(faulty.top)
    await fds_close(before)
