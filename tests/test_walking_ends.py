# SPDX-License-Identifier: LGPL-3.0-or-later
"""How a walk ends: closed, dropped, forked; and who may ask it for what."""

import collections.abc
import gc
import os
import threading
import warnings

import anyio
import faults
import kernel
import pytest
from faces import block, on_both_faces
from grown import filled, grown, tree
from stuck import AMPLE, until, wait_until
from test_watching_ends import in_child
from walked import (
    OPENING,
    fds_return_to,
    fds_return_without_a_loop_to,
    following,
    old_descriptors,
    paths,
    walked,
    walking,
)

import truenas_os
from truenas_os import blocking
from truenas_os.blocking import walk_native
from truenas_os.blocking.walk_options import Root, checked_options

pytestmark = pytest.mark.usefixtures("ends")
anyio_test = pytest.mark.anyio


async def warm_up(directory):
    """What the event loop and the pool open stays open."""
    async for _ in truenas_os.walk(directory):
        pass


async def refused(walk, face, error=ValueError):
    """Each call of a walk, which refuses it."""
    for name in ("get_stats", "dir_stack", "resume_token", "skip"):
        with pytest.raises(error):
            getattr(walk, name)()
    with pytest.raises(error):
        await anext(walk)
    with pytest.raises(error):
        await following(face, walk.batches(3))
    with pytest.raises(error):
        async with block(walk.walk):
            pass


# Closing


@pytest.mark.parametrize("count", [0, 1, 5, None])
@on_both_faces
async def test_a_closed_walk_refuses_every_call(face, mount_dir, count):
    grown(mount_dir)
    async with walking(face, mount_dir) as walk:
        await (walk.rest() if count is None else walk.take(count))
        await walk.close()
        await refused(walk, face)
        await walk.close()
    await walk.close()
    await refused(walk, face)


@on_both_faces
async def test_a_walk_that_has_not_begun_can_be_closed(face):
    walk = walking(face, "/nonexistent")
    await walk.close()
    await refused(walk, face)


@on_both_faces
async def test_after_the_last_item_all_can_still_be_asked(face, mount_dir):
    grown(mount_dir)
    await walked(face, mount_dir)
    before = kernel.open_fds()
    walk = walking(face, mount_dir)
    found = await walk.rest()
    await old_descriptors(face, before)
    assert walk.get_stats().cnt == len(found)
    assert walk.dir_stack()[0] == (str(mount_dir), mount_dir.stat().st_ino)
    assert await walked(face, mount_dir, resume_from=walk.resume_token()) == []
    with pytest.raises(StopAsyncIteration):
        await anext(walk)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del walk
        gc.collect()


@on_both_faces
async def test_a_block_that_is_left_early_leaves_nothing(face, place):
    grown(place)
    await walked(face, place)
    before = kernel.open_fds()
    for count in range(8):
        async with walking(face, place, read_ahead=1 + 3 * count) as walk:
            await walk.take(count)
        await old_descriptors(face, before)
    with pytest.raises(ZeroDivisionError):
        async with walking(face, place) as walk:
            async for _ in walk:
                raise ZeroDivisionError
    await old_descriptors(face, before)
    await refused(walk, face)


@on_both_faces
async def test_a_walk_is_begun_by_its_block_or_by_the_first_item(face, mount_dir):
    filled(mount_dir, "file")
    walk = walking(face, mount_dir)
    assert [item.name for item in await walk.rest()] == ["file"]
    missing = walking(face, mount_dir / "nothing")
    with pytest.raises(FileNotFoundError):
        async with missing:
            pytest.fail("there is nothing")


# The interface of a generator


@anyio_test
async def test_a_walk_is_an_async_generator(mount_dir):
    grown(mount_dir)
    walk = truenas_os.walk(mount_dir)
    assert isinstance(walk, collections.abc.AsyncGenerator)
    assert aiter(walk) is walk
    first = await walk.asend(None)
    second = await walk.__anext__()
    assert paths([first, second]) == tree(mount_dir)[:2]
    for wrong in (1, "text", first):
        with pytest.raises(TypeError):
            await walk.asend(wrong)
    with pytest.raises(ZeroDivisionError):
        await walk.athrow(ZeroDivisionError())
    with pytest.raises(ValueError):
        await anext(walk)
    await walk.aclose()


