# SPDX-License-Identifier: LGPL-3.0-or-later
"""Runs a Python program on a root that has the files the program names, and all of the real one.

Usage: ``python fresh_root.py DIRECTORY PROGRAM`` in ``unshare --mount``. The root is a tmpfs on
DIRECTORY, with everything of the real root bound into it. What the program prints is followed by
what it has left: the mounts of the places it names, and its filesystem contexts.
"""

import os
import subprocess
import sys
from pathlib import Path

import kernel

FILES = ["path/to/file", "tmp/subdir/file"]
WALKED = ["file", "skip_this/hidden", "subdir/file"]
DIRECTORIES = ["new/path", "mnt/mytmpfs", "mnt/secure_tmp"]
MOUNTS = ["old/path", "mnt/data", "mnt/data/sub", "mnt/data/sub/below"]
# Not bound as a whole, or what is made here would be made in the real one.
OURS = ["tmp", "mnt"]


def enter(root: Path) -> None:
    entries = [*Path("/").iterdir()]
    for name in OURS:
        entries += Path("/", name).iterdir() if Path("/", name).is_dir() else []
    kernel.mount("tmpfs", root, "tmpfs")
    for name in OURS:
        (root / name).mkdir()
    for entry in entries:
        here = root / entry.relative_to("/")
        if entry.is_symlink():
            here.symlink_to(entry.readlink())
        elif entry.is_dir() and entry not in [Path("/", name) for name in OURS]:
            here.mkdir()
            kernel.mount(entry, here, None, kernel.MS_BIND | kernel.MS_REC)
    for name in FILES:
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("content\n")
    for name in DIRECTORIES + MOUNTS:
        (root / name).mkdir(parents=True, exist_ok=True)
        if name in MOUNTS:
            kernel.mount("tmpfs", root / name, "tmpfs")
    (root / "mnt" / "tank").mkdir()
    kernel.mount("tank/dataset", root / "mnt" / "tank", "tmpfs")
    for name in WALKED:
        file = root / "mnt" / "tank" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text("content\n")
    (root / "tmp" / "old").mkdir()
    # An ordinary user's PATH may lack the directory of system programs.
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    subprocess.run(["pivot_root", root, root / "tmp" / "old"], check=True, env={"PATH": path})
    os.chdir("/")
    kernel.umount("/tmp/old", kernel.MNT_DETACH)


def report() -> None:
    print("=== left ===")
    for mount in kernel.mountinfo():
        if mount.mount_point.startswith(("/old", "/new", "/mnt")):
            print(mount.mount_point, mount.fs_type, mount.options, mount.super_options)
    for fd, what in kernel.open_fds().items():
        if what == "anon_inode:[fscontext]":
            print("a context,", created(fd))


def created(context: int) -> str:
    """What fsmount(2) says of a context."""
    try:
        mount = kernel.syscall(432, context, 1, 0)
    except OSError as error:
        return error.strerror
    size = os.statvfs(mount).f_blocks * os.statvfs(mount).f_frsize
    return f"{size >> 20} MiB, mode {os.stat(mount).st_mode & 0o7777:o}"


if __name__ == "__main__":
    enter(Path(sys.argv[1]))
    exec(compile(sys.argv[2], "<example>", "exec"), {"__name__": "__main__"})
    report()
