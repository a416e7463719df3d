# SPDX-License-Identifier: LGPL-3.0-or-later
"""The path level: each callback and each option, as programs and the kernel make them be called."""

import asyncio
import errno
import fcntl
import logging
import os
import select
import stat
import threading
import time

import anyio
import pytest
from filesystems import IS_ROOT, needs_root
from paths import Tree
from serving import Client, client, error_of, is_mounted
from stuck import until

import truenas_os
from truenas_os import fuse
from truenas_os.fuse import pathcalls
from truenas_os.fuse.wire import InitFlag

pytestmark = pytest.mark.anyio

REGULAR = stat.S_IFREG | 0o644
# An ordinary user's namespace has no other ids.
UID, GID = (5, 6) if IS_ROOT else (0, 0)


@pytest.fixture
def point(mount_dir):
    path = mount_dir / "fuse"
    path.mkdir()
    return path


@pytest.fixture(params=["plain", "async"])
def kind(request):
    """The kind of functions that the callbacks are."""
    return request.param


# For what no event loop makes a difference to.
on_one_loop = pytest.mark.parametrize("anyio_backend", ["asyncio"])


def say(client):
    client.process.stdin.write("\n")
    client.process.stdin.flush()


# Names and attributes.


async def test_getattr_and_readlink(point, kind):
    tree = Tree(kind, a=b"content")
    item = tree.add("/link", stat.S_IFLNK | 0o777, b"a")
    item.uid, item.gid = UID, GID
    tree.add("/device", stat.S_IFCHR | 0o600, rdev=os.makedev(5, 300))
    async with fuse.mount(tree, point) as session:
        assert repr(session) == f"<Session of {type(tree).__name__} at {str(point)!r}>"
        out = await client(
            session,
            """
            found = os.lstat(top + "/link")
            print(oct(found.st_mode), found.st_uid, found.st_gid, found.st_size, found.st_blocks)
            print(found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns)
            print(os.readlink(top + "/link"), os.stat(top + "/link").st_size)
            print(os.major(os.stat(top + "/device").st_rdev), os.path.exists(top + "/none"))
            """,
        )
    assert out.splitlines() == [
        f"0o120777 {UID} {GID} 1 1",
        "1000000500 2000000500 3250000000",
        "a 7",
        "5 False",
    ]
    assert ("readlink", "/link") in tree.seen and ("getattr", "/none") in tree.seen
    loop_thread = threading.get_ident()
    assert (loop_thread in tree.threads) == (kind != "plain")


async def test_what_a_plain_function_returns_may_have_to_be_awaited(point):
    tree = Tree("awaitable", a=b"content")
    async with fuse.mount(tree, point) as session:
        assert await client(session, "print(open(top + '/a').read(), os.listdir(top))") == (
            "content ['a']"
        )
    assert threading.get_ident() in tree.threads


async def test_mknod_mkdir_symlink_link_rename_unlink_rmdir(point, kind):
    tree = Tree(kind)
    async with fuse.mount(tree, point) as session:
        out = await client(
            session,
            r"""
            os.umask(0o027)
            os.chdir(top)
            os.mkdir("d", 0o777)
            os.mknod("d/fifo", 0o010666)
            os.symlink("somewhere", "d/link")
            os.mknod("file", 0o100640)
            os.link("file", "d/second")
            print(os.stat("file").st_ino == os.stat("d/second").st_ino, os.stat("file").st_nlink)
            os.rename("d", "e")
            print(sorted(os.listdir("e")))
            os.rename("e/fifo", b"\xff")
            os.unlink(b"\xff")
            os.unlink("e/link")
            try:
                os.rmdir("e")
            except OSError as error:
                print(errno.errorcode[error.errno])
            os.unlink("e/second")
            os.rmdir("e")
            print(os.listdir())
            """,
        )
    assert out.splitlines() == ["True 2", "['fifo', 'link', 'second']", "ENOTEMPTY", "['file']"]
    made = tree.calls("mknod", "mkdir", "symlink", "link", "rename", "unlink", "rmdir")
    assert made == [
        ("mkdir", "/d", 0o750),
        ("mknod", "/d/fifo", stat.S_IFIFO | 0o640, 0),
        ("symlink", "somewhere", "/d/link"),
        ("mknod", "/file", stat.S_IFREG | 0o640, 0),
        ("link", "/file", "/d/second"),
        ("rename", "/d", "/e"),
        ("rename", "/e/fifo", "/\udcff"),
        ("unlink", "/\udcff"),
        ("unlink", "/e/link"),
        ("rmdir", "/e"),
        ("unlink", "/e/second"),
        ("rmdir", "/e"),
    ]


async def test_chmod_chown_truncate(point, kind):
    tree = Tree(kind, a=b"content")
    async with fuse.mount(tree, point) as session:
        out = await client(
            session,
            """
            os.chdir(top)
            os.chmod("a", 0o4600)
            uid, gid = map(int, sys.argv[2:])
            os.chown("a", uid, -1)
            os.chown("a", -1, gid)
            os.truncate("a", 3)
            with open("a", "r+") as file:
                file.truncate(5)
            found = os.stat("a")
            print(oct(found.st_mode), found.st_uid, found.st_gid, open("a", "rb").read())
            """,
            UID,
            GID,
        )
    assert out == rf"0o100600 {UID} {GID} b'con\x00\x00'"
    made = tree.calls("chmod", "chown", "truncate")
    assert made[0] == ("chmod", "/a", stat.S_IFREG | 0o4600)
    # As for any file, a new owner takes the set-user-ID bit away.
    assert [call for call in made[1:] if call[0] != "chmod"] == [
        ("chown", "/a", UID, -1),
        ("chown", "/a", -1, GID),
        ("truncate", "/a", 3),
        ("truncate", "/a", 5),
    ]


async def test_utime(point, kind):
    tree = Tree(kind, a=b"")
    program = "os.utime(top + '/a', (5.75, 7)); print(os.stat(top + '/a').st_atime_ns)"
    async with fuse.mount(tree, point) as session:
        assert await client(session, program) == "5000000000"
    assert tree.calls("utime") == [("utime", "/a", 5, 7)]


class Precise(Tree):
    def utimens(self, path, atime, mtime):
        self.item(path).times = [atime, mtime]


SET_TIMES = """
    import ctypes
    os.utime(top + "/a", ns=(5_000_000_250, -1_500_000_000))
    # Only the second of the two, as touch(1) with -m.
    times = (ctypes.c_long * 4)(0, (1 << 30) - 2, 9, 125_000_000)
    assert ctypes.CDLL(None).utimensat(-1, os.fsencode(top + "/a"), times, 0) == 0
    os.utime(top + "/a")
"""


@on_one_loop
@pytest.mark.parametrize("as_array", [False, True])
async def test_utimens_overrides_utime(point, as_array):
    tree = Precise(a=b"")
    tree.utimens_as_array = as_array
    before = time.time()
    async with fuse.mount(tree, point) as session:
        await client(session, SET_TIMES)
    assert tree.calls("utime") == []
    first, second, third = tree.calls("utimens")
    if as_array:
        assert first == ("utimens", "/a", (5, 250), (-2, 500_000_000))
        assert second == ("utimens", "/a", (5, 250), (9, 125_000_000))
        assert before - 1 <= third[2][0] <= time.time()
    else:
        assert first == ("utimens", "/a", 5_000_000_250 / 10**9, -1.5)
        assert second == ("utimens", "/a", pytest.approx(5.00000025), 9.125)
        assert before - 1 <= third[2] == third[3] <= time.time()


