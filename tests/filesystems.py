# SPDX-License-Identifier: LGPL-3.0-or-later
"""Real filesystems for the tests to run on."""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import kernel
import pytest

# As root of a user namespace, getuid() says 0 as well.
IS_ROOT = Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]
needs_root = pytest.mark.skipif(not IS_ROOT, reason="needs root outside of any user namespace")

# An ordinary user's PATH may lack the directory of system programs.
_PATH = os.environ["PATH"] + ":/usr/sbin:/sbin"
# The program that makes each one, its Debian package, and the smallest image it takes.
_IMAGES = {
    "ext4": (["mkfs.ext4", "-q", "-I", "256"], "e2fsprogs", 32 << 20),
    "xfs": (["mkfs.xfs", "-q"], "xfsprogs", 300 << 20),
    "btrfs": (["mkfs.btrfs", "-q"], "btrfs-progs", 128 << 20),
    "squashfs": (["mksquashfs"], "squashfs-tools", 0),
}
DISKS = tuple(_IMAGES)


def require_kernel(fs_type: str) -> None:
    if fs_type not in Path("/proc/filesystems").read_text().split():
        with contextlib.suppress(FileNotFoundError):  # a kernel without modules needs no modprobe
            subprocess.run(["modprobe", "-q", fs_type], check=False, env={"PATH": _PATH})
    if fs_type not in Path("/proc/filesystems").read_text().split():
        pytest.skip(f"this kernel has no {fs_type}")


def require_fuse() -> None:
    """Skip where an ordinary user may not serve; as root, it must go."""
    if IS_ROOT:
        return
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        pytest.skip(f"/dev/fuse cannot be opened: {error.strerror}")


def make_image(fs_type: str, image: Path, content: Path | None = None) -> Path:
    """Make a file that holds a filesystem; *content* is what is in a squashfs."""
    mkfs, package, size = _IMAGES[fs_type]
    if not IS_ROOT:
        pytest.skip(f"{fs_type} needs root outside of any user namespace, for a loop device")
    if (program := shutil.which(mkfs[0], path=_PATH)) is None:
        pytest.skip(f"{mkfs[0]} is missing: install the Debian package {package}")
    require_kernel(fs_type)
    if fs_type == "squashfs":
        with tempfile.TemporaryDirectory() as empty:
            command = [program, content or empty, image, "-quiet", "-no-progress"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return image
    with image.open("wb") as file:
        file.truncate(size)
    subprocess.run([program, *mkfs[1:], image], check=True, stdout=subprocess.DEVNULL)
    return image


def _mount_image(fs_type: str, target: Path, image: Path) -> None:
    make_image(fs_type, image)
    subprocess.run(["mount", "-o", "loop", "-t", fs_type, image, target], check=True)


@pytest.fixture(scope="session", params=["ext4", "xfs", "btrfs", "tmpfs", "overlay"])
def filesystem(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """The root directory of a filesystem of its own, whose name is the filesystem's type."""
    base = tmp_path_factory.mktemp("filesystem")
    target = base / request.param
    target.mkdir()
    mounted = [target]
    if request.param == "tmpfs":
        kernel.mount("tmpfs", target, "tmpfs")
    elif request.param == "overlay":
        require_kernel("overlay")
        layers = base / "layers"
        layers.mkdir()
        kernel.mount("tmpfs", layers, "tmpfs")
        mounted.append(layers)
        for layer in ("lower", "upper", "work"):
            (layers / layer).mkdir()
        options = f"lowerdir={layers}/lower,upperdir={layers}/upper,workdir={layers}/work"
        kernel.mount("overlay", target, "overlay", data=options.encode())
    else:
        _mount_image(request.param, target, base / "image")
    try:
        yield target
    finally:
        for mount in mounted:
            kernel.umount(mount)
        with contextlib.suppress(FileNotFoundError):
            (base / "image").unlink()


@pytest.fixture
def place(filesystem: Path) -> Iterator[Path]:
    """A new directory on the filesystem, gone afterwards: the smallest have few inodes."""
    directory = Path(tempfile.mkdtemp(dir=filesystem))
    yield directory
    subprocess.run(["rm", "-rf", directory], check=False)


def written(path: Path, content: bytes = b"content") -> Path:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())  # or st_blocks changes while it is looked at
    return path
