# SPDX-License-Identifier: LGPL-3.0-or-later
"""The mount table: listmount, statmount, and what is built on them."""

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from typing import Final

from .._native import ffi, lib
from .arguments import FileDescriptorLike, StrOrBytesPath, fileno
from .errors import check
from .fds import Fd
from .files import openat2, statx
from .flags import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_STATX_DONT_SYNC,
    LISTMOUNT_REVERSE,
    LSMT_ROOT,
    RESOLVE_NO_SYMLINKS,
    STATMOUNT_MNT_BASIC,
    STATMOUNT_MNT_POINT,
    STATMOUNT_SB_BASIC,
    STATX_ATTR_MOUNT_ROOT,
    STATX_MNT_ID_UNIQUE,
    STATX_TYPE,
    StatmountMask,
)
from .mount_records import StatmountBatches, check_ids, id_notes
from .results import StatmountResult, StatxResult

ALL_FIELDS: Final = ~StatmountMask(0)

# What a system call takes of a path, with the byte that ends it.
_PATH_MAX = 4096
# Flags of what is opened as open_long() opens it.
_BARE = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
# Ids fetched by one listmount(2).
_PAGE = 4096


def listmount(
    mnt_id: int = LSMT_ROOT,
    last_mnt_id: int = 0,
    reverse: bool = False,
    *,
    mnt_ns: FileDescriptorLike | None = None,
) -> list[int]:
    """The unique ids of all mounts below the mount *mnt_id*, in ascending order.

    All descendants are listed, not only children. ``LSMT_ROOT`` stands for the root of the mount
    namespace and includes it. The list begins after *last_mnt_id*, which need not exist any more,
    and descends if *reverse*. *mnt_ns* is the descriptor of a mount namespace other than one's own.
    Ids are given when a mount is created, not when it is attached.

    Raises :exc:`OSError`: ENOENT (no such mount), EPERM (not reachable from this process's root),
    EINVAL (*mnt_id* or *last_mnt_id* is no unique id, or *mnt_ns* no mount namespace). Raises
    :exc:`ValueError` for an id that is negative or has more than 64 bits. :manpage:`listmount(2)`.
    Linux 6.8; *mnt_ns* 6.11.
    """
    check_ids(mnt_id, last_mnt_id)
    ns = _namespace("listmount", mnt_ns)
    flags = int(LISTMOUNT_REVERSE) if reverse else 0
    notes = id_notes(*(id_ for id_ in (mnt_id, last_mnt_id) if id_ not in (0, LSMT_ROOT)))
    ids: list[int] = []
    page = ffi.new("uint64_t[]", _PAGE)
    while True:
        while (count := lib.tos_listmount(*ns, mnt_id, last_mnt_id, flags, page, _PAGE)) < 0:
            check(count, "listmount", notes=notes)
        ids += ffi.unpack(page, count)
        if count < _PAGE:
            return ids
        last_mnt_id = ids[-1]


def statmount(
    mnt_id: int,
    mask: int = STATMOUNT_MNT_BASIC | STATMOUNT_SB_BASIC,
    *,
    mnt_ns: FileDescriptorLike | None = None,
) -> StatmountResult:
    """What the kernel knows of the mount with the unique id *mnt_id*.

    *mask* says which fields are wanted (``STATMOUNT_*``; ``~StatmountMask(0)`` for all of them).
    *mnt_ns* is the descriptor of a mount namespace other than one's own.

    Raises :exc:`OSError`: ENOENT (no such mount; detached ones are not seen), EPERM (not reachable
    from this process's root). Raises :exc:`ValueError` for an id that is negative or has more than
    64 bits. :manpage:`statmount(2)`. Linux 6.8; *mnt_ns* 6.11.
    """
    check_ids(mnt_id)
    found = StatmountBatches([mnt_id], mask, _namespace("statmount", mnt_ns)).next_batch()
    if not found:
        check(-errno.ENOENT, "statmount", notes=id_notes(mnt_id))
    return found[0]


