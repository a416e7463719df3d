# SPDX-License-Identifier: LGPL-3.0-or-later
"""loop_device: a file as a disk, against sysfs and losetup."""

import errno
import fcntl
import os
import subprocess
import threading
from pathlib import Path

import faults
import kernel
import pytest
import traces
from faces import block, on_both_faces
from filesystems import IS_ROOT, make_image, needs_root
from stuck import AMPLE
from traces import at, loop_devices
from witness import STRANGE, notes

from truenas_os.blocking import loop_device, mounted

BLKGETSIZE64, BLKSSZGET, BLKROGET = 0x80081272, 0x1268, 0x125E


@pytest.fixture
def image(tmp_path):
    """A file of 1 MiB whose sectors say which they are."""
    path = tmp_path / "image"
    path.write_bytes(b"".join(b"%-511d\n" % n for n in range(2048)))
    return path


def sysfs(device, name):
    return (Path("/sys/block") / Path(device.path).name / name).read_text().strip()


@needs_root
@on_both_faces
async def test_a_file_is_a_disk_for_the_time_of_the_block(face, image):
    before = kernel.open_fds()
    async with block(face.library.loop_device(image)) as device:
        assert loop_devices(image) == [Path(device.path).name]
        assert type(device) is face.library.LoopDevice
        assert type(device.fd) is face.Fd
        assert not os.get_inheritable(device.fd)
        assert os.fstat(device.fd).st_rdev == os.stat(device.path).st_rdev
        assert os.pread(device.fd, 4, 512) == b"1   "
        assert sysfs(device, "loop/autoclear") == "1"
    assert loop_devices(image) == []
    assert device.fd.closed
    assert kernel.open_fds() == before


@needs_root
def test_losetup_lists_the_device_and_no_longer(image):
    def listed():
        command = ["losetup", "--associated", image, "--noheadings", "--output", "NAME,BACK-FILE"]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.decode().split()

    with loop_device(image) as device:
        assert listed() == [device.path, str(image)]
    assert listed() == []


@needs_root
@pytest.mark.parametrize("form", [str, os.fsencode, Path], ids=["str", "bytes", "path"])
@pytest.mark.parametrize("name", [STRANGE, b"n" * 255, b" ", b"\\040"], ids=repr)
def test_a_file_may_have_any_name(tmp_path, form, name):
    path = tmp_path / os.fsdecode(name)
    path.write_bytes(b"x" * 4096)
    with loop_device(form(path)) as device:
        assert os.pread(device.fd, 3, 0) == b"xxx"
    path.write_bytes(b"")  # nobody holds it


@needs_root
def test_what_is_written_to_the_device_is_in_the_file(image):
    with loop_device(image) as device:
        os.pwrite(device.fd, b"written".ljust(512), 512)
        os.fsync(device.fd)
    assert image.read_bytes()[512:519] == b"written"


@needs_root
def test_a_read_only_device_cannot_be_written_to(image):
    before = image.read_bytes()
    with loop_device(image, read_only=True) as device:
        assert sysfs(device, "ro") == "1"
        assert fcntl.ioctl(device.fd, BLKROGET, b"\0" * 4) == b"\1\0\0\0"
        with pytest.raises(OSError) as failed:
            os.pwrite(device.fd, b"x" * 512, 0)
        assert failed.value.errno in (errno.EBADF, errno.EPERM)
    assert image.read_bytes() == before


@needs_root
def test_a_device_may_begin_within_the_file(image):
    with loop_device(image, offset=8192) as device:
        assert sysfs(device, "loop/offset") == "8192"
        assert os.pread(device.fd, 3, 0) == b"16 "
        size = int.from_bytes(fcntl.ioctl(device.fd, BLKGETSIZE64, b"\0" * 8), "little")
        assert size == image.stat().st_size - 8192


@needs_root
@pytest.mark.parametrize("size", [512, 1024, 2048, 4096])
def test_a_sector_size_may_be_chosen(image, size):
    with loop_device(image, sector_size=size) as device:
        assert sysfs(device, "queue/logical_block_size") == str(size)
        assert fcntl.ioctl(device.fd, BLKSSZGET, b"\0" * 4) == size.to_bytes(4, "little")


@needs_root
def test_a_filesystem_within_a_file_is_mounted_by_a_device_of_its_own(tmp_path, mount_dir):
    inner = make_image("ext4", tmp_path / "inner")
    disk, target = tmp_path / "disk", mount_dir / "target"
    disk.write_bytes(b"\0" * (1 << 20) + inner.read_bytes())
    with loop_device(disk, offset=1 << 20) as device:
        with mounted("ext4", target, source=device.path, mkdir=True):
            assert at(target)[0].source == device.path
    assert loop_devices(disk) == []


@needs_root
@on_both_faces
async def test_the_device_outlives_the_block_as_long_as_it_is_mounted(face, tmp_path, mount_dir):
    image = make_image("ext4", tmp_path / "image")
    (target := mount_dir / "target").mkdir()
    async with block(face.library.loop_device(image)) as device:
        kernel.mount(device.path, target, "ext4")
    assert loop_devices(image) == [Path(device.path).name]
    kernel.umount(target)
    assert loop_devices(image) == []


