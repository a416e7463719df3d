# SPDX-License-Identifier: LGPL-3.0-or-later
"""listmount and statmount, in both faces, against /proc/self/mountinfo."""

import errno
import fcntl
import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import faults
import kernel
import pytest
from witness import (
    ALL,
    FIELDS,
    FS_SUBTYPE,
    FS_TYPE,
    MNT_BASIC,
    MNT_OPTS,
    MNT_POINT,
    MNT_ROOT,
    MNT_UIDMAP,
    NS_GET_MNTNS_ID,
    OPT_ARRAY,
    SB_BASIC,
    SB_SOURCE,
    STRANGE,
    UNKNOWN_ID,
    bind,
    deep_mount,
    fd_mount,
    id_of,
    in_python,
    make,
    notes,
    old_id_of,
    old_ids,
)

from truenas_os import blocking

LISTMOUNT_ERRORS = "E2BIG EINVAL ENOENT ENOMEM ENOSYS EPERM".split()
STATMOUNT_ERRORS = "E2BIG EINVAL ENOENT ENOMEM ENOSYS EOVERFLOW EPERM".split()


# listmount


def test_listmount_lists_what_mountinfo_lists_in_ascending_order(face, mount_dir):
    make(make(mount_dir), "below")
    ids = face.listmount()
    assert ids == sorted(set(ids))
    assert sorted(old_ids(ids)) == sorted(m.id for m in kernel.mountinfo())
    assert min(ids) > 1 << 31


def test_listmount_in_reverse_is_the_same_list_backwards(face, mount_dir):
    make(mount_dir)
    assert face.listmount(reverse=True) == face.listmount()[::-1]


def test_listmount_goes_on_after_every_id_in_both_directions(face, mount_dir):
    for number in range(5):
        make(mount_dir, str(number))
    ids = face.listmount()
    for at, mnt_id in enumerate(ids):
        assert face.listmount(last_mnt_id=mnt_id) == ids[at + 1 :]
        assert face.listmount(last_mnt_id=mnt_id, reverse=True) == ids[:at][::-1]


def test_the_last_id_of_listmount_need_not_exist_any_more(face, mount_dir):
    targets = [make(mount_dir, str(number)) for number in range(3)]
    first, gone, last = map(id_of, targets)
    kernel.umount(targets[1])
    assert face.listmount(last_mnt_id=gone) == [last]
    assert face.listmount(id_of(mount_dir), gone, True) == [first]


def test_listmount_of_a_mount_lists_its_descendants_of_all_generations(face, mount_dir):
    make(make(make(mount_dir, "a"), "b"), "c")
    make(mount_dir / "a", "b")  # a second mount over the first
    children = {}
    for mount in kernel.mountinfo():
        children.setdefault(mount.parent, []).append(mount.id)

    def descendants(old):
        for child in children.get(old, ()):
            if child != old:
                yield child
                yield from descendants(child)

    compared = 0
    for mnt_id, old in zip(ids := face.listmount(), old_ids(ids), strict=True):
        assert sorted(old_ids(face.listmount(mnt_id))) == sorted(descendants(old))
        compared += 1
    assert compared > 4


def test_a_mount_without_mounts_below_it_has_an_empty_list(face, mount_dir):
    assert face.listmount(id_of(make(mount_dir))) == []


def test_thousands_of_mounts_are_listed_across_pages(face, many):
    inside = [id_of(many / str(number)) for number in range(4200)]
    assert face.listmount(id_of(many)) == sorted(inside)
    assert face.listmount(id_of(many), reverse=True) == sorted(inside, reverse=True)
    assert face.listmount(id_of(many), inside[3], False) == inside[4:]
    assert len(face.listmount()) == len(kernel.mountinfo())


def test_a_list_that_exactly_fills_its_pages_is_complete(mount_dir):
    for number in range(8192):
        make(mount_dir, str(number))
        if number in (4094, 4095, 4096, 8191):
            with faults.count("listmount") as calls:
                found = blocking.listmount(id_of(mount_dir))
            assert len(found) == len(set(found)) == number + 1
    assert calls.seen == 3