def iter_mount(
    mnt_id: int = LSMT_ROOT,
    last_mnt_id: int = 0,
    reverse: bool = False,
    statmount_flags: int = STATMOUNT_MNT_BASIC | STATMOUNT_SB_BASIC,
    *,
    mnt_ns: FileDescriptorLike | None = None,
) -> Iterator[StatmountResult]:
    """The mounts that :func:`listmount` lists, each described as :func:`statmount` does.

    A mount that vanishes meanwhile is left out. Raises what those two raise, when the iteration
    comes to it.
    """
    for batch in mount_batches(mnt_id, last_mnt_id, reverse, statmount_flags, mnt_ns=mnt_ns):
        yield from batch


def mount_batches(
    mnt_id: int,
    last_mnt_id: int,
    reverse: bool,
    mask: int,
    *,
    mnt_ns: FileDescriptorLike | None,
) -> Iterator[list[StatmountResult]]:
    """What :func:`iter_mount` iterates over, in non-empty lists of up to a few hundred."""
    ids = listmount(mnt_id, last_mnt_id, reverse, mnt_ns=mnt_ns)
    batches = StatmountBatches(ids, mask, _namespace("statmount", mnt_ns))
    while batches.left:
        if batch := batches.next_batch():
            yield batch


def statmounts(
    ids: Sequence[int], mask: int, *, mnt_ns: FileDescriptorLike | None = None
) -> Iterator[StatmountResult]:
    """Those of the mounts *ids* that still exist, each as :func:`statmount` describes it."""
    batches = StatmountBatches(ids, mask, _namespace("statmount", mnt_ns))
    while batches.left:
        yield from batches.next_batch()


def open_mount_by_id(mount_id: int, flags: int = os.O_DIRECTORY) -> Fd:
    """Open the root of the mount with the unique id *mount_id*.

    There is no such system call: the mount point that :manpage:`statmount(2)` reports is opened
    without following a symlink, however long it is, and the unique mount id of the result is
    verified before it is opened with *flags* (``os.O_*``). A mount whose root is no directory is
    opened through /proc/self/fd.

    Raises :exc:`FileNotFoundError` if no such mount is visible from this process's root, and
    :exc:`OSError` with ESTALE if another mount covers it or its mount point changed meanwhile, and
    what :func:`openat2` and :func:`statmount` raise. The descriptor is close-on-exec. Linux 6.8.
    """
    mnt_point = statmount(mount_id, STATMOUNT_MNT_POINT).mnt_point
    if mnt_point is None:
        raise _lost(errno.ENOENT, mount_id, None, "it cannot be reached from this process's root")
    try:
        root = open_long(mnt_point)
    except OSError as error:
        # The path was right a moment ago: what is wrong with it now is a race.
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            error.filename = mnt_point
            raise
        raise _lost(errno.ESTALE, mount_id, mnt_point, error.strerror) from error
    with root:
        look = AT_EMPTY_PATH | AT_STATX_DONT_SYNC  # no server is asked
        found = statx(root, "", look, STATX_TYPE | STATX_MNT_ID_UNIQUE)
        if found.stx_mnt_id != mount_id:
            raise _lost(
                errno.ESTALE,
                mount_id,
                mnt_point,
                f"mount {found.stx_mnt_id} is what is found there",
            )
        if not found.stx_attributes & STATX_ATTR_MOUNT_ROOT:
            raise _lost(errno.ESTALE, mount_id, mnt_point, "the mount has been moved elsewhere")
        return _reopen(root, found, flags, mnt_point)