@needs_root
def test_two_devices_show_two_files_or_one(image, tmp_path):
    other = tmp_path / "other"
    other.write_bytes(b"o" * 4096)
    with loop_device(image) as one, loop_device(other) as two, loop_device(image) as three:
        assert len({one.path, two.path, three.path}) == 3
        assert os.pread(one.fd, 2, 0) == os.pread(three.fd, 2, 0) == b"0 "
        assert os.pread(two.fd, 2, 0) == b"oo"
    assert loop_devices(image) == loop_devices(other) == []


@needs_root
def test_many_devices_at_once_are_all_different(image):
    errors, paths = [], []
    barrier = threading.Barrier(8)

    def use():
        try:
            for _ in range(5):
                barrier.wait(AMPLE)
                with loop_device(image) as device:
                    paths.append(device.path)
                    assert os.pread(device.fd, 2, 0) == b"0 "
                    barrier.wait(AMPLE)
        except BaseException as error:
            barrier.abort()
            errors.append(error)

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(AMPLE)
    assert errors == []
    assert all(len(set(paths[n : n + 8])) == 8 for n in range(0, 40, 8))
    assert loop_devices(image) == []


@needs_root
def test_a_device_that_somebody_else_took_first_is_passed_over(image, tmp_path):
    other = tmp_path / "other"
    other.write_bytes(b"o" * 4096)
    devices = []

    def use():
        with loop_device(image) as device:
            devices.append(device.path)

    with faults.stopped("ioctl", skip=1) as stop:
        thread = threading.Thread(target=use)
        thread.start()
        stop.wait_reached()
        # It has found a free one. This finds the same.
        with loop_device(other) as theirs:
            stop.go()
            thread.join(AMPLE)
            assert devices != []
            assert theirs.path not in devices
    assert loop_devices(image) == loop_devices(other) == []


@needs_root
def test_EBUSY_once_is_nothing_to_report(image):
    with faults.failing("ioctl", errno.EBUSY, skip=1, times=1):
        with loop_device(image) as device:
            assert loop_devices(image) == [Path(device.path).name]


@needs_root
def test_a_device_cannot_be_entered_while_it_lasts(image):
    manager = loop_device(image)
    with manager:
        with pytest.raises(RuntimeError, match="in use"):
            manager.__enter__()
        assert len(loop_devices(image)) == 1
    assert loop_devices(image) == []


# Errors


@pytest.mark.parametrize(
    "arguments",
    [
        {"offset": -1},
        {"offset": 1 << 63},
        {"sector_size": 511},
        {"sector_size": 256},
        {"sector_size": 513},
        {"sector_size": -512},
        {"path": "nul\0"},
    ],
    ids=str,
)
def test_arguments_that_no_kernel_takes_are_refused_at_once(tmp_path, arguments):
    with faults.count(None) as calls, pytest.raises(ValueError):
        loop_device(**{"path": tmp_path} | arguments)
    assert calls.seen == 0
    for arguments in ({"path": 3}, {"offset": 1.5}, {"sector_size": 512.0}):
        with pytest.raises(TypeError):
            loop_device(**{"path": tmp_path} | arguments)


@needs_root
def test_a_sector_size_that_is_too_large_is_the_kernels_to_refuse(image):
    with traces.none(image.parent, image), pytest.raises(OSError) as failed:
        with loop_device(image, sector_size=1 << 31):
            raise AssertionError("configured")
    assert failed.value.errno == errno.EINVAL
    assert failed.value.filename == str(image)


@on_both_faces
async def test_a_file_that_does_not_exist_is_named(face, tmp_path):
    with pytest.raises(FileNotFoundError) as failed:
        async with block(face.library.loop_device(tmp_path / "missing")):
            raise AssertionError("configured")
    assert failed.value.filename == str(tmp_path / "missing")


@needs_root
@pytest.mark.parametrize("read_only", [False, True])
def test_what_is_no_file_is_refused(tmp_path, fifo, read_only):
    for path, codes in [
        (tmp_path, (errno.EISDIR, errno.EINVAL)),
        (fifo, (errno.EINVAL,)),
        ("/dev/null", (errno.EINVAL,)),
    ]:
        before = kernel.open_fds()
        with pytest.raises(OSError) as failed:
            with loop_device(path, read_only=read_only):
                raise AssertionError("configured")
        assert failed.value.errno in codes
        assert failed.value.filename == str(path)
        assert kernel.open_fds() == before


@needs_root
def test_an_error_of_the_ioctl_says_which(image):
    for skip, name, file in ((0, "GET_FREE", "/dev/loop-control"), (1, "CONFIGURE", str(image))):
        with traces.none(image.parent, image), pytest.raises(OSError) as failed:
            with faults.failing("ioctl", errno.EIO, skip=skip), loop_device(image):
                raise AssertionError("configured")
        assert failed.value.errno == errno.EIO
        assert failed.value.filename == file
        assert name in notes(failed.value)


@pytest.mark.skipif(IS_ROOT, reason="root may")
def test_an_ordinary_user_is_told_that_it_may_not(image):
    with traces.none(image.parent), pytest.raises(OSError) as failed:
        with loop_device(image):
            raise AssertionError("configured")
    assert failed.value.errno in (errno.EACCES, errno.EPERM, errno.ENOENT)
