# SPDX-License-Identifier: LGPL-3.0-or-later
"""What the kernel offers besides: idmapped mounts, resending, expiry, readahead."""

import errno
import logging
import os
import select
import stat
from pathlib import Path

import anyio
import kernel
import pytest
from filesystems import needs_root
from serving import AMPLE, Client, Files, client, is_mounted
from stuck import until

from truenas_os import IdmapMapping, bind, fuse
from truenas_os.fuse import negotiation
from truenas_os.fuse.wire import InitFlag

pytestmark = pytest.mark.anyio


@pytest.fixture
def point(mount_dir):
    path = mount_dir / "fuse"
    path.mkdir()
    return path


def lookups(session):
    return session.stats.requests.get("LOOKUP", 0)


# Idmapped mounts.

IDS = [IdmapMapping(0, 100000, 65536)]


class Owned(Files):
    """Files that belong to who has made them."""

    enable_idmap = True

    def __init__(self, **files):
        super().__init__(**files)
        self.owners = {}
        self.asked = {}

    def attributes(self, inode):
        attr = super().attributes(inode)
        attr.st_uid, attr.st_gid = self.owners.get(inode, (5, 6))
        return attr

    async def lookup(self, parent_inode, name, ctx):
        self.asked["lookup"] = ctx[:2]
        return await super().lookup(parent_inode, name, ctx)

    async def create(self, parent_inode, name, mode, flags, ctx):
        made = await super().create(parent_inode, name, mode, flags, ctx)
        self.owners[self.names[name]] = ctx[:2]
        return made[0], self.attributes(self.names[name])

    async def mkdir(self, parent_inode, name, mode, ctx):
        inode = self.add(name, mode=mode | stat.S_IFDIR)
        self.owners[inode] = ctx[:2]
        return self.entry(inode)

    async def setattr(self, inode, attr, fields, fh, ctx):
        self.owners[inode] = attr.st_uid, attr.st_gid
        return self.attributes(inode)


_OWNERS = """
    os.chdir(sys.argv[2])
    def owner(name):
        found = os.stat(name)
        print(found.st_uid, found.st_gid)
    owner("a")
    os.setegid(100007)
    os.seteuid(100008)
    os.close(os.open("new", os.O_CREAT | os.O_EXCL))
    os.mkdir("dir")
    owner("new")
    owner("dir")
    os.seteuid(0)
    os.chown("a", 100009, 100010)
    owner("a")
"""


@needs_root
async def test_an_idmapped_mount_shows_and_takes_other_owners(point, mount_dir):
    target = mount_dir / "bound"
    target.mkdir()
    filesystem = Owned(a=b"")
    async with fuse.mount(filesystem, point, allow_other=True) as session:
        assert session.features.flags & InitFlag.ALLOW_IDMAP
        async with bind(point, target, idmap=(IDS, IDS)):
            out = await client(session, _OWNERS, target)
            assert out.split("\n") == ["100005 100006", *["100008 100007"] * 2, "100009 100010"]
        names = filesystem.names
        owners = [filesystem.owners[names[name]] for name in (b"a", b"new", b"dir")]
        assert owners == [(9, 10), (8, 7), (8, 7)]
        assert filesystem.asked["lookup"] == (0xFFFFFFFF, 0xFFFFFFFF)
        # Where nothing is mapped, too, nobody else is told.
        await client(session, "os.stat(top + '/a')")
        assert filesystem.asked["lookup"] == (0xFFFFFFFF, 0xFFFFFFFF)


@needs_root
async def test_who_has_not_asked_for_it_is_told_who_asks_and_is_not_idmapped(point, mount_dir):
    target = mount_dir / "bound"
    target.mkdir()
    filesystem = Owned(a=b"")
    filesystem.enable_idmap = False
    async with fuse.mount(filesystem, point) as session:
        with pytest.raises(OSError) as refused:
            async with bind(point, target, idmap=(IDS, IDS)):
                pass
        assert refused.value.errno == errno.EINVAL
        await client(session, "os.stat(top + '/a')")
        assert filesystem.asked["lookup"] == (0, 0)


# Expiry.


class Kept(Files):
    """The kernel keeps what it has been told."""

    enable_writeback_cache = False

    def attributes(self, inode):
        attr = super().attributes(inode)
        attr.attr_timeout = attr.entry_timeout = 300
        return attr


async def test_an_expired_entry_is_looked_up_and_keeps_what_is_mounted_on_it(point):
    filesystem = Kept(a=b"old", b=b"new")
    filesystem.add(b"d", mode=stat.S_IFDIR | 0o755)
    async with fuse.mount(filesystem, point) as session:
        await client(
            session,
            """
            import subprocess
            subprocess.run(["mount", "-t", "tmpfs", "none", top + "/d"], check=True)
            """,
        )
        read = "print(open(top + '/a').read())"
        assert await client(session, read) == "old"
        before = lookups(session)
        filesystem.names[b"a"] = filesystem.names[b"b"]
        assert await client(session, read) == "old"
        assert lookups(session) == before
        await session.expire_entry(1, b"a")
        await session.expire_entry(1, b"d")
        assert lookups(session) == before
        assert await client(session, read) == "new"
        before = lookups(session)
        assert await client(session, "print(os.listdir(top + '/d'))") == "[]"
        assert lookups(session) > before
        assert is_mounted(point / "d")
        # Which is what makes the difference.
        await session.invalidate_entry(1, b"d")
        assert not is_mounted(point / "d")


# Resending.


