# SPDX-License-Identifier: LGPL-3.0-or-later
"""Mounts seen from elsewhere: other namespaces, a chroot, through id maps."""

import contextlib
import errno
import fcntl
import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import faults
import kernel
import pytest
from witness import ALL, MNT_BASIC, MNT_POINT, NS_GET_MNTNS_ID, bind, id_of, in_python, make, notes

from truenas_os import blocking

# Other mount namespaces


@contextlib.contextmanager
def running(*command):
    """The pid of a command that has written a line and now waits for the end of its input."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        try:
            assert process.stdout.readline() == b"ready\n"
            yield process.pid
        finally:
            process.stdin.close()
            process.wait()


@pytest.fixture
def foreign(mount_dir):
    """The pid of a process in a mount namespace of its own, with a mount that only it has."""
    (mount_dir / "only there").mkdir()
    script = f"mount -t tmpfs there '{mount_dir}/only there' && echo ready && read line"
    unshare = ["unshare", "--mount", "--propagation", "private", "--"]
    with running(*unshare, "sh", "-c", script) as pid:
        yield pid


@pytest.fixture
def foreign_fd(foreign):
    with open(f"/proc/{foreign}/ns/mnt") as namespace:
        yield namespace


def mounts_of(pid):
    """What findmnt reads in another process's mountinfo, by the mounts' old ids."""
    columns = "ID,PARENT,TARGET,FSTYPE,MAJ:MIN"
    output = subprocess.run(
        ["findmnt", "--task", str(pid), "-J", "-l", "-o", columns], capture_output=True, check=True
    ).stdout
    return {
        int(m["id"]): (int(m["id"]), int(m["parent"]), m["target"], m["fstype"], m["maj:min"])
        for m in json.loads(output)["filesystems"]
    }


def as_findmnt(m):
    device = f"{m.sb_dev_major}:{m.sb_dev_minor}"
    return m.mnt_id_old, m.mnt_parent_id_old, m.mnt_point, m.fs_type, device


def test_the_mounts_of_another_namespace_are_listed_and_described(face, foreign, foreign_fd):
    expected = mounts_of(foreign)
    assert any(point.endswith("only there") for _, _, point, _, _ in expected.values())
    ids = face.listmount(mnt_ns=foreign_fd)
    assert ids == sorted(ids)
    found = [face.statmount(mnt_id, ALL, mnt_ns=foreign_fd) for mnt_id in ids]
    assert {m.mnt_id_old: as_findmnt(m) for m in found} == expected
    assert [m.mnt_id for m in found] == ids
    namespace = int.from_bytes(fcntl.ioctl(foreign_fd, NS_GET_MNTNS_ID, bytes(8)), "little")
    assert {m.mnt_ns_id for m in found} == {namespace}
    assert face.iter_mount(statmount_flags=ALL, mnt_ns=foreign_fd) == found
    backwards = face.iter_mount(reverse=True, statmount_flags=ALL, mnt_ns=foreign_fd)
    assert backwards == found[::-1]
    assert face.iter_mount(last_mnt_id=ids[3], statmount_flags=ALL, mnt_ns=foreign_fd) == found[4:]


def test_mounts_of_another_namespace_are_not_ours(face, foreign_fd):
    theirs = face.listmount(mnt_ns=foreign_fd)
    assert not set(theirs) & set(face.listmount())
    for mnt_id in theirs[:3]:
        with pytest.raises(FileNotFoundError):
            face.statmount(mnt_id)
        with pytest.raises(FileNotFoundError):
            face.open_mount_by_id(mnt_id)
    with pytest.raises(FileNotFoundError) as failed:
        face.statmount(face.listmount()[0], mnt_ns=foreign_fd)
    assert "mount id" in notes(failed.value)


def test_descendants_are_listed_within_the_other_namespace(face, foreign, foreign_fd, mount_dir):
    found = face.iter_mount(statmount_flags=ALL, mnt_ns=foreign_fd)
    (parent,) = (m.mnt_id for m in found if m.mnt_point == str(mount_dir))
    (child,) = (m.mnt_id for m in found if m.mnt_point == f"{mount_dir}/only there")
    assert face.listmount(parent, mnt_ns=foreign_fd) == [child]
    assert face.listmount(child, mnt_ns=foreign_fd) == []


def test_a_namespace_may_be_any_kind_of_descriptor(face, foreign_fd):
    expected = face.listmount(mnt_ns=foreign_fd)
    number = foreign_fd.fileno()
    with blocking.openat2(blocking.AT_FDCWD, f"/proc/self/fd/{number}", os.O_RDONLY) as fd:
        for form in (number, fd, SimpleNamespace(fileno=foreign_fd.fileno)):
            assert face.listmount(mnt_ns=form) == expected
            assert [m.mnt_id for m in face.iter_mount(mnt_ns=form)] == expected


def test_ones_own_namespace_may_be_named_too(face):
    with open("/proc/self/ns/mnt") as own:
        assert face.listmount(mnt_ns=own) == face.listmount()
        assert face.iter_mount(mnt_ns=own) == face.iter_mount()


def test_a_namespace_outlives_its_processes_by_its_descriptor(face, mount_dir):
    unshare = ["unshare", "--mount", "--propagation", "private", "--"]
    with running(*unshare, "sh", "-c", "echo ready; read line") as pid:
        namespace = open(f"/proc/{pid}/ns/mnt")
        expected = mounts_of(pid)
    with namespace:
        found = face.iter_mount(statmount_flags=ALL, mnt_ns=namespace)
        assert {m.mnt_id_old: as_findmnt(m) for m in found} == expected


def three_calls(face, mnt_ns):
    yield lambda: face.listmount(mnt_ns=mnt_ns)
    yield lambda: face.statmount(id_of("/"), mnt_ns=mnt_ns)
    yield lambda: face.iter_mount(mnt_ns=mnt_ns)


@pytest.mark.parametrize("name", ["/dev/null", "/proc", "/proc/self/ns/net", "/proc/self/ns/user"])
def test_what_is_no_mount_namespace_is_EINVAL_and_the_note_says_so(face, name):
    fd = os.open(name, os.O_RDONLY)
    for call in three_calls(face, fd):
        with pytest.raises(OSError) as failed:
            call()
        assert failed.value.errno == errno.EINVAL
        assert "/proc/PID/ns/mnt" in notes(failed.value)
        assert os.readlink(f"/proc/self/fd/{fd}") in notes(failed.value)
    os.close(fd)


@pytest.mark.parametrize("fd", [-1, 1 << 20])
def test_a_namespace_that_is_not_open_is_EBADF_and_the_note_says_so(face, fd):
    for call in three_calls(face, fd):
        with pytest.raises(OSError) as failed:
            call()
        assert failed.value.errno == errno.EBADF
        assert f"descriptor {fd}, which is not open" in notes(failed.value)


def test_before_linux_6_18_a_namespace_is_named_by_its_id(face, foreign, foreign_fd):
    expected = mounts_of(foreign)
    for _ in range(2):
        # Such a kernel refuses the descriptor in the request, and only that.
        with faults.failing("listmount", errno.EINVAL, times=1):
            ids = face.listmount(mnt_ns=foreign_fd)
        with faults.failing("listmount", errno.EINVAL, times=1):
            found = [face.statmount(ids[0], ALL, mnt_ns=foreign_fd)]
        with faults.failing("listmount", errno.EINVAL, times=1):
            found += face.iter_mount(last_mnt_id=ids[0], statmount_flags=ALL, mnt_ns=foreign_fd)
        assert {m.mnt_id_old: as_findmnt(m) for m in found} == expected


def test_before_linux_6_11_a_namespace_cannot_be_named(face):
    with faults.stopped("listmount", error=errno.EINVAL) as stop, open("/proc/self/ns/mnt") as own:
        with ThreadPoolExecutor(1) as thread:
            listing = thread.submit(face.listmount, mnt_ns=own)
            stop.wait_reached()
            with faults.failing("ioctl", errno.ENOTTY):
                stop.go()
                failed = listing.exception()
    assert failed.errno == errno.EINVAL
    assert "needs Linux 6.11" in notes(failed)


@pytest.mark.parametrize("syscall", ["listmount", "statmount", "ioctl"])
def test_an_interrupted_question_to_a_namespace_is_asked_again(face, foreign_fd, syscall):
    expected = face.iter_mount(mnt_ns=foreign_fd)
    with faults.failing(syscall, errno.EINTR, times=2):
        assert face.iter_mount(mnt_ns=foreign_fd) == expected


FROM_DESCRIPTOR_0 = """
import errno, faults, json
import anyio, truenas_os
from truenas_os import blocking
with faults.failing("ioctl", errno.EINTR, times=2):
    ids = blocking.listmount(mnt_ns=0)
