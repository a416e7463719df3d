# SPDX-License-Identifier: LGPL-3.0-or-later
"""The callbacks that a filesystem may have, at the level of paths."""

import errno
import inspect
from collections.abc import Awaitable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn, TypeAlias, TypeVar

from .datatypes import EntryAttributes, FileInfo, FUSEError, StatvfsData

if TYPE_CHECKING:
    import os

    from .pathcalls import PollHandle

T = TypeVar("T")

Returned: TypeAlias = T | Awaitable[T]
Done: TypeAlias = int | None
"""Success is None or 0; a negative errno is as good as raising it."""
Attributes: TypeAlias = "os.stat_result | EntryAttributes | Sequence[float | Sequence[int]] | int"
Entry: TypeAlias = "str | bytes | Sequence[Any] | int"


@dataclass(slots=True)
class Flock:
    """A POSIX lock, as ``struct flock`` has it; ``getlk`` changes it. :manpage:`fcntl_locking(2)`.

    *l_start* and *l_len* are in bytes, from the beginning of the file; an *l_len* of 0 means up to
    its end, wherever that will be.
    """

    l_type: int
    l_whence: int
    l_start: int
    l_len: int
    l_pid: int


def _unimplemented() -> NoReturn:
    raise FUSEError(errno.ENOSYS)


