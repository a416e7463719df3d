# SPDX-License-Identifier: LGPL-3.0-or-later
"""What files can do beside being read and written, as programs ask for it."""

import errno
import fcntl
import logging
import os
import stat
import struct

import anyio
import kernel
import pytest
from serving import Client, Files, client, error_of
from stuck import until

from truenas_os import fuse

pytestmark = pytest.mark.anyio

LOCKS = """
    import fcntl, signal, struct
    signal.signal(signal.SIGINT, lambda *_: 1 // 0)
    file = open(top + "/a", "r+")
    def ask(kind):
        asked = struct.pack("hhqqi4x", kind, 0, 10, 5, 0)
        return struct.unpack("hhqqi4x", fcntl.fcntl(file, fcntl.F_GETLK, asked))
"""


@pytest.fixture
def point(mount_dir):
    path = mount_dir / "fuse"
    path.mkdir()
    return path


class Locking(Files):
    """Whole-file locks: one owner at a time, whoever asks for whatever range."""

    def __init__(self, **files):
        super().__init__(**files)
        self.holder = None
        self.changed = anyio.Event()
        self.seen = []
        self.waiting = 0

    async def getlk(self, fh, owner, lock, ctx):
        self.seen.append(lock)
        if self.holder in (None, owner):
            return lock._replace(type=fcntl.F_UNLCK)
        return fuse.FileLock(1, 2, fcntl.F_WRLCK, 7)

    async def setlk(self, fh, owner, lock, sleep, ctx):
        self.seen.append(lock)
        if lock.type == fcntl.F_UNLCK:
            if self.holder == owner:
                self.holder = None
                self.changed.set()
            return
        self.waiting += 1
        try:
            while self.holder not in (None, owner):
                if not sleep:
                    raise fuse.FUSEError(errno.EAGAIN)
                self.changed = anyio.Event()
                await self.changed.wait()
        finally:
            self.waiting -= 1
        self.holder = owner

    async def flush(self, fh):
        if fuse.current_request().lock_owner == self.holder:
            self.holder = None
            self.changed.set()


async def test_posix_locks(point):
    filesystem = Locking(a=b"content")
    async with fuse.mount(filesystem, point, max_tasks=1) as session:
        out = await client(
            session,
            LOCKS
            + """
    print(ask(fcntl.F_WRLCK)[0] == fcntl.F_UNLCK)
    fcntl.lockf(file, fcntl.LOCK_EX, 5, 10)
    if os.fork() == 0:
        print(ask(fcntl.F_WRLCK), flush=True)
        try:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            print("blocked", flush=True)
        os._exit(0)
    os.wait()
            """,
        )
        assert out.splitlines() == ["True", f"({fcntl.F_WRLCK}, 0, 1, 2, 7)", "blocked"]
        assert filesystem.seen[1][:3] == (10, 14, fcntl.F_WRLCK)
        assert filesystem.holder is None

        holding = Client(
            session, LOCKS + "    fcntl.lockf(file, fcntl.LOCK_EX); __import__('time').sleep(60)"
        )
        await until(lambda: filesystem.holder is not None, "the lock")
        waiting = Client(
            session,
            LOCKS
            + """
    try:
        fcntl.lockf(file, fcntl.LOCK_EX)
    except ZeroDivisionError:
        print("interrupted", flush=True)
    fcntl.lockf(file, fcntl.LOCK_EX)
    print("locked", flush=True)
            """,
        )
        await until(lambda: filesystem.waiting, "the one that waits")
        # It holds no place: others are served though there is just one.
        assert await client(session, "print(os.stat(top + '/a').st_size)") == "7"
        waiting.interrupt()
        await anyio.to_thread.run_sync(waiting.process.stdout.readline)
        await until(lambda: filesystem.waiting, "the one that waits again")
        holding.process.kill()
        await holding.end()
        out, err = await waiting.end()
        assert out == "locked\n", err


async def test_posix_locks_without_handlers_are_the_kernels(point):
    async with fuse.mount(Files(a=b""), point) as session:
        program = "    fcntl.lockf(file, fcntl.LOCK_EX); print(ask(fcntl.F_WRLCK)[0])"
        assert await client(session, LOCKS + program) == str(fcntl.F_UNLCK)


