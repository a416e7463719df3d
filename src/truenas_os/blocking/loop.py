# SPDX-License-Identifier: LGPL-3.0-or-later
"""Loop devices: a file as a block device."""

import errno
import operator
import os
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Final, Generic, NamedTuple, TypeVar

from .._native import lib
from .arguments import StrOrBytesPath, path_bytes
from .errors import check
from .fds import Fd
from .files import openat2
from .flags import AT_FDCWD

AnyFd = TypeVar("AnyFd", bound=Fd)

_CONTROL = "/dev/loop-control"
_READ_ONLY: Final = 1
_AUTOCLEAR: Final = 4
# Of so many devices that were free, somebody else may have been quicker to take one.
_TRIES = 64


class LoopDevice(NamedTuple, Generic[AnyFd]):
    """A block device that shows a file, for as long as anything uses it."""

    path: str
    """``/dev/loop0`` or the like."""
    fd: AnyFd
    """An open descriptor of the device."""


class LoopBlock(AbstractContextManager[LoopDevice[Fd]]):
    """A loop device for the time of a block."""

    def __init__(self, file: str, read_only: bool, offset: int, sector_size: int) -> None:
        self._file = file
        self._read_only = read_only
        self._offset = offset
        self._sector_size = sector_size
        self.fd: Fd | None = None

    def __enter__(self) -> LoopDevice[Fd]:
        if self.fd is not None:
            raise RuntimeError("this loop device is in use already")
        # Not waiting: should the file be a FIFO, the kernel will say that it is no disk.
        mode = (os.O_RDONLY if self._read_only else os.O_RDWR) | os.O_NONBLOCK
        with openat2(AT_FDCWD, self._file, mode) as file:
            device = self._configured(file, os.O_RDONLY if self._read_only else os.O_RDWR)
        self.fd = device.fd
        return device

    def _configured(self, file: Fd, mode: int) -> LoopDevice[Fd]:
        flags = _AUTOCLEAR | (_READ_ONLY if self._read_only else 0)
        for _ in range(_TRIES):
            path = f"/dev/loop{_free()}"
            fd = openat2(AT_FDCWD, path, mode)
            try:
                if self._configure(fd, file, flags):
                    return LoopDevice(path, fd)
            except BaseException:
                fd.close()
                raise
            fd.close()
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), _CONTROL)

    def _configure(self, fd: Fd, file: Fd, flags: int) -> bool:
        """Whether the device is ours now: somebody else may have been quicker."""
        name = os.fsencode(self._file)
        while ret := lib.tos_loop_configure(fd, file, self._sector_size, self._offset, flags, name):
            if ret == -errno.EBUSY:
                return False
            check(ret, "ioctl", self._file, notes=("LOOP_CONFIGURE",))
        return True

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.undo()

    def undo(self) -> None:
        fd, self.fd = self.fd, None
        if fd is not None:
            fd.close()


def loop_device(
    path: StrOrBytesPath, *, read_only: bool = False, offset: int = 0, sector_size: int = 0
) -> LoopBlock:
    """A loop device for the time of a ``with`` block: the file *path* as a disk.

    The block gets a :class:`LoopDevice`. The device is released when the last one that uses it is
    done with it: the block, or what was mounted from it. *read_only*: nothing is written to the
    file. *offset*: where in the file the device begins, in bytes. *sector_size*: in bytes, a power
    of two from 512 on; 0 is the kernel's choice.

    Beginning the block raises :exc:`OSError`: ENOENT (no such file, or no /dev/loop-control),
    EACCES or EPERM (loop devices are for root), EINVAL, EBUSY (64 devices in a row were taken by
    others). :manpage:`loop(4)`. Linux 5.8.
    """
    offset, sector_size = operator.index(offset), operator.index(sector_size)
    if not 0 <= offset < 1 << 63:
        raise ValueError(f"offset must be between 0 and 2^63, not {offset}")
    if sector_size and (not 512 <= sector_size < 1 << 32 or sector_size & (sector_size - 1)):
        raise ValueError(f"sector_size must be a power of two from 512 on, not {sector_size}")
    path_bytes(path)
    return LoopBlock(os.fsdecode(path), read_only, offset, sector_size)


def _free() -> int:
    with openat2(AT_FDCWD, _CONTROL, os.O_RDWR) as control:
        while (ret := lib.tos_loop_get_free(control)) < 0:
            check(ret, "ioctl", _CONTROL, notes=("LOOP_CTL_GET_FREE",))
    return int(ret)