def test_mounts_that_come_and_go_between_pages_disturb_no_other(face, many):
    ids = sorted(id_of(many / str(number)) for number in range(4200))
    with ThreadPoolExecutor(1) as thread, faults.stopped("listmount", skip=1) as stop:
        listing = thread.submit(face.listmount, id_of(many))
        stop.wait_reached()
        for number in (0, 4095, 4096):  # the last id of the first page and its neighbour
            kernel.umount(many / str(number))
        added = id_of(make(many, "new"))
        stop.go()
        assert listing.result() == [i for i in ids if i != ids[4096]] + [added]


def test_listmount_of_an_unknown_id_is_ENOENT_and_names_it(face):
    with pytest.raises(FileNotFoundError) as failed:
        face.listmount(UNKNOWN_ID)
    assert f"mount id {UNKNOWN_ID}" in notes(failed.value)


@pytest.mark.parametrize("last", [1, 2, (1 << 31) - 1, 1 << 31])
def test_an_old_id_as_the_last_is_EINVAL_and_the_note_says_why(face, last):
    with pytest.raises(OSError) as failed:
        face.listmount(last_mnt_id=last)
    assert failed.value.errno == errno.EINVAL
    assert f"{last} is no unique mount id" in notes(failed.value)
    assert face.listmount(last_mnt_id=(1 << 31) + 1) == face.listmount()


def test_an_old_id_as_the_mount_is_an_error_that_says_why(face, mount_dir):
    old = old_id_of(mount_dir)
    for call in (face.listmount, face.statmount, face.open_mount_by_id):
        with pytest.raises(OSError) as failed:
            call(old)
        assert failed.value.errno in (errno.EINVAL, errno.ENOENT)
        assert f"{old} is no unique mount id" in notes(failed.value)


# statmount


def assert_like_mountinfo(found, line):
    """*found* says what a line of /proc/self/mountinfo says."""
    assert (found.mnt_id_old, found.mnt_parent_id_old) == (line.id, line.parent)
    assert (found.sb_dev_major, found.sb_dev_minor) == (line.major, line.minor)
    assert (found.mnt_root, found.mnt_point) == (line.root, line.mount_point)
    options = {
        1: "ro",
        2: "nosuid",
        4: "nodev",
        8: "noexec",
        0x10: "noatime",
        0x80: "nodiratime",
        0x200000: "nosymfollow",
    }
    shown = {name for bit, name in options.items() if found.mnt_attr & bit}
    shown |= set() if found.mnt_attr & 1 else {"rw"}
    shown |= set() if found.mnt_attr & 0x70 else {"relatime"}
    assert shown == set(line.options.split(",")) - {"idmapped"}
    tags = {name: int(value or 1) for name, _, value in (t.partition(":") for t in line.tags)}
    assert found.mnt_peer_group == tags.get("shared", 0)
    assert found.mnt_master == tags.get("master", 0)
    assert found.propagate_from == tags.get("propagate_from", found.mnt_master)
    propagation = (kernel.MS_SHARED if "shared" in tags else 0) | (
        kernel.MS_SLAVE if "master" in tags else 0
    )
    unbindable = kernel.MS_UNBINDABLE if "unbindable" in tags else kernel.MS_PRIVATE
    assert found.mnt_propagation == (propagation or unbindable)
    assert ".".join(filter(None, (found.fs_type, found.fs_subtype))) == line.fs_type
    assert (found.sb_source or "none") == (line.source or "none")
    access, _, rest = line.super_options.partition(",")
    assert bool(found.sb_flags & 1) == (access == "ro")
    # mountinfo has the options of the VFS and of security modules before the filesystem's.
    vfs = {16: "sync", 128: "dirsync", 1 << 25: "lazytime"}
    before = [name for bit, name in vfs.items() if found.sb_flags & bit] + [*found.opt_sec_array]
    assert ",".join([*before, *filter(None, [found.mnt_opts])]) == rest


def own_namespace_id():
    with open("/proc/self/ns/mnt") as namespace:
        return int.from_bytes(fcntl.ioctl(namespace, NS_GET_MNTNS_ID, bytes(8)), "little")


