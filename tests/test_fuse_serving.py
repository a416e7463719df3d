# SPDX-License-Identifier: LGPL-3.0-or-later
"""A filesystem served on each event loop, with clients in other processes."""

import asyncio
import errno
import logging
import os
import re
import select
import stat
import subprocess

import anyio
import kernel
import pytest
from filesystems import needs_root
from serving import Client, Files, client, error_of
from stuck import until

from truenas_os import fuse
from truenas_os.fuse.wire import InitFlag

pytestmark = pytest.mark.anyio


@pytest.fixture
def point(mount_dir):
    path = mount_dir / "fuse"
    path.mkdir()
    return path


async def test_a_program_writes_reads_lists_and_removes(point):
    async with fuse.mount(Files(a=b"content"), point) as session:
        out = await client(
            session,
            """
            assert open(top + "/a").read() == "content"
            with open(top + "/b", "wb") as file:
                file.write(bytes(range(256)) * 20000)
            assert open(top + "/b", "rb").read() == bytes(range(256)) * 20000
            assert sorted(os.listdir(top)) == ["a", "b"]
            os.truncate(top + "/b", 10)
            assert os.stat(top + "/b").st_size == 10
            os.unlink(top + "/a")
            print(os.listdir(top), oct(os.stat(top + "/b").st_mode))
            """,
        )
    assert out == "['b'] 0o100644"


async def test_a_filesystem_without_handlers_mounts_and_tells_what_it_cannot(point):
    async with fuse.mount(fuse.Operations(), point) as session:
        assert await error_of(session, "os.stat(top)") == "ENOSYS"
        assert await error_of(session, "os.listdir(top)") == "ENOSYS"
        assert await error_of(session, "os.mkdir(top + '/a')") == "ENOSYS"
        assert session.features.protocol[0] == 7


async def test_the_state_of_a_filesystem_that_does_not_tell_it(point):
    async with fuse.mount(fuse.Operations(), point) as session:
        assert (
            await client(session, "s = os.statvfs(top); print(s.f_blocks, s.f_namemax)") == "0 255"
        )
    async with fuse.mount(Files(), point):
        done = await anyio.run_process(["df", "--output=size,target", point])
        assert done.stdout.split()[-2:] == [b"0", str(point).encode()]


async def test_only_what_is_implemented_is_negotiated(point):
    async with fuse.mount(fuse.Operations(), point) as session:
        flags = session.features.flags
        assert flags & (InitFlag.NO_OPEN_SUPPORT | InitFlag.NO_OPENDIR_SUPPORT)
        never = InitFlag.ATOMIC_O_TRUNC | InitFlag.READDIRPLUS_AUTO
        for flag in (
            InitFlag.POSIX_LOCKS,
            InitFlag.FLOCK_LOCKS,
            InitFlag.DO_READDIRPLUS,
            InitFlag.WRITEBACK_CACHE,
        ):
            never |= flag
        assert not flags & never
    async with fuse.mount(Files(), point) as session:
        flags = session.features.flags
        assert flags & InitFlag.DO_READDIRPLUS
        assert flags & InitFlag.WRITEBACK_CACHE
        assert not flags & (
            InitFlag.NO_OPEN_SUPPORT | InitFlag.READDIRPLUS_AUTO | InitFlag.ATOMIC_O_TRUNC
        )


@pytest.mark.parametrize(
    ("raised", "reported", "logged"),
    [
        (fuse.FUSEError(errno.EDQUOT), "EDQUOT", False),
        (OSError(errno.ENXIO, "text"), "ENXIO", False),
        (OSError("no errno"), "EIO", True),
        (fuse.FUSEError(0), "EIO", True),
        (fuse.FUSEError(-5), "EIO", True),
        (fuse.FUSEError(512), "EIO", True),
        (OSError("cannot read", "a"), "EIO", True),
        (OSError(2.5, "text"), "EIO", True),
        (ZeroDivisionError("unexpected"), "EIO", True),
    ],
    ids=repr,
)
async def test_what_a_handler_raises_fails_the_call_and_not_the_server(
    point, caplog, raised, reported, logged
):
    class Failing(Files):
        async def lookup(self, parent_inode, name, ctx):
            raise raised

    async with fuse.mount(Failing(), point) as session:
        assert await error_of(session, "os.stat(top + '/a')") == reported
        assert await error_of(session, "os.stat(top + '/a')") == reported
    assert bool(caplog.records) == logged
    if logged:
        assert caplog.records[0].exc_info[1] is raised


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_handler_that_somebody_cancels_fails_the_call_and_is_logged(point, caplog):
    class Failing(Files):
        async def lookup(self, parent_inode, name, ctx):
            raise asyncio.CancelledError

    async with fuse.mount(Failing(), point) as session:
        assert await error_of(session, "os.stat(top + '/a')") == "EIO"
    assert "LOOKUP" in caplog.records[0].getMessage()
    assert caplog.records[0].exc_info[0] is asyncio.CancelledError


