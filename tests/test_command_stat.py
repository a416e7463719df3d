# SPDX-License-Identifier: LGPL-3.0-or-later
"""``python -m truenas_os stat``, against stat(1)."""

import fcntl
import json
import os
import re
import socket
import struct
import subprocess

import kernel
import pytest
from command_line import (
    environment,
    succeeded,
    tmpfs,
)

from truenas_os import blocking
from truenas_os.cli import main


def stat_lines(*arguments, **options):
    written = succeeded("stat", *arguments, **options).decode()
    pairs = (line.split(":", 1) for line in written.splitlines())
    return {key: value.strip() for key, value in pairs}


def iso(stat_time):
    """A time of stat(1) in ISO 8601."""
    return re.sub(r"(\S+) (\S+) ([+-]\d\d)(\d\d)", r"\1T\2\3:\4", stat_time)


@pytest.fixture
def files(mount_dir):
    (mount_dir / "regular").write_bytes(b"x" * 5000)
    (mount_dir / "regular").chmod(0o4751)
    os.link(mount_dir / "regular", mount_dir / "second name")
    (mount_dir / "directory").mkdir(0o1777)
    (mount_dir / "symlink").symlink_to("regular")
    (mount_dir / "dangling").symlink_to("nowhere")
    os.mkfifo(mount_dir / "fifo")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(mount_dir / "socket"))
    (mount_dir / "device").symlink_to("/dev/null")
    (mount_dir / "old").touch()
    os.utime(mount_dir / "old", ns=(-1, -1_500_000_001))
    (mount_dir / "late").touch()
    os.utime(mount_dir / "late", (10**14, 10**11))
    return mount_dir


@pytest.mark.parametrize("zone", ["UTC", "East-5:30", "West3:30"])
@pytest.mark.parametrize(
    "name",
    ["regular", "directory", "symlink", "dangling", "fifo", "socket", "old", "late", ".", "/"]
    + ["/dev/null", "/proc/self/mountinfo"],
)
def test_stat_agrees_with_stat(files, name, zone):
    path = files / name
    shown = stat_lines(path, env={"TZ": zone})
    formats = "%s %b %o %Hd:%Ld %i %h %04a|%A|%u|%U|%g|%G|%y|%z|%w|%F"
    theirs = subprocess.run(
        ["stat", "-c", formats.replace("|", "\n").replace(" ", "\n"), path],
        env=environment(TZ=zone),
        stdout=subprocess.PIPE,
        check=True,
    )
    size, blocks, blksize, device, inode, links, mode, rwx, uid, user, gid, group, *rest = (
        theirs.stdout.decode().splitlines()
    )
    modification, change, birth, kind = rest
    assert shown["size"] == f"{size} bytes"
    assert shown["blocks"] == f"{blocks} of 512 bytes"
    assert shown["block size"] == f"{blksize} bytes"
    assert shown["device"] == device
    assert shown["links"] == links
    assert shown["mode"] == f"{mode} {rwx}"
    assert shown["uid"] == (f"{uid} ({user})" if user != "UNKNOWN" else uid)
    assert shown["gid"] == (f"{gid} ({group})" if group != "UNKNOWN" else gid)
    assert shown["type"] == {
        "regular empty file": "regular file",
        "character special file": "character device",
    }.get(kind, kind)
    if not name.startswith("/proc"):  # where each look is at another inode
        assert shown["inode"] == inode
        assert shown["modification"] == iso(modification)
        assert shown["change"] == iso(change)
        assert shown["birth"] == iso(birth)


def test_stat_shows_the_link_and_where_it_leads(files):
    assert stat_lines(files / "dangling")["name"] == f"{files}/dangling -> nowhere"
    assert stat_lines(files / "dangling")["type"] == "symbolic link"
    assert stat_lines(files / "regular")["name"] == f"{files}/regular"


def test_stat_escapes_where_a_link_leads(mount_dir):
    os.symlink(b"to\n\x1b[31m\xff", os.fsencode(mount_dir) + b"/link")
    assert stat_lines(mount_dir / "link")["name"].endswith(r" -> to\x0a\x1b[31m\xff")


def test_stat_shows_the_numbers_of_a_device():
    shown = stat_lines("/dev/null")
    assert (shown["type"], shown["device type"]) == ("character device", "1:3")


def test_stat_shows_the_time_of_access(files):
    shown = stat_lines(files / "old", env={"TZ": "UTC"})
    assert shown["access"] == "1969-12-31T23:59:59.999999999+00:00"