async def test_access_and_statfs(point, kind):
    class Guarded(Tree):
        def access(self, path, mode):
            return -errno.EACCES if mode == os.W_OK else 0

        def statfs(self):
            return 100, 90, 80, 70, 60, 1024

    tree = Guarded(kind, a=b"")
    async with fuse.mount(tree, point, default_permissions=False) as session:
        out = await client(
            session,
            """
            print([os.access(top + "/a", mode) for mode in (os.R_OK, os.W_OK)])
            found = os.statvfs(top)
            print(found.f_namemax, found.f_files, found.f_ffree, found.f_blocks, found.f_bavail)
            print(found.f_bsize)
            """,
        )
    assert out.splitlines() == ["[True, False]", "100 90 80 70 60", "1024"]
    assert ("access", "/a", os.W_OK) in tree.seen and ("statfs",) in tree.seen


# Files.


class Opening(Tree):
    """Its files have objects as handles."""

    def __init__(self, *args, **files):
        self.handles = []
        super().__init__(*args, **files)

    def handle(self, path):
        self.handles.append(["handle", path])
        return 0, self.handles[-1]

    def create(self, path, mode, flags):
        self.add(path, mode)
        return self.handle(path)

    def open(self, path, flags, info):
        return self.handle(path)

    def flush(self, path, fh):
        return 0

    def release(self, path, flags, fh):
        return 0

    def fsync(self, path, datasync, fh):
        return 0

    def fgetattr(self, path, fh):
        return Tree.getattr(self, fh[1])

    def ftruncate(self, path, size, fh):
        return Tree.truncate(self, fh[1], size)


async def test_open_create_read_write_flush_fsync_release_fgetattr_ftruncate(point, kind):
    tree = Opening(kind)
    async with fuse.mount(tree, point) as session:
        out = await client(
            session,
            """
            os.umask(0o022)
            fd = os.open(top + "/a", os.O_CREAT | os.O_RDWR, 0o666)
            print(os.write(fd, b"content"), os.pread(fd, 3, 2))
            os.ftruncate(fd, 4)
            os.fsync(fd)
            os.fdatasync(fd)
            os.close(fd)
            fd = os.open(top + "/a", os.O_RDONLY | os.O_TRUNC | os.O_NOATIME)
            os.close(fd)
            print(os.stat(top + "/a").st_size)
            """,
        )
        await until(lambda: len(tree.calls("release")) == 2, "the release")
    assert out.splitlines() == ["7 b'nte'", "0"]
    first, second = tree.handles
    ((_, path, mode, flags),) = tree.calls("create")
    assert (path, mode) == ("/a", REGULAR) and flags & os.O_ACCMODE == os.O_RDWR
    ((_, path, flags, info),) = tree.calls("open")
    assert (path, flags & (os.O_ACCMODE | os.O_CREAT | os.O_TRUNC | os.O_NOATIME)) == (
        "/a",
        os.O_RDONLY | os.O_NOATIME,
    )
    assert not (info.direct_io or info.keep_cache or info.nonseekable)
    assert ("write", "/a", b"content", 0, first) in tree.seen
    assert any(call[::3] == ("read", 0) and call[4] is first for call in tree.calls("read"))
    assert tree.calls("fsync") == [("fsync", "/a", 0, first), ("fsync", "/a", 1, first)]
    assert tree.calls("flush") == [("flush", "/a", first), ("flush", "/a", second)]
    assert tree.calls("fgetattr")[0] == ("fgetattr", "/a", first)
    assert tree.calls("ftruncate")[0] == ("ftruncate", "/a", 4, first)
    assert [call[3] for call in tree.calls("release")] == [first, second]
    assert [call[2] & os.O_ACCMODE for call in tree.calls("release")] == [os.O_RDWR, os.O_RDONLY]


@pytest.mark.parametrize(
    ("returned", "handle"),
    [(0, None), (None, None), ((0, 0), 0), ((0, None), None), (5, 5), ((0, "text"), "text")],
)
@on_one_loop
async def test_a_handle_is_what_open_returns(point, returned, handle):
    class Fixed(Tree):
        def open(self, path, flags):
            return returned

        def release(self, path, flags, fh):
            pass

    tree = Fixed(a=b"content")
    async with fuse.mount(tree, point) as session:
        assert await client(session, "print(open(top + '/a').read())") == "content"
        await until(lambda: tree.calls("release"), "the release")
    assert {call[4] for call in tree.calls("read")} == {handle}
    assert tree.calls("release")[0][3] == handle


async def test_an_error_is_returned_or_raised(point, kind):
    class Failing(Tree):
        def open(self, path, flags):
            if path == "/pair":
                return -errno.ENOLCK, None
            if path == "/raised":
                raise FileNotFoundError(errno.ETXTBSY, "busy")
            if path == "/ours":
                raise fuse.FUSEError(errno.EDOM)
            return -errno.ENXIO

    async with fuse.mount(
        Failing(kind, alone=b"", pair=b"", raised=b"", ours=b""), point
    ) as session:
        out = await client(
            session,
            """
            for name in ("alone", "pair", "raised", "ours"):
                try:
                    open(f"{top}/{name}")
                except OSError as error:
                    print(errno.errorcode[error.errno])
            """,
        )
    assert out.split() == ["ENXIO", "ENOLCK", "ETXTBSY", "EDOM"]


@on_one_loop
async def test_open_may_change_how_the_file_is_treated(point):
    class Choosing(Tree):
        def open(self, path, flags, info):
            setattr(info, path[1:], True)

    tree = Choosing(direct_io=b"x" * 100, keep_cache=b"x" * 100, nonseekable=b"x" * 100)
    async with fuse.mount(tree, point) as session:
        out = await client(
            session,
            """
            for name in ("direct_io", "keep_cache"):
                for _ in range(2):
                    fd = os.open(f"{top}/{name}", os.O_RDONLY)
                    assert os.read(fd, 10) == b"x" * 10
            try:
                os.lseek(os.open(top + "/nonseekable", os.O_RDONLY), 5, os.SEEK_SET)
            except OSError as error:
                print(errno.errorcode[error.errno])
            """,
        )
    assert out == "ESPIPE"
    reads = [call[1:3] for call in tree.calls("read")]
    assert reads.count(("/direct_io", 10)) == 2
    assert len([path for path, _ in reads if path == "/keep_cache"]) == 1


@on_one_loop
async def test_lock(point):
    class Locking(Tree):
        holder = None

        def lock(self, path, command, lock, fh):
            pid = fuse.path.fuse_get_context().pid
            free = self.holder in (None, pid)
            if command == fcntl.F_GETLK:
                if free:
                    lock.l_type = fcntl.F_UNLCK
                else:
                    lock.l_type, lock.l_pid = fcntl.F_WRLCK, self.holder
                    lock.l_start, lock.l_len = 1, 0
            elif lock.l_type == fcntl.F_UNLCK:
                self.holder = None if free else self.holder
            elif not free:
                return -errno.EAGAIN
            else:
                self.holder = pid
            return 0

    tree = Locking(a=b"content")
    async with fuse.mount(tree, point) as session:
        assert InitFlag.POSIX_LOCKS in session.features.flags
        out = await client(
            session,
            """
            import fcntl, struct
            def ask(file):
                asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 10, 5, 0)
                return struct.unpack("hhqqi4x", fcntl.fcntl(file, fcntl.F_GETLK, asked))
            file = open(top + "/a", "r+")
            print(ask(file)[0] == fcntl.F_UNLCK)
            fcntl.lockf(file, fcntl.LOCK_EX, 5, 10)
            if os.fork() == 0:
                other = open(top + "/a", "r+")
                try:
                    fcntl.lockf(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    found = ask(other)
                    print(found[0] == fcntl.F_WRLCK, found[1:4], found[4] == os.getppid())
                sys.stdout.flush()
                os._exit(0)
            os.wait()
            file.close()
            """,
        )
        assert out.splitlines() == ["True", "True (0, 1, 0) True"]
    calls = tree.calls("lock")
    assert calls[1][2] == fcntl.F_SETLKW and calls[1][3].l_start == 10
    assert (calls[1][3].l_whence, calls[1][3].l_len) == (os.SEEK_SET, 5)
    # Whoever closes the file loses the locks.
    assert calls[-1][3].l_type == fcntl.F_UNLCK and tree.holder is None


