# SPDX-License-Identifier: LGPL-3.0-or-later
"""The kernel's constants, as of Linux 6.18.

Each family is one :class:`enum.IntFlag` (or IntEnum), and every member stands at module level under
the kernel's own name. A kernel that does not know a value refuses or ignores it; where a value is
younger than its system call, the Linux version stands beside it.
"""

from enum import IntEnum, IntFlag
from typing import Final

AT_FDCWD: Final = -100
LSMT_ROOT: Final = 0xFFFFFFFFFFFFFFFF


class StatmountMask(IntFlag):
    """Fields that :func:`statmount` is to report (``STATMOUNT_*``)."""

    SB_BASIC = 1
    MNT_BASIC = 2
    PROPAGATE_FROM = 4
    MNT_ROOT = 8
    MNT_POINT = 0x10
    FS_TYPE = 0x20
    MNT_NS_ID = 0x40  # Linux 6.11
    MNT_OPTS = 0x80  # Linux 6.11
    FS_SUBTYPE = 0x100  # Linux 6.13
    SB_SOURCE = 0x200  # Linux 6.13
    OPT_ARRAY = 0x400  # Linux 6.13
    OPT_SEC_ARRAY = 0x800  # Linux 6.13
    SUPPORTED_MASK = 0x1000  # Linux 6.15
    MNT_UIDMAP = 0x2000  # Linux 6.15
    MNT_GIDMAP = 0x4000  # Linux 6.15


STATMOUNT_SB_BASIC: Final = StatmountMask.SB_BASIC
STATMOUNT_MNT_BASIC: Final = StatmountMask.MNT_BASIC
STATMOUNT_PROPAGATE_FROM: Final = StatmountMask.PROPAGATE_FROM
STATMOUNT_MNT_ROOT: Final = StatmountMask.MNT_ROOT
STATMOUNT_MNT_POINT: Final = StatmountMask.MNT_POINT
STATMOUNT_FS_TYPE: Final = StatmountMask.FS_TYPE
STATMOUNT_MNT_NS_ID: Final = StatmountMask.MNT_NS_ID
STATMOUNT_MNT_OPTS: Final = StatmountMask.MNT_OPTS
STATMOUNT_FS_SUBTYPE: Final = StatmountMask.FS_SUBTYPE
STATMOUNT_SB_SOURCE: Final = StatmountMask.SB_SOURCE
STATMOUNT_OPT_ARRAY: Final = StatmountMask.OPT_ARRAY
STATMOUNT_OPT_SEC_ARRAY: Final = StatmountMask.OPT_SEC_ARRAY
STATMOUNT_SUPPORTED_MASK: Final = StatmountMask.SUPPORTED_MASK
STATMOUNT_MNT_UIDMAP: Final = StatmountMask.MNT_UIDMAP
STATMOUNT_MNT_GIDMAP: Final = StatmountMask.MNT_GIDMAP


class StatxMask(IntFlag):
    """Fields that :func:`statx` is to report, and did report in ``stx_mask`` (``STATX_*``)."""

    TYPE = 1
    MODE = 2
    NLINK = 4
    UID = 8
    GID = 0x10
    ATIME = 0x20
    MTIME = 0x40
    CTIME = 0x80
    INO = 0x100
    SIZE = 0x200
    BLOCKS = 0x400
    BASIC_STATS = 0x7FF
    BTIME = 0x800
    ALL = 0xFFF  # deprecated by the kernel: it will not grow
    MNT_ID = 0x1000  # Linux 5.8
    DIOALIGN = 0x2000  # Linux 6.1
    MNT_ID_UNIQUE = 0x4000  # Linux 6.8
    SUBVOL = 0x8000  # Linux 6.10
    WRITE_ATOMIC = 0x10000  # Linux 6.11
    DIO_READ_ALIGN = 0x20000  # Linux 6.14
    RESERVED = 0x80000000  # the kernel refuses it with EINVAL


