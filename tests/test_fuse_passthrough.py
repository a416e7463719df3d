# SPDX-License-Identifier: LGPL-3.0-or-later
"""Backing files: the kernel reads and writes them in place of what is served, and gives them back.

The witness for a backing file that is still held is its filesystem, which cannot be unmounted.
"""

import contextlib
import errno
import os
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import anyio
import kernel
import pytest
from filesystems import needs_root, require_kernel
from serving import AMPLE, Client, Files, client, error_of
from stuck import until

from truenas_os import fuse
from truenas_os.fuse.wire import InitFlag

pytestmark = pytest.mark.anyio
off_the_loop = anyio.to_thread.run_sync


@pytest.fixture
def point(mount_dir):
    path = mount_dir / "fuse"
    path.mkdir()
    return path


@pytest.fixture
def store(mount_dir):
    path = mount_dir / "store"
    path.mkdir()
    kernel.mount("tmpfs", path, "tmpfs")
    return path


class Backed(Files):
    """Files whose content is in files of their own, which have the names of the inodes."""

    enable_writeback_cache = False
    enable_passthrough = True

    def __init__(self, store, **files):
        self.store = store
        self.is_backed = True
        self.info = {}
        self.other = None
        self.statuses = {}
        super().__init__(**files)

    def add(self, name, content=b"", mode=0o100644):
        inode = super().add(name, b"", mode)
        (self.store / str(inode)).write_bytes(content)
        return inode

    def attributes(self, inode):
        attr = super().attributes(inode)
        attr.attr_timeout = 300
        if inode in self.statuses:
            status = self.statuses[inode]
            attr.st_size, attr.st_mtime_ns = status.st_size, status.st_mtime_ns
        return attr

    async def look(self, inode):
        self.statuses[inode] = await off_the_loop(os.stat, self.store / str(inode))

    async def lookup(self, parent_inode, name, ctx):
        if name in self.names:
            await self.look(self.names[name])
        return await super().lookup(parent_inode, name, ctx)

    async def getattr(self, inode, ctx):
        if inode != fuse.ROOT_INODE:
            await self.look(inode)
        return self.attributes(inode)

    async def setattr(self, inode, attr, fields, fh, ctx):
        if fields.update_size:
            await off_the_loop(os.truncate, self.store / str(inode), attr.st_size)
        return await self.getattr(inode, ctx)

    async def open(self, inode, flags, ctx):
        fd = await off_the_loop(os.open, self.store / str(inode), os.O_RDWR)
        backing_fd = (self.other or fd) if self.is_backed else None
        return fuse.FileInfo(fh=fd, backing_fd=backing_fd, **self.info)

    async def create(self, parent_inode, name, mode, flags, ctx):
        inode = await off_the_loop(self.add, name, b"", mode)
        await self.look(inode)
        return await self.open(inode, flags, ctx), self.entry(inode)

    async def read(self, fh, off, size):
        return await off_the_loop(os.pread, fh, size, off)

    async def write(self, fh, off, buf):
        return await off_the_loop(os.pwrite, fh, buf, off)

    async def release(self, fh):
        await off_the_loop(os.close, fh)


class Shell(Client):
    """A client that is asked for one expression after another."""

    def __init__(self, session):
        program = """
            for line in sys.stdin:
                try:
                    print(eval(line), flush=True)
                except OSError as error:
                    print(errno.errorcode[error.errno], flush=True)
            """
        super().__init__(session, program, stdin=subprocess.PIPE)

    async def ask(self, expression):
        def ask():
            self.process.stdin.write(expression + "\n")
            self.process.stdin.flush()
            return self.process.stdout.readline().rstrip("\n")

        with anyio.fail_after(AMPLE):
            return await anyio.to_thread.run_sync(ask)


@pytest.fixture
async def shell():
    """Makes clients that end with the test."""
    shells = []

    def made(session):
        shells.append(Shell(session))
        return shells[-1]

    yield made
    for each in shells:
        await each.end()


def is_held(store):
    """Whether the kernel has a file of it open still; if not, it is unmounted."""
    try:
        kernel.umount(store)
    except OSError as error:
        assert error.errno == errno.EBUSY
        return True
    return False


def counts(session, *names):
    return [session.stats.requests.get(name, 0) for name in names]