def test_a_walk_is_a_generator(mount_dir):
    grown(mount_dir)
    walk = blocking.walk(mount_dir)
    assert isinstance(walk, collections.abc.Iterator)
    assert iter(walk) is walk
    assert paths([walk.send(None), next(walk)]) == tree(mount_dir)[:2]
    with pytest.raises(TypeError):
        walk.send(1)
    with pytest.raises(ZeroDivisionError):
        walk.throw(ZeroDivisionError())
    with pytest.raises(ValueError):
        next(walk)
    walk.close()


# Dropping


def test_a_walk_that_is_dropped_warns_and_leaves_no_descriptor(mount_dir):
    grown(mount_dir)
    before = kernel.open_fds()
    for begin in (next, lambda walk: walk.__enter__()):
        walk = blocking.walk(mount_dir)
        kept = begin(walk)
        del kept
        with pytest.warns(ResourceWarning, match="FilesystemIterator"):
            del walk
            gc.collect()
        fds_return_without_a_loop_to(before)


@anyio_test
async def test_an_async_walk_that_is_dropped_warns_and_leaves_no_descriptor(mount_dir):
    grown(mount_dir)
    await warm_up(mount_dir)
    gc.collect()
    before = kernel.open_fds()
    walk = truenas_os.walk(mount_dir)
    await anext(walk)
    cycle = [walk]
    cycle.append(cycle)
    gc.disable()
    try:
        del walk, cycle
        with pytest.warns(ResourceWarning, match="FilesystemIterator"):
            await anyio.to_thread.run_sync(gc.collect)
    finally:
        gc.enable()
    await fds_return_to(before)


@anyio_test
async def test_breaking_out_of_a_loop_leaves_no_descriptor(mount_dir):
    grown(mount_dir)
    await warm_up(mount_dir)
    before = kernel.open_fds()
    with pytest.warns(ResourceWarning, match="FilesystemIterator"):
        async for _ in truenas_os.walk(mount_dir):
            break
        del _
        gc.collect()
    await fds_return_to(before)


@on_both_faces
async def test_what_has_not_begun_or_has_been_closed_is_dropped_silently(face, mount_dir):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        walking(face, mount_dir)
        async with walking(face, mount_dir):
            pass
        failed = walking(face, mount_dir / "nothing")
        with pytest.raises(FileNotFoundError):
            await anext(failed)
        del failed
        gc.collect()


def test_an_item_that_is_kept_keeps_no_descriptor_open(mount_dir):
    grown(mount_dir)
    before = kernel.open_fds()
    with blocking.walk(mount_dir) as walk:
        kept = [item for item, _ in zip(walk, range(9), strict=False)]
    fds_return_without_a_loop_to(before)
    assert paths(kept) == tree(mount_dir)[:9]


# Who asks


@anyio_test
async def test_a_second_task_may_not_ask_while_the_first_one_waits(mount_dir):
    grown(mount_dir)
    async with truenas_os.walk(mount_dir) as warm:
        await anext(warm)
    walk = truenas_os.walk(mount_dir)
    found = []

    async def ask():
        found.append(await anext(walk))

    with faults.stopped("openat2") as stop:
        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            await until(stop.reached)
            with pytest.raises(RuntimeError):
                await anext(walk)
            with pytest.raises(RuntimeError):
                await walk.asend(None)
            stop.go()
    async with walk:
        found += [item async for item in walk]
    assert paths(found) == tree(mount_dir)


def test_a_second_thread_may_not_ask_while_the_first_one_waits(mount_dir):
    grown(mount_dir)
    walk = blocking.walk(mount_dir)
    found = []
    with faults.stopped("getdents64") as stop:
        thread = threading.Thread(target=lambda: found.append(next(walk)))
        thread.start()
        wait_until(stop.reached)
        # It may be about to wait.
        with pytest.raises(RuntimeError):
            next(walk)
        stop.go()
        thread.join(AMPLE)
    with walk:
        found += list(walk)
    assert paths(found) == tree(mount_dir)


@anyio_test
async def test_closing_from_another_task_ends_who_waits(mount_dir):
    grown(mount_dir)
    await warm_up(mount_dir)
    before = kernel.open_fds()
    for syscall in ("getdents64", "openat2"):
        walk = truenas_os.walk(mount_dir)
        ended = []

        async def ask():
            with pytest.raises(ValueError):
                async for _ in walk:
                    pass
            ended.append(True)

        with faults.stopped(syscall, skip=4 * (syscall == "openat2")) as stop:
            with anyio.fail_after(AMPLE):
                async with anyio.create_task_group() as group:
                    group.start_soon(ask)
                    await until(stop.reached)
                    await walk.aclose()
            stop.go()
        assert ended == [True]
        await fds_return_to(before)


