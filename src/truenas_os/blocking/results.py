# SPDX-License-Identifier: LGPL-3.0-or-later
"""What the calls return: named tuples of plain ints, strings and tuples."""

import os
from typing import NamedTuple


class IdmapMapping(NamedTuple):
    """One range of an id map: *length* ids from *inside* on appear as those from *outside* on."""

    inside: int
    outside: int
    length: int


class StatmountResult(NamedTuple):
    """What the kernel says of one mount; see :manpage:`statmount(2)`.

    A field that was not asked for, or that the running kernel does not know, is None. So is a
    ``mnt_point``, ``mnt_root``, ``sb_source`` or ``fs_type`` that the kernel has no value for; of
    the other texts and of the lists, what is empty reads as ``''`` or ``()``.
    """

    mnt_id: int | None
    """The unique id, never reused."""
    mnt_parent_id: int | None
    mnt_id_old: int | None
    """The id in /proc/self/mountinfo, reused after the mount is gone."""
    mnt_parent_id_old: int | None
    mnt_root: str | None
    """The directory of the filesystem that is the root of this mount."""
    mnt_point: str | None
    """Where it is mounted, as seen from this process's root; None if it cannot be reached."""
    mnt_attr: int | None
    """``MOUNT_ATTR_*``."""
    mnt_propagation: int | None
    """``MS_SHARED``, ``MS_SLAVE``, ``MS_PRIVATE``, ``MS_UNBINDABLE``."""
    mnt_peer_group: int | None
    mnt_master: int | None
    propagate_from: int | None
    fs_type: str | None
    mnt_ns_id: int | None
    mnt_opts: str | None
    """The filesystem's options joined by commas, octal-escaped as the kernel escapes them."""
    sb_dev_major: int | None
    sb_dev_minor: int | None
    sb_magic: int | None
    sb_flags: int | None
    """``MS_RDONLY``, ``MS_SYNCHRONOUS``, ``MS_DIRSYNC``, ``MS_LAZYTIME``."""
    mask: int
    """The fields that the kernel filled in (``STATMOUNT_*``)."""
    fs_subtype: str | None
    sb_source: str | None
    opt_array: tuple[str, ...] | None
    """The filesystem's options, one by one and not escaped."""
    opt_sec_array: tuple[str, ...] | None
    """The options of security modules."""
    supported_mask: int | None
    """The ``STATMOUNT_*`` bits that the running kernel knows."""
    mnt_uidmap: tuple[IdmapMapping, ...] | None
    mnt_gidmap: tuple[IdmapMapping, ...] | None


class StatxResult(NamedTuple):
    """The kernel's ``struct statx``, field by field; see :manpage:`statx(2)`.

    ``stx_mask`` tells which fields the filesystem filled in; others are 0. Times stand in the tuple
    as seconds and nanoseconds; ``stx_atime`` (float, seconds) and ``stx_atime_ns`` (int,
    nanoseconds), and likewise for btime, ctime and mtime, are derived from them.
    """

    stx_mask: int
    stx_blksize: int
    """Preferred size of I/O, in bytes."""
    stx_attributes: int
    """``STATX_ATTR_*`` bits."""
    stx_nlink: int
    stx_uid: int
    stx_gid: int
    stx_mode: int
    stx_ino: int
    stx_size: int
    """In bytes."""
    stx_blocks: int
    """In 512-byte blocks."""
    stx_attributes_mask: int
    """The ``STATX_ATTR_*`` bits that the filesystem supports."""
    stx_atime_sec: int
    stx_atime_nsec: int
    stx_btime_sec: int
    stx_btime_nsec: int
    stx_ctime_sec: int
    stx_ctime_nsec: int
    stx_mtime_sec: int
    stx_mtime_nsec: int
    stx_rdev_major: int
    stx_rdev_minor: int
    stx_dev_major: int
    stx_dev_minor: int
    stx_mnt_id: int
    """The unique id if ``STATX_MNT_ID_UNIQUE`` was asked for, else the one in mountinfo."""
    stx_dio_mem_align: int
    """In bytes, as all ``stx_dio_*`` and ``stx_atomic_write_unit_*``."""
    stx_dio_offset_align: int
    stx_subvol: int
    stx_atomic_write_unit_min: int
    stx_atomic_write_unit_max: int
    stx_atomic_write_segments_max: int
    stx_dio_read_offset_align: int
    stx_atomic_write_unit_max_opt: int

    @property
    def stx_atime(self) -> float:
        """Last access, in seconds since the epoch."""
        return self.stx_atime_sec + self.stx_atime_nsec * 1e-9

    @property
    def stx_atime_ns(self) -> int:
        """Last access, in nanoseconds since the epoch."""
        return self.stx_atime_sec * 1_000_000_000 + self.stx_atime_nsec

    @property
    def stx_btime(self) -> float:
        """Creation, in seconds since the epoch."""
        return self.stx_btime_sec + self.stx_btime_nsec * 1e-9

    @property
    def stx_btime_ns(self) -> int:
        """Creation, in nanoseconds since the epoch."""
        return self.stx_btime_sec * 1_000_000_000 + self.stx_btime_nsec

    @property
    def stx_ctime(self) -> float:
        """Last change of the inode, in seconds since the epoch."""
        return self.stx_ctime_sec + self.stx_ctime_nsec * 1e-9

    @property
    def stx_ctime_ns(self) -> int:
        """Last change of the inode, in nanoseconds since the epoch."""
        return self.stx_ctime_sec * 1_000_000_000 + self.stx_ctime_nsec

    @property
    def stx_mtime(self) -> float:
        """Last change of the content, in seconds since the epoch."""
        return self.stx_mtime_sec + self.stx_mtime_nsec * 1e-9

    @property
    def stx_mtime_ns(self) -> int:
        """Last change of the content, in nanoseconds since the epoch."""
        return self.stx_mtime_sec * 1_000_000_000 + self.stx_mtime_nsec

    @property
    def stx_dev(self) -> int:
        """The device that holds the file, as :func:`os.makedev` makes it."""
        return os.makedev(self.stx_dev_major, self.stx_dev_minor)

    @property
    def stx_rdev(self) -> int:
        """The device that the file is, as :func:`os.makedev` makes it."""
        return os.makedev(self.stx_rdev_major, self.stx_rdev_minor)


class FileAttr(NamedTuple):
    """The kernel's ``struct file_attr``; see :manpage:`file_getattr(2)`."""

    fa_xflags: int
    """``FS_XFLAG_*``."""
    fa_extsize: int
    """The extent size hint, in bytes."""
    fa_nextents: int
    """The number of extents in the data fork, where the filesystem tells it."""
    fa_projid: int
    """The project id, for quotas."""
    fa_cowextsize: int
    """The extent size hint for copy on write, in bytes."""


class Credentials(NamedTuple):
    """An identity: numeric user, group and supplementary groups."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


class Access(NamedTuple):
    """What the kernel says to an identity that wants to access a path."""

    creds: Credentials
    path: str
    errno: int
    """0 if it may, else why not: EACCES, EROFS, ..."""

    @property
    def allowed(self) -> bool:
        """Whether it may."""
        return self.errno == 0