async def released(session):
    """Wait until what was opened is released."""

    def all_are():
        opened, created, done = counts(session, "OPEN", "CREATE", "RELEASE")
        return opened + created == done and not session.stats.active

    await until(all_are, "the releases")


@needs_root
async def test_the_kernel_reads_writes_and_maps_by_itself(point, store):
    filesystem = Backed(store, a=b"one")
    async with fuse.mount(filesystem, point) as session:
        assert session.features.flags & InitFlag.PASSTHROUGH
        out = await client(
            session,
            """
            import mmap
            def size(): return os.stat(top + "/a").st_size
            fd = os.open(top + "/a", os.O_RDWR)
            print(os.read(fd, 100).decode(), size())
            os.pwrite(fd, b"two", 3)
            print(size(), os.pread(fd, 100, 0).decode())
            one, two = (os.open(top + "/a", os.O_WRONLY | os.O_APPEND) for _ in range(2))
            os.write(one, b"3"); os.write(two, b"4"); os.write(one, b"5")
            print(size(), os.pread(fd, 100, 0).decode())
            map = mmap.mmap(fd, 9)
            map[:3] = b"ONE"
            print(os.pread(fd, 3, 0).decode())
            os.pwrite(fd, b"TWO", 3)
            print(map[:].decode())
            map.flush()
            os.ftruncate(fd, 4)
            print(size(), os.pread(fd, 100, 0))
            os.truncate(top + "/a", 6)
            print(size(), os.pread(fd, 100, 0))
            before = os.fstat(fd).st_mtime_ns
            os.pwrite(fd, b"x", 0)
            print(os.fstat(fd).st_mtime_ns > before)
            new = os.open(top + "/b", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            os.write(new, b"new")
            print(os.fstat(new).st_size, open(top + "/b").read())
            """,
        )
        assert out.splitlines() == [
            "one 3",
            "6 onetwo",
            "9 onetwo345",
            "ONE",
            "ONETWO345",
            "4 b'ONET'",
            "6 b'ONET\\x00\\x00'",
            "True",
            "3 new",
        ]
        assert counts(session, "READ", "WRITE") == [0, 0]
        assert ((store / "2").read_bytes(), (store / "3").read_bytes()) == (b"xNET\0\0", b"new")
        await released(session)
        await until(lambda: not is_held(store), "the end of its use")


@needs_root
@pytest.mark.parametrize("is_backed", [True, False], ids=["by_the_kernel", "by_handlers"])
async def test_who_changes_a_file_takes_setuid_away(point, store, shell, is_backed):
    class Moded(Backed):
        async def setattr(self, inode, attr, fields, fh, ctx):
            if fields.update_mode:
                await off_the_loop(os.chmod, self.store / str(inode), attr.st_mode & 0o7777)
                self.inodes[inode][1] = 0o100000 | attr.st_mode & 0o7777
            return await super().setattr(inode, attr, fields, fh, ctx)

        async def fallocate(self, fh, mode, off, length, ctx):
            await off_the_loop(os.posix_fallocate, fh, off, length)

        async def copy_file_range(self, fh_in, off_in, fh_out, off_out, length, flags, ctx):
            copy = os.copy_file_range
            return await off_the_loop(copy, fh_in, fh_out, length, off_in, off_out)

    filesystem = Moded(store, a=b"content")
    filesystem.is_backed = is_backed
    async with fuse.mount(filesystem, point, allow_other=True) as session:
        assert session.features.flags & InitFlag.HANDLE_KILLPRIV_V2
        writing = shell(session)
        await writing.ask("os.chdir(top), os.chmod('a', 0o666)")
        fd = await writing.ask("os.seteuid(12345) or os.open('a', os.O_RDWR)")
        for call in (
            f"os.pwrite({fd}, b'x', 0)",
            f"os.pwrite({fd}, b'x', 0)",
            f"os.ftruncate({fd}, 5)",
            f"os.posix_fallocate({fd}, 0, 9)",
            f"os.copy_file_range({fd}, {fd}, 1, 0, 7)",
            "os.seteuid(0) or os.chown('a', 1, -1)",
        ):
            for mode, left in ((0o4755, 0o755), (0o2775, 0o775), (0o2745, 0o2745)):
                await client(session, "os.chmod(top + '/a', int(sys.argv[2]))", mode)
                assert stat.S_IMODE((store / "2").stat().st_mode) == mode
                await writing.ask(call)
                assert stat.S_IMODE((store / "2").stat().st_mode) == left, (call, oct(mode))
        assert bool(counts(session, "WRITE")[0]) != is_backed
        # Root, where handlers write, has CAP_FSETID.
        if not is_backed:
            await client(session, "os.chmod(top + '/a', 0o6777)")
            await writing.ask(f"os.pwrite({fd}, b'x', 0), os.ftruncate({fd}, 3)")
            assert stat.S_IMODE((store / "2").stat().st_mode) == 0o6777
        # What is in use would be unmounted only after a while.
        await writing.ask(f"os.close({fd}) or os.chdir('/')")


