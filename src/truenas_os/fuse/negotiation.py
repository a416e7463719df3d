# SPDX-License-Identifier: LGPL-3.0-or-later
"""What a filesystem and the kernel agree on at the beginning of a connection."""

import errno
from typing import Final, NamedTuple

from . import wire
from .operations import Operations
from .protocol import ProtocolError, Request
from .wire import InitFlag, Opcode

MAX_WRITE: Final = 1 << 20
"""Bytes that a request carries at most."""
_BACKGROUND: Final = 64

# What costs a filesystem nothing.
_ALWAYS: Final = (
    InitFlag.ASYNC_READ
    | InitFlag.BIG_WRITES
    | InitFlag.AUTO_INVAL_DATA
    | InitFlag.ASYNC_DIO
    | InitFlag.PARALLEL_DIROPS
    | InitFlag.ABORT_ERROR
    | InitFlag.MAX_PAGES
    | InitFlag.HAS_IOCTL_DIR
    | InitFlag.INIT_EXT
    | InitFlag.HAS_EXPIRE_ONLY
    | InitFlag.HAS_RESEND
)

_ACL: Final = InitFlag.POSIX_ACL | InitFlag.DONT_MASK | InitFlag.SETXATTR_EXT


NEEDED: Final = {
    Opcode.LOOKUP: "lookup",
    Opcode.GETATTR: "getattr",
    Opcode.SETATTR: "setattr",
    Opcode.READLINK: "readlink",
    Opcode.SYMLINK: "symlink",
    Opcode.MKNOD: "mknod",
    Opcode.MKDIR: "mkdir",
    Opcode.UNLINK: "unlink",
    Opcode.RMDIR: "rmdir",
    Opcode.RENAME: "rename",
    Opcode.RENAME2: "rename",
    Opcode.LINK: "link",
    Opcode.OPEN: "open",
    Opcode.READ: "read",
    Opcode.WRITE: "write",
    Opcode.RELEASE: "release",
    Opcode.FSYNC: "fsync",
    Opcode.GETXATTR: "getxattr",
    Opcode.LISTXATTR: "listxattr",
    Opcode.REMOVEXATTR: "removexattr",
    Opcode.FLUSH: "flush",
    Opcode.OPENDIR: "opendir",
    Opcode.READDIR: "readdir",
    Opcode.RELEASEDIR: "releasedir",
    Opcode.FSYNCDIR: "fsyncdir",
    Opcode.GETLK: "getlk",
    Opcode.ACCESS: "access",
    Opcode.CREATE: "create",
    Opcode.BMAP: "bmap",
    Opcode.IOCTL: "ioctl",
    Opcode.POLL: "poll",
    Opcode.FALLOCATE: "fallocate",
    Opcode.LSEEK: "lseek",
    Opcode.COPY_FILE_RANGE: "copy_file_range",
    Opcode.COPY_FILE_RANGE_64: "copy_file_range",
    Opcode.TMPFILE: "tmpfile",
    Opcode.STATX: "statx",
}
"""The handler that each operation code needs; what is missing here is always served."""
INTERRUPTIBLE: Final = NEEDED | {
    Opcode.STATFS: "statfs",
    Opcode.SETXATTR: "setxattr",
    Opcode.READDIRPLUS: "readdir",
}
"""What may be interrupted as a whole, if the filesystem says so of the handler."""
ABSENT: Final[dict[int, int]] = {
    Opcode.IOCTL: errno.ENOTTY,  # every open() of Python's asks whether a file is a terminal
    Opcode.RELEASE: 0,
    Opcode.RELEASEDIR: 0,
}
"""The errno that is answered where there is no handler, if not ENOSYS."""


class Features(NamedTuple):
    """What has been negotiated for a session."""

    protocol: tuple[int, int]
    """The version of the kernel protocol."""
    flags: InitFlag
    """What both sides do."""
    max_write: int
    """The most bytes that a request carries."""
    max_readahead: int
    """The most bytes that are read ahead."""
    max_background: int
    """The most requests that the kernel has under way for nobody in particular."""


