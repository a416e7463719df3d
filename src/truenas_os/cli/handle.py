# SPDX-License-Identifier: LGPL-3.0-or-later
"""``handle``: names of files that outlive renames and reboots."""

import argparse
import contextlib
import errno
import os
import struct
import sys
from functools import partial
from typing import Any, Final

from .. import blocking
from ..blocking import (
    AT_FDCWD,
    FH_AT_HANDLE_CONNECTABLE,
    AtFlag,
    Fd,
    StatxMask,
    StatxResult,
    fhandle,
)
from .output import encoding_of, escaped, write, write_json

_DESCRIPTION = """\
Print the file handle of PATH: the id of its mount, and the handle in
hexadecimal. With --open, print the path of the file that a handle leads to,
also if it was renamed meanwhile.
"""
_EPILOG = """\
A handle is good for as long as the file exists, a mount's id until it is
unmounted. MOUNT is such an id, or any directory of the mounted filesystem. To
open a handle takes root (CAP_DAC_READ_SEARCH).

JSON is one object: mnt_id, handle, type (of the handle) and path.

examples:
  truenas-os handle /srv/data/report
  truenas-os handle --open $(truenas-os handle /srv/data/report)
  truenas-os handle --open /srv 0c00000001000000a1b2c3d4e5f60718293a4b5c
"""

_TYPE: Final = struct.Struct("=4xi")
_IDENTITY: Final = StatxMask.INO | StatxMask.MNT_ID_UNIQUE


def register(commands: "argparse._SubParsersAction[Any]") -> None:
    parser = commands.add_parser(
        "handle",
        help="make and open file handles",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", metavar="PATH", nargs="?", help="a final symlink is not followed")
    parser.add_argument(
        "--open", dest="opened", nargs=2, metavar=("MOUNT", "HANDLE"), help="print its path"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=partial(_run, parser))


def _run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    if (arguments.path is None) == (arguments.opened is None):
        parser.error("either PATH or --open is needed")
    if arguments.opened is None:
        path, handle = arguments.path, _handle_of(arguments.path)
        mnt_id, content = handle.mount_id, bytes(handle)
        line = f"{'-' if mnt_id is None else mnt_id} {content.hex()}"
    else:
        mount, text = arguments.opened
        try:
            content = bytes.fromhex(text)
            handle = fhandle(handle_bytes=content)
        except ValueError as error:
            parser.error(f"{text!r} is no file handle: {error}")
        try:
            fd = _open_mount(mount)
        except ValueError:
            parser.error(f"{mount} is no mount id")
        with fd:
            path, mnt_id = _found(handle, fd, text)
        line = escaped(path, encoding_of(sys.stdout))
    if arguments.json:
        (kind,) = _TYPE.unpack_from(content)
        write_json({"mnt_id": mnt_id, "handle": content.hex(), "type": kind, "path": path})
    else:
        write(line + "\n")


def _handle_of(path: str) -> fhandle:
    try:
        # From this one the kernel finds the way back to a path, whatever it still has in memory.
        return fhandle(path, flags=FH_AT_HANDLE_CONNECTABLE)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
        return fhandle(path)


def _open_mount(mount: str) -> Fd:
    if mount.isascii() and mount.isdigit():
        return blocking.open_mount_by_id(int(mount))
    return blocking.openat2(AT_FDCWD, mount, os.O_RDONLY | os.O_DIRECTORY)


def _found(handle: fhandle, mount_fd: Fd, text: str) -> tuple[str, int]:
    """The path that leads to a handle's file, and the id of the mount."""
    with handle.open(mount_fd, os.O_PATH) as fd:
        wanted = blocking.statx(fd, "", AtFlag.EMPTY_PATH, _IDENTITY)
        path = os.readlink(f"/proc/self/fd/{fd}")
    flags = AtFlag.SYMLINK_NOFOLLOW | AtFlag.NO_AUTOMOUNT
    with contextlib.suppress(OSError):
        if _identity(blocking.statx(AT_FDCWD, path, flags, _IDENTITY)) == _identity(wanted):
            return path, wanted.stx_mnt_id
    # Something is in front of it, or the path is outside of this mount, or it has no name left.
    error = OSError(errno.ENOENT, os.strerror(errno.ENOENT), text)
    error.add_note("the file exists, but no path leads to it here")
    raise error


def _identity(found: StatxResult) -> tuple[int, int, int]:
    return found.stx_mnt_id, found.stx_dev, found.stx_ino