class PathOperations:
    """A filesystem whose callbacks are given paths: derive from it, and define those yours has.

    A callback is an ``async def`` function, which is run on the event loop, or a plain one, which
    is called on a worker thread. Its arguments are positional. Paths and names are str, with bytes
    that are no UTF-8 as surrogate escapes; a path begins with ``/``, which alone is the root.

    A callback returns what its documentation says, where 0 is as good as None, or a negative errno;
    or it raises :exc:`OSError` or :exc:`FUSEError`. What it should not return is logged, and the
    call fails with EIO, as with any other exception. *fh* is the file handle that ``open``,
    ``create`` or ``opendir`` has returned, or None; a callback may be defined without it, ``open``
    without *info* and ``destroy`` without *private_data*. :func:`fuse_get_context` tells who asks.

    What is not defined, the kernel does without where it can; see :class:`Operations`.
    """

    threaded: bool = False
    """Whether several callbacks may be under way at once.

    If not, one that waits keeps all others waiting. A plain one still counts when its caller has
    been interrupted and nobody waits for it any more: the next begins when it has returned.
    """
    nullpath_ok: bool = False
    """Whether callbacks that are given a file handle can do without a path, and get ``""``.

    They are ``read``, ``write``, ``flush``, ``release``, ``fsync``, ``ftruncate``, ``fgetattr``,
    ``lock``, ``readdir``, ``releasedir`` and ``fsyncdir``, but not ``ioctl`` and ``poll``.
    """
    utimens_as_array: bool = False
    """Whether ``utimens`` gets pairs of seconds and nanoseconds rather than floats."""
    hard_remove: bool = False
    """Whether an open file is really removed, rather than renamed until it is closed.

    Its path then is ``""``. If not, ``unlink`` and ``rename`` are preceded by a ``rename`` to
    ``.fuse_hidden`` and a number, in the same directory, where nobody sees it.
    """
    debug: bool = False
    """Whether every call is logged, as one line."""
    enable_writeback_cache: bool = False
    """As that of :class:`Operations`."""
    enable_acl: bool = False
    """As that of :class:`Operations`."""

    # The session.

    def init(self) -> Any:
        """Prepare: called once, before any other callback. The result is ``private_data``."""
        _unimplemented()

    def destroy(self, private_data: Any) -> Returned[object]:
        """Clean up: called once when the session has ended; *private_data* is what init returned.

        The result does not matter.
        """
        _unimplemented()

    def statfs(
        self,
    ) -> "Returned[StatvfsData | os.statvfs_result | Sequence[int] | int]":
        """The state of the filesystem: :manpage:`statvfs(3)`.

        Six numbers are: the longest name in bytes, files, free files, blocks, blocks available, the
        block's size in bytes. An errno may come before them.
        """
        _unimplemented()

    # Attributes.

    def getattr(self, path: str) -> Returned[Attributes]:
        """The attributes of what is there, symlinks not followed. :manpage:`lstat(2)`.

        Thirteen values are: dev, ino, mode, nlink, uid, gid, rdev, size in bytes, atime, mtime,
        ctime, blksize, blocks of 512 bytes. A time is in seconds, or a pair of seconds and
        nanoseconds. Files of one dev and ino, unless that is 0, are links to one file. Attributes
        are kept for a second, those of :class:`EntryAttributes` for as long as it says.
        """
        _unimplemented()

    def fgetattr(self, path: str, fh: Any) -> Returned[Attributes]:
        """As ``getattr``, for an open file; where this is not defined, that is called."""
        _unimplemented()

    def access(self, path: str, mode: int) -> Returned[Done]:
        """Whether the caller may do what *mode* (``os.R_OK``...) says. :manpage:`access(2)`.

        Not called with the option ``default_permissions``.
        """
        _unimplemented()

    def chmod(self, path: str, mode: int) -> Returned[Done]:
        """Set the mode; *mode* has the type of the file as well. :manpage:`chmod(2)`."""
        _unimplemented()

    def chown(self, path: str, uid: int, gid: int) -> Returned[Done]:
        """Set owner and group, -1 for one that stays, without following. :manpage:`lchown(2)`."""
        _unimplemented()

    def truncate(self, path: str, size: int) -> Returned[Done]:
        """Cut off or extend to *size* bytes. :manpage:`truncate(2)`."""
        _unimplemented()

    def ftruncate(self, path: str, size: int, fh: Any) -> Returned[Done]:
        """As ``truncate``, for an open file; where this is not defined, that is called."""
        _unimplemented()

    def utime(self, path: str, atime: int, mtime: int) -> Returned[Done]:
        """Set the times of last access and modification, in seconds. :manpage:`utime(2)`."""
        _unimplemented()

    def utimens(self, path: str, atime: Any, mtime: Any) -> Returned[Done]:
        """The same with fractions of seconds; called instead of ``utime``. :manpage:`utimensat(2)`.

        Times are floats, or with ``utimens_as_array`` pairs of seconds and nanoseconds. Symlinks
        are not followed.
        """
        _unimplemented()

    # Names.

    def readlink(self, path: str) -> Returned[str | bytes | int]:
        """The target of a symlink. :manpage:`readlink(2)`."""
        _unimplemented()

    def mknod(self, path: str, mode: int, rdev: int) -> Returned[Done]:
        """Make a file of the type that *mode* says; *rdev* is a device's. :manpage:`mknod(2)`."""
        _unimplemented()

    def mkdir(self, path: str, mode: int) -> Returned[Done]:
        """Make a directory. :manpage:`mkdir(2)`."""
        _unimplemented()

    def unlink(self, path: str) -> Returned[Done]:
        """Remove what is no directory. :manpage:`unlink(2)`."""
        _unimplemented()

    def rmdir(self, path: str) -> Returned[Done]:
        """Remove a directory, ENOTEMPTY if it has entries. :manpage:`rmdir(2)`."""
        _unimplemented()

    def symlink(self, target: str, path: str) -> Returned[Done]:
        """Make a symlink at *path*. :manpage:`symlink(2)`."""
        _unimplemented()

    def rename(self, old: str, new: str) -> Returned[Done]:
        """Rename, replacing *new* if that exists. :manpage:`rename(2)`.

        RENAME_EXCHANGE is EINVAL without a call.
        """
        _unimplemented()

    def link(self, old: str, new: str) -> Returned[Done]:
        """Make *new* another name of *old*. :manpage:`link(2)`."""
        _unimplemented()

    # Files.

    def create(self, path: str, mode: int, flags: int) -> Returned[Any]:
        """Make a regular file and open it; returns as ``open``.

        Where this is not defined, ``mknod`` and ``open`` are called.
        """
        _unimplemented()

    def open(self, path: str, flags: int, info: FileInfo) -> Returned[Any]:
        """Open a file; *flags* are those of :manpage:`open(2)` without what creates or truncates.

        *info* may be changed: ``direct_io``, ``keep_cache`` (False unless set) and ``nonseekable``.
        Returns a file handle: a number from 1 on, or an object that is no plain data, for instance
        an open file. In a pair behind an errno, as in ``(0, handle)``, it may be anything. None or
        0: the file has no handle.
        """
        _unimplemented()

    def read(self, path: str, size: int, offset: int, fh: Any) -> Returned[bytes | int]:
        """What the file has from *offset* on, *size* bytes unless it ends before."""
        _unimplemented()

    def write(self, path: str, data: bytes, offset: int, fh: Any) -> Returned[Done]:
        """Write; how many bytes (here 0 is none), or None for all.

        All must be written, but for files with ``direct_io``.
        """
        _unimplemented()

    def flush(self, path: str, fh: Any) -> Returned[Done]:
        """A descriptor of the file was closed, of possibly several; errors reach its close."""
        _unimplemented()

    def release(self, path: str, flags: int, fh: Any) -> Returned[Done]:
        """The last one is gone: called once for each file opened, with the *flags* of ``open``.

        Errors reach nobody.
        """
        _unimplemented()

    def fsync(self, path: str, datasync: int, fh: Any) -> Returned[Done]:
        """Put the file on stable storage, just its data unless *datasync* is 0."""
        _unimplemented()

    def lock(self, path: str, command: int, lock: Flock, fh: Any) -> Returned[Done]:
        """Take, release (F_UNLCK) or ask for a POSIX lock. :manpage:`fcntl_locking(2)`.

        *command*: ``fcntl.F_GETLK`` (set *lock* to one that is in the way, or its type to F_UNLCK),
        ``F_SETLK`` (EAGAIN if one is), ``F_SETLKW`` (wait). An ``async`` callback that waits is
        cancelled when its caller gets a signal; a plain one is left alone, and if it gets the lock
        after that it is called again to release it. ``current_request().lock_owner`` tells whose
        the lock is to be. When a process closes the file, its locks are released.

        Where this is not defined, the kernel keeps the locks.
        """
        _unimplemented()

    def bmap(self, path: str, blocksize: int, index: int) -> Returned[int | tuple[int, int]]:
        """The number of the device's block that has the block *index*, of *blocksize* bytes.

        It may come in a pair behind an errno. Only for filesystems on block devices.
        """
        _unimplemented()

    def ioctl(
        self, path: str, command: int, flags: int, data: bytes | None, fh: Any
    ) -> Returned[bytes | tuple[int, Any] | int | None]:
        """A :manpage:`ioctl(2)` whose *command* encodes the size of what it takes and gives.

        *data* is what it takes, None if it takes nothing. Returns what it gives, if it gives
        anything; may be in a pair behind an errno. *flags*: 16 for a directory.
        """
        _unimplemented()

    def poll(
        self, path: str, handle: "PollHandle | None", events: int, fh: Any
    ) -> Returned[int | tuple[int, int]]:
        """What the file is ready for of *events*; may be in a pair behind an errno.

        If there is a *handle*, the caller is about to sleep: pass it to :func:`notify_poll` when
        something changes, from any thread, and to :func:`pollhandle_destroy` when it is not needed
        any more. Only the latest handle of a file needs to be notified. :manpage:`poll(2)`.
        """
        _unimplemented()

    # Extended attributes.

    def setxattr(self, path: str, name: str, value: bytes, flags: int) -> Returned[Done]:
        """Set an extended attribute. :manpage:`setxattr(2)`.

        *flags*: ``XATTR_CREATE`` (EEXIST if there is one), ``XATTR_REPLACE`` (ENOATTR if not).
        """
        _unimplemented()

    def getxattr(self, path: str, name: str) -> Returned[bytes | int | None]:
        """The value of an extended attribute; 0 or None, and ENOATTR as well, if there is none."""
        _unimplemented()

    def listxattr(self, path: str) -> Returned[Collection[str | bytes | int] | int]:
        """The names of the extended attributes; an errno may come behind them."""
        _unimplemented()

    def removexattr(self, path: str, name: str) -> Returned[Done]:
        """Remove an extended attribute; ENOATTR if there is none."""
        _unimplemented()

    # Directories.

    def getdir(self, path: str) -> Returned[Collection[str | bytes | int] | int]:
        """The names in a directory; an errno may come behind them."""
        _unimplemented()

    def opendir(self, path: str) -> Returned[Any]:
        """Open a directory; returns as ``open``."""
        _unimplemented()

    def readdir(self, path: str, offset: int, fh: Any) -> Returned[Collection[Entry] | int]:
        """The entries of a directory, perhaps with an errno behind them; instead of ``getdir``.

        They are names, or ``(0, name)`` or ``(0, name, attributes)``, the latter as ``getattr``
        returns them: then these are all the entries, and *offset* is 0. Or an entry has an offset
        from 1 on, which tells where to go on behind it: then these are some of the entries that
        come behind the one that had *offset*, and none if there are no more.
        """
        _unimplemented()

    def releasedir(self, path: str, fh: Any) -> Returned[Done]:
        """The last descriptor of a directory is gone: called once for each ``opendir``."""
        _unimplemented()

    def fsyncdir(self, path: str, datasync: int, fh: Any) -> Returned[Done]:
        """Put a directory on stable storage, just its entries unless *datasync* is 0."""
        _unimplemented()


