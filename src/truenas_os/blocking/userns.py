# SPDX-License-Identifier: LGPL-3.0-or-later
"""User namespaces that exist to map ids."""

import errno
import operator
import os
from collections.abc import Sequence
from itertools import pairwise

from .._native import ffi, lib
from .children import end_child
from .errors import check
from .fds import Fd
from .files import openat2
from .flags import AT_FDCWD
from .results import IdmapMapping

# The kernel's limits: the number of ids, of ranges, and of bytes that describe them.
_IDS = (1 << 32) - 1
_RANGES = 340
_LONGEST_MAP = 4095

IdMap = Sequence[IdmapMapping | tuple[int, int, int]]


def idmap_userns(uid_map: IdMap, gid_map: IdMap) -> Fd:
    """A user namespace that holds these maps, for ``MOUNT_ATTR_IDMAP``.

    With ``IdmapMapping(0, 100000, 10)``, a file that belongs to 5 on the disk shows as one of
    100005 in an idmapped mount. Each map has 1 to 340 ranges that do not overlap.

    Raises :exc:`ValueError` for maps that the kernel would refuse; :exc:`OSError`: EPERM (it needs
    CAP_SETUID and CAP_SETGID, the outer ids must exist in this user namespace, and the root must
    not have been changed with chroot), EACCES (this process is not dumpable), ENOSPC and EUSERS
    (too many user namespaces, or too deeply nested), EAGAIN. :manpage:`user_namespaces(7)`.
    Linux 5.5.
    """
    maps = {"uid_map": checked_map("uid_map", uid_map), "gid_map": checked_map("gid_map", gid_map)}
    pidfd = ffi.new("int *", -1)
    try:
        while (ret := lib.tos_userns_child(pidfd)) < 0:
            check(ret, "clone3", notes=("CLONE_NEWUSER, which a changed root forbids",))
        child = _directory_of(pidfd[0])
        for name, content in maps.items():
            _write(f"{child}/{name}", content)
        return openat2(AT_FDCWD, f"{child}/ns/user", os.O_RDONLY)
    finally:
        end_child(pidfd[0])


def _directory_of(pidfd: int) -> str:
    # By its number in this /proc, which may be that of another pid namespace.
    with open(f"/proc/self/fdinfo/{pidfd}") as info:
        pid = int(info.read().partition("\nPid:")[2].split()[0])
    if pid <= 0:
        note = "/proc is that of a pid namespace in which this process does not exist"
        check(-errno.ENOENT, "openat2", "/proc", notes=(note,))
    return f"/proc/{pid}"


def checked_map(name: str, mappings: IdMap) -> bytes:
    """The map as the kernel reads it. Raises :exc:`ValueError` for one that it would refuse."""
    ranges = [IdmapMapping(*map(operator.index, mapping)) for mapping in mappings]
    if not 1 <= len(ranges) <= _RANGES:
        raise ValueError(f"{name} must have 1 to {_RANGES} ranges, not {len(ranges)}")
    for inside, outside, length in ranges:
        if length < 1 or min(inside, outside) < 0 or max(inside, outside) + length > _IDS:
            raise ValueError(
                f"{name}: {inside}:{outside}:{length} is not a range of ids below {_IDS}"
            )
    for side in ("inside", "outside"):
        firsts = sorted((getattr(each, side), each.length) for each in ranges)
        for (first, length), (following, _) in pairwise(firsts):
            if first + length > following:
                raise ValueError(f"{name}: the {side} ids {following} and so on are mapped twice")
    content = "".join(f"{inside} {outside} {length}\n" for inside, outside, length in ranges)
    if len(content) > _LONGEST_MAP:
        raise ValueError(
            f"{name} takes {len(content)} bytes to describe, the kernel takes {_LONGEST_MAP}"
        )
    return content.encode()


def _write(path: str, content: bytes) -> None:
    with openat2(AT_FDCWD, path, os.O_WRONLY) as fd:
        try:
            os.write(fd, content)
        except OSError as error:
            error.filename = path
            raise
