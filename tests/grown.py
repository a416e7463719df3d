# SPDX-License-Identifier: LGPL-3.0-or-later
"""Trees to walk, and what find and os.scandir say of them.

A walk is compared with :func:`find` (what there is) and with :func:`tree` (in which order it comes:
that of getdents64, each directory before its contents, its contents before its next sibling).
"""

import contextlib
import os
import shutil
import signal
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import kernel
import pytest

NOBODY = 65534
O_PATH = 0o10000000
EXACT = ("ext4", "xfs", "btrfs", "tmpfs", "squashfs")
HOSTILE_NAMES = (
    *(b"latin-1 \xe9", b"new\nline", b"tab\tand\rreturn", b"-rf", b" ", b"...", b"*", b"\\040"),
    *(b"x" * 255, b"\xff" * 255, "é".encode() * 127, b"\x01\x1b[31m", b"a'b\"c"),
)
_KINDS = {
    stat.S_IFREG: "f",
    stat.S_IFDIR: "d",
    stat.S_IFLNK: "l",
    stat.S_IFIFO: "p",
    stat.S_IFSOCK: "s",
    stat.S_IFCHR: "c",
    stat.S_IFBLK: "b",
}


class Entry(NamedTuple):
    """What there is at a path, in find's letters."""

    kind: str
    depth: int
    inode: int
    size: int
    path: bytes


def kind(mode: int) -> str:
    return _KINDS[stat.S_IFMT(mode)]


def find(root, *tests: str) -> list[Entry]:
    """What find(1) finds below a directory."""
    command = ["find", root, "-mindepth", "1", *tests, "-printf", r"%y %d %i %s %p\0"]
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.split(b"\0")[:-1]
    found = []
    for line in lines:
        letter, depth, inode, size, path = line.split(b" ", 4)
        found.append(Entry(letter.decode(), int(depth), int(inode), int(size), path))
    return found


def tree(
    root, *, symlinks: bool = False, skip: Callable[[bytes], bool] = lambda path: False
) -> list[bytes]:
    """The paths below a directory in the order of a walk that skips what *skip* says."""
    paths = []
    stack = [os.scandir(os.fsencode(root))]
    while stack:
        if (found := next(stack[-1], None)) is None:
            stack.pop().close()
            continue
        if found.is_symlink() and not symlinks:
            continue
        paths.append(found.path)
        if found.is_dir(follow_symlinks=False) and not skip(found.path):
            stack.append(os.scandir(found.path))
    return paths


def directories(root) -> list[bytes]:
    """A directory and all below it."""
    root = os.fsencode(root)
    return [root] + [path for path in tree(root) if os.path.isdir(path)]


# Trees


def filled(directory, *names, size=1):
    """Files of growing sizes."""
    for number, name in enumerate(names):
        path = os.path.join(os.fsencode(directory), os.fsencode(name))
        with open(path, "wb") as file:
            file.write(b"x" * size * number)


def grown(root: Path) -> Path:
    """Directories, files and whatever else an ordinary user can make."""
    for name in ("a/b/c", "a/empty", "many", "beside", "z/y"):
        (root / name).mkdir(parents=True)
    for name in ("a", "a/b", "a/b/c", "beside", "z/y"):
        filled(root / name, "one", "two", "three", size=100)
    filled(root / "many", *(f"{number:04}" for number in range(150)))
    filled(root, "file")
    os.link(root / "file", root / "beside" / "hard link")
    os.mkfifo(root / "a" / "fifo")
    os.mknod(root / "a" / "socket", 0o600 | stat.S_IFSOCK)
    for number, target in enumerate(("/etc", "nothing", "a", "a/one", "..", "7", "/proc/self")):
        (root / f"link {number}").symlink_to(target)
        (root / "a" / "b" / f"link {number}").symlink_to(target)
    return root


def hostile(root: Path) -> Path:
    """Names that ought to hurt nobody who sees them, of files and of directories."""
    inside = os.fsencode(root / "hostile")
    os.mkdir(inside)
    filled(inside, *HOSTILE_NAMES)
    for name in HOSTILE_NAMES:
        directory = os.path.join(inside, b"d" + name[:254])
        os.mkdir(directory)
        filled(directory, *HOSTILE_NAMES)
    return root


def deep(root, name: bytes, count: int) -> None:
    """A chain of so many directories, with a file before and one after each.

    It is one file, of many names: there may not be so many inodes.
    """
    here = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.chdir(root)
        os.close(os.open(b"a", os.O_CREAT | os.O_WRONLY, 0o644))
        for _ in range(count):
            os.mkdir(name)
            os.link(b"a", b"z")
            os.link(b"a", os.path.join(name, b"a"))
            os.chdir(name)
        os.unlink(b"a")
    finally:
        os.fchdir(here)
        os.close(here)


@contextlib.contextmanager
def mounted_image(image: Path, target: Path, *, fs_type: str) -> Iterator[Path]:
    target.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", "loop", "-t", fs_type, image, target], check=True)
    try:
        yield target
    finally:
        kernel.umount(target, kernel.MNT_DETACH)


@contextlib.contextmanager
def mounted_without_types(tmp_path: Path) -> Iterator[Path]:
    """An ext4 without the feature "filetype", which answers DT_UNKNOWN."""
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(32 << 20)
    mkfs = ["mkfs.ext4", "-q", "-O", "^filetype", image]
    environment = os.environ | {"PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"}
    subprocess.run(mkfs, check=True, env=environment)
    with mounted_image(image, tmp_path / "ext4", fs_type="ext4") as root:
        yield root


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """The whole process, all its threads, is an ordinary user."""
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


# Fixtures, which conftest.py takes from here


@pytest.fixture
def squashed(tmp_path: Path) -> Iterator[Path]:
    """A squashfs with a grown tree."""
    from filesystems import make_image

    content = tmp_path / "content"
    content.mkdir()
    image = make_image("squashfs", tmp_path / "image", hostile(grown(content)))
    with mounted_image(image, tmp_path / "squashfs", fs_type="squashfs") as mounted:
        yield mounted


@pytest.fixture
def public(tmp_path: Path) -> Iterator[Path]:
    """The root of a tmpfs that an ordinary user can reach and search."""
    directory = Path(tempfile.mkdtemp(prefix="walked-"))
    directory.chmod(0o755)
    kernel.mount("tmpfs", directory, "tmpfs", 0, b"mode=755")
    try:
        yield directory
    finally:
        kernel.umount(directory, kernel.MNT_DETACH)
        shutil.rmtree(directory)


@pytest.fixture
def ends() -> Iterator[None]:
    """End a test that would wait for ever; no machine is so slow that it needs this."""

    def give_up(*_):
        raise AssertionError("it waits for ever")

    handler = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(100)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