def implemented(operations: Operations, name: str) -> bool:
    """Whether a filesystem has a handler of its own."""
    own = getattr(operations, name, None)
    return own is not None and getattr(own, "__func__", own) is not getattr(Operations, name)


def wanted_flags(operations: Operations) -> InitFlag:
    """What a filesystem with these handlers can do."""

    def has(*names: str) -> bool:
        return all(implemented(operations, name) for name in names)

    flags: InitFlag = _ALWAYS
    for condition, flag in (
        (has("getlk", "setlk"), InitFlag.POSIX_LOCKS),
        (has("flock"), InitFlag.FLOCK_LOCKS),
        (has("readdir") or has("readdirplus"), InitFlag.DO_READDIRPLUS),
        (not has("open"), InitFlag.NO_OPEN_SUPPORT),
        (not has("opendir"), InitFlag.NO_OPENDIR_SUPPORT),
        (has("write") and operations.enable_writeback_cache, InitFlag.WRITEBACK_CACHE),
        (operations.supports_dot_lookup and has("lookup"), InitFlag.EXPORT_SUPPORT),
        (operations.enable_acl, _ACL),
        # Without the second, every write to a backing file would need a request.
        (
            has("open") and operations.enable_passthrough,
            InitFlag.PASSTHROUGH | InitFlag.HANDLE_KILLPRIV_V2,
        ),
        (operations.enable_idmap, InitFlag.ALLOW_IDMAP),
    ):
        if condition:
            flags |= flag
    return flags


def negotiate(
    request: Request, operations: Operations, request_timeout: int = 0
) -> tuple[Features | None, bytes]:
    """What has been agreed on by the INIT *request*, and the reply to it.

    *request_timeout*: in seconds, 0 for none. The features are None if the kernel has a later major
    version: it will ask again. Raises :exc:`ProtocolError` if the kernel's version is too old.
    """
    major, minor = request.read(wire.INIT_IN_SHORT)[:2]
    if major > wire.FUSE_KERNEL_VERSION:
        return None, _reply(0, 0, 0, 0, 0)
    if (major, minor) < (wire.FUSE_KERNEL_VERSION, wire.OLDEST_MINOR):
        raise ProtocolError(
            f"the kernel speaks version {major}.{minor} of the FUSE protocol, "
            f"{wire.FUSE_KERNEL_VERSION}.{wire.OLDEST_MINOR} (Linux 5.4) is needed"
        )
    offered = 0
    if len(request.body) >= wire.INIT_IN.size:
        *_, readahead, low, high = request.read(wire.INIT_IN)
        offered = low | (high << 32 if low & InitFlag.INIT_EXT else 0)
    else:
        *_, readahead, offered = request.read(wire.INIT_IN_SHORT)
    wanted = wanted_flags(operations)
    if request_timeout:
        wanted |= InitFlag.REQUEST_TIMEOUT
    flags = wanted & InitFlag(offered)
    max_write = MAX_WRITE if flags & InitFlag.MAX_PAGES else 32 * wire.PAGE
    version = min(minor, wire.FUSE_KERNEL_MINOR_VERSION)
    features = Features((7, version), flags, max_write, readahead, _BACKGROUND)
    return features, _reply(version, readahead, flags, max_write, request_timeout)


def _reply(minor: int, readahead: int, flags: int, max_write: int, request_timeout: int) -> bytes:
    return wire.INIT_OUT.pack(
        wire.FUSE_KERNEL_VERSION,
        minor,
        readahead,
        flags & 0xFFFFFFFF,
        _BACKGROUND,
        _BACKGROUND * 3 // 4,
        max_write,
        1,  # times have a granularity of a nanosecond
        max_write // wire.PAGE,
        0,
        flags >> 32,
        # Backing files are on filesystems that are not stacked themselves.
        1 if flags & InitFlag.PASSTHROUGH else 0,
        request_timeout,
    )
