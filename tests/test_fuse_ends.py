# SPDX-License-Identifier: LGPL-3.0-or-later
"""How a session begins and ends."""

import asyncio
import errno
import os
import select
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import anyio
import kernel
import pytest
from anyio.to_thread import run_sync
from filesystems import needs_root
from serving import AMPLE, Client, Files, client, error_of, is_mounted
from stuck import fds_return_to, until, wait_until

from truenas_os import fuse

EXAMPLES = Path(__file__).parents[1] / "examples" / "fuse"


@pytest.fixture
def point(mount_dir):
    path = mount_dir / "fuse"
    path.mkdir()
    return path


@pytest.mark.anyio
async def test_the_end_of_the_block_unmounts_and_leaves_no_descriptor(point):
    before = kernel.open_fds()
    filesystem = Files(a=b"")
    session = fuse.mount(filesystem, point, fsname="name", subtype="kind")
    async with session:
        (line,) = [m for m in kernel.mountinfo() if m.mount_point == str(point)]
        assert (line.source, line.fs_type) == ("name", "fuse.kind")
        assert {"nosuid", "nodev"} <= set(line.options.split(","))
        await client(session, "os.listdir(top)")
    assert not is_mounted(point)
    assert filesystem.destroyed == 1
    assert await session.wait() is fuse.SessionEnd.UNMOUNTED
    await session.aclose()
    await fds_return_to(before)


@pytest.mark.anyio
async def test_what_was_written_is_flushed_before_the_end(point):
    filesystem = Files()
    async with fuse.mount(filesystem, point) as session:
        await client(session, "open(top + '/a', 'w').write('x' * 3000000)")
    assert filesystem.inodes[2][0] == b"x" * 3000000


@pytest.mark.anyio
async def test_an_error_in_the_block_unmounts_too(point):
    with pytest.raises(ZeroDivisionError):
        async with fuse.mount(Files(), point):
            _ = 1 // 0
    assert not is_mounted(point)


@pytest.mark.anyio
async def test_a_cancelled_block_unmounts_too(point):
    filesystem = Files()
    with anyio.move_on_after(0.1) as scope:
        async with fuse.mount(filesystem, point) as session:
            await client(session, "open(top + '/a', 'w').write('x')")
            await session.wait()
    assert scope.cancelled_caught
    assert not is_mounted(point)
    assert (filesystem.destroyed, filesystem.inodes[2][0]) == (1, b"x")


@pytest.mark.anyio
async def test_unmounting_elsewhere_ends_the_session(point):
    filesystem = Files()
    async with fuse.mount(filesystem, point) as session:
        await anyio.run_process(["umount", point])
        assert await session.wait() is fuse.SessionEnd.UNMOUNTED
        assert filesystem.destroyed == 1
    assert filesystem.destroyed == 1


@pytest.mark.anyio
@pytest.mark.parametrize("how", ["umount -f", pytest.param("fusectl", marks=needs_root)])
async def test_an_abort_ends_the_session(point, mount_dir, how):
    class Hanging(Files):
        asked = False

        async def lookup(self, parent_inode, name, ctx):
            self.asked = True
            await anyio.sleep_forever()

    filesystem = Hanging()
    async with fuse.mount(filesystem, point, unmount_timeout=0.3) as session:
        hanging = Client(session, "os.stat(top + '/a')")
        await until(lambda: filesystem.asked, "the question")
        if how == "fusectl":
            (mount_dir / "ctl").mkdir()
            kernel.mount("none", mount_dir / "ctl", "fusectl")
            (line,) = [m for m in kernel.mountinfo() if m.mount_point == str(point)]
            (mount_dir / "ctl" / str(line.minor) / "abort").write_text("1")
        else:  # which aborts first, and then finds it in use, or not any more
            await anyio.run_process(["umount", "-f", point], check=False)
        aborted = is_mounted(point)
        _, err = await hanging.end()
        assert "abort" in err or "not connected" in err
        with anyio.fail_after(AMPLE):
            end = await session.wait()
        assert end is (fuse.SessionEnd.ABORTED if aborted else fuse.SessionEnd.UNMOUNTED)
        assert aborted or how != "fusectl"
    assert not is_mounted(point)
    assert filesystem.destroyed == 1


@pytest.mark.anyio
async def test_a_mount_that_is_in_use_is_detached_in_the_end(point):
    filesystem = Files(a=b"content")
    async with fuse.mount(filesystem, point, unmount_timeout=0.3) as session:
        holding = Client(
            session,
            """
            file = open(top + "/a")
            print("open", flush=True)
            __import__("time").sleep(60)
            """,
        )
        await run_sync(holding.process.stdout.readline)
        begun = time.monotonic()
    assert 0.3 <= time.monotonic() - begun < 5
    assert not is_mounted(point)
    assert filesystem.destroyed == 1
    holding.process.kill()
    await holding.end()


