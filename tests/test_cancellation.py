# SPDX-License-Identifier: LGPL-3.0-or-later
"""A cancelled await returns promptly, whichever way it is cancelled, and nothing leaks."""

import asyncio
import errno
import os
import threading
import time

import anyio
import anyio.lowlevel
import faults
import kernel
import pytest
from stuck import (
    AMPLE,
    Gauge,
    fds_return_to,
    in_fifo_open,
    open_writer,
    until,
)

import truenas_os
from truenas_os import AT_FDCWD, _threads


class Cancelled(Exception):
    pass


# Every way to cancel: what runs the await, given a function that cancels it later.
async def by_anyio_scope(make_awaitable, begun):
    async def cancel(scope):
        await until(begun)
        scope.cancel()

    async with anyio.create_task_group() as group:
        with anyio.CancelScope() as scope:
            group.start_soon(cancel, scope)
            await make_awaitable()
        assert scope.cancelled_caught


async def by_asyncio_timeout(make_awaitable, begun):
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(None) as timeout:

            async def expire():
                await until(begun)
                timeout.reschedule(asyncio.get_running_loop().time())

            expiring = asyncio.create_task(expire())
            try:
                await make_awaitable()
            finally:
                await expiring


async def by_task_cancel(make_awaitable, begun):
    async def run():
        await make_awaitable()

    task = asyncio.create_task(run())
    await until(begun)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def by_failing_task_group(make_awaitable, begun):
    async def expire():
        await until(begun)
        raise Cancelled

    with pytest.raises(ExceptionGroup) as failed:
        async with asyncio.TaskGroup() as group:
            group.create_task(expire())
            await make_awaitable()
    assert failed.group_contains(Cancelled)


WAYS = [by_anyio_scope, by_asyncio_timeout, by_task_cancel, by_failing_task_group]


each_way_to_cancel = pytest.mark.parametrize(
    ("anyio_backend", "cancelling"),
    [
        *((("asyncio", {"use_uvloop": False}), way) for way in WAYS),
        *((("asyncio", {"use_uvloop": True}), way) for way in WAYS),
        (("trio", {}), by_anyio_scope),
    ],
)


@pytest.mark.anyio
@each_way_to_cancel
async def test_a_cancelled_open_of_a_fifo_returns_and_its_late_descriptor_is_closed(
    fifo,
    cancelling,
    anyio_backend,
):
    await truenas_os.statx(AT_FDCWD, "/")
    before = kernel.open_fds()
    for _ in range(12):
        with faults.stopped("openat2") as stop:
            await cancelling(
                lambda: truenas_os.openat2(AT_FDCWD, fifo, os.O_RDONLY | os.O_NONBLOCK),
                stop.reached,
            )
            stop.go()
        await fds_return_to(before)


@pytest.mark.anyio
async def test_hundreds_of_cancelled_opens_that_hang_in_the_kernel_leak_nothing(fifo):
    await truenas_os.statx(AT_FDCWD, "/")
    before = kernel.open_fds()
    for _ in range(3):
        outcomes = []

        async def hang():
            with anyio.CancelScope() as scope:
                scopes.append(scope)
                await truenas_os.openat2(AT_FDCWD, fifo, os.O_RDONLY)
            outcomes.append(scope.cancelled_caught)

        scopes = []
        async with anyio.create_task_group() as group:
            for _ in range(100):
                group.start_soon(hang)
            await until(lambda: len(in_fifo_open()) >= 100)
            for scope in scopes:
                scope.cancel()
        assert outcomes == [True] * 100
        # The threads are still in the kernel. Let them go.
        writer = open_writer(fifo)
        await until(lambda: not in_fifo_open())
        os.close(writer)
        await fds_return_to(before)


