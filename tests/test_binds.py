# SPDX-License-Identifier: LGPL-3.0-or-later
"""bind: what is bound, with which attributes, propagation and ids."""

import errno
import os
from contextlib import ExitStack, contextmanager
from pathlib import Path

import faults
import kernel
import pytest
import traces
from faces import block, on_both_faces
from filesystems import DISKS, make_image, needs_root
from traces import at
from witness import STRANGE, id_of, make, notes

from truenas_os import blocking
from truenas_os.blocking import (
    AT_FDCWD,
    MOUNT_ATTR_NOATIME,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    MS_PRIVATE,
    MS_SHARED,
    MS_SLAVE,
    MS_UNBINDABLE,
    IdmapMapping,
    bind,
    idmap_userns,
    mounted,
)


@pytest.fixture
def source(mount_dir):
    """A tmpfs with a file and, at ``below``, another one."""
    source = make(mount_dir, "source", source="source")
    (source / "file").write_text("content")
    (make(source, "below", source="below") / "file").write_text("below")
    return source


@pytest.fixture
def target(mount_dir):
    (mount_dir / "target").mkdir()
    return mount_dir / "target"


@on_both_faces
async def test_a_directory_is_bound_for_the_time_of_the_block(face, source, target):
    before = kernel.open_fds()
    async with block(face.library.bind(source, target)) as mount:
        assert (target / "file").read_text() == "content"
        assert os.path.samestat(os.stat(mount.fd), source.stat())
        assert mount.mnt_id == id_of(target) != id_of(source)
        assert type(mount) is face.library.Mount
        assert at(target)[0].source == "source"
        assert at(target / "below") == []
    assert at(target) == []
    assert len(at(source)) == 1
    assert kernel.open_fds() == before


@on_both_faces
async def test_a_recursive_bind_has_what_is_below_and_is_unmounted_with_it(face, source, target):
    make(source / "below", "deeper", source="deeper")
    before = traces.below(source.parent)
    async with block(face.library.bind(source, target, recursive=True)):
        assert (target / "below" / "file").read_text() == "below"
        assert [m.source for m in at(target / "below" / "deeper")] == ["deeper"]
    assert traces.below(source.parent) == before


@on_both_faces
async def test_what_was_mounted_below_a_recursive_bind_stays_with_it(
    face, source, target, monkeypatch
):
    monkeypatch.setattr(blocking.unmounting, "_PATIENCE", 0.02)
    with pytest.raises(OSError) as failed:
        async with block(face.library.bind(source, target, recursive=True)):
            (target / "new").mkdir()
            make(target, "new", source="foreign")
    assert failed.value.errno == errno.EBUSY
    assert str(target / "new") in notes(failed.value)
    assert [m.source for m in at(target / "new")] == ["foreign"]


@on_both_faces
async def test_a_recursive_bind_of_which_parts_are_gone_or_covered_ends(face, source, target):
    make(source, "gone", source="gone")
    async with block(face.library.bind(source, target, recursive=True)):
        kernel.umount(target / "gone")
    assert at(target) == []
    assert len(at(source / "gone")) == 1


@on_both_faces
async def test_a_file_is_bound(face, source, mount_dir):
    (target := mount_dir / "file").touch()
    async with block(face.library.bind(source / "file", target)) as mount:
        assert target.read_text() == "content"
        assert os.path.samestat(os.stat(mount.fd), (source / "file").stat())
    assert target.read_text() == ""
    assert at(target) == []


@on_both_faces
async def test_a_source_may_be_a_descriptor(face, source, target):
    fd = os.open(source, os.O_PATH)
    opened = await face.openat2(AT_FDCWD, source, os.O_RDONLY)
    for given in (fd, opened):
        async with block(face.library.bind(given, target)):
            assert (target / "file").read_text() == "content"
        assert at(target) == []
        os.fstat(given)
    os.close(fd)
    await face.close(opened)


@pytest.mark.parametrize("form", [str, os.fsencode, Path], ids=["str", "bytes", "path"])
def test_strange_names_are_bound(mount_dir, form):
    for name in ("source", "target"):
        (mount_dir / (os.fsdecode(STRANGE) + name)).mkdir()
    source, target = (mount_dir / (os.fsdecode(STRANGE) + n) for n in ("source", "target"))
    with bind(form(source), form(target)):
        assert os.path.samestat(source.stat(), target.stat())
        assert len(at(target)) == 1
    assert at(target) == []


def test_a_symlink_as_source_is_followed_as_mount_does(source, target, mount_dir):
    (mount_dir / "link").symlink_to("source")
    with bind(mount_dir / "link", target):
        assert os.path.samestat(source.stat(), target.stat())


