# SPDX-License-Identifier: LGPL-3.0-or-later
"""How a watch ends, is cancelled, dropped or forked, and that it leaves nothing behind."""

import fcntl
import gc
import os
import select
import signal
import threading
import warnings

import anyio
import faults
import kernel
import pytest
from faces import block, on_both_faces
from stuck import AMPLE, fds_return_to, fds_return_without_a_loop_to, until, wait_until
from watched import OFTEN, SOURCES, Replayed, watching
from witness import make

import truenas_os
from truenas_os import AT_FDCWD, blocking
from truenas_os.blocking import watcher

anyio_test = pytest.mark.anyio


async def warm_up():
    """What the event loop and the pool open stays open."""
    async with truenas_os.watch_mounts() as changes:
        with anyio.move_on_after(0.01):
            await anext(changes)


# The end


@on_both_faces
async def test_a_watch_leaves_no_descriptor(face, mount_dir):
    for source in SOURCES:
        await face.statx(AT_FDCWD, "/")
        async with watching(face, wakeups=source, interval=OFTEN) as watch:
            make(mount_dir, source)
            await watch.catch_up()
        before = kernel.open_fds()
        async with watching(face, wakeups=source, interval=OFTEN) as watch:
            make(mount_dir, f"{source}-again")
            await watch.catch_up()
        assert kernel.open_fds() == before


@on_both_faces
async def test_every_descriptor_is_closed_on_exec(face):
    before = kernel.open_fds()
    with open("/proc/self/ns/mnt") as namespace:
        for options in ({}, {"mnt_ns": namespace}, {"wakeups": "mountinfo"}):
            async with watching(face, **options):
                new = kernel.open_fds().keys() - before.keys() - {namespace.fileno()}
                # Those of the event loop and of its workers are not ours.
                assert new
                for fd in new:
                    assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC


@on_both_faces
async def test_a_closed_watch_is_over(face, mount_dir):
    async with watching(face) as watch:
        make(mount_dir)
    changes = watch.watch
    for _ in range(2):
        if face.name == "blocking":
            assert next(changes, "over") == "over"
        else:
            assert await anext(changes, "over") == "over"
    with pytest.raises(ValueError, match="closed"):
        async with block(changes):
            pass
    await face.call(changes.close if face.name == "blocking" else changes.aclose)


@on_both_faces
async def test_closing_again_touches_no_file_that_has_the_number_now(face, tmp_path):
    changes = face.library.watch_mounts()
    close = changes.close if face.name == "blocking" else changes.aclose
    async with block(changes):
        watch = changes._watcher if face.name == "blocking" else changes._begun[0]
        number = int(watch._interruption)
        await face.call(close)
        os.dup2(os.open(tmp_path / "precious", os.O_CREAT | os.O_WRONLY), number)
        watch.interrupt()
        await face.call(close)
    os.close(number)
    assert (tmp_path / "precious").read_bytes() == b""


@anyio_test
async def test_of_several_tasks_that_begin_a_watch_one_does():
    await warm_up()
    before = kernel.open_fds()
    changes = truenas_os.watch_mounts()
    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(changes.__aenter__)
    await changes.aclose()
    await fds_return_to(before)


def test_the_snapshot_outlives_the_async_watch_and_needs_its_beginning():
    async def body():
        changes = truenas_os.watch_mounts()
        for name in ("snapshot", "wakeup_source"):
            with pytest.raises(ValueError, match="has not begun"):
                getattr(changes, name)
        async with changes:
            pass
        assert len(changes.snapshot) == len(kernel.mountinfo())

    anyio.run(body)


@anyio_test
async def test_closing_from_another_task_ends_the_iteration(mount_dir):
    await warm_up()
    before = kernel.open_fds()
    ended = []
    changes = truenas_os.watch_mounts(interval=None)

    async def consume():
        async for _ in changes:
            pass
        ended.append(True)

    with anyio.fail_after(AMPLE):
        async with anyio.create_task_group() as group:
            group.start_soon(consume)
            await until(lambda: changes._begun is not None)
            await changes.aclose()
            assert kernel.open_fds().keys() == before.keys()
    assert ended == [True]