def test_statmount_agrees_with_mountinfo_about_every_mount(face, mount_dir):
    ro, nosuid, nodev, noexec, nosymfollow = 1, 2, 4, 8, 256
    noatime, nodiratime, strictatime = 1024, 2048, 1 << 24
    every = (ro, nosuid, nodev, noexec, noatime, nodiratime, strictatime, nosymfollow)
    for flags in (0, *every, ro | nosuid | nodev | noexec | noatime | nodiratime):
        make(mount_dir, f"flags{flags}", source=f"source of {flags}", flags=flags)
    (mount_dir / "sub directory").mkdir()
    (mount_dir / "bound").mkdir()
    bind(mount_dir / "sub directory", mount_dir / "bound", nodev)
    make(mount_dir, "sync", flags=16 | 128, data=b"size=65536,mode=711,nr_inodes=99")
    kernel.mount(None, mount_dir / "flags0", None, kernel.MS_REMOUNT | ro)  # the superblock
    lines = {line.id: line for line in kernel.mountinfo()}
    compared = 0
    for mnt_id in face.listmount():
        found = face.statmount(mnt_id, ALL)
        assert found.mnt_id == mnt_id
        assert found.mnt_ns_id == own_namespace_id()
        assert_like_mountinfo(found, lines.pop(found.mnt_id_old))
        compared += 1
    assert not lines
    assert compared > 12


def test_statmount_reports_every_kind_of_propagation(face, mount_dir):
    shared, slave, both, unbindable, private = (
        make(mount_dir, name) for name in ("shared", "slave", "both", "unbindable", "private")
    )
    kernel.mount(None, shared, None, kernel.MS_SHARED)
    for target in (slave, both):
        bind(shared, target)
        kernel.mount(None, target, None, kernel.MS_SLAVE)
    kernel.mount(None, both, None, kernel.MS_SHARED)
    kernel.mount(None, unbindable, None, kernel.MS_UNBINDABLE)
    found = {path: face.statmount(id_of(path), ALL) for path in mount_dir.iterdir()}
    lines = {line.id: line for line in kernel.mountinfo()}
    for mount in found.values():
        assert_like_mountinfo(mount, lines[mount.mnt_id_old])
    group = found[shared].mnt_peer_group
    assert group
    assert [found[path].mnt_master for path in (slave, both, private)] == [group, group, 0]
    assert found[both].mnt_peer_group not in (0, group)
    assert found[slave].propagate_from == group


def test_parents_are_named_by_their_unique_ids(face, mount_dir):
    below = make(mount_dir)
    assert face.statmount(id_of(below)).mnt_parent_id == id_of(mount_dir)


def test_the_magic_number_is_that_of_statfs(face, mount_dir):
    for path in ("/proc", mount_dir):
        magic = subprocess.run(
            ["stat", "-f", "-c", "%t", path], capture_output=True, check=True, text=True
        )
        assert face.statmount(id_of(path), SB_BASIC).sb_magic == int(magic.stdout, 16)


def test_findmnt_sees_the_same_mounts(face):
    output = subprocess.run(
        ["findmnt", "-J", "-l", "-o", "ID,PARENT,TARGET,FSTYPE"],
        capture_output=True,
        check=True,
    ).stdout
    seen = {(int(m["id"]), m["target"], m["fstype"]) for m in json.loads(output)["filesystems"]}
    found = face.iter_mount(statmount_flags=MNT_BASIC | MNT_POINT | FS_TYPE)
    assert {(m.mnt_id_old, m.mnt_point, m.fs_type) for m in found} == seen


@pytest.mark.parametrize("bit", FIELDS, ids=hex)
def test_only_what_is_asked_for_is_reported(face, mount_dir, bit):
    mnt_id = id_of(make(mount_dir, data=b"size=65536"))
    everything = face.statmount(mnt_id, ALL)
    assert everything.supported_mask & (bit | everything.mask) == bit | everything.mask
    found = face.statmount(mnt_id, bit)
    assert found.mask == everything.mask & bit
    for field in set(found._fields) - {"mask"}:
        expected = getattr(everything, field) if field in FIELDS[bit] else None
        assert getattr(found, field) == expected, field
        assert type(getattr(everything, field)) in (int, str, tuple), field


