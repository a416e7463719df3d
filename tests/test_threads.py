# SPDX-License-Identifier: LGPL-3.0-or-later
"""What the worker threads promise: prompt cancellation, nothing leaked, nobody held up."""

import asyncio
import contextlib
import contextvars
import errno
import fcntl
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import anyio
import anyio.lowlevel
import faults
import kernel
import pytest
import sniffio
import trio
import uvloop

import truenas_os
from truenas_os import AT_FDCWD, _threads, blocking

# Without the promise these tests would wait for ever; no machine is so slow that it needs this.
AMPLE = 30


async def until(condition, what="the condition"):
    with anyio.move_on_after(AMPLE):
        while not condition():
            await anyio.sleep(0.002)
        return
    pytest.fail(f"{what} did not come true")


async def fds_return_to(before):
    gc.collect()
    await until(lambda: kernel.open_fds().keys() == before.keys(), "the old set of descriptors")


def fds_return_without_a_loop_to(before):
    gc.collect()
    deadline = time.monotonic() + AMPLE
    while kernel.open_fds().keys() != before.keys() and time.monotonic() < deadline:
        time.sleep(0.002)
    assert kernel.open_fds() == before


def run_python(program, *args, timeout=AMPLE):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program), *args],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.fixture
def fifo(tmp_path):
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


def open_writer(path):
    """Let every open of the FIFO's other end that waits return; closed by the caller."""
    return os.open(path, os.O_WRONLY | os.O_NONBLOCK)


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
    for _ in range(40):
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


def in_fifo_open():
    """The worker threads that sit in open(2) of a FIFO."""
    waiting = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            if "wait_for_partner" in (task / "wchan").read_text():
                waiting.append(task.name)
    return waiting


@pytest.mark.anyio
async def test_two_hundred_stuck_calls_do_not_hold_up_the_next(fifo):
    async with anyio.create_task_group() as group:
        for _ in range(200):
            group.start_soon(truenas_os.openat2, AT_FDCWD, fifo, os.O_RDONLY)
        await anyio.lowlevel.checkpoint()
        with anyio.fail_after(AMPLE):  # none of the 200 will ever return by itself
            result = await truenas_os.statx(AT_FDCWD, "/")
        assert result.stx_ino == os.stat("/").st_ino
        group.cancel_scope.cancel()
    os.close(open_writer(fifo))


@pytest.mark.anyio
async def test_calls_that_wait_behind_a_stuck_one_are_taken_over_by_another_worker():
    with faults.stopped("statx", times=2) as stop:
        async with anyio.create_task_group() as group:
            group.start_soon(truenas_os.statx, AT_FDCWD, "/")
            group.start_soon(truenas_os.statx, AT_FDCWD, "/")
            await until(lambda: stop.reached(2))
            with anyio.fail_after(AMPLE):
                for _ in range(10):
                    await truenas_os.listmount()
            stop.go(2)


@pytest.mark.anyio
async def test_a_finished_call_is_delivered_while_the_next_is_stuck():
    finished = []

    async def quick():
        finished.append(await truenas_os.listmount())

    with faults.stopped("statx", times=6) as stop:
        async with anyio.create_task_group() as group:
            for _ in range(6):
                for _ in range(20):
                    group.start_soon(quick)
                group.start_soon(truenas_os.statx, AT_FDCWD, "/")
            await until(lambda: len(finished) == 120)
            await until(lambda: stop.reached(6))
            stop.go(6)


class Gauge:
    """Calls that block until they are told to go on, and how many of them have begun."""

    def __init__(self):
        self.begun = 0
        self.most = 0
        self.now = 0
        self.lock = threading.Lock()
        self.event = threading.Event()

    def __call__(self):
        with self.lock:
            self.begun += 1
            self.now += 1
            self.most = max(self.most, self.now)
        self.event.wait(AMPLE)
        with self.lock:
            self.now -= 1