STATX_TYPE: Final = StatxMask.TYPE
STATX_MODE: Final = StatxMask.MODE
STATX_NLINK: Final = StatxMask.NLINK
STATX_UID: Final = StatxMask.UID
STATX_GID: Final = StatxMask.GID
STATX_ATIME: Final = StatxMask.ATIME
STATX_MTIME: Final = StatxMask.MTIME
STATX_CTIME: Final = StatxMask.CTIME
STATX_INO: Final = StatxMask.INO
STATX_SIZE: Final = StatxMask.SIZE
STATX_BLOCKS: Final = StatxMask.BLOCKS
STATX_BASIC_STATS: Final = StatxMask.BASIC_STATS
STATX_BTIME: Final = StatxMask.BTIME
STATX_ALL: Final = StatxMask.ALL
STATX_MNT_ID: Final = StatxMask.MNT_ID
STATX_DIOALIGN: Final = StatxMask.DIOALIGN
STATX_MNT_ID_UNIQUE: Final = StatxMask.MNT_ID_UNIQUE
STATX_SUBVOL: Final = StatxMask.SUBVOL
STATX_WRITE_ATOMIC: Final = StatxMask.WRITE_ATOMIC
STATX_DIO_READ_ALIGN: Final = StatxMask.DIO_READ_ALIGN
STATX__RESERVED: Final = StatxMask.RESERVED


class StatxAttr(IntFlag):
    """Bits of ``stx_attributes`` (``STATX_ATTR_*``)."""

    COMPRESSED = 4
    IMMUTABLE = 0x10
    APPEND = 0x20
    NODUMP = 0x40
    ENCRYPTED = 0x800
    AUTOMOUNT = 0x1000
    MOUNT_ROOT = 0x2000  # Linux 5.8
    VERITY = 0x100000  # Linux 5.5
    DAX = 0x200000  # Linux 5.8
    WRITE_ATOMIC = 0x400000  # Linux 6.11


STATX_ATTR_COMPRESSED: Final = StatxAttr.COMPRESSED
STATX_ATTR_IMMUTABLE: Final = StatxAttr.IMMUTABLE
STATX_ATTR_APPEND: Final = StatxAttr.APPEND
STATX_ATTR_NODUMP: Final = StatxAttr.NODUMP
STATX_ATTR_ENCRYPTED: Final = StatxAttr.ENCRYPTED
STATX_ATTR_AUTOMOUNT: Final = StatxAttr.AUTOMOUNT
STATX_ATTR_MOUNT_ROOT: Final = StatxAttr.MOUNT_ROOT
STATX_ATTR_VERITY: Final = StatxAttr.VERITY
STATX_ATTR_DAX: Final = StatxAttr.DAX
STATX_ATTR_WRITE_ATOMIC: Final = StatxAttr.WRITE_ATOMIC


class AtFlag(IntFlag):
    """Flags of the ``*at`` calls (``AT_*``); what a value means can depend on the call."""

    SYMLINK_NOFOLLOW = 0x100
    SYMLINK_FOLLOW = 0x400
    NO_AUTOMOUNT = 0x800
    EMPTY_PATH = 0x1000
    STATX_SYNC_TYPE = 0x6000
    STATX_SYNC_AS_STAT = 0
    STATX_FORCE_SYNC = 0x2000
    STATX_DONT_SYNC = 0x4000
    RECURSIVE = 0x8000
    EACCESS = 0x200
    REMOVEDIR = 0x200
    HANDLE_FID = 0x200
    HANDLE_MNT_ID_UNIQUE = 1  # Linux 6.12
    HANDLE_CONNECTABLE = 2  # Linux 6.13
    RENAME_NOREPLACE = 1
    RENAME_EXCHANGE = 2
    RENAME_WHITEOUT = 4
    EXECVE_CHECK = 0x10000  # Linux 6.14


