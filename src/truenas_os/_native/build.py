# SPDX-License-Identifier: LGPL-3.0-or-later
"""Builds ``truenas_os._native._lib`` (cffi, API mode): a ``.c`` and a ``.cdef.h`` a topic."""

from pathlib import Path

from cffi import FFI

TOPICS = (
    "sys",
    "files",
    "filehandle",
    "mounts",
    "mountapi",
    "loop",
    "children",
    "userns",
    "events",
    "safefiles",
    "xattrs",
    "attributes",
    "access",
    "walker",
    "fuse",
)
# What has no face of its own: the walker's parts.
PARTS = ("walk_entries", "walk_frames", "walk_producer")
# The system calls made, whose numbers the tests use to make them fail.
SYSCALLS = (
    "clone3",
    "close",
    "close_range",
    "faccessat2",
    "eventfd2",
    "fanotify_init",
    "fanotify_mark",
    "fchmod",
    "fchown",
    "fcntl",
    "fgetxattr",
    "file_getattr",
    "file_setattr",
    "flock",
    "fsconfig",
    "fsmount",
    "fsopen",
    "fsetxattr",
    "fspick",
    "fsync",
    "getdents64",
    "getxattr",
    "getxattrat",
    "ioctl",
    "linkat",
    "listmount",
    "listxattr",
    "listxattrat",
    "lseek",
    "mount_setattr",
    "move_mount",
    "name_to_handle_at",
    "open_by_handle_at",
    "open_tree",
    "open_tree_attr",
    "openat2",
    "pidfd_send_signal",
    "read",
    "removexattr",
    "removexattrat",
    "renameat2",
    "setxattr",
    "setxattrat",
    "statmount",
    "statx",
    "syncfs",
    "umount2",
    "unlinkat",
    "waitid",
)

here = Path(__file__).parent
# setuptools wants the sources relative to the project's root, which is where it runs.
sources = Path("src", "truenas_os", "_native")

ffibuilder = FFI()
for topic in TOPICS:
    ffibuilder.cdef((here / f"{topic}.cdef.h").read_text())
ffibuilder.cdef("\n".join(f"#define TOS_SYS_{name} ..." for name in SYSCALLS))
ffibuilder.set_source(
    "truenas_os._native._lib",
    '#include "uapi.h"\n' + "\n".join(f'#include "{topic}.cdef.h"' for topic in TOPICS),
    sources=[str(sources / f"{topic}.c") for topic in TOPICS + PARTS],
    depends=[str(path) for path in sources.glob("*.h")],
    include_dirs=[str(sources)],
    extra_compile_args=["-std=gnu11", "-Wall", "-Wextra", "-pthread"],
)
