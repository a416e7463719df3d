# SPDX-License-Identifier: LGPL-3.0-or-later
"""What happens to a mount when the process that serves it is killed."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import kernel
import pytest
from serving import AMPLE, guards, guards_of, is_mounted, mount_id
from stuck import wait_until

from truenas_os import fuse
from truenas_os.fuse import guard

TESTS = Path(__file__).parent

SERVER = """
    import asyncio, ctypes, os, sys, threading, time
    sys.path.insert(0, sys.argv[1])
    from serving import Files
    from truenas_os import fuse

    class Hanging(Files):
        async def lookup(self, parent_inode, name, ctx):
            if name == b"hang":
                print("asked", flush=True)
                await asyncio.sleep(1000)
            return await super().lookup(parent_inode, name, ctx)

    def fork():
        if ctypes.CDLL(None).fork() == 0:
            time.sleep(1000)

    def touch():
        threading.Thread(target=os.stat, args=[sys.argv[2] + "/hang"]).start()

    async def main():
        sessions = [fuse.mount(Hanging(a=b"content"), point) for point in sys.argv[2:]]
        for session in sessions:
            await session.__aenter__()
        print("ready", flush=True)
        while line := (await asyncio.to_thread(sys.stdin.readline)).split():
            if line[0] == "close":
                await sessions[int(line[1])].aclose()
            else:
                globals()[line[0]]()
            print("done", flush=True)

    asyncio.run(main())
"""


class Server:
    def __init__(self, *points, prefix=()):
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-c", textwrap.dedent(SERVER), str(TESTS), *map(str, points)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.expect("ready")

    def expect(self, line):
        assert self.process.stdout.readline().strip() == line

    def tell(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        self.expect("done")

    def kill(self):
        self.process.kill()
        self.process.wait(AMPLE)

    def end(self):
        self.process.stdin.close()
        self.process.wait(AMPLE)
        self.process.stdout.close()


@pytest.fixture
def point(mount_dir):
    path = mount_dir / "fuse"
    path.mkdir()
    return path


@pytest.fixture
def serve():
    servers = []

    def start(*points):
        servers.append(Server(*points))
        return servers[-1]

    yield start
    for server in servers:
        server.process.kill()
        server.end()


def wait_for_the_end_of(path):
    wait_until(lambda: not is_mounted(path), "the end of the mount")


def test_a_server_that_is_killed_leaves_no_mount(point, serve):
    server = serve(point)
    (pid,) = guards_of(point)
    server.kill()
    wait_for_the_end_of(point)
    wait_until(lambda: pid not in guards(), "the end of the guard")
    assert os.listdir(point) == []


@pytest.mark.parametrize("in_use", [False, True])
def test_a_child_that_was_forked_keeps_nothing_mounted(point, serve, in_use):
    server = serve(point)
    server.tell("fork")
    if in_use:
        client = subprocess.Popen(
            [sys.executable, "-c", f"import os; os.chdir({str(point)!r}); os.stat('hang')"],
            stderr=subprocess.PIPE,
            text=True,
        )
        server.expect("asked")
    (child,) = children(server.process.pid)
    server.kill()
    try:
        wait_for_the_end_of(point)
        if in_use:
            _, err = client.communicate(timeout=AMPLE)
            assert "ConnectionAbortedError" in err
        os.kill(child, 0)
    finally:
        os.kill(child, signal.SIGKILL)


def children(pid):
    """The children of a process that guard nothing."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += map(int, (task / "children").read_text().split())
    return [child for child in found if child not in guards()]


def test_a_thread_of_the_server_that_hangs_in_its_own_mount_keeps_nothing(point, serve):
    server = serve(point)
    server.tell("touch")
    server.expect("asked")
    minor = os.stat(point).st_dev & 0xFF
    server.process.send_signal(signal.SIGKILL)
    try:
        server.process.wait(AMPLE)
    except subprocess.TimeoutExpired:
        control = point.parent / "control"
        control.mkdir()
        kernel.mount("none", control, "fusectl")
        (control / str(minor) / "abort").write_text("1")
        raise
    wait_for_the_end_of(point)


def test_a_clean_end_leaves_no_process(point, serve):
    server = serve(point)
    pids = guards_of(point)
    assert len(pids) == 1
    server.tell("close 0")
    assert not guards().keys() & set(pids)
    assert not is_mounted(point)


