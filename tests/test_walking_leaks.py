# SPDX-License-Identifier: LGPL-3.0-or-later
"""Walks made again and again, and walks of very much: neither descriptors nor memory grow."""

import contextlib
import ctypes
import gc
import itertools
import os
import tracemalloc

import kernel
import pytest
from faces import Face
from grown import filled, grown, hostile, tree
from stuck import wait_until
from test_leaks import growth_since, live_objects, resident_kib
from test_walking_marks import MARKS
from walked import fds_return_to, fds_return_without_a_loop_to, walking
from witness import in_python

from truenas_os import blocking

pytestmark = pytest.mark.usefixtures("ends")


class Mallinfo2(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks "
        "keepcost".split()
    ]


def in_use_kib():
    """What the C library has handed out. Threads leave memory behind that is resident and free."""
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = Mallinfo2
    info = mallinfo2()
    return (info.uordblks + info.hblkhd) // 1024


def whole(where, **options):
    for _ in blocking.walk(where, **options):
        pass


def left_early(where):
    with blocking.walk(where) as walk:
        for item in itertools.islice(walk, 7):
            if item.isdir:
                walk.skip()


def not_found(where):
    with contextlib.suppress(FileNotFoundError):
        whole(where / "nothing")


def interrupted(where):
    def fail(*_):
        raise ZeroDivisionError

    with contextlib.suppress(ZeroDivisionError):
        whole(where, reporting_increment=5, reporting_callback=fail)


def resumed(where):
    with blocking.walk(where) as walk:
        next(walk)
        token = walk.resume_token()
    whole(where, resume_from=token)


def told(where):
    with blocking.walk(where, progress=lambda told: None, progress_interval=0) as walk:
        for batch in walk.batches(9):
            for item in batch:
                _ = (item.path, item.statxinfo, item.parent)
            walk.get_stats()
            walk.dir_stack()


WALKS = {
    "whole": whole,
    "without descriptors": lambda where: whole(where, file_open_flags=None),
    "with marks": lambda where: whole(where, **MARKS),
    "left early": left_early,
    "not found": not_found,
    "interrupted": interrupted,
    "resumed": resumed,
    "told": told,
    "never begun": lambda where: blocking.walk(where),
}


@pytest.mark.parametrize("name", WALKS)
def test_a_walk_leaks_nothing(name, mount_dir):
    for directory in ("a/b", "c"):
        (mount_dir / directory).mkdir(parents=True)
        filled(mount_dir / directory, "one", "two")
    walk, calls = WALKS[name], 100
    tasks = len(os.listdir("/proc/self/task"))

    def again(times):
        for number in range(times):
            walk(mount_dir)
            if not number % 20:
                settle()
        settle()

    def settle():
        # What waits for the collector, or for its threads to end, is not to be taken for a leak.
        gc.collect()
        wait_until(lambda: len(os.listdir("/proc/self/task")) <= tasks, "the end of all threads")

    again(4 * calls)
    before = kernel.open_fds()
    in_use = in_use_kib()
    tracemalloc.start()
    try:
        traced = tracemalloc.get_traced_memory()[0]
        again(calls)
        increase = tracemalloc.get_traced_memory()[0] - traced
    finally:
        tracemalloc.stop()
    fds_return_without_a_loop_to(before)
    assert increase < 4000 + 40 * calls  # as one lost object in each
    again(4 * calls)
    # What C allocates is not traced; 5 KiB a walk would show.
    assert in_use_kib() - in_use < 2000


@pytest.mark.parametrize("name", ["asyncio", "trio"])
def test_the_async_face_leaks_nothing(name, mount_dir):
    grown(mount_dir)
    face = Face(name)

    async def body():
        async def every():
            async with walking(face, mount_dir) as walk:
                await walk.rest()
            async with walking(face, mount_dir) as walk:
                await walk.take(5)
                walk.resume_token()

        for _ in range(20):
            await every()
        objects, fds = live_objects(), kernel.open_fds()
        for _ in range(60):
            await every()
        await fds_return_to(fds)
        return growth_since(objects)

    assert face.run(body) < 60


HIGHEST = """
import os, resource, sys
from truenas_os import blocking

os.chdir({directory!r})
kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
count = 0
for item in blocking.walk(".", file_open_flags={opening}):
    count += 1
print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - kib)
"""


@pytest.mark.parametrize("opening", [os.O_RDONLY, None])
def test_memory_does_not_grow_with_the_entries(mount_dir, opening):
    """One directory of 100,000 entries, and a thousand of a hundred."""
    for number in range(1000):
        (mount_dir / f"d{number}").mkdir()
        filled(mount_dir / f"d{number}", *map(str, range(100)), size=0)
    (mount_dir / "big").mkdir()
    filled(mount_dir / "big", *(f"{n:0>60}" for n in range(100_000)), size=0)
    script = HIGHEST.format(directory=str(mount_dir), opening=opening)
    count, kib = map(int, in_python(script).split())
    assert count == 201_001
    assert kib < 6 << 10


def test_items_that_are_kept_cost_what_they_hold(mount_dir):
    """None keeps alive more than its own batch."""
    filled(mount_dir, *(f"{n:0>60}" for n in range(20_000)), size=0)
    gc.collect()
    resident = resident_kib()
    kept = list(blocking.walk(mount_dir, file_open_flags=None))
    assert len(kept) == 20_000
    assert resident_kib() - resident < 20_000 * 2
    del kept


def test_hostile_names_leak_nothing_either(mount_dir):
    hostile(mount_dir)
    count = len(tree(mount_dir))
    for _ in range(5):
        assert len(list(blocking.walk(mount_dir))) == count
    in_use = in_use_kib()
    for _ in range(100):
        assert len(list(blocking.walk(mount_dir))) == count
    assert in_use_kib() - in_use < 1500
