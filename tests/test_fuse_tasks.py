# SPDX-License-Identifier: LGPL-3.0-or-later
"""How many handlers run at once, and what the rest of the event loop gets to do."""

import os
import socket
import time
from contextvars import ContextVar

import anyio
import kernel
import pytest
from serving import Client, Files, client
from stuck import until
from test_fuse_protocol import message

from truenas_os import fuse
from truenas_os.fuse import wire
from truenas_os.fuse.server import Server
from truenas_os.fuse.wire import Opcode

pytestmark = pytest.mark.anyio


@pytest.fixture
def point(mount_dir):
    path = mount_dir / "fuse"
    path.mkdir()
    return path


class Held(Files):
    """Reads are not answered until they are let go on."""

    def __init__(self, **files):
        super().__init__(**files)
        self.reading = 0
        self.interrupted = []
        self.goes_on = anyio.Event()

    async def read(self, fh, off, size):
        self.reading += 1
        await self.goes_on.wait()
        self.interrupted.append(fuse.current_request().interrupted)
        return await super().read(fh, off, size)


async def queued(session, filesystem, count):
    """A client that is served, alone, and so many others that wait for it."""
    clients = [Client(session, "open(top + '/a').read()")]
    await until(lambda: filesystem.reading, "the one that is served")
    clients += [Client(session, "os.stat(top)") for _ in range(count)]
    await until(lambda: session.stats.queued == count, "those that wait")
    return clients


async def succeed(clients):
    for each in clients:
        _, err = await each.end()
        assert not err


async def test_at_the_limit_the_kernel_is_still_listened_to(point):
    filesystem = Held(a=b"content", b=b"", c=b"")
    async with fuse.mount(filesystem, point, max_tasks=1) as session:
        await client(session, "os.stat(top + '/b'); os.stat(top + '/c')")
        reading = Client(session, "print(open(top + '/a').read())")
        await until(lambda: filesystem.reading, "the one that is served")
        waiting = Client(
            session,
            """
            import signal
            signal.signal(signal.SIGINT, lambda *_: print("signal"))
            print(open(top + "/a", "rb", buffering=0).read(3))
            """,
        )
        await until(lambda: session.stats.queued == 1, "the one that waits")
        assert session.stats.active == 1

        # Nobody waits for these to be taken note of.
        dropping = Client(session, kernel.FORGETTING)
        await dropping.end()
        await until(lambda: not filesystem.lookups[3] and not filesystem.lookups[4], "FORGET")
        waiting.interrupt()
        await until(lambda: session.stats.requests.get("INTERRUPT"), "INTERRUPT")
        assert (session.stats.queued, filesystem.reading) == (1, 1)

        filesystem.goes_on.set()
        out, err = await reading.end()
        assert out == "content\n", err
        out, err = await waiting.end()
        assert "signal" in out, err
        assert session.stats.queued == 0


async def test_who_waits_in_the_queue_fails_when_the_session_ends(point):
    filesystem = Held(a=b"content", b=b"")
    async with fuse.mount(filesystem, point, max_tasks=1, unmount_timeout=0.1) as session:
        reading = Client(session, "open(top + '/a').read()")
        await until(lambda: filesystem.reading, "the one that is served")
        waiting = [Client(session, "os.stat(top + '/b')") for _ in range(5)]
        await until(lambda: session.stats.queued == 5, "those that wait")
    for each in (reading, *waiting):
        _, err = await each.end()
        assert "Error" in err


async def test_a_handler_that_sleeps_does_not_delay_the_others(point):
    filesystem = Held(a=b"content", b=b"")
    async with fuse.mount(filesystem, point) as session:
        reading = Client(session, "open(top + '/a').read()")
        await until(lambda: filesystem.reading, "the one that sleeps")
        out = await client(session, "print(sum(os.stat(top + '/b').st_size for _ in range(300)))")
        assert out == "0"
        assert session.stats.active == 1
        filesystem.goes_on.set()
        await reading.end()


async def test_what_has_waited_in_the_queue_leaves_time_to_other_tasks(point):
    begun = []

    class Busy(Held):
        async def getattr(self, inode, ctx):
            if self.reading:
                begun.append(turns)
                until = time.perf_counter() + 0.002
                while time.perf_counter() < until:
                    pass
            return await super().getattr(inode, ctx)

    turns = 0
    filesystem = Busy(a=b"content")
    async with fuse.mount(filesystem, point, max_tasks=1) as session:
        clients = await queued(session, filesystem, 8)
        filesystem.goes_on.set()
        while session.stats.queued or session.stats.active:
            await anyio.sleep(0)
            turns += 1
        await succeed(clients)
        assert len(set(begun)) >= 8