assert anyio.run(lambda: truenas_os.listmount(mnt_ns=0)) == ids
found = list(blocking.iter_mount(mnt_ns=0))
assert [blocking.statmount(i, mnt_ns=0) for i in ids] == found
print(json.dumps([m.mnt_id_old for m in found]))
"""


def test_a_namespace_may_be_descriptor_0(foreign, foreign_fd):
    listed = json.loads(in_python(FROM_DESCRIPTOR_0, stdin=foreign_fd))
    assert sorted(listed) == sorted(mounts_of(foreign))


# Under a chroot

IN_A_CHROOT = """
import ctypes, json, os, sys
from truenas_os import blocking
from truenas_os.blocking import *
jail, inside, outside = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
proc = os.open("/proc/self", os.O_PATH)
os.chroot(jail)
os.chdir("/")

def mountinfo():
    fd = os.open("mountinfo", os.O_RDONLY, dir_fd=proc)
    return os.read(fd, 1 << 20).decode().splitlines()

def drop_capabilities():
    assert not ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522, 0), bytes(24))

def failure(call, *args):
    try:
        call(*args)
    except OSError as error:
        return [error.errno, *error.__notes__]
"""


def in_a_chroot(script, jail, inside, outside=0):
    code = f"import sys; sys.argv = ['-c', {str(jail)!r}, {inside}, {outside}]\n"
    return json.loads(in_python(code + IN_A_CHROOT + script))


@pytest.fixture
def jail(mount_dir):
    make(mount_dir, "outside")
    make(make(mount_dir, "jail"), "inside")
    return mount_dir / "jail"


def test_under_a_chroot_mounts_are_listed_as_seen_from_there(jail):
    script = """