@pytest.mark.parametrize("interval", [None, 1000.0])
def test_closing_from_another_thread_ends_the_iteration(interval):
    before = kernel.open_fds()
    changes = blocking.watch_mounts(interval=interval)
    seen = []
    thread = threading.Thread(target=lambda: seen.extend(changes))
    thread.start()
    wait_until(lambda: changes._watcher is not None)
    changes.close()
    thread.join(AMPLE)
    assert not thread.is_alive()
    fds_return_without_a_loop_to(before)


def test_a_signal_handler_may_close_the_watch_that_it_interrupts(mount_dir):
    before = kernel.open_fds()
    changes = blocking.watch_mounts(interval=None, timeout=AMPLE)
    handler = signal.signal(signal.SIGUSR1, lambda *_: changes.close())
    try:
        with changes:
            main = threading.main_thread().ident
            threading.Timer(0.2, signal.pthread_kill, [main, signal.SIGUSR1]).start()
            assert list(changes) == []
    finally:
        signal.signal(signal.SIGUSR1, handler)
    assert kernel.open_fds() == before


def test_ctrl_c_ends_the_wait_and_nothing_is_lost(mount_dir):
    def interrupt(*_):
        raise KeyboardInterrupt

    handler = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with blocking.watch_mounts(interval=None, timeout=AMPLE) as changes:
            main = threading.main_thread().ident
            threading.Timer(0.2, signal.pthread_kill, [main, signal.SIGUSR1]).start()
            with pytest.raises(KeyboardInterrupt):
                next(changes)
            make(mount_dir)
            assert len(next(changes)) == 1
    finally:
        signal.signal(signal.SIGUSR1, handler)


@anyio_test
async def test_leaving_the_loop_early_and_the_block_leaves_nothing(mount_dir):
    await warm_up()
    before = kernel.open_fds()
    async with truenas_os.watch_mounts(initial=True) as changes:
        async for _ in changes:
            break
    assert kernel.open_fds() == before


@anyio_test
async def test_a_watch_that_is_dropped_warns_and_leaves_no_descriptor(mount_dir):
    """In a cycle, for a thread to collect: where it is found, its descriptors are closed."""
    await warm_up()
    gc.collect()
    before = kernel.open_fds()
    changes = truenas_os.watch_mounts(initial=True)
    async for _ in changes:
        break
    cycle = [changes]
    cycle.append(cycle)
    gc.disable()
    try:
        del changes, cycle
        with pytest.warns(ResourceWarning, match="close"):
            await anyio.to_thread.run_sync(gc.collect)
    finally:
        gc.enable()
    await fds_return_to(before)


