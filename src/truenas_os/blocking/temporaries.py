# SPDX-License-Identifier: LGPL-3.0-or-later
"""Temporary names in a target's directory, and how those of the dead are told from the others.

A file without a name (``O_TMPFILE``) cannot take the place of another in one step: it gets a
temporary name first. A process killed just then leaves it behind, and where the filesystem has no
``O_TMPFILE``, one killed at any moment of the writing. Therefore the name tells which target it is
for, and whoever is at work on it holds a lock (:manpage:`flock(2)`), which the kernel takes away
from the dead. What is found unlocked on the way to the same target is removed.
"""

import errno
import fcntl
import functools
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

from .._native import lib
from .arguments import StrOrBytesPath
from .errors import check
from .fds import Fd
from .flags import RESOLVE_NO_SYMLINKS
from .safefiles import link_descriptor, open_directory

_NO_SYMLINKS = int(RESOLVE_NO_SYMLINKS)
_LOCK = fcntl.LOCK_EX | fcntl.LOCK_NB
# Who has the common name is at most so often found about to rename it; after that, about 0.1 s, he
# is stopped, or means harm.
_TRIES = 128


@functools.cache
def _boot_id() -> bytes:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
    return b""


class Temporaries:
    """The temporary names of the target *name* of a directory; errors are about *path*."""

    def __init__(self, directory: int, name: bytes, path: StrOrBytesPath) -> None:
        self._directory = directory
        self._path = path
        # Only the kernel that runs can say who is dead: the names of no other are looked at.
        digest = blake2b(name, digest_size=12, key=_boot_id()[:64]).hexdigest()
        self._prefix = f".truenas_os-{digest}-"

    def create(self, mode: int) -> tuple[Fd, bytes]:
        """A new file under a name that nobody can guess, open and locked."""
        self._sweep()
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR
        while True:
            name = self._unguessable()
            ret = lib.tos_openat2(self._directory, name, flags, mode, _NO_SYMLINKS)
            if ret >= 0:
                # Somebody may have found it before it was locked, and remove it.
                if lib.tos_flock(ret, _LOCK) != -errno.EWOULDBLOCK and os.fstat(ret).st_nlink:
                    return Fd(ret), name
                Fd(ret).close()
            elif ret != -errno.EEXIST:
                check(ret, "openat2", self._path)

    def names_to_link(self, fd: int) -> Iterator[bytes]:
        """Names to try for a file without one, which it is not to keep for long: the common one."""
        lib.tos_flock(fd, _LOCK)
        common = f"{self._prefix}new".encode()
        for tries in range(_TRIES):
            yield common
            if self._remove_if_dead(common):
                self._sweep()
            else:
                time.sleep(min(1e-5 * 2**tries, 1e-3))
        while True:
            yield self._unguessable()

    def link(self, fd: int, name: bytes) -> bool:
        """Give a file without a name this one; False if somebody has it."""
        while (ret := link_descriptor(fd, self._directory, name)) < 0:
            if ret == -errno.EEXIST:
                return False
            check(ret, "linkat", self._path)
        return True

    def _unguessable(self) -> bytes:
        return f"{self._prefix}{secrets.token_hex(16)}".encode()

    def _sweep(self) -> None:
        """Remove what the dead left behind. Without the right to list or to remove, it stays."""
        with suppress(OSError), open_directory(self._directory, b".", os.O_RDONLY) as listed:
            for name in os.listdir(listed):
                if name.startswith(self._prefix):
                    self._remove_if_dead(os.fsencode(name))

    def _remove_if_dead(self, name: bytes) -> bool:
        # Over a network only a file that is open for writing can be locked.
        for access in (os.O_RDWR, os.O_RDONLY):
            flags = access | os.O_NONBLOCK
            ret = lib.tos_open_regular(self._directory, name, flags, _NO_SYMLINKS)
            if ret >= 0:
                break
        else:
            return False
        with suppress(OSError), Fd(ret) as fd:
            # While the lock is ours, nobody else removes the file: its name stays its name.
            if lib.tos_flock(fd, _LOCK) == 0 and is_named(fd, self._directory, name):
                return bool(lib.tos_unlinkat(self._directory, name, 0) == 0)
        return False


def is_named(fd: int, directory: int, name: bytes) -> bool:
    """Whether a name stands for an open file."""
    try:
        named = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(named, os.fstat(fd))