@pytest.mark.anyio
async def test_a_call_that_has_not_begun_is_not_made_when_cancelled(monkeypatch):
    gauge = Gauge()
    made = []
    monkeypatch.setattr(_threads, "STUCK", 1e9)
    old = truenas_os.set_thread_limit(1)
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(_threads.offload, gauge)
            await until(lambda: gauge.begun == 1)
            with anyio.move_on_after(0.02) as scope:
                await _threads.offload(made.append, 1)
            assert scope.cancelled_caught
            gauge.event.set()
        await _threads.offload(made.append, 2)
    finally:
        truenas_os.set_thread_limit(old)
    assert made == [2]


@pytest.mark.anyio
@each_way_to_cancel
async def test_a_call_with_its_callers_descriptor_is_waited_for_before_the_caller_can_close_it(
    tmp_path,
    cancelling,
    monkeypatch,
    anyio_backend,
):
    """The worker stops just before the system call: it has the number, not yet the file."""
    monkeypatch.setattr(_threads, "GRACE_FD", AMPLE)
    (tmp_path / "file").write_text("x")
    dirfd = os.open(tmp_path, os.O_RDONLY)
    returned = []

    async def use():
        try:
            await truenas_os.statx(dirfd, "file")
        finally:
            returned.append(True)

    released = []

    def go_later():
        time.sleep(0.3)
        released.append(not returned)
        stop.go()

    with faults.stopped("statx") as stop:
        thread = threading.Thread(target=go_later)

        def begun():
            if stop.reached():
                thread.start()
                return True
            return False

        await cancelling(use, begun)
        thread.join()
    assert released == [True]
    os.close(dirfd)


@pytest.mark.anyio
@each_way_to_cancel
async def test_a_call_with_its_callers_descriptor_is_abandoned_after_the_grace(
    tmp_path,
    cancelling,
    anyio_backend,
):
    dirfd = os.open(tmp_path, os.O_RDONLY)
    before = kernel.open_fds()
    with faults.stopped("openat2") as stop:
        await cancelling(lambda: truenas_os.openat2(dirfd, ".", os.O_PATH), stop.reached)
        stop.go()
    await fds_return_to(before)
    os.close(dirfd)


@pytest.mark.anyio
@each_way_to_cancel
async def test_a_call_that_changes_something_is_waited_for(tmp_path, cancelling, anyio_backend):
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("x")
    seen = []

    async def rename():
        try:
            await truenas_os.renameat2(AT_FDCWD, old, AT_FDCWD, new)
        finally:
            seen.append(new.exists())

    with faults.stopped("renameat2") as stop:

        def begun():
            if stop.reached():
                threading.Timer(0.2, stop.go).start()
                return True
            return False

        await cancelling(rename, begun)
    assert seen == [True]


@pytest.mark.anyio
@each_way_to_cancel
async def test_a_call_that_changes_something_is_abandoned_after_its_grace(
    tmp_path,
    cancelling,
    monkeypatch,
    anyio_backend,
):
    monkeypatch.setattr(_threads, "GRACE_CHANGE", 0.05)
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("x")
    with faults.stopped("renameat2") as stop:
        await cancelling(lambda: truenas_os.renameat2(AT_FDCWD, old, AT_FDCWD, new), stop.reached)
        assert old.exists()
        stop.go()
        await until(new.exists)


@pytest.mark.anyio
async def test_a_call_that_changes_something_is_not_made_in_a_cancelled_scope(tmp_path):
    old = tmp_path / "old"
    old.write_text("x")
    with anyio.CancelScope() as scope:
        scope.cancel()
        await truenas_os.renameat2(AT_FDCWD, old, AT_FDCWD, tmp_path / "new")
    assert scope.cancelled_caught
    assert old.exists()


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_repeated_task_cancel_does_not_cut_the_grace_short(tmp_path, anyio_backend):
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("x")
    with faults.stopped("renameat2") as stop:
        task = asyncio.create_task(truenas_os.renameat2(AT_FDCWD, old, AT_FDCWD, new))
        await until(stop.reached)
        for _ in range(5):
            task.cancel()
            await asyncio.sleep(0.01)
            assert not task.done()
        stop.go()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert new.exists()