ids = listmount()
print(json.dumps([[statmount(i, 0x7fff)._asdict() for i in ids], mountinfo()]))
"""
    found, lines = in_a_chroot(script, jail, id_of(jail / "inside"))
    seen = {(int(line.split()[0]), line.split()[4]) for line in lines}
    assert {(m["mnt_id_old"], m["mnt_point"]) for m in found} == seen
    assert "/inside" in {point for _, point in seen}


def test_a_mount_that_cannot_be_reached_has_no_mount_point_and_cannot_be_opened(jail):
    script = """
m = statmount(outside, 0x7fff)
with open_mount_by_id(inside) as fd:
    opened = os.stat(fd).st_dev == os.stat("/inside").st_dev
print(json.dumps([m._asdict(), failure(open_mount_by_id, outside), opened]))
"""
    outside = id_of(jail.parent / "outside")
    found, failed, opened = in_a_chroot(script, jail, id_of(jail / "inside"), outside)
    assert found["mnt_point"] is None
    assert not found["mask"] & MNT_POINT
    assert (found["mnt_id"], found["fs_type"], found["mnt_root"]) == (outside, "tmpfs", "/")
    assert failed[0] == errno.ENOENT
    assert str(outside) in failed[1]
    assert "cannot be reached" in failed[1]
    assert opened


def test_a_listing_tells_mounts_without_a_mount_point_from_others(jail):
    script = """
print(json.dumps({m.mnt_id: m.mnt_point for m in iter_mount(outside, 0, False, 0x7fff)}))
"""
    inside, above = id_of(jail / "inside"), id_of(jail.parent)
    points = in_a_chroot(script, jail, inside, above)
    assert points == {
        str(id_of(jail.parent / "outside")): None,
        str(id_of(jail)): "/",
        str(inside): "/inside",
    }


def test_without_privileges_what_cannot_be_reached_is_EPERM(jail):
    script = """
