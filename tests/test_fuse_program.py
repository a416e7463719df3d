# SPDX-License-Identifier: LGPL-3.0-or-later
"""What signals are to programs that serve: each is one of its own, which sends them to itself."""

from pathlib import Path
from signal import SIGINT, SIGTERM

import pytest
from stuck import run_python

TESTS = Path(__file__).parent

PROGRAM = """
import os, signal, stat, sys
import anyio

loop, number, tests, *points = sys.argv[1:]
number = int(number)
sys.path.insert(0, tests)
from serving import is_mounted
from stuck import until
from truenas_os import fuse

ending = fuse.program._ending
ended = []

def handlers():
    return [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]

async def serve(point):
    root = fuse.EntryAttributes(st_mode=stat.S_IFDIR | 0o755)
    await fuse.path.main(mountpoint=point, getattr=lambda path: root)
    ended.append(points.index(point))

async def unmount(point):
    await anyio.run_process(["umount", point])
    await until(lambda: points.index(point) in ended, "the end")

def kill():
    os.kill(os.getpid(), number)

async def main():
    before = handlers()
    async with anyio.create_task_group() as tasks:
        for count, point in enumerate(points, 1):
            tasks.start_soon(serve, point)
            await until(lambda: len(ending) == count, "the beginning")
        await use(before)
    assert handlers() == before
    assert not any(map(is_mounted, points))
    print("ended", *sorted(ended))

{use}
if loop == "trio":
    anyio.run(main, backend="trio")
else:
    anyio.run(main, backend_options={{"use_uvloop": loop == "uvloop"}})
"""

on_every_loop = pytest.mark.parametrize("loop", ["asyncio", "uvloop", "trio"])
by_signals = pytest.mark.parametrize("number", [SIGINT, SIGTERM])


@pytest.fixture
def points(mount_dir):
    paths = [mount_dir / "first", mount_dir / "second"]
    for path in paths:
        path.mkdir()
    return paths


def run(use, loop, number, points):
    arguments = map(str, (loop, int(number), TESTS, *points))
    done = run_python(PROGRAM.format(use=use), *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@on_every_loop
@by_signals
def test_a_signal_ends_all_who_serve(points, loop, number):
    use = """
async def use(before):
    kill()
"""
    assert run(use, loop, number, points) == "ended 0 1\n"


@on_every_loop
@pytest.mark.parametrize("leaves", [0, 1])
def test_a_signal_ends_who_goes_on_when_another_has_ended(points, loop, leaves):
    use = f"""
async def use(before):
    await unmount(points[{leaves}])
    kill()
"""
    assert run(use, loop, SIGTERM, points) == "ended 0 1\n"


@on_every_loop
def test_when_the_last_has_ended_the_handlers_are_those_before(points, loop):
    use = """
async def use(before):
    ours = handlers()
    assert all(a != b for a, b in zip(before, ours))
    await unmount(points[0])
    assert handlers() == ours
    await unmount(points[1])
"""
    assert run(use, loop, SIGTERM, points) == "ended 0 1\n"


@on_every_loop
@by_signals
@pytest.mark.parametrize("kind", ["plain", "loop"])
def test_a_handler_of_the_programs_own_stays(points, loop, number, kind):
    use = f"""
serving_only, got = main, []

async def main():
    if {kind == "plain"}:
        signal.signal(number, lambda *_: got.append(1))
        await serving_only()
    else:
        with anyio.open_signal_receiver(number) as received:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(receive, received)
                await serving_only()
                tasks.cancel_scope.cancel()
    assert got == [1]

async def receive(received):
    async for _ in received:
        got.append(1)

async def use(before):
    kill()
    await until(lambda: got, "the signal")
    assert not ended
    for point in points:
        await unmount(point)
"""
    assert run(use, loop, number, points) == "ended 0 1\n"


@on_every_loop
def test_a_forked_child_has_the_handlers_before(points, loop):
    use = """
async def use(before):
    child = os.fork()
    if child == 0:
        os._exit(handlers() != before)
    assert os.waitpid(child, 0)[1] == 0
    assert not ended
    kill()
"""
    assert run(use, loop, SIGTERM, points) == "ended 0 1\n"
