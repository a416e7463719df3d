# SPDX-License-Identifier: LGPL-3.0-or-later
"""Runs a Python program on a root that has the files the program names, and all of the real one.

Usage: ``python fresh_root.py DIRECTORY PROGRAM`` in ``unshare --mount``. The root is a tmpfs on
DIRECTORY, with everything of the real root bound into it.
"""

import os
import subprocess
import sys
from pathlib import Path

import kernel

FILES = ["path/to/file", "tmp/subdir/file"]


def enter(root: Path) -> None:
    entries = [*Path("/").iterdir(), *Path("/tmp").iterdir()]
    kernel.mount("tmpfs", root, "tmpfs")
    (root / "tmp").mkdir()
    for entry in entries:
        here = root / entry.relative_to("/")
        if entry.is_symlink():
            here.symlink_to(entry.readlink())
        elif entry.is_dir() and entry != Path("/tmp"):
            here.mkdir()
            kernel.mount(entry, here, None, kernel.MS_BIND | kernel.MS_REC)
    for name in FILES:
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("content\n")
    (root / "tmp" / "old").mkdir()
    # An ordinary user's PATH may lack the directory of system programs.
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    subprocess.run(["pivot_root", root, root / "tmp" / "old"], check=True, env={"PATH": path})
    os.chdir("/")
    kernel.umount("/tmp/old", kernel.MNT_DETACH)


if __name__ == "__main__":
    enter(Path(sys.argv[1]))
    exec(compile(sys.argv[2], "<example>", "exec"), {"__name__": "__main__"})