def test_a_symlink_as_target_is_not_followed(source, target, mount_dir):
    (mount_dir / "link").symlink_to("target")
    with traces.none(mount_dir), pytest.raises(OSError) as failed:
        with bind(source, mount_dir / "link"):
            raise AssertionError("bound")
    assert failed.value.errno in (errno.EINVAL, errno.ENOTDIR)


def test_a_bind_that_is_kept_stays(source, target):
    with bind(source, target, keep=True) as mount:
        pass
    assert mount.fd.closed
    assert len(at(target)) == 1


# Attributes


CAREFUL = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC


@pytest.mark.parametrize("recursive", [False, True])
def test_attributes_are_those_of_the_bind_and_not_of_the_source(source, target, recursive):
    attr = CAREFUL | MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOATIME
    before = at(source) + at(source / "below")
    with bind(source, target, attr=attr, recursive=recursive):
        for point in [target] + [target / "below"] * recursive:
            (line,) = at(point)
            assert set(line.options.split(",")) == {"ro", "nosuid", "nodev", "noexec", "noatime"}
            with pytest.raises(OSError) as failed:
                (point / "new").touch()
            assert failed.value.errno == errno.EROFS
        assert at(source) + at(source / "below") == before
        (source / "new").touch()
    assert at(target) == []


def test_attributes_are_set_in_addition_to_those_of_the_source(mount_dir, target):
    nosuid, noatime = 2, 1 << 10
    source = make(mount_dir, "careful", flags=nosuid | noatime)
    with bind(source, target, attr=MOUNT_ATTR_NODEV):
        assert set(at(target)[0].options.split(",")) == {"rw", "nosuid", "nodev", "noatime"}


def test_an_attribute_that_does_not_exist_leaves_nothing(source, target):
    with traces.none(source.parent), pytest.raises(OSError) as failed:
        with bind(source, target, attr=1 << 30):
            raise AssertionError("bound")
    assert failed.value.errno == errno.EINVAL
    assert f"binding {str(source)!r}" in notes(failed.value).replace("PosixPath(", "")


# Propagation


def kind(line):
    return {tag.split(":")[0] for tag in line.tags}


PROPAGATION = {
    "private": (MS_PRIVATE, set()),
    "shared": (MS_SHARED, {"shared"}),
    "slave": (MS_SLAVE, {"master"}),
    "unbindable": (MS_UNBINDABLE, {"unbindable"}),
}


@pytest.mark.parametrize(("propagation", "tags"), PROPAGATION.values(), ids=PROPAGATION)
@pytest.mark.parametrize("target_shared", [False, True])
@pytest.mark.parametrize("recursive", [False, True])
def test_the_propagation_is_as_asked_for(mount_dir, propagation, tags, target_shared, recursive):
    """Of a shared source, or its copy would have no master."""
    source_is_master = recursive and propagation == MS_SHARED
    source, place = make(mount_dir, "source"), make(mount_dir, "place")
    kernel.mount(None, source, None, kernel.MS_SHARED)
    make(source, "below")
    (target := place / "target").mkdir()
    if target_shared and propagation != MS_UNBINDABLE:  # what cannot be bound reaches no peer
        kernel.mount(None, place, None, kernel.MS_SHARED)
    with bind(source, target, propagation=propagation, recursive=recursive):
        for point in [target] + [target / "below"] * recursive:
            (line,) = at(point)
            assert kind(line) == (tags | {"master"} if source_is_master else tags)
            if propagation == MS_SHARED:
                (shared,) = at(source / point.relative_to(target))[0].tags
                expected = shared.replace("shared", "master") if source_is_master else shared
                assert expected in line.tags
        assert kind(at(source)[0]) == {"shared"}


@pytest.mark.parametrize("propagation", [0, MS_SHARED, MS_SLAVE, MS_PRIVATE], ids=str)
def test_the_end_of_a_recursive_bind_leaves_a_shared_source_as_it_was(mount_dir, propagation):
    """Which takes care: the two are peers, and what is unmounted at one is unmounted at both."""
    source = make(mount_dir, "source")
    kernel.mount(None, source, None, kernel.MS_SHARED)
    make(make(source, "below"), "deeper")
    (mount_dir / "target").mkdir()
    before = traces.below(mount_dir)
    with bind(source, mount_dir / "target", recursive=True, propagation=propagation):
        assert len(at(mount_dir / "target" / "below" / "deeper")) == 1
    assert traces.below(mount_dir) == before


def test_a_copy_that_came_up_at_a_peer_of_the_target_goes_with_the_bind(mount_dir, source):
    place, peer = make(mount_dir, "place"), mount_dir / "peer"
    peer.mkdir()
    kernel.mount(None, place, None, kernel.MS_SHARED)
    kernel.mount(place, peer, None, kernel.MS_BIND)
    (place / "target").mkdir()
    before = traces.below(mount_dir)
    for propagation in (0, MS_SHARED):
        with bind(source, place / "target", recursive=True, propagation=propagation):
            assert len(at(peer / "target" / "below")) == 1
        assert traces.below(mount_dir) == before