@needs_root
async def test_all_who_have_an_inode_open_share_what_the_first_has(point, store, shell):
    filesystem = Backed(store, a=b"one", b=b"other")
    async with fuse.mount(filesystem, point) as session:
        using = shell(session)
        read = "os.pread({}, 9, 0).decode()".format
        opened = "os.open(top + '/a', os.O_RDWR)"
        first = await using.ask(opened)
        filesystem.is_backed = False
        second = await using.ask(opened)
        filesystem.is_backed, filesystem.other = True, os.open(store / "3", os.O_RDWR)
        third = await using.ask(opened)
        os.close(filesystem.other)
        for fd in (first, second, third):
            assert await using.ask(read(fd)) == "one"
        await using.ask(f"os.close({first}), os.close({third})")
        assert await using.ask(f"os.pwrite({second}, b'two', 0)") == "3"
        assert await using.ask(read(second)) == "two"
        assert counts(session, "READ", "WRITE") == [0, 0]
        await using.ask(f"os.close({second})")
        await released(session)

        # And where the first has none.
        filesystem.is_backed, filesystem.other = False, None
        first = await using.ask(opened)
        filesystem.is_backed = True
        second = await using.ask(opened)
        assert await using.ask(read(second)) == "two"
        assert await using.ask(f"os.pwrite({second}, b'3rd', 0)") == "3"
        assert await using.ask(read(first)) == "3rd"
        assert all(counts(session, "READ", "WRITE"))
        await using.ask(f"os.close({first}), os.close({second})")
        await released(session)

        before = counts(session, "READ")
        fd = await using.ask(opened)
        assert await using.ask("open(top + '/a').read()") == "3rd"
        assert counts(session, "READ") == before
        await using.ask(f"os.close({fd})")


@needs_root
async def test_what_the_page_cache_had_before_is_not_seen_again(point, store, shell):
    filesystem = Backed(store, a=b"one")
    async with fuse.mount(filesystem, point) as session:
        using = shell(session)
        for is_backed, content in ((False, "one"), (True, "two"), (False, "3rd"), (True, "4th")):
            filesystem.is_backed = is_backed
            await using.ask(f"open(top + '/a', 'r+').write({content!r})")
            assert await using.ask("open(top + '/a').read()") == content
            await released(session)


@needs_root
async def test_a_backing_file_is_held_only_while_it_is_used(point, store, shell):
    filesystem = Backed(store, a=b"", b=b"")
    async with fuse.mount(filesystem, point) as session:
        using = shell(session)
        first, second, made = [
            await using.ask(f"os.open(top + '/{name}', os.O_CREAT | os.O_RDWR)") for name in "aac"
        ]
        # Even if the filesystem has closed its own descriptors.
        with open(os.devnull) as null:
            for fd in Path("/proc/self/fd").iterdir():
                with contextlib.suppress(OSError):
                    if fd.readlink().is_relative_to(store):
                        os.dup2(null.fileno(), int(fd.name))
        assert is_held(store)
        assert await using.ask(f"os.write({second}, b'x') + os.write({made}, b'x')") == "2"
        for fd in (first, made):
            await using.ask(f"os.close({fd})")
        assert is_held(store)
        await using.ask(f"os.close({second})")
        await released(session)
        await until(lambda: not is_held(store), "the end of its use")