warnings_are_errors = pytest.mark.filterwarnings(
    "error::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


@anyio_test
@warnings_are_errors
async def test_a_watch_that_is_dropped_leaves_no_descriptor_where_warnings_are_errors():
    await warm_up()
    before = kernel.open_fds()
    changes = truenas_os.watch_mounts()
    await changes.__aenter__()
    del changes
    gc.collect()
    await fds_return_to(before)


@warnings_are_errors
def test_a_watch_that_is_dropped_in_a_thread_leaves_none_either():
    before = kernel.open_fds()
    changes = blocking.watch_mounts()
    changes.__enter__()
    del changes
    gc.collect()
    assert kernel.open_fds() == before


def test_a_watch_that_is_dropped_in_a_thread_warns_and_leaves_no_descriptor():
    before = kernel.open_fds()
    changes = iter(blocking.watch_mounts(initial=True))
    next(changes)
    with pytest.warns(ResourceWarning, match="close"):
        del changes
        gc.collect()
    assert kernel.open_fds() == before
    del before
    blocking.watch_mounts()  # what has not begun has nothing to close
    gc.collect()


# Stop events


@anyio_test
@pytest.mark.parametrize("kind", ["anyio", "its own"])
async def test_an_event_of_the_loop_stops_a_watch(mount_dir, kind, anyio_backend_name):
    import asyncio

    import trio

    own = trio.Event if anyio_backend_name == "trio" else asyncio.Event
    event = anyio.Event() if kind == "anyio" else own()
    await warm_up()
    before = kernel.open_fds()
    seen = []

    async def consume():
        async for batch in truenas_os.watch_mounts(stop_event=event, interval=None):
            seen.append(len(batch))

    with anyio.fail_after(AMPLE):
        async with anyio.create_task_group() as group:
            group.start_soon(consume)
            while not seen:
                make(mount_dir)
                await anyio.sleep(0.02)
            event.set()
    await fds_return_to(before)
    async for _ in truenas_os.watch_mounts(stop_event=event):
        pytest.fail("it was stopped before it began")


@anyio_test
async def test_what_fails_under_a_stop_event_is_no_group(mount_dir):
    def wanted(_):
        raise ZeroDivisionError

    changes = truenas_os.watch_mounts(stop_event=anyio.Event(), mount_filter=wanted)
    async with changes:
        make(mount_dir)
        with pytest.raises(ZeroDivisionError):
            await anext(changes)


def test_an_event_of_threads_stops_a_watch(mount_dir):
    event = threading.Event()
    with blocking.watch_mounts(stop_event=event, interval=None) as changes:
        make(mount_dir)
        assert len(next(changes)) == 1
        threading.Timer(0.2, event.set).start()
        assert list(changes) == []


# Cancellation


@anyio_test
async def test_a_cancelled_wait_loses_nothing(mount_dir):
    async with truenas_os.watch_mounts(interval=None) as changes:
        replayed = Replayed(changes.snapshot)
        for number in range(30):
            with anyio.move_on_after(0.001 * (number % 5)):
                replayed.apply(await anext(changes))
            make(mount_dir, str(number))
            with anyio.move_on_after(0.001 * (number % 3)):
                replayed.apply(await anext(changes))
        with anyio.fail_after(AMPLE):
            while not replayed.is_true():
                replayed.apply(await anext(changes))


@anyio_test
async def test_who_is_cancelled_when_a_batch_has_come_loses_nothing(mount_dir):
    class Cancelling:
        async def wait(self):
            try:
                await anyio.sleep_forever()
            finally:  # the batch is there
                scope.cancel()

    async with truenas_os.watch_mounts(stop_event=Cancelling()) as changes:
        make(mount_dir)
        with anyio.CancelScope() as scope:
            await anext(changes)
        assert scope.cancelled_caught
        with anyio.fail_after(AMPLE):
            (event,) = await anext(changes)
    assert event.kind is truenas_os.MountEventKind.ATTACHED


@anyio_test
@pytest.mark.parametrize("syscall", ["listmount", "statmount"])
async def test_what_a_cancelled_look_finds_is_told_to_who_asks_next(mount_dir, syscall):
    async with truenas_os.watch_mounts(interval=None, wakeups="mountinfo") as changes:
        replayed = Replayed(changes.snapshot)
        for skip in range(3):
            make(mount_dir, str(skip))
            with faults.stopped(syscall) as stop:
                async with anyio.create_task_group() as group:
                    group.start_soon(anext, changes)
                    await until(stop.reached)
                    group.cancel_scope.cancel()
                stop.go()
            with anyio.fail_after(AMPLE):
                while not replayed.is_true():
                    replayed.apply(await anext(changes))


@anyio_test
@pytest.mark.parametrize("syscall", ["fanotify_init", "fanotify_mark", "listmount", "statmount"])
async def test_a_cancelled_beginning_leaves_nothing_and_can_be_repeated(mount_dir, syscall):
    await warm_up()
    before = kernel.open_fds()
    changes = truenas_os.watch_mounts()
    with faults.stopped(syscall) as stop:
        async with anyio.create_task_group() as group:
            group.start_soon(anext, changes)
            await until(stop.reached)
            group.cancel_scope.cancel()
        stop.go()
    await fds_return_to(before)
    async with changes:
        make(mount_dir)
        with anyio.fail_after(AMPLE):
            assert len(await anext(changes)) == 1
    assert kernel.open_fds() == before


@anyio_test
async def test_a_block_that_is_cancelled_leaves_nothing(mount_dir):
    await warm_up()
    before = kernel.open_fds()
    for delay in (0, 0.001, 0.01, 0.05):
        with anyio.move_on_after(delay):
            async with truenas_os.watch_mounts(interval=OFTEN) as changes:
                async for _ in changes:
                    pass
    await fds_return_to(before)


# Who asks


@anyio_test
async def test_a_second_task_may_not_ask_while_the_first_one_waits(mount_dir):
    async with truenas_os.watch_mounts(interval=None) as changes:
        async with anyio.create_task_group() as group:
            group.start_soon(anext, changes)
            await until(lambda: changes._asking is not None)
            with pytest.raises(RuntimeError, match="another task"):
                await anext(changes)
            group.cancel_scope.cancel()
        make(mount_dir)
        with anyio.fail_after(AMPLE):
            assert len(await anext(changes)) == 1


def test_a_second_thread_may_not_ask_while_the_first_one_waits(mount_dir):
    with blocking.watch_mounts(interval=None, timeout=AMPLE) as changes:
        seen = []
        thread = threading.Thread(target=lambda: seen.append(next(changes)))
        thread.start()
        wait_until(changes._waiting.locked)
        with pytest.raises(RuntimeError, match="another thread"):
            next(changes)
        make(mount_dir)
        thread.join(AMPLE)
        assert [len(batch) for batch in seen] == [1]


@on_both_faces
async def test_two_watches_are_told_the_same(face, mount_dir):
    async with watching(face) as one, watching(face, wakeups="mountinfo") as two:
        make(mount_dir)
        await one.catch_up()
        await two.catch_up()
        assert one.seen() == two.seen()


def in_child(body):
    """What *body* returns in a forked child."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
        pid = os.fork()
    if pid == 0:
        try:
            text = str(body())
        except BaseException as error:
            text = f"{type(error).__name__} {error}"
        os.write(writer, text.encode())
        os._exit(0)
    os.close(writer)
    with open(reader) as told:
        text = told.read()
    os.waitpid(pid, 0)
    return text


@pytest.mark.parametrize("options", [{}, {"interval": None}, {"initial": True}], ids=str)
def test_a_forked_child_may_not_ask_and_takes_nothing_from_its_parent(mount_dir, options):
    with blocking.watch_mounts(timeout=AMPLE, **options) as changes:
        if options.get("initial"):
            next(changes)
        make(mount_dir)
        told = in_child(lambda: next(changes))
        assert told.startswith("RuntimeError mounts are watched by the process that began")
        assert len(next(changes)) == 1
        assert in_child(changes.close) == "None"
        # Nobody is woken by it.
        assert select.select([changes._watcher], [], [], 0)[0] == []


def test_a_forked_child_may_close_a_watch_that_a_thread_of_its_parent_waits_for(mount_dir):
    def close():
        signal.alarm(AMPLE)
        changes.close()

    changes = blocking.watch_mounts(interval=None)
    with changes:
        consumer = threading.Thread(target=list, args=[changes])
        consumer.start()
        wait_until(changes._waiting.locked, "the thread")
        assert in_child(close) == "None"
    consumer.join(AMPLE)
    assert not consumer.is_alive()


def test_a_forked_child_may_not_ask_in_an_event_loop_of_its_own(mount_dir):
    async def ask(changes):
        return await anext(changes)

    async def begin():
        changes = truenas_os.watch_mounts(interval=None)
        await changes.__aenter__()
        return changes

    changes = anyio.run(begin)
    told = in_child(lambda: anyio.run(ask, changes))
    assert told.startswith("RuntimeError mounts are watched by the process that began")
    anyio.run(changes.aclose)


def test_a_child_that_drops_a_watch_says_nothing():
    with blocking.watch_mounts() as changes:
        watch = changes._watcher

        def drop():
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                watcher.MountWatcher.__del__(watch)
            return len(caught)

        assert in_child(drop) == "0"