CALLBACKS: Final = tuple(
    name
    for name, value in vars(PathOperations).items()
    if callable(value) and not name.startswith("_")
)
"""The names of the callbacks."""
_OPTIONAL: Final = {"fh", "info", "private_data"}


class Callback(NamedTuple):
    """A callback that a filesystem has."""

    function: Any
    arguments: int
    """How many it is to be called with."""
    is_async: bool


def defined(operations: PathOperations) -> dict[str, Callback]:
    """The callbacks that a filesystem has.

    Raises :exc:`TypeError` for one that cannot be called with its arguments.
    """
    found = {}
    for name in CALLBACKS:
        callback = getattr(operations, name)
        ours = getattr(PathOperations, name)
        if getattr(callback, "__func__", callback) is ours:
            continue
        if not callable(callback):
            raise TypeError(f"{name} must be a function, not {callback!r}")
        parameters = list(inspect.signature(ours).parameters)[1:]
        least = sum(parameter not in _OPTIONAL for parameter in parameters)
        count = _arguments(callback, name, least, len(parameters))
        called = getattr(callback, "__call__", None)  # noqa: B004
        is_async = any(map(inspect.iscoroutinefunction, (callback, called)))
        found[name] = Callback(callback, count, is_async)
    return found


def _arguments(callback: Any, name: str, least: int, most: int) -> int:
    try:
        signature = inspect.signature(callback)
    except ValueError:  # a builtin that does not tell
        return most
    for count in range(most, least - 1, -1):
        try:
            signature.bind(*range(count))
        except TypeError:
            continue
        return count
    wanted = f"{least} to {most}" if least < most else str(most)
    raise TypeError(f"{name}{signature} cannot be called with {wanted} arguments")