def test_nothing_asked_for_is_nothing_reported(face, mount_dir):
    found = face.statmount(id_of(mount_dir), 0)
    assert found.mask == 0
    assert set(found._replace(mask=None)) == {None}


def test_the_default_fields_are_the_basic_ones(face, mount_dir):
    found = face.statmount(id_of(mount_dir))
    assert found.mask == SB_BASIC | MNT_BASIC
    shown = {field for field in found._fields if getattr(found, field) is not None}
    assert shown == {"mask", *FIELDS[SB_BASIC], *FIELDS[MNT_BASIC]}


def test_bits_that_the_kernel_does_not_know_are_left_out(face, mount_dir):
    assert face.statmount(id_of(mount_dir), 1 << 60 | SB_BASIC).mask == SB_BASIC


def test_empty_texts_and_lists_are_empty_not_None(face, mount_dir):
    bare = mount_dir / "bare"
    bare.mkdir()
    kernel.mount("ramfs", bare, "ramfs")
    # A mount in the same batch that has what the first lacks must not change that.
    full = make(mount_dir, "full", data=b"size=65536")
    listed = {m.mnt_id: m for m in face.iter_mount(id_of(mount_dir), statmount_flags=ALL)}
    for found in (face.statmount(id_of(bare), ALL), listed[id_of(bare)]):
        assert (found.mnt_opts, found.fs_subtype) == ("", "")
        assert found.opt_array == found.opt_sec_array == ()
        assert found.mnt_uidmap == found.mnt_gidmap == ()
        assert not found.mask & (MNT_OPTS | FS_SUBTYPE | OPT_ARRAY | MNT_UIDMAP)
    assert "size=64k" in listed[id_of(full)].opt_array


def test_strange_bytes_in_names_arrive_unchanged(face, mount_dir):
    target = make(mount_dir, os.fsdecode(STRANGE), source=os.fsdecode(STRANGE))
    (target / os.fsdecode(STRANGE)).mkdir()
    bound = mount_dir / "bound"
    bound.mkdir()
    bind(target / os.fsdecode(STRANGE), bound)
    lines = {line.id: line for line in kernel.mountinfo()}
    for path in (target, bound):
        found = face.statmount(id_of(path), ALL)
        assert_like_mountinfo(found, lines[found.mnt_id_old])
    assert os.fsencode(face.statmount(id_of(target), MNT_POINT).mnt_point).endswith(STRANGE)
    assert os.fsencode(face.statmount(id_of(bound), MNT_ROOT).mnt_root) == b"/" + STRANGE
    assert os.fsencode(face.statmount(id_of(target), SB_SOURCE).sb_source) == STRANGE


def test_a_root_that_was_removed_is_marked_as_the_kernel_does(face, mount_dir):
    for name in ("doomed", "bound"):
        (mount_dir / name).mkdir()
    bind(mount_dir / "doomed", mount_dir / "bound")
    (mount_dir / "doomed").rmdir()
    found = face.statmount(id_of(mount_dir / "bound"), MNT_ROOT)
    assert found.mnt_root == "/doomed//deleted"


def test_a_mount_point_may_be_longer_than_PATH_MAX(face, mount_dir, monkeypatch):
    mnt_id, line = deep_mount(mount_dir, monkeypatch)
    assert len(line.mount_point) > 4096
    assert_like_mountinfo(face.statmount(mnt_id, ALL), line)
    listed = {m.mnt_id: m for m in face.iter_mount(statmount_flags=ALL)}
    assert_like_mountinfo(listed[mnt_id], line)
    # What is ahead of it and after it is described too.
    assert len(listed) == len(kernel.mountinfo())


