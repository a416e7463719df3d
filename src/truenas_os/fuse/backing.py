# SPDX-License-Identifier: LGPL-3.0-or-later
"""Backing files: what the kernel reads and writes by itself, in the place of a file that is served.

The kernel takes a backing file by an id. While an inode is open, all who have it open must have
been given the same id, or all of them none; what is opened differently fails with EIO.
"""

import errno
import os
from typing import Final

from .._native import lib
from .datatypes import FileInfo
from .negotiation import Features
from .wire import InitFlag

_CAP_FSETID: Final = 1 << 4
# The kernel cannot, or may not for this process, and the filesystem is to serve the file itself.
_CANNOT: Final = frozenset((errno.ELOOP, errno.EPERM, errno.ENOMEM, errno.ENOSPC))


class Backing:
    """The inodes that are open on a connection, and the ids of their backing files.

    No call to the kernel waits for anything: it takes note of an open file, or forgets it.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._dropped = 0
        # By inode: the id, 0 for none, and how often it is open.
        self._open: dict[int, tuple[int, int]] = {}

    def agree(self, features: Features) -> Features:
        """What has been negotiated, without PASSTHROUGH if this process must not use it."""
        if features.flags & InitFlag.PASSTHROUGH:
            # It is left to the server that writing takes the setuid and setgid bits away: here, to
            # what writes the backing file, which for that must not be too privileged.
            if features.flags & InitFlag.HANDLE_KILLPRIV_V2:
                self._dropped = _CAP_FSETID
            # Permission comes before the descriptor, which is none.
            if lib.tos_fuse_backing_open(self._fd, -1, 0) == -errno.EPERM:
                return features._replace(flags=features.flags & ~InitFlag.PASSTHROUGH)
        return features

    def open(self, inode: int, info: FileInfo) -> int:
        """Count an open file; the id that it is to have, 0 if the filesystem is to serve it.

        Raises :exc:`ValueError` if what *info* has is no descriptor of a regular file.
        """
        backing_id, count = self._open.get(inode, (0, 0))
        if not count and info.backing_fd is not None and self._fd >= 0:
            backing_id = lib.tos_fuse_backing_open(self._fd, info.backing_fd, self._dropped)
            if backing_id < 0:
                if -backing_id not in _CANNOT:
                    raise ValueError(f"backing_fd {info.backing_fd}: {os.strerror(-backing_id)}")
                backing_id = 0
        self._open[inode] = backing_id, count + 1
        return backing_id

    def release(self, inode: int) -> None:
        """Count one open file less; the last of an inode gives the id back."""
        backing_id, count = self._open.get(inode, (0, 0))
        if count > 1:
            self._open[inode] = backing_id, count - 1
        elif count:
            del self._open[inode]
            self._give_back(backing_id)

    def close(self) -> None:
        """Give all ids back: a filesystem that is still in use would keep the files open."""
        for backing_id, _ in self._open.values():
            self._give_back(backing_id)
        self._open.clear()
        self._fd = -1

    def _give_back(self, backing_id: int) -> None:
        # It fails if this process has given up its privileges, and is left to the connection's end.
        if backing_id and self._fd >= 0:
            lib.tos_fuse_backing_close(self._fd, backing_id)
