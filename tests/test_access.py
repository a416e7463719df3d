# SPDX-License-Identifier: LGPL-3.0-or-later
"""check_access, against what programs can do that run as those users."""

import errno
import os
import struct
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anyio
import faults
import kernel
import pytest
from faces import on_both_faces
from filesystems import IS_ROOT, needs_root, written
from stuck import until
from witness import in_python, notes

import truenas_os
from truenas_os import blocking
from truenas_os.blocking import Access, Credentials, access

ALICE, BOB = Credentials(12_001, 12_001), Credentials(12_002, 12_002, (13_000, 13_001))


@pytest.fixture
def tree(place):
    """Directories that some may enter, with a file at the end, where everybody can come to."""
    os.chmod(place, 0o755)
    (place / "group").mkdir()
    written(place / "group" / "file")
    os.chown(place / "group", 0, 13_001)
    os.chmod(place / "group", 0o750)
    os.chown(place / "group" / "file", 12_001, 0)
    os.chmod(place / "group" / "file", 0o640)
    kernel.mount(place, "/mnt", None, kernel.MS_BIND)
    yield Path("/mnt")
    kernel.umount("/mnt")


def really(creds, path, mode):
    """Whether test(1) says that they may, run by setpriv(1)."""
    flag = {os.R_OK: "-r", os.W_OK: "-w", os.X_OK: "-x", os.F_OK: "-e"}[mode]
    groups = f"--groups={','.join(map(str, creds.groups))}" if creds.groups else "--clear-groups"
    command = ["setpriv", f"--reuid={creds.uid}", f"--regid={creds.gid}", groups]
    return subprocess.run([*command, "/usr/bin/test", flag, path], check=False).returncode == 0


@needs_root
@pytest.mark.parametrize("mode", [os.R_OK, os.W_OK, os.X_OK, os.F_OK])
@on_both_faces
async def test_the_answers_are_those_of_programs_run_as_those_users(face, tree, mode):
    creds = [Credentials(0, 0), ALICE, BOB, Credentials(65_534, 65_534)]
    components = [tree, "group", "file"]
    paths = [str(tree), str(tree / "group"), str(tree / "group" / "file")]
    found = await face.check_access(creds, components, mode)
    assert [(a.creds, a.path) for a in found] == [(c, p) for c in creds for p in paths]
    for each in found:
        assert isinstance(each, Access)
        assert each.allowed == really(each.creds, each.path, mode), each
        assert each.errno in (0, errno.EACCES)


@needs_root
@on_both_faces
async def test_acls_count(face, tree):
    entries = [(1, 7, -1), (2, 1, ALICE.uid), (4, 5, -1), (16, 5, -1), (32, 0, -1)]
    acl = struct.pack("=I", 2) + b"".join(struct.pack("=HHi", *entry) for entry in entries)
    (before,) = await face.check_access([ALICE], [tree / "group"])
    os.setxattr(tree / "group", "system.posix_acl_access", acl)
    (after,) = await face.check_access([ALICE], [tree / "group"])
    assert (before.allowed, after.allowed) == (False, True)


@needs_root
@on_both_faces
async def test_components_are_parts_or_absolute_paths(face, tree):
    expected = await face.check_access([BOB], [*Path(tree, "group").parts])
    absolute = [*reversed(Path(tree, "group").parents), tree / "group"]
    assert await face.check_access([(12_002, 12_002, [13_000, 13_001])], absolute) == expected
    assert [each.path for each in expected] == [str(path) for path in absolute]
    assert all(each.allowed for each in expected)


@needs_root
@on_both_faces
async def test_what_does_not_exist_is_left_out_or_an_error(face, tree):
    components = [tree, "none", "below"]
    (only,) = await face.check_access([ALICE], components)
    assert only.path == str(tree)
    with pytest.raises(FileNotFoundError) as failed:
        await face.check_access([ALICE], components, must_exist=True)
    assert os.fsdecode(failed.value.filename) == str(tree / "none")
    assert await face.check_access([], components) == []
    assert await face.check_access([ALICE], []) == []


@needs_root
@on_both_faces
async def test_this_process_keeps_its_identity(face, tree):
    def status():
        return {
            task.name: [
                line
                for line in (task / "status").read_text().splitlines()
                if line.startswith(("Uid", "Gid", "Groups", "Cap"))
            ]
            for task in Path("/proc/self/task").iterdir()
        }

    await face.check_access([ALICE], [tree])
    before, fds = status(), kernel.open_fds()
    for _ in range(20):
        await face.check_access([ALICE, BOB], [tree, "group"])
    after = status()
    assert {tuple(lines) for lines in after.values()} == {tuple(lines) for lines in before.values()}
    assert kernel.open_fds() == fds


