# SPDX-License-Identifier: LGPL-3.0-or-later
"""Mounting through fusermount3, where the process itself must not; a stand-in is called."""

import errno
import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import anyio
import kernel
import pytest
from serving import AMPLE, Client, Files, client, is_mounted
from stuck import fds_return_to, until, wait_until

from truenas_os import fuse
from truenas_os.fuse import mounting

TESTS = Path(__file__).parent


@pytest.fixture
def point(mount_dir):
    path = mount_dir / "fuse"
    path.mkdir()
    return path


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """What fusermount3 has been called with, by a process that must not mount."""
    path = tmp_path / "bin"
    path.mkdir()
    program = path / "fusermount3"
    source = (TESTS / "fusermount.py").read_text().partition("\n")[2]
    program.write_text(f"#!{sys.executable}\n{source}")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path}:{os.environ['PATH']}")
    log = tmp_path / "calls"
    log.touch()
    monkeypatch.setenv("FUSERMOUNT_CALLS", str(log))

    def refuse(*args):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(mounting, "_new_mount", refuse)
    return lambda: [json.loads(line) for line in log.read_text().splitlines()]


@pytest.mark.anyio
async def test_what_cannot_be_looked_at_is_unmounted_again(point, calls, monkeypatch):
    def fail(mount, root):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    before = kernel.open_fds()
    monkeypatch.setattr(mounting.FuseMount, "look_at", fail)
    with pytest.raises(OSError) as caught:
        async with fuse.mount(Files(), point):
            pass
    assert caught.value.errno == errno.EMFILE
    assert not is_mounted(point)
    await fds_return_to(before)


@pytest.mark.anyio
async def test_it_mounts_and_unmounts(point, calls):
    before = kernel.open_fds()
    filesystem = Files(a=b"content")
    async with fuse.mount(filesystem, point, fsname="a,b", allow_other=True) as session:
        assert await client(session, "print(open(top + '/a').read())") == "content"
    assert await session.wait() is fuse.SessionEnd.UNMOUNTED
    assert not is_mounted(point)
    assert filesystem.destroyed == 1
    mounted, unmounted = calls()
    assert mounted[0] == "-o"
    assert mounted[2:] == ["--", str(point)]
    assert set(mounted[1].replace("\\,", ";").split(",")) == {
        "default_permissions",
        "allow_other",
        "nosuid",
        "nodev",
        "fsname=a;b",
    }
    assert unmounted == ["-u", "-q", "--", str(point)]
    await fds_return_to(before)


@pytest.mark.anyio
async def test_unmounting_with_it_ends_the_session(point, calls):
    async with fuse.mount(Files(), point) as session:
        await anyio.run_process(["fusermount3", "-u", point])
        with anyio.fail_after(AMPLE):
            assert await session.wait() is fuse.SessionEnd.UNMOUNTED
    assert len(calls()) == 2


@pytest.mark.anyio
async def test_what_has_taken_its_place_stays(point, calls):
    async with fuse.mount(Files(), point) as session:
        kernel.umount(point)
        kernel.mount("other", point, "tmpfs")
        with anyio.fail_after(AMPLE):
            assert await session.wait() is fuse.SessionEnd.UNMOUNTED
    async with fuse.mount(Files(), point, unmount_timeout=0.1):
        kernel.mount("other", point, "tmpfs")
    await until(lambda: sum(m.mount_point == str(point) for m in kernel.mountinfo()) == 3)
    kernel.umount(point)
    await until(lambda: sum(m.mount_point == str(point) for m in kernel.mountinfo()) == 1)
    assert is_mounted(point)
    assert len(calls()) == 3


@pytest.mark.anyio
async def test_what_hangs_or_is_in_use_is_detached_in_the_end(point, calls):
    class Hanging(Files):
        asked = False

        async def lookup(self, parent_inode, name, ctx):
            self.asked = True
            await anyio.sleep_forever()

    filesystem = Hanging()
    async with fuse.mount(filesystem, point, unmount_timeout=0.2) as session:
        hanging = Client(session, "os.chdir(top); os.stat('a')")
        await until(lambda: filesystem.asked, "the question")
    assert not is_mounted(point)
    assert filesystem.destroyed == 1
    assert ["-u", "-q", "-z", "--", str(point)] in calls()
    _, err = await hanging.end()
    assert "Error" in err


@pytest.mark.anyio
async def test_what_it_complains_about_is_told(point, calls, monkeypatch):
    monkeypatch.setattr(fuse.options.MountOptions, "texts", lambda self: ["refuse"])
    before = kernel.open_fds()
    with pytest.raises(PermissionError) as failed:
        async with fuse.mount(Files(), point):
            pass
    assert failed.value.filename == str(point)
    assert "mount failed: Operation not permitted" in "".join(failed.value.__notes__)
    await fds_return_to(before)


@pytest.mark.anyio
async def test_where_it_is_missing_the_error_says_so(point, calls, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(PermissionError) as failed:
        async with fuse.mount(Files(), point):
            pass
    assert "fusermount3" in "".join(failed.value.__notes__)


def test_the_guard_calls_it_too(point, calls):
    program = f"""
        import asyncio, sys
        sys.path.insert(0, {str(TESTS)!r})
        from serving import Files
        from truenas_os import fuse
        from truenas_os.fuse import mounting

        def refuse(*args):
            raise PermissionError(1, "refused")

        mounting._new_mount = refuse

        async def main():
            async with fuse.mount(Files(), {str(point)!r}):
                print("ready", flush=True)
                await asyncio.sleep(1000)

        asyncio.run(main())
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE
    ) as server:
        assert server.stdout.readline() == b"ready\n"
        server.kill()
    wait_until(lambda: not is_mounted(point), "the end of the mount")
    assert calls()[-1] == ["-u", "-q", "-z", "--", str(point)]
