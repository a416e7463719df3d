# SPDX-License-Identifier: LGPL-3.0-or-later
"""The worker threads: limits, stuck calls, event loops, forks and exits."""

import asyncio
import contextvars
import errno
import fcntl
import gc
import os
import signal
import subprocess
import sys
import threading
import time

import anyio
import anyio.lowlevel
import faults
import kernel
import pytest
import sniffio
import trio
import uvloop
from stuck import (
    AMPLE,
    Gauge,
    fds_return_without_a_loop_to,
    in_fifo_open,
    let_go,
    open_writer,
    run_python,
    until,
    wait_channels,
    wait_until,
)

import truenas_os
from truenas_os import AT_FDCWD, _threads, blocking


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
    await let_go(fifo)


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
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_what_a_finalizer_has_called_keeps_nobody_waiting():
    await truenas_os.statx(AT_FDCWD, "/")
    hangs, called = threading.Event(), threading.Event()
    threads = []

    def fails():
        threads.append(threading.current_thread())
        raise ValueError("of the finalizer")

    for function in (fails, hangs.wait, called.set):
        _threads.in_background(function)
    try:
        assert await anyio.to_thread.run_sync(called.wait, AMPLE)
        assert _threads._pool.supervisor.is_alive()
    finally:
        hangs.set()
    await until(lambda: threads)
    # What it reports at its end is reported during this test, not the next.
    await anyio.to_thread.run_sync(threads[0].join)


@pytest.mark.anyio
async def test_completions_come_in_batches(monkeypatch):
    """Many calls, few wake-ups: on a slow machine too, one in each tick of the supervisor."""
    monkeypatch.setattr(_threads, "_GATHER", AMPLE)
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
        await until(in_fifo_open)
        del task

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())
    before = kernel.open_fds()
    writer = open_writer(fifo)
    wait_until(lambda: not in_fifo_open())
    os.close(writer)
    fds_return_without_a_loop_to(before)


def test_a_loop_that_is_closed_with_a_call_running_leaks_nothing(fifo):
    """The rudest end: no task is cancelled, the loop just goes away."""
    before = kernel.open_fds()
    loop = asyncio.new_event_loop()
    task = loop.create_task(truenas_os.openat2(AT_FDCWD, fifo, os.O_RDONLY))
    loop.run_until_complete(until(in_fifo_open))
    loop.close()
    writer = open_writer(fifo)
    wait_until(lambda: not in_fifo_open())
    os.close(writer)
    task._log_destroy_pending = False
    del task, loop
    fds_return_without_a_loop_to(before)


def test_a_coroutine_that_is_closed_leaks_nothing(fifo):
    before = kernel.open_fds()

    async def main():
        call = truenas_os.openat2(AT_FDCWD, fifo, os.O_RDONLY)
        call.send(None)
        await until(in_fifo_open)
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


