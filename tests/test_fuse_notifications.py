# SPDX-License-Identifier: LGPL-3.0-or-later
"""What a filesystem tells the kernel, from anywhere and at any time."""

import asyncio
import errno
import os
import subprocess
import threading

import anyio
import pytest
from anyio.to_thread import run_sync
from serving import AMPLE, Client, Files, client, error_of, is_mounted
from stuck import until

from truenas_os import fuse
from truenas_os.fuse import notifications, server

pytestmark = pytest.mark.anyio


@pytest.fixture
def point(mount_dir):
    path = mount_dir / "fuse"
    path.mkdir()
    return path


class Cached(Files):
    enable_writeback_cache = False
    session = None

    def attributes(self, inode):
        attr = super().attributes(inode)
        attr.attr_timeout = attr.entry_timeout = 300
        return attr


async def test_handlers_may_invalidate_what_they_are_asked_for(point):
    class Telling(Cached):
        async def lookup(self, parent_inode, name, ctx):
            await self.session.invalidate_entry(1, name)
            await self.session.invalidate_entry(1, b"another")
            return await super().lookup(parent_inode, name, ctx)

        async def read(self, fh, off, size):
            await self.session.invalidate_inode(fh)
            await self.session.notify_store(fh, 0, b"stored")
            return await super().read(fh, off, size)

        async def unlink(self, parent_inode, name, ctx):
            await self.session.invalidate_entry(1, name, self.names[name])
            await super().unlink(parent_inode, name, ctx)

        async def mkdir(self, parent_inode, name, mode, ctx):
            await self.session.invalidate_entry(1, name)
            return self.entry(self.add(name, mode=0o40755))

    filesystem = Telling(a=b"content")
    async with fuse.mount(filesystem, point) as session:
        filesystem.session = session
        out = await client(
            session,
            """
            for _ in range(5):
                print(len(open(top + "/a").read()))
            os.mkdir(top + "/d")
            os.unlink(top + "/a")
            """,
        )
        assert out.split() == ["7"] * 5


@pytest.fixture
def hurry(monkeypatch):
    """Until it is set, no notice that a handler has posted reaches the kernel."""
    hurry = threading.Event()
    write = notifications.Notifier.write

    def write_late(*notice):
        assert hurry.wait(AMPLE)
        write(*notice)

    monkeypatch.setattr(notifications.Notifier, "write", write_late)
    yield hurry
    hurry.set()


@pytest.mark.parametrize("told_by", ["session", "function"])
@pytest.mark.parametrize("fails", [False, True])
async def test_what_a_handler_invalidates_is_forgotten_before_its_reply(
    point, hurry, monkeypatch, told_by, fails
):
    monkeypatch.setattr(server, "_AHEAD", AMPLE)

    class Telling(Cached):
        async def getxattr(self, inode, name, ctx):
            self.inodes[2][0][:] = b"changed"
            del self.names[b"b"]
            if told_by == "session":
                await self.session.invalidate_entry(1, b"b")
                await self.session.invalidate_inode(2)
            else:
                fuse.invalidate_entry(1, b"b")
                fuse.invalidate_inode(2)
            tasks.start_soon(let_through)
            if fails:
                raise fuse.FUSEError(errno.EREMOTEIO)
            return b"value"

    async def let_through():
        await anyio.sleep(0.05)  # in which a reply that does not wait is long there
        hurry.set()

    filesystem = Telling(a=b"content", b=b"")
    async with fuse.mount(filesystem, point) as session, anyio.create_task_group() as tasks:
        filesystem.session = session
        out = await client(
            session,
            """
            assert open(top + "/a").read() == "content" and os.path.exists(top + "/b")
            try:
                print(os.getxattr(top + "/a", "user.x"))
            except OSError as error:
                print(errno.errorcode[error.errno])
            print(open(top + "/a").read(), os.path.exists(top + "/b"))
            """,
        )
    assert out.splitlines() == ["EREMOTEIO" if fails else "b'value'", "changed False"]


async def test_a_reply_does_not_wait_for_what_is_told_at_any_time_nor_for_long(point, hurry):
    class Telling(Cached):
        async def getxattr(self, inode, name, ctx):
            if name == b"user.async":
                fuse.invalidate_entry_async(1, b"b", ignore_enoent=True)
            else:
                fuse.invalidate_entry(1, b"b")
            return b"value"

    async with fuse.mount(Telling(a=b""), point) as session:
        for name in ("async", "sync"):
            ask = f"print(os.getxattr(top + '/a', 'user.{name}'))"
            assert await client(session, ask) == "b'value'"
        assert not hurry.is_set()
        hurry.set()