def overlay(mount_dir, monkeypatch, layers):
    """An overlay, mounted through raw system calls; no path may be longer than 255 bytes."""
    fsopen, fsconfig, fsmount, move_mount = 430, 431, 432, 429
    set_string, cmd_create = 1, 6
    monkeypatch.chdir(make(mount_dir, "layers"))
    context = kernel.syscall(fsopen, b"overlay", 1)
    for layer in layers:
        os.mkdir(layer)
        kernel.syscall(fsconfig, context, set_string, b"lowerdir+", os.fsencode(layer), 0)
    kernel.syscall(fsconfig, context, cmd_create, None, None, 0)
    detached = kernel.syscall(fsmount, context, 1, 0)
    (mount_dir / "merged").mkdir()
    kernel.syscall(move_mount, detached, b"", -100, os.fsencode(mount_dir / "merged"), 4)
    os.close(detached)
    os.close(context)
    return id_of(mount_dir / "merged")


def test_options_larger_than_any_first_buffer_are_complete(face, mount_dir, monkeypatch):
    layers = [f"{number:03}{'x' * 200}" for number in range(300)]
    mnt_id = overlay(mount_dir, monkeypatch, layers)
    for number in range(40):  # company: the batch that it does not fit in
        make(mount_dir, str(number))
    found = face.statmount(mnt_id, ALL)
    assert [o for o in found.opt_array if o.startswith("lowerdir+=")] == [
        f"lowerdir+={layer}" for layer in layers
    ]
    lines = {line.id: line for line in kernel.mountinfo()}
    assert_like_mountinfo(found, lines[found.mnt_id_old])
    for mount in face.iter_mount(statmount_flags=ALL):
        assert_like_mountinfo(mount, lines.pop(mount.mnt_id_old))
        if mount.mnt_id == mnt_id:
            assert mount == found
    assert not lines


def test_many_mounts_with_long_texts_are_complete(face, mount_dir, monkeypatch):
    """Each fits the first buffer, all of them do not fit a batch's."""
    monkeypatch.chdir(mount_dir)
    layers = [letter * 200 for letter in "abcdefgh"]
    for layer in layers:
        os.mkdir(layer)
    for number in range(80):
        os.mkdir(str(number))
        data = os.fsencode("lowerdir=" + ":".join(layers))
        kernel.mount(f"{number:01500}", str(number), "overlay", 0, data)
    lines = {line.id: line for line in kernel.mountinfo()}
    found = face.iter_mount(id_of(mount_dir), statmount_flags=ALL)
    assert [int(m.sb_source) for m in found] == list(range(80))
    for mount in found:
        assert_like_mountinfo(mount, lines[mount.mnt_id_old])
        assert f"lowerdir={':'.join(layers)}" in [o.replace("\\", "") for o in mount.opt_array]


def test_options_are_escaped_in_mnt_opts_only(face, mount_dir, monkeypatch):
    mnt_id = overlay(mount_dir, monkeypatch, ["a b", "tab\t", "back\\slash"])
    found = face.statmount(mnt_id, MNT_OPTS | OPT_ARRAY)
    assert found.opt_array[:3] == ("lowerdir+=a b", "lowerdir+=tab\t", "lowerdir+=back\\slash")
    assert found.mnt_opts.startswith(r"lowerdir+=a\040b,lowerdir+=tab\011,lowerdir+=back\134slash")


def test_statmount_of_an_unknown_or_detached_mount_is_ENOENT(face, mount_dir):
    target = make(mount_dir)
    gone = id_of(target)
    fd = os.open(target, os.O_PATH)
    kernel.umount(target, kernel.MNT_DETACH)
    try:
        for mnt_id in (UNKNOWN_ID, gone):
            with pytest.raises(FileNotFoundError) as failed:
                face.statmount(mnt_id)
            assert f"mount id {mnt_id}" in notes(failed.value)
    finally:
        os.close(fd)


# Injected errors


def calls_that_fail(face, syscall):
    mnt_id = id_of("/")
    if syscall == "listmount":
        yield from (face.listmount, partial(face.listmount, mnt_id), face.iter_mount)
    else:
        yield partial(face.statmount, mnt_id)
        yield partial(face.statmount, mnt_id, ALL)
        yield partial(face.open_mount_by_id, mnt_id)
        yield partial(face.mount_of, "/")
        # In a listing ENOENT is a mount that has vanished.
        yield face.iter_mount