async def test_what_has_waited_in_the_queue_has_a_context_of_its_own(point):
    variable = ContextVar("variable", default=None)
    found = []

    class Setting(Held):
        async def getattr(self, inode, ctx):
            found.append(variable.get())
            variable.set("of this request")
            await anyio.sleep(0)
            return await super().getattr(inode, ctx)

        async def read(self, fh, off, size):
            variable.set("of this request")
            return await super().read(fh, off, size)

    filesystem = Setting(a=b"content")
    async with fuse.mount(filesystem, point, max_tasks=1) as session:
        clients = await queued(session, filesystem, 3)
        found.clear()
        filesystem.goes_on.set()
        await succeed(clients)
    assert len(found) >= 3 and set(found) == {None}


async def test_a_storm_of_requests_leaves_time_to_other_tasks(point):
    class Busy(Files):
        async def getattr(self, inode, ctx):
            until = time.perf_counter() + 0.0005
            while time.perf_counter() < until:
                pass
            return await super().getattr(inode, ctx)

    async with fuse.mount(Busy(a=b""), point) as session:
        storm = Client(
            session,
            """
            import threading, time
            until = time.monotonic() + 0.5
            def ask():
                while time.monotonic() < until:
                    os.stat(top)
            threads = [threading.Thread(target=ask) for _ in range(16)]
            [t.start() for t in threads]
            """,
        )
        await until(lambda: session.stats.requests.get("GETATTR", 0) > 50, "the storm")
        turns = 0
        ends = time.monotonic() + 0.2
        while time.monotonic() < ends:
            await anyio.sleep(0)
            turns += 1
        # A turn takes a millisecond and the last handler's time, on a machine that has others.
        assert turns > 10
        _, err = await storm.end()
        assert not err


class Stepped:
    """An event loop on which nothing runs before the test says so."""

    def __init__(self):
        self.begun = []
        self.returning = []
        self.spawned = []

    def start(self, handling, done, argument):
        handling.close()
        self.begun.append(argument.unique)
        self.returning.append((done, argument))
        return False

    def spawn(self, function):
        self.spawned.append(function)

    def finish(self):
        done, argument = self.returning.pop(0)
        done(argument)


@pytest.fixture
def stepped():
    """A server with one slot, on such a loop, and where its requests come from."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.setblocking(False)
    with ours, theirs:
        yield Server(Files(), theirs.fileno(), Stepped(), max_tasks=1, grace=0), ours


def getattr_of_the_root(unique):
    return message(Opcode.GETATTR, wire.GETATTR_IN.pack(0, 0), unique=unique)


async def test_who_waits_in_the_queue_is_not_overtaken(stepped):
    server, kernel = stepped
    loop = server._loop
    for unique in (2, 4, 6):
        kernel.send(getattr_of_the_root(unique))
    server.drain()
    assert loop.begun == [2]
    loop.finish()
    # The slot is free, and this one comes before what waits has begun.
    kernel.send(getattr_of_the_root(8))
    server.drain()
    while loop.returning or loop.spawned:
        for function in [loop.spawned.pop() for _ in loop.spawned[:]]:
            await function()
        if loop.returning:
            loop.finish()
    assert loop.begun == [2, 4, 6, 8]
    assert (server.stats.active, server.stats.queued) == (0, 0)


async def test_a_large_request_is_handled_before_the_next_is_taken(stepped):
    server, kernel = stepped
    content = bytes(70_000)
    for unique in (2, 4):
        body = wire.WRITE_IN.pack(1, 0, len(content), 0, 0, 0) + content
        kernel.send(message(Opcode.WRITE, body, unique=unique))
    for count in (1, 2):
        server.drain()
        assert server.stats.requests == {"WRITE": count}


async def test_only_whoever_was_answered_is_expected_to_ask_again(stepped, monkeypatch):
    server, kernel = stepped
    looks = []
    monkeypatch.setattr(os, "sched_yield", lambda: looks.append(server._taken))
    kernel.send(message(Opcode.BMAP, wire.BMAP_IN.pack(1, 512)))  # ENOSYS, without a handler
    server.drain()
    assert looks
    looks.clear()
    kernel.send(getattr_of_the_root(4))
    server.drain()
    assert not looks