@needs_root
def test_no_child_and_no_signal_is_left():
    script = """
import os, signal
from truenas_os import blocking
got = []
signal.signal(signal.SIGCHLD, lambda *_: got.append(1))
for _ in range(10):
    blocking.check_access([(1, 1, ()), (2, 2, ())], ["/"])
print(got)
try:
    os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | 0x40000000)
except ChildProcessError:
    print("no child")
"""
    assert in_python(script) == "[]\nno child\n"


@needs_root
def test_a_child_that_is_killed_is_an_error_and_not_an_answer(tree, monkeypatch):
    monkeypatch.setattr(access, "_run", lambda *_: None)  # it has ended, and answered nothing
    with pytest.raises(OSError) as failed:
        blocking.check_access([ALICE], [tree])
    assert failed.value.errno == errno.ECANCELED
    assert "killed" in notes(failed.value)


@on_both_faces
async def test_too_many_processes_are_eagain(face, tmp_path):
    with faults.failing("clone3", errno.EAGAIN), pytest.raises(BlockingIOError):
        await face.check_access([ALICE], [tmp_path])


@needs_root
def test_an_exception_while_the_child_is_waited_for_ends_the_child_too(monkeypatch):
    class Expired(Exception):
        pass

    def handler(*_):
        raise Expired

    with faults.failing("waitid", errno.EINTR, times=1):
        assert blocking.check_access([ALICE], ["/"]) == [(ALICE, "/", 0)]
    monkeypatch.setattr(access, "check", handler)
    with faults.failing("waitid", errno.EINTR, times=1), pytest.raises(Expired):
        blocking.check_access([ALICE], ["/"])
    with pytest.raises(ChildProcessError):
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | 0x40000000)  # __WALL


@needs_root
@pytest.mark.anyio
async def test_a_cancelled_check_returns_at_once_and_its_child_is_reaped():
    with faults.stopped("waitid") as stop:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(truenas_os.check_access, [ALICE], ["/"])
                await until(stop.reached)
                scope.cancel()
        assert scope.cancelled_caught
        stop.go()
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    await until(lambda: not children.exists() or not children.read_text().split())


@on_both_faces
async def test_without_root_the_error_says_so(face, tmp_path):
    if IS_ROOT:
        script = """
import os
from truenas_os import blocking
os.setgroups([])
os.setgid(65_534)
os.setuid(65_534)
try:
    blocking.check_access([(12_001, 12_001, ())], ["/"])
except PermissionError as error:
    print(error.errno, "needs root" in error.__notes__[0])
"""
        assert in_python(script) == "1 True\n"
    else:
        with pytest.raises(PermissionError) as failed:
            await face.check_access([ALICE], [tmp_path])
        assert "needs root" in notes(failed.value)


@on_both_faces
async def test_bad_arguments_are_found_before_any_system_call(face, tmp_path):
    with faults.count(None) as calls:
        for error, creds, components, mode in (
            (ValueError, [(-1, 0, ())], ["/"], os.X_OK),
            (ValueError, [(0, 0xFFFFFFFF, ())], ["/"], os.X_OK),
            (ValueError, [(0, 0, (-1,))], ["/"], os.X_OK),
            (ValueError, [ALICE], ["/"], 8),
            (TypeError, [ALICE], "/", os.X_OK),
            (TypeError, [ALICE], [5], os.X_OK),
            (ValueError, [ALICE], ["nul\0"], os.X_OK),
        ):
            with pytest.raises(error):
                await face.check_access(creds, components, mode)
    assert calls.seen == 0


@needs_root
def test_the_identity_that_is_asked_about_cannot_signal_the_child():
    """Stopped by it, the child would never end, and who asks would wait for ever."""
    with ThreadPoolExecutor(1) as thread, faults.stopped("waitid") as stop:
        asking = thread.submit(blocking.check_access, [ALICE], ["/"])
        stop.wait_reached()
        children = Path("/proc/self/task").glob("*/children")
        pids = [pid for child in children for pid in child.read_text().split()]
        assert pids
        uid, gid, _ = ALICE
        become = ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups"]
        for pid in pids:
            refused = subprocess.run([*become, "/bin/sh", "-c", f"kill -STOP {pid}"], check=False)
            assert refused.returncode == 1
        stop.go()
        assert asking.result() == [(ALICE, "/", 0)]


def test_more_groups_than_a_process_can_have_are_a_ValueError():
    with pytest.raises(ValueError, match="65536 groups"):
        blocking.check_access([(1, 1, range(70_000))], ["/"])
