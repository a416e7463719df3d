# SPDX-License-Identifier: LGPL-3.0-or-later
"""The FUSE kernel protocol without I/O: bytes become requests, answers become bytes.

A message from /dev/fuse is made a :class:`Request`; what a reply needs beyond :func:`reply_header`,
the builders return as bytes. No builder returns anything that the kernel would refuse, since a
request whose reply was refused is never answered: what cannot be built is a :exc:`ValueError`.
"""

import functools
import struct
import threading
from collections.abc import Iterable, Sequence
from struct import Struct
from typing import Any, Final

from typing_extensions import Buffer

from . import wire
from .datatypes import EntryAttributes, FileInfo, FileLock, FileNameT, InodeT, StatvfsData
from .wire import FOPEN_DIRECT_IO as FOPEN_DIRECT_IO
from .wire import FOPEN_KEEP_CACHE as FOPEN_KEEP_CACHE
from .wire import FOPEN_PURGE_ATTR as FOPEN_PURGE_ATTR
from .wire import FOPEN_PURGE_UBC as FOPEN_PURGE_UBC
from .wire import FUSE_ASYNC_READ as FUSE_ASYNC_READ
from .wire import FUSE_CASE_INSENSITIVE as FUSE_CASE_INSENSITIVE
from .wire import FUSE_KERNEL_MINOR_VERSION as FUSE_KERNEL_MINOR_VERSION
from .wire import FUSE_KERNEL_VERSION as FUSE_KERNEL_VERSION
from .wire import FUSE_POSIX_LOCKS as FUSE_POSIX_LOCKS
from .wire import FUSE_ROOT_ID as FUSE_ROOT_ID
from .wire import FUSE_VOL_RENAME as FUSE_VOL_RENAME
from .wire import FUSE_XTIMES as FUSE_XTIMES
from .wire import Opcode

_NS: Final = 1_000_000_000
_WRITE_HEAD: Final = wire.IN_HEADER.size + wire.WRITE_IN.size
# Regular files, directories, symlinks, devices, FIFOs and sockets, as the bits of a mode above 12.
_TYPES: Final = frozenset((0o1, 0o2, 0o4, 0o6, 0o10, 0o12, 0o14))
_FOREVER: Final = 1 << 62
# The kernel takes no size from here on.
_SIZES: Final = 1 << 63
_Q = Struct("=Q")
_I = Struct("=I")

# Where the body of a request has fh and lock_owner; and where it has the flag without which it does
# not, if there is one.
_WITH_FH = (
    Opcode.READ,
    Opcode.WRITE,
    Opcode.RELEASE,
    Opcode.FSYNC,
    Opcode.FLUSH,
    Opcode.READDIR,
    Opcode.READDIRPLUS,
    Opcode.RELEASEDIR,
    Opcode.FSYNCDIR,
    Opcode.GETLK,
    Opcode.SETLK,
    Opcode.SETLKW,
    Opcode.IOCTL,
    Opcode.POLL,
    Opcode.FALLOCATE,
    Opcode.LSEEK,
    Opcode.COPY_FILE_RANGE,
    Opcode.COPY_FILE_RANGE_64,
)
_FH: Final = dict.fromkeys(_WITH_FH, (0, 0, 0)) | {
    Opcode.GETATTR: (8, 0, wire.GETATTR_FH),
    Opcode.STATX: (8, 0, wire.GETATTR_FH),
    Opcode.SETATTR: (8, 0, wire.FATTR_FH),
}
_RELEASES_LOCKS = wire.RELEASE_FLUSH | wire.RELEASE_FLOCK_UNLOCK
_LOCK_OWNER: Final = {
    Opcode.FLUSH: (16, 0, 0),
    Opcode.GETLK: (8, 0, 0),
    Opcode.SETLK: (8, 0, 0),
    Opcode.SETLKW: (8, 0, 0),
    Opcode.RELEASE: (16, 12, _RELEASES_LOCKS),
    Opcode.RELEASEDIR: (16, 12, _RELEASES_LOCKS),
    Opcode.READ: (24, 20, wire.READ_LOCKOWNER),
    Opcode.WRITE: (24, 20, wire.WRITE_LOCKOWNER),
    Opcode.SETATTR: (24, 0, wire.FATTR_LOCKOWNER),
}
# Where it has flags and mode.
_FLAGS: Final = {
    Opcode.OPEN: 0,
    Opcode.OPENDIR: 0,
    Opcode.CREATE: 0,
    Opcode.TMPFILE: 0,
    Opcode.READ: 32,
    Opcode.WRITE: 32,
    Opcode.READDIR: 32,
    Opcode.READDIRPLUS: 32,
    Opcode.RELEASE: 8,
    Opcode.RELEASEDIR: 8,
    Opcode.FSYNC: 8,
    Opcode.FSYNCDIR: 8,
    Opcode.SETXATTR: 4,
    Opcode.RENAME2: 8,
    Opcode.GETLK: 40,
    Opcode.SETLK: 40,
    Opcode.SETLKW: 40,
    Opcode.IOCTL: 8,
    Opcode.POLL: 16,
    Opcode.COPY_FILE_RANGE: 48,
    Opcode.COPY_FILE_RANGE_64: 48,
    Opcode.STATX: 16,
}
_MODE: Final = {
    Opcode.MKNOD: 0,
    Opcode.MKDIR: 0,
    Opcode.CREATE: 4,
    Opcode.TMPFILE: 4,
}


