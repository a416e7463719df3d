# SPDX-License-Identifier: LGPL-3.0-or-later
"""A program that detaches a mount once the process that served it has died. See :mod:`.guarding`.

``guard.py MNT_ID PIDFD [HELPER]``, with a pipe as standard input: a "0" from it says that there is
nothing to detach any more; its end, that there is. So does the end of the process (or thread)
behind the descriptor PIDFD once a "1" has said that it serves: before that, a child which has the
pipe may serve in its place. It starts quickly and stays small, so it imports none of this library.
"""

import ctypes
import os
import select
import signal
import struct
import sys

_MNT_FORCE, _MNT_DETACH, _UMOUNT_NOFOLLOW = 1, 2, 8
_AT_EMPTY_PATH, _AT_NO_AUTOMOUNT, _AT_STATX_DONT_SYNC = 0x1000, 0x800, 0x4000
_STATX_MNT_ID_UNIQUE, _STATX_ATTR_MOUNT_ROOT = 0x4000, 0x2000
_STATMOUNT, _STATMOUNT_MNT_POINT = 457, 0x10
# Where struct statmount has the offset of the mount point, and where its texts begin.
_MNT_POINT_AT, _TEXTS_AT = 108, 512
# Where struct statx has the attributes, and the id of the mount.
_ATTRIBUTES_AT, _MNT_ID_AT = 8, 144
_LARGEST = 1 << 20
# Milliseconds until what could not be detached is looked at again.
_INTERVAL = 1000

_libc = ctypes.CDLL(None, use_errno=True)


def mount_point(mnt_id: int) -> bytes:
    """Where the mount with that unique id is. Raises OSError if it is gone."""
    request = struct.pack("=IIQQ", 24, 0, mnt_id, _STATMOUNT_MNT_POINT)
    size = 8192
    while True:
        answer = ctypes.create_string_buffer(size)
        if _libc.syscall(_STATMOUNT, request, answer, ctypes.c_size_t(size), 0) == 0:
            break
        if ctypes.get_errno() != 75 or size >= _LARGEST:  # EOVERFLOW
            raise _error()
        size *= 4
    (offset,) = struct.unpack_from("=I", answer, _MNT_POINT_AT)
    text = answer.raw[_TEXTS_AT + offset :]
    return text[: text.index(b"\0")]


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


def is_root_of(fd: int, mnt_id: int) -> bool:
    """Whether a descriptor is of the root of that mount; its server is not asked."""
    answer = ctypes.create_string_buffer(256)
    flags = _AT_EMPTY_PATH | _AT_NO_AUTOMOUNT | _AT_STATX_DONT_SYNC
    if _libc.statx(fd, b"", flags, _STATX_MNT_ID_UNIQUE, answer):
        raise _error()
    (attributes,) = struct.unpack_from("=Q", answer, _ATTRIBUTES_AT)
    (found,) = struct.unpack_from("=Q", answer, _MNT_ID_AT)
    return found == mnt_id and bool(attributes & _STATX_ATTR_MOUNT_ROOT)


def enter(directory: bytes) -> None:
    """Change to an absolute directory of any depth, following no symlink."""
    os.chdir("/")
    for name in filter(None, directory.split(b"/")):
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_DIRECTORY)
        os.fchdir(fd)
        os.close(fd)


def detach(mnt_id: int, helper: str | None) -> bool:
    """Detach the mount if it is found where it is said to be; False if something covers it.

    Between the look and what follows there are microseconds in which something else may be mounted
    on it: the kernel has nothing that takes a mount's id instead of a path.
    """
    point = mount_point(mnt_id)
    directory, _, name = point.rpartition(b"/")
    try:
        enter(directory)
        fd = os.open(name or b".", os.O_PATH | os.O_NOFOLLOW)
        try:
            if not is_root_of(fd, mnt_id):
                return False
        finally:
            os.close(fd)
        if helper is not None:
            os.execv(helper, [helper, "-u", "-q", "-z", "--", os.fsdecode(point)])
        # By force, so that what waits for an answer fails, even where a child of the server, which
        # does not serve, still has the connection open.
        if _libc.umount2(name or b".", _MNT_FORCE | _MNT_DETACH | _UMOUNT_NOFOLLOW):
            raise _error()
    finally:
        os.chdir("/")
    return True


def wait_for_the_end(pidfd: int) -> bool:
    """Wait; True if the server has died, False if all is well."""
    poll = select.poll()
    poll.register(0, select.POLLIN)
    poll.register(pidfd, select.POLLIN)
    serves = False
    while True:
        ready = [fd for fd, _ in poll.poll()]
        if 0 in ready:
            said = os.read(0, 1)
            if said != b"1":
                return not said
            serves = True
        elif not serves:
            poll.unregister(pidfd)
        else:
            # What it may have said before it died.
            os.set_blocking(0, False)
            try:
                return not os.read(0, 1)
            except BlockingIOError:  # a child of the server has the other end
                return True


def persist(mnt_id: int, helper: str | None) -> None:
    """Detach the mount, as soon as nothing covers it and its path can be walked."""
    mounts = os.open("/proc/self/mountinfo", os.O_RDONLY)
    poll = select.poll()
    poll.register(mounts, select.POLLPRI)
    while True:
        try:
            mount_point(mnt_id)
        except OSError:
            return  # it is gone
        try:
            if detach(mnt_id, helper):
                return
        except PermissionError:
            return
        except OSError as error:
            if error.errno == 22:  # EINVAL: it is locked, or not below this process's root
                return
        poll.poll(_INTERVAL)


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    mnt_id, pidfd = int(sys.argv[1]), int(sys.argv[2])
    if wait_for_the_end(pidfd):
        persist(mnt_id, sys.argv[3] if len(sys.argv) > 3 else None)


if __name__ == "__main__":
    try:
        main()
    finally:
        os._exit(0)  # nothing is left to be told to anybody
