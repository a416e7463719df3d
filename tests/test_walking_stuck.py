# SPDX-License-Identifier: LGPL-3.0-or-later
"""Walks that are cancelled, interrupted or shut down, also while a filesystem does not answer."""

import contextlib
import gc
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import anyio
import faults
import filesystems
import kernel
import pytest
from faces import on_both_faces
from grown import filled, grown, mounted_without_types, tree
from stuck import AMPLE, until, wait_until
from test_cancellation import each_way_to_cancel
from test_walking_ends import warm_up
from walked import (
    OPENING,
    fds_return_to,
    fds_return_without_a_loop_to,
    old_descriptors,
    paths,
    walked,
    walking,
)

import truenas_os
from truenas_os import blocking

pytestmark = pytest.mark.usefixtures("ends")
anyio_test = pytest.mark.anyio
CALLS = ("openat2", "statx", "getdents64")


def counted(syscall, where, **options):
    with faults.count(syscall) as calls:
        for _ in blocking.walk(where, **options):
            pass
    return calls.seen


# Cancellation


@pytest.mark.anyio
@each_way_to_cancel
async def test_a_cancelled_wait_loses_no_item(mount_dir, cancelling, anyio_backend):
    """However it is cancelled, the walk goes on with the item that was waited for."""
    filled(mount_dir, *map(str, range(30)))
    await warm_up(mount_dir)
    before = kernel.open_fds()
    walk = truenas_os.walk(mount_dir, read_ahead=1)
    with faults.stopped("getdents64") as stop:
        await cancelling(lambda: anext(walk), stop.reached)
        stop.go()
    async with walk:
        found = [item async for item in walk]
    assert paths(found) == tree(mount_dir)
    await fds_return_to(before)


@anyio_test
@pytest.mark.parametrize("syscall", CALLS)
async def test_a_wait_can_be_cancelled_at_every_system_call(mount_dir, syscall):
    for name in ("a/b", "c"):
        (mount_dir / name).mkdir(parents=True)
        filled(mount_dir / name, "one", "two")
    expected = tree(mount_dir)
    await warm_up(mount_dir)
    before = kernel.open_fds()
    for opening in OPENING:
        options = {"read_ahead": 1, "file_open_flags": opening}
        number = await anyio.to_thread.run_sync(
            lambda: counted(syscall, mount_dir, read_ahead=1, file_open_flags=opening)
        )
        for nth in range(number):
            found = []
            walk = truenas_os.walk(mount_dir, **options)

            async def collect():
                async for item in walk:
                    found.append(item)

            ended = False

            async def run():
                nonlocal ended
                await collect()
                ended = True

            with faults.stopped(syscall, skip=nth) as stop:
                async with anyio.create_task_group() as group:
                    group.start_soon(run)
                    await until(lambda: ended or stop.reached())
                    group.cancel_scope.cancel()
                if stop.reached():
                    stop.go()
            if not ended:
                await collect()
            await walk.aclose()
            assert paths(found) == expected
            await fds_return_to(before)


@anyio_test
async def test_a_walk_that_is_cancelled_all_the_time_comes_to_its_end(place):
    grown(place)
    found = []
    async with truenas_os.walk(place, read_ahead=2) as walk:
        for turn in range(100_000):
            try:
                with anyio.move_on_after(0.0002 * (turn % 4)):
                    found.append(await anext(walk))
            except StopAsyncIteration:
                break
    assert paths(found) == tree(place)


@anyio_test
async def test_a_block_that_is_cancelled_leaves_nothing(place):
    grown(place)
    await warm_up(place)
    before = kernel.open_fds()
    for turn in range(40):
        with anyio.move_on_after(0.0005 * (turn % 9)):
            async with truenas_os.walk(place, read_ahead=1 + turn) as walk:
                async for _ in walk:
                    await anyio.sleep(0)
    await fds_return_to(before)


@anyio_test
async def test_closing_that_is_cancelled_has_closed(mount_dir):
    grown(mount_dir)
    await warm_up(mount_dir)
    before = kernel.open_fds()
    walk = truenas_os.walk(mount_dir)
    await anext(walk)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await walk.aclose()
    await walk.aclose()
    with pytest.raises(ValueError):
        walk.get_stats()
    await fds_return_to(before)


# A filesystem that does not answer


