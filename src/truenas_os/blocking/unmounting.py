# SPDX-License-Identifier: LGPL-3.0-or-later
"""Unmounting: by path, whole trees, and one mount by its id wherever it is."""

import contextlib
import errno
import os
import threading
import time
from collections.abc import Iterator, Sequence

from .arguments import StrOrBytesPath, unfollowed
from .fds import Fd
from .files import statx
from .flags import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_NO_AUTOMOUNT,
    AT_STATX_DONT_SYNC,
    AT_SYMLINK_NOFOLLOW,
    MNT_DETACH,
    MNT_EXPIRE,
    MNT_FORCE,
    STATMOUNT_MNT_POINT,
    STATX_ATTR_MOUNT_ROOT,
    STATX_MNT_ID_UNIQUE,
    UMOUNT_NOFOLLOW,
)
from .mountapi import umount2
from .mounts import listmount, open_long, statmount, statmounts
from .results import StatxResult
from .trees import mount_tree

# Looking for what is mounted is not to ask a server, nor to mount anything.
_LOOK = AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | AT_STATX_DONT_SYNC
_FEW = 8
# Seconds for which the end of a block tries again to unmount what it mounted.
_PATIENCE = 0.5
# So often a mount is marked that others use before it can be unmounted.
_MARKS = 100
# So often a tree is unmounted below which mounts keep appearing.
_PASSES = 16


def umount(
    target: StrOrBytesPath,
    *,
    recursive: bool = False,
    lazy: bool = False,
    lazy_fallback: bool = False,
    force: bool = False,
) -> None:
    """Unmount what is on top at *target*; a symlink there is not followed.

    *recursive*: with all mounts below it, as the tree is then, children first. *lazy*: detach it
    and all mounts below it at once; the kernel unmounts them when nothing uses them any more.
    *lazy_fallback*: detach so only what is busy because it is in use; a mount that comes on top in
    that very moment goes in its place, which is EBUSY. *force*: let a network filesystem give up
    its requests.

    Raises :exc:`OSError` as :func:`umount2` does; an EBUSY that mounts below the target cause has
    them in a note. If *recursive*, what could not be unmounted is reported in an
    :exc:`ExceptionGroup` of such errors, each with its mount point. Linux 6.8 for *recursive* and
    *lazy_fallback*.
    """
    if lazy and lazy_fallback:
        raise ValueError("lazy and lazy_fallback exclude each other")
    target = unfollowed(target)
    flags = UMOUNT_NOFOLLOW | (MNT_FORCE if force else 0)
    if lazy:
        umount2(target, flags | MNT_DETACH)
    elif recursive:
        _unmount_tree(target, lazy_fallback, force)
    else:
        try:
            umount2(target, flags)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            _detach_or_raise(error, _mount_at(target), lazy_fallback)


def _unmount_tree(target: StrOrBytesPath, lazy_fallback: bool, force: bool) -> None:
    top = _mount_at(target)
    name = os.fsdecode(target)
    for attempt in range(_PASSES):
        tree = mount_tree(mask=0)
        if top not in tree:
            if attempt == 0 and _mount_at(target) == top:
                why = "it is not in this mount namespace, or not below this process's root"
                raise _failed(errno.EINVAL, top, name, why)
            return
        ids = [top, *(mount.mnt_id or 0 for mount in tree.descendants(top))]
        errors = []
        # From parents first to children first.
        for mnt_id in reversed(ids):
            try:
                unmount(mnt_id, lazy_fallback=lazy_fallback, force=force)
            except OSError as error:
                errors.append(error)
        if not errors:
            return
        if len(errors) == len(ids):
            break  # nothing to hope for from another look at the tree
    raise ExceptionGroup(f"{name}: {len(errors)} of {len(ids)} mounts are still there", errors)


