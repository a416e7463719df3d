# SPDX-License-Identifier: LGPL-3.0-or-later
"""Mounting a FUSE filesystem and taking it down again: what blocks, for worker threads.

No libfuse: this library's own mount API does it where the process may mount, as root or in a user
namespace of its own; else fusermount3, where that is installed.
"""

import array
import contextlib
import errno
import logging
import os
import shutil
import socket
import stat
import subprocess
import time
from typing import Final

from ..blocking.arguments import StrOrBytesPath
from ..blocking.fds import Fd
from ..blocking.files import openat2, statx
from ..blocking.flags import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_NO_AUTOMOUNT,
    AT_STATX_DONT_SYNC,
    AT_SYMLINK_NOFOLLOW,
    FSCONFIG_CMD_CREATE,
    FSCONFIG_SET_FLAG,
    FSCONFIG_SET_STRING,
    STATX_MNT_ID_UNIQUE,
    MountAttr,
)
from ..blocking.mountapi import attach, fsconfig, fsmount, fsopen
from ..blocking.mounts import statmount
from ..blocking.unmounting import detach, unmount
from .forks import own
from .guarding import Guard
from .options import MountOptions

_log = logging.getLogger("truenas_os.fuse")

DEVICE: Final = "/dev/fuse"
_HELPER: Final = "fusermount3"
# To ask the server, which may not serve, would hang.
_LOOK: Final = AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | AT_STATX_DONT_SYNC
# Seconds between attempts to unmount what is busy.
_DELAY: Final = 0.05


class FuseMount:
    """A connection, and the mount that it is to be served at."""

    def __init__(
        self, device: Fd, target: str, root_mode: int, tree: Fd | None, helper: str | None
    ) -> None:
        self.device: Fd = device
        """/dev/fuse, non-blocking."""
        self.root_mode: int = root_mode
        """The type of the mount's root, in the bits of a mode."""
        self.target: str = target
        """The absolute path of the mount point."""
        self.mnt_id: int = 0
        """The unique id of the mount."""
        self.heritable: bool = False
        """Whether a forked child may serve it: it is mounted, and nobody serves it yet."""
        self._tree = tree
        self._helper = helper
        self._connection = 0
        self._device_number = ""
        self._guard: Guard | None = None
        self._closed = False
        self.attached: bool = tree is None
        """Whether it may be visible somewhere."""
        own(self)

    def look_at(self, root: Fd) -> None:
        """Take note of what mount it is, and have it guarded."""
        found = statx(root, "", AT_EMPTY_PATH | _LOOK, STATX_MNT_ID_UNIQUE)
        self.mnt_id = found.stx_mnt_id
        self._connection = found.stx_dev_minor
        self._device_number = f"{found.stx_dev_major}:{found.stx_dev_minor}"
        self._guard = Guard(found.stx_mnt_id, self._helper)

    def set_read_ahead(self, kilobytes: int) -> None:
        """Set how much the kernel reads ahead; INIT can only make it less than it is."""
        try:
            with open(f"/sys/class/bdi/{self._device_number}/read_ahead_kb", "w") as setting:
                setting.write(str(kilobytes))
        except OSError as error:
            _log.warning("the readahead of %s stays as it is: %s", self.target, error)

    def attach(self) -> None:
        """Make the mount visible. Requests may come from now on."""
        tree, self._tree = self._tree, None
        if tree is not None:
            with tree:
                self.attached = True
                attach(tree, self.target)
            if self._closed:  # whoever wanted it has not waited
                self.detach()

    def close(self, leave: bool = False) -> None:
        """Close the device, which ends the connection, and a mount that was not attached.

        One that is still there is left to the guard to detach, unless *leave*.
        """
        self._closed = True
        tree, self._tree = self._tree, None
        if tree is not None:
            tree.close()
        try:
            self.device.close()
        finally:
            if self._guard is not None:
                self._guard.dismiss(leave)

    def hang_up(self) -> None:
        """Close the device without waiting for anything, if it is not closed."""
        if not self.device.closed:
            os.close(self.device.detach())

    def drop(self) -> None:
        """As :meth:`close`, without waiting for anything."""
        self.hang_up()
        if self._guard is not None:
            self._guard.act()

    def begin(self) -> None:
        """This process serves from now on: no child may, and none keeps the mount after its end."""
        self.heritable = False
        if self._guard is not None:
            self._guard.watch_server()

    def inherit(self) -> None:
        """Be watched over as the mount of this process, a forked child."""
        of_parent, self._guard = self._guard, Guard(self.mnt_id, self._helper)
        if of_parent is not None:
            of_parent.dismiss(leave=True)

    def renounce(self) -> None:
        """Leave it to the parent, in a forked child."""
        self.heritable = False
        self.disown()

    def disown(self) -> None:
        """Be of no further use, in a forked child, unless that may serve it."""
        if self.heritable:
            return
        self.hang_up()
        if self._guard is not None:
            self._guard.disown()
        if self._tree is not None and not self._tree.closed:
            os.close(self._tree.detach())
        self._tree = None

    def is_mounted(self) -> bool:
        """Whether the mount is still there."""
        try:
            statmount(self.mnt_id, 0)
        except FileNotFoundError:
            return False
        return True

    def unmount(self, patience: float) -> None:
        """Unmount, which has the server flush what is dirty; try again for *patience* seconds.

        Raises :exc:`OSError` if it cannot be done.
        """
        deadline = time.monotonic() + patience
        while True:
            try:
                return self._unmount()
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() >= deadline:
                    raise
            time.sleep(_DELAY)

    def _unmount(self) -> None:
        if self._helper is None:
            return unmount(self.mnt_id)
        return self._help_to_unmount(self._helper)

    def _help_to_unmount(self, helper: str, *how: str) -> None:
        # It is told a path: what is there must be this mount.
        if not self.is_mounted():
            return
        try:
            found = statx(AT_FDCWD, self.target, _LOOK, STATX_MNT_ID_UNIQUE)
        except FileNotFoundError:
            return
        if found.stx_mnt_id != self.mnt_id:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), self.target)
        _run_helper(helper, "-u", "-q", *how, "--", self.target)

    def abort(self) -> None:
        """End the connection, and detach the mount: whatever waits for the server fails."""
        with contextlib.suppress(OSError):
            _abort(self._connection)
        self.take_away()

    def take_away(self) -> None:
        """As :meth:`detach`; what goes wrong is logged, and the guard goes on trying."""
        try:
            self.detach()
        except OSError as error:
            _log.warning("%s is still mounted: %s", self.target, error)

    def detach(self) -> None:
        """Take the mount out of sight, if it is still where it was attached."""
        if self._helper is not None:
            return self._help_to_unmount(self._helper, "-z")
        return detach(self.mnt_id, force=True)