@on_one_loop
async def test_locks_are_released_although_flush_says_that_it_is_not_implemented(point):
    class Locking(Tree):
        def flush(self, path, fh):
            return -errno.ENOSYS

        def lock(self, path, command, lock, fh):
            return 0

    tree = Locking(a=b"content")
    async with fuse.mount(tree, point) as session:
        await client(
            session,
            """
            import fcntl
            for _ in range(2):
                with open(top + "/a", "r+") as file:
                    fcntl.lockf(file, fcntl.LOCK_EX)
            """,
        )
    types = [lock.l_type for _, _, _, lock, _ in tree.calls("lock")]
    assert types == [fcntl.F_WRLCK, fcntl.F_UNLCK] * 2


WAIT_FOR_LOCK = """
    import fcntl, signal
    signal.signal(signal.SIGINT, lambda *_: 1 // 0)
    file = open(top + "/a", "r+")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX, 5)
    except ZeroDivisionError:
        print("interrupted", flush=True)
    sys.stdin.read()
"""


async def test_an_async_lock_that_waits_is_cancelled_by_a_signal(point):
    class Waiting(Tree):
        cancelled = False

        def lock(self, path, command, lock, fh):
            return self.wait() if command == fcntl.F_SETLKW else 0

        async def wait(self):
            try:
                await anyio.sleep_forever()
            finally:
                self.cancelled = True

    tree = Waiting(a=b"content")
    async with fuse.mount(tree, point) as session:
        waiting = Client(session, WAIT_FOR_LOCK, stdin=-1)
        await until(lambda: tree.calls("lock"), "the lock")
        waiting.interrupt()
        out, err = await waiting.end()
        assert out == "interrupted\n", err
    assert tree.cancelled and len(tree.calls("lock")) == 1


@pytest.mark.parametrize("threaded", [False, True])
async def test_a_plain_lock_that_comes_too_late_is_released(point, threaded):
    class Waiting(Tree):
        def __init__(self, **files):
            super().__init__(**files)
            self.threaded = threaded
            self.begun, self.free = threading.Event(), threading.Event()

        def lock(self, path, command, lock, fh):
            if command == fcntl.F_SETLKW:
                self.begun.set()
                assert self.free.wait(20)
            return 0

    tree = Waiting(a=b"content")
    async with fuse.mount(tree, point) as session:
        waiting = Client(session, WAIT_FOR_LOCK, stdin=-1)
        await until(tree.begun.is_set, "the lock")
        waiting.interrupt()
        assert await anyio.to_thread.run_sync(waiting.process.stdout.readline) == "interrupted\n"
        # Not even a rename of the file waits for its lock.
        asked = Client(session, "os.rename(top + '/a', top + '/b'); print(os.listdir(top))")
        if threaded:
            assert (await asked.end())[0] == "['b']\n"
        else:
            # The one on the thread still counts.
            await anyio.sleep(0.1)
            assert tree.calls("rename") == []
        tree.free.set()
        if not threaded:
            assert (await asked.end())[0] == "['b']\n"
        unlock = fuse.path.Flock(fcntl.F_UNLCK, os.SEEK_SET, 0, 5, waiting.process.pid)
        await until(lambda: ("lock", "/a", fcntl.F_SETLK, unlock, None) in tree.seen, "the release")
        await waiting.end()


async def test_poll_notify_poll_and_pollhandle_destroy(point, kind):
    class Polled(Tree):
        handle = None
        ready = 0

        def poll(self, path, handle, events, fh):
            if handle is not None:
                self.handle = handle
            return 0, self.ready & events

    tree = Polled(kind, a=b"content")
    async with fuse.mount(tree, point) as session:
        polling = Client(
            session,
            """
            import select
            poll = select.poll()
            poll.register(os.open(top + "/a", os.O_RDONLY), select.POLLIN | select.POLLPRI)
            print(poll.poll(100), flush=True)
            print([event for _, event in poll.poll()])
            """,
        )
        assert await anyio.to_thread.run_sync(polling.process.stdout.readline) == "[]\n"
        # The second time it is asked for before it sleeps.
        await until(lambda: len(tree.calls("poll")) >= 2, "the second poll")
        tree.ready = select.POLLIN
        await anyio.to_thread.run_sync(fuse.path.notify_poll, tree.handle)
        out, err = await polling.end()
        assert out == f"[{select.POLLIN}]\n", err
        assert tree.calls("poll")[0][3] & (select.POLLIN | select.POLLPRI) == (
            select.POLLIN | select.POLLPRI
        )
        alive, destroyed = tree.handle, tree.handle
        fuse.path.notify_poll(alive)  # nobody waits
        fuse.path.pollhandle_destroy(destroyed)
        for function in (fuse.path.notify_poll, fuse.path.pollhandle_destroy):
            for handle in (destroyed, None, 5, "handle", object()):
                with pytest.raises(ValueError, match="poll handle"):
                    function(handle)
        last = fuse.path.PollHandle(alive._calls, None)
        last._handle = object()
    with pytest.raises(ValueError, match="no use"):  # with its session
        fuse.path.notify_poll(last)


async def test_ioctl(point, kind):
    class Controlled(Tree):
        def ioctl(self, path, command, flags, data, fh):
            number = command & 0xFF
            if number == 1:
                return 0, data[::-1]
            if number == 2:
                return b"from" if data is None else -errno.EDOM
            return 0 if number == 3 else -errno.EXDEV

    tree = Controlled(kind, a=b"content")
    async with fuse.mount(tree, point) as session:
        out = await client(
            session,
            """
            import fcntl
            fd = os.open(top + "/a", os.O_RDWR)
            print(fcntl.ioctl(fd, 0xC0044601, b"1234"), fcntl.ioctl(fd, 0x80044602, b"1234"))
            print(fcntl.ioctl(fd, 0x40044603, b"1234"), fcntl.ioctl(os.open(top, 0), 0x4603))
            try:
                fcntl.ioctl(fd, 0x4604)
            except OSError as error:
                print(errno.errorcode[error.errno])
            """,
        )
    assert out.splitlines() == ["b'4321' b'from'", "b'1234' 0", "EXDEV"]
    assert ("ioctl", "/a", 0x40044603, 0, b"1234", None) in tree.seen
    assert ("ioctl", "/", 0x4603, fuse.wire.IOCTL_DIR, None, None) in tree.seen


@needs_root
@on_one_loop
async def test_bmap(point, tmp_path, kind):
    class Mapped(Tree):
        def bmap(self, path, blocksize, index):
            return (0, index + 1000) if index else -errno.EDOM

    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    tree = Mapped(kind, a=b"content")
    async with (
        truenas_os.loop_device(image) as device,
        fuse.mount(tree, point, fsname=device.path, blkdev=True, blksize=1024) as session,
    ):
        out = await client(
            session,
            """
            import fcntl, struct, subprocess
            fd = os.open(top + "/a", os.O_RDONLY)
            for index in (7, 0):
                try:
                    print(*struct.unpack("i", fcntl.ioctl(fd, 1, struct.pack("i", index))))
                except OSError as error:
                    print(errno.errorcode[error.errno])
            print(subprocess.run(["findmnt", "-no", "FSTYPE", top], capture_output=True).stdout)
            print(*struct.unpack("i", fcntl.ioctl(fd, 2, bytes(4))))  # FIGETBSZ
            """,
        )
    # The kernel's word for an error is block 0.
    *lines, blocksize = out.splitlines()
    assert lines == ["1007", "0", r"b'fuseblk\n'"]
    assert tree.calls("bmap")[0] == ("bmap", "/a", int(blocksize), 7)


# Extended attributes.


