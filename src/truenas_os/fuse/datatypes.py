# SPDX-License-Identifier: LGPL-3.0-or-later
"""What handlers are given and what they return."""

import errno
import os
import stat
from dataclasses import dataclass
from typing import Final, NamedTuple, NewType

from .wire import FUSE_ROOT_ID

FileHandleT = NewType("FileHandleT", int)
InodeT = NewType("InodeT", int)
FileNameT = NewType("FileNameT", bytes)
FlagT = NewType("FlagT", int)
ModeT = NewType("ModeT", int)
XAttrNameT = NewType("XAttrNameT", bytes)

ROOT_INODE: Final = InodeT(FUSE_ROOT_ID)
RENAME_NOREPLACE: Final = FlagT(1 << 0)
RENAME_EXCHANGE: Final = FlagT(1 << 1)
ENOATTR: Final = errno.ENODATA
"""The errno for an extended attribute that does not exist."""
XATTR_CREATE: Final = os.XATTR_CREATE
XATTR_REPLACE: Final = os.XATTR_REPLACE


class FUSEError(Exception):
    """What a handler raises to have the system call fail with *errno*."""

    def __init__(self, errno: int) -> None:
        if not isinstance(errno, int):
            raise TypeError(f"{errno!r} is no errno")
        super().__init__(errno)
        self.errno_ = errno

    @property
    def errno(self) -> int:
        """The error's number; ``errno_`` is another name for it."""
        return self.errno_

    def __str__(self) -> str:
        return os.strerror(self.errno_)


class RequestContext(NamedTuple):
    """Who makes a request: ids as the mount's user namespace has them, 0 for an invisible pid.

    *umask* is given to handlers that create something; it has been applied to their mode already.
    With ``enable_idmap``, only they are told *uid* and *gid*, others get 0xFFFFFFFF.
    """

    uid: int = 0
    gid: int = 0
    pid: int = 0
    umask: int = 0


@dataclass(slots=True)
class EntryAttributes:
    """The attributes of an inode, and how long they and the name that led to it may be cached.

    Timeouts are in seconds, times in nanoseconds since the epoch, ``st_blocks`` is in units of 512
    bytes. ``st_ino`` is what the kernel will name the inode by.
    """

    st_ino: int = 0
    generation: int = 0
    entry_timeout: float = 300
    attr_timeout: float = 300
    st_mode: int = stat.S_IFREG
    st_nlink: int = 1
    st_uid: int = 0
    st_gid: int = 0
    st_rdev: int = 0
    st_size: int = 0
    st_blksize: int = 4096
    st_blocks: int = 0
    st_atime_ns: int = 0
    st_ctime_ns: int = 0
    st_mtime_ns: int = 0
    st_birthtime_ns: int = 0


@dataclass(slots=True)
class FileInfo:
    """An open file: its handle, and how the kernel is to treat it.

    *direct_io*: reads and writes bypass the page cache; *keep_cache*: what is in the page cache
    stays valid; *nonseekable*: as a pipe.

    *backing_fd*: a descriptor of a regular file that the kernel is to read, write and map in place
    of this one, if ``enable_passthrough`` is set and the kernel takes it. It stays the filesystem's
    own, and must be open until the handler has returned.
    """

    fh: int = 0
    direct_io: bool = False
    keep_cache: bool = True
    nonseekable: bool = False
    backing_fd: int | None = None


class SetattrFields(NamedTuple):
    """Which attributes ``setattr`` is to change.

    *atime_now* and *mtime_now*: set to the present time rather than to one that the caller chose;
    the attributes have that time, and the ``update_`` field is true as well.
    """

    update_atime: bool = False
    update_mtime: bool = False
    update_ctime: bool = False
    update_mode: bool = False
    update_uid: bool = False
    update_gid: bool = False
    update_size: bool = False
    atime_now: bool = False
    mtime_now: bool = False


@dataclass(slots=True)
class StatvfsData:
    """The state of a filesystem, as :manpage:`statvfs(3)` has it.

    Blocks are in units of ``f_frsize`` bytes.
    """

    f_bsize: int = 4096
    f_frsize: int = 4096
    f_blocks: int = 0
    f_bfree: int = 0
    f_bavail: int = 0
    f_files: int = 0
    f_ffree: int = 0
    f_favail: int = 0
    f_namemax: int = 255


class FileLock(NamedTuple):
    """A lock on a range of bytes, from *start* to *end* inclusive.

    *type*: ``fcntl.F_RDLCK``, ``F_WRLCK`` or ``F_UNLCK``; *pid*: who holds it.
    """

    start: int
    end: int
    type: int
    pid: int
