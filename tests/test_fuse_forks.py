# SPDX-License-Identifier: LGPL-3.0-or-later
"""Forked children: what serves belongs to the process that has begun it."""

import asyncio
import os
import select
import signal
import subprocess
import sys
import textwrap
import traceback
import warnings
from pathlib import Path

import anyio
import pytest
from anyio.to_thread import run_sync
from serving import AMPLE, Client, Files, client, guards, guards_of, is_mounted
from stuck import until, wait_until

from truenas_os import fuse

TESTS = Path(__file__).parent


@pytest.fixture
def point(mount_dir):
    path = mount_dir / "fuse"
    path.mkdir()
    return path


def in_child(function, status=0):
    """Run a function in a forked child, and wait for its end with that status."""
    started(function, status)()


def started(function, expected=0):
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
        assert status == expected, complaint

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


DAEMON = """
    import os, signal, sys
    sys.path.insert(0, sys.argv[2])
    import anyio
    from serving import Files
    from truenas_os import fuse

    fuse.init(Files(a=b"content"), sys.argv[1])
    child = os.fork()
    if child:
        print(child, flush=True)
        os._exit(0)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.read(0, 1)  # until the test has seen that the parent has ended
    anyio.run(fuse.main, backend=sys.argv[3])
    fuse.close()
    os._exit(0)
"""


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_daemon_that_is_forked_between_init_and_main_serves(point, loop, number):
    parent = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(DAEMON), point, TESTS, loop],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with parent:
        child = int(parent.stdout.readline())
        daemon = os.pidfd_open(child)
        try:
            assert parent.wait(AMPLE) == 0
            assert is_mounted(point)
            parent.stdin.write("\n")
            parent.stdin.flush()
            assert (point / "a").read_text() == "content"
            wait_until(lambda: len(guards_of(point)) == 1, "the end of the parent's guard")
        finally:
            signal.pidfd_send_signal(daemon, number)
            ended, _, _ = select.select([daemon], [], [], AMPLE)
            os.close(daemon)
    assert ended
    wait_until(lambda: not is_mounted(point), "the end of the mount")


def test_a_daemon_that_dies_before_it_serves_leaves_no_mount(point):
    def child():
        fuse.init(Files(a=b"content"), point)
        in_child(lambda: None)  # one that has the mount, and ends
        assert is_mounted(point)
        os.kill(os.getpid(), signal.SIGKILL)

    in_child(child, signal.SIGKILL)
    wait_until(lambda: not is_mounted(point), "the end of the mount")


KEPT = """
    import os, select, sys
    sys.path.insert(0, sys.argv[2])
    import anyio
    from serving import Files
    from truenas_os import fuse

    fuse.init(Files(a=b"content"), sys.argv[1])
    child = os.fork()
    if child:
        print(child, flush=True)
        anyio.run(fuse.main)
    select.select([], [], [])
"""


def test_a_child_from_between_init_and_main_does_not_keep_the_mount(point):
    program = [sys.executable, "-c", textwrap.dedent(KEPT), point, TESTS]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as server:
        child = os.pidfd_open(int(server.stdout.readline()))
        try:
            assert (point / "a").read_text() == "content"
            server.kill()
            wait_until(lambda: not is_mounted(point), "the end of the mount")
            assert not select.select([child], [], [], 0)[0]
        finally:
            signal.pidfd_send_signal(child, signal.SIGKILL)
            os.close(child)
            server.kill()


@pytest.mark.anyio
async def test_a_child_leaves_to_its_parent_what_it_does_not_serve(point, mount_dir):
    (mount_dir / "other").mkdir()
    await run_sync(fuse.init, Files(a=b"content"), point)
    try:
        for leave in (fuse.close, lambda: fuse.init(Files(), mount_dir / "other")):

            def child(leave=leave):
                refused(fuse.invalidate_inode, 2)
                assert "/dev/fuse" in names()
                own = len(guards())
                leave()
                assert fuse.program._session is None or len(guards()) == own + 1
                fuse.close()
                assert "/dev/fuse" not in names()

            await run_sync(in_child, child)
        assert len(await run_sync(guards_of, point)) == 1
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fuse.main)
            session = fuse.program._session
            assert await client(session, "print(open(top + '/a').read())") == "content"
            fuse.terminate()
    finally:
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
