# SPDX-License-Identifier: LGPL-3.0-or-later
"""``truenas-os handle``: from a path to a handle and back, against mountinfo and stat."""

import json
import os
import re
import subprocess

import kernel
import pytest
from command_line import ASCII, HOSTILE, run, succeeded, unescaped
from filesystems import make_image, needs_root
from witness import id_of

from truenas_os import blocking


def handle_of(path):
    mount, handle = succeeded("handle", path).decode().split()
    return mount, handle


def opened(*arguments):
    return os.fsencode(succeeded("handle", "--open", *arguments).decode().removesuffix("\n"))


def test_a_path_becomes_a_handle_and_the_id_of_its_mount(mount_dir):
    (mount_dir / "file").touch()
    mount, handle = handle_of(mount_dir / "file")
    assert int(mount) == id_of(mount_dir)
    found = blocking.fhandle(mount_dir / "file")
    # The header says in its type that the way back to a path is part of it.
    assert bytes.fromhex(handle)[8:][: len(bytes(found)) - 8] == bytes(found)[8:]
    shown = json.loads(succeeded("handle", "--json", mount_dir / "file"))
    path = str(mount_dir / "file")
    kind = int.from_bytes(bytes.fromhex(handle)[4:8], "little", signed=True)
    assert shown == {"mnt_id": int(mount), "handle": handle, "type": kind, "path": path}


@needs_root
def test_a_handle_finds_what_was_renamed(mount_dir):
    (mount_dir / "a").mkdir()
    for name in ("file", "directory", "link"):
        path = mount_dir / "a" / name
        {"file": path.touch, "directory": path.mkdir}.get(name, lambda p=path: p.symlink_to("/"))()
        mount, handle = handle_of(path)
        path.rename(mount_dir / "renamed")
        for where in (mount, mount_dir, mount_dir / "a"):
            assert opened(where, handle) == os.fsencode(mount_dir / "renamed")
        shown = json.loads(succeeded("handle", "--json", "--open", mount, handle))
        assert (shown["path"], shown["mnt_id"]) == (str(mount_dir / "renamed"), int(mount))
        path.parent.joinpath("x").touch()
        (mount_dir / "renamed").rename(mount_dir / f"was {name}")


@needs_root
def test_hostile_names_are_escaped_and_can_be_told_again(mount_dir):
    path = b"/".join([os.fsencode(mount_dir), *HOSTILE.values()])
    os.makedirs(path)
    mount, handle = handle_of(path)
    for env in ({}, ASCII):
        shown = succeeded("handle", "--open", mount, handle, env=env)
        assert re.search(rb"[\x00-\x1f\x7f]", shown.removesuffix(b"\n")) is None
        assert unescaped(shown.removesuffix(b"\n")) == path
    assert os.fsencode(json.loads(succeeded("handle", "--json", path))["path"]) == path


@needs_root
@pytest.mark.parametrize("fs_type", ["ext4", "xfs"])
def test_a_handle_outlives_the_mount(mount_dir, tmp_path, fs_type):
    """Nothing of the filesystem is in the kernel's memory any more."""
    image, point = make_image(fs_type, tmp_path / "image"), mount_dir / "point"
    point.mkdir()
    mount = ["mount", "-o", "loop", image, point]
    subprocess.run(mount, check=True)
    (point / "a" / "b").mkdir(parents=True)
    (point / "a" / "b" / "file").touch()
    before, handle = handle_of(point / "a" / "b" / "file")
    (point / "a" / "b").rename(point / "c")
    kernel.umount(point)
    subprocess.run(mount, check=True)
    try:
        assert opened(point, handle) == os.fsencode(point / "c" / "file")
        done = run("handle", "--open", before, handle)
        assert (done.returncode, done.stdout) == (1, b"")
    finally:
        kernel.umount(point)
        (tmp_path / "image").unlink()


@needs_root
def test_a_file_that_is_gone_or_hidden_is_a_line_and_status_1(mount_dir):
    (mount_dir / "a").mkdir()
    (mount_dir / "a" / "file").touch()
    mount, handle = handle_of(mount_dir / "a" / "file")
    kernel.mount("tmpfs", mount_dir / "a", "tmpfs")
    done = run("handle", "--open", mount, handle)
    reason = "No such file or directory (the file exists, but no path leads to it here)"
    assert (done.returncode, done.stderr.decode()) == (1, f"truenas-os: {handle}: {reason}\n")
    (mount_dir / "a" / "file").touch()  # another one
    assert run("handle", "--open", mount, handle).stderr == done.stderr
    kernel.umount(mount_dir / "a")
    (mount_dir / "a" / "file").unlink()
    done = run("handle", "--open", mount, handle)
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"Stale file handle" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [(), ("a", "b"), ("--open", "/"), ("--open", "/", "xyz"), ("--open", "/", "00")]
    + [("--open", "/", "0c000000010000000a"), ("a", "--open", "/", "0c")]
    + [("--open", mount, "0c00000001000000" + "00" * 12) for mount in (str(1 << 64), "9" * 5000)],
    ids=lambda arguments: str(arguments)[:40],
)
def test_wrong_usage_is_status_2(arguments):
    done = run("handle", *arguments)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"usage: truenas-os ")


def test_what_has_no_handles_is_a_line_and_status_1():
    done = run("handle", "/proc/self/fd/0", stdin=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.count(b"\n") == 1
