# SPDX-License-Identifier: LGPL-3.0-or-later
"""Whichever system call of a mounting helper fails, or is cancelled at: nothing is left behind."""

import asyncio
import contextlib
import errno
import os
from types import SimpleNamespace

import anyio
import anyio.lowlevel
import faults
import kernel
import pytest
import traces
from filesystems import IS_ROOT, make_image
from stuck import until
from traces import at
from witness import make

import truenas_os
from truenas_os import IdmapMapping, blocking

ZERO = (IdmapMapping(0, 0, 1),)


@pytest.fixture
def place(mount_dir, tmp_path_factory):
    """What the helpers work with. All traces are looked for below it."""
    names = ("target", "one", "two", "upper", "work")
    paths = {name: mount_dir / name for name in names}
    for path in paths.values():
        path.mkdir()
    make(make(mount_dir, "source"), "below")
    image = tmp_path_factory.mktemp("image") / "image"
    return SimpleNamespace(directory=mount_dir, source=mount_dir / "source", image=image, **paths)


# Each is a block of either face.
BLOCKS = {
    "mounted": lambda face, at: face.mounted("tmpfs", at.target, size="1M"),
    "mounted, made directories": lambda face, at: face.mounted(
        "tmpfs", at.target / "a" / "b", mkdir=True
    ),
    "mounted by a loop device": lambda face, at: face.mounted(
        "ext4", at.target, source=at.image, loop=True
    ),
    "bind": lambda face, at: face.bind(at.source, at.target, attr=blocking.MOUNT_ATTR_RDONLY),
    "recursive bind": lambda face, at: face.bind(at.source, at.target, recursive=True),
    "idmapped bind": lambda face, at: face.bind(
        at.source, at.target, idmap=(ZERO, ZERO), propagation=blocking.MS_PRIVATE
    ),
    "overlay": lambda face, at: face.overlay(
        at.target, [at.one, at.two], upper=at.upper, work=at.work
    ),
    "loop_device": lambda face, at: face.loop_device(at.image),
}
LOOPS = ("mounted by a loop device", "loop_device")
# Each is a call of either face, which returns a descriptor or nothing.
CALLS = {
    "idmap_userns": lambda face, at: face.idmap_userns(ZERO, ZERO),
    "remount": lambda face, at: face.remount(at.source, size="2M"),
    "set_attr": lambda face, at: face.set_attr(at.source, blocking.MOUNT_ATTR_NOATIME),
    "umount": lambda face, at: face.umount(at.source / "below"),
    "recursive umount": lambda face, at: face.umount(at.source, recursive=True),
    "lazy fallback": lambda face, at: face.umount(at.source, recursive=True, lazy_fallback=True),
}
# Those of whole trees make so many system calls that some ways to disturb them must do.
TREES = ("recursive bind", "recursive umount", "lazy fallback")
helper = pytest.mark.parametrize("name", [*BLOCKS, *CALLS])


def prepare(name, place):
    if name in LOOPS:
        if not IS_ROOT:
            pytest.skip("needs root outside of any user namespace, for a loop device")
        make_image("ext4", place.image)


def use(name, place):
    """Use a helper in the blocking face; whether that was unmounting."""
    if name in BLOCKS:
        with BLOCKS[name](blocking, place):
            pass
    else:
        result = CALLS[name](blocking, place)
        if result is not None:
            result.close()


def restore(place):
    """What a call has unmounted is mounted again."""
    for path in (place.source, place.source / "below"):
        if not at(path):
            make(path.parent, path.name)


@contextlib.contextmanager
def nothing_left(name, place):
    """That of the mounts which a call is to unmount some are gone is no trace of it."""
    work = place.work / "work"  # an overlay makes it, and uses it again
    with contextlib.suppress(FileNotFoundError):
        work.rmdir()
    restore(place)
    with traces.none(place.directory, place.image):
        try:
            yield
        finally:
            if name in CALLS:
                assert len(traces.below(place.directory)) <= 2
                restore(place)
            with contextlib.suppress(FileNotFoundError):
                work.rmdir()


# A close that is made to fail has not closed anything, which no real one does, and to kill and to
# await a child of one's own does not fail either.
SYSCALLS = (
    "clone3 fsconfig fsmount fsopen fspick ioctl listmount mount_setattr move_mount open_tree "
    "openat2 read statmount statx umount2"
).split()
ERRORS = (errno.EINVAL, errno.EIO, errno.ENOMEM, errno.EMFILE)


@helper
def test_whichever_system_call_fails_nothing_is_left(name, place):
    prepare(name, place)
    failed = made = 0
    for syscall in SYSCALLS:
        with nothing_left(name, place), faults.count(syscall) as calls:
            use(name, place)
        made += calls.seen
        for nth in range(calls.seen):
            for error in ERRORS[: 2 if name in TREES else None]:
                with nothing_left(name, place):
                    with faults.failing(syscall, error, skip=nth, times=1):
                        failed += not succeeds(name, place, error)
    assert made
    assert failed


def succeeds(name, place, error):
    try:
        use(name, place)
    except OSError as found:
        assert found.errno == error
        return False
    except ExceptionGroup as group:  # of a tree; what is above what failed is busy
        assert {found.errno for found in group.exceptions} <= {error, errno.EBUSY}
        return False
    return True