AT_SYMLINK_NOFOLLOW: Final = AtFlag.SYMLINK_NOFOLLOW
AT_SYMLINK_FOLLOW: Final = AtFlag.SYMLINK_FOLLOW
AT_NO_AUTOMOUNT: Final = AtFlag.NO_AUTOMOUNT
AT_EMPTY_PATH: Final = AtFlag.EMPTY_PATH
AT_STATX_SYNC_TYPE: Final = AtFlag.STATX_SYNC_TYPE
AT_STATX_SYNC_AS_STAT: Final = AtFlag.STATX_SYNC_AS_STAT
AT_STATX_FORCE_SYNC: Final = AtFlag.STATX_FORCE_SYNC
AT_STATX_DONT_SYNC: Final = AtFlag.STATX_DONT_SYNC
AT_RECURSIVE: Final = AtFlag.RECURSIVE
AT_EACCESS: Final = AtFlag.EACCESS
AT_REMOVEDIR: Final = AtFlag.REMOVEDIR
AT_HANDLE_FID: Final = AtFlag.HANDLE_FID
AT_HANDLE_MNT_ID_UNIQUE: Final = AtFlag.HANDLE_MNT_ID_UNIQUE
AT_HANDLE_CONNECTABLE: Final = AtFlag.HANDLE_CONNECTABLE
AT_RENAME_NOREPLACE: Final = AtFlag.RENAME_NOREPLACE
AT_RENAME_EXCHANGE: Final = AtFlag.RENAME_EXCHANGE
AT_RENAME_WHITEOUT: Final = AtFlag.RENAME_WHITEOUT
AT_EXECVE_CHECK: Final = AtFlag.EXECVE_CHECK


class FhAtFlag(IntFlag):
    """Flags of :class:`fhandle` (``FH_AT_*``)."""

    SYMLINK_FOLLOW = 0x400
    EMPTY_PATH = 0x1000
    HANDLE_FID = 0x200  # Linux 6.5
    HANDLE_CONNECTABLE = 2  # Linux 6.13


FH_AT_SYMLINK_FOLLOW: Final = FhAtFlag.SYMLINK_FOLLOW
FH_AT_EMPTY_PATH: Final = FhAtFlag.EMPTY_PATH
FH_AT_HANDLE_FID: Final = FhAtFlag.HANDLE_FID
FH_AT_HANDLE_CONNECTABLE: Final = FhAtFlag.HANDLE_CONNECTABLE


class Resolve(IntFlag):
    """How :func:`openat2` may resolve a path (``RESOLVE_*``)."""

    NO_XDEV = 1
    NO_MAGICLINKS = 2
    NO_SYMLINKS = 4
    BENEATH = 8
    IN_ROOT = 0x10
    CACHED = 0x20  # Linux 5.12


RESOLVE_NO_XDEV: Final = Resolve.NO_XDEV
RESOLVE_NO_MAGICLINKS: Final = Resolve.NO_MAGICLINKS
RESOLVE_NO_SYMLINKS: Final = Resolve.NO_SYMLINKS
RESOLVE_BENEATH: Final = Resolve.BENEATH
RESOLVE_IN_ROOT: Final = Resolve.IN_ROOT
RESOLVE_CACHED: Final = Resolve.CACHED


class RenameFlag(IntFlag):
    """Flags of :func:`renameat2` (``RENAME_*``)."""

    NOREPLACE = 1
    EXCHANGE = 2
    WHITEOUT = 4


RENAME_NOREPLACE: Final = RenameFlag.NOREPLACE
RENAME_EXCHANGE: Final = RenameFlag.EXCHANGE
RENAME_WHITEOUT: Final = RenameFlag.WHITEOUT


class MountAttr(IntFlag):
    """Attributes of a mount (``MOUNT_ATTR_*``)."""

    RDONLY = 1
    NOSUID = 2
    NODEV = 4
    NOEXEC = 8
    ATIME_MASK = 0x70  # the mask of the access time settings
    RELATIME = 0
    NOATIME = 0x10
    STRICTATIME = 0x20
    NODIRATIME = 0x80
    IDMAP = 0x100000  # Linux 5.12
    NOSYMFOLLOW = 0x200000  # Linux 5.14