@pytest.mark.anyio
async def test_a_mount_that_was_detached_is_served_until_nobody_uses_it(point):
    filesystem = Files(a=b"content")
    async with fuse.mount(filesystem, point) as session:
        using = Client(
            session,
            """
            os.chdir(top)
            print("there", flush=True)
            sys.stdin.readline()
            print(open("a").read())
            """,
            stdin=subprocess.PIPE,
        )
        await run_sync(using.process.stdout.readline)
        await anyio.run_process(["umount", "-l", point])
        assert not is_mounted(point)
        with anyio.move_on_after(0.1) as scope:
            await session.wait()
        assert scope.cancelled_caught
        using.process.stdin.write("\n")
        out, err = await using.end()
        assert out == "content\n", err
        with anyio.fail_after(AMPLE):
            assert await session.wait() is fuse.SessionEnd.UNMOUNTED
    assert filesystem.destroyed == 1


@pytest.mark.anyio
async def test_one_who_uses_a_detached_mount_does_not_keep_the_session(point):
    filesystem = Files(a=b"content")
    async with fuse.mount(filesystem, point, unmount_timeout=0.2) as session:
        using = Client(session, "os.chdir(top); print(flush=True); __import__('time').sleep(60)")
        await run_sync(using.process.stdout.readline)
        await anyio.run_process(["umount", "-l", point])
        begun = time.monotonic()
    assert time.monotonic() - begun < 4
    assert await session.wait() in (fuse.SessionEnd.ABORTED, fuse.SessionEnd.CLOSED)
    assert filesystem.destroyed == 1
    using.process.kill()
    await using.end()


@pytest.mark.anyio
async def test_an_end_is_waited_for_by_several(point):
    async with fuse.mount(Files(), point) as session:
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(session.aclose)
            assert await session.wait() is fuse.SessionEnd.UNMOUNTED
    assert not is_mounted(point)


@pytest.mark.anyio
async def test_a_handler_that_hangs_does_not_keep_the_session(point):
    class Hanging(Files):
        asked = False

        async def write(self, fh, off, buf):
            self.asked = True
            await anyio.sleep_forever()

    filesystem = Hanging(a=b"")
    async with fuse.mount(filesystem, point, unmount_timeout=0.3) as session:
        writing = Client(session, "with open(top + '/a', 'w') as f: f.write('x')")
        await until(lambda: filesystem.asked, "the question")
    _, err = await writing.end()
    assert "OSError" in err
    assert not is_mounted(point)
    assert filesystem.destroyed == 1


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_handler_that_returns_after_the_end_writes_into_no_other_file(point, tmp_path):
    class Late(Files):
        asked = returned = False

        async def read(self, fh, off, size):
            self.asked = True
            try:
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    await over.wait()
                    self.returned = True

    over = anyio.Event()
    filesystem = Late(a=b"content")
    async with fuse.mount(filesystem, point, unmount_timeout=0.1) as session:
        device = int(session._server.fd)
        reading = Client(session, "os.read(os.open(top + '/a', os.O_RDONLY), 10)")
        await until(lambda: filesystem.asked, "the question")
    await reading.end()
    # Whoever opens files now may get the number that the device had.
    os.dup2(os.open(tmp_path / "precious", os.O_CREAT | os.O_WRONLY), device)
    over.set()
    await until(lambda: filesystem.returned, "the handler's return")
    await anyio.sleep(0)
    os.close(device)
    assert (tmp_path / "precious").read_bytes() == b""


@pytest.mark.anyio
@pytest.mark.parametrize("max_tasks", [1, 99])
async def test_each_open_file_is_released_before_the_end(point, max_tasks):
    class Releasing(Files):
        opened = released = 0

        async def open(self, inode, flags, ctx):
            self.opened += 1
            return fuse.FileInfo(fh=inode)

        async def release(self, fh):
            await anyio.sleep(0.001)
            self.released += 1

    filesystem = Releasing(a=b"content")
    async with fuse.mount(filesystem, point, max_tasks=max_tasks) as session:
        # More than the kernel sends at once.
        await client(session, "for _ in range(300): os.open(top + '/a', os.O_RDONLY)")
    assert (filesystem.opened, filesystem.released) == (300, 300)


@pytest.mark.anyio
async def test_the_root_keeps_its_type_and_is_unmounted(point, caplog):
    class Fickle(Files):
        async def getattr(self, inode, ctx):
            attr = await super().getattr(inode, ctx)
            if not self.mistaken:
                self.mistaken = True
                attr.st_mode = stat.S_IFREG | 0o644
            return attr

        mistaken = False

    async with fuse.mount(Fickle(a=b""), point) as session:
        assert await error_of(session, "os.stat(top)") == "EIO"
        await client(session, "os.stat(top)")
    assert "the type of inode 1 has changed" in caplog.text
    assert not is_mounted(point)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_an_error_of_the_beginning_is_the_kernels(point, monkeypatch):
    def fail():
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    before = kernel.open_fds()
    monkeypatch.setattr(select, "epoll", fail)
    with pytest.raises(OSError) as caught:
        async with fuse.mount(Files(), point):
            pass
    assert caught.value.errno == errno.EMFILE
    assert not is_mounted(point)
    await fds_return_to(before)