@pytest.mark.parametrize("propagation", [MS_PRIVATE | MS_SHARED, -5, 1 << 70, "private"])
def test_propagation_that_is_none_is_refused_when_the_block_is_made(source, target, propagation):
    with faults.count(None) as calls, pytest.raises(ValueError, match="MS_SHARED"):
        bind(source, target, propagation=propagation)
    assert calls.seen == 0


@pytest.mark.parametrize("attr", [-1, 1 << 64])
def test_attributes_that_do_not_fit_are_refused_when_the_block_is_made(source, target, attr):
    with faults.count(None) as calls, pytest.raises(OverflowError):
        bind(source, target, attr=attr)
    assert calls.seen == 0


# Ids


TEN = (IdmapMapping(0, 100000, 10),)
THREE = (
    IdmapMapping(0, 100000, 1000),
    IdmapMapping(1000, 300000, 5),
    IdmapMapping(70000, 500, 1),
)
NOBODY = 65534


@contextmanager
def filesystem_of(kind, directory):
    """A filesystem with a file that belongs to 5 and 6, and one of each id of interest."""
    owners = {"five": (5, 6), "edge": (1004, 1004), "far": (70000, 70000), "out": (2000, 2000)}
    content, disk = directory / "content", directory / "disk"
    content.mkdir()
    disk.mkdir()

    def fill(place):
        for name, (uid, gid) in owners.items():
            (place / name).write_text(name)
            os.chown(place / name, uid, gid)

    with ExitStack() as stack:
        if kind == "tmpfs":
            stack.enter_context(mounted("tmpfs", disk))
        else:
            if kind == "squashfs":
                fill(content)
            image = make_image(kind, directory / "image", content)
            stack.enter_context(mounted(kind, disk, source=image, loop=True))
        if kind != "squashfs":
            fill(disk)
        yield disk


@pytest.fixture(scope="module", params=["tmpfs", *DISKS])
def owned(request, tmp_path_factory):
    with filesystem_of(request.param, tmp_path_factory.mktemp("owned")) as disk:
        yield disk


def owner(path):
    status = path.stat()
    return status.st_uid, status.st_gid


@needs_root
@on_both_faces
async def test_a_file_of_5_shows_as_one_of_100005(face, owned, target):
    async with block(face.library.bind(owned, target, idmap=(TEN, TEN))):
        assert owner(target / "five") == (100005, 100006)
        assert owner(target / "edge") == (NOBODY, NOBODY)
        assert owner(owned / "five") == (5, 6)
        assert "idmapped" in at(target)[0].options.split(",")
    assert at(target) == []


@needs_root
def test_three_ranges_are_mapped(owned, target):
    with bind(owned, target, idmap=(THREE, THREE)):
        assert owner(target / "five") == (100005, 100006)
        assert owner(target / "edge") == (300004, 300004)
        assert owner(target / "far") == (500, 500)
        assert owner(target / "out") == (NOBODY, NOBODY)


@needs_root
def test_uids_and_gids_have_maps_of_their_own(owned, target):
    with bind(owned, target, idmap=([(5, 20, 1)], [(6, 30, 1), (7, 6, 1)])):
        assert owner(target / "five") == (20, 30)


@needs_root
def test_a_chown_through_the_bind_is_mapped_back(owned, target):
    if at(owned)[0].fs_type == "squashfs":
        with bind(owned, target, idmap=(TEN, TEN)), pytest.raises(OSError) as failed:
            os.chown(target / "five", 100007, 100008)
        assert failed.value.errno == errno.EROFS
        return
    (owned / "mine").touch()
    with bind(owned, target, idmap=(TEN, TEN)):
        os.chown(target / "mine", 100007, 100008)
        assert owner(owned / "mine") == (7, 8)
        with pytest.raises(OSError) as failed:
            os.chown(target / "mine", 5, 5)
        assert failed.value.errno == errno.EOVERFLOW
    assert owner(owned / "mine") == (7, 8)


@needs_root
def test_a_bind_may_be_idmapped_by_a_descriptor(owned, target):
    with idmap_userns(TEN, TEN) as userns:
        for given in (userns, int(userns), open(f"/proc/self/fd/{userns}")):
            with bind(owned, target, idmap=given):
                assert owner(target / "five") == (100005, 100006)
            if hasattr(given, "name"):
                given.close()