@pytest.mark.anyio
async def test_a_descriptors_close_survives_cancellation():
    await truenas_os.statx(AT_FDCWD, "/")
    before = kernel.open_fds()
    for _ in range(100):
        with anyio.CancelScope() as scope:
            async with await truenas_os.openat2(AT_FDCWD, "/", os.O_PATH) as fd:
                scope.cancel()
        assert fd.closed or scope.cancelled_caught
    await fds_return_to(before)


@pytest.mark.anyio
async def test_a_close_that_waits_in_the_queue_survives_cancellation(monkeypatch):
    fd = await truenas_os.openat2(AT_FDCWD, "/", os.O_PATH)
    gauge = Gauge()
    monkeypatch.setattr(_threads, "STUCK", 1e9)
    old = truenas_os.set_thread_limit(1)
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(_threads.offload, gauge)
            await until(lambda: gauge.begun == 1)
            with anyio.move_on_after(0.02) as scope:
                await fd.aclose()
            assert scope.cancelled_caught
            assert int(fd) in kernel.open_fds()
            gauge.event.set()
        await until(lambda: int(fd) not in kernel.open_fds())
    finally:
        truenas_os.set_thread_limit(old)


@pytest.mark.anyio
async def test_leaving_the_block_reports_the_error_of_the_close():
    fd = await truenas_os.openat2(AT_FDCWD, "/", os.O_PATH)
    with faults.failing("close", errno.EIO):
        with pytest.raises(OSError) as failed:
            async with fd:
                pass
    assert failed.value.errno == errno.EIO
    os.close(fd)  # the injected failure kept it open


@pytest.mark.anyio
async def test_calls_that_are_cancelled_at_random_moments_leak_nothing():
    """Opens, cancelled before, while and after they run, with nothing stopped or slowed."""
    await truenas_os.statx(AT_FDCWD, "/")
    before = kernel.open_fds()

    async def open_one(delay):
        with anyio.move_on_after(delay):
            fd = await truenas_os.openat2(AT_FDCWD, "/", os.O_PATH)
            await anyio.lowlevel.cancel_shielded_checkpoint()
            fd.detach()
            os.close(fd)

    for round_ in range(20):
        async with anyio.create_task_group() as group:
            for number in range(50):
                group.start_soon(open_one, (number + round_) * 0.00004)
    await fds_return_to(before)


@pytest.fixture
def dead_server(mount_dir):
    """A FUSE filesystem whose server never answers, and the device whose close aborts it."""
    try:
        device = open("/dev/fuse", "r+b", buffering=0)
    except OSError as error:
        pytest.skip(f"/dev/fuse cannot be opened: {error.strerror}")
    # Unless it is closed, whoever still waits for the server cannot even be killed.
    with device:
        target = mount_dir / "dead"
        target.mkdir()
        options = f"fd={device.fileno()},rootmode=40000,user_id=0,group_id=0"
        kernel.mount("dead", target, "fuse", 0, options.encode())
        yield target, device


@pytest.mark.anyio
@each_way_to_cancel
async def test_a_dead_server_holds_up_neither_who_cancels_nor_anybody_else(
    dead_server, cancelling, anyio_backend
):
    target, device = dead_server
    await truenas_os.statx(AT_FDCWD, "/")
    portal = _threads._portal()
    for number in range(5):
        for ask in (truenas_os.statx, truenas_os.openat2):
            stuck = len(portal.workers)
            await cancelling(
                lambda ask=ask, number=number: ask(AT_FDCWD, target / str(number), 0),
                lambda stuck=stuck: len(portal.workers) > stuck,
            )
        with anyio.fail_after(AMPLE):
            await truenas_os.statx(AT_FDCWD, "/")
    assert len(portal.workers) >= 10  # all are still in the kernel
    device.close()
    await until(lambda: not portal.workers, "the end of every call")