class Able(Files):
    """Has everything else, and notes how it was called."""

    def __init__(self, **files):
        super().__init__(**files)
        self.seen = []

    async def fsync(self, fh, datasync):
        self.seen.append(("fsync", fh, datasync))

    async def fsyncdir(self, fh, datasync):
        self.seen.append(("fsyncdir", fh, datasync))

    async def access(self, inode, mode, ctx):
        self.seen.append(("access", inode, mode))
        return mode != os.W_OK

    async def fallocate(self, fh, mode, off, length, ctx):
        self.seen.append(("fallocate", fh, mode, off, length))
        content = self.inodes[fh][0]
        content.extend(bytes(max(0, off + length - len(content))))

    async def lseek(self, fh, off, whence, ctx):
        self.seen.append(("lseek", fh, off, whence))
        if off >= 100:
            raise fuse.FUSEError(errno.ENXIO)
        return off + 10

    async def copy_file_range(self, fh_in, off_in, fh_out, off_out, length, flags, ctx):
        self.seen.append(("copy", fh_in, off_in, fh_out, off_out, length, flags))
        piece = self.inodes[fh_in][0][off_in : off_in + length]
        await self.write(fh_out, off_out, piece)
        return len(piece)

    async def ioctl(self, fh, command, argument, data, out_size, ctx):
        self.seen.append(("ioctl", fh, command, data, out_size))
        if command & 0xFF == 1:
            return data[::-1]
        if command & 0xFF == 2:
            return 42, b""
        raise fuse.FUSEError(errno.EDOM)

    async def tmpfile(self, parent_inode, mode, flags, ctx):
        inode = max(self.inodes, default=1) + 1
        self.inodes[inode] = [bytearray(), mode]
        self.seen.append(("tmpfile", parent_inode, mode))
        return fuse.FileInfo(fh=inode), self.entry(inode)

    async def link(self, inode, new_parent_inode, new_name, ctx):
        self.names[new_name] = inode
        return self.entry(inode)

    async def statx(self, inode, fh, flags, mask, ctx):
        attr = self.attributes(inode)
        attr.st_birthtime_ns = 5_000_000_007
        return attr

    async def getlk(self, fh, owner, lock, ctx):
        return lock

    async def setlk(self, fh, owner, lock, sleep, ctx):
        pass


async def test_files_are_put_on_stable_storage(point):
    filesystem = Able(a=b"content")
    async with fuse.mount(filesystem, point) as session:
        await client(
            session,
            """
            fd = os.open(top + "/a", os.O_RDWR)
            os.fsync(fd)
            os.fdatasync(fd)
            fd = os.open(top, os.O_RDONLY)
            os.fsync(fd)
            os.fdatasync(fd)
            """,
        )
    assert filesystem.seen == [
        ("fsync", 2, False),
        ("fsync", 2, True),
        ("fsyncdir", 1, False),
        ("fsyncdir", 1, True),
    ]


async def test_access_is_asked_for_unless_the_kernel_checks(point):
    filesystem = Able(a=b"content")
    program = "print(os.access(top + '/a', os.R_OK), os.access(top + '/a', os.W_OK))"
    async with fuse.mount(filesystem, point, default_permissions=False) as session:
        assert await client(session, program) == "True False"
    assert ("access", 2, os.W_OK) in filesystem.seen
    filesystem = Able(a=b"content")
    async with fuse.mount(filesystem, point) as session:
        assert await client(session, program) == "True True"
    assert filesystem.seen == []