@pytest.mark.anyio
async def test_no_more_calls_run_than_the_limit_until_they_are_stuck(monkeypatch):
    monkeypatch.setattr(_threads, "STUCK", 1e9)
    gauge = Gauge()
    old = truenas_os.set_thread_limit(5)
    try:
        async with anyio.create_task_group() as group:
            for _ in range(30):
                group.start_soon(_threads.offload, gauge)
            await until(lambda: gauge.begun == 5)
            await anyio.sleep(0.1)
            assert gauge.begun == 5
            # Now they are stuck, and no longer count.
            monkeypatch.setattr(_threads, "STUCK", 0.1)
            await until(lambda: gauge.begun == 30)
            gauge.event.set()
    finally:
        truenas_os.set_thread_limit(old)
    assert old == 64


@pytest.mark.anyio
async def test_a_limit_is_one_event_loops_own():
    async def set_limit():
        found.append(truenas_os.set_thread_limit(3))

    found = []
    thread = threading.Thread(target=anyio.run, args=(set_limit,))
    thread.start()
    thread.join()
    assert found == [64]
    assert truenas_os.set_thread_limit(64) == 64


@pytest.mark.anyio
@pytest.mark.parametrize("limit", [0, -1, 513])
async def test_a_limit_out_of_range_is_refused(limit):
    with pytest.raises(ValueError, match="between 1 and 512"):
        truenas_os.set_thread_limit(limit)


def test_a_limit_needs_an_event_loop():
    with pytest.raises(RuntimeError):
        truenas_os.set_thread_limit(8)


@pytest.mark.anyio
async def test_at_the_ceiling_a_call_fails_with_eagain_and_recovers(monkeypatch):
    gauge = Gauge()
    monkeypatch.setattr(_threads, "CEILING", 12 + _threads._pool.size)
    refused = []

    async def call():
        try:
            await _threads.offload(gauge)
        except OSError as error:
            refused.append(error)

    async with anyio.create_task_group() as group:
        for _ in range(80):
            group.start_soon(call)
        await until(lambda: len(refused) + gauge.begun == 80)
        assert len(refused) >= 80 - _threads.CEILING
        with pytest.raises(OSError) as failed:
            await truenas_os.statx(AT_FDCWD, "/")
        gauge.event.set()
    for error in (*refused, failed.value):
        assert error.errno == errno.EAGAIN
        assert "no thread is free" in error.__notes__[0]
    await until(lambda: gauge.now == 0)
    assert (await truenas_os.statx(AT_FDCWD, "/")).stx_ino == os.stat("/").st_ino


@pytest.mark.anyio
async def test_a_system_without_threads_is_eagain_not_a_hang(monkeypatch):
    def no_thread(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_threads, "_pool", _threads._Pool())
    monkeypatch.setattr(threading.Thread, "start", no_thread)
    with anyio.fail_after(AMPLE):
        with pytest.raises(OSError) as failed:
            await truenas_os.statx(AT_FDCWD, "/")
    assert failed.value.errno == errno.EAGAIN


@pytest.mark.anyio
async def test_idle_workers_beyond_a_few_end():
    gauge = Gauge()
    async with anyio.create_task_group() as group:
        for _ in range(60):
            group.start_soon(_threads.offload, gauge)
        await until(lambda: gauge.begun == 60)
        gauge.event.set()
    await until(lambda: _threads._pool.size <= _threads._KEPT_IDLE)


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
async def test_context_variables_reach_the_worker_and_stay_there():
    variable = contextvars.ContextVar("variable", default="unset")

    def change():
        seen = variable.get()
        variable.set("changed on the worker")
        return seen

    variable.set("set")
    assert await _threads.offload(change) == "set"
    assert variable.get() == "set"