@pytest.mark.parametrize("suspends", [False, True], ids=["at once", "later"])
async def test_a_reply_that_the_kernel_would_refuse_is_an_error_of_the_call(
    point, caplog, suspends
):
    class Wrong(Files):
        async def read(self, fh, off, size):
            if suspends:
                await anyio.sleep(0)
            return bytes(size + 1)

        async def lookup(self, parent_inode, name, ctx):
            attr = await super().lookup(parent_inode, name, ctx)
            if name == b"typeless":
                attr.st_mode = 0o644
            if name == b"huge":
                attr.st_size = 1 << 63
            return attr

        async def mkdir(self, parent_inode, name, mode, ctx):
            return self.entry(self.add(name))

        async def readdir(self, fh, start_id, token):
            fuse.readdir_reply(token, b"a/b", self.attributes(2), 1)

    filesystem = Wrong(a=b"content", typeless=b"", huge=b"")
    async with fuse.mount(filesystem, point) as session:
        assert await error_of(session, "open(top + '/a').read()") == "EIO"
        assert await error_of(session, "os.stat(top + '/typeless')") == "EIO"
        assert await error_of(session, "os.stat(top + '/huge')") == "EIO"
        assert await error_of(session, "os.mkdir(top + '/d')") == "EIO"
        assert await error_of(session, "os.listdir(top)") == "EIO"
        # The lookups that the kernel has not heard of are taken back.
        assert [filesystem.lookups[i] for name, i in filesystem.names.items() if name != b"a"] == [
            0,
            0,
            0,
        ]
    assert all(record.levelno == logging.ERROR for record in caplog.records)
    assert len(caplog.records) >= 5


async def test_an_inode_keeps_its_type_while_it_is_known(point, caplog):
    class Fickle(Files):
        async def unlink(self, parent_inode, name, ctx):
            for inode in self.inodes.values():
                inode[1] = stat.S_IFIFO | 0o644

    filesystem = Fickle(a=b"content", b=b"", c=b"")
    async with fuse.mount(filesystem, point) as session:
        out = await client(
            session,
            """
            fds = [os.open(top + "/" + name, os.O_PATH) for name in "ab"]
            os.unlink(top + "/c")
            for call in os.stat, lambda fd: os.chmod(f"/proc/self/fd/{fd}", 0o600):
                try:
                    call(fds.pop())
                except OSError as error:
                    print(errno.errorcode[error.errno])
            """,
        )
        assert out.split() == ["EIO", "EIO"]
        for inode in 2, 3:
            assert f"the type of inode {inode} has changed, from 0o10 to 0o1" in caplog.text
        # A number that was forgotten may become that of anything.
        await client(session, kernel.FORGETTING)
        await until(lambda: not any(filesystem.lookups.values()), "a count of 0 for every inode")
        out = await client(
            session, "import stat; print(stat.S_ISFIFO(os.stat(top + '/a').st_mode))"
        )
        assert out == "True"


async def test_the_kernel_forgets_what_was_looked_up(point):
    filesystem = Files(**{f"file{n}": b"" for n in range(300)})
    async with fuse.mount(filesystem, point) as session:
        await client(
            session,
            """
            for _ in range(3):
                for entry in os.scandir(top):
                    entry.stat()
            open(top + "/new", "w").close()
            """,
        )
        assert sum(filesystem.lookups.values()) >= 301
        await client(session, kernel.FORGETTING)
        await until(lambda: not any(filesystem.lookups.values()), "a count of 0 for every inode")