@needs_root
def test_a_recursive_bind_is_idmapped_whole(source, target):
    for file in (source / "file", source / "below" / "file"):
        os.chown(file, 5, 6)
    with bind(source, target, idmap=(TEN, TEN), recursive=True, attr=MOUNT_ATTR_RDONLY):
        for point in (target, target / "below"):
            assert owner(point / "file") == (100005, 100006)
            assert {"ro", "idmapped"} <= set(at(point)[0].options.split(","))
    with bind(source, target, idmap=(TEN, TEN)):
        assert owner(target / "file") == (100005, 100006)


@needs_root
def test_ids_attributes_and_propagation_go_together(owned, target):
    attr = MOUNT_ATTR_NOATIME | MOUNT_ATTR_NOSUID
    with bind(owned, target, idmap=(TEN, TEN), attr=attr, propagation=MS_SHARED):
        (line,) = at(target)
        assert {"idmapped", "noatime", "nosuid"} <= set(line.options.split(","))
        assert kind(line) == {"shared"}


@needs_root
def test_proc_cannot_be_idmapped_and_the_error_says_so(target):
    with traces.none(target.parent), pytest.raises(OSError) as failed:
        with bind("/proc", target, idmap=(TEN, TEN)):
            raise AssertionError("bound")
    assert failed.value.errno == errno.EINVAL
    assert "cannot be idmapped" in notes(failed.value)


ZERO = (IdmapMapping(0, 0, 1),)


def test_an_ordinary_users_own_id_is_mapped(source, target):
    """Such a user has one id only, which root in the user namespace can map."""
    with bind(source, target, idmap=(ZERO, ZERO)):
        assert "idmapped" in at(target)[0].options.split(",")
        assert owner(target / "file") == (0, 0)
    assert at(target) == []


def test_an_overlay_cannot_be_idmapped_and_the_error_says_so(mount_dir, target):
    for name in ("a", "b", "merged"):
        (mount_dir / name).mkdir()
    data = f"lowerdir={mount_dir}/a:{mount_dir}/b".encode()
    kernel.mount("overlay", mount_dir / "merged", "overlay", 0, data)
    with traces.none(mount_dir), pytest.raises(OSError) as failed:
        with bind(mount_dir / "merged", target, idmap=(ZERO, ZERO)):
            raise AssertionError("bound")
    assert failed.value.errno == errno.EINVAL
    assert "overlay" in notes(failed.value)


BAD_IDMAPS = {
    "one map": (TEN,),
    "three maps": (TEN, TEN, TEN),
    "empty": ((), TEN),
    "overlap": (TEN, TEN + TEN),
    "list": [TEN, TEN],
    "text": "u:0:1:1",
}


@pytest.mark.parametrize("idmap", BAD_IDMAPS.values(), ids=BAD_IDMAPS)
def test_idmaps_that_are_none_are_refused_when_the_block_is_made(source, target, idmap):
    with pytest.raises((ValueError, TypeError)):
        bind(source, target, idmap=idmap)


def test_a_descriptor_that_is_no_user_namespace_leaves_nothing(source, target):
    with open("/proc/self/ns/mnt") as namespace, traces.none(source.parent):
        with pytest.raises(OSError) as failed:
            with bind(source, target, idmap=namespace):
                raise AssertionError("bound")
    assert failed.value.errno == errno.EINVAL


# Errors


@on_both_faces
async def test_a_source_that_does_not_exist_is_named(face, mount_dir, target):
    with traces.none(mount_dir), pytest.raises(FileNotFoundError) as failed:
        async with block(face.library.bind(mount_dir / "missing", target)):
            raise AssertionError("bound")
    assert failed.value.filename == str(mount_dir / "missing")
    assert str(target) in notes(failed.value)


@on_both_faces
async def test_a_target_that_does_not_exist_is_named(face, source, target):
    with traces.none(source.parent), pytest.raises(FileNotFoundError) as failed:
        async with block(face.library.bind(source, target / "missing")):
            raise AssertionError("bound")
    assert failed.value.filename == str(target / "missing")
    assert str(source) in notes(failed.value)


def test_a_descriptor_that_is_closed_is_EBADF(source, target):
    fd = os.open(source, os.O_PATH)
    os.close(fd)
    with traces.none(source.parent), pytest.raises(OSError) as failed:
        with bind(fd, target):
            raise AssertionError("bound")
    assert failed.value.errno == errno.EBADF
    with pytest.raises(TypeError):
        bind(None, target)


def test_an_unbindable_source_is_EINVAL(source, target):
    kernel.mount(None, source, None, kernel.MS_UNBINDABLE)
    with traces.none(source.parent), pytest.raises(OSError) as failed:
        with bind(source, target):
            raise AssertionError("bound")
    assert failed.value.errno == errno.EINVAL
    assert failed.value.filename == str(source)
