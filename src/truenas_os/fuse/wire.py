# SPDX-License-Identifier: LGPL-3.0-or-later
"""The FUSE kernel protocol as data: operation codes, flags and struct layouts, 7.31 to 7.45.

Layouts are in the machine's byte order and have no hidden padding. What only macOS has is here as
constants, though Linux never sends it.
"""

import enum
import mmap
from struct import Struct
from typing import Final

FUSE_KERNEL_VERSION: Final = 7
FUSE_KERNEL_MINOR_VERSION: Final = 45
OLDEST_MINOR: Final = 31
"""Of Linux 5.4. What is older is refused."""
FUSE_ROOT_ID: Final = 1
PAGE: Final = mmap.PAGESIZE
NAME_MAX: Final = 1024
"""The longest name of a directory entry, in bytes."""
ERRNO_MAX: Final = 511
"""The largest errno that the kernel takes in a reply."""


class Opcode(enum.IntEnum):
    """What a request asks for."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SETUPMAPPING = 48
    REMOVEMAPPING = 49
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52
    COPY_FILE_RANGE_64 = 53
    SETVOLNAME = 61
    """macOS."""
    GETXTIMES = 62
    """macOS."""
    EXCHANGE = 63
    """macOS."""


class InitFlag(enum.IntFlag):
    """What the two sides of a connection agree on at its beginning."""

    ASYNC_READ = 1 << 0
    POSIX_LOCKS = 1 << 1
    FILE_OPS = 1 << 2
    ATOMIC_O_TRUNC = 1 << 3
    EXPORT_SUPPORT = 1 << 4
    BIG_WRITES = 1 << 5
    DONT_MASK = 1 << 6
    SPLICE_WRITE = 1 << 7
    SPLICE_MOVE = 1 << 8
    SPLICE_READ = 1 << 9
    FLOCK_LOCKS = 1 << 10
    HAS_IOCTL_DIR = 1 << 11
    AUTO_INVAL_DATA = 1 << 12
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    ASYNC_DIO = 1 << 15
    WRITEBACK_CACHE = 1 << 16
    NO_OPEN_SUPPORT = 1 << 17
    PARALLEL_DIROPS = 1 << 18
    HANDLE_KILLPRIV = 1 << 19
    POSIX_ACL = 1 << 20
    ABORT_ERROR = 1 << 21
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    NO_OPENDIR_SUPPORT = 1 << 24
    EXPLICIT_INVAL_DATA = 1 << 25
    MAP_ALIGNMENT = 1 << 26
    SUBMOUNTS = 1 << 27
    HANDLE_KILLPRIV_V2 = 1 << 28
    SETXATTR_EXT = 1 << 29
    INIT_EXT = 1 << 30
    SECURITY_CTX = 1 << 32
    HAS_INODE_DAX = 1 << 33
    CREATE_SUPP_GROUP = 1 << 34
    HAS_EXPIRE_ONLY = 1 << 35
    DIRECT_IO_ALLOW_MMAP = 1 << 36
    PASSTHROUGH = 1 << 37
    NO_EXPORT_SUPPORT = 1 << 38
    HAS_RESEND = 1 << 39
    ALLOW_IDMAP = 1 << 40
    OVER_IO_URING = 1 << 41
    REQUEST_TIMEOUT = 1 << 42


UNIQUE_RESEND: Final = 1 << 63
"""What the unique of a request has in addition that has been sent before."""


class NotifyCode(enum.IntEnum):
    """What a message says that answers no request; in the place of the errno."""

    POLL = 1
    INVAL_INODE = 2
    INVAL_ENTRY = 3
    STORE = 4
    RETRIEVE = 5
    DELETE = 6
    RESEND = 7
    INC_EPOCH = 8
    PRUNE = 9


# Replies to OPEN, OPENDIR, CREATE and TMPFILE.
FOPEN_DIRECT_IO: Final = 1 << 0
FOPEN_KEEP_CACHE: Final = 1 << 1
FOPEN_NONSEEKABLE: Final = 1 << 2
FOPEN_CACHE_DIR: Final = 1 << 3
FOPEN_STREAM: Final = 1 << 4
FOPEN_NOFLUSH: Final = 1 << 5
FOPEN_PARALLEL_DIRECT_WRITES: Final = 1 << 6
FOPEN_PASSTHROUGH: Final = 1 << 7
FOPEN_PURGE_ATTR: Final = 1 << 30
"""macOS."""
FOPEN_PURGE_UBC: Final = 1 << 31
"""macOS."""

# Negotiation, as the Nim interface names it.
FUSE_ASYNC_READ: Final = InitFlag.ASYNC_READ
FUSE_POSIX_LOCKS: Final = InitFlag.POSIX_LOCKS
FUSE_CASE_INSENSITIVE: Final = 1 << 29
"""macOS."""
FUSE_VOL_RENAME: Final = 1 << 30
"""macOS."""
FUSE_XTIMES: Final = 1 << 31
"""macOS."""

GETATTR_FH: Final = 1 << 0
WRITE_CACHE: Final = 1 << 0
WRITE_LOCKOWNER: Final = 1 << 1
WRITE_KILL_SUIDGID: Final = 1 << 2
READ_LOCKOWNER: Final = 1 << 1
RELEASE_FLUSH: Final = 1 << 0
RELEASE_FLOCK_UNLOCK: Final = 1 << 1
FSYNC_FDATASYNC: Final = 1 << 0
LK_FLOCK: Final = 1 << 0
POLL_SCHEDULE_NOTIFY: Final = 1 << 0
IOCTL_DIR: Final = 1 << 4
EXPIRE_ONLY: Final = 1 << 0
"""Of INVAL_ENTRY: the entry is looked up again, but not dropped."""

# What SETATTR is to set.
FATTR_MODE: Final = 1 << 0
FATTR_UID: Final = 1 << 1
FATTR_GID: Final = 1 << 2
FATTR_SIZE: Final = 1 << 3
FATTR_ATIME: Final = 1 << 4
FATTR_MTIME: Final = 1 << 5
FATTR_FH: Final = 1 << 6
FATTR_ATIME_NOW: Final = 1 << 7
FATTR_MTIME_NOW: Final = 1 << 8
FATTR_LOCKOWNER: Final = 1 << 9
FATTR_CTIME: Final = 1 << 10
FATTR_KILL_SUIDGID: Final = 1 << 11
FATTR_CRTIME: Final = 1 << 28
"""macOS."""
FATTR_CHGTIME: Final = 1 << 29
"""macOS."""
FATTR_BKUPTIME: Final = 1 << 30
"""macOS."""
FATTR_FLAGS: Final = 1 << 31
"""macOS."""

# ino size blocks; atime mtime ctime, in seconds; their nanoseconds; mode nlink uid gid rdev
# blksize flags
_ATTR = "3Q3q3I7I"

IN_HEADER: Final = Struct("=IIQQIIIHH")
"""len opcode unique nodeid uid gid pid total_extlen padding"""
OUT_HEADER: Final = Struct("=IiQ")
"""len error unique"""
INIT_IN: Final = Struct("=IIIII44x")
"""major minor max_readahead flags flags2"""
INIT_IN_SHORT: Final = Struct("=IIII")
"""The same before 7.36."""
INIT_OUT: Final = Struct("=IIIIHHIIHHIIH22x")
"""major minor max_readahead flags max_background congestion_threshold max_write time_gran
max_pages map_alignment flags2 max_stack_depth request_timeout"""
ENTRY_OUT: Final = Struct("=QQQQII" + _ATTR)
"""nodeid generation entry_valid attr_valid entry_valid_nsec attr_valid_nsec, attributes"""
ATTR_OUT: Final = Struct("=QI4x" + _ATTR)
"""attr_valid attr_valid_nsec, attributes"""
GETATTR_IN: Final = Struct("=I4xQ")
"""getattr_flags fh"""
MKNOD_IN: Final = Struct("=III4x")
"""mode rdev umask; name"""
MKDIR_IN: Final = Struct("=II")
"""mode umask; name"""
RENAME_IN: Final = Struct("=Q")
"""newdir; old name, new name"""
RENAME2_IN: Final = Struct("=QI4x")
"""newdir flags; old name, new name"""
LINK_IN: Final = Struct("=Q")
"""oldnodeid; name"""
SETATTR_IN: Final = Struct("=I4xQQQqqqIIII4xII4x")
"""valid fh size lock_owner atime mtime ctime atimensec mtimensec ctimensec mode uid gid"""
OPEN_IN: Final = Struct("=II")
"""flags open_flags"""
CREATE_IN: Final = Struct("=IIII")
"""flags mode umask open_flags; name (none for TMPFILE but an empty one)"""
OPEN_OUT: Final = Struct("=QIi")
"""fh open_flags backing_id"""
RELEASE_IN: Final = Struct("=QIIQ")
"""fh flags release_flags lock_owner"""
FLUSH_IN: Final = Struct("=Q8xQ")
"""fh lock_owner"""
READ_IN: Final = Struct("=QQIIQI4x")
"""fh offset size read_flags lock_owner flags"""
WRITE_IN: Final = Struct("=QQIIQI4x")
"""fh offset size write_flags lock_owner flags; data"""
WRITE_OUT: Final = Struct("=I4x")
"""size"""
COPIED_OUT: Final = Struct("=Q")
"""bytes_copied, of COPY_FILE_RANGE_64"""
STATFS_OUT: Final = Struct("=QQQQQIII28x")
"""blocks bfree bavail files ffree bsize namelen frsize"""
FSYNC_IN: Final = Struct("=QI4x")
"""fh fsync_flags"""
SETXATTR_IN: Final = Struct("=II")
SETXATTR_EXT: Final = Struct("=II")  # what follows it if SETXATTR_EXT was negotiated
SETXATTR_ACL_KILL_SGID: Final = 1 << 0
"""size flags; name, value"""
GETXATTR_IN: Final = Struct("=I4x")
"""size; name, but for LISTXATTR"""
GETXATTR_OUT: Final = Struct("=I4x")
"""size"""
FILE_LOCK: Final = Struct("=QQII")
"""start end type pid"""
LK_IN: Final = Struct("=QQQQIII4x")
"""fh owner start end type pid lk_flags"""
ACCESS_IN: Final = Struct("=I4x")
"""mask"""
INTERRUPT_IN: Final = Struct("=Q")
"""unique"""
BMAP_IN: Final = Struct("=QI4x")
"""block blocksize"""
BMAP_OUT: Final = Struct("=Q")
"""block"""
IOCTL_IN: Final = Struct("=QIIQII")
"""fh flags cmd arg in_size out_size; data"""
IOCTL_OUT: Final = Struct("=iIII")
"""result flags in_iovs out_iovs; data"""
POLL_IN: Final = Struct("=QQII")
"""fh kh flags events"""
POLL_OUT: Final = Struct("=I4x")
"""revents"""
FALLOCATE_IN: Final = Struct("=QQQI4x")
"""fh offset length mode"""
LSEEK_IN: Final = Struct("=QqI4x")
"""fh offset whence"""
LSEEK_OUT: Final = Struct("=Q")
"""offset"""
COPY_FILE_RANGE_IN: Final = Struct("=QQQQQQQ")
"""fh_in off_in nodeid_out fh_out off_out len flags"""
FORGET_IN: Final = Struct("=Q")
"""nlookup"""
BATCH_FORGET_IN: Final = Struct("=I4x")
"""count; so many of FORGET_ONE"""
FORGET_ONE: Final = Struct("=QQ")
"""nodeid nlookup"""
STATX_IN: Final = Struct("=I4xQII")
"""getattr_flags fh sx_flags sx_mask"""
STATX_OUT: Final = Struct("=QI20xIIQIIIH2xQQQQ" + "qI4x" * 4 + "IIII112x")
"""attr_valid attr_valid_nsec; mask blksize attributes nlink uid gid mode ino size blocks
attributes_mask, seconds and nanoseconds of atime btime ctime mtime, rdev_major rdev_minor
dev_major dev_minor"""
DIRENT: Final = Struct("=QQII")
"""ino off namelen type; name, padded with zeroes to a multiple of 8 bytes"""
DIRENTPLUS: Final = Struct("=QQQQII" + _ATTR + "QQII")
"""What LOOKUP replies, then a DIRENT."""
NOTIFY_REPLY_IN: Final = Struct("=8xQI4x16x")
"""offset size; data"""
NOTIFY_POLL_OUT: Final = Struct("=Q")
"""kh"""
INVAL_INODE_OUT: Final = Struct("=Qqq")
"""ino off len"""
INVAL_ENTRY_OUT: Final = Struct("=QII")
"""parent namelen flags; name"""
DELETE_OUT: Final = Struct("=QQI4x")
"""parent child namelen; name"""
STORE_OUT: Final = Struct("=QQI4x")
PRUNE_OUT: Final = Struct("=I12x")
"""nodeid offset size; data"""
RETRIEVE_OUT: Final = Struct("=QQQI4x")
"""notify_unique nodeid offset size"""