@needs_root
async def test_a_request_tells_who_makes_it(point):
    seen = []

    class Asked(Files):
        async def mknod(self, parent_inode, name, mode, rdev, ctx):
            request = fuse.current_request()
            seen.append((ctx, request.nodeid, request.pid, request.opcode, rdev, mode))
            await anyio.sleep(0.01)
            assert fuse.current_request() is request
            return self.entry(self.add(name, mode=mode))

        async def release(self, fh):
            request = fuse.current_request()
            seen.append((request.fh, request.flags & os.O_ACCMODE))

    async with fuse.mount(Asked(), point, default_permissions=False) as session:
        out = await client(
            session,
            """
            os.umask(0o027)
            os.mknod(top + "/null", 0o020666, os.makedev(1, 3))
            open(top + "/file", "w").close()
            print(os.getpid())
            """,
        )
        await until(lambda: len(seen) == 2, "the release")
    ctx, nodeid, pid, opcode, rdev, mode = seen[0]
    assert (ctx.uid, ctx.gid, ctx.pid, ctx.umask) == (0, 0, int(out), 0o027)
    assert (nodeid, pid, opcode, rdev) == (1, int(out), 8, os.makedev(1, 3))
    assert mode == stat.S_IFCHR | 0o640
    assert seen[1] == (3, os.O_WRONLY)
    with pytest.raises(LookupError):
        fuse.current_request()


@pytest.mark.parametrize("acl", [False, True])
async def test_the_umask_is_applied_and_with_acls_the_mode_before_it_is_told(point, acl):
    seen = []

    class Asked(Files):
        enable_acl = acl

        def made(self, name, mode, ctx):
            seen.append((oct(mode), oct(fuse.current_request().mode), oct(ctx.umask)))
            return self.entry(self.add(name, mode=mode))

        async def mknod(self, parent_inode, name, mode, rdev, ctx):
            return self.made(name, mode, ctx)

        async def mkdir(self, parent_inode, name, mode, ctx):
            return self.made(name, stat.S_IFDIR | mode, ctx)

        async def create(self, parent_inode, name, mode, flags, ctx):
            attr = self.made(name, mode, ctx)
            return fuse.FileInfo(fh=attr.st_ino), attr

        async def getxattr(self, inode, name, ctx):
            raise fuse.FUSEError(fuse.ENOATTR)

    async with fuse.mount(Asked(), point) as session:
        await client(
            session,
            """
            os.umask(0o027)
            os.mknod(top + "/fifo", 0o010666)
            os.mkdir(top + "/directory", 0o777)
            os.close(os.open(top + "/file", os.O_CREAT | os.O_WRONLY, 0o666))
            """,
        )
    whole = ["0o10666", "0o777", "0o100666"] if acl else ["0o10640", "0o750", "0o100640"]
    masked = ["0o10640", "0o40750", "0o100640"]
    assert seen == [(mode, asked, "0o27") for mode, asked in zip(masked, whole, strict=True)]


async def test_a_lock_that_waits_is_interrupted_and_other_handlers_are_not(point):
    class Locked(Files):
        begun = interrupted = False
        requests = ()

        async def flock(self, fh, owner, operation, ctx):
            self.begun = True
            await anyio.sleep_forever()

        async def unlink(self, parent_inode, name, ctx):
            request = fuse.current_request()
            self.requests = [request]
            while not request.interrupted:
                await anyio.sleep(0.005)
            await super().unlink(parent_inode, name, ctx)

    handling = "import signal; signal.signal(signal.SIGINT, lambda *_: 1 // 0)\n"
    filesystem = Locked(a=b"content")
    async with fuse.mount(filesystem, point) as session:
        locking = Client(
            session,
            handling
            + "import fcntl\n"
            + "file = open(top + '/a')\n"
            + "try: fcntl.flock(file, fcntl.LOCK_EX)\n"
            + "except ZeroDivisionError: print('interrupted')",
        )
        await until(lambda: filesystem.begun, "the lock")
        locking.interrupt()
        out, err = await locking.end()
        assert out == "interrupted\n", err

        asking = Client(session, handling + "os.unlink(top + '/a')")
        await until(lambda: filesystem.requests, "the question")
        asking.interrupt()
        out, err = await asking.end()
        assert "ZeroDivisionError" in err
        assert not filesystem.names