def test_a_year_that_cannot_be_counted_is_shown_as_seconds(mount_dir, monkeypatch, capsys):
    real = blocking.statx
    monkeypatch.setattr(
        blocking, "statx", lambda *args: real(*args)._replace(stx_atime_sec=2**62, stx_atime_nsec=5)
    )
    assert main(["stat", str(mount_dir)]) == 0
    assert f"access:        @{2**62}.000000005\n" in capsys.readouterr().out


def test_what_the_file_system_does_not_tell_is_a_dash(mount_dir, monkeypatch, capsys):
    real = blocking.statx
    monkeypatch.setattr(blocking, "statx", lambda *args: real(*args)._replace(stx_mask=0))
    assert main(["stat", str(mount_dir)]) == 0
    shown = dict(re.findall(r"(.+?): +(.*)", capsys.readouterr().out))
    assert {key for key, value in shown.items() if value == "-"} == {
        "type", "size", "blocks", "inode", "links", "mode", "uid", "gid",
        "access", "modification", "change", "birth", "mount id",
    }  # fmt: skip


def test_stat_shows_an_owner_without_a_name_by_number(mount_dir, monkeypatch, capsys):
    real = blocking.statx
    nobody = 4_000_000_000
    monkeypatch.setattr(
        blocking, "statx", lambda *args: real(*args)._replace(stx_uid=nobody, stx_gid=nobody)
    )
    assert main(["stat", str(mount_dir)]) == 0
    shown = capsys.readouterr().out
    assert f"uid:           {nobody}\ngid:           {nobody}\n" in shown


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ((0x2000, 512, 4096, 0), "memory 512, offset 4096 bytes"),
        ((0x22000, 4, 4096, 512), "memory 4, offset 4096, read offset 512 bytes"),
        ((0x22000, 0, 0, 0), "not supported"),
        ((0, 512, 512, 512), None),
    ],
)
def test_stat_shows_the_alignment_of_direct_io(mount_dir, monkeypatch, capsys, values, shown):
    fields = ("stx_mask", "stx_dio_mem_align", "stx_dio_offset_align", "stx_dio_read_offset_align")
    real = blocking.statx
    changes = dict(zip(fields, values, strict=True))
    monkeypatch.setattr(blocking, "statx", lambda *args: real(*args)._replace(**changes))
    assert main(["stat", str(mount_dir)]) == 0
    found = re.findall("direct I/O: +(.*)", capsys.readouterr().out)
    assert found == ([] if shown is None else [shown])


def test_stat_names_the_attributes(files):
    assert stat_lines(files)["attributes"] == "MOUNT_ROOT"
    assert stat_lines(files / "regular")["attributes"] == "-"
    set_flags, nodump = 0x40086602, 0x40  # FS_IOC_SETFLAGS, FS_NODUMP_FL
    with (files / "regular").open() as file:
        fcntl.ioctl(file, set_flags, struct.pack("l", nodump))
    assert stat_lines(files / "regular")["attributes"] == "NODUMP"


def test_stat_tells_the_mount_by_unique_id_and_mount_point(various_mounts):
    path = various_mounts / "bind"
    (mount,) = json.loads(succeeded("mounts", "--json", "--all-fields", str(path)))
    old = [m.id for m in kernel.mountinfo() if m.mount_point == str(path)]
    assert old == [mount["mnt_id_old"]]
    assert stat_lines(path)["mount id"] == f"{mount['mnt_id']} ({path})"


def test_stat_of_what_is_on_no_visible_mount_says_so(mount_dir):
    tmpfs(mount_dir / "gone")
    directory = os.open(mount_dir / "gone", os.O_RDONLY)
    try:
        kernel.umount(mount_dir / "gone", kernel.MNT_DETACH)
        shown = stat_lines(f"/proc/self/fd/{directory}/", pass_fds=[directory])
    finally:
        os.close(directory)
    assert re.fullmatch(r"\d+ \(not visible here\)", shown["mount id"])
    assert shown["type"] == "directory"


def test_stat_as_json_has_every_field(files):
    found = json.loads(succeeded("stat", "--json", files / "regular"))
    derived = [f"stx_{kind}time_ns" for kind in "abcm"] + ["stx_dev", "stx_rdev"]
    assert list(found) == [*blocking.StatxResult._fields, *derived]
    theirs = (files / "regular").stat()
    assert (found["stx_mode"], found["stx_ino"], found["stx_dev"], found["stx_size"]) == (
        theirs.st_mode,
        theirs.st_ino,
        theirs.st_dev,
        5000,
    )
    assert (found["stx_atime_ns"], found["stx_mtime_ns"], found["stx_ctime_ns"]) == (
        theirs.st_atime_ns,
        theirs.st_mtime_ns,
        theirs.st_ctime_ns,
    )
    assert json.loads(succeeded("stat", "--json", "/dev/null"))["stx_rdev"] == os.makedev(1, 3)