class ProtocolError(ValueError):
    """A message that is not as the protocol has it."""


class Request:
    """A request of the kernel's: its header, and its body as a buffer that is read in order.

    ``body`` has what follows the header; of a WRITE, ``data`` has what follows the fixed part.
    """

    len: int
    opcode: int
    unique: int
    nodeid: InodeT
    uid: int
    gid: int
    pid: int
    body: bytes
    data: bytes = b""
    pos: int = 0
    interrupted: bool = False
    answered: bool = False
    # What a handler has promised by its result, to be taken back if no reply gets through: lookups,
    # and an open file.
    granted: Sequence[tuple[Any, int]] = ()
    opened: int | None = None
    # The inode that was counted as open, where there may be backing files.
    backed: InodeT | None = None
    # Cancels a handler that may be interrupted.
    scope: Any = None
    # Is set when the kernel has the last notice that the handler has asked for.
    posted: threading.Event | None = None

    def __init__(self, message: Buffer) -> None:
        """Take the parts of *message*, all that one read of /dev/fuse has returned.

        Raises :exc:`ProtocolError` if it is shorter than a header, or not as long as it says.
        """
        view = memoryview(message)
        try:
            (
                self.len,
                self.opcode,
                self.unique,
                self.nodeid,
                self.uid,
                self.gid,
                self.pid,
                _,
                _,
            ) = wire.IN_HEADER.unpack_from(view)
        except struct.error:
            raise ProtocolError(f"a message of {len(view)} bytes has no whole header") from None
        if self.opcode == 16:  # WRITE: the data, which may be large, is copied just once
            self.body = bytes(view[40:_WRITE_HEAD])
            self.data = bytes(view[_WRITE_HEAD:])
        else:
            self.body = bytes(view[40:])
        if self.len != len(view):
            raise ProtocolError(f"a message of {len(view)} bytes says that it has {self.len}")

    @property
    def fh(self) -> int | None:
        """The handle of the open file that the request is about, if it says."""
        return self._told(_FH)

    @property
    def flags(self) -> int | None:
        """The flags that the request has: those of open for an open file, of setxattr, and so on.

        READ, WRITE and RELEASE have the flags that the file was opened with; FSYNC
        ``FSYNC_FDATASYNC``, locks ``LK_FLOCK``.
        """
        return self._field(_FLAGS)

    @property
    def mode(self) -> int | None:
        """The mode of what is to be made, if the request makes something.

        With ``enable_acl``, that is the mode before the umask was applied, which a directory's
        default ACL takes the place of.
        """
        return self._field(_MODE)

    @property
    def lock_owner(self) -> int | None:
        """Who would own locks that the caller takes, if the request says; a number of no meaning.

        FLUSH and locks; RELEASE that gives up flock(2) locks; READ, WRITE and SETATTR where the
        kernel says it.
        """
        return self._told(_LOCK_OWNER)

    def _told(self, places: dict[Opcode, tuple[int, int, int]]) -> int | None:
        place = places.get(self.opcode)  # type: ignore[call-overload]
        if place is None:
            return None
        offset, flags_offset, flag = place
        if flag and not (self._at(_I, flags_offset) or 0) & flag:
            return None
        return self._at(_Q, offset)

    def _field(self, offsets: dict[Opcode, int]) -> int | None:
        offset = offsets.get(self.opcode)  # type: ignore[call-overload]
        return None if offset is None else self._at(_I, offset)

    def _at(self, layout: Struct, offset: int) -> int | None:
        if offset + layout.size > len(self.body):
            return None
        value: int = layout.unpack_from(self.body, offset)[0]
        return value

    def read(self, layout: Struct) -> tuple[Any, ...]:
        """The values at the present position. Raises :exc:`ProtocolError` if there are not all."""
        try:
            return layout.unpack_from(self.body, self.pos)
        except struct.error:
            raise self._truncated(layout.size) from None

    def pop(self, layout: Struct) -> tuple[Any, ...]:
        """As :meth:`read`, and move the position behind them."""
        try:
            values = layout.unpack_from(self.body, self.pos)
        except struct.error:
            raise self._truncated(layout.size) from None
        self.pos += layout.size
        return values

    def parse_s(self) -> bytes:
        """The text at the present position, without the zero byte that ends it; move behind that.

        Raises :exc:`ProtocolError` if nothing ends it.
        """
        end = self.body.find(0, self.pos)
        if end < 0:
            raise ProtocolError(f"{self} has a text without an end")
        text = self.body[self.pos : end]
        self.pos = end + 1
        return text

    def name(self) -> FileNameT:
        """As :meth:`parse_s`, for the name of a directory entry."""
        text, zero, _ = self.body[self.pos :].partition(b"\0")
        if not zero or not text or b"/" in text:
            raise ProtocolError(f"{self} has the name {text!r}")
        self.pos += len(text) + 1
        return FileNameT(text)

    def take(self, size: int) -> bytes:
        """The *size* bytes at the present position; move behind them."""
        data = self.body[self.pos : self.pos + size]
        if len(data) != size:
            raise self._truncated(size)
        self.pos += size
        return data

    def _truncated(self, size: int) -> ProtocolError:
        left = max(0, len(self.body) - self.pos)
        return ProtocolError(f"{self} has {left} bytes where {size} are needed")

    def __str__(self) -> str:
        return f"{opcode_name(self.opcode)} {self.unique} of inode {self.nodeid}"

    def __repr__(self) -> str:
        return f"<Request {self}>"