async def test_setxattr_getxattr_listxattr_removexattr(point, kind):
    class Described(Tree):
        def setxattr(self, path, name, value, flags):
            self.item(path).xattrs[name] = value
            return 0

        def getxattr(self, path, name):
            return self.item(path).xattrs.get(name, 0)

        def listxattr(self, path):
            return (*self.item(path).xattrs, 0)

        def removexattr(self, path, name):
            return 0 if self.item(path).xattrs.pop(name, None) is not None else -fuse.ENOATTR

    tree = Described(kind, a=b"")
    async with fuse.mount(tree, point) as session:
        out = await client(
            session,
            """
            os.chdir(top)
            os.setxattr("a", "user.x", b"1", os.XATTR_CREATE)
            os.setxattr("a", "user.y", b"", 0)
            os.setxattr("a", "user.x", b"one", os.XATTR_REPLACE)
            print(os.listxattr("a"), os.getxattr("a", "user.x"), os.getxattr("a", "user.y"))
            os.removexattr("a", "user.y")
            for call in (
                lambda: os.getxattr("a", "user.y"),
                lambda: os.removexattr("a", "user.y"),
                lambda: os.setxattr("a", "user.x", b"", os.XATTR_CREATE),
                lambda: os.setxattr("a", "user.y", b"", os.XATTR_REPLACE),
            ):
                try:
                    call()
                except OSError as error:
                    print(errno.errorcode[error.errno])
            """,
        )
    assert out.splitlines() == [
        "['user.x', 'user.y'] b'one' b''",
        "ENODATA",
        "ENODATA",
        "EEXIST",
        "ENODATA",
    ]
    assert tree.calls("setxattr") == [
        ("setxattr", "/a", "user.x", b"1", fuse.path.XATTR_CREATE),
        ("setxattr", "/a", "user.y", b"", 0),
        ("setxattr", "/a", "user.x", b"one", fuse.path.XATTR_REPLACE),
    ]


# Directories.


class Listing(Tree):
    """Lists a directory in one of the forms of readdir."""

    def __init__(self, form, **files):
        self.form = form
        super().__init__(**files)

    def readdir(self, path, offset, fh):
        names = [".", "..", *self.below(path)]
        if self.form == "names":
            return [*names, 0]
        paths = [os.path.normpath(os.path.join(path, name)) for name in names]
        statuses = [self.attributes(self.items[each]) for each in paths]
        if self.form == "attributes":
            return [(0, *pair) for pair in zip(names, statuses, strict=True)]
        if self.form == "without":
            return [(0, name) for name in names]
        numbered = list(zip(range(10, 1000, 3), names, statuses, strict=False))
        if self.form == "offsets, all":
            return numbered
        start = next((n + 1 for n, each in enumerate(numbered) if each[0] == offset), 0)
        return numbered[start : start + 7]

    def opendir(self, path):
        return 0, f"handle of {path}"

    def releasedir(self, path, fh):
        return 0

    def fsyncdir(self, path, datasync, fh):
        return 0


LISTED = """
    names = os.listdir(top)
    assert len(names) == len(set(names)) == 200, names
    assert sorted(os.listdir(top)) == sorted(names)
    entries = {entry.name: entry for entry in os.scandir(top)}
    print(all(entry.is_file() and entry.inode() for entry in entries.values()))
    fd = os.open(top, os.O_RDONLY)
    assert len(os.listdir(fd)) == len(os.listdir(fd)) == 200
    os.fsync(fd)
    os.fdatasync(fd)
"""


@on_one_loop
@pytest.mark.parametrize("form", ["names", "without", "attributes", "offsets", "offsets, all"])
async def test_readdir_opendir_releasedir_fsyncdir(point, form):
    tree = Listing(form, **{f"file-{number:03}": b"" for number in range(200)})
    async with fuse.mount(tree, point) as session:
        assert await client(session, LISTED) == "True"
        await until(lambda: len(tree.calls("releasedir")) == 4, "the releases")
    assert tree.calls("getdir") == []
    handle = "handle of /"
    assert tree.calls("opendir") == [("opendir", "/")] * 4
    assert set(tree.calls("releasedir")) == {("releasedir", "/", handle)}
    assert tree.calls("fsyncdir") == [("fsyncdir", "/", 0, handle), ("fsyncdir", "/", 1, handle)]
    listed = tree.calls("readdir")
    assert {call[3] for call in listed} == {handle}
    if form.startswith("offsets"):
        # The second part begins behind the seventh entry, or wherever there was no more room.
        assert {call[2] for call in listed} > ({0, 28} if form == "offsets" else {0})
    else:
        assert set(listed) == {("readdir", "/", 0, handle)} and len(listed) == 5


@on_one_loop
@pytest.mark.parametrize("form", ["names", "attributes", "offsets", "offsets, all"])
async def test_who_has_come_to_the_end_of_a_directory_may_go_back_to_a_place_in_it(point, form):
    tree = Listing(form, **{f"file-{number:03}": b"" for number in range(20)})
    async with fuse.mount(tree, point) as session:
        out = await client(
            session,
            """
            import ctypes
            libc = ctypes.CDLL(None)
            libc.opendir.restype = libc.readdir.restype = ctypes.c_void_p
            libc.telldir.restype = ctypes.c_long
            directory = ctypes.c_void_p(libc.opendir(os.fsencode(top)))
            places = []
            while libc.readdir(directory):
                places.append(libc.telldir(directory))
            libc.seekdir(directory, ctypes.c_long(places[4]))
            left = 0
            while libc.readdir(directory):
                left += 1
            print(len(places), left)
            """,
        )
    assert out == "22 17"


@on_one_loop
async def test_attributes_that_are_listed_are_not_asked_for_again(point):
    tree = Listing("attributes", a=b"content", b=b"")
    async with fuse.mount(tree, point) as session:
        program = "print(os.listdir(top), os.stat(top + '/a').st_size)"
        assert await client(session, program) == "['a', 'b'] 7"
        assert "LOOKUP" not in session.stats.requests
    assert ("getattr", "/a") not in tree.seen


async def test_getdir(point, kind):
    tree = Tree(kind, a=b"", b=b"")
    tree.add("/d", stat.S_IFDIR | 0o755)
    tree.add("/d/c", REGULAR)
    async with fuse.mount(tree, point) as session:
        program = "print(os.listdir(top), os.listdir(top + '/d'))"
        assert await client(session, program) == "['a', 'b', 'd'] ['c']"
    assert {call[1] for call in tree.calls("getdir")} == {"/", "/d"}


# The session.


async def test_init_destroy_and_the_context(point, kind):
    class Known(Tree):
        contexts = ()

        def init(self):
            assert fuse.path.fuse_get_context() == (0, 0, 0, 0, None)
            return self.contexts

        def note(self):
            context = fuse.path.fuse_get_context()
            context.private_data[self.seen[-1][0]] = context
            return 0

        def mkdir(self, path, mode):
            super().mkdir(path, mode)
            return self.note()

        def chmod(self, path, mode):
            return self.note()

        def destroy(self, private_data):
            assert fuse.path.fuse_get_context() == (0, 0, 0, 0, self.contexts)

    tree = Known(kind)
    tree.contexts = contexts = {}
    async with fuse.mount(tree, point, allow_other=True) as session:
        out = await client(
            session,
            """
            os.umask(0o027)
            os.mkdir(top + "/d")
            os.chmod(top + "/d", 0o777)
            print(os.getpid(), os.getuid(), os.getgid())
            """,
        )
    pid, uid, gid = map(int, out.split())
    assert contexts["mkdir"] == (uid, gid, pid, 0o027, contexts)
    assert contexts["chmod"] == (uid, gid, pid, 0, contexts)
    assert tree.seen[0] == ("init",) and tree.seen[-1] == ("destroy", contexts)
    assert tree.seen.count(("init",)) == 1 and len(tree.calls("destroy")) == 1
    with pytest.raises(LookupError):
        fuse.path.fuse_get_context()


async def test_nothing_is_called_before_init_has_returned(point):
    class Slow(Tree):
        def __init__(self, **files):
            super().__init__("async", **files)
            self.proceed = anyio.Event()

            async def init():
                await self.proceed.wait()
                self.seen.append("ready")

            self.init = init

    tree = Slow()
    async with fuse.mount(tree, point) as session:
        asking = Client(session, "print(os.listdir(top))")
        await until(lambda: session.stats.active, "a request")
        assert tree.seen == []
        tree.proceed.set()
        assert (await asking.end())[0] == "[]\n"
    assert tree.seen[0] == "ready"


