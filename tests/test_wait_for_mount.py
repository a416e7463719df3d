# SPDX-License-Identifier: LGPL-3.0-or-later
"""wait_for_mount and wait_for_unmount: at once, in time, and without a race."""

import errno
import threading

import anyio
import faults
import kernel
import pytest
from faces import on_both_faces
from stuck import AMPLE, fds_return_to, until
from witness import id_of, make

import truenas_os
from truenas_os import blocking


def later(function, *args):
    threading.Timer(0.1, function, args).start()


@on_both_faces
async def test_what_is_mounted_is_not_waited_for(face, mount_dir):
    target = make(mount_dir)
    for path in (target, str(target), bytes(target), f"/{target}/./"):
        assert (await face.wait_for_mount(path)).mnt_id == id_of(target)
    assert (await face.wait_for_mount("/")).mnt_id == id_of("/")


@on_both_faces
async def test_what_is_not_mounted_is_not_waited_for(face, mount_dir):
    (mount_dir / "directory").mkdir()
    for name in ("directory", "missing", "missing/below"):
        assert await face.wait_for_unmount(mount_dir / name) is None


@on_both_faces
async def test_a_mount_is_waited_for_before_its_path_exists(face, mount_dir):
    later(make, mount_dir)
    found = await face.wait_for_mount(mount_dir / "m", interval=1000.0)
    assert (found.mnt_id, found.fs_type) == (id_of(mount_dir / "m"), "tmpfs")
    later(kernel.umount, mount_dir / "m")
    await face.wait_for_unmount(mount_dir / "m", interval=1000.0)
    assert [m for m in kernel.mountinfo() if m.mount_point == f"{mount_dir}/m"] == []


@on_both_faces
async def test_of_stacked_mounts_the_one_on_top_is_found_and_all_are_to_go(face, mount_dir):
    make(mount_dir)
    target = make(mount_dir)
    assert (await face.wait_for_mount(target)).mnt_id == id_of(target)
    kernel.umount(target)
    later(kernel.umount, target)
    await face.wait_for_unmount(target)
    assert [m for m in kernel.mountinfo() if m.mount_point == str(target)] == []


@on_both_faces
async def test_a_mount_that_another_one_hides_is_not_there_until_that_is_gone(face, mount_dir):
    inner = make(make(mount_dir, "outer"), "inner")
    hidden = id_of(inner)
    make(mount_dir, "outer")
    await face.wait_for_unmount(inner)
    later(kernel.umount, mount_dir / "outer")
    assert (await face.wait_for_mount(inner)).mnt_id == hidden


@on_both_faces
async def test_a_rename_that_brings_a_mount_to_the_path_is_seen_at_the_interval(face, mount_dir):
    (mount_dir / "above").mkdir()
    make(mount_dir / "above", "m")
    later((mount_dir / "above").rename, mount_dir / "renamed")
    found = await face.wait_for_mount(mount_dir / "renamed" / "m", interval=0.05)
    assert found.mnt_point == f"{mount_dir}/renamed/m"


@on_both_faces
async def test_no_mount_is_missed_in_a_thousand_rounds(face, mount_dir):
    """With wake-ups alone, as an interval that long never comes."""
    (mount_dir / "m").mkdir()
    target = mount_dir / "m"
    asked, rounds = threading.Semaphore(0), 250

    def churn():
        for _ in range(rounds):
            for change in (lambda: kernel.mount("tmpfs", target, "tmpfs"), None):
                asked.acquire(timeout=AMPLE)
                change() if change else kernel.umount(target)

    thread = threading.Thread(target=churn)
    thread.start()
    for _ in range(rounds):
        asked.release()
        assert (await face.wait_for_mount(target, interval=1000.0)).mnt_point == str(target)
        asked.release()
        await face.wait_for_unmount(target, interval=1000.0)
    thread.join(AMPLE)


@pytest.mark.parametrize("path", ["", "m", "./m", "/a/../m", b"m"])
@pytest.mark.parametrize("name", ["wait_for_mount", "wait_for_unmount"])
def test_only_an_absolute_path_can_be_waited_for(face, name, path):
    with faults.count(None) as calls, pytest.raises(ValueError, match="absolute"):
        getattr(face, name)(path)
    assert calls.seen == 0


@pytest.mark.parametrize("name", ["wait_for_mount", "wait_for_unmount"])
def test_an_interval_must_be_positive(face, name):
    with pytest.raises(ValueError, match="interval"):
        getattr(face, name)("/nonexistent", interval=0)


@pytest.mark.parametrize("timeout", [0, -1, 0.05])
def test_a_timeout_names_the_path(mount_dir, timeout):
    for wait, path in (
        (blocking.wait_for_mount, mount_dir / "m"),
        (blocking.wait_for_unmount, mount_dir),
    ):
        with pytest.raises(TimeoutError) as failed:
            wait(path, timeout=timeout)
        assert (failed.value.errno, failed.value.filename) == (errno.ETIMEDOUT, str(path))


def test_no_time_is_enough_for_what_is_there(mount_dir):
    assert blocking.wait_for_mount(mount_dir, timeout=0).mnt_point == str(mount_dir)
    blocking.wait_for_unmount(mount_dir / "m", timeout=0)


def test_a_very_long_timeout_is_none(mount_dir):
    later(make, mount_dir)
    assert blocking.wait_for_mount(mount_dir / "m", interval=1e9, timeout=1e9)


@on_both_faces
async def test_waiting_leaves_no_descriptor(face, mount_dir):
    await face.wait_for_mount(mount_dir)
    before = kernel.open_fds()
    await face.wait_for_mount(mount_dir)
    await face.wait_for_unmount(mount_dir / "m")
    assert kernel.open_fds() == before


@pytest.mark.anyio
@pytest.mark.parametrize(
    "syscall", ["fanotify_init", "fanotify_mark", "openat2", "listmount", "statmount"]
)
async def test_a_cancelled_wait_leaves_no_descriptor(mount_dir, syscall):
    await truenas_os.wait_for_mount(mount_dir)
    before = kernel.open_fds()
    with faults.stopped(syscall) as stop:
        async with anyio.create_task_group() as group:
            group.start_soon(truenas_os.wait_for_mount, mount_dir / "m")
            await until(stop.reached)
            group.cancel_scope.cancel()
        stop.go()
    await fds_return_to(before)
    with anyio.move_on_after(0.05) as scope:
        await truenas_os.wait_for_unmount(mount_dir)
    assert scope.cancelled_caught
    await fds_return_to(before)