def _detach_or_raise(error: OSError, mnt_id: int, lazy_fallback: bool) -> None:
    """Detach what is busy because it is in use; else raise *error*, with the mounts below it."""
    if error.errno == errno.EINVAL:
        error.add_note("it may be locked: it then goes with what it is mounted on, lazily")
    if error.errno == errno.EBUSY:
        below = listmount(mnt_id)
        if lazy_fallback and not below:
            detach(mnt_id)
            return
        if below:
            found = statmounts(below[:_FEW], STATMOUNT_MNT_POINT)
            points = ", ".join(mount.mnt_point or "?" for mount in found)
            more = f", and {len(below) - _FEW} more" if len(below) > _FEW else ""
            error.add_note(f"mounts are below it: {points}{more}")
    raise error


def _mount_at(target: StrOrBytesPath) -> int:
    found = statx(AT_FDCWD, target, _LOOK, STATX_MNT_ID_UNIQUE)
    if not found.stx_attributes & STATX_ATTR_MOUNT_ROOT:
        error = OSError(errno.EINVAL, os.strerror(errno.EINVAL), os.fspath(target))
        error.add_note("this is no mount point, and a symlink to one is not followed")
        raise error
    return found.stx_mnt_id


def unmount(mnt_id: int, *, lazy_fallback: bool = False, force: bool = False) -> None:
    """Unmount the mount with that unique id wherever it is; nothing, if it is gone already.

    What was put on top of it or in its place is not unmounted: the kernel marks the mount that is
    to expire, and unmounts only what it has marked; in between, the mount is looked at by its id.
    With *force*, and beside a process that uses ``MNT_EXPIRE`` on the same mount points, there is a
    moment in which that can fail.

    Raises :exc:`OSError` as :func:`umount` does.
    """
    with _alone_with(mnt_id):
        for attempt in range(_MARKS):
            point = _mount_point(mnt_id)
            if point is None:
                return None
            try:
                if _unmount_at(point, mnt_id, force):
                    return None
            except OSError as error:
                if _mount_point(mnt_id) == point and not _is_renamed(error):
                    error.filename = point
                    return _detach_or_raise(error, mnt_id, lazy_fallback)
            if attempt > 4:
                time.sleep(0.001)
    why = "it is covered, or being used or moved all the time"
    raise _failed(errno.EBUSY, mnt_id, point, why)


def _mount_point(mnt_id: int) -> str | None:
    """Where the mount is; None if it is gone."""
    try:
        point = statmount(mnt_id, STATMOUNT_MNT_POINT).mnt_point
    except FileNotFoundError:
        return None
    if point is None:
        why = "it cannot be reached from this process's root"
        raise _failed(errno.ENOENT, mnt_id, None, why)
    return point


def _is_renamed(error: OSError) -> bool:
    # Or hidden by a mount above it.
    return error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


def _unmount_at(point: str, mnt_id: int, force: bool) -> bool:
    """Unmount the mount if it is found at *point*; False if it has been used or moved meanwhile."""
    with _parent_of(point, mnt_id) as (parent, name):
        path = _path_of(parent, name) or point
        if force and point != "/":  # to unmount the root by force would make it read-only
            umount2(path, UMOUNT_NOFOLLOW | MNT_FORCE)  # MNT_EXPIRE does not go with it
            return True
        if _expire(path):
            return True
        return _mount_point(mnt_id) == point and not listmount(mnt_id) and _expire(path)


def _expire(path: str) -> bool:
    try:
        umount2(path, MNT_EXPIRE | UMOUNT_NOFOLLOW)
    except BlockingIOError:  # it was not marked; it is now
        return False
    return True


def detach(mnt_id: int, *, force: bool = False) -> None:
    """Detach the mount with that unique id and all below it; nothing, if it is gone already.

    No server is asked. With *force*, what waits for one fails.
    """
    point = _mount_point(mnt_id)
    if point is None:
        return
    flags = MNT_DETACH | (MNT_FORCE if force else 0)
    with open_long(point) as root:
        _check_id(statx(root, "", AT_EMPTY_PATH | _LOOK, STATX_MNT_ID_UNIQUE), mnt_id, point)
        path = _path_of(root)  # the kernel goes from there to what is on top
        umount2(path or point, flags if path else flags | UMOUNT_NOFOLLOW)
    if _mount_point(mnt_id) is not None:
        raise _failed(errno.EBUSY, mnt_id, point, "another came on top of it, and went instead")