def test_closing_from_another_thread_ends_who_waits(mount_dir):
    grown(mount_dir)
    before = kernel.open_fds()
    walk = blocking.walk(mount_dir)
    ended = []

    def ask():
        with pytest.raises(ValueError):
            next(walk)
        ended.append(True)

    with faults.stopped("getdents64") as stop:
        thread = threading.Thread(target=ask)
        thread.start()
        wait_until(stop.reached)
        walk.close()
        thread.join(AMPLE)
        assert ended == [True]
        stop.go()
    fds_return_without_a_loop_to(before)


def test_the_native_side_may_be_freed_while_it_is_asked_whether_it_has_ended(mount_dir):
    native = walk_native.begin(checked_options(Root(mount_dir, None))).native
    native.free()
    assert native.ended()


@on_both_faces
async def test_many_walks_at_once_do_not_disturb_each_other(face, mount_dir):
    grown(mount_dir)
    expected = tree(mount_dir)
    await walked(face, mount_dir)
    before = kernel.open_fds()
    walks = [walking(face, mount_dir, file_open_flags=OPENING[n % 2]) for n in range(30)]
    found = [[] for _ in walks]
    while any(walks):
        for number, walk in enumerate(walks):
            if walk is None:
                continue
            for _ in range(1 + number % 3):
                if (item := await anext(walk, None)) is None:
                    walks[number] = None
                    break
                found[number].append(os.fsencode(item.path))
    assert found == [expected] * len(found)
    await old_descriptors(face, before)


@anyio_test
async def test_tasks_walk_side_by_side(mount_dir):
    grown(mount_dir)
    found = []

    async def one():
        found.append([os.fsencode(item.path) async for item in truenas_os.walk(mount_dir)])

    async with anyio.create_task_group() as group:
        for _ in range(30):
            group.start_soon(one)
    assert found == [tree(mount_dir)] * 30


@anyio_test
async def test_other_tasks_run_although_the_consumer_awaits_nothing_else(mount_dir):
    filled(mount_dir, *map(str, range(5000)), size=0)
    turns = []
    done = anyio.Event()

    async def other():
        while not done.is_set():
            turns.append(len(found))
            await anyio.sleep(0)

    found = []
    async with anyio.create_task_group() as group:
        group.start_soon(other)
        await until(lambda: turns)
        for opening in OPENING:
            begun = len(turns)
            async for item in truenas_os.walk(mount_dir, file_open_flags=opening):
                found.append(item.name)
            assert len(set(turns[begun:])) > 4
        done.set()


# Forks


def test_a_forked_child_is_refused_every_call(mount_dir):
    grown(mount_dir)
    with blocking.walk(mount_dir) as walk:
        first = next(walk)
        for call in (
            *(walk.get_stats, walk.dir_stack, walk.resume_token, walk.skip, walk.close),
            *(lambda: next(walk), lambda: walk.send(None), lambda: next(walk.batches(2))),
            *(walk.__enter__, lambda: walk.throw(ZeroDivisionError())),
        ):
            assert in_child(call).startswith("RuntimeError"), call
        assert paths([first, *walk]) == tree(mount_dir)


def test_a_forked_child_is_refused_in_an_event_loop_of_its_own(mount_dir):
    grown(mount_dir)

    async def begin():
        walk = truenas_os.walk(mount_dir)
        return walk, await anext(walk)

    async def ask(walk):
        return await anext(walk)

    async def close(walk):
        await walk.aclose()

    walk, _ = anyio.run(begin)
    for call in (ask, close):
        assert in_child(lambda: anyio.run(call, walk)).startswith("RuntimeError")
    anyio.run(close, walk)


def test_a_child_drops_a_walk_silently_and_takes_nothing_from_its_parent(mount_dir):
    grown(mount_dir)
    held = [blocking.walk(mount_dir)]
    first = next(held[0])

    def drop():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            held.clear()
            gc.collect()
        return len(caught)

    assert in_child(drop) == "0"
    with held[0] as walk:
        assert paths([first, *walk]) == tree(mount_dir)


def test_a_child_that_is_forked_during_a_walk_can_walk_itself(mount_dir):
    grown(mount_dir)
    count = len(tree(mount_dir))
    with faults.stopped("getdents64", skip=2) as stop:
        with blocking.walk(mount_dir, read_ahead=1000) as walk:
            next(walk)
            wait_until(stop.reached)
            faults.lib.tos_fault_disarm()
            assert in_child(lambda: len(list(blocking.walk(mount_dir)))) == str(count)
            stop.go()
            assert len(list(walk)) == count - 1