def opcode_name(opcode: int) -> str:
    """The name of an operation code, or its number if it has none."""
    try:
        return Opcode(opcode).name
    except ValueError:
        return f"opcode {opcode}"


def reply_header(unique: int, size: int = 0, error: int = 0) -> bytes:
    """What a reply begins with that has *size* bytes more, or the errno *error* and no more.

    Raises :exc:`ValueError` for an errno that the kernel would not take.
    """
    if not 0 <= error <= wire.ERRNO_MAX:
        raise ValueError(f"{error} is no errno")
    return wire.OUT_HEADER.pack(16 + size, -error, unique)


@functools.lru_cache(256)
def _timespan(seconds: float) -> tuple[int, int]:
    """A timeout as the kernel has it: whole seconds and nanoseconds."""
    if not seconds > 0:
        return 0, 0
    if seconds >= _FOREVER:
        return _FOREVER, 0
    whole = int(seconds)
    return whole, min(int((seconds - whole) * _NS), _NS - 1)


def _check(attr: EntryAttributes) -> None:
    if attr.st_mode >> 12 not in _TYPES:
        raise ValueError(f"inode {attr.st_ino} has a mode without a known type: {attr.st_mode:#o}")
    if not 0 <= attr.st_size < _SIZES:
        raise ValueError(f"inode {attr.st_ino} has a size of {attr.st_size} bytes")