drop_capabilities()
failures = [failure(f, outside) for f in (listmount, statmount, open_mount_by_id)]
failures.append(failure(lambda: list(iter_mount(outside))))
print(json.dumps([failures, statmount(inside, STATMOUNT_MNT_POINT).mnt_point]))
"""
    outside = id_of(jail.parent / "outside")
    failures, reachable = in_a_chroot(script, jail, id_of(jail / "inside"), outside)
    assert failures == [[errno.EPERM, f"mount id {outside}"]] * 4
    assert reachable == "/inside"


def test_propagation_from_a_peer_group_beyond_the_master_is_reported(mount_dir):
    jail = make(mount_dir, "jail")
    near, between, last = (make(jail, "near"), mount_dir / "between", jail / "last")
    for target in (between, last):
        target.mkdir()
    kernel.mount(None, near, None, kernel.MS_SHARED)
    bind(near, between)
    for propagation in (kernel.MS_SLAVE, kernel.MS_SHARED):
        kernel.mount(None, between, None, propagation)
    bind(between, last)
    kernel.mount(None, last, None, kernel.MS_SLAVE)
    script = "print(json.dumps([statmount(inside, 0x7fff)._asdict(), mountinfo()]))"
    found, lines = in_a_chroot(script, jail, id_of(last))
    (line,) = (line for line in lines if line.split()[4] == "/last")
    tags = dict(tag.split(":") for tag in line.split(" - ")[0].split()[6:])
    assert set(tags) == {"master", "propagate_from"}
    assert found["mnt_master"] == int(tags["master"])
    assert found["propagate_from"] == int(tags["propagate_from"]) != found["mnt_master"]


# Id maps


def idmapped(source, target, uid_ranges, gid_ranges):
    """Mount *source* at *target* through the id maps of a new user namespace."""
    open_tree, move_mount, mount_setattr = 428, 429, 442
    with running("unshare", "--user", "--", "sh", "-c", "echo ready; read line") as pid:
        for name, ranges in (("uid_map", uid_ranges), ("gid_map", gid_ranges)):
            text = "".join(f"{inside} {outside} {length}\n" for inside, outside, length in ranges)
            Path(f"/proc/{pid}/{name}").write_text(text)
        user_ns = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY)
    clone, empty_path, idmap, to_empty_path = 0x80001, 0x1000, 1 << 20, 4
    tree = kernel.syscall(open_tree, -100, os.fsencode(source), clone)
    attributes = b"".join(n.to_bytes(8, "little") for n in (idmap, 0, 0, user_ns))
    kernel.syscall(mount_setattr, tree, b"", empty_path, attributes, len(attributes))
    kernel.syscall(move_mount, tree, b"", -100, os.fsencode(target), to_empty_path)
    os.close(user_ns)
    os.close(tree)
    return id_of(target)


THREE_UIDS = [(0, 100000, 1000), (1000, 7, 1), (5000, 300000, 65536)]
THREE_GIDS = [(0, 200000, 10), (10, 8, 2), (70000, 400000, 5)]
needs_every_id = pytest.mark.skipif(
    Path("/proc/self/uid_map").read_text().split() != ["0", "0", str((1 << 32) - 1)],
    reason="only one id is mapped here: several ranges need root of the initial user namespace",
)


@needs_every_id
def test_id_maps_are_reported_with_all_their_ranges(face, mount_dir):
    source, target = make(mount_dir, "source"), mount_dir / "target"
    target.mkdir()
    mnt_id = idmapped(source, target, THREE_UIDS, THREE_GIDS)
    found = face.statmount(mnt_id, ALL)
    assert found.mnt_uidmap == tuple(THREE_UIDS)
    assert found.mnt_gidmap == tuple(THREE_GIDS)
    # What the ranges mean, by stat(2): an id inside appears as the one outside.
    for number, (uid, gid) in enumerate(zip(found.mnt_uidmap, found.mnt_gidmap, strict=True)):
        (source / str(number)).touch()
        os.chown(source / str(number), uid.inside + uid.length - 1, gid.inside + gid.length - 1)
        status = os.stat(target / str(number))
        assert status.st_uid == uid.outside + uid.length - 1
        assert status.st_gid == gid.outside + gid.length - 1
    # Beside it in the batch, a mount without.
    listed = {m.mnt_id: m for m in face.iter_mount(id_of(mount_dir), statmount_flags=ALL)}
    assert listed[mnt_id] == found
    assert listed[id_of(source)].mnt_uidmap == listed[id_of(source)].mnt_gidmap == ()


@needs_every_id
def test_id_maps_of_hundreds_of_ranges_are_complete(face, mount_dir):
    source, target = make(mount_dir, "source"), mount_dir / "target"
    target.mkdir()
    uids = [(2 * number, 100000 + 2 * number, 1) for number in range(300)]
    gids = [(2 * number, 500000 + 2 * number, 2) for number in range(290)]
    mnt_id = idmapped(source, target, uids, gids)
    found = face.statmount(mnt_id, ALL)
    assert found.mnt_uidmap == tuple(uids)
    assert found.mnt_gidmap == tuple(gids)
    assert face.iter_mount(id_of(mount_dir), statmount_flags=ALL)[-1] == found


def test_an_id_map_of_one_range_is_reported_without_privileges_too(face, mount_dir):
    source, target = make(mount_dir, "source"), mount_dir / "target"
    target.mkdir()
    mnt_id = idmapped(source, target, [(5, 0, 1)], [(6, 0, 1)])
    found = face.statmount(mnt_id, MNT_BASIC | 0x2000 | 0x4000)
    assert found.mnt_uidmap == (blocking.IdmapMapping(inside=5, outside=0, length=1),)
    assert found.mnt_gidmap == (blocking.IdmapMapping(inside=6, outside=0, length=1),)
    assert type(found.mnt_uidmap[0]) is blocking.IdmapMapping