@contextlib.contextmanager
def _parent_of(point: str, mnt_id: int) -> Iterator[tuple[Fd, str]]:
    """The directory that holds a mount point, and its name. EBUSY if another mount is there."""
    directory, _, name = point.rpartition("/")
    name = name or "."
    with open_long(directory) as parent:
        _check_id(statx(parent, name, _LOOK, STATX_MNT_ID_UNIQUE), mnt_id, point)
        yield parent, name


def _check_id(found: StatxResult, mnt_id: int, point: str) -> None:
    if found.stx_mnt_id != mnt_id:
        raise _failed(errno.EBUSY, mnt_id, point, f"mount {found.stx_mnt_id} covers it")


def _path_of(fd: Fd, *names: str) -> str | None:
    """A path that begins at a descriptor; None where there is no /proc."""
    path = f"/proc/self/fd/{fd}"
    return "/".join((path, *names)) if os.path.lexists(path) else None


@contextlib.contextmanager
def _alone_with(mnt_id: int) -> Iterator[None]:
    """Of several threads that unmount the same mount, let one at a time do so.

    What one of them has marked is not to be what another unmounts, once the mount itself is gone.
    """
    with _guard:
        turn = _turns.setdefault(mnt_id, _Turn())
        turn.takers += 1
    try:
        with turn.lock:
            yield
    finally:
        with _guard:
            turn.takers -= 1
            if not turn.takers:
                _turns.pop(mnt_id, None)


class _Turn:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.takers = 0


_guard = threading.Lock()
_turns: dict[int, _Turn] = {}


def _start_afresh() -> None:
    # In a forked child, the threads that held these do not exist.
    global _guard, _turns
    _guard = threading.Lock()
    _turns = {}


os.register_at_fork(after_in_child=_start_afresh)


def unmount_patiently(mnt_ids: Sequence[int]) -> None:
    """Unmount what a block has mounted, these and no others; the first is above all others.

    A call that was cancelled in the block may use a mount for a moment still, and what failed for
    want of memory or descriptors may succeed: the error is final when it stays for half a second.
    """
    deadline = None
    delay = 0.001
    while error := _unmount_all(mnt_ids):
        # What failed may have waited for a server before it did.
        deadline = deadline or time.monotonic() + _PATIENCE
        if error.errno == errno.EINVAL and set(listmount(mnt_ids[0])) <= set(mnt_ids):
            # Locked by a user namespace: they go together or not at all.
            detach(mnt_ids[0])
            return
        if time.monotonic() >= deadline:
            raise error
        time.sleep(delay)
        delay = min(2 * delay, 0.05)


def _unmount_all(mnt_ids: Sequence[int]) -> OSError | None:
    """Unmount all that can be unmounted; the result is the first error."""
    first = None
    try:
        for mnt_id in _children_first(mnt_ids):
            try:
                unmount(mnt_id)
            except OSError as error:
                first = first or error
    except OSError as error:
        first = first or error
    return first


def _children_first(mnt_ids: Sequence[int]) -> Sequence[int]:
    if len(mnt_ids) < 2:
        return mnt_ids
    ours = frozenset(mnt_ids)
    order = [mount.mnt_id or 0 for mount in mount_tree(mask=0).depth_first()]
    return [mnt_id for mnt_id in reversed(order) if mnt_id in ours]


def _failed(code: int, mnt_id: int, point: str | None, why: str) -> OSError:
    error = OSError(code, os.strerror(code), point)
    error.add_note(f"mount {mnt_id} cannot be unmounted: {why}")
    return error