async def test_ranges_are_allocated_sought_and_copied(point):
    filesystem = Able(a=b"0123456789", b=b"")
    filesystem.enable_writeback_cache = False  # with it, only the kernel knows where data is
    async with fuse.mount(filesystem, point) as session:
        out = await client(
            session,
            """
            a, b = (os.open(top + name, os.O_RDWR) for name in ("/a", "/b"))
            os.posix_fallocate(a, 5, 20)
            print(os.fstat(a).st_size, os.lseek(a, 3, os.SEEK_DATA), os.lseek(a, 0, os.SEEK_HOLE))
            try:
                os.lseek(a, 100, os.SEEK_DATA)
            except OSError as error:
                print(errno.errorcode[error.errno])
            print(os.copy_file_range(a, b, 4, 2, 1))
            os.close(b)
            print(open(top + "/b", "rb").read())
            """,
        )
    assert out.splitlines() == ["25 13 10", "ENXIO", "4", r"b'\x002345'"]
    assert ("fallocate", 2, 0, 5, 20) in filesystem.seen
    assert ("copy", 2, 2, 3, 1, 4, 0) in filesystem.seen


async def test_controls(point):
    filesystem = Able(a=b"content")
    async with fuse.mount(filesystem, point) as session:
        out = await client(
            session,
            """
            import fcntl
            fd = os.open(top + "/a", os.O_RDWR)
            print(fcntl.ioctl(fd, 0xC0044601, b"1234"))
            print(fcntl.ioctl(fd, 0x4602))
            try:
                fcntl.ioctl(fd, 0x4603)
            except OSError as error:
                print(errno.errorcode[error.errno])
            """,
        )
    assert out.splitlines() == ["b'4321'", "42", "EDOM"]
    assert ("ioctl", 2, 0xC0044601, b"1234", 4) in filesystem.seen


async def test_a_file_without_a_name_gets_one(point):
    filesystem = Able()
    async with fuse.mount(filesystem, point) as session:
        out = await client(
            session,
            """
            fd = os.open(top, os.O_TMPFILE | os.O_RDWR, 0o640)
            os.write(fd, b"content")
            print(os.listdir(top))
            os.link(f"/proc/self/fd/{fd}", top + "/name", src_dir_fd=fd, follow_symlinks=True)
            os.close(fd)
            print(open(top + "/name").read())
            """,
        )
    assert out.splitlines() == ["[]", "content"]
    assert filesystem.seen[0] == ("tmpfile", 1, stat.S_IFREG | 0o640)


async def test_the_time_of_birth_is_told(point):
    async with fuse.mount(Able(a=b""), point) as session:
        out = await client(
            session,
            """
            from truenas_os.blocking import AT_FDCWD, STATX_BTIME, statx
            found = statx(AT_FDCWD, top + "/a", 0, STATX_BTIME)
            print(bool(found.stx_mask & STATX_BTIME), found.stx_btime_ns)
            """,
        )
    assert out == "True 5000000007"


async def test_blocks_are_mapped():
    # Only block devices of FUSE's own ask for that.
    class Mapped(fuse.Operations):
        async def bmap(self, inode, blocksize, index, ctx):
            return inode * 1000 + blocksize + index

    table = fuse.handlers.Handlers(Mapped(), lambda kh: None).table
    body = struct.pack("=QI4x", 7, 512)
    header = struct.pack("=IIQQIIIHH", 56, fuse.wire.Opcode.BMAP, 2, 3, 0, 0, 0, 0, 0)
    reply = await table[fuse.wire.Opcode.BMAP](fuse.Request(header + body))
    assert reply == struct.pack("=Q", 3519)