class Slow(Files):
    """Takes its time to look up what it is asked for."""

    def __init__(self, **files):
        super().__init__(**files)
        self.begun = []
        self.go_on = anyio.Event()
        self.session = None

    async def lookup(self, parent_inode, name, ctx):
        self.begun.append(name)
        if name == b"itself":
            await self.session.resend()
        else:
            await self.go_on.wait()
        return await super().lookup(parent_inode, name, ctx)


async def test_a_request_that_is_sent_again_while_it_is_served_is_served_once(point):
    filesystem = Slow(a=b"", b=b"", c=b"", itself=b"")
    async with fuse.mount(filesystem, point, max_tasks=1) as session:
        filesystem.session = session
        looking = [Client(session, f"os.stat(top + '/{name}')") for name in "abc"]
        await until(lambda: filesystem.begun and session.stats.queued == 2, "three requests")
        for _ in range(3):
            before = sum(session.stats.requests.values())
            await session.resend()
            assert sum(session.stats.requests.values()) == before + 3
            assert (session.stats.active, session.stats.queued) == (1, 2)
        filesystem.go_on.set()
        for each in looking:
            _, err = await each.end()
            assert not err
        assert sorted(filesystem.begun) == [b"a", b"b", b"c"]
        assert (session.stats.active, session.stats.queued) == (0, 0)
        await client(session, "os.stat(top + '/itself')")
        assert filesystem.begun[3:] == [b"itself"]
        await session.resend()
        assert await client(session, "print(len(os.listdir(top)))") == "4"


async def test_the_log_tells_the_time_of_a_request_that_was_sent_again(point, caplog):
    caplog.set_level(logging.INFO, "truenas_os.fuse")
    filesystem = Slow(a=b"")
    async with fuse.mount(filesystem, point, debug=True) as session:
        looking = Client(session, "os.stat(top + '/a')")
        await until(lambda: filesystem.begun, "the request")
        await session.resend()
        filesystem.go_on.set()
        _, err = await looking.end()
        assert not err
        (line,) = [line for line in caplog.messages if line.startswith("LOOKUP") and "'a'" in line]
        assert line.endswith(" ms") and not line.endswith(" 0.000 ms")


async def test_a_request_that_was_sent_again_can_be_interrupted(point):
    class Locking(Files):
        waiting = False

        async def setlk(self, fh, owner, lock, sleep, ctx):
            self.waiting = True
            await anyio.sleep_forever()

        async def getlk(self, fh, owner, lock, ctx):
            return lock

    filesystem = Locking(a=b"")
    async with fuse.mount(filesystem, point) as session:
        locking = Client(
            session,
            """
            import fcntl, signal
            def interrupted(*args): raise InterruptedError(0, "interrupted")
            signal.signal(signal.SIGINT, interrupted)
            fcntl.lockf(open(top + "/a", "r+"), fcntl.LOCK_EX)
            """,
        )
        await until(lambda: filesystem.waiting, "the lock")
        await session.resend()
        locking.interrupt()
        _, err = await locking.end()
        assert "InterruptedError" in err


async def test_what_somebody_else_has_read_and_not_answered_is_served(point):
    async with fuse.mount(Files(a=b"content"), point) as session:
        device = os.dup(session._mount.device)
        try:
            reading = Client(session, "print(open(top + '/a').read())")
            # Meanwhile the event loop stands still.
            select.select([device], [], [], AMPLE)
            os.read(device, (1 << 20) + 4096)
            await anyio.sleep(0.1)
            assert reading.process.poll() is None
            await session.resend()
            assert await reading.end() == ("content\n", "")
        finally:
            os.close(device)


async def test_nothing_is_sent_again_after_the_end(point):
    async with fuse.mount(Files(), point) as session:
        pass
    with pytest.raises(OSError) as over:
        await session.resend()
    assert over.value.errno == errno.ENOTCONN


# Readahead.


def read_ahead_of(path):
    (mount,) = (m for m in kernel.mountinfo() if m.mount_point == str(path))
    return Path(f"/sys/class/bdi/{mount.major}:{mount.minor}/read_ahead_kb").read_text().strip()


@needs_root
async def test_more_is_read_ahead_if_asked_for(point):
    class Reading(Files):
        most = 0

        async def read(self, fh, off, size):
            self.most = max(self.most, size)
            return await super().read(fh, off, size)

    for options, expected, largest in (({}, "128", 128), ({"read_ahead_kb": 1024}, "1024", 1024)):
        filesystem = Reading(a=bytes(4 << 20))
        async with fuse.mount(filesystem, point, **options) as session:
            assert read_ahead_of(point) == expected
            await client(session, "open(top + '/a', 'rb', 4096).read(3 << 20)")
            await client(session, "file = open(top + '/a', 'rb')\nwhile file.read(65536): pass")
            assert filesystem.most == largest << 10


async def test_who_may_not_set_the_readahead_is_told(point, monkeypatch, caplog):
    real = open

    def refused(path, *args):
        if str(path).startswith("/sys/class/bdi/"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real(path, *args)

    monkeypatch.setattr("truenas_os.fuse.mounting.open", refused, raising=False)
    async with fuse.mount(Files(a=b""), point, read_ahead_kb=1024) as session:
        assert await client(session, "print(os.listdir(top))") == "['a']"
    (record,) = caplog.records
    assert "Permission denied" in record.getMessage() and str(point) in record.getMessage()


# What the reply to INIT says.


def test_only_what_a_filesystem_asks_for_is_negotiated():
    flags = negotiation.wanted_flags(Files())
    assert not flags & (InitFlag.PASSTHROUGH | InitFlag.ALLOW_IDMAP | InitFlag.REQUEST_TIMEOUT)