MOUNT_ATTR_RDONLY: Final = MountAttr.RDONLY
MOUNT_ATTR_NOSUID: Final = MountAttr.NOSUID
MOUNT_ATTR_NODEV: Final = MountAttr.NODEV
MOUNT_ATTR_NOEXEC: Final = MountAttr.NOEXEC
MOUNT_ATTR__ATIME: Final = MountAttr.ATIME_MASK
MOUNT_ATTR_RELATIME: Final = MountAttr.RELATIME
MOUNT_ATTR_NOATIME: Final = MountAttr.NOATIME
MOUNT_ATTR_STRICTATIME: Final = MountAttr.STRICTATIME
MOUNT_ATTR_NODIRATIME: Final = MountAttr.NODIRATIME
MOUNT_ATTR_IDMAP: Final = MountAttr.IDMAP
MOUNT_ATTR_NOSYMFOLLOW: Final = MountAttr.NOSYMFOLLOW


class MsFlag(IntFlag):
    """Superblock and propagation flags (``MS_*``), as in ``sb_flags`` and ``mnt_propagation``."""

    RDONLY = 1
    NOSUID = 2
    NODEV = 4
    NOEXEC = 8
    SYNCHRONOUS = 0x10
    REMOUNT = 0x20
    MANDLOCK = 0x40
    DIRSYNC = 0x80
    NOSYMFOLLOW = 0x100
    NOATIME = 0x400
    NODIRATIME = 0x800
    BIND = 0x1000
    MOVE = 0x2000
    REC = 0x4000
    VERBOSE = 0x8000  # the old name of SILENT
    SILENT = 0x8000
    POSIXACL = 0x10000
    UNBINDABLE = 0x20000
    PRIVATE = 0x40000
    SLAVE = 0x80000
    SHARED = 0x100000
    RELATIME = 0x200000
    KERNMOUNT = 0x400000
    I_VERSION = 0x800000
    STRICTATIME = 0x1000000
    LAZYTIME = 0x2000000
    SUBMOUNT = 0x4000000
    NOREMOTELOCK = 0x8000000
    NOSEC = 0x10000000
    BORN = 0x20000000
    ACTIVE = 0x40000000
    NOUSER = 0x80000000
    RMT_MASK = 0x2800051  # what a remount may change
    MGC_VAL = 0xC0ED0000
    MGC_MSK = 0xFFFF0000


MS_RDONLY: Final = MsFlag.RDONLY
MS_NOSUID: Final = MsFlag.NOSUID
MS_NODEV: Final = MsFlag.NODEV
MS_NOEXEC: Final = MsFlag.NOEXEC
MS_SYNCHRONOUS: Final = MsFlag.SYNCHRONOUS
MS_REMOUNT: Final = MsFlag.REMOUNT
MS_MANDLOCK: Final = MsFlag.MANDLOCK
MS_DIRSYNC: Final = MsFlag.DIRSYNC
MS_NOSYMFOLLOW: Final = MsFlag.NOSYMFOLLOW
MS_NOATIME: Final = MsFlag.NOATIME
MS_NODIRATIME: Final = MsFlag.NODIRATIME
MS_BIND: Final = MsFlag.BIND
MS_MOVE: Final = MsFlag.MOVE
MS_REC: Final = MsFlag.REC
MS_VERBOSE: Final = MsFlag.VERBOSE
MS_SILENT: Final = MsFlag.SILENT
MS_POSIXACL: Final = MsFlag.POSIXACL
MS_UNBINDABLE: Final = MsFlag.UNBINDABLE
MS_PRIVATE: Final = MsFlag.PRIVATE
MS_SLAVE: Final = MsFlag.SLAVE
MS_SHARED: Final = MsFlag.SHARED
MS_RELATIME: Final = MsFlag.RELATIME
MS_KERNMOUNT: Final = MsFlag.KERNMOUNT
MS_I_VERSION: Final = MsFlag.I_VERSION
MS_STRICTATIME: Final = MsFlag.STRICTATIME
MS_LAZYTIME: Final = MsFlag.LAZYTIME
MS_SUBMOUNT: Final = MsFlag.SUBMOUNT
MS_NOREMOTELOCK: Final = MsFlag.NOREMOTELOCK
MS_NOSEC: Final = MsFlag.NOSEC
MS_BORN: Final = MsFlag.BORN
MS_ACTIVE: Final = MsFlag.ACTIVE
MS_NOUSER: Final = MsFlag.NOUSER
MS_RMT_MASK: Final = MsFlag.RMT_MASK
MS_MGC_VAL: Final = MsFlag.MGC_VAL
MS_MGC_MSK: Final = MsFlag.MGC_MSK