async def test_a_session_ends_while_init_or_a_plain_callback_hangs(point):
    hang = threading.Event()

    class Hanging(Tree):
        destroyed = None

        def init(self):
            if self.hangs == "init":
                hang.wait(60)

        def getdir(self, path):
            hang.wait(60)
            return []

        def destroy(self, private_data):
            self.destroyed = private_data is None

    try:
        for Hanging.hangs in ("init", "getdir"):
            tree = Hanging()
            with anyio.fail_after(20):
                async with fuse.mount(tree, point, unmount_timeout=0.1) as session:
                    asking = Client(session, "os.listdir(top)")
                    await until(lambda: session.stats.active, "a request")
                    # Nor does the loop hang.
                    await anyio.sleep(0.01)
            await asking.end()
            assert tree.destroyed
    finally:
        hang.set()


@pytest.mark.parametrize("threaded", [False, True])
@pytest.mark.parametrize("name", ["open", "create", "opendir"])
async def test_what_a_plain_callback_opens_after_the_end_is_released(point, name, threaded):
    class Slow(Tree):
        def __init__(self, **files):
            super().__init__(**files)
            self.threaded = threaded
            self.begun, self.free = threading.Event(), threading.Event()

        def opened(self):
            self.begun.set()
            assert self.free.wait(20)
            return 7

        def open(self, path, flags):
            return self.opened()

        def create(self, path, mode, flags):
            return self.opened()

        def opendir(self, path):
            return self.opened()

        def release(self, path, flags, fh):
            return 0

        def releasedir(self, path, fh):
            return 0

    program = {
        "open": "os.open(top + '/a', os.O_RDONLY)",
        "create": "os.open(top + '/b', os.O_CREAT)",
        "opendir": "os.open(top, os.O_RDONLY)",
    }
    tree = Slow(a=b"content")
    async with fuse.mount(tree, point, unmount_timeout=0.1) as session:
        opening = Client(session, program[name])
        await until(tree.begun.is_set, "the call")
    await opening.end()
    assert not tree.calls("release", "releasedir")
    tree.free.set()
    await until(lambda: tree.calls("release", "releasedir"), "the release")
    ((released, path, *_, handle),) = tree.calls("release", "releasedir")
    assert released == ("releasedir" if name == "opendir" else "release")
    assert (path, handle) == (tree.calls(name)[0][1], 7)


@on_one_loop
async def test_versions_and_names():
    assert fuse.path.fuse_version() == 2.8
    assert (fuse.path.XATTR_CREATE, fuse.path.XATTR_REPLACE) == (1, 2)
    assert sorted(fuse.path.CALLBACKS) == sorted(
        "getattr readlink getdir mknod mkdir unlink rmdir symlink rename link chmod chown truncate "
        "utime open read write statfs flush release fsync setxattr getxattr listxattr removexattr "
        "opendir readdir releasedir fsyncdir init destroy access create ftruncate fgetattr lock "
        "utimens bmap ioctl poll".split()
    )


# The options of main().


async def serving(point, tree, program, **options):
    """What a program prints while main() serves, which then is unmounted from outside."""

    async def use():
        await until(lambda: is_mounted(point), "the mount")
        out = await anyio.run_process(
            [os.sys.executable, "-c", f"import errno, os\ntop = {str(point)!r}\n{program}"]
        )
        outcome.append(out.stdout.decode().strip())
        await anyio.run_process(["umount", point])

    outcome = []
    callbacks = {name: getattr(tree, name) for name in fuse.path.CALLBACKS if name in vars(tree)}
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(use)
            await fuse.path.main(mountpoint=point, **options, **callbacks)
    return outcome[0]


async def test_main_serves_functions_until_it_is_unmounted(point, kind):
    tree = Tree(kind, a=b"content")
    program = "print(open(top + '/a').read())"
    assert await serving(point, tree, program, mountopts="fsname=x\\,y,ro,noatime") == "content"
    assert not is_mounted(point)


@on_one_loop
async def test_main_mounts_as_mountopts_say(point):
    tree = Tree(a=b"")
    program = """
import subprocess
print(subprocess.run(["findmnt", "-nro", "SOURCE,OPTIONS", top], capture_output=True).stdout)
"""
    out = await serving(point, tree, program, mountopts="fsname=one\\,two,ro,allow_other")
    assert "one,two" in out and "ro," in out and "allow_other" in out
    assert "default_permissions" in out
    tree.access = lambda path, mode: 0
    assert "default_permissions" not in await serving(point, tree, program)


@on_one_loop
@pytest.mark.parametrize(
    ("written", "fsname"),
    [("a\\,b", "a,b"), ("a\\\\", "a\\"), ("\\\\\\,\\b", "\\,\\b"), ("a\\\\\\\\,", "a\\\\")],
)
async def test_commas_and_backslashes_in_mountopts_are_escaped(point, written, fsname):
    source = f"{fsname} {point} fuse ro,".replace("\\", "\\134")
    program = "print(open('/proc/self/mounts').read())"
    out = await serving(point, Tree(), program, mountopts=f"fsname={written},ro")
    assert any(line.startswith(source) for line in out.splitlines())


@on_one_loop
async def test_main_refuses_what_it_does_not_know(point):
    with pytest.raises(ValueError, match=r"unknown option 'nonsense'; those known are: .*allow_o"):
        await fuse.path.main(mountpoint=point, mountopts="ro,nonsense")
    with pytest.raises(TypeError, match=r"unknown callback 'reed'; those known are: .*read,"):
        await fuse.path.main(mountpoint=point, reed=print)
    with pytest.raises(TypeError, match="getattr must be a function, not 'main::my_getattr'"):
        await fuse.path.main(mountpoint=point, getattr="main::my_getattr")
    with pytest.raises(TypeError, match=r"rename\(path\) cannot be called with 2 arguments"):
        await fuse.path.main(mountpoint=point, rename=lambda path: 0)
    with pytest.raises(TypeError, match=r"read\(.*\) cannot be called with 3 to 4 arguments"):
        await fuse.path.main(mountpoint=point, read=lambda path, size: b"")
    with pytest.raises(FileNotFoundError):
        await fuse.path.main(mountpoint=point / "missing")
    assert not is_mounted(point)


@on_one_loop
async def test_debug_logs_a_line_a_call(point, caplog):
    caplog.set_level(logging.INFO, "truenas_os.fuse")
    tree = Tree(a=b"content")
    await serving(point, tree, "open(top + '/a').read(); os.path.exists(top + '/b')", debug=True)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == len(tree.seen)
    assert any(line.startswith("read('/a', ") and "b'content'" in line for line in lines)
    assert any(line.startswith("getattr('/b') = -2 in ") for line in lines)
    caplog.clear()
    await serving(point, tree, "os.stat(top + '/a')")
    assert not caplog.records


async def test_not_threaded_is_one_callback_at_a_time(point, kind):
    class Counting(Tree):
        most = now = 0

        def noted(self, kind, name, callback):
            if kind == "plain":

                def call(*args):
                    self.enter()
                    time.sleep(0.001)
                    self.now -= 1
                    return callback(*args)

                return call

            async def wait(*args):
                self.enter()
                await anyio.sleep(0.001)
                self.now -= 1
                return callback(*args)

            return wait if kind == "async" else lambda *args: wait(*args)

        def enter(self):
            self.now += 1
            self.most = max(self.most, self.now)

    program = """
import threading
names = [f"{top}/{number}" for number in range(60)]
threads = [threading.Thread(target=os.path.exists, args=[name]) for name in names]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""
    tree = Counting(kind)
    await serving(point, tree, program)
    assert tree.most == 1
    tree = Counting(kind)
    await serving(point, tree, program, threaded=True)
    assert tree.most > 1


@on_one_loop
async def test_with_nullpath_ok_there_are_no_paths_where_there_are_handles(point):
    class Handled(Opening):
        def item(self, path):
            return super().item(path or "/a")

        def lock(self, path, command, lock, fh):
            return 0

        def readdir(self, path, offset, fh):
            return self.below("/")

        def releasedir(self, path, fh):
            return 0

        def fsyncdir(self, path, datasync, fh):
            return 0

        def ioctl(self, path, command, flags, data, fh):
            return 0

        def poll(self, path, handle, events, fh):
            return events

    program = """