def mount_of(
    path_or_fd: StrOrBytesPath | FileDescriptorLike,
    *,
    mask: int = ALL_FIELDS,
    resolve: int = RESOLVE_NO_SYMLINKS,
) -> StatmountResult:
    """The mount that holds a path or an open descriptor, as :func:`statmount` describes it.

    A path is opened with ``O_PATH`` and, unless *resolve* (``RESOLVE_*``) says otherwise, must not
    have a symlink in any component.

    Raises :exc:`OSError`: ELOOP (a symlink), ENOENT (no such path; or the mount is not in this
    mount namespace, as the mounts of pipes and sockets are not), and what :func:`openat2` and
    :func:`statmount` raise. Linux 6.8.
    """
    if isinstance(path_or_fd, (str, bytes, os.PathLike)):
        with openat2(AT_FDCWD, path_or_fd, os.O_PATH, resolve=resolve) as fd:
            return _mount_of_fd(fd, mask, path_or_fd)
    fd_number = fileno(path_or_fd)
    return _mount_of_fd(fd_number, mask, fd_number)


def _mount_of_fd(fd: int, mask: int, name: StrOrBytesPath | int) -> StatmountResult:
    mnt_id = statx(fd, "", AT_EMPTY_PATH, STATX_MNT_ID_UNIQUE).stx_mnt_id
    try:
        return statmount(mnt_id, mask)
    except OSError as error:
        error.filename = name
        if error.errno == errno.ENOENT:
            error.add_note(f"it is on mount {mnt_id}, which is not visible in this mount namespace")
        raise


def _lost(code: int, mount_id: int, mnt_point: str | None, why: str | None) -> OSError:
    error = OSError(code, os.strerror(code), mnt_point)
    error.add_note(f"the root of mount {mount_id} cannot be opened: {why}")
    return error


def open_long(path: str) -> Fd:
    """Open an absolute *path* of any length with ``O_PATH``, following no symlink."""
    flags = os.O_PATH | os.O_NOFOLLOW
    if len(os.fsencode(path)) < _PATH_MAX:
        return openat2(AT_FDCWD, path or "/", flags, resolve=RESOLVE_NO_SYMLINKS)
    at = openat2(AT_FDCWD, "/", flags)
    for name in filter(None, path.split("/")):
        with at:
            at = openat2(at, name, flags, resolve=RESOLVE_NO_SYMLINKS)
    return at


def _reopen(root: Fd, found: StatxResult, flags: int, name: str) -> Fd:
    is_directory = stat.S_ISDIR(found.stx_mode)
    if flags & os.O_PATH and not flags & ~(_BARE | (os.O_DIRECTORY if is_directory else 0)):
        return Fd(root.detach())  # to look up "." may be to ask a server
    try:
        if is_directory:
            return openat2(root, ".", flags)
        return openat2(AT_FDCWD, f"/proc/self/fd/{root}", flags & ~os.O_NOFOLLOW)
    except OSError as error:
        if error.errno == errno.ENOENT:
            error.add_note("what is no directory is opened through /proc/self/fd, which is missing")
        error.filename = name
        raise


def _namespace(call: str, mnt_ns: FileDescriptorLike | None) -> tuple[int, int]:
    """How a request names a mount namespace: by descriptor, or, before Linux 6.18, by its id."""
    if mnt_ns is None:
        return 0, 0
    fd = fileno(mnt_ns)
    page = ffi.new("uint64_t[]", 1)
    ret = -errno.EINVAL
    if fd != 0:  # in a request, that means that there is none
        while (ret := lib.tos_listmount(fd, 0, LSMT_ROOT, 0, 0, page, 1)) == -errno.EINTR:
            pass
    if ret not in (-errno.EBADF, -errno.EINVAL):
        return fd, 0
    while (ret := lib.tos_mnt_ns_id(fd, page)) < 0:
        if ret in (-errno.ENOTTY, -errno.EINVAL):
            note = "mnt_ns must be an open /proc/PID/ns/mnt, and needs Linux 6.11"
            check(-errno.EINVAL, call, fd, dirfds=(fd,), notes=(note,))
        check(ret, call, fd, dirfds=(fd,))
    return 0, page[0]
