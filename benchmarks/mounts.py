# SPDX-License-Identifier: LGPL-3.0-or-later
"""iter_mount beside reading /proc/self/mountinfo, at 1,000 mounts.

Run as ``python benchmarks/mounts.py [MOUNTS]``; it begins again in a mount namespace of its own.
"""

import contextlib
import ctypes
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from typing import NamedTuple

import psutil
from ratios import compare

from truenas_os import StatmountMask, blocking

_INSIDE = "TRUENAS_OS_BENCHMARK_INSIDE"


class Line(NamedTuple):
    """What a line of mountinfo says, as one would hand it to a program."""

    mnt_id: int
    parent_id: int
    major: int
    minor: int
    root: str
    mount_point: str
    options: str
    tags: list[str]
    fs_type: str
    source: str
    super_options: str


def _unescaped(text: str) -> str:
    if "\\" not in text:
        return text
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def parse() -> list[Line]:
    lines = []
    with open("/proc/self/mountinfo", errors="surrogateescape") as file:
        for line in file:
            left, _, right = line.rstrip("\n").partition(" - ")
            mnt_id, parent_id, device, root, mount_point, options, *tags = left.split(" ")
            fs_type, source, super_options = right.split(" ", 2)
            major, minor = device.split(":")
            lines.append(
                Line(
                    int(mnt_id),
                    int(parent_id),
                    int(major),
                    int(minor),
                    _unescaped(root),
                    _unescaped(mount_point),
                    options,
                    tags,
                    fs_type,
                    _unescaped(source),
                    super_options,
                )
            )
    return lines


def split() -> list[list[str]]:
    with open("/proc/self/mountinfo", errors="surrogateescape") as file:
        return [line.split(" ") for line in file]


@contextlib.contextmanager
def mounts(count: int) -> Iterator[None]:
    """So many tmpfs, on directories of one more."""
    libc = ctypes.CDLL(None, use_errno=True)
    with tempfile.TemporaryDirectory() as directory:
        for number in range(-1, count):
            target = directory if number < 0 else os.path.join(directory, str(number))
            if number >= 0:
                os.mkdir(target)
            if libc.mount(b"tmpfs", target.encode(), b"tmpfs", 0, b"size=16M,mode=755") < 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), target)
        try:
            yield
        finally:
            libc.umount2(directory.encode(), 2)  # MNT_DETACH


def begin_inside() -> None:
    """Begin again in a mount namespace of one's own, unless that has been done."""
    if _INSIDE not in os.environ:
        os.environ[_INSIDE] = "1"
        user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        arguments = ["--mount", "--propagation", "private", "--", sys.executable, *sys.argv]
        os.execvp("unshare", ["unshare", *user, *arguments])
    print(f"Python {sys.version.split()[0]}, Linux {os.uname().release}, {os.cpu_count()} CPUs")


def main() -> None:
    begin_inside()
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    with mounts(count):
        measure(count)


def measure(count: int) -> None:
    every_field = ~StatmountMask(0)
    compare(
        f"the mount table, {count} mounts "
        "(targets: every field at most 1.6, the basic mask less than 1)",
        {
            "mountinfo, split and converted to a named tuple": parse,
            "mountinfo, split and nothing else": split,
            "blocking.iter_mount, every field": lambda: list(
                blocking.iter_mount(statmount_flags=every_field)
            ),
            "blocking.iter_mount, basic mask": lambda: list(blocking.iter_mount()),
            "psutil.disk_partitions(all=True)": lambda: psutil.disk_partitions(all=True),
        },
        5,
    )


if __name__ == "__main__":
    main()