@needs_root
async def test_no_backing_file_is_held_for_what_could_not_be_opened(point, store, caplog):
    filesystem = Backed(store, a=b"")
    directory = os.open(store.parent, os.O_RDONLY)
    try:
        async with fuse.mount(filesystem, point) as session:
            filesystem.info = {"nonseekable": True}
            for name in ("a", "b"):
                call = f"os.open(top + '/{name}', os.O_RDWR | os.O_CREAT)"
                assert await error_of(session, call) == "EIO"
            filesystem.info = {}
            for filesystem.other in (directory, 987654):
                assert await error_of(session, "open(top + '/a')") == "EIO"
            messages = [str(record.exc_info[1]) for record in caplog.records]
            assert [message.split(":")[0] for message in messages] == [
                "a file with a backing file cannot be nonseekable",
                "a file with a backing file cannot be nonseekable",
                f"backing_fd {directory}",
                "backing_fd 987654",
            ]
            filesystem.other = None
            assert await client(session, "print(open(top + '/a', 'w').write('x'))") == "1"
            await until(
                lambda: counts(session, "RELEASE") == [1] and not session.stats.active,
                "the release",
            )
            await until(lambda: not is_held(store), "the end of its use")
    finally:
        os.close(directory)


@needs_root
async def test_the_end_of_a_session_gives_back_what_is_still_open(point, store, shell):
    class Slow(Backed):
        async def open(self, inode, flags, ctx):
            info = await super().open(inode, flags, ctx)
            if inode == 3:
                self.asked.set()
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(0.3)  # the connection is aborted meanwhile
            return info

    filesystem = Slow(store, a=b"", b=b"")
    filesystem.asked = anyio.Event()
    # What keeps the filesystem in use, and the connection with it.
    async with fuse.mount(filesystem, point, unmount_timeout=0.1) as session:
        using, late = shell(session), shell(session)
        fd = await using.ask("os.chdir(top) or os.open('a', os.O_RDWR)")
        opening = anyio.Event()

        async def open_late():
            assert await late.ask("os.chdir(top) or os.open('b', os.O_RDWR)") == "ECONNABORTED"
            opening.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(open_late)
            await filesystem.asked.wait()
            await anyio.to_thread.run_sync(session._mount.abort)
            await opening.wait()
    for own in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if own.readlink().is_relative_to(store):
                os.close(int(own.name))
    assert is_held(store)  # by who has it open
    await using.ask(f"os.close({fd})")
    await until(lambda: not is_held(store), "the end of its use")


@needs_root
async def test_a_file_on_a_stacked_filesystem_is_served(point, mount_dir):
    require_kernel("overlay")
    for name in ("lower", "upper", "work", "merged"):
        (mount_dir / name).mkdir()
    layers = f"lowerdir={mount_dir}/lower,upperdir={mount_dir}/upper,workdir={mount_dir}/work"
    kernel.mount("overlay", mount_dir / "merged", "overlay", data=layers.encode())
    async with fuse.mount(Backed(mount_dir / "merged", a=b"one"), point) as session:
        assert await client(session, "print(open(top + '/a').read())") == "one"
        assert counts(session, "READ") != [0]


async def test_it_excludes_the_writeback_cache(point):
    class Both(Files):
        enable_passthrough = True

    with pytest.raises(ValueError, match="enable_writeback_cache"):
        fuse.mount(Both(), point)


_ORDINARY = """
    import os, subprocess, sys, tempfile
    from pathlib import Path
    import anyio
    from truenas_os import fuse
    from truenas_os.fuse.wire import InitFlag
    from test_fuse_passthrough import Backed

    async def main(store, top):
        async with fuse.mount(Backed(Path(store), a=b"one"), top) as session:
            read = "import sys; print(open(sys.argv[1] + '/a').read())"
            done = await anyio.run_process([sys.executable, "-c", read, top])
            print(done.stdout.decode().strip(), "READ" in session.stats.requests)
            print(bool(session.features.flags & InitFlag.PASSTHROUGH))

    with tempfile.TemporaryDirectory() as store, tempfile.TemporaryDirectory() as top:
        anyio.run(main, store, top)
"""


def test_who_may_not_use_it_serves_by_handlers():
    command = ["unshare", "--user", "--map-root-user", "--mount", sys.executable, "-c"]
    done = subprocess.run(
        [*command, textwrap.dedent(_ORDINARY)],
        stdout=subprocess.PIPE,
        text=True,
        timeout=AMPLE,
        check=True,
        cwd=Path(__file__).parent,
    )
    assert done.stdout.split() == ["one", "True", "False"]