async def test_a_lock_that_is_given_back_or_does_not_wait_is_not_interrupted(point):
    class Slow(Files):
        requests = ()

        async def lock(self):
            request = fuse.current_request()
            self.requests = [*self.requests, request]
            while not request.interrupted:
                await anyio.sleep(0.005)

        async def flock(self, fh, owner, operation, ctx):
            await self.lock()

        async def getlk(self, fh, owner, lock, ctx):
            return lock

        async def setlk(self, fh, owner, lock, sleep, ctx):
            await self.lock()

    filesystem = Slow(a=b"")
    async with fuse.mount(filesystem, point) as session:
        locking = Client(
            session,
            """
            import fcntl, signal
            signal.signal(signal.SIGINT, lambda *_: None)
            file = open(top + "/a", "r+")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(file, fcntl.LOCK_UN)
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.lockf(file, fcntl.LOCK_UN)
            os._exit(0)
            """,
        )
        for number in range(1, 5):
            await until(lambda: len(filesystem.requests) >= number, "a lock")
            locking.interrupt()
            await until(lambda: filesystem.requests[number - 1].answered, "the reply")
        _, err = await locking.end()
        assert locking.process.returncode == 0, err


async def test_a_handler_that_is_declared_interruptible_is_cancelled_by_a_signal(point):
    class Interruptible(Files):
        interruptible = frozenset(("readlink",))
        asked = False

        async def readlink(self, inode, ctx):
            self.asked = True
            await anyio.sleep_forever()

    filesystem = Interruptible()
    filesystem.add(b"link", mode=stat.S_IFLNK | 0o777)
    async with fuse.mount(filesystem, point) as session:
        reading = Client(
            session,
            """
            import signal
            signal.signal(signal.SIGINT, lambda *_: 1 // 0)
            os.readlink(top + "/link")
            """,
        )
        await until(lambda: filesystem.asked, "the question")
        reading.interrupt()
        _, err = await reading.end()
        assert "ZeroDivisionError" in err
        assert not session.stats.active


async def test_no_more_handlers_run_than_are_allowed_and_locks_hold_no_place(point):
    class Slow(Files):
        now = most = waiting = 0

        async def flock(self, fh, owner, operation, ctx):
            self.waiting += 1
            await anyio.sleep_forever()

        async def read(self, fh, off, size):
            self.now += 1
            self.most = max(self.most, self.now)
            await anyio.sleep(0.01)
            self.now -= 1
            return b"content"

    filesystem = Slow(**dict.fromkeys("abcdefgh", b"content"))
    async with fuse.mount(filesystem, point, max_tasks=2, unmount_timeout=0.2) as session:
        locks = [
            Client(session, "import fcntl; fcntl.flock(open(top + '/a'), fcntl.LOCK_EX)")
            for _ in range(3)
        ]
        await until(lambda: filesystem.waiting == 3, "three locks")
        await client(
            session,
            """
            for name in "abcdefgh":
                if os.fork() == 0:
                    assert open(top + "/" + name).read() == "content"
                    os._exit(0)
            for name in "abcdefgh":
                assert os.wait()[1] == 0
            """,
        )
        assert filesystem.most == 2
        for lock in locks:
            lock.process.terminate()
            await lock.end()


async def test_setting_fuse_stacktrace_calls_stacktrace_even_without_setxattr(point, caplog):
    class Waiting(Files):
        async def readlink(self, inode, ctx):
            await self.wait_for_something()

        async def wait_for_something(self):
            await anyio.sleep_forever()

    filesystem = Waiting(a=b"")
    filesystem.add(b"link", mode=stat.S_IFLNK | 0o777)
    async with fuse.mount(filesystem, point, unmount_timeout=0.1) as session:
        waiting = Client(session, "os.readlink(top + '/link')")
        await until(lambda: session.stats.requests.get("READLINK"), "the question")
        for _ in range(2):
            assert await error_of(session, "os.setxattr(top + '/a', 'user.x', b'')") == "ENOTSUP"
            await client(session, "os.setxattr(top, 'fuse_stacktrace', b'1')")
    await waiting.end()
    assert len(caplog.records) == 2
    text = caplog.records[0].getMessage()
    assert "thread MainThread" in text
    # The one handler that waits, with every call on the way.
    (handler,) = [part for part in re.split("^handler ", text, flags=re.M) if "readlink" in part]
    assert "in readlink\n    await self.wait_for_something()" in handler
    assert "in wait_for_something\n    await anyio.sleep_forever()" in handler


