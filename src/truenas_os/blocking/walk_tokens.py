# SPDX-License-Identifier: LGPL-3.0-or-later
"""Resume tokens: where a walk stands, in bytes that outlive the process."""

import errno
import os
import struct
from hashlib import blake2b
from typing import Final, NamedTuple, Self

from typing_extensions import Buffer

from .._native import ffi, lib
from .fds import Fd
from .filehandle import fhandle
from .files import statx
from .flags import AT_EMPTY_PATH, FH_AT_EMPTY_PATH
from .results import StatmountResult
from .walk_items import Directory

_MAGIC: Final = b"tos-walk"
_VERSION: Final = 1
_EXACT, _FINISHED, _FAILED = 1, 2, 4
_DIGEST_SIZE = 16
_HEADER = struct.Struct(f"<{len(_MAGIC)}sBB")
_LEVEL = struct.Struct("<QqIq")
# Filesystems whose cookies lead back to their entry, whatever happens to the others: measured.
_TRUSTED = frozenset({"ext4", "xfs", "btrfs", "tmpfs", "squashfs", "erofs"})
# Before that, tmpfs counted entries instead of numbering them.
_TMPFS_NUMBERS = (6, 6)
_NO_HANDLE = (errno.EOPNOTSUPP, errno.EOVERFLOW, errno.EINVAL, errno.ENOSYS, errno.EPERM)


class IteratorRestoreError(OSError):
    """A directory on the path to where a walk was to go on is not there any more.

    ``errno`` is ESTALE, ``filename`` and ``path`` its path as it was, ``depth`` its place in the
    tree: 1 for a directory in the walk's root.
    """

    def __init__(self, depth: int, path: str) -> None:
        super().__init__(errno.ESTALE, os.strerror(errno.ESTALE), path)
        self.depth: int = depth
        self.path: str = path

    def __reduce__(self) -> tuple[type[Self], tuple[int, str]]:
        return type(self), (self.depth, self.path)


class Level(NamedTuple):
    """A directory on the path to where a walk stands, and what was consumed of it."""

    name: str
    ino: int
    btime: tuple[int, int]
    handle: bytes
    cookie: int
    after: str
    """The name of the entry that was consumed last; empty if none was."""


class Identity(NamedTuple):
    """What the root of a walk, and the filesystem it is on, are recognised by."""

    fs_type: str
    uuid: bytes
    """As FS_IOC_GETFSUUID tells it; nothing where it does not."""
    fsid: int
    """As statvfs tells it, if that says more than the device's number; else 0."""
    source: str
    ino: int
    btime: tuple[int, int]
    handle: bytes

    def matches(self, other: "Identity") -> bool:
        """Whether *other*, perhaps from before a reboot, is of the same directory."""
        if self.fs_type != other.fs_type:
            return False
        if self.uuid or other.uuid:
            same = self.uuid == other.uuid
        elif self.fsid or other.fsid:
            same = self.fsid == other.fsid
        else:
            same = self.source == other.source
        if self.handle and other.handle:
            return same and self.handle == other.handle
        return same and (self.ino, self.btime) == (other.ino, other.btime)


def identity_of(root: Fd, mount: StatmountResult | None) -> Identity:
    """That of the directory *root*, on *mount* if that is known."""
    found = statx(root, "", AT_EMPTY_PATH)
    try:
        handle = bytes(fhandle("", root, FH_AT_EMPTY_PATH))
    except OSError as error:
        if error.errno not in _NO_HANDLE:
            raise
        handle = b""
    answer = ffi.new("unsigned char[]", 16)
    # Filesystems without one say so in many ways, one of which is zeros.
    uuid: bytes = ffi.buffer(answer, max(0, lib.tos_walk_uuid(root, answer)))[:]
    if not any(uuid):
        uuid = b""
    fsid = os.statvfs(root).f_fsid
    major, minor = found.stx_dev_major, found.stx_dev_minor
    # A device has another number after each mount or reboot.
    if fsid == (minor & 0xFF) | (major << 8) | ((minor & ~0xFF) << 12):
        fsid = 0
    return Identity(
        mount.fs_type or "" if mount else "",
        uuid,
        fsid,
        mount.sb_source or "" if mount else "",
        found.stx_ino,
        (found.stx_btime_sec, found.stx_btime_nsec),
        handle,
    )


def trusts_cookies(fs_type: str) -> bool:
    """Whether a position in a directory of that filesystem survives what happens around it."""
    if fs_type == "tmpfs":
        release = os.uname().release.split(".")
        return tuple(int(part) for part in release[:2]) >= _TMPFS_NUMBERS
    return fs_type in _TRUSTED


