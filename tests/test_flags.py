# SPDX-License-Identifier: LGPL-3.0-or-later
"""The constants, against the C headers of the system as far as those know them."""

import enum
import os
import subprocess

import pytest

import truenas_os
from truenas_os import blocking
from truenas_os.blocking import flags

HEADERS = """
#include <stdio.h>
#include <linux/fcntl.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <linux/stat.h>
#include <linux/fs.h>
#include <linux/xattr.h>
"""
VALUES = [
    name
    for name in flags.__all__
    if isinstance(getattr(flags, name), int) and not isinstance(getattr(flags, name), type)
]


@pytest.fixture(scope="module")
def known_to_the_headers(tmp_path_factory):
    directory = tmp_path_factory.mktemp("headers")
    lines = [
        f'#ifdef {n}\nprintf("{n} %llu\\n", (unsigned long long)({n}));\n#endif' for n in VALUES
    ]
    # Values that are enumerators cannot be seen by #ifdef.
    enums = [n for n in VALUES if n.startswith("FSCONFIG_") and n != "FSCONFIG_CMD_CREATE_EXCL"]
    lines += [f'printf("{n} %llu\\n", (unsigned long long)({n}));' for n in enums]
    source = directory / "constants.c"
    source.write_text(HEADERS + "int main(void) {\n" + "\n".join(lines) + "\nreturn 0; }\n")
    subprocess.run(["gcc", "-o", directory / "constants", source], check=True)
    printed = subprocess.run([directory / "constants"], check=True, capture_output=True, text=True)
    return {name: int(value) for name, value in map(str.split, printed.stdout.splitlines())}


def test_constants_are_those_of_the_headers(known_to_the_headers):
    # Even headers of Linux 6.1 know most of them.
    assert len(known_to_the_headers) > 100
    for name, value in known_to_the_headers.items():
        if name == "MOVE_MOUNT__MASK":
            assert value & ~flags.MOVE_MOUNT__MASK == 0  # it grows with the kernel
            continue
        if name == "MS_NOUSER":
            value %= 1 << 32  # 1 << 31, which in C is negative
        assert getattr(flags, name) % (1 << 64) == value, name


@pytest.mark.parametrize(
    ("name", "value"),
    # Linux 6.18, newer than the headers of a distribution: from the kernel's own tests and manuals.
    list(
        {
            "STATMOUNT_SB_BASIC": 0x1,
            "STATMOUNT_MNT_BASIC": 0x2,
            "STATMOUNT_PROPAGATE_FROM": 0x4,
            "STATMOUNT_MNT_ROOT": 0x8,
            "STATMOUNT_MNT_POINT": 0x10,
            "STATMOUNT_FS_TYPE": 0x20,
            "STATMOUNT_MNT_NS_ID": 0x40,
            "STATMOUNT_MNT_OPTS": 0x80,
            "STATMOUNT_FS_SUBTYPE": 0x100,
            "STATMOUNT_SB_SOURCE": 0x200,
            "STATMOUNT_OPT_ARRAY": 0x400,
            "STATMOUNT_OPT_SEC_ARRAY": 0x800,
            "STATMOUNT_SUPPORTED_MASK": 0x1000,
            "STATMOUNT_MNT_UIDMAP": 0x2000,
            "STATMOUNT_MNT_GIDMAP": 0x4000,
            "LSMT_ROOT": 0xFFFFFFFFFFFFFFFF,
            "LISTMOUNT_REVERSE": 1,
            "STATX_MNT_ID_UNIQUE": 0x4000,
            "STATX_SUBVOL": 0x8000,
            "STATX_WRITE_ATOMIC": 0x10000,
            "STATX_DIO_READ_ALIGN": 0x20000,
            "STATX_ATTR_WRITE_ATOMIC": 0x400000,
            "AT_HANDLE_MNT_ID_UNIQUE": 0x1,
            "AT_HANDLE_CONNECTABLE": 0x2,
            "AT_HANDLE_FID": 0x200,
            "AT_EXECVE_CHECK": 0x10000,
            "FH_AT_SYMLINK_FOLLOW": 0x400,
            "FH_AT_EMPTY_PATH": 0x1000,
            "FH_AT_HANDLE_FID": 0x200,
            "FH_AT_HANDLE_CONNECTABLE": 0x2,
            "MOVE_MOUNT_BENEATH": 0x200,
            "MOVE_MOUNT__MASK": 0x377,
            "FSCONFIG_CMD_CREATE_EXCL": 8,
            "XATTR_CREATE": 1,
            "XATTR_REPLACE": 2,
            "FS_XFLAG_IMMUTABLE": 0x8,
            "FS_XFLAG_COWEXTSIZE": 0x10000,
            "FS_XFLAG_HASATTR": 0x80000000,
        }.items()
    ),
)
def test_constants_newer_than_the_headers(name, value):
    assert getattr(truenas_os, name) == value


def test_every_member_stands_at_module_level_under_the_kernels_name():
    containers = [
        value
        for name in flags.__all__
        if isinstance(value := getattr(flags, name), type) and issubclass(value, enum.Enum)
    ]
    members = {member for container in containers for member in container}
    assert members <= {getattr(flags, name) for name in VALUES}
    assert len(containers) >= 19
    for name in flags.__all__:
        assert getattr(truenas_os, name) is getattr(blocking, name) is getattr(flags, name)


def test_the_inverse_of_nothing_is_every_field_the_kernel_supports():
    mount = blocking.statmount(blocking.listmount()[0], ~blocking.StatmountMask(0))
    assert mount.supported_mask is not None
    assert int(~blocking.StatmountMask(0)) & mount.supported_mask == mount.supported_mask


def test_python_agrees_where_it_has_the_constant():
    assert blocking.OPEN_TREE_CLOEXEC == os.O_CLOEXEC
    for name in VALUES:
        if hasattr(os, name):
            assert getattr(os, name) == getattr(blocking, name)