def _attr_fields(attr: EntryAttributes) -> tuple[int, ...]:
    """What an ``ATTR_OUT`` and an ``ENTRY_OUT`` end with."""
    atime, mtime, ctime = attr.st_atime_ns, attr.st_mtime_ns, attr.st_ctime_ns
    return (
        attr.st_ino,
        attr.st_size,
        attr.st_blocks,
        atime // _NS,
        mtime // _NS,
        ctime // _NS,
        atime % _NS,
        mtime % _NS,
        ctime % _NS,
        attr.st_mode,
        attr.st_nlink,
        attr.st_uid,
        attr.st_gid,
        attr.st_rdev,
        attr.st_blksize,
        0,
    )


def attributes(attr: EntryAttributes) -> bytes:
    """The reply to GETATTR and SETATTR."""
    if attr.st_mode >> 12 not in _TYPES or not 0 <= attr.st_size < _SIZES:
        _check(attr)
    return _packed(wire.ATTR_OUT, *_timespan(attr.attr_timeout), *_attr_fields(attr))


def entry_fields(attr: EntryAttributes) -> tuple[int, ...]:
    """The values of an ``ENTRY_OUT``. An inode of 0 is the promise that there is no such entry."""
    ino = attr.st_ino
    if ino and (attr.st_mode >> 12 not in _TYPES or not 0 <= attr.st_size < _SIZES):
        _check(attr)
    valid, valid_ns = _timespan(attr.entry_timeout)
    attr_valid, attr_valid_ns = _timespan(attr.attr_timeout)
    return (
        ino,
        attr.generation,
        valid,
        attr_valid,
        valid_ns,
        attr_valid_ns,
        *_attr_fields(attr),
    )


def entry(attr: EntryAttributes) -> bytes:
    """The reply to LOOKUP, MKNOD, MKDIR, SYMLINK and LINK."""
    return _packed(wire.ENTRY_OUT, *entry_fields(attr))


def statx_attributes(attr: EntryAttributes) -> bytes:
    """The reply to STATX: everything that ``STATX_BASIC_STATS | STATX_BTIME`` names."""
    _check(attr)
    times = (attr.st_atime_ns, attr.st_birthtime_ns, attr.st_ctime_ns, attr.st_mtime_ns)
    major = (attr.st_rdev >> 8) & 0xFFF
    minor = (attr.st_rdev & 0xFF) | ((attr.st_rdev >> 12) & 0xFFF00)
    return _packed(
        wire.STATX_OUT,
        *_timespan(attr.attr_timeout),
        0xFFF,
        attr.st_blksize,
        0,
        attr.st_nlink,
        attr.st_uid,
        attr.st_gid,
        attr.st_mode,
        attr.st_ino,
        attr.st_size,
        attr.st_blocks,
        0,
        *(part for time in times for part in divmod(time, _NS)),
        major,
        minor,
        0,
        0,
    )


def opened(info: FileInfo, backing_id: int = 0) -> bytes:
    """The reply to OPEN; CREATE and TMPFILE have an :func:`entry` before it."""
    flags = wire.FOPEN_DIRECT_IO if info.direct_io else 0
    if backing_id:
        if info.nonseekable:
            raise ValueError("a file with a backing file cannot be nonseekable")
        flags |= wire.FOPEN_PASSTHROUGH
    elif info.keep_cache:
        flags |= wire.FOPEN_KEEP_CACHE
    if info.nonseekable:
        flags |= wire.FOPEN_NONSEEKABLE
    return _packed(wire.OPEN_OUT, info.fh, flags, backing_id)


def opened_directory(fh: int) -> bytes:
    """The reply to OPENDIR."""
    return _packed(wire.OPEN_OUT, fh, 0, 0)


def data(content: Buffer, size: int) -> bytes | memoryview:
    """The reply to READ, READLINK and so on, of *size* bytes at most."""
    if type(content) is not bytes:
        content = memoryview(content).cast("B")
    given = len(content)
    if given > size:
        raise ValueError(f"{given} bytes are more than the {size} that were asked for")
    return content


def written(count: int, size: int) -> bytes:
    """The reply to WRITE and COPY_FILE_RANGE that had *size* bytes."""
    if not 0 <= count <= size:
        raise ValueError(f"{count} bytes cannot have been written of {size}")
    return _packed(wire.WRITE_OUT, count)


