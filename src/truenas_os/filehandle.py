# SPDX-License-Identifier: LGPL-3.0-or-later
"""File handles, made and opened on worker threads."""

from collections.abc import Generator
from typing import Any, Self

from typing_extensions import Buffer

from . import _threads
from .blocking import AT_FDCWD
from .blocking.arguments import FileDescriptorLike, StrOrBytesPath
from .blocking.fds import Fd as BlockingFd
from .blocking.filehandle import (
    HandleContent,
    check_source,
    checked_handle,
    handle_of,
    open_handle,
)
from .fds import Fd

_handle_of = _threads.in_thread(handle_of)
_open_handle = _threads.in_thread(open_handle, late=BlockingFd.close)


class fhandle(HandleContent):
    """A file handle, made from a path or restored from bytes; see :manpage:`name_to_handle_at(2)`.

    ``await fhandle(path=...)`` makes one, *path* being relative to *dir_fd* and *flags* being
    ``FH_AT_*``. ``fhandle(handle_bytes=..., mount_id=...)`` restores one from what
    ``bytes(handle)`` returned; it can be used at once, and awaited as well. Handles are equal, and
    hash alike, by content and mount.

    Raises :exc:`ValueError` for malformed *handle_bytes* and a *mount_id* that can be none; the
    await raises :exc:`OSError` with EOPNOTSUPP where the filesystem has no handles (some have them
    with ``FH_AT_HANDLE_FID``, for comparing only), EINVAL for flags that exclude each other,
    ENOENT, and so on. Linux 5.6; before 6.8 without a mount id.
    """

    __slots__ = ("_source",)

    def __init__(
        self,
        path: StrOrBytesPath | None = None,
        dir_fd: FileDescriptorLike = AT_FDCWD,
        flags: int = 0,
        handle_bytes: Buffer | None = None,
        mount_id: int | None = None,
    ) -> None:
        check_source(path, handle_bytes, mount_id)
        if path is not None:
            self._source = path, dir_fd, flags
        elif handle_bytes is not None:
            self._handle, self._mount_id = checked_handle(handle_bytes), mount_id

    def __await__(self) -> Generator[Any, Any, Self]:
        if not hasattr(self, "_handle"):
            self._handle, self._mount_id = yield from _handle_of(*self._source).__await__()
        return self

    async def open(self, mount_fd: FileDescriptorLike, flags: int = 0) -> Fd:
        """Open the file, on the filesystem that *mount_fd* is on, with *flags* (``os.O_*``).

        Needs CAP_DAC_READ_SEARCH. The descriptor is close-on-exec.

        Raises :exc:`OSError`: ESTALE (the file is gone), EPERM, EINVAL (not a handle of this
        filesystem), ELOOP (a symlink, without ``O_PATH``). :manpage:`open_by_handle_at(2)`.
        Linux 2.6.39.
        """
        return Fd(await _open_handle(bytes(self), mount_fd, flags))