@pytest.mark.anyio
async def test_completions_come_in_batches():
    """Many calls, few wake-ups."""
    await truenas_os.statx(AT_FDCWD, "/")
    portal = _threads._portal()
    wakes = []
    wake = portal.wake
    portal.wake = lambda: (wakes.append(1), wake())
    try:
        async with anyio.create_task_group() as group:
            for _ in range(1000):
                group.start_soon(truenas_os.statx, AT_FDCWD, "/")
    finally:
        del portal.wake
    assert 0 < len(wakes) < 500


@pytest.mark.anyio
async def test_an_exception_of_the_call_has_no_reference_cycle():
    gc.collect()
    gc.disable()
    try:
        for _ in range(50):
            try:
                await truenas_os.statx(AT_FDCWD, "/nonexistent")
            except FileNotFoundError:
                pass
        found = [o for o in gc.get_objects() if isinstance(o, FileNotFoundError)]
    finally:
        gc.enable()
    assert len(found) <= 2


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_loop_that_ends_while_a_call_is_stuck_leaks_nothing(fifo, loop_factory):
    async def main():
        task = asyncio.create_task(truenas_os.openat2(AT_FDCWD, fifo, os.O_RDONLY))
        while not in_fifo_open():
            await asyncio.sleep(0.002)
        del task

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())
    before = kernel.open_fds()
    writer = open_writer(fifo)
    while in_fifo_open():
        time.sleep(0.002)
    os.close(writer)
    fds_return_without_a_loop_to(before)


def test_a_loop_that_is_closed_with_a_call_running_leaks_nothing(fifo):
    """The rudest end: no task is cancelled, the loop just goes away."""
    before = kernel.open_fds()
    loop = asyncio.new_event_loop()
    task = loop.create_task(truenas_os.openat2(AT_FDCWD, fifo, os.O_RDONLY))
    while not in_fifo_open():
        loop.run_until_complete(asyncio.sleep(0.002))
    loop.close()
    writer = open_writer(fifo)
    while in_fifo_open():
        time.sleep(0.002)
    os.close(writer)
    task._log_destroy_pending = False
    del task, loop
    fds_return_without_a_loop_to(before)


def test_a_coroutine_that_is_closed_leaks_nothing(fifo):
    before = kernel.open_fds()

    async def main():
        call = truenas_os.openat2(AT_FDCWD, fifo, os.O_RDONLY)
        call.send(None)
        while not in_fifo_open():
            await asyncio.sleep(0.002)
        call.close()
        writer = open_writer(fifo)
        await until(lambda: not in_fifo_open())
        os.close(writer)

    asyncio.run(main())
    fds_return_without_a_loop_to(before)


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run, trio.run])
def test_event_loops_in_several_threads_share_the_pool(run):
    failures = []

    async def main():
        for _ in range(200):
            assert (await truenas_os.statx(AT_FDCWD, "/")).stx_ino == os.stat("/").st_ino

    def thread():
        try:
            if run is trio.run:
                run(main)
            else:
                run(main())
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=thread) for _ in range(6)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert failures == []


def test_trio_in_guest_mode_on_asyncio_gets_the_right_loop():
    async def trio_main():
        assert sniffio.current_async_library() == "trio"
        return await truenas_os.statx(AT_FDCWD, "/")

    async def asyncio_main():
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        trio.lowlevel.start_guest_run(
            trio_main,
            run_sync_soon_threadsafe=loop.call_soon_threadsafe,
            done_callback=done.set_result,
        )
        mine = await truenas_os.statx(AT_FDCWD, "/")
        return mine, (await done).unwrap()

    mine, its = asyncio.run(asyncio_main())
    assert mine.stx_ino == its.stx_ino == os.stat("/").st_ino


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks are new in Python 3.12")
def test_eager_tasks_work():
    async def main():
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        results = await asyncio.gather(
            *(asyncio.create_task(truenas_os.statx(AT_FDCWD, "/")) for _ in range(50))
        )
        return {result.stx_ino for result in results}

    assert asyncio.run(main()) == {os.stat("/").st_ino}