def test_a_forked_child_starts_with_an_empty_pool(fifo):
    """The parent has workers, one of them stuck, and a loop; the child has none of that."""
    result = run_python(
        """
        import asyncio, os, sys, warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
        import truenas_os
        from truenas_os import _threads

        async def child():
            assert _threads._pool.size == 0
            await asyncio.gather(*(truenas_os.statx(truenas_os.AT_FDCWD, "/") for _ in range(20)))
            assert _threads._pool.size > 0

        async def parent():
            path = sys.argv[1]
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
        """,
        str(fifo),
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


def test_blocking_is_the_same_class_of_descriptor():
    with blocking.openat2(AT_FDCWD, "/", os.O_PATH) as fd:
        assert isinstance(fd, blocking.Fd)
        assert not isinstance(fd, truenas_os.Fd)


@pytest.mark.anyio
async def test_what_a_signal_interrupts_holds_up_no_later_call(monkeypatch):
    """A handler raises while a worker is being sent, as often as there are warm workers."""

    def interrupted(self):
        raise KeyboardInterrupt

    for _ in range(_threads._WARM):
        with monkeypatch.context() as patch:
            patch.setattr(_threads._Pool, "worker", interrupted)
            with pytest.raises(KeyboardInterrupt):
                # Not awaited in this task: the event loop would end.
                truenas_os.statx(AT_FDCWD, "/").send(None)
    with anyio.fail_after(AMPLE):
        await truenas_os.statx(AT_FDCWD, "/")


@pytest.mark.anyio
async def test_a_delivery_that_a_signal_interrupts_is_made_again(monkeypatch):
    portal = _threads._portal()
    release = portal.release
    interrupts = []

    def interrupted(waiter):
        if not interrupts:
            interrupts.append(1)
            release(waiter)
            raise ValueError("stands for KeyboardInterrupt, which would end the event loop")
        release(waiter)

    errors = []
    deliver = portal.deliver

    def caught():
        try:
            deliver()
        except ValueError as error:
            errors.append(error)

    monkeypatch.setattr(portal, "release", interrupted)
    monkeypatch.setattr(portal, "deliver", caught)
    with anyio.fail_after(AMPLE):
        async with anyio.create_task_group() as group:
            for _ in range(100):
                group.start_soon(truenas_os.statx, AT_FDCWD, "/")
    assert len(errors) == 1


@pytest.mark.anyio
async def test_lowering_the_limit_below_what_runs_strands_no_call(fifo):
    old = truenas_os.set_thread_limit(64)
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(truenas_os.openat2, AT_FDCWD, fifo, os.O_RDONLY)
            await until(in_fifo_open)
            group.start_soon(truenas_os.openat2, AT_FDCWD, fifo, os.O_RDONLY)
            await anyio.lowlevel.checkpoint()
            truenas_os.set_thread_limit(1)
            with anyio.fail_after(AMPLE):
                await truenas_os.statx(AT_FDCWD, "/")
            group.cancel_scope.cancel()
    finally:
        truenas_os.set_thread_limit(old)
    await let_go(fifo)


def test_an_event_loop_runs_while_another_thread_imports_trio(monkeypatch):
    half_imported = type(sys)("trio")
    monkeypatch.setitem(sys.modules, "trio", half_imported)
    assert asyncio.run(truenas_os.statx(AT_FDCWD, "/")).stx_ino == os.stat("/").st_ino


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_late_descriptors_of_a_closed_loop_are_closed_by_workers(loop_factory, monkeypatch):
    """The loop is closed with results on their way to it, which it will never get."""
    closers = []
    closing = blocking.Fd.close

    def close(fd):
        closers.append(threading.current_thread().name)
        closing(fd)

    opening = _threads.in_thread(blocking.openat2, late=close)
    asyncio.run(truenas_os.statx(AT_FDCWD, "/"))
    before = kernel.open_fds()
    for _ in range(20):
        loop = loop_factory()
        with faults.stopped("openat2", times=2) as stop:
            tasks = [loop.create_task(opening(AT_FDCWD, "/", os.O_PATH)) for _ in range(2)]
            loop.run_until_complete(until(lambda: stop.reached(2)))
            waiting = kernel.open_fds()
            stop.go(1)
            # The first result sets out, and the loop does not run.
            wait_until(lambda: kernel.open_fds().keys() - waiting.keys())
            loop.close()
            stop.go(1)
        for task in tasks:
            task._log_destroy_pending = False
        del task, tasks, loop
        # What never arrived is found by the next loop at the latest.
        asyncio.run(truenas_os.statx(AT_FDCWD, "/"))
        fds_return_without_a_loop_to(before)
    assert len(closers) == 40
    assert set(closers) == {"truenas_os worker"}


def test_a_forked_child_that_unwinds_its_parents_tasks_does_not_wait_for_their_calls(tmp_path):
    (tmp_path / "old").touch()
    result = run_python(
        """
        import asyncio, os, sys, threading, time, warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
        import truenas_os
        from truenas_os import _threads
        from truenas_os._native import lib

        reached, go = os.pipe(), os.pipe()
        lib.tos_fault_arm(lib.TOS_SYS_renameat2, 0, 1, 0, reached[1], go[0])

        async def main():
            at = truenas_os.AT_FDCWD
            rename = asyncio.create_task(truenas_os.renameat2(at, sys.argv[1], at, sys.argv[2]))
            await asyncio.sleep(0)
            os.read(reached[0], 1)
            # The worst moment: another thread of the parent holds the lock.
            held, release = threading.Event(), threading.Event()

            def hold(portal=_threads._portal()):
                with portal.lock:
                    held.set()
                    release.wait()

            holder = threading.Thread(target=hold)
            holder.start()
            held.wait()
            pid = os.fork()
            if pid == 0:
                rename.cancel()
                try:
                    await rename
                except asyncio.CancelledError:
                    os._exit(3)
                os._exit(1)
            release.set()
            holder.join()
            status = os.waitpid(pid, 0)[1]
            os.write(go[1], b"x")
            await rename
            return os.waitstatus_to_exitcode(status)

        async def begin():
            task = asyncio.create_task(main())
            return await task

        sys.exit(asyncio.run(begin()))
        """,
        str(tmp_path / "old"),
        str(tmp_path / "new"),
    )
    assert (result.returncode, result.stderr) == (3, "")
    assert (tmp_path / "new").exists()