class Position(NamedTuple):
    """What a token holds."""

    identity: Identity
    exact: bool
    finished: bool
    failed: bool
    """Whether there was an error before."""
    levels: tuple[Level, ...]


class ResumeToken(bytes):
    """Where a walk stands: bytes to be kept, and to be given to a later walk as *resume_from*.

    ``exact`` tells whether that walk will repeat nothing; else it may repeat entries of directories
    that were changed meanwhile. Nothing is lost in either case.

    Raises :exc:`ValueError` for bytes that are no token, or a damaged one.
    """

    position: Position

    def __new__(cls, data: Buffer) -> Self:
        token = super().__new__(cls, data)
        token.position = _decoded(bytes(token))
        return token

    @property
    def exact(self) -> bool:
        """Whether a walk that goes on here repeats nothing."""
        return self.position.exact

    def __repr__(self) -> str:
        kind = "exact" if self.exact else "at least once"
        return f"<{type(self).__name__} of {len(self)} bytes, {kind}>"


def levels_of(directory: Directory, cookie: int, name: str) -> tuple[Level, ...]:
    """The path to what was consumed last: the entry *name* of *directory*, at *cookie*."""
    line = directory.line()
    consumed = [(below.cookie, below.name) for below in line[1:]]
    return tuple(
        Level("" if above.parent is None else above.name, above.ino, above.btime, above.handle, *to)
        for above, to in zip(line, [*consumed, (cookie, name)], strict=True)
    )


def token_of(position: Position) -> ResumeToken:
    """The token of a position."""
    flags = _EXACT * position.exact | _FINISHED * position.finished | _FAILED * position.failed
    identity = position.identity
    content = b"".join(
        (
            _HEADER.pack(_MAGIC, _VERSION, flags),
            _counted(identity.fs_type),
            _counted(identity.uuid),
            _counted(identity.source),
            _LEVEL.pack(identity.ino, *identity.btime, _signed(identity.fsid)),
            _counted(identity.handle),
            *(
                part
                for level in position.levels
                for part in (
                    _counted(level.name),
                    _LEVEL.pack(level.ino, *level.btime, level.cookie),
                    _counted(level.handle),
                    _counted(level.after),
                )
            ),
        )
    )
    return ResumeToken(content + _digest(content))


def _signed(number: int) -> int:
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)


def _counted(text: str | bytes) -> bytes:
    raw = os.fsencode(text)
    return struct.pack("<I", len(raw)) + raw


def _digest(content: bytes) -> bytes:
    return blake2b(content, digest_size=_DIGEST_SIZE).digest()


class _Reader:
    def __init__(self, content: bytes, at: int) -> None:
        self._content = content
        self.at = at

    def counted(self) -> bytes:
        (size,) = struct.unpack_from("<I", self._content, self.at)
        self.at += 4 + size
        if self.at > len(self._content):
            raise ValueError("this resume token is damaged")
        return self._content[self.at - size : self.at]

    def level(self) -> tuple[int, tuple[int, int], int]:
        ino, sec, nsec, number = _LEVEL.unpack_from(self._content, self.at)
        self.at += _LEVEL.size
        return ino, (sec, nsec), number


def _decoded(data: bytes) -> Position:
    content, digest = data[:-_DIGEST_SIZE], data[-_DIGEST_SIZE:]
    if not data.startswith(_MAGIC) or len(content) < _HEADER.size:
        raise ValueError("this is no resume token of a walk")
    _, version, flags = _HEADER.unpack_from(content)
    if digest != _digest(content):
        raise ValueError("this resume token is damaged")
    if version != _VERSION:
        raise ValueError(f"this resume token has version {version}, known is {_VERSION}")
    try:
        reader = _Reader(content, _HEADER.size)
        fs_type, uuid, source = reader.counted(), reader.counted(), reader.counted()
        ino, btime, fsid = reader.level()
        handle = reader.counted()
        levels = []
        while reader.at < len(content):
            name = os.fsdecode(reader.counted())
            level_ino, level_btime, cookie = reader.level()
            level_handle, after = reader.counted(), os.fsdecode(reader.counted())
            levels.append(Level(name, level_ino, level_btime, level_handle, cookie, after))
    except struct.error:
        raise ValueError("this resume token is damaged") from None
    if not levels or any(not level.name or set(level.name) & {"/", "\0"} for level in levels[1:]):
        raise ValueError("this resume token leads to no directory")
    identity = Identity(
        os.fsdecode(fs_type), uuid, fsid % (1 << 64), os.fsdecode(source), ino, btime, handle
    )
    return Position(
        identity,
        bool(flags & _EXACT),
        bool(flags & _FINISHED),
        bool(flags & _FAILED),
        tuple(levels),
    )