@pytest.mark.parametrize("context", ["of its own", "of the task that has begun it"])
async def test_a_thread_waits_until_the_kernel_has_forgotten(point, hurry, context):
    await run_sync(fuse.init, Cached(a=b"content"), point)
    begun, ended = threading.Event(), threading.Event()

    def invalidate():
        begun.set()
        fuse.invalidate_inode(77)
        ended.set()

    async def in_thread():
        if context == "of its own":
            invalidating = threading.Thread(target=invalidate)
            invalidating.start()
            await run_sync(invalidating.join)
        else:
            await run_sync(invalidate)

    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fuse.main)
            await until(
                lambda: is_mounted(point) and fuse.program._session._server, "the beginning"
            )
            tasks.start_soon(in_thread)
            await until(begun.is_set, "the thread")
            await anyio.sleep(0.05)
            assert not ended.is_set()
            hurry.set()
            await until(ended.is_set, "the end")
            fuse.terminate()
    finally:
        await run_sync(fuse.close)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_handler_that_is_cancelled_while_its_reply_waits_has_replied(
    point, hurry, monkeypatch
):
    monkeypatch.setattr(server, "_AHEAD", AMPLE)

    class Telling(Cached):
        async def getxattr(self, inode, name, ctx):
            fuse.invalidate_entry(1, b"b")
            asyncio.get_running_loop().call_later(0.01, asyncio.current_task().cancel)
            return b"value"

    async with fuse.mount(Telling(a=b""), point) as session:
        assert await client(session, "print(os.getxattr(top + '/a', 'user.x'))") == "b'value'"
        assert not hurry.is_set()
        hurry.set()


async def test_who_is_no_handler_waits_until_it_is_done(point):
    class Reading(Cached):
        def __init__(self, **files):
            super().__init__(**files)
            self.asked = False
            self.goes_on = anyio.Event()

        async def read(self, fh, off, size):
            self.asked = True
            await self.goes_on.wait()
            return await super().read(fh, off, size)

    filesystem = Reading(a=b"content")
    async with fuse.mount(filesystem, point) as session:
        reading = Client(session, "print(open(top + '/a').read())")
        await until(lambda: filesystem.asked, "the question")
        with anyio.move_on_after(0.1) as scope:
            await session.invalidate_inode(2)
        assert scope.cancelled_caught
        done = []

        async def invalidate(inode):
            await session.invalidate_inode(inode)
            done.append(inode)

        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(invalidate, 2)
            for inode in range(100, 200):
                tasks.start_soon(invalidate, inode)
            # Those of which the kernel knows nothing are not held up by those that wait.
            await until(lambda: len(done) == 100)
            assert 2 not in done
            filesystem.goes_on.set()
        assert len(done) == 120
        out, err = await reading.end()
        assert out == "content\n", err


async def test_a_session_may_end_while_the_kernel_waits(point):
    class Hanging(Cached):
        asked = False

        async def read(self, fh, off, size):
            self.asked = True
            await anyio.sleep_forever()

    filesystem = Hanging(a=b"content")
    ended = []
    async with anyio.create_task_group() as tasks:
        async with fuse.mount(filesystem, point, unmount_timeout=0.2) as session:
            reading = Client(session, "open(top + '/a').read()")
            await until(lambda: filesystem.asked, "the question")

            async def invalidate():
                try:
                    await session.invalidate_inode(2)
                except OSError as error:
                    assert error.errno == errno.ENOTCONN
                ended.append(2)

            for _ in range(100):
                tasks.start_soon(invalidate)
            for _ in range(100):
                session.post(notifications.inval_inode(2, False))
            await anyio.sleep(0.1)
            assert not ended
        with pytest.raises(OSError, match="not connected"):
            await session.invalidate_inode(2)
        with pytest.raises(OSError, match="not connected"):
            session.post(notifications.inval_inode(2, False))
    assert len(ended) == 100
    _, err = await reading.end()
    assert "Error" in err


async def test_what_the_kernel_does_not_know_counts_as_done(point, caplog):
    async with fuse.mount(Files(), point) as session:
        await session.invalidate_inode(77)
        await session.invalidate_entry(77, b"a")
        await session.invalidate_entry(1, b"a", 5)
        await session.expire_entry(1, b"a")
        await session.notify_store(77, 0, b"x")
        with pytest.raises(FileNotFoundError):
            await session.notify_retrieve(77, 0, 1)
        session.post(notifications.inval_entry(77, b"a"))
        session.post(notifications.inval_entry(77, b"b"), False)
        await until(lambda: caplog.records, "a complaint")
    (record,) = caplog.records
    assert "No such file" in record.getMessage()


