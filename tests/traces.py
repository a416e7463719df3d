# SPDX-License-Identifier: LGPL-3.0-or-later
"""What a block may leave behind: mounts, directories, descriptors, loop devices, children."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kernel
from stuck import wait_until

from truenas_os import _threads


def at(path: Path | str) -> list[kernel.Mount]:
    """The mounts at a mount point, the one on top last."""
    return [mount for mount in kernel.mountinfo() if mount.mount_point == os.fspath(path)]


def below(directory: Path) -> list[str]:
    """The mount points below a directory."""
    inside = f"{directory}/"
    return [m.mount_point for m in kernel.mountinfo() if m.mount_point.startswith(inside)]


def names(directory: Path) -> list[str]:
    return sorted(str(path) for path in directory.rglob("*"))


def loop_devices(image: Path) -> list[str]:
    """The names of the loop devices that show a file."""
    found = []
    for device in Path("/sys/block").glob("loop*"):
        with contextlib.suppress(OSError):  # it shows nothing
            shown = (device / "loop" / "backing_file").read_bytes().rstrip(b"\n")
            if shown == os.fsencode(image):
                found.append(device.name)
    return found


def children() -> list[int]:
    """The child processes, also dead ones and those that no plain wait() would find."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            # After the name, which can hold anything: the state and the parent.
            _, parent, _ = (process / "stat").read_text().rpartition(") ")[2].split(" ", 2)
            if int(parent) == os.getpid():
                found.append(int(process.name))
    return found


def _seen(directory: Path, image: Path | None) -> dict[str, Any]:
    return {
        "mounts": below(directory),
        "names": names(directory),
        "loop devices": [] if image is None else loop_devices(image),
    }


def _wait_for_calls() -> None:
    pool = _threads._pool
    wait_until(lambda: len(pool.idle) == pool.size, "the end of all calls")


@contextlib.contextmanager
def none(directory: Path, image: Path | None = None) -> Iterator[None]:
    """After the block all is as it was before: below the directory, and in this process.

    Only for what a call that opens something has is it waited: when cancelled, it is left to end
    by itself. All such calls have ended, also those before the block.
    """
    _wait_for_calls()
    before, fds, processes = _seen(directory, image), kernel.open_fds(), children()
    yield
    assert _seen(directory, image) == before
    _wait_for_calls()
    wait_until(lambda: kernel.open_fds().keys() == fds.keys(), "the old set of descriptors")
    wait_until(lambda: children() == processes, "the end of all children")