@pytest.mark.parametrize(
    ("syscall", "name"),
    [("listmount", n) for n in LISTMOUNT_ERRORS] + [("statmount", n) for n in STATMOUNT_ERRORS],
)
def test_every_errno_of_the_manual_arrives(face, syscall, name):
    before = kernel.open_fds()
    for call in calls_that_fail(face, syscall):
        with faults.failing(syscall, getattr(errno, name)):
            if (syscall, name, call) == ("statmount", "ENOENT", face.iter_mount):
                assert call() == []
                continue
            with pytest.raises(OSError) as failed:
                call()
        assert errno.errorcode[failed.value.errno] == name
        assert failed.value.strerror == os.strerror(failed.value.errno)
        assert ("Linux 6.8" in notes(failed.value)) == (name == "ENOSYS")
    if face.face.name == "blocking":  # a loop may leave descriptors of its own for a while
        assert kernel.open_fds() == before


@pytest.mark.parametrize("syscall", ["listmount", "statmount", "openat2", "statx"])
def test_interrupted_calls_are_made_again(face, mount_dir, syscall):
    mnt_id = id_of(make(mount_dir))
    expected = face.iter_mount(statmount_flags=ALL)
    with faults.failing(syscall, errno.EINTR, times=3):
        assert face.iter_mount(statmount_flags=ALL) == expected
        assert face.listmount() == [m.mnt_id for m in expected]
        assert face.statmount(mnt_id, ALL) in expected
        assert face.mount_of(mount_dir) in expected
        with face.open_mount_by_id(mnt_id) as fd:
            assert fd_mount(fd) == old_id_of(mount_dir / "m")


def test_an_error_within_statmount_names_the_mount(face, mount_dir):
    mnt_id = id_of(mount_dir)
    with faults.failing("statmount", errno.EPERM), pytest.raises(PermissionError) as failed:
        face.statmount(mnt_id)
    assert f"mount id {mnt_id}" in notes(failed.value)


def test_the_note_of_mount_of_does_not_blame_the_namespace_for_other_errors(face):
    with faults.failing("statmount", errno.ENOMEM), pytest.raises(OSError) as failed:
        face.mount_of("/")
    assert failed.value.filename == "/"
    assert "not visible" not in notes(failed.value)


EOVERFLOW_FOREVER = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
import errno, faults
from truenas_os import blocking
first = blocking.listmount()[0]
for call in (lambda: blocking.statmount(first), lambda: list(blocking.iter_mount())):
    with faults.failing("statmount", errno.EOVERFLOW):
        try:
            call()
        except OSError as error:
            print(errno.errorcode[error.errno])
        except MemoryError:
            print("MemoryError")
"""


def test_a_size_that_never_fits_ends_in_EOVERFLOW_and_in_modest_memory():
    assert in_python(EOVERFLOW_FOREVER).split() == ["EOVERFLOW", "EOVERFLOW"]


@pytest.mark.parametrize("mask", [-1, 1 << 64])
def test_a_mask_that_does_not_fit_is_refused_before_any_system_call(face, mask):
    with faults.count("statmount") as calls:
        with pytest.raises(OverflowError):
            face.statmount(blocking.LSMT_ROOT, mask)
    assert calls.seen == 0


@pytest.mark.parametrize("mnt_id", [-1, 1 << 64, 10**5000], ids=["negative", "65 bits", "longer"])
def test_a_number_that_is_no_mount_id_is_refused_before_any_system_call(face, mnt_id):
    with faults.count("listmount") as listed, faults.count("statmount") as looked:
        for call, *arguments in (
            (face.statmount, mnt_id),
            (face.open_mount_by_id, mnt_id),
            (face.listmount, mnt_id),
            (face.listmount, blocking.LSMT_ROOT, mnt_id),
            (face.iter_mount, mnt_id),
        ):
            with pytest.raises(ValueError, match="a mount id is"):
                call(*arguments)
    assert (listed.seen, looked.seen) == (0, 0)