class UmountFlag(IntFlag):
    """Flags of unmounting (``MNT_*`` and ``UMOUNT_NOFOLLOW``)."""

    MNT_FORCE = 1
    MNT_DETACH = 2
    MNT_EXPIRE = 4
    UMOUNT_NOFOLLOW = 8


MNT_FORCE: Final = UmountFlag.MNT_FORCE
MNT_DETACH: Final = UmountFlag.MNT_DETACH
MNT_EXPIRE: Final = UmountFlag.MNT_EXPIRE
UMOUNT_NOFOLLOW: Final = UmountFlag.UMOUNT_NOFOLLOW


class MoveMountFlag(IntFlag):
    """Flags of :manpage:`move_mount(2)` (``MOVE_MOUNT_*``)."""

    F_SYMLINKS = 1
    F_AUTOMOUNTS = 2
    F_EMPTY_PATH = 4
    T_SYMLINKS = 0x10
    T_AUTOMOUNTS = 0x20
    T_EMPTY_PATH = 0x40
    SET_GROUP = 0x100  # Linux 5.15
    BENEATH = 0x200  # Linux 6.5
    MASK = 0x377  # all of them


MOVE_MOUNT_F_SYMLINKS: Final = MoveMountFlag.F_SYMLINKS
MOVE_MOUNT_F_AUTOMOUNTS: Final = MoveMountFlag.F_AUTOMOUNTS
MOVE_MOUNT_F_EMPTY_PATH: Final = MoveMountFlag.F_EMPTY_PATH
MOVE_MOUNT_T_SYMLINKS: Final = MoveMountFlag.T_SYMLINKS
MOVE_MOUNT_T_AUTOMOUNTS: Final = MoveMountFlag.T_AUTOMOUNTS
MOVE_MOUNT_T_EMPTY_PATH: Final = MoveMountFlag.T_EMPTY_PATH
MOVE_MOUNT_SET_GROUP: Final = MoveMountFlag.SET_GROUP
MOVE_MOUNT_BENEATH: Final = MoveMountFlag.BENEATH
MOVE_MOUNT__MASK: Final = MoveMountFlag.MASK


class OpenTreeFlag(IntFlag):
    """Flags of :manpage:`open_tree(2)` (``OPEN_TREE_*``)."""

    CLONE = 1
    CLOEXEC = 0x80000


OPEN_TREE_CLONE: Final = OpenTreeFlag.CLONE
OPEN_TREE_CLOEXEC: Final = OpenTreeFlag.CLOEXEC


class FsopenFlag(IntFlag):
    """Flags of :manpage:`fsopen(2)` (``FSOPEN_*``)."""

    CLOEXEC = 1


FSOPEN_CLOEXEC: Final = FsopenFlag.CLOEXEC


class FspickFlag(IntFlag):
    """Flags of :manpage:`fspick(2)` (``FSPICK_*``)."""

    CLOEXEC = 1
    SYMLINK_NOFOLLOW = 2
    NO_AUTOMOUNT = 4
    EMPTY_PATH = 8


FSPICK_CLOEXEC: Final = FspickFlag.CLOEXEC
FSPICK_SYMLINK_NOFOLLOW: Final = FspickFlag.SYMLINK_NOFOLLOW
FSPICK_NO_AUTOMOUNT: Final = FspickFlag.NO_AUTOMOUNT
FSPICK_EMPTY_PATH: Final = FspickFlag.EMPTY_PATH


class FsconfigCommand(IntEnum):
    """Commands of :manpage:`fsconfig(2)` (``FSCONFIG_*``)."""

    SET_FLAG = 0
    SET_STRING = 1
    SET_BINARY = 2
    SET_PATH = 3
    SET_PATH_EMPTY = 4
    SET_FD = 5
    CMD_CREATE = 6
    CMD_RECONFIGURE = 7
    CMD_CREATE_EXCL = 8  # Linux 6.6