async def test_extended_attributes(point):
    class WithAttributes(Files):
        def __init__(self, **files):
            super().__init__(**files)
            self.values = {}

        async def setxattr(self, inode, name, value, ctx):
            self.values[name] = value

        async def getxattr(self, inode, name, ctx):
            try:
                return self.values[name]
            except KeyError:
                raise fuse.FUSEError(fuse.ENOATTR) from None

        async def listxattr(self, inode, ctx):
            return list(self.values)

        async def removexattr(self, inode, name, ctx):
            del self.values[name]

    async with fuse.mount(WithAttributes(a=b""), point) as session:
        out = await client(
            session,
            """
            path = top + "/a"
            os.setxattr(path, "user.x", b"1" * 5000)
            assert os.getxattr(path, "user.x") == b"1" * 5000
            try:
                os.setxattr(path, "user.x", b"2", os.XATTR_CREATE)
            except FileExistsError:
                print("exists")
            os.setxattr(path, "user.x", b"3", os.XATTR_REPLACE)
            try:
                os.setxattr(path, "user.y", b"2", os.XATTR_REPLACE)
            except OSError as error:
                print(errno.errorcode[error.errno])
            os.setxattr(path, "user.y", b"", os.XATTR_CREATE)
            print(os.listxattr(path), os.getxattr(path, "user.x"))
            os.removexattr(path, "user.x")
            print(os.listxattr(path))
            """,
        )
    assert out.split("\n") == ["exists", "ENODATA", "['user.x', 'user.y'] b'3'", "['user.y']"]


@pytest.mark.parametrize("writeback", [False, True])
async def test_what_the_kernel_has_not_written_yet_is_not_taken_for_a_hole(point, writeback):
    class Sparse(Files):
        enable_writeback_cache = writeback
        asked = 0

        async def lseek(self, fh, off, whence, ctx):
            self.asked += 1
            size = len(self.inodes[fh][0])
            if off >= size:
                raise fuse.FUSEError(errno.ENXIO)
            return off if whence == os.SEEK_DATA else size

    filesystem = Sparse(a=b"")
    async with fuse.mount(filesystem, point) as session:
        out = await client(
            session,
            """
            fd = os.open(top + "/a", os.O_RDWR)
            os.write(fd, b"content")
            print(os.lseek(fd, 0, os.SEEK_DATA), os.lseek(fd, 0, os.SEEK_HOLE))
            """,
        )
    assert out == "0 7"
    assert filesystem.asked == (0 if writeback else 2)


class Ready(Files):
    handle = None
    ready = None

    async def poll(self, fh, poll_handle, ctx):
        self.handle = poll_handle or self.handle
        return self.ready


class ReadyInode(Ready):
    async def poll(self, inode, fh, poll_handle, ctx):
        assert inode == fh == 2
        return await super().poll(fh, poll_handle, ctx)


@pytest.mark.parametrize("kind", [Ready, ReadyInode])
async def test_who_polls_is_woken(point, kind):
    filesystem = kind(a=b"")
    async with fuse.mount(filesystem, point) as session:
        polling = Client(
            session,
            """
            import select
            poll = select.poll()
            file = open(top + "/a")
            poll.register(file, select.POLLIN)
            print([event for fd, event in poll.poll()])
            """,
        )
        await until(lambda: filesystem.handle, "the question")
        await anyio.sleep(0.05)
        filesystem.ready = select.POLLIN
        filesystem.handle.notify()
        out, err = await polling.end()
        assert out == f"[{select.POLLIN}]\n", err


async def test_the_caches_of_the_kernel_are_invalidated(point):
    class Cached(Files):
        def attributes(self, inode):
            attr = super().attributes(inode)
            attr.attr_timeout = attr.entry_timeout = 300
            return attr

    filesystem = Cached(a=b"one")
    filesystem.enable_writeback_cache = False
    async with fuse.mount(filesystem, point) as session:
        read = "print(open(top + '/a').read())"
        assert await client(session, read) == "one"
        filesystem.inodes[2][0][:] = b"two"
        assert await client(session, read) == "one"
        await session.invalidate_inode(2)
        assert await client(session, read) == "two"
        await session.notify_store(2, 0, b"3" * 4096)
        assert await session.notify_retrieve(2, 0, 10) == b"3" * 10
        del filesystem.names[b"a"]
        assert await client(session, "print(len(open(top + '/a').read()))") in ("3", "4096")
        await session.invalidate_entry(1, b"a")
        assert await error_of(session, "open(top + '/a')") == "ENOENT"
        await session.invalidate_entry(1, b"unknown")