def test_a_forked_child_starts_with_an_empty_pool():
    """The parent has workers, one of them stuck, and a loop; the child has none of that."""
    result = run_python(
        """
        import asyncio, os, sys, tempfile, warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
        import truenas_os
        from truenas_os import _threads

        async def child():
            assert _threads._pool.size == 0
            await asyncio.gather(*(truenas_os.statx(truenas_os.AT_FDCWD, "/") for _ in range(20)))
            assert _threads._pool.size > 0

        async def parent():
            path = os.path.join(tempfile.mkdtemp(), "fifo")
            os.mkfifo(path)
            stuck = [
                asyncio.create_task(truenas_os.openat2(truenas_os.AT_FDCWD, path, os.O_RDONLY))
                for _ in range(3)
            ]
            await truenas_os.statx(truenas_os.AT_FDCWD, "/")
            pid = os.fork()
            if pid == 0:
                asyncio.events._set_running_loop(None)
                try:
                    asyncio.run(child())
                except BaseException:
                    import traceback
                    traceback.print_exc()
                    os._exit(1)
                os._exit(0)
            status = (await asyncio.to_thread(os.waitpid, pid, 0))[1]
            await truenas_os.statx(truenas_os.AT_FDCWD, "/")
            for task in stuck:
                task.cancel()
            return os.waitstatus_to_exitcode(status)

        sys.exit(asyncio.run(parent()))
        """
    )
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("library", ["asyncio", "trio"])
def test_the_interpreter_does_not_wait_for_a_stuck_thread(fifo, library):
    result = run_python(
        """
        import os, sys, anyio, truenas_os

        async def main():
            with anyio.move_on_after(0.2):
                await truenas_os.openat2(truenas_os.AT_FDCWD, sys.argv[1], os.O_RDONLY)
            print("done")

        anyio.run(main, backend=sys.argv[2])
        """,
        str(fifo),
        library,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "done\n", "")


@pytest.mark.parametrize("library", ["asyncio", "trio"])
def test_ctrl_c_ends_a_program_whose_call_is_stuck(fifo, library):
    program = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import os, sys, anyio, truenas_os\n"
            "async def main():\n"
            "    print('begun', flush=True)\n"
            "    await truenas_os.openat2(truenas_os.AT_FDCWD, sys.argv[1], os.O_RDONLY)\n"
            "try: anyio.run(main, backend=sys.argv[2])\n"
            "except KeyboardInterrupt: sys.exit(77)\n",
            str(fifo),
            library,
        ],
        stdout=subprocess.PIPE,
    )
    assert program.stdout is not None
    with program:
        assert program.stdout.readline() == b"begun\n"
        time.sleep(0.1)
        program.send_signal(signal.SIGINT)
        assert program.wait(AMPLE) == 77


@pytest.mark.anyio
async def test_a_lock_that_is_held_by_another_process_does_not_hold_the_loop(tmp_path):
    """A worker blocked in flock(2), a real system call that takes a caller's descriptor."""
    path = tmp_path / "locked"
    path.touch()
    holder = os.open(path, os.O_RDWR)
    fcntl.flock(holder, fcntl.LOCK_EX)
    waiter = os.open(path, os.O_RDWR)
    before = kernel.open_fds()
    for _ in range(20):
        with anyio.move_on_after(0.01) as scope:
            await _threads.offload(fcntl.flock, waiter, fcntl.LOCK_SH)
        assert scope.cancelled_caught
    await truenas_os.statx(AT_FDCWD, "/")
    fcntl.flock(holder, fcntl.LOCK_UN)
    assert kernel.open_fds() == before
    await until(lambda: not any("lock" in wchan for wchan in wait_channels()))
    os.close(waiter)
    os.close(holder)


def wait_channels():
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            yield (task / "wchan").read_text()


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


def test_blocking_is_the_same_class_of_descriptor():
    with blocking.openat2(AT_FDCWD, "/", os.O_PATH) as fd:
        assert isinstance(fd, blocking.Fd)
        assert not isinstance(fd, truenas_os.Fd)
