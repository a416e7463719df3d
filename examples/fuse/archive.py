#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-3.0-or-later
"""A filesystem that shows what is in a .tar (also a compressed one) or a .zip; it changes nothing.

Usage: archive.py ARCHIVE MOUNTPOINT. Ctrl-C or umount end it. A name or a symlink's target that is
too long for Linux is left out.

The callbacks are plain functions that are given paths. They are called one at a time, on a thread,
so they need no locks although an archive has one position to read from.
"""

import argparse
import asyncio
import contextlib
import errno
import itertools
import lzma
import os
import posixpath
import stat
import tarfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO, Any

from truenas_os import fuse
from truenas_os.fuse import EntryAttributes, FUSEError

KINDS = {
    tarfile.REGTYPE: stat.S_IFREG,
    tarfile.AREGTYPE: stat.S_IFREG,
    tarfile.CONTTYPE: stat.S_IFREG,
    tarfile.GNUTYPE_SPARSE: stat.S_IFREG,
    tarfile.LNKTYPE: stat.S_IFREG,
    tarfile.DIRTYPE: stat.S_IFDIR,
    tarfile.SYMTYPE: stat.S_IFLNK,
    tarfile.FIFOTYPE: stat.S_IFIFO,
    tarfile.CHRTYPE: stat.S_IFCHR,
    tarfile.BLKTYPE: stat.S_IFBLK,
}
# What reading an archive raises that is damaged.
DAMAGE = (EOFError, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile, zlib.error)
LONGEST_NAME, LONGEST_TARGET = 1024, 4095  # in bytes
LARGEST = (1 << 63) - 1


def owner(number: int) -> int:
    """An id that Linux has, nobody's in place of one that it has not."""
    return number if 0 <= number < 1 << 32 else 65534


def device(major: int, minor: int) -> int:
    """The number of a device, 0 in place of one that Linux cannot have."""
    return os.makedev(major, minor) if 0 <= major < 1 << 12 and 0 <= minor < 1 << 20 else 0


def file_size(number: int) -> int:
    """The size that a file can have which is closest to it."""
    return min(max(number, 0), LARGEST)


def moment(seconds: float) -> int:
    """A time in nanoseconds; the year 1970 in place of one that is far away, or is no number."""
    return int(seconds * 10**9) if abs(seconds) < 1 << 33 else 0


def is_target(path: bytes) -> bool:
    """Whether a symlink can lead there."""
    return 0 < len(path) <= LONGEST_TARGET and b"\0" not in path


def is_name(part: str) -> bool:
    """Whether it can be a name in a directory."""
    return len(os.fsencode(part)) <= LONGEST_NAME and "\0" not in part


class Member:
    """Something in the archive: its attributes, and where to read it or where it leads."""

    def __init__(self, attr: EntryAttributes, source: Any = None, target: str = "") -> None:
        self.attr = attr
        self.source = source
        self.target = target
        self.names: dict[str, Member] = {}


class Tar:
    """A tar archive."""

    def __init__(self, path: str) -> None:
        self._file = tarfile.TarFile.open(path)

    def members(self) -> Iterator[tuple[str, Member]]:
        for info in self._file:
            if info.type not in KINDS:
                continue
            attr = EntryAttributes(
                st_mode=KINDS[info.type] | info.mode & 0o7777,
                st_uid=owner(info.uid),
                st_gid=owner(info.gid),
                st_size=file_size(info.size),
                st_rdev=device(info.devmajor, info.devminor) if info.isdev() else 0,
            )
            attr.st_mtime_ns = attr.st_atime_ns = attr.st_ctime_ns = moment(info.mtime)
            if info.islnk():
                yield info.name, Member(attr, "link", info.linkname)
            elif info.issym():
                target = os.fsencode(info.linkname)
                attr.st_size = len(target)
                if is_target(target):
                    yield info.name, Member(attr, None, info.linkname)
            else:
                yield info.name, Member(attr, info)

    def open(self, source: tarfile.TarInfo) -> IO[bytes]:
        file = self._file.extractfile(source)
        assert file is not None
        return file


class Zip:
    """A zip archive."""

    def __init__(self, path: str) -> None:
        self._file = zipfile.ZipFile(path)

    def members(self) -> Iterator[tuple[str, Member]]:
        for info in self._file.infolist():
            mode = info.external_attr >> 16
            permissions = stat.S_IMODE(mode) or (0o755 if info.is_dir() else 0o644)
            kind = stat.S_IFDIR if info.is_dir() else stat.S_IFREG
            target = self._target(info) if stat.S_ISLNK(mode) else b""
            if is_target(target):
                kind = stat.S_IFLNK
            attr = EntryAttributes(st_mode=kind | permissions, st_size=file_size(info.file_size))
            attr.st_uid, attr.st_gid = os.getuid(), os.getgid()
            modified = moment(time.mktime((*info.date_time, 0, 0, -1)))
            attr.st_mtime_ns = attr.st_atime_ns = attr.st_ctime_ns = modified
            yield info.filename, Member(attr, info, os.fsdecode(target))

    def _target(self, info: zipfile.ZipInfo) -> bytes:
        """Where a symlink leads, if that can be read; else it is shown as a file."""
        with contextlib.suppress(RuntimeError, *DAMAGE):
            return self._file.read(info) if info.file_size <= LONGEST_TARGET else b""
        return b""

    def open(self, source: zipfile.ZipInfo) -> IO[bytes]:
        return self._file.open(source)