@pytest.mark.anyio
async def test_an_unknown_option_is_refused_with_the_known_ones(point):
    with pytest.raises(ValueError, match=r"'nonsense'.*allow_other.*default_permissions"):
        fuse.mount(Files(), point, nonsense=True)
    with pytest.raises(ValueError, match="unknown option"):
        fuse.init(Files(), point, {"nonsense"})
    with pytest.raises(ValueError, match="max_tasks"):
        fuse.mount(Files(), point, max_tasks=0)
    filesystem = Files()
    filesystem.interruptible = ("read", "reading")
    with pytest.raises(ValueError, match="reading: there is no such handler"):
        fuse.mount(filesystem, point)


@pytest.mark.anyio
async def test_a_mount_point_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        async with fuse.mount(Files(), tmp_path / "missing"):
            pass


@needs_root
@pytest.mark.anyio
async def test_others_may_not_enter_unless_allowed(point):
    as_nobody = "os.chdir(os.path.dirname(top)); os.setgid(65534); os.setuid(65534);"
    async with fuse.mount(Files(), point) as session:
        assert await error_of(session, f"{as_nobody} os.listdir(os.path.basename(top))") == "EACCES"
    async with fuse.mount(Files(), point, allow_other=True) as session:
        await client(session, f"{as_nobody} os.listdir(os.path.basename(top))")


@pytest.mark.anyio
async def test_a_mount_that_is_read_only_says_so(point):
    async with fuse.mount(Files(a=b""), point, ro=True, auto_unmount=True) as session:
        (mount,) = (m for m in kernel.mountinfo() if m.mount_point == str(point))
        assert "ro" in mount.options.split(",")
        assert "ro" in mount.super_options.split(",")
        assert await error_of(session, "open(top + '/a', 'w')") == "EROFS"


# The form of seed 002

PROGRAM = """
    import os, sys
    sys.path.insert(0, sys.argv[2])
    from serving import Files
    from truenas_os import fuse
    import asyncio, trio

    class Terminated(Files):
        async def unlink(self, parent_inode, name, ctx):
            await super().unlink(parent_inode, name, ctx)
            assert (fuse.trio_token is None) == (sys.argv[3] != "trio")
            fuse.terminate()

    options = set(fuse.default_options)
    options.add("fsname=program")
    fuse.init(Terminated(a=b"content"), sys.argv[1], options)
    try:
        if sys.argv[3] == "trio":
            trio.run(fuse.main)
        else:
            fuse.asyncio.enable()
            asyncio.run(fuse.main(max_tasks=10))
    except BaseException:
        fuse.close(unmount=False)
        raise
    fuse.close()
    print("ended")
"""


def start(program, *args, cwd=None):
    import textwrap

    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program), *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
    )


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
@pytest.mark.parametrize("end", ["terminate", "umount", signal.SIGTERM, signal.SIGINT])
def test_a_program_in_the_form_of_the_asyncio_bindings(point, loop, end):
    program = start(PROGRAM, point, Path(__file__).parent, loop)
    wait_until(lambda: is_mounted(point), "the mount")
    assert (point / "a").read_text() == "content"
    if end == "terminate":
        (point / "a").unlink()
    elif end == "umount":
        subprocess.run(["umount", point], check=True, timeout=AMPLE)
    else:
        program.send_signal(end)
    out, err = program.communicate(timeout=AMPLE)
    assert (out, err, program.returncode) == ("ended\n", "", 0)
    assert not is_mounted(point)


@pytest.mark.anyio
async def test_the_program_form_within_a_loop_that_runs(point):
    filesystem = Files(a=b"content")
    await run_sync(fuse.init, filesystem, point)
    with pytest.raises(RuntimeError, match="mounted already"):
        await run_sync(fuse.init, filesystem, point)
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fuse.main)
            session = fuse.program._session
            assert await client(session, "print(open(top + '/a').read())") == "content"
            fuse.invalidate_inode(2)
            fuse.invalidate_entry_async(1, b"a", ignore_enoent=True)
            fuse.terminate()
    finally:
        await run_sync(fuse.close)
    assert not is_mounted(point)
    await run_sync(fuse.close)