async def test_results_that_make_no_sense_are_errors_of_the_call(point, caplog):
    class Wrong(Able):
        enable_writeback_cache = False

        async def write(self, fh, off, buf):
            return len(buf) + 1

        async def copy_file_range(self, *args):
            return 1 << 40

        async def lseek(self, fh, off, whence, ctx):
            return -1

        async def ioctl(self, fh, command, argument, data, out_size, ctx):
            return bytes(out_size + 1)

        async def readlink(self, inode, ctx):
            return b"x" * 5000

        async def listxattr(self, inode, ctx):
            return [b"user.a\0b"]

        async def getxattr(self, inode, name, ctx):
            return "text"

        async def statfs(self, ctx):
            return fuse.StatvfsData(f_blocks=-1)

        async def opendir(self, inode, ctx):
            return -1

        async def tmpfile(self, *args):
            return None

        async def getlk(self, fh, owner, lock, ctx):
            return fuse.FileLock(-1, 0, 0, 0)

    filesystem = Wrong(a=b"content", b=b"")
    filesystem.add(b"link", mode=stat.S_IFLNK | 0o777)
    async with fuse.mount(filesystem, point, default_permissions=False) as session:
        for expression in (
            "os.write(os.open(top + '/a', os.O_WRONLY), b'x')",
            "os.copy_file_range(*(os.open(top + n, os.O_RDWR) for n in ('/a', '/b')), 4)",
            "os.lseek(os.open(top + '/a', os.O_RDONLY), 0, os.SEEK_DATA)",
            "__import__('fcntl').ioctl(os.open(top + '/a', os.O_RDWR), 0xC0044601, b'1234')",
            "os.readlink(top + '/link')",
            "os.listxattr(top + '/a')",
            "os.getxattr(top + '/a', 'user.x')",
            "os.statvfs(top)",
            "os.listdir(top)",
            "os.open(top, os.O_TMPFILE | os.O_RDWR)",
            "__import__('fcntl').fcntl(os.open(top + '/a', os.O_RDWR), 5, bytes(32))",
        ):
            caplog.clear()
            assert await error_of(session, expression) == "EIO", expression
            assert any(each.levelno == logging.ERROR for each in caplog.records), expression


@pytest.mark.parametrize("plus", [True, False], ids=["readdirplus", "readdir"])
async def test_lookups_are_counted_as_the_kernel_counts(point, plus, monkeypatch):
    if not plus:
        wanted = fuse.negotiation.wanted_flags
        without = ~fuse.wire.InitFlag.DO_READDIRPLUS
        monkeypatch.setattr(fuse.negotiation, "wanted_flags", lambda ops: wanted(ops) & without)

    class Dotted(Files):
        async def readdir(self, fh, start_id, token):
            if not start_id:
                for number, name in enumerate((b".", b".."), 1):
                    fuse.readdir_reply(token, name, self.attributes(1), number)
            for number, (name, inode) in enumerate(sorted(self.names.items()), 3):
                if number > start_id:
                    if not fuse.readdir_reply(token, name, self.attributes(inode), number):
                        break
                    self.lookups[inode] = self.lookups.get(inode, 0) + 1

    filesystem = Dotted(**{f"file{n}": b"" for n in range(500)})
    async with fuse.mount(filesystem, point) as session:
        await client(
            session,
            """
            for _ in range(3):
                assert len(os.listdir(top)) == 500
            for n in range(0, 500, 2):
                os.stat(f"{top}/file{n}")
            """,
        )
        requests = session.stats.requests
        assert ("READDIRPLUS" in requests) == plus
        assert ("READDIR" in requests) != plus
        if plus:
            assert sum(filesystem.lookups.values()) == 1500 + requests.get("LOOKUP", 0)
        else:
            assert sum(filesystem.lookups.values()) == requests["LOOKUP"]
        await client(session, kernel.FORGETTING)
        await until(lambda: not any(filesystem.lookups.values()), "a count of 0 for every inode")


async def test_what_was_promised_to_somebody_who_is_gone_is_taken_back(point):
    class Slow(Files):
        opened = 0
        asked = ()

        async def slowly(self, what):
            self.asked = (*self.asked, what)
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.4)

        async def lookup(self, parent_inode, name, ctx):
            attr = await super().lookup(parent_inode, name, ctx)
            if name == b"b":
                await self.slowly("lookup")
            return attr

        async def open(self, inode, flags, ctx):
            self.opened += 1
            await self.slowly("open")
            return fuse.FileInfo(fh=inode)

        async def release(self, fh):
            self.opened -= 1

    filesystem = Slow(a=b"content", b=b"content")
    async with fuse.mount(filesystem, point, unmount_timeout=1) as session:
        asking = [Client(session, f"open(top + '/{name}')") for name in "ab"]
        await until(lambda: len(filesystem.asked) == 2, "the questions")
        await anyio.to_thread.run_sync(session._mount.abort)
        for each in asking:
            await each.end()
        with anyio.fail_after(20):
            await session.wait()
    assert filesystem.opened == 0
    assert filesystem.lookups[filesystem.names[b"b"]] == 0