@helper
def test_when_everything_fails_from_some_system_call_on_the_error_is_its(name, place, monkeypatch):
    """There a mount may stay that cannot be unmounted: by name, in the error."""
    monkeypatch.setattr(blocking.unmounting, "_PATIENCE", 0.0)
    prepare(name, place)
    with nothing_left(name, place), faults.count("openat2") as calls:
        use(name, place)
    for nth in range(calls.seen):
        restore(place)
        before = kernel.open_fds()
        with faults.failing("openat2", errno.ENFILE, skip=nth):
            with pytest.raises((OSError, ExceptionGroup)) as failed:
                use(name, place)
        if isinstance(failed.value, OSError):
            assert failed.value.errno == errno.ENFILE
        assert kernel.open_fds() == before
        for path in (place.target, place.target / "a" / "b", place.target / "below"):
            for _ in at(path):
                kernel.umount(path, kernel.MNT_DETACH)


# Cancelled


async def by_scope(function, cancel_when):
    async with anyio.create_task_group() as group:
        with anyio.CancelScope() as scope:
            group.start_soon(cancel_when, scope.cancel)
            await function()


async def by_task_cancel(function, cancel_when):
    async def run():
        await function()

    task = asyncio.create_task(run())
    await cancel_when(task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task


ASYNCIO, UVLOOP = (("asyncio", {"use_uvloop": uvloop}) for uvloop in (False, True))
TRIO = ("trio", {})
WAYS = {
    "asyncio scope": (ASYNCIO, by_scope),
    "uvloop scope": (UVLOOP, by_scope),
    "trio scope": (TRIO, by_scope),
    "Task.cancel": (ASYNCIO, by_task_cancel),
}
CANCELLED = [
    pytest.param(name, *WAYS[way], id=f"{name}-{way}")
    for name in [*BLOCKS, *CALLS]
    for way in (("trio scope", "Task.cancel") if name in TREES else WAYS)
]


async def use_async(name, place):
    if name in BLOCKS:
        async with BLOCKS[name](truenas_os, place):
            await anyio.lowlevel.checkpoint()
    else:
        result = await CALLS[name](truenas_os, place)
        if result is not None:
            await result.aclose()


@pytest.mark.anyio
@pytest.mark.parametrize(("name", "anyio_backend", "cancelled"), CANCELLED)
async def test_at_whichever_system_call_a_task_is_cancelled_nothing_is_left(
    name, anyio_backend, cancelled, place
):
    prepare(name, place)
    await use_async(name, place)
    nth, reached = 0, True
    while reached:
        with nothing_left(name, place):
            with faults.stopped(None, skip=nth) as stop:
                reached = await _stop_and_cancel(name, place, cancelled, stop)
        nth += 1
    assert nth > 1


async def _stop_and_cancel(name, place, cancelled, stop):
    """Whether there was a system call to stop at."""
    ended = []

    async def function():
        try:
            await use_async(name, place)
        finally:
            ended.append(True)

    async def cancel_when(cancel):
        await until(lambda: stop.reached() or ended)
        if stop.reached():
            cancel()
            for _ in range(5):  # let the cancellation arrive
                await anyio.lowlevel.cancel_shielded_checkpoint()
            stop.go()
        await until(lambda: ended)

    await cancelled(function, cancel_when)
    return stop.reached()


@pytest.mark.anyio
@pytest.mark.parametrize(("anyio_backend", "cancelled"), WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("name", [name for name in BLOCKS if name not in TREES])
async def test_a_block_that_begins_while_its_task_is_cancelled_at_random_leaves_nothing(
    anyio_backend, cancelled, name, place
):
    """Among others after all is done and before the task has heard of it."""
    prepare(name, place)
    await use_async(name, place)
    with nothing_left(name, place):
        for delay in range(25):

            async def cancel_when(cancel, delay=delay):
                await anyio.sleep(delay * 0.0002)
                cancel()

            await cancelled(lambda: use_async(name, place), cancel_when)


@pytest.mark.anyio
async def test_a_mount_of_which_the_task_was_not_told_is_unmounted(place, monkeypatch):
    """The block has begun on the worker; the loop hears of it after it has cancelled the task."""
    with nothing_left("mounted", place):
        async with anyio.create_task_group() as group:

            async def enter():
                async with truenas_os.mounted("tmpfs", place.target):
                    await anyio.sleep_forever()

            with faults.stopped("move_mount") as stop:
                group.start_soon(enter)
                await until(stop.reached)
                stop.go()
                # Without giving way to the loop, so that it cannot deliver the result.
                while not at(place.target):
                    os.sched_yield()
                group.cancel_scope.cancel()


@pytest.mark.anyio
async def test_a_block_in_a_scope_that_is_cancelled_already_does_not_begin(place):
    with nothing_left("mounted", place), faults.count(None) as calls:
        with anyio.CancelScope() as scope:
            scope.cancel()
            for make_block in BLOCKS.values():
                async with make_block(truenas_os, place):
                    raise AssertionError("begun")
        assert scope.cancelled_caught
    assert calls.seen == 0


@pytest.mark.anyio
async def test_a_block_that_is_cancelled_inside_ends(place):
    for name, make_block in BLOCKS.items():
        if name in LOOPS:
            continue
        with nothing_left(name, place):
            with anyio.CancelScope() as scope:
                async with make_block(truenas_os, place):
                    scope.cancel()
                    await anyio.sleep_forever()
            assert scope.cancelled_caught


@pytest.mark.anyio
async def test_many_blocks_at_once_all_end(place):
    async def hold(number):
        async with truenas_os.mounted("tmpfs", place.target / str(number), mkdir=True) as mount:
            begun.append(mount.mnt_id)
            await anyio.sleep_forever()

    begun = []
    with nothing_left("mounted", place):
        async with anyio.create_task_group() as group:
            for number in range(50):
                group.start_soon(hold, number)
            await until(lambda: len(begun) == 50)
            assert len(set(begun)) == 50
            group.cancel_scope.cancel()
