# SPDX-License-Identifier: LGPL-3.0-or-later
"""A file given by path or by descriptor, as the kernel's ``...at`` calls take it."""

import os
from contextlib import AbstractContextManager, nullcontext

from .arguments import (
    FileDescriptorLike,
    StrOrBytesPath,
    dir_fileno,
    fileno,
    path_bytes,
    unfollowed,
)
from .errors import check
from .files import openat2
from .flags import AT_EMPTY_PATH, AT_SYMLINK_NOFOLLOW


def link_of(fd: int) -> bytes:
    """The path by which an open file can be named, also one that is open with ``O_PATH``."""
    return f"/proc/self/fd/{int(fd)}".encode()


class Target:
    """A file: a path, relative to *dir_fd*, that is not followed at its end; or a descriptor."""

    def __init__(
        self, path_or_fd: StrOrBytesPath | FileDescriptorLike, dir_fd: FileDescriptorLike | None
    ) -> None:
        self.path: StrOrBytesPath | None = None
        # Descriptor, path and AT_* flags.
        self.where: tuple[int, bytes, int]
        if isinstance(path_or_fd, (str, bytes, os.PathLike)):
            self.path = unfollowed(path_or_fd)
            self.where = dir_fileno(dir_fd), path_bytes(self.path), int(AT_SYMLINK_NOFOLLOW)
        else:
            self.where = fileno(path_or_fd), b"", int(AT_EMPTY_PATH)

    def pinned(self) -> AbstractContextManager[int]:
        """A descriptor of the file, of ``O_PATH`` unless the caller gave it."""
        if self.path is None:
            return nullcontext(self.where[0])
        return openat2(self.where[0], self.path, os.O_PATH | os.O_NOFOLLOW)

    def failed(self, ret: int, call: str) -> None:
        """Raise what *ret* stands for; returns only for ``-EINTR``, as :func:`check` does."""
        if self.path is None:
            check(ret, call, self.where[0])
        else:
            check(ret, call, self.path, dirfds=self.where[:1])