def open_mount(target: StrOrBytesPath, options: MountOptions) -> FuseMount:
    """A connection to be served, with a mount that waits to be attached at *target*.

    Raises :exc:`OSError`: what opening *target* and /dev/fuse raises, and as :func:`fsopen`,
    :func:`fsconfig` and :func:`fsmount`; EPERM where the process must not mount and fusermount3 is
    not installed.
    """
    path = os.path.realpath(os.fsdecode(target), strict=True)
    root_mode = stat.S_IFMT(os.stat(path).st_mode)
    with contextlib.ExitStack() as undo:
        device = Fd(os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
        undo.callback(device.close)
        try:
            tree = _new_mount(device, root_mode, options)
        except PermissionError as error:
            helper = shutil.which(_HELPER)
            if helper is None:
                error.add_note(f"{_HELPER}, which may mount for ordinary users, is not installed")
                raise
            return _mount_with(helper, path, root_mode, options)
        undo.callback(tree.close)
        mount = FuseMount(device, path, root_mode, tree, None)
        mount.look_at(tree)
        undo.pop_all()
        return mount


def _new_mount(device: Fd, root_mode: int, options: MountOptions) -> Fd:
    settings: dict[str, str | bool] = {
        "source": options.fsname or options.subtype or "fuse",
        "fd": str(int(device)),
        "rootmode": f"{root_mode:o}",
        "user_id": str(os.geteuid()),
        "group_id": str(os.getegid()),
    }
    if options.subtype:
        settings["subtype"] = options.subtype
    with fsopen(fs_name="fuseblk" if options.blkdev else "fuse") as context:
        for key, value in (settings | options.settings).items():
            if value is True:
                fsconfig(fs_fd=context, cmd=FSCONFIG_SET_FLAG, key=key)
            else:
                fsconfig(fs_fd=context, cmd=FSCONFIG_SET_STRING, key=key, value=str(value))
        fsconfig(fs_fd=context, cmd=FSCONFIG_CMD_CREATE)
        # As mount(8) has it, where ro is of the filesystem and of its mount.
        read_only = MountAttr.RDONLY if "ro" in options.settings else MountAttr(0)
        return fsmount(fs_fd=context, attr_flags=options.attributes | read_only)


def _mount_with(helper: str, path: str, root_mode: int, options: MountOptions) -> FuseMount:
    """Have fusermount3 mount, which sends back the descriptor that it has opened."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours:
        with theirs:
            arguments = [helper, "-o", ",".join(options.texts()), "--", path]
            process = subprocess.Popen(
                arguments,
                env=os.environ | {"_FUSE_COMMFD": str(theirs.fileno())},
                pass_fds=[theirs.fileno()],
                stderr=subprocess.PIPE,
            )
        size = array.array("i").itemsize
        _, ancillary, _, _ = ours.recvmsg(1, socket.CMSG_SPACE(size))
        _, complaint = process.communicate()
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            device = Fd(array.array("i", content[:size])[0])
            os.set_inheritable(device, False)
            os.set_blocking(device, False)
            mount = FuseMount(device, path, root_mode, None, helper)
            try:
                with Fd(os.open(path, os.O_PATH | os.O_CLOEXEC)) as root:
                    mount.look_at(root)
            except BaseException:
                mount.close()
                _run_helper(helper, "-u", "-q", "-z", "--", path)
                raise
            return mount
    error = PermissionError(errno.EPERM, os.strerror(errno.EPERM), path)
    error.add_note(complaint.decode(errors="replace").strip() or f"{helper} has failed")
    raise error


def _abort(connection: int) -> None:
    """End a connection: whatever waits for its server fails."""
    name = f"{connection}/abort"
    try:
        control = Fd(os.open(f"/sys/fs/fuse/connections/{name}", os.O_WRONLY | os.O_CLOEXEC))
    except FileNotFoundError:
        # Nobody has mounted it; it need not be visible to be used.
        with fsopen(fs_name="fusectl") as context:
            fsconfig(fs_fd=context, cmd=FSCONFIG_CMD_CREATE)
            with fsmount(fs_fd=context) as root:
                control = openat2(root, name, os.O_WRONLY)
    with control:
        os.write(control, b"1")


def _run_helper(helper: str, *arguments: str) -> None:
    done = subprocess.run([helper, *arguments], capture_output=True, check=False)
    if done.returncode:
        error = OSError(errno.EBUSY, os.strerror(errno.EBUSY), arguments[-1])
        error.add_note(done.stderr.decode(errors="replace").strip() or f"{helper} has failed")
        raise error