import fcntl, select
file = open(top + "/a", "r+b", 0)
file.write(file.read(1))
fcntl.lockf(file, fcntl.LOCK_EX)
fcntl.ioctl(file, 0x4603)
asked = select.poll()
asked.register(file)
asked.poll()
file.truncate(2)
os.fsync(file)
file.close()
os.truncate(top + "/a", 1)
fd = os.open(top, os.O_RDONLY)
os.fsync(fd)
os.listdir(fd)
os.close(os.open(top + "/b", os.O_CREAT))
"""
    for nullpath in (False, True):
        tree = Handled(a=b"content")
        await serving(point, tree, program, nullpath_ok=nullpath)
        # Each was called, and with a path just where it is needed.
        given = {call[0]: {bool(each[1]) for each in tree.calls(call[0])} for call in tree.seen}
        handled = (
            "read write flush release fsync readdir releasedir fsyncdir ftruncate fgetattr lock"
        )
        for name in handled.split():
            assert given.pop(name) == {not nullpath}, name
        assert {"getattr", "open", "truncate", "create", "ioctl", "poll"} <= given.keys()
        assert all(paths == {True} for paths in given.values())


# What fits no form, and what goes wrong.


@on_one_loop
async def test_what_fits_no_form_is_logged_and_fails_with_EIO(point, caplog):
    class Odd(Tree):
        def read(self, path, size, offset, fh):
            return b"x" * (size + 1)

        def write(self, path, data, offset, fh):
            return len(data) + 1

        def readlink(self, path):
            return 5

        def getdir(self, path):
            return ["a", 1.5]

        def statfs(self):
            return 1, 2, 3

        def chmod(self, path, mode):
            return True

        def getxattr(self, path, name):
            return "text"

        def rename(self, old, new):
            return "no"

        def mkdir(self, path, mode):
            return 5

    tree = Odd(a=b"content")
    tree.add("/link", stat.S_IFLNK | 0o777, b"a")
    async with fuse.mount(tree, point) as session:
        for callback, expression in {
            "read": "open(top + '/a', 'rb', 0).read(5)",
            "write": "open(top + '/a', 'r+b', 0).write(b'x')",
            "readlink": "os.readlink(top + '/link')",
            "getdir": "os.listdir(top)",
            "statfs": "os.statvfs(top)",
            "chmod": "os.chmod(top + '/a', 0)",
            "getxattr": "os.getxattr(top + '/a', 'user.x')",
            "rename": "os.rename(top + '/a', top + '/b')",
            "mkdir": "os.mkdir(top + '/d')",
        }.items():
            caplog.clear()
            assert await error_of(session, expression) == "EIO", callback
            errors = [each for each in caplog.records if each.levelno == logging.ERROR]
            assert any(each.getMessage().startswith(f"{callback} has returned ") for each in errors)
    assert tree.items.keys() == {"/", "/a", "/link"}


async def test_an_exception_is_logged_and_fails_with_EIO(point, kind, caplog):
    class Broken(Tree):
        def getdir(self, path):
            return 1 // 0

        def init(self):
            return 1 // 0

    async with fuse.mount(Broken(kind), point) as session:
        assert await error_of(session, "os.listdir(top)") == "EIO"
    assert [str(each.exc_info[1]) for each in caplog.records if each.exc_info].count(
        str(caplog.records[0].exc_info[1])
    ) == 2


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, asyncio.CancelledError])
async def test_a_plain_callback_does_not_end_the_server(point, error, caplog):
    class Exiting(Tree):
        def read(self, path, size, offset, fh):
            raise error

    async with fuse.mount(Exiting(a=b"content"), point) as session:
        assert await error_of(session, "open(top + '/a').read()") == "EIO"
        assert await client(session, "print(os.listdir(top))") == "['a']"
    raised = [each.exc_info[1] for each in caplog.records if each.exc_info]
    assert raised and all(isinstance(each.__cause__, error) for each in raised)


@on_one_loop
async def test_what_has_no_callback_is_not_offered(point):
    class Bare(fuse.PathOperations):
        def getattr(self, path):
            return os.lstat("/") if path == "/" else os.lstat(__file__)

    async with fuse.mount(Bare(), point) as session:
        flags = session.features.flags
        assert InitFlag.NO_OPEN_SUPPORT in flags and InitFlag.NO_OPENDIR_SUPPORT in flags
        for flag in (InitFlag.POSIX_LOCKS, InitFlag.FLOCK_LOCKS, InitFlag.DO_READDIRPLUS):
            assert flag not in flags
        assert await error_of(session, "os.listdir(top)") == "ENOSYS"
        assert await error_of(session, "os.getxattr(top, 'user.x')") == "ENOTSUP"
        assert await error_of(session, "os.mkdir(top + '/d')") == "EEXIST"
        assert await client(session, "print(os.statvfs(top).f_namemax)") == "255"
        assert (
            await client(session, "os.close(os.open(top + '/a', 0)); print('opened')") == "opened"
        )


# Paths.


async def test_paths_stay_right_while_what_is_open_is_renamed(point, kind):
    tree = Opening(kind, a=b"content")
    tree.add("/d", stat.S_IFDIR | 0o755)
    async with fuse.mount(tree, point) as session:
        await client(
            session,
            """
            os.chdir(top)
            directory = os.open("d", os.O_RDONLY)
            file = open("a", "r+b", 0)
            os.rename("a", "d/b")
            file.write(b"1")
            os.rename("d", "e")
            file.write(b"2")
            os.fchmod(file.fileno(), 0o600)
            assert os.listdir(directory) == ["b"]
            os.mkdir("f", dir_fd=directory)
            file.close()
            """,
        )
        await until(lambda: tree.calls("release"), "the release")
    assert [call[1] for call in tree.calls("write")] == ["/d/b", "/e/b"]
    assert tree.calls("chmod")[0][1] == "/e/b"
    assert tree.calls("mkdir")[0][1] == "/e/f"
    assert tree.calls("getdir")[-1][1] == "/e"
    assert tree.calls("flush")[-1][1] == tree.calls("release")[-1][1] == "/e/b"


REMOVE_OPEN = """
    os.chdir(top)
    file = open("a", "r+b", 0)
    {removal}
    print(os.listdir("."), os.fstat(file.fileno()).st_nlink)
    file.write(b"CON")
    print(os.pread(file.fileno(), 20, 0), os.fstat(file.fileno()).st_size)
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    path = os.fsencode(f"/proc/self/fd/{{file.fileno()}}")
    assert libc.linkat(-100, path, -100, b"again", 0x400) == -1
    print(errno.errorcode[ctypes.get_errno()])
    file.close()