class Archive:
    """The filesystem."""

    def __init__(self, path: str) -> None:
        # Not the other way round: a tar may end with a zip.
        self._archive = Tar(path) if tarfile.is_tarfile(path) else Zip(path)
        self._moment = os.stat(path).st_mtime_ns
        self._root = self._directory()
        for name, member in self._archive.members():
            self._add(name, member)
        self._number()

    def _directory(self) -> Member:
        attr = EntryAttributes(st_mode=stat.S_IFDIR | 0o755, st_uid=os.getuid(), st_gid=os.getgid())
        attr.st_mtime_ns = attr.st_atime_ns = attr.st_ctime_ns = self._moment
        return Member(attr)

    def _add(self, name: str, member: Member) -> None:
        # No name leads out of the root, or needs a directory that the archive lacks.
        parts = [part for part in posixpath.normpath("/" + name).split("/") if part]
        if not parts:
            if stat.S_ISDIR(member.attr.st_mode):
                self._root.attr = member.attr
            return
        if not all(map(is_name, parts)):
            return
        parent = self._root
        for part in parts[:-1]:
            parent = parent.names.setdefault(part, self._directory())
        if member.source == "link":
            with contextlib.suppress(FUSEError):  # or it leads nowhere, and has no content
                found = self._found(posixpath.normpath("/" + member.target))
                if not stat.S_ISDIR(found.attr.st_mode):  # which could be one that it is in
                    member = found
        if parts[-1] in parent.names:
            member.names = parent.names[parts[-1]].names
        parent.names[parts[-1]] = member

    def _number(self) -> None:
        """Give each member an inode number, so that hard links are seen to be that."""
        numbers = itertools.count(1)
        members = [self._root]
        while members:
            member = members.pop()
            attr, inside = member.attr, member.names.values()
            if attr.st_ino:
                attr.st_nlink += 1
                continue
            attr.st_ino = next(numbers)
            attr.st_blocks = (attr.st_size + 511) // 512
            if stat.S_ISDIR(attr.st_mode):
                attr.st_nlink = 2 + sum(stat.S_ISDIR(each.attr.st_mode) for each in inside)
            members += inside

    def _found(self, path: str) -> Member:
        member = self._root
        for part in path.split("/"):
            if part:
                try:
                    member = member.names[part]
                except KeyError:
                    raise FUSEError(errno.ENOENT) from None
        return member

    # The callbacks.

    def getattr(self, path: str) -> EntryAttributes:
        return self._found(path).attr

    def readlink(self, path: str) -> str:
        return self._found(path).target

    def readdir(self, path: str, offset: int) -> list[tuple[int, str, EntryAttributes]]:
        return [(0, name, member.attr) for name, member in self._found(path).names.items()]

    def open(self, path: str, flags: int, info: fuse.FileInfo) -> IO[bytes]:
        info.keep_cache = True  # nothing changes
        source = self._found(path).source
        if source == "link":
            raise FUSEError(errno.EIO)
        return self._archive.open(source)

    def read(self, path: str, size: int, offset: int, file: IO[bytes]) -> bytes:
        file.seek(offset)
        return file.read(size)

    def release(self, path: str, flags: int, file: IO[bytes]) -> None:
        file.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="What is in an archive, as a directory.")
    parser.add_argument("archive")
    parser.add_argument("mountpoint")
    parser.add_argument(
        "-o", dest="options", metavar="OPTIONS", default="", help="mount options, as allow_other"
    )
    parser.add_argument("--debug", action="store_true", help="tell of each call")
    args = parser.parse_args()
    try:
        archive = Archive(args.archive)
    except (ValueError, *DAMAGE):
        parser.error(f"{args.archive} is no .tar or .zip, or it is damaged")
    name = os.path.abspath(args.archive).replace("\\", "\\\\").replace(",", "\\,")
    serving = fuse.path.main(
        mountpoint=args.mountpoint,
        mountopts=f"ro,subtype=archive,fsname={name},{args.options}",
        debug=args.debug,
        getattr=archive.getattr,
        readlink=archive.readlink,
        readdir=archive.readdir,
        open=archive.open,
        read=archive.read,
        release=archive.release,
    )
    try:
        asyncio.run(serving)
    except ValueError as error:  # as for an option that there is not
        parser.error(str(error))


if __name__ == "__main__":
    main()
