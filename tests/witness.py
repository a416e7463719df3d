# SPDX-License-Identifier: LGPL-3.0-or-later
"""Mounts made and looked at without the library."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import kernel

from truenas_os import blocking

ALL = 0x7FFF
SB_BASIC, MNT_BASIC, PROPAGATE_FROM, MNT_ROOT, MNT_POINT, FS_TYPE, MNT_NS_ID, MNT_OPTS = (
    1 << n for n in range(8)
)
FS_SUBTYPE, SB_SOURCE, OPT_ARRAY, OPT_SEC_ARRAY, SUPPORTED_MASK, MNT_UIDMAP, MNT_GIDMAP = (
    1 << n for n in range(8, 15)
)
# From the kernel's include/uapi/linux/mount.h, not from the library.
FIELDS = {
    SB_BASIC: ["sb_dev_major", "sb_dev_minor", "sb_magic", "sb_flags"],
    MNT_BASIC: [
        *("mnt_id", "mnt_parent_id", "mnt_id_old", "mnt_parent_id_old"),
        *("mnt_attr", "mnt_propagation", "mnt_peer_group", "mnt_master"),
    ],
    PROPAGATE_FROM: ["propagate_from"],
    MNT_ROOT: ["mnt_root"],
    MNT_POINT: ["mnt_point"],
    FS_TYPE: ["fs_type"],
    MNT_NS_ID: ["mnt_ns_id"],
    MNT_OPTS: ["mnt_opts"],
    FS_SUBTYPE: ["fs_subtype"],
    SB_SOURCE: ["sb_source"],
    OPT_ARRAY: ["opt_array"],
    OPT_SEC_ARRAY: ["opt_sec_array"],
    SUPPORTED_MASK: ["supported_mask"],
    MNT_UIDMAP: ["mnt_uidmap"],
    MNT_GIDMAP: ["mnt_gidmap"],
}
# An id that no mount has.
UNKNOWN_ID = (1 << 63) + 5
NS_GET_MNTNS_ID = 0x8008B705
STRANGE = b"new\nline tab\tback\\slash \\040 hash# latin-1 \xe9\xff utf-8 \xc3\xa9"


def make(directory, name="m", *, source="tmpfs", flags=0, data=None):
    target = Path(directory, name)
    target.mkdir(exist_ok=True)
    kernel.mount(source, target, "tmpfs", flags, data)
    return target


def bind(source, target, flags=0):
    kernel.mount(source, target, None, kernel.MS_BIND | flags)
    if flags:
        # A bind mount takes its attributes only from a remount.
        kernel.mount(None, target, None, kernel.MS_REMOUNT | kernel.MS_BIND | flags)
    return target


def old_id_of(path):
    """The id in mountinfo of the mount that is on top at *path*."""
    return [m.id for m in kernel.mountinfo() if m.mount_point == os.fspath(path)][-1]


def id_of(path):
    """The unique id of the mount that *path* lies on, from the C library's statx."""
    buffer = (ctypes.c_uint64 * 32)()
    at_fdcwd, flags, mnt_id_unique = -100, 0x100, 0x4000
    if ctypes.CDLL(None).statx(at_fdcwd, os.fsencode(path), flags, mnt_id_unique, buffer):
        raise FileNotFoundError(path)
    return buffer[18]


def old_ids(ids):
    """From unique ids to those of mountinfo."""
    return [blocking.statmount(mnt_id, MNT_BASIC).mnt_id_old for mnt_id in ids]


def notes(error):
    return "\n".join(getattr(error, "__notes__", ()))


def fd_mount(fd):
    """The old id of the mount that a descriptor is on."""
    for line in Path(f"/proc/self/fdinfo/{int(fd)}").read_text().splitlines():
        if line.startswith("mnt_id:"):
            return int(line.split()[1])
    raise AssertionError("fdinfo has no mnt_id")


def in_python(script, **kwargs):
    """What a script prints that runs in a process of its own."""
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(
        [sys.executable, "-c", script], env=env, stdout=subprocess.PIPE, check=True, **kwargs
    )
    return done.stdout.decode()


def deep_mount(mount_dir, monkeypatch):
    """A mount whose mount point is longer than any path a system call takes."""
    monkeypatch.chdir(mount_dir)
    for _ in range(30):
        os.mkdir("d" * 200)
        os.chdir("d" * 200)
    kernel.mount("tmpfs", ".", "tmpfs")
    point = f"{mount_dir}{('/' + 'd' * 200) * 30}"
    line = next(m for m in kernel.mountinfo() if m.mount_point == point)
    (mnt_id,) = [i for i in blocking.listmount() if old_ids([i]) == [line.id]]
    return mnt_id, line
