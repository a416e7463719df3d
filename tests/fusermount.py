#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-3.0-or-later
"""A stand-in for fusermount3 in the tests: what it says to the server, without being setuid.

Every call is noted in the file that ``FUSERMOUNT_CALLS`` names.
"""

import argparse
import ctypes
import json
import os
import socket
import sys

MS_NOSUID, MS_NODEV, MNT_DETACH, UMOUNT_NOFOLLOW = 2, 4, 2, 8


def call(function, *args):
    if function(*args) < 0:
        number = ctypes.get_errno()
        sys.exit(f"fusermount3: {os.strerror(number)}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("-o", default="")
    for flag in "uzq":
        parser.add_argument(f"-{flag}", action="store_true")
    parser.add_argument("point")
    options = parser.parse_args()
    with open(os.environ["FUSERMOUNT_CALLS"], "a") as calls:
        calls.write(json.dumps(sys.argv[1:]) + "\n")
    libc = ctypes.CDLL(None, use_errno=True)
    point = os.fsencode(os.path.abspath(options.point))
    if options.u:
        call(libc.umount2, point, UMOUNT_NOFOLLOW | (MNT_DETACH if options.z else 0))
        return
    if "refuse" in options.o:
        sys.exit("fusermount3: mount failed: Operation not permitted")
    device = os.open("/dev/fuse", os.O_RDWR)
    mode = os.stat(point).st_mode & 0o170000
    names = [o for o in options.o.split(",") if o in ("default_permissions", "allow_other")]
    data = [f"fd={device},rootmode={mode:o},user_id={os.getuid()},group_id={os.getgid()}", *names]
    call(libc.mount, b"fuse", point, b"fuse", MS_NOSUID | MS_NODEV, ",".join(data).encode())
    with socket.socket(fileno=int(os.environ["_FUSE_COMMFD"])) as channel:
        socket.send_fds(channel, [b"\0"], [device])


main()
