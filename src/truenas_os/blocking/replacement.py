# SPDX-License-Identifier: LGPL-3.0-or-later
"""Replacing a file's content in one step: atomic_write and atomic_replace."""

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import IO, Any

from typing_extensions import Buffer

from .._native import lib
from .arguments import FileDescriptorLike, StrOrBytesPath, dir_fileno, path_bytes
from .errors import SymlinkInPathError, check
from .fds import Fd
from .flags import RENAME_NOREPLACE, RESOLVE_NO_SYMLINKS
from .safefiles import check_text, link_descriptor, open_directory
from .temporaries import Temporaries, is_named
from .xattrs import getxattr, has_xattr, listxattr, removexattr, setxattr

_NO_SYMLINKS = int(RESOLVE_NO_SYMLINKS)
_NOREPLACE = int(RENAME_NOREPLACE)
# The modes of open() with "w", their letters sorted.
_MODES = frozenset({"w", "tw", "bw", "+w", "+tw", "+bw"})

_ACL = "system.posix_acl_access"
# After four bytes of version: tag, permissions, id.
_ACL_ENTRY = struct.Struct("<HHI")
_ACL_USER_OBJ, _ACL_GROUP_OBJ, _ACL_MASK, _ACL_OTHER = 0x01, 0x04, 0x10, 0x20
# What a security module measured of the old content.
_OF_CONTENT = frozenset({"security.ima", "security.evm"})


def atomic_write(
    path: StrOrBytesPath,
    mode: str = "w",
    *,
    dir_fd: FileDescriptorLike | None = None,
    perms: int | None = None,
    uid: int = -1,
    gid: int = -1,
    noclobber: bool = False,
    durable: bool = True,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
) -> "Replacement":
    """Replace a file's content in one step: ``with atomic_write(path) as file: file.write(...)``.

    What is written becomes the content of *path*, relative to *dir_fd*, when the block ends; an
    exception in it leaves everything as it was. Who opens *path* meanwhile, or after the process
    was killed, finds the old content or the new, whole; after a crash of the machine too, if
    *durable*. *mode* is one of :func:`open` with ``w``; *encoding*,
    *errors* and *newline* are those of :func:`open`. If *durable*, the file and its directory are
    on the disk when the block has ended; for that the directory must be readable.

    *perms*, *uid* and *gid* are the permissions and the owner of the new file. What is not given is
    kept from the old one, as are its extended attributes and ACLs; those of ``security.*`` and
    ``trusted.*`` as far as the caller may set them. Where there is no old one, the file is as
    :func:`open` would create it. With *noclobber* there must be none: FileExistsError, at the
    beginning or, if somebody was faster, at the end.

    No component of *path* may be a symlink, and *path* no directory, FIFO, socket or device. A
    process that is killed leaves nothing behind, except in the moment of replacing an old file (or,
    where the filesystem has no ``O_TMPFILE``, in the block): that is removed by the next one that
    replaces *path*.

    Raises :exc:`SymlinkInPathError` (ELOOP), :exc:`FileExistsError`, :exc:`IsADirectoryError`;
    :exc:`OSError`: EOPNOTSUPP (a special file), EPERM (the owner or an attribute cannot be kept),
    ENOSPC, EDQUOT, EIO, and all that :manpage:`open(2)`, :manpage:`fsync(2)` and
    :manpage:`rename(2)` list. The old file then stands as it was, except where a note says that the
    new one is in place and only the directory could not be written. Linux 5.6, with /proc.
    """
    if "".join(sorted(mode)) not in _MODES:
        raise ValueError(f"mode must be one of open() with 'w', not {mode!r}")
    if perms is not None and not 0 <= perms <= 0o7777:
        raise ValueError(f"perms must be between 0 and 0o7777, not {perms}")
    for number in (uid, gid):
        if not -1 <= number < 0xFFFFFFFF:
            raise ValueError(f"uid and gid must be -1 or between 0 and 4294967294, not {number}")
    text = encoding, errors, newline
    return Replacement(path, mode, text, dir_fd, perms, (uid, gid), noclobber, durable)


def atomic_replace(
    path: StrOrBytesPath,
    data: str | Buffer,
    *,
    dir_fd: FileDescriptorLike | None = None,
    perms: int | None = None,
    uid: int = -1,
    gid: int = -1,
    noclobber: bool = False,
    durable: bool = True,
    encoding: str | None = None,
) -> None:
    """Make *data*, bytes or text, the content of *path* in one step.

    The other arguments, the promises and the errors are those of :func:`atomic_write`; *encoding*
    is for text only.
    """
    with atomic_write(
        path,
        "w" if isinstance(data, str) else "wb",
        dir_fd=dir_fd,
        perms=perms,
        uid=uid,
        gid=gid,
        noclobber=noclobber,
        durable=durable,
        encoding=encoding,
    ) as file:
        try:
            file.write(data)
        except OSError as error:
            error.filename = os.fspath(path)
            raise