FSCONFIG_SET_FLAG: Final = FsconfigCommand.SET_FLAG
FSCONFIG_SET_STRING: Final = FsconfigCommand.SET_STRING
FSCONFIG_SET_BINARY: Final = FsconfigCommand.SET_BINARY
FSCONFIG_SET_PATH: Final = FsconfigCommand.SET_PATH
FSCONFIG_SET_PATH_EMPTY: Final = FsconfigCommand.SET_PATH_EMPTY
FSCONFIG_SET_FD: Final = FsconfigCommand.SET_FD
FSCONFIG_CMD_CREATE: Final = FsconfigCommand.CMD_CREATE
FSCONFIG_CMD_RECONFIGURE: Final = FsconfigCommand.CMD_RECONFIGURE
FSCONFIG_CMD_CREATE_EXCL: Final = FsconfigCommand.CMD_CREATE_EXCL


class FsmountFlag(IntFlag):
    """Flags of :manpage:`fsmount(2)` (``FSMOUNT_*``)."""

    CLOEXEC = 1


FSMOUNT_CLOEXEC: Final = FsmountFlag.CLOEXEC


class ListmountFlag(IntFlag):
    """Flags of :manpage:`listmount(2)` (``LISTMOUNT_*``)."""

    REVERSE = 1


LISTMOUNT_REVERSE: Final = ListmountFlag.REVERSE


class XattrFlag(IntFlag):
    """Flags of :func:`setxattr` (``XATTR_*``)."""

    CREATE = 1
    REPLACE = 2


XATTR_CREATE: Final = XattrFlag.CREATE
XATTR_REPLACE: Final = XattrFlag.REPLACE


class FsXflag(IntFlag):
    """Flags of a file, as :func:`file_getattr` reports them (``FS_XFLAG_*``)."""

    REALTIME = 1
    PREALLOC = 2  # only reported
    IMMUTABLE = 8
    APPEND = 0x10
    SYNC = 0x20
    NOATIME = 0x40
    NODUMP = 0x80
    RTINHERIT = 0x100
    PROJINHERIT = 0x200
    NOSYMLINKS = 0x400
    EXTSIZE = 0x800
    EXTSZINHERIT = 0x1000
    NODEFRAG = 0x2000
    FILESTREAM = 0x4000
    DAX = 0x8000
    COWEXTSIZE = 0x10000
    HASATTR = 0x80000000  # only reported


FS_XFLAG_REALTIME: Final = FsXflag.REALTIME
FS_XFLAG_PREALLOC: Final = FsXflag.PREALLOC
FS_XFLAG_IMMUTABLE: Final = FsXflag.IMMUTABLE
FS_XFLAG_APPEND: Final = FsXflag.APPEND
FS_XFLAG_SYNC: Final = FsXflag.SYNC
FS_XFLAG_NOATIME: Final = FsXflag.NOATIME
FS_XFLAG_NODUMP: Final = FsXflag.NODUMP
FS_XFLAG_RTINHERIT: Final = FsXflag.RTINHERIT
FS_XFLAG_PROJINHERIT: Final = FsXflag.PROJINHERIT
FS_XFLAG_NOSYMLINKS: Final = FsXflag.NOSYMLINKS
FS_XFLAG_EXTSIZE: Final = FsXflag.EXTSIZE
FS_XFLAG_EXTSZINHERIT: Final = FsXflag.EXTSZINHERIT
FS_XFLAG_NODEFRAG: Final = FsXflag.NODEFRAG
FS_XFLAG_FILESTREAM: Final = FsXflag.FILESTREAM
FS_XFLAG_DAX: Final = FsXflag.DAX
FS_XFLAG_COWEXTSIZE: Final = FsXflag.COWEXTSIZE
FS_XFLAG_HASATTR: Final = FsXflag.HASATTR