@pytest.mark.anyio
async def test_a_cancelled_main_ends_the_session(point):
    filesystem = Files(a=b"content")
    await run_sync(fuse.init, filesystem, point)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(fuse.main)
        assert await client(fuse.program._session, "print(open(top + '/a').read())") == "content"
        tasks.cancel_scope.cancel()
    await run_sync(fuse.close)
    assert not is_mounted(point)
    assert filesystem.destroyed == 1


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_closing_while_main_serves_ends_it(point, loop):
    program = start(
        """
        import sys
        sys.path.insert(0, sys.argv[2])
        import anyio
        from serving import Files, client
        from truenas_os import fuse

        async def main():
            fuse.init(filesystem, sys.argv[1])
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(fuse.main)
                session = fuse.program._session
                assert await client(session, "print(open(top + '/a').read())") == "content"
                fuse.close()
            print("ended", filesystem.destroyed)

        filesystem = Files(a=b"content")
        anyio.run(main, backend=sys.argv[3])
        """,
        point,
        Path(__file__).parent,
        loop,
    )
    out, err = program.communicate(timeout=AMPLE)
    assert (out, err) == ("ended 1\n", "")
    wait_until(lambda: not is_mounted(point), "the end of the mount")


def test_ctrl_c_in_a_handler_is_for_the_program_and_not_for_the_loops_own_tasks(point):
    program = start(
        """
        import signal, sys
        sys.path.insert(0, sys.argv[2])
        import trio
        from serving import Files, client
        from truenas_os import fuse

        class Interrupting(Files):
            async def lookup(self, parent_inode, name, ctx):
                signal.raise_signal(signal.SIGINT)
                return await super().lookup(parent_inode, name, ctx)

        async def main():
            async with fuse.mount(Interrupting(a=b""), sys.argv[1]) as session:
                await client(session, "os.stat(top + '/a')")
                await trio.sleep_forever()

        try:
            trio.run(main)
        except KeyboardInterrupt:
            print("interrupted")
        """,
        point,
        Path(__file__).parent,
    )
    out, err = program.communicate(timeout=AMPLE)
    assert (out, err) == ("interrupted\n", "")
    assert not is_mounted(point)


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_a_signals_handler_that_tears_the_event_loop_down(point, loop):
    program = start(
        """
        import signal, sys, warnings
        sys.path.insert(0, sys.argv[2])
        warnings.filterwarnings("ignore", message=".*abandoned")
        import anyio
        from serving import Files
        from truenas_os import fuse

        signal.signal(signal.SIGTERM, sys.exit)
        fuse.init(Files(a=b"content"), sys.argv[1])
        try:
            anyio.run(fuse.main, backend=sys.argv[3])
        except BaseException:
            pass
        fuse.close()
        print("ended")
        """,
        point,
        Path(__file__).parent,
        loop,
    )
    wait_until(lambda: is_mounted(point), "the mount")
    assert (point / "a").read_text() == "content"
    time.sleep(0.1)  # it now waits in the depths of the event loop
    program.send_signal(signal.SIGTERM)
    out, err = program.communicate(timeout=AMPLE)
    assert (out, err, program.returncode) == ("ended\n", "", 0)
    assert not is_mounted(point)


def test_a_mount_that_was_never_served_is_closed(point):
    fuse.init(Files(), point)
    assert is_mounted(point)
    fuse.close()
    assert not is_mounted(point)


def test_the_hello_example_until_it_is_unmounted(point):
    program = subprocess.Popen([sys.executable, EXAMPLES / "hello.py", point])
    wait_until(lambda: is_mounted(point), "the mount")
    assert os.listdir(point) == ["message"]
    assert (point / "message").read_text() == "hello, world\n"
    with pytest.raises(OSError) as caught:
        (point / "message").write_text("x")
    assert caught.value.errno == errno.EROFS
    subprocess.run(["umount", point], check=True, timeout=AMPLE)
    assert program.wait(AMPLE) == 0


def test_an_ordinary_user_mounts_in_a_user_namespace(tmp_path):
    shell = f"""
        mkdir -p {tmp_path}/point
        {sys.executable} {EXAMPLES}/hello.py {tmp_path}/point &
        for i in $(seq 100); do
            [ -e {tmp_path}/point/message ] && break
            sleep 0.05
        done
        cat {tmp_path}/point/message
        grep -c {tmp_path}/point /proc/self/mountinfo
        umount {tmp_path}/point
        wait $!
        echo $?
    """
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", shell],
        capture_output=True,
        text=True,
        timeout=AMPLE,
        check=False,
    )
    assert done.stdout.split("\n")[:3] == ["hello, world", "1", "0"], done.stderr


def test_a_loop_that_ends_with_the_session_open_does_not_leave_a_mount_that_hangs(point):
    filesystem = Files()

    async def leave():
        session = fuse.mount(filesystem, point)
        await session.__aenter__()

    asyncio.run(leave())
    assert filesystem.destroyed == 1
    wait_until(lambda: not is_mounted(point), "the end of the mount")