async def test_no_more_is_kept_waiting_than_there_is_room_for(point, monkeypatch):
    monkeypatch.setattr(notifications, "_POSTED", 10)
    monkeypatch.setattr(notifications, "_POSTED_BYTES", 1000)

    class Hanging(Cached):
        asked = False

        async def read(self, fh, off, size):
            self.asked = True
            await anyio.sleep_forever()

    filesystem = Hanging(a=b"content")
    async with fuse.mount(filesystem, point, unmount_timeout=0.1) as session:
        reading = Client(session, "open(top + '/a').read()")
        await until(lambda: filesystem.asked, "the question")
        session.post(notifications.inval_inode(2, False))
        notifier = session._server.notifier
        await until(lambda: notifier._queue.empty(), "the thread")
        with pytest.raises(OSError) as full:
            session.post(notifications.store(2, 0, bytes(1000)))
        assert full.value.errno == errno.ENOBUFS
        with pytest.raises(OSError) as full:
            for _ in range(11):
                session.post(notifications.inval_inode(2, False))
        assert full.value.errno == errno.ENOBUFS
    await reading.end()


async def test_many_are_told_at_once(point):
    filesystem = Cached(**{f"file{n}": b"old" for n in range(300)})
    async with fuse.mount(filesystem, point) as session:
        read = """
            print({open(top + "/" + name).read() for name in os.listdir(top)})
            """
        assert await client(session, read) == "{'old'}"
        for inode in filesystem.inodes.values():
            inode[0][:] = b"new"
        async with anyio.create_task_group() as tasks:
            for inode in filesystem.inodes:
                tasks.start_soon(session.invalidate_inode, inode)
        assert await client(session, read) == "{'new'}"
        for inode in filesystem.inodes.values():
            inode[0][:] = b"3rd"
        for inode in filesystem.inodes:
            session.post(notifications.inval_inode(inode, False))
        await until(session._server.notifier._queue.empty, "the last one")
        await session.invalidate_inode(2)
        assert await client(session, read) == "{'3rd'}"


async def test_who_has_open_what_was_deleted_sees_it_without_links(point):
    filesystem = Cached(a=b"")
    async with fuse.mount(filesystem, point) as session:
        using = Client(
            session,
            """
            file = open(top + "/a")
            print(os.fstat(file.fileno()).st_nlink, flush=True)
            sys.stdin.readline()
            print(os.fstat(file.fileno()).st_nlink)
            """,
            stdin=subprocess.PIPE,
        )
        await anyio.to_thread.run_sync(using.process.stdout.readline)
        del filesystem.names[b"a"]
        await session.invalidate_entry(1, b"a", 2)
        using.process.stdin.write("\n")
        out, err = await using.end()
        assert out == "0\n", err
        assert await error_of(session, "os.stat(top + '/a')") == "ENOENT"


async def test_who_asks_for_what_is_cached_when_the_session_ends_gets_an_error(point):
    async with fuse.mount(Files(a=b"content"), point) as session:
        notifier = session._server.notifier

        async def retrieve():
            with pytest.raises(OSError) as caught:
                await session.notify_retrieve(2, 0, 10)
            errors.append(caught.value.errno)

        errors = []
        # The kernel's answer does not come.
        notifier.write = lambda *_: None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(retrieve)
            await until(lambda: notifier._retrievals, "the question")
            await session.aclose()
    assert errors == [errno.ENOTCONN]


async def test_what_is_stored_is_retrieved(point):
    content = os.urandom(300_000)
    async with fuse.mount(Cached(a=bytes(300_000)), point) as session:
        await client(session, "os.stat(top + '/a')")
        await session.notify_store(2, 0, content)
        found = await session.notify_retrieve(2, 4096, 1 << 20)
        assert found and content[4096:].startswith(found[: len(content) - 4096])
        out = await client(
            session, "import hashlib; print(hashlib.md5(open(top + '/a', 'rb').read()).hexdigest())"
        )
        import hashlib

        assert out == hashlib.md5(content).hexdigest()
        with anyio.fail_after(AMPLE):
            assert await session.notify_retrieve(2, 1 << 40, 10) == b""