__all__ = [
    "AT_EACCESS",
    "AT_EMPTY_PATH",
    "AT_EXECVE_CHECK",
    "AT_FDCWD",
    "AT_HANDLE_CONNECTABLE",
    "AT_HANDLE_FID",
    "AT_HANDLE_MNT_ID_UNIQUE",
    "AT_NO_AUTOMOUNT",
    "AT_RECURSIVE",
    "AT_REMOVEDIR",
    "AT_RENAME_EXCHANGE",
    "AT_RENAME_NOREPLACE",
    "AT_RENAME_WHITEOUT",
    "AT_STATX_DONT_SYNC",
    "AT_STATX_FORCE_SYNC",
    "AT_STATX_SYNC_AS_STAT",
    "AT_STATX_SYNC_TYPE",
    "AT_SYMLINK_FOLLOW",
    "AT_SYMLINK_NOFOLLOW",
    "AtFlag",
    "FH_AT_EMPTY_PATH",
    "FH_AT_HANDLE_CONNECTABLE",
    "FH_AT_HANDLE_FID",
    "FH_AT_SYMLINK_FOLLOW",
    "FSCONFIG_CMD_CREATE",
    "FSCONFIG_CMD_CREATE_EXCL",
    "FSCONFIG_CMD_RECONFIGURE",
    "FSCONFIG_SET_BINARY",
    "FSCONFIG_SET_FD",
    "FSCONFIG_SET_FLAG",
    "FSCONFIG_SET_PATH",
    "FSCONFIG_SET_PATH_EMPTY",
    "FSCONFIG_SET_STRING",
    "FSMOUNT_CLOEXEC",
    "FSOPEN_CLOEXEC",
    "FSPICK_CLOEXEC",
    "FSPICK_EMPTY_PATH",
    "FSPICK_NO_AUTOMOUNT",
    "FSPICK_SYMLINK_NOFOLLOW",
    "FS_XFLAG_APPEND",
    "FS_XFLAG_COWEXTSIZE",
    "FS_XFLAG_DAX",
    "FS_XFLAG_EXTSIZE",
    "FS_XFLAG_EXTSZINHERIT",
    "FS_XFLAG_FILESTREAM",
    "FS_XFLAG_HASATTR",
    "FS_XFLAG_IMMUTABLE",
    "FS_XFLAG_NOATIME",
    "FS_XFLAG_NODEFRAG",
    "FS_XFLAG_NODUMP",
    "FS_XFLAG_NOSYMLINKS",
    "FS_XFLAG_PREALLOC",
    "FS_XFLAG_PROJINHERIT",
    "FS_XFLAG_REALTIME",
    "FS_XFLAG_RTINHERIT",
    "FS_XFLAG_SYNC",
    "FhAtFlag",
    "FsXflag",
    "FsconfigCommand",
    "FsmountFlag",
    "FsopenFlag",
    "FspickFlag",
    "LISTMOUNT_REVERSE",
    "LSMT_ROOT",
    "ListmountFlag",
    "MNT_DETACH",
    "MNT_EXPIRE",
    "MNT_FORCE",
    "MOUNT_ATTR_IDMAP",
    "MOUNT_ATTR_NOATIME",
    "MOUNT_ATTR_NODEV",
    "MOUNT_ATTR_NODIRATIME",
    "MOUNT_ATTR_NOEXEC",
    "MOUNT_ATTR_NOSUID",
    "MOUNT_ATTR_NOSYMFOLLOW",
    "MOUNT_ATTR_RDONLY",
    "MOUNT_ATTR_RELATIME",
    "MOUNT_ATTR_STRICTATIME",
    "MOUNT_ATTR__ATIME",
    "MOVE_MOUNT_BENEATH",
    "MOVE_MOUNT_F_AUTOMOUNTS",
    "MOVE_MOUNT_F_EMPTY_PATH",
    "MOVE_MOUNT_F_SYMLINKS",
    "MOVE_MOUNT_SET_GROUP",
    "MOVE_MOUNT_T_AUTOMOUNTS",
    "MOVE_MOUNT_T_EMPTY_PATH",
    "MOVE_MOUNT_T_SYMLINKS",
    "MOVE_MOUNT__MASK",
    "MS_ACTIVE",
    "MS_BIND",
    "MS_BORN",
    "MS_DIRSYNC",
    "MS_I_VERSION",
    "MS_KERNMOUNT",
    "MS_LAZYTIME",
    "MS_MANDLOCK",
    "MS_MGC_MSK",
    "MS_MGC_VAL",
    "MS_MOVE",
    "MS_NOATIME",
    "MS_NODEV",
    "MS_NODIRATIME",
    "MS_NOEXEC",
    "MS_NOREMOTELOCK",
    "MS_NOSEC",
    "MS_NOSUID",
    "MS_NOSYMFOLLOW",
    "MS_NOUSER",
    "MS_POSIXACL",
    "MS_PRIVATE",
    "MS_RDONLY",
    "MS_REC",
    "MS_RELATIME",
    "MS_REMOUNT",
    "MS_RMT_MASK",
    "MS_SHARED",
    "MS_SILENT",
    "MS_SLAVE",
    "MS_STRICTATIME",
    "MS_SUBMOUNT",
    "MS_SYNCHRONOUS",
    "MS_UNBINDABLE",
    "MS_VERBOSE",
    "MountAttr",
    "MoveMountFlag",
    "MsFlag",
    "OPEN_TREE_CLOEXEC",
    "OPEN_TREE_CLONE",
    "OpenTreeFlag",
    "RENAME_EXCHANGE",
    "RENAME_NOREPLACE",
    "RENAME_WHITEOUT",
    "RESOLVE_BENEATH",
    "RESOLVE_CACHED",
    "RESOLVE_IN_ROOT",
    "RESOLVE_NO_MAGICLINKS",
    "RESOLVE_NO_SYMLINKS",
    "RESOLVE_NO_XDEV",
    "RenameFlag",
    "Resolve",
    "STATMOUNT_FS_SUBTYPE",
    "STATMOUNT_FS_TYPE",
    "STATMOUNT_MNT_BASIC",
    "STATMOUNT_MNT_GIDMAP",
    "STATMOUNT_MNT_NS_ID",
    "STATMOUNT_MNT_OPTS",
    "STATMOUNT_MNT_POINT",
    "STATMOUNT_MNT_ROOT",
    "STATMOUNT_MNT_UIDMAP",
    "STATMOUNT_OPT_ARRAY",
    "STATMOUNT_OPT_SEC_ARRAY",
    "STATMOUNT_PROPAGATE_FROM",
    "STATMOUNT_SB_BASIC",
    "STATMOUNT_SB_SOURCE",
    "STATMOUNT_SUPPORTED_MASK",
    "STATX_ALL",
    "STATX_ATIME",
    "STATX_ATTR_APPEND",
    "STATX_ATTR_AUTOMOUNT",
    "STATX_ATTR_COMPRESSED",
    "STATX_ATTR_DAX",
    "STATX_ATTR_ENCRYPTED",
    "STATX_ATTR_IMMUTABLE",
    "STATX_ATTR_MOUNT_ROOT",
    "STATX_ATTR_NODUMP",
    "STATX_ATTR_VERITY",
    "STATX_ATTR_WRITE_ATOMIC",
    "STATX_BASIC_STATS",
    "STATX_BLOCKS",
    "STATX_BTIME",
    "STATX_CTIME",
    "STATX_DIOALIGN",
    "STATX_DIO_READ_ALIGN",
    "STATX_GID",
    "STATX_INO",
    "STATX_MNT_ID",
    "STATX_MNT_ID_UNIQUE",
    "STATX_MODE",
    "STATX_MTIME",
    "STATX_NLINK",
    "STATX_SIZE",
    "STATX_SUBVOL",
    "STATX_TYPE",
    "STATX_UID",
    "STATX_WRITE_ATOMIC",
    "STATX__RESERVED",
    "StatmountMask",
    "StatxAttr",
    "StatxMask",
    "UMOUNT_NOFOLLOW",
    "UmountFlag",
    "XATTR_CREATE",
    "XATTR_REPLACE",
    "XattrFlag",
]
