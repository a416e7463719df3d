# SPDX-License-Identifier: LGPL-3.0-or-later
"""Forked children: what serves belongs to the process that has begun it."""

import asyncio
import os
import select
import sys
import traceback
import warnings
from pathlib import Path

import anyio
import pytest
from anyio.to_thread import run_sync
from serving import AMPLE, Client, Files, client, is_mounted
from stuck import until

from truenas_os import fuse


@pytest.fixture
def point(mount_dir):
    path = mount_dir / "fuse"
    path.mkdir()
    return path


def in_child(function):
    """Run a function in a forked child, and wait for its end."""
    started(function)()


def started(function):
    """Fork a child that runs a function; what waits for its end, and fails if it has."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # there are threads
        child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reading)
            function()
            code = 0
        except BaseException:
            os.write(writing, traceback.format_exc().encode())
        finally:
            os._exit(code)
    os.close(writing)

    def end():
        ready, _, _ = select.select([reading], [], [], AMPLE)
        with open(reading) as pipe:
            assert ready, "the child hangs"
            complaint = pipe.read()
        _, status = os.waitpid(child, 0)
        assert status == 0, complaint

    return end


def refused(function, *args):
    with pytest.raises(RuntimeError, match="forked child"):
        function(*args)


class Polled(Files):
    handle = None

    async def poll(self, fh, poll_handle, ctx):
        self.handle = poll_handle or self.handle
        return 0


@pytest.mark.anyio
async def test_a_child_may_use_nothing_of_a_session_and_ends_nothing(point):
    filesystem = Polled(a=b"content")
    async with fuse.mount(filesystem, point) as session:
        polling = Client(
            session,
            """
            import select
            poll = select.poll()
            file = open(top + "/a")
            poll.register(file, select.POLLIN)
            print(poll.poll(100))
            """,
        )
        await until(lambda: filesystem.handle, "the question")

        def child():
            refused(filesystem.handle.notify)
            refused(lambda: session.stats)
            refused(lambda: session.features)
            refused(session.post, (b"",))
            for ask in (
                session.wait,
                session.__aenter__,
                session.serve,
                lambda: session.invalidate_inode(2),
                lambda: session.invalidate_entry(1, b"a"),
                lambda: session.notify_store(2, 0, b""),
                lambda: session.notify_retrieve(2, 0, 1),
            ):
                refused(asyncio.run, ask())
            asyncio.run(session.aclose())
            asyncio.run(session.__aexit__(None, None, None))
            session.abandon(True)
            assert "/dev/fuse" not in names()

        await run_sync(in_child, child)
        out, err = await polling.end()
        assert out == "[]\n", err
        assert await client(session, "print(open(top + '/a').read())") == "content"
    assert filesystem.destroyed == 1


def names():
    found = []
    for fd in Path("/proc/self/fd").iterdir():
        try:
            found.append(os.readlink(fd))
        except OSError:
            pass
    return found


@pytest.mark.anyio
async def test_a_handler_that_forks_answers_once(point):
    class Forking(Files):
        async def lookup(self, parent_inode, name, ctx):
            if name == b"a" and not self.destroyed:
                server = fuse.current.active_session()

                def child():
                    assert server.fd == -1
                    server._reply_error(fuse.current_request(), 5)
                    server.drain()
                    server.stop(fuse.SessionEnd.CLOSED)

                await run_sync(started(child))
            return await super().lookup(parent_inode, name, ctx)

    async with fuse.mount(Forking(a=b"content"), point) as session:
        for _ in range(2):
            assert await client(session, "print(open(top + '/a').read())") == "content"


@pytest.mark.anyio
async def test_the_program_form_in_a_child(point, mount_dir):
    (mount_dir / "other").mkdir()
    filesystem = Files(a=b"content")
    await run_sync(fuse.init, filesystem, point)

    def child():
        refused(fuse.invalidate_inode, 2)
        refused(fuse.invalidate_entry, 1, b"a")
        refused(fuse.invalidate_entry_async, 1, b"a")
        refused(fuse.notify_store, 2, 0, b"")
        refused(fuse.terminate)
        refused(asyncio.run, fuse.main())
        fuse.close()
        # It may have a filesystem of its own.
        fuse.init(Files(), mount_dir / "other")
        fuse.close()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(fuse.main)
        session = fuse.program._session
        assert await client(session, "print(open(top + '/a').read())") == "content"
        await run_sync(in_child, child)
        assert await client(session, "print(open(top + '/a').read())") == "content"
        fuse.terminate()
    await run_sync(fuse.close)
    assert not is_mounted(point)
    assert not is_mounted(mount_dir / "other")


@pytest.mark.anyio
async def test_a_child_that_exits_through_its_blocks_ends_nothing(point):
    async with fuse.mount(Files(a=b"content"), point) as session:

        async def block():
            try:
                async with session_in_child(session):
                    sys.exit(0)
            except SystemExit:
                pass

        await run_sync(in_child, lambda: asyncio.run(block()))
        assert await client(session, "print(open(top + '/a').read())") == "content"


class session_in_child:
    """The end of a block that the parent has begun."""

    def __init__(self, session):
        self.session = session

    async def __aenter__(self):
        return self.session

    async def __aexit__(self, *exc):
        return await self.session.__aexit__(*exc)


def test_a_session_that_was_made_but_not_begun_may_be_begun_by_a_child(point):
    session = fuse.mount(Files(a=b"content"), point)

    async def serve():
        async with session:
            assert is_mounted(point)

    in_child(lambda: asyncio.run(serve()))
    assert not is_mounted(point)