"""


@pytest.mark.parametrize(
    "removal", ["os.unlink('a')", "os.rename('b', 'a')"], ids=["unlinked", "replaced"]
)
async def test_what_is_removed_while_it_is_open_is_renamed_and_removed_at_its_end(
    point, removal, kind
):
    tree = Tree(kind, a=b"content", b=b"other")
    async with fuse.mount(tree, point) as session:
        out = await client(session, REMOVE_OPEN.format(removal=removal))
        await until(lambda: tree.calls("unlink"), "the removal")
    left = ["a"] if "rename" in removal else ["b"]
    assert out.splitlines() == [f"{left} 0", "b'CONtent' 7", "ENOENT"]
    (unlinked,) = tree.calls("unlink")
    renamed = tree.calls("rename")
    assert renamed[0] == ("rename", "/a", unlinked[1])
    assert unlinked[1].startswith("/.fuse_hidden")
    assert renamed[1:] == ([("rename", "/b", "/a")] if "rename" in removal else [])
    assert sorted(tree.items) == ["/", *(f"/{name}" for name in left)]


@on_one_loop
@pytest.mark.parametrize("has_fgetattr", [True, False])
async def test_with_hard_remove_it_has_no_path_any_more(point, has_fgetattr):
    class Removing(Opening):
        def item(self, path):
            return super().item(path) if path else self.handles[0][2]

        def open(self, path, flags, info):
            self.handles.append(["handle", path, self.items[path]])
            return 0, self.handles[-1]

        def fgetattr(self, path, fh):
            return self.attributes(fh[2])

    tree = Removing(a=b"content")
    tree.hard_remove = True
    if not has_fgetattr:
        tree.fgetattr = fuse.PathOperations.fgetattr.__get__(tree)
    async with fuse.mount(tree, point) as session:
        out = await client(session, REMOVE_OPEN.format(removal="os.unlink('a')"))
        await until(lambda: tree.calls("release"), "the release")
    assert out.splitlines() == ["[] 0", "b'CONtent' 7", "ENOENT"]
    assert tree.calls("rename") == [] and tree.calls("unlink") == [("unlink", "/a")]
    for name in ("write", "read", "flush", "release"):
        assert {call[1] for call in tree.calls(name)} == {""}, name
    # Nothing else is called with a path that leads nowhere.
    assert all(call[1] for call in tree.calls("getattr", "link", "chmod"))


class Unkept(Tree):
    """Nothing that it says is kept."""

    def getattr(self, path):
        item = self.item(path)
        attr = fuse.EntryAttributes(entry_timeout=0, attr_timeout=0, st_mode=item.mode)
        attr.st_size = len(item.content)
        return attr


@on_one_loop
@pytest.mark.parametrize("can_rename", [True, False])
async def test_what_has_no_path_any_more_has_the_size_of_what_was_written(point, can_rename):
    class Held(Unkept):
        """Its handles are what they lead to."""

        hard_remove = True

        def open(self, path, flags):
            return 0, self.item(path)

        def read(self, path, size, offset, fh):
            return bytes(fh.content[offset : offset + size])

        def write(self, path, data, offset, fh):
            fh.content[offset : offset + len(data)] = data
            return len(data)

        def ftruncate(self, path, size, fh):
            fh.content[size:] = bytes(max(0, size - len(fh.content)))
            return 0

    tree = Held(a=b"")
    if not can_rename:
        tree.rename = fuse.PathOperations.rename.__get__(tree)
    async with fuse.mount(tree, point) as session:
        out = await client(
            session,
            """
            file = open(top + "/a", "r+b", 0)
            def show():
                print(os.fstat(file.fileno()).st_size, os.pread(file.fileno(), 100, 0))
            file.write(b"one")
            os.unlink(top + "/a")
            show()
            file.write(b"two")
            os.pwrite(file.fileno(), b"O", 0)
            show()
            file.truncate(4)
            show()
            file.truncate(5)
            show()
            """,
        )
    assert out.splitlines() == ["3 b'one'", "6 b'Onetwo'", "4 b'Onet'", "5 b'Onet\\x00'"]


@on_one_loop
async def test_a_hidden_file_does_not_keep_its_directory(point):
    tree = Tree(a=b"")
    tree.add("/d", stat.S_IFDIR | 0o755)
    tree.add("/d/x", REGULAR, b"content")
    async with fuse.mount(tree, point) as session:
        out = await client(
            session,
            """
            file = open(top + "/d/x", "rb", 0)
            os.unlink(top + "/d/x")
            assert os.listdir(top + "/d") == []
            os.rmdir(top + "/d")
            print(file.read(), os.listdir(top))
            """,
        )
        await until(lambda: tree.items.keys() == {"/", "/a"}, "the removal")
    assert out == "b'content' ['a']"


@on_one_loop
async def test_what_is_hidden_takes_no_place_where_its_directory_was(point):
    tree = Tree()
    tree.add("/d", stat.S_IFDIR | 0o755)
    tree.add("/d/x", REGULAR, b"content")
    async with fuse.mount(tree, point) as session:
        holding = Client(
            session,
            """
            file = open(top + "/d/x", "rb", 0)
            os.unlink(top + "/d/x")
            print("unlinked", flush=True)
            sys.stdin.readline()
            os.rmdir(top + "/d")
            print(file.read())
            """,
            stdin=-1,
        )
        await anyio.to_thread.run_sync(holding.process.stdout.readline)
        (hidden,) = (path for path in tree.items if "hidden" in path)
        left = hidden.removeprefix("/d")
        tree.add(left, REGULAR, b"left by another session")
        say(holding)
        assert await holding.end() == ("b'content'\n", "")
        await until(lambda: tree.items.keys() == {"/", left}, "the removal")


@on_one_loop
async def test_what_is_hidden_does_not_outlive_the_session(point):
    tree = Tree(a=b"content")
    async with fuse.mount(tree, point, unmount_timeout=0.1) as session:
        holding = Client(
            session,
            """
            file = open(top + "/a")
            os.unlink(top + "/a")
            print("unlinked", flush=True)
            sys.stdin.read()
            """,
            stdin=-1,
        )
        await anyio.to_thread.run_sync(holding.process.stdout.readline)
        assert len(tree.items) == 2
    assert tree.items.keys() == {"/"}
    await holding.end()


@on_one_loop
@pytest.mark.parametrize("has_create", [False, True])
async def test_nothing_takes_the_place_of_what_is_hidden(point, has_create):
    class Creating(Tree):
        def create(self, path, mode, flags):
            self.add(path, mode)

    tree = (Creating if has_create else Tree)(a=b"content", b=b"other")
    async with fuse.mount(tree, point) as session:
        holding = Client(
            session,
            """
            file = open(top + "/a", "rb", 0)
            os.unlink(top + "/a")
            print("unlinked", flush=True)
            sys.stdin.readline()
            print(file.read())
            """,
            stdin=-1,
        )
        await anyio.to_thread.run_sync(holding.process.stdout.readline)
        (hidden,) = (path for path in tree.items if "hidden" in path)
        for expression in (
            "open(hidden, 'wb')",
            "os.mknod(hidden)",
            "os.mkdir(hidden)",
            "os.symlink('b', hidden)",
            "os.link('b', hidden)",
            "os.rename('b', hidden)",
        ):
            prepared = f"os.chdir(top); hidden = {hidden[1:]!r}; {expression}"
            assert await error_of(session, prepared) == "EEXIST", expression
        say(holding)
        assert await holding.end() == ("b'content'\n", "")
        await until(lambda: tree.items.keys() == {"/", "/b"}, "the removal")
    assert not tree.calls("create", "mknod", "mkdir", "symlink", "link")


@on_one_loop
async def test_what_is_hidden_and_cannot_be_removed_at_its_end_is_removed_at_the_sessions(point):
    class Busy(Tree):
        is_busy = True

        def unlink(self, path):
            return -errno.EBUSY if self.is_busy else super().unlink(path)

    tree = Busy(a=b"content")
    async with fuse.mount(tree, point) as session:
        await client(session, "file = open(top + '/a'); os.unlink(top + '/a')")
        forgets = ("FORGET", "BATCH_FORGET")
        await until(lambda: session.stats.requests.keys() & forgets, "the forgetting")
        assert await client(session, "print(os.listdir(top))") == "[]"
        assert len(tree.items) == 2
        tree.is_busy = False
    assert tree.items.keys() == {"/"}


async def test_a_session_ends_while_the_removal_of_what_is_hidden_hangs(point, kind, monkeypatch):
    hang = threading.Event()

    class Hanging(Tree):
        destroyed = False

        def noted(self, kind, name, callback):
            noted = super().noted(kind, name, callback)

            async def wait(path):
                await anyio.sleep_forever()

            def call(path):
                hang.wait(60)

            return noted if name != "unlink" else wait if kind == "async" else call

        def destroy(self, private_data):
            self.destroyed = True

    monkeypatch.setattr(pathcalls, "_PATIENCE", 0.1)
    tree = Hanging(kind, a=b"content", b=b"content")
    try:
        with anyio.fail_after(20):
            async with fuse.mount(tree, point, unmount_timeout=0.1) as session:
                holding = Client(
                    session,
                    """
                    files = [open(top + "/a"), open(top + "/b")]
                    for name in os.listdir(top):
                        os.unlink(f"{top}/{name}")
                    print("unlinked", flush=True)
                    sys.stdin.read()
                    """,
                    stdin=-1,
                )
                await anyio.to_thread.run_sync(holding.process.stdout.readline)
        assert tree.destroyed and len(tree.items) == 3
    finally:
        hang.set()
    await holding.end()


@on_one_loop
async def test_a_rename_that_fails_leaves_what_was_to_be_replaced(point):
    class Refusing(Tree):
        def rename(self, old, new):
            return -errno.EDQUOT if new == "/a" and old == "/b" else super().rename(old, new)

    tree = Refusing(a=b"content", b=b"other")
    async with fuse.mount(tree, point) as session:
        out = await client(
            session,
            """
            file = open(top + "/a", "rb", 0)
            try:
                os.rename(top + "/b", top + "/a")
            except OSError as error:
                print(errno.errorcode[error.errno])
            print(file.read(), open(top + "/a").read(), os.fstat(file.fileno()).st_nlink)
            """,
        )
    assert out.splitlines() == ["EDQUOT", "b'content' content 1"]
    assert tree.items.keys() == {"/", "/a", "/b"}


@on_one_loop
async def test_hard_links_share_an_inode_if_they_have_a_number(point):
    class Unnumbered(Tree):
        def attributes(self, item):
            found = super().attributes(item)
            return (*found[:1], 0, *found[2:])

    program = """
        os.chdir(top)
        os.stat("a")
        os.link("a", "b")
        print(os.stat("a").st_ino == os.stat("b").st_ino)
        file = open("a", "rb", 0)
        os.unlink("a")
        print(file.read(), os.listdir())
    """
    tree = Tree(a=b"content")
    async with fuse.mount(tree, point) as session:
        assert await client(session, program) == "True\nb'content' ['b']"
    # There is another path to what is open.
    assert tree.calls("rename") == []
    async with fuse.mount(Unnumbered(a=b"content"), point) as session:
        assert await client(session, program) == "False\nb'content' ['b']"


@on_one_loop
@pytest.mark.parametrize("replaced", [False, True])
async def test_a_name_that_has_gone_by_itself_is_no_link_to_what_is_removed(point, replaced):
    tree = Tree(a=b"content")
    async with fuse.mount(tree, point) as session:
        await client(session, "os.stat(top + '/a')")
        tree.items["/b"] = tree.items.pop("/a")
        if replaced:
            tree.add("/a", REGULAR, b"other")
        out = await client(
            session,
            """
            file = open(top + "/b", "rb", 0)
            os.unlink(top + "/b")
            print(file.read())
            """,
        )
        await until(lambda: tree.calls("unlink"), "the removal")
    assert out == "b'content'"
    ((_, hidden),) = tree.calls("unlink")
    assert tree.calls("rename") == [("rename", "/b", hidden)]
    assert tree.items.keys() == {"/", *(["/a"] if replaced else [])}


async def test_what_is_made_while_it_is_not_found_keeps_its_path(point):
    class Slow(Unkept):
        threaded = True

        def __init__(self, **files):
            super().__init__(**files)
            self.unlinking, self.unlink_now = anyio.Event(), anyio.Event()
            self.missed, self.say_so = anyio.Event(), anyio.Event()

        async def getattr(self, path):
            try:
                return super().getattr(path)
            except fuse.FUSEError:
                if not self.missed.is_set():
                    self.missed.set()
                    await self.say_so.wait()
                raise

        async def unlink(self, path):
            self.unlinking.set()
            await self.unlink_now.wait()
            return super().unlink(path)

        def create(self, path, mode, flags):
            self.add(path, mode)

        def release(self, path, flags, fh):
            return 0

    tree = Slow(a=b"content")
    async with fuse.mount(tree, point) as session:
        making = Client(
            session,
            """
            os.unlink(top + "/a")
            sys.stdin.readline()
            with open(top + "/a", "wb", 0) as file:
                print("made", flush=True)
                sys.stdin.readline()
                file.write(b"new")
            """,
            stdin=-1,
        )
        await tree.unlinking.wait()
        lookups = session.stats.requests["LOOKUP"]
        looking = Client(session, "print(os.path.exists(top + '/a'))")
        await until(lambda: session.stats.requests["LOOKUP"] > lookups, "the lookup")
        tree.unlink_now.set()
        await tree.missed.wait()
        say(making)
        assert await anyio.to_thread.run_sync(making.process.stdout.readline) == "made\n"
        tree.say_so.set()
        await looking.end()
        say(making)
        await making.end()
        await until(lambda: tree.calls("release"), "the release")
    assert [call[1] for call in tree.calls("write", "release")] == ["/a", "/a"]
    assert tree.items["/a"].content == b"new"


@on_one_loop
async def test_no_path_changes_while_a_callback_uses_it(point):
    class Watchful(Opening):
        """Looks whether its paths lead to the same before and after it has slept."""

        threaded = True
        wrong = ()

        def noted(self, kind, name, callback):
            async def wait(*args):
                self.seen.append((name, *args))
                before = [self.items.get(path) for path in args if isinstance(path, str)]
                await anyio.sleep(0 if name == "rename" else 0.0005)
                after = [self.items.get(path) for path in args if isinstance(path, str)]
                if before != after or (name in self.needing and None in after):
                    self.wrong = (*self.wrong, (name, *args))
                return callback(*args)

            return wait

        needing = ("read", "write", "getdir", "chmod", "flush", "release", "fgetattr", "open")

    tree = Watchful()
    for path in ("/d", "/d/e"):
        tree.add(path, stat.S_IFDIR | 0o755)
    tree.add("/d/e/a", REGULAR, b"content")
    async with fuse.mount(tree, point) as session:
        out = await client(
            session,
            """
            import threading, time
            os.chdir(top)
            file, directory = os.open("d/e/a", os.O_RDWR), os.open("d/e", os.O_RDONLY)
            ends = time.monotonic() + 1.2
            failures, count = [], []

            def again(*calls):
                while time.monotonic() < ends:
                    for call in calls:
                        try:
                            call()
                        except OSError as error:
                            failures.append(errno.errorcode[error.errno])
                        count.append(1)

            def reopen():
                fd = os.open("a", os.O_RDONLY, dir_fd=directory)
                os.close(fd)

            def remove():
                with open("d/f", "wb") as left:
                    left.write(b"x")
                    os.unlink("d/f")

            threads = [
                threading.Thread(target=again, args=calls)
                for calls in (
                    (lambda: os.rename("d/e", "d/g"), lambda: os.rename("d/g", "d/e")),
                    (lambda: os.rename("d/e/a", "d/e/b"), lambda: os.rename("d/e/b", "d/e/a")),
                    (lambda: os.pwrite(file, b"x", 0), lambda: os.fsync(file)),
                    (lambda: os.fchmod(file, 0o600), lambda: os.fstat(file)),
                    (lambda: os.listdir(directory), reopen),
                    (remove,),
                )
            ]
            for thread in threads: thread.start()
            for thread in threads: thread.join()
            # Of the renames, each may find that the other has been quicker.
            print(len(count) > 100, set(failures) <= {"ENOENT"})
            print(os.pread(file, 7, 0))
            """,
        )
    assert tree.wrong == ()
    assert out.splitlines() == ["True True", "b'xontent'"]
    assert len(tree.calls("rename")) > 20