def test_a_session_that_was_ended_elsewhere_leaves_no_process(point, serve):
    server = serve(point)
    pids = guards_of(point)
    kernel.umount(point)
    server.tell("close 0")
    assert not guards().keys() & set(pids)


def test_a_guard_that_was_killed_is_missed_by_nobody(point, serve):
    server = serve(point)
    (pid,) = guards_of(point)
    os.kill(pid, signal.SIGKILL)
    server.tell("close 0")
    assert not Path(f"/proc/{pid}").exists()
    assert not is_mounted(point)


def test_a_mount_on_top_stays_and_what_it_covers_goes_after_it(point, serve):
    server = serve(point)
    pids = guards_of(point)
    kernel.mount("cover", point, "tmpfs")
    (point / "file").touch()
    server.kill()
    time.sleep(0.2)
    assert guards().keys() & set(pids)
    assert os.listdir(point) == ["file"]
    assert sum(m.mount_point == str(point) for m in kernel.mountinfo()) == 2
    kernel.umount(point)
    wait_for_the_end_of(point)


def test_a_mount_in_its_place_stays(point, serve):
    server = serve(point)
    pids = guards_of(point)
    kernel.umount(point)
    kernel.mount("other", point, "tmpfs")
    server.kill()
    wait_until(lambda: not guards().keys() & set(pids), "the end of the guard")
    assert is_mounted(point)


def test_a_mount_that_was_moved_goes(point, mount_dir, serve):
    server = serve(point)
    elsewhere = mount_dir / "a name\nof two lines"
    elsewhere.mkdir()
    kernel.mount(point, elsewhere, None, kernel.MS_MOVE)
    server.kill()
    wait_until(lambda: all("two lines" not in m.mount_point for m in kernel.mountinfo()))


def test_each_of_two_sessions_has_its_own(mount_dir, serve):
    one, two = mount_dir / "1", mount_dir / "2"
    one.mkdir()
    two.mkdir()
    server = serve(one, two)
    server.tell("close 0")
    assert not is_mounted(one)
    assert (two / "a").read_bytes() == b"content"
    server.kill()
    wait_for_the_end_of(two)


def test_what_ends_the_server_kindly_does_not_end_the_guard(point, serve):
    server = serve(point)
    (pid,) = guards_of(point)
    status = Path(f"/proc/{pid}/status")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        bit = 1 << (number - 1)
        wait_until(lambda: int(status.read_text().partition("SigIgn:\t")[2].split()[0], 16) & bit)
        os.kill(pid, number)
    assert os.getsid(pid) == pid
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    open_files = {os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()}
    assert {name.partition(":")[0] for name in open_files} <= {"pipe", "anon_inode", "/dev/null"}
    server.kill()
    wait_for_the_end_of(point)


def test_in_a_user_namespace(tmp_path):
    (tmp_path / "point").mkdir()
    shell = f"""
        mkfifo {tmp_path}/in
        {sys.executable} - {TESTS} {tmp_path}/point <<'END' >{tmp_path}/out 3<>{tmp_path}/in &
{textwrap.dedent(SERVER).replace("asyncio.to_thread(sys.stdin.readline)", "asyncio.sleep(1000)")}
END
        for i in $(seq 100); do grep -q ready {tmp_path}/out && break; sleep 0.05; done
        cat {tmp_path}/point/a
        echo
        kill -9 $!
        for i in $(seq 100); do
            grep -q {tmp_path}/point /proc/self/mountinfo || break
            sleep 0.05
        done
        grep -c {tmp_path}/point /proc/self/mountinfo
    """
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", shell],
        capture_output=True,
        text=True,
        timeout=AMPLE,
        check=False,
    )
    assert done.stdout.split() == ["content", "0"], done.stderr


def test_it_reads_what_the_library_reads(point, mount_dir):
    number = mount_id(mount_dir)
    assert os.fsdecode(guard.mount_point(number)) == str(mount_dir)
    with pytest.raises(FileNotFoundError):
        guard.mount_point(1 << 60)
    for path, expected in ((mount_dir, True), (point, False), ("/", False)):
        fd = os.open(path, os.O_PATH)
        assert guard.is_root_of(fd, number) is expected
        os.close(fd)


@pytest.mark.anyio
async def test_a_mount_is_served_where_no_guard_can_be_started(point, monkeypatch, caplog):
    monkeypatch.setattr(sys, "executable", "")
    before = guards()
    async with fuse.mount(fuse.Operations(), point):
        assert is_mounted(point)
        assert guards() == before
    assert "will stay behind" in caplog.text
