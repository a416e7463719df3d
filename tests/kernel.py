# SPDX-License-Identifier: LGPL-3.0-or-later
"""The kernel without the library: mount(2) and friends through ctypes, /proc/self/mountinfo."""

import ctypes
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

_libc = ctypes.CDLL(None, use_errno=True)

MS_RDONLY, MS_NOSUID, MS_NODEV = 1, 2, 4
MS_REMOUNT, MS_BIND, MS_MOVE, MS_REC = 32, 4096, 8192, 16384
MS_UNBINDABLE, MS_PRIVATE, MS_SLAVE, MS_SHARED = 1 << 17, 1 << 18, 1 << 19, 1 << 20
MNT_DETACH = 2
CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000

_Path = str | bytes | os.PathLike[str]


def _call(function: Callable[..., int], *args: Any) -> int:
    ret = function(*args)
    if ret < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), *(a for a in args if isinstance(a, bytes)))
    return ret


def _bytes(path: _Path | None) -> bytes | None:
    return None if path is None else os.fsencode(path)


def mount(
    source: _Path | None,
    target: _Path,
    fs_type: str | None = None,
    flags: int = 0,
    data: bytes | None = None,
) -> None:
    _call(_libc.mount, _bytes(source), _bytes(target), _bytes(fs_type), ctypes.c_ulong(flags), data)


def umount(target: _Path, flags: int = 0) -> None:
    _call(_libc.umount2, _bytes(target), flags)


# A program that has the kernel forget what it knows of the filesystem served at *top*, and of no
# other: it remounts it with the flags that it has anyway.
FORGETTING = f"""
import ctypes
flags = {MS_REMOUNT | MS_NOSUID | MS_NODEV}
assert ctypes.CDLL(None).mount(None, os.fsencode(top), None, flags, None) == 0
"""


def syscall(number: int, *args: Any) -> int:
    """A raw system call of Linux 5.1 or later, whose number is the same everywhere."""
    return _call(_libc.syscall, number, *args)


class Mount(NamedTuple):
    """A line of mountinfo, unescaped."""

    id: int
    parent: int
    major: int
    minor: int
    root: str
    mount_point: str
    options: str
    tags: tuple[str, ...]
    fs_type: str
    source: str
    super_options: str


def _unescaped(text: bytes) -> str:
    return os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda m: bytes([int(m[1], 8)]), text))


def mountinfo() -> list[Mount]:
    mounts = []
    for line in Path("/proc/self/mountinfo").read_bytes().split(b"\n")[:-1]:
        left, _, right = line.partition(b" - ")
        number, parent, device, root, point, options, *tags = left.split(b" ")
        fs_type, source, super_options = right.split(b" ", 2)
        major, minor = device.split(b":")
        mounts.append(
            Mount(
                int(number),
                int(parent),
                int(major),
                int(minor),
                _unescaped(root),
                _unescaped(point),
                options.decode(),
                tuple(tag.decode() for tag in tags),
                _unescaped(fs_type),
                _unescaped(source),
                os.fsdecode(super_options),
            )
        )
    return mounts


def in_user_namespace() -> bool:
    """Whether the session's root is an ordinary user outside."""
    return Path("/proc/self/uid_map").read_text().split() != ["0", "0", "4294967295"]


def open_fds() -> dict[int, str]:
    """The open descriptors of this process and what they refer to."""
    fds = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            fds[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            pass  # the descriptor of the listing itself
    return fds


def mnt_id_old(unique: int) -> int:
    """What statmount(2) gives as the 32-bit id of the mount with that unique id."""
    answer = ctypes.create_string_buffer(512)
    request = struct.pack("=IIQQ", 24, 0, unique, 2)
    syscall(457, request, answer, 512, 0)
    return struct.unpack_from("=I", answer, 56)[0]


def fdinfo_mnt_id(path: str | Path) -> int:
    """What /proc says of the mount that *path* is on."""
    fd = os.open(path, os.O_PATH)
    try:
        text = Path(f"/proc/self/fdinfo/{fd}").read_text()
    finally:
        os.close(fd)
    return int(text.split("mnt_id:")[1].split()[0])