async def test_the_kernel_forgets_inodes_that_nobody_uses(point):
    filesystem = Files(**dict.fromkeys("abc", b"content"))
    async with fuse.mount(filesystem, point) as session:
        if session.features.protocol < (7, 45):
            pytest.skip("needs Linux 6.18")
        using = Client(
            session,
            """
            file = open(top + "/a")
            os.listdir(top)
            print("open", flush=True)
            sys.stdin.read()
            """,
            stdin=subprocess.PIPE,
        )
        await anyio.to_thread.run_sync(using.process.stdout.readline)
        assert all(filesystem.lookups.values())
        await session.prune([2, 3, 4, 5])
        await until(lambda: not (filesystem.lookups[3] or filesystem.lookups[4]), "the end")
        assert filesystem.lookups[2]
        await using.end()


async def test_a_handler_has_the_kernel_forget_without_naming_its_session(point):
    class Changing(Files):
        enable_writeback_cache = False

        def attributes(self, inode):
            attr = super().attributes(inode)
            attr.attr_timeout = attr.entry_timeout = 300
            return attr

        async def getxattr(self, inode, name, ctx):
            self.inodes[2][0][:] = b"changed"
            del self.names[b"b"]
            fuse.invalidate_inode(2)
            fuse.invalidate_entry_async(1, b"b", ignore_enoent=True)
            return b"done"

    async with fuse.mount(Changing(a=b"content", b=b""), point) as session:
        out = await client(
            session,
            """
            import time
            assert open(top + "/a").read() == "content"
            assert os.path.exists(top + "/b")
            os.getxattr(top + "/a", "user.x")
            while open(top + "/a").read() != "changed" or os.path.exists(top + "/b"):
                time.sleep(0.001)
            print("seen")
            """,
        )
    assert out == "seen"
    with pytest.raises(RuntimeError, match="init"):
        fuse.invalidate_inode(2)


async def test_a_directory_that_is_made_has_the_mode_of_one(point):
    class Directories(Files):
        async def mkdir(self, parent_inode, name, mode, ctx):
            return self.entry(self.add(name, mode=mode))

    async with fuse.mount(Directories(), point) as session:
        make = "os.umask(0o27); os.mkdir(top + '/d', 0o1777); print(os.stat(top + '/d').st_mode)"
        assert int(await client(session, make)) == stat.S_IFDIR | 0o1750


async def test_several_sessions_have_one_loop(mount_dir):
    (mount_dir / "1").mkdir()
    (mount_dir / "2").mkdir()
    async with (
        fuse.mount(Files(a=b"one"), mount_dir / "1", fsname="one") as one,
        fuse.mount(Files(a=b"two"), mount_dir / "2", subtype="two") as two,
    ):
        assert await client(one, "print(open(top + '/a').read())") == "one"
        assert await client(two, "print(open(top + '/a').read())") == "two"
        assert one.stats.requests["READ"] >= 1
        assert one.stats.requests is not two.stats.requests


@pytest.mark.parametrize("how", ["option", "level", "neither"])
async def test_debug_logs_each_request_with_its_reply_and_time(point, caplog, how):
    class Some(Files):
        async def rmdir(self, parent_inode, name, ctx):
            raise fuse.FUSEError(errno.ENOTEMPTY)

    caplog.set_level(logging.DEBUG if how == "level" else logging.INFO, "truenas_os.fuse")
    options = {"debug": True} if how == "option" else {}
    operations = Some(a=b"content")
    operations.add(b"d", mode=stat.S_IFDIR | 0o755)
    async with fuse.mount(operations, point, **options) as session:
        assert await error_of(session, "open(top + '/a').read(), os.rmdir(top + '/d')")
        await session.invalidate_entry(1, b"a")
        await until(lambda: not operations.lookups[2], "the end")
        requests = sum(session.stats.requests.values())
    lines = [record.getMessage() for record in caplog.records]
    if how == "neither":
        assert lines == []
        return
    form = re.compile(r"([A-Z_0-9]+) \d+ of inode \d+( b'.*')? from process \d+: (.*), \d+\.\d+ ms")
    told = [form.fullmatch(line).groups() for line in lines]
    assert {("LOOKUP", " b'a'", "128 bytes"), ("READ", None, "7 bytes")} <= {*told}
    assert ("RMDIR", " b'd'", "ENOTEMPTY") in told
    assert {("FORGET", None, "no reply"), ("BATCH_FORGET", None, "no reply")} & {*told}
    assert len(told) >= requests