def xattr(value: Buffer, size: int) -> bytes | memoryview | None:
    """The reply to GETXATTR and LISTXATTR that have room for *size* bytes.

    For a *size* of 0 that is the length; None, if the room is too small, stands for ERANGE.
    """
    content = memoryview(value).cast("B")
    if size == 0:
        return _packed(wire.GETXATTR_OUT, content.nbytes)
    return content if content.nbytes <= size else None


def xattr_names(names: Iterable[bytes]) -> bytes:
    """The value that :func:`xattr` is given for LISTXATTR."""
    texts = []
    for name in names:
        if not name or 0 in name:
            raise ValueError(f"{name!r} is no name of an extended attribute")
        texts.append(bytes(name) + b"\0")
    return b"".join(texts)


def statfs(stat: StatvfsData) -> bytes:
    """The reply to STATFS."""
    return _packed(
        wire.STATFS_OUT,
        stat.f_blocks,
        stat.f_bfree,
        stat.f_bavail,
        stat.f_files,
        stat.f_ffree,
        stat.f_bsize,
        stat.f_namemax,
        stat.f_frsize,
    )


def lock(found: FileLock) -> bytes:
    """The reply to GETLK."""
    return _packed(wire.FILE_LOCK, *found)


def bmap(block: int) -> bytes:
    """The reply to BMAP."""
    return _packed(wire.BMAP_OUT, block)


def ioctl(result: int, content: Buffer, size: int) -> bytes:
    """The reply to IOCTL, of at most *size* bytes of *content*."""
    return _packed(wire.IOCTL_OUT, result, 0, 0, 0) + bytes(data(content, size))


def _packed(layout: Struct, *values: float) -> bytes:
    try:
        return layout.pack(*values)
    except struct.error as error:
        # A size or time that was computed may be a float.
        if any(isinstance(value, float) for value in values):
            return _packed(layout, *(int(v) if isinstance(v, float) else v for v in values))
        raise ValueError(f"a value that no reply can have: {error}") from None


class Readdir:
    """The reply to READDIR, which has room for *size* bytes."""

    def __init__(self, size: int) -> None:
        self.size: int = size
        self.content: bytearray = bytearray()

    def try_add(self, ino: int, off: int, mode: int, name: bytes) -> bool:
        """Add an entry, if there is room for it.

        *off* is what READDIR is to be given to go on behind it; of *mode* only the type is used.
        Raises :exc:`ValueError` for what the kernel would refuse.
        """
        check_entry(name, off)
        length = 24 + len(name)
        if len(self.content) + length + (-length & 7) > self.size:
            return False
        kind = (mode >> 12) & 0xF
        self.content += _packed(wire.DIRENT, ino, off, len(name), kind)
        self.content += name + bytes(-length & 7)
        return True

    def try_add_plus(self, attr: EntryAttributes, off: int, name: bytes) -> bool:
        """The same for READDIRPLUS."""
        check_entry(name, off)
        length = 152 + len(name)
        if len(self.content) + length + (-length & 7) > self.size:
            return False
        self.content += _packed(
            wire.DIRENTPLUS,
            *entry_fields(attr),
            attr.st_ino,
            off,
            len(name),
            (attr.st_mode >> 12) & 0xF,
        )
        self.content += name + bytes(-length & 7)
        return True

    def try_add_name(self, ino: int, off: int, mode: int, name: bytes) -> bool:
        """The same for an entry whose attributes are not told, and which counts as no lookup."""
        start = len(self.content)
        if not self.try_add_plus(EntryAttributes(st_mode=mode), off, name):
            return False
        wire.DIRENT.pack_into(
            self.content, start + wire.ENTRY_OUT.size, ino, off, len(name), mode >> 12 & 0xF
        )
        return True


def check_entry(name: bytes, off: int) -> None:
    """Raise :exc:`ValueError` for an entry of a directory that the kernel would refuse."""
    if not 0 < len(name) <= wire.NAME_MAX or b"/" in name or b"\0" in name:
        raise ValueError(f"{name!r} is no name for an entry of a directory")
    if not 0 < off < 1 << 63:
        raise ValueError(f"{off} cannot say where a directory goes on")