def _listed(fd: Fd) -> list[str]:
    try:
        return listxattr(fd)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:  # a filesystem without any
            raise
        return []


def _acl_with(acl: bytes, perms: int) -> bytes:
    """The value of an ACL's attribute as chmod(2) changes it."""
    entries = [list(entry) for entry in _ACL_ENTRY.iter_unpack(acl[4:])]
    group = _ACL_MASK if any(tag == _ACL_MASK for tag, _, _ in entries) else _ACL_GROUP_OBJ
    bits = {_ACL_USER_OBJ: perms >> 6 & 7, group: perms >> 3 & 7, _ACL_OTHER: perms & 7}
    for entry in entries:
        entry[1] = bits.get(entry[0], entry[1])
    return acl[:4] + b"".join(_ACL_ENTRY.pack(*entry) for entry in entries)


def _raw(file: Any) -> Any:
    return getattr(file, "buffer", file).raw


class Replacement:
    """The block of :func:`atomic_write`."""

    def __init__(
        self,
        path: StrOrBytesPath,
        mode: str,
        text: tuple[str | None, str | None, str | None],
        dir_fd: FileDescriptorLike | None,
        perms: int | None,
        owner: tuple[int, int],
        noclobber: bool,
        durable: bool,
    ) -> None:
        self._path = os.fspath(path)
        self._parent, self._name = os.path.split(path_bytes(path))
        self._mode = mode
        self._text = text
        self._dir_fd = dir_fileno(dir_fd)
        self._perms = perms
        self._owner = owner
        self._noclobber = noclobber
        self._durable = durable
        self._temporary: bytes | None = None
        # What is to be undone, the last first.
        self._undo: list[Callable[[], object]] = []
        self._begun = False

    def __enter__(self) -> IO[Any]:
        if self._begun:
            raise RuntimeError("an atomic_write is one block, which has begun already")
        self._begun = True
        check_text(self._mode, *self._text)
        self._pid = os.getpid()
        try:
            self._begin()
        except BaseException as error:
            self.undo()
            if isinstance(error, OSError):
                error.filename = self._path
            raise
        file: IO[Any] = self._file
        return file

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if exc_type is None:
                if self._pid != os.getpid():
                    raise RuntimeError("the file is replaced by the process that began it")
                self._commit()
        except OSError as error:
            error.filename = self._path
            raise
        finally:
            self.undo()

    def undo(self) -> None:
        """Leave nothing of the new file, unless it has taken its place."""
        if self._pid != os.getpid():
            self._temporary = None  # in a forked child: it is the parent's
        try:
            while self._undo:
                # The close of what nobody will see, or of what is on the disk.
                with suppress(OSError):
                    self._undo.pop()()
        finally:
            if self._undo:  # a signal's handler raised something
                self.undo()

    def _call(self, call: str, *args: Any) -> None:
        while (ret := getattr(lib, f"tos_{call}")(*args)) < 0:
            check(ret, call, self._path)

    def _begin(self) -> None:
        if not self._name:
            check(-(errno.EISDIR if self._parent else errno.ENOENT), "openat2", self._path)
        access = os.O_RDONLY if self._durable else os.O_PATH
        self._dir = self._owned(open_directory(self._dir_fd, self._parent or b".", access))
        self._old = self._find_old()
        self._temporaries = Temporaries(self._dir, self._name, self._path)
        self._fd = self._open_temporary()
        self._undo.append(self._remove_temporary)
        self._file: Any = open(self._fd, self._mode, -1, *self._text, closefd=False)  # noqa: SIM115
        raw = _raw(self._file)
        raw.name = self._path
        self._undo.append(raw.close)  # without writing what a buffer may still hold

    def _owned(self, fd: int) -> Fd:
        owned = Fd(fd)
        self._undo.append(owned.close)
        return owned

    def _find_old(self) -> Fd | None:
        """Hold the file to be replaced, so that it stays the same one; None if there is none."""
        flags = os.O_PATH | os.O_NOFOLLOW
        while (ret := lib.tos_openat2(self._dir, self._name, flags, 0, 0)) < 0:
            if ret == -errno.ENOENT:
                return None
            check(ret, "openat2", self._path)
        old = self._owned(ret)
        if self._noclobber:
            check(-errno.EEXIST, "openat2", self._path)
        mode = os.fstat(old).st_mode
        if stat.S_ISLNK(mode):
            check(-errno.ELOOP, "openat2", self._path, kind=SymlinkInPathError)
        if stat.S_ISDIR(mode):
            check(-errno.EISDIR, "openat2", self._path)
        if not stat.S_ISREG(mode):
            note = "it is no regular file, and only one of those is replaced"
            check(-errno.EOPNOTSUPP, "openat2", self._path, notes=(note,))
        return old

    def _open_temporary(self) -> Fd:
        mode = self._perms
        if mode is None:  # as open() makes it: the umask, or a default ACL, is applied
            mode = 0o666 if self._old is None else stat.S_IMODE(os.fstat(self._old).st_mode)
        flags = os.O_TMPFILE | os.O_RDWR
        while (ret := lib.tos_openat2(self._dir, b".", flags, mode, _NO_SYMLINKS)) < 0:
            if ret == -errno.EOPNOTSUPP:
                # Others can see that one, and may not read what is not theirs yet.
                tightened = self._old is not None or self._perms is not None
                named = 0o600 if tightened else mode
                fd, self._temporary = self._temporaries.create(named)
                return self._owned(fd)
            check(ret, "openat2", self._path)
        return self._owned(ret)

    def _remove_temporary(self) -> None:
        # Where the rename was not heard to succeed, somebody else may have the name by now.
        if self._temporary is not None and is_named(self._fd, self._dir, self._temporary):
            self._call("unlinkat", self._dir, self._temporary, 0)

    def _commit(self) -> None:
        if not self._file.closed:
            self._file.flush()
        self._keep_attributes()
        if self._durable:
            self._call("fsync", self._fd)
        else:
            # What some filesystems say at the close, to be heard while the old file stands.
            Fd(os.dup(self._fd)).close()
        if not self._link_new():
            self._rename()
        if self._durable:
            self._sync_directory()

    def _keep_attributes(self) -> None:
        mode, (uid, gid) = self._perms, self._owner
        if self._old is not None:
            had = os.fstat(self._old)
            mode = stat.S_IMODE(had.st_mode) if mode is None else mode
            uid, gid = had.st_uid if uid == -1 else uid, had.st_gid if gid == -1 else gid
        has = os.fstat(self._fd)
        if uid not in (-1, has.st_uid) or gid not in (-1, has.st_gid):
            self._call("fchown", self._fd, uid % (1 << 32), gid % (1 << 32))
        if self._old is not None:
            self._keep_xattrs(self._old)
        # Last, because the owner and the ACL, and even the writing, change it.
        if mode not in (None, stat.S_IMODE(os.fstat(self._fd).st_mode)):
            self._call("fchmod", self._fd, mode)
            if stat.S_IMODE(os.fstat(self._fd).st_mode) != mode:
                note = "the set-group-ID bit cannot be kept, or set, by who is not in the group"
                check(-errno.EPERM, "fchmod", self._path, notes=(note,))

    def _keep_xattrs(self, old: Fd) -> None:
        names = _listed(old)
        if _ACL not in names and has_xattr(self._fd, _ACL):
            removexattr(self._fd, _ACL)  # made of the directory's default
        for name in names:
            if name not in _OF_CONTENT:
                self._keep_xattr(old, name)

    def _keep_xattr(self, old: Fd, name: str) -> None:
        try:
            value = getxattr(old, name)
        except OSError as error:
            if error.errno == errno.ENODATA:
                return  # removed since the names were listed
            raise
        if name == _ACL and self._perms is not None:
            value = _acl_with(
                value, self._perms
            )  # nobody is to have the old access even for a moment
        try:
            setxattr(self._fd, name, value)
        except OSError as error:
            privileged = name.startswith(("security.", "trusted."))
            refused = error.errno in (errno.EPERM, errno.EACCES, errno.EOPNOTSUPP)
            if not (privileged and refused):
                error.add_note(f"the extended attribute {name!r} cannot be kept")
                raise

    def _link_new(self) -> bool:
        """Put a file that has no name where none is; False if there is one after all."""
        if self._temporary is not None or not (self._old is None or self._noclobber):
            return False
        while (ret := link_descriptor(self._fd, self._dir, self._name)) < 0:
            if ret == -errno.EEXIST and not self._noclobber:
                return False
            check(ret, "linkat", self._path)
        return True

    def _rename(self) -> None:
        if self._temporary is None:
            for name in self._temporaries.names_to_link(self._fd):
                self._temporary = name  # before it exists, for an interrupt in between
                if self._temporaries.link(self._fd, name):
                    break
        names = self._dir, self._temporary, self._dir, self._name
        flags = _NOREPLACE if self._noclobber else 0
        while (ret := lib.tos_renameat2(*names, flags)) < 0:
            if ret != -errno.EINVAL or not self._noclobber:
                check(ret, "renameat2", self._path)
            else:
                # A filesystem that cannot rename so. The temporary name is removed with the rest.
                self._call("linkat", *names, 0)
                self._remove_temporary()
                break
        self._temporary = None
        # Nobody who locks the file itself is to meet a lock of ours.
        lib.tos_flock(self._fd, fcntl.LOCK_UN)

    def _sync_directory(self) -> None:
        while (ret := lib.tos_fsync(self._dir)) < 0:
            if ret == -errno.EINVAL:
                return  # a filesystem that does not know this of directories
            note = "the new content is in place, but a crash may undo that"
            check(ret, "fsync", self._path, notes=(note,))