@pytest.mark.parametrize("syscall", CALLS)
@on_both_faces
async def test_closing_does_not_wait_for_a_dead_filesystem(face, mount_dir, syscall):
    grown(mount_dir)
    await walked(face, mount_dir)
    before = kernel.open_fds()
    number = counted_in(face, syscall, mount_dir)
    with faults.stopped(syscall, skip=number // 2) as stop:
        walk = walking(face, mount_dir, read_ahead=1000)
        await anext(walk)
        if face.name == "blocking":
            wait_until(stop.reached)
        else:
            await until(stop.reached)
        await walk.close()
        with pytest.raises(ValueError):
            await anext(walk)
        stop.go()
    await old_descriptors(face, before)


def counted_in(face, syscall, where):
    """Counted in a thread, where no event loop runs."""
    counts = []
    thread = threading.Thread(
        target=lambda: counts.append(counted(syscall, where, read_ahead=1000))
    )
    thread.start()
    thread.join()
    return counts[0]


@anyio_test
@pytest.mark.parametrize("syscall", CALLS)
async def test_a_dead_filesystem_holds_up_neither_the_loop_nor_another_walk(mount_dir, syscall):
    grown(mount_dir)
    (mount_dir / "other").mkdir()
    filled(mount_dir / "other", "one", "two")
    await warm_up(mount_dir)
    before = kernel.open_fds()
    with faults.stopped(syscall, skip=1) as stop:
        walk = truenas_os.walk(mount_dir)
        async with anyio.create_task_group() as group:
            group.start_soon(anext, walk)
            await until(stop.reached)
            for _ in range(5):
                await anyio.sleep(0.001)
                assert len([item async for item in truenas_os.walk(mount_dir / "other")]) == 2
            group.cancel_scope.cancel()
        await walk.aclose()
        stop.go()
    await fds_return_to(before)


@anyio_test
async def test_hundreds_of_walks_that_hang_leak_nothing(mount_dir):
    grown(mount_dir)
    await warm_up(mount_dir)
    before = kernel.open_fds()
    with faults.stopped("getdents64", times=faults.ALWAYS) as stop:
        walks = [truenas_os.walk(mount_dir) for _ in range(100)]
        async with anyio.create_task_group() as group:
            for walk in walks:
                group.start_soon(anext, walk)
            for count in range(1, 101):
                await until(lambda: stop.reached(count))
            group.cancel_scope.cancel()
        async with anyio.create_task_group() as group:
            for walk in walks:
                group.start_soon(walk.aclose)
        faults.lib.tos_fault_disarm()
        stop.go(100)
    await fds_return_to(before)


def test_a_dropped_walk_does_not_wait_for_a_dead_filesystem(mount_dir):
    grown(mount_dir)
    before = kernel.open_fds()
    with faults.stopped("getdents64", skip=2) as stop:
        walk = blocking.walk(mount_dir, read_ahead=1000)
        next(walk)
        wait_until(stop.reached)
        with pytest.warns(ResourceWarning, match="FilesystemIterator"):
            del walk
            gc.collect()
        stop.go()
    fds_return_without_a_loop_to(before)


# A mount point on the way, whose server does not answer


@pytest.fixture(
    params=["tmpfs", "fuse", pytest.param("ext4 without types", marks=filesystems.needs_root)]
)
def root(request, tmp_path):
    """Where a walk begins, on filesystems that are asked about their files in different ways."""
    if request.param == "ext4 without types":
        with mounted_without_types(tmp_path) as mounted:
            yield mounted
    elif request.param == "fuse":
        yield request.getfixturevalue("faulty").top
    else:
        yield request.getfixturevalue("mount_dir")


@contextlib.contextmanager
def dead_mount(target):
    """A mount whose server answers nothing, until the end of the block."""
    filesystems.require_fuse()
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    try:
        mode, owner = target.stat().st_mode, f"user_id={os.getuid()},group_id={os.getgid()}"
        kernel.mount("dead", target, "fuse", 0, f"fd={device},rootmode={mode:o},{owner}".encode())
        try:
            yield
        finally:
            kernel.umount(target, kernel.MNT_DETACH)
    finally:
        os.close(device)


@pytest.mark.parametrize("name", ["dead", "directory"])
@pytest.mark.parametrize("opening", OPENING, ids=["with fds", "without"])
@on_both_faces
async def test_a_dead_mount_point_holds_up_no_walk(face, root, opening, name):
    """Neither a file nor a directory, and whether mount points are handed out or not."""
    filled(root, "first", "dead", "last")
    (root / "directory").mkdir()
    order = tree(root)
    mount = os.fsencode(root / name)
    with dead_mount(root / name):
        assert await walked(face, root, file_open_flags=opening) == [
            path for path in order if path != mount
        ]
        async with walking(face, root, file_open_flags=opening, include_mountpoints=True) as walk:
            items = await walk.rest()
    assert paths(items) == order
    (item,) = [item for item in items if item.ismount]
    assert (item.name, item.isdir, item.isreg) == (name, name == "directory", name == "dead")
    assert item.error is None
    assert [item.statxinfo.stx_size for item in items if item.name == "last"] == [2]


# Threads and signals


def test_the_threads_of_a_walk_take_no_signal(mount_dir):
    grown(mount_dir)
    before = set(os.listdir("/proc/self/task"))
    python_threads = threading.active_count()
    with faults.stopped("getdents64", skip=1) as stop:
        with blocking.walk(mount_dir) as walk:
            next(walk)
            wait_until(stop.reached)
            new = set(os.listdir("/proc/self/task")) - before
            assert new
            assert threading.active_count() == python_threads
            for task in new:
                status = Path(f"/proc/self/task/{task}/status").read_text()
                blocked = int(status.split("SigBlk:")[1].split()[0], 16)
                # Those that nobody can block, and the two of the C library.
                free = {n + 1 for n in range(64) if not blocked >> n & 1}
                assert free <= {signal.SIGKILL, signal.SIGSTOP, 32, 33}
            stop.go()
    wait_until(lambda: set(os.listdir("/proc/self/task")) <= before, "the end of the threads")


@contextlib.contextmanager
def signalled(handler):
    """Call *handler* in the main thread in a moment, as the handler of a signal."""
    main = threading.main_thread().ident
    timer = threading.Timer(0.2, signal.pthread_kill, [main, signal.SIGUSR1])
    old = signal.signal(signal.SIGUSR1, handler)
    timer.start()
    try:
        yield
    finally:
        timer.join()
        signal.signal(signal.SIGUSR1, old)


def test_a_signal_handler_runs_while_a_walk_waits(mount_dir):
    grown(mount_dir)
    seen = []
    with faults.stopped("getdents64") as stop:

        def handler(*_):
            seen.append(True)
            stop.go()

        with signalled(handler):
            assert paths(blocking.walk(mount_dir)) == tree(mount_dir)
    assert seen == [True]


def test_a_signal_handler_may_close_the_walk_that_it_interrupts(mount_dir):
    grown(mount_dir)
    before = kernel.open_fds()
    walk = blocking.walk(mount_dir)
    with faults.stopped("getdents64") as stop:
        with signalled(lambda *_: walk.close()), pytest.raises(ValueError):
            next(walk)
        stop.go()
    fds_return_without_a_loop_to(before)


def test_ctrl_c_ends_the_wait_and_nothing_is_lost(mount_dir):
    grown(mount_dir)

    def interrupt(*_):
        raise KeyboardInterrupt

    with faults.stopped("getdents64") as stop, blocking.walk(mount_dir) as walk:
        with signalled(interrupt), pytest.raises(KeyboardInterrupt):
            next(walk)
        stop.go()
        assert paths(walk) == tree(mount_dir)


STUCK = """
import json, os, signal, sys
import anyio
import faults, truenas_os
from truenas_os import blocking

where, library, how = json.loads(sys.argv[1])

def stuck():
    # Left at the end of the process as they are.
    reached = faults.Stopped()
    faults.lib.tos_fault_arm(
        faults.number("getdents64"), 3, faults.ALWAYS, 0, reached.reached_fd, reached.go_fd
    )
    return reached

stop = stuck() if "stuck" in how else None
kept = []

async def consume(walk):
    kept.append(walk)
    async for item in walk:
        if "early" in how and len(kept) > 9:
            break
        kept.append(item)

def end():
    if "exit" in how:
        sys.exit(0)
    if "raise" in how:
        raise SystemExit(0)

async def main():
    walk = truenas_os.walk(where)
    if "stuck" in how:
        async with anyio.create_task_group() as group:
            group.start_soon(consume, walk)
            while not stop.reached():
                await anyio.sleep(0.001)
            print("stuck", flush=True)
            if "wait" in how:
                await anyio.sleep_forever()
            group.cancel_scope.cancel()
    else:
        await consume(walk)
    end()

if library == "blocking":
    walk = blocking.walk(where)
    kept.append(walk)
    if "stuck" in how:
        kept.append(next(walk))
        stop.wait_reached()
        print("stuck", flush=True)
        if "wait" in how:
            kept.extend(walk)
    else:
        kept += [next(walk) for _ in range(9)]
    end()
else:
    anyio.run(main, backend=library)
"""


def begin(where, library, how):
    argument = json.dumps([str(where), library, how])
    here = os.path.dirname(__file__)
    return subprocess.Popen(
        [sys.executable, "-W", "ignore::ResourceWarning", "-c", STUCK, argument],
        env=os.environ | {"PYTHONPATH": here},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("how", ["early", "early exit", "stuck", "stuck exit", "stuck raise"])
@pytest.mark.parametrize("library", ["blocking", "asyncio", "trio"])
def test_the_interpreter_ends_in_the_middle_of_a_walk(mount_dir, library, how):
    grown(mount_dir)
    filled(mount_dir / "many", *(f"more {n}" for n in range(3000)), size=0)
    with begin(mount_dir, library, how) as process:
        _, told = process.communicate(timeout=AMPLE)
    assert (process.returncode, told) == (0, "")


@pytest.mark.parametrize("library", ["blocking", "asyncio", "trio"])
def test_ctrl_c_ends_a_process_whose_filesystem_does_not_answer(mount_dir, library):
    grown(mount_dir)
    with begin(mount_dir, library, "stuck wait") as process:
        assert process.stdout.readline() == "stuck\n"
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=AMPLE)
    assert "KeyboardInterrupt" in told
    # trio gives it up in a group, which is no death by the signal.
    assert process.returncode == (1 if library == "trio" else -signal.SIGINT)
