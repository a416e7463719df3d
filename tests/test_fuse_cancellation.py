# SPDX-License-Identifier: LGPL-3.0-or-later
"""A session is cancelled at each step of its life, and leaves nothing behind."""

import asyncio
import contextlib
import threading
from pathlib import Path

import anyio
import faults
import kernel
import pytest
from serving import Client, Files, client, is_mounted
from stuck import fds_return_to, until
from test_fuse_guard import guards

from truenas_os import fuse


@pytest.fixture
def point(mount_dir):
    path = mount_dir / "fuse"
    path.mkdir()
    return path


class Cut:
    """Awaits a coroutine, and calls a function when that suspends for the time *at*."""

    def __init__(self, coroutine, at, function):
        self.coroutine = coroutine
        self.left = at
        self.function = function

    def __await__(self):
        iterator = self.coroutine.__await__()
        step, value = iterator.send, None
        while True:
            try:
                yielded = step(value)
            except StopIteration as end:
                return end.value
            if self.left == 0:
                self.function()
            self.left -= 1
            try:
                value = yield yielded
                step = iterator.send
            except BaseException as error:
                value = error
                step = iterator.throw


async def by_scope(coroutine, at):
    """Cancel it at its step *at*; False if it has ended before."""
    with anyio.CancelScope() as scope:
        cut = Cut(coroutine, at, scope.cancel)
        await cut
    return cut.left < 0


async def by_task_cancel(coroutine, at):
    cut = None

    async def run():
        nonlocal cut
        cut = Cut(coroutine, at, asyncio.current_task().cancel)
        await cut

    task = asyncio.create_task(run())
    await asyncio.wait([task])
    assert task.cancelled() or task.exception() is None
    return cut.left < 0


each_way = pytest.mark.parametrize(
    ("anyio_backend", "cancelling"),
    [
        (("asyncio", {"use_uvloop": False}), by_scope),
        (("asyncio", {"use_uvloop": False}), by_task_cancel),
        (("asyncio", {"use_uvloop": True}), by_task_cancel),
        (("trio", {}), by_scope),
    ],
)


async def nothing_is_left(point, before):
    assert not is_mounted(point)
    await until(lambda: not list(leftovers()), "the end of threads and processes")
    await fds_return_to(before)


def leftovers():
    yield from (each for each in threading.enumerate() if each.name.startswith("truenas_os.fuse"))
    ours = guards()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError):
            yield from (
                each for each in (task / "children").read_text().split() if int(each) in ours
            )


@pytest.mark.anyio
@each_way
@pytest.mark.parametrize("waits", [False, True])
async def test_a_block_that_is_cancelled_at_any_step(point, cancelling, waits, anyio_backend):
    filesystem = Files(a=b"content")

    async def use():
        async with fuse.mount(filesystem, point) as session:
            if waits:
                with anyio.move_on_after(0.02):
                    await session.wait()

    await anyio.to_thread.run_sync(lambda: None)
    before = kernel.open_fds()
    for at in range(100):
        filesystem.destroyed = 0
        reached = await cancelling(use(), at)
        await nothing_is_left(point, before)
        assert filesystem.destroyed <= 1
        if not reached:
            break
    assert at > 3


@pytest.mark.anyio
@each_way
async def test_the_end_of_a_session_that_hangs_is_cancelled_at_any_step(
    point, cancelling, anyio_backend
):
    class Hanging(Files):
        asked = False

        async def lookup(self, parent_inode, name, ctx):
            self.asked = True
            await anyio.sleep_forever()

    await anyio.to_thread.run_sync(lambda: None)
    before = kernel.open_fds()
    for at in range(20):
        filesystem = Hanging()
        session = fuse.mount(filesystem, point, unmount_timeout=0.05)
        await session.__aenter__()
        hanging = Client(session, "os.chdir(top); os.stat('a')")
        await until(lambda: filesystem.asked, "the question")
        reached = await cancelling(session.aclose(), at)
        _, err = await hanging.end()
        assert "Error" in err
        await nothing_is_left(point, before)
        assert filesystem.destroyed == 1
        if not reached:
            break
    assert not reached


@pytest.mark.anyio
@each_way
@pytest.mark.parametrize("syscall", ["fsmount", "move_mount", "umount2"])
async def test_a_cancelled_call_that_hangs_is_undone(
    point, cancelling, syscall, anyio_backend, monkeypatch
):
    monkeypatch.setattr("truenas_os.fuse.session.GRACE_CHANGE", 0.05)
    await anyio.to_thread.run_sync(lambda: None)
    before = kernel.open_fds()

    async def use():
        async with fuse.mount(Files(a=b""), point, unmount_timeout=0.05):
            pass

    for at in (0, 3, 6):
        with faults.stopped(syscall) as stop:
            async with anyio.create_task_group() as tasks:

                async def go_on():
                    await until(stop.reached)
                    await anyio.sleep(0.1)
                    stop.go()

                tasks.start_soon(go_on)
                await cancelling(use(), at)
                if not stop.reached():
                    tasks.cancel_scope.cancel()
        await until(lambda: not is_mounted(point), "the end of the mount")
        await nothing_is_left(point, before)


@pytest.mark.anyio
async def test_a_retrieval_and_an_invalidation_may_be_cancelled(point):
    async with fuse.mount(Files(a=b"content"), point) as session:
        await client(session, "open(top + '/a').read()")
        for at in range(10):
            for ask in (
                lambda: session.notify_retrieve(2, 0, 4096),
                lambda: session.invalidate_inode(2),
            ):
                await by_scope(ask(), at)
        assert not session._server.notifier._retrievals
        assert await client(session, "print(open(top + '/a').read())") == "content"
