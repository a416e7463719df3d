# SPDX-License-Identifier: LGPL-3.0-or-later
"""remount and set_attr: changes to what is mounted."""

import errno
import os

import faults
import pytest
import traces
from faces import on_both_faces
from filesystems import make_image, needs_root
from traces import at
from witness import STRANGE, bind, make, notes

from truenas_os import blocking
from truenas_os.blocking import (
    AT_FDCWD,
    MOUNT_ATTR__ATIME,
    MOUNT_ATTR_IDMAP,
    MOUNT_ATTR_NOATIME,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    MOUNT_ATTR_STRICTATIME,
    MS_PRIVATE,
    MS_SHARED,
    MS_SLAVE,
    mounted,
    remount,
    set_attr,
)


@pytest.fixture
def target(mount_dir):
    return make(mount_dir, "target", data=b"size=1m")


def options(path):
    return set(at(path)[-1].options.split(","))


def size(path):
    found = os.statvfs(path)
    return found.f_blocks * found.f_frsize


# remount


@on_both_faces
async def test_the_size_of_a_tmpfs_is_changed(face, target):
    for given, expected in (("2M", 2 << 20), (3 << 20, 3 << 20), (b"4M", 4 << 20)):
        await face.remount(target, size=given)
        assert size(target) == expected
    await face.remount(target, options={"size": "5M", "nr_inodes": 99})
    assert (size(target), os.statvfs(target).f_files) == (5 << 20, 99)


def test_what_is_not_named_stays(target):
    (target / "file").write_text("content")
    before = at(target)
    remount(target, size="2M")
    remount(target)
    assert (target / "file").read_text() == "content"
    assert [m._replace(super_options="") for m in at(target)] == [
        m._replace(super_options="") for m in before
    ]
    assert size(target) == 2 << 20


def test_a_filesystem_is_made_read_only_and_back(target, mount_dir):
    (other := mount_dir / "other").mkdir()
    bind(target, other)  # it is the filesystem that changes, wherever it is mounted
    remount(target, ro=True)
    for path in (target, other):
        with pytest.raises(OSError) as failed:
            (path / "new").touch()
        assert failed.value.errno == errno.EROFS
    assert at(target)[0].super_options.startswith("ro")
    assert "rw" in options(target)
    remount(target, rw=True)
    (other / "new").touch()


@needs_root
@pytest.mark.parametrize("fs_type", ["ext4", "xfs", "btrfs"])
def test_a_disk_is_made_read_only_and_back(tmp_path, mount_dir, fs_type):
    image = make_image(fs_type, tmp_path / "image")
    with mounted(fs_type, mount_dir / "disk", source=image, loop=True, mkdir=True):
        remount(mount_dir / "disk", ro=True)
        assert os.statvfs(mount_dir / "disk").f_flag & os.ST_RDONLY
        remount(mount_dir / "disk", rw=True)
        (mount_dir / "disk" / "new").touch()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"size": "huge"}, "Bad value for 'size'"),
        ({"bogus": "1"}, "Unknown parameter 'bogus'"),
        ({"noexec": True}, "MOUNT_ATTR_NOEXEC"),
    ],
    ids=str,
)
def test_a_bad_option_is_an_error_with_the_kernels_words(face, target, given, words):
    before = at(target)
    with traces.none(target), pytest.raises(OSError) as failed:
        face.remount(target, **given)
    assert failed.value.errno == errno.EINVAL
    assert failed.value.filename == str(target)
    assert words in notes(failed.value)
    assert failed.value.messages != ()
    assert at(target) == before


def test_a_size_below_what_is_in_use_is_the_kernels_to_refuse(target):
    (target / "file").write_bytes(b"x" * (512 << 10))
    with pytest.raises(OSError) as failed:
        remount(target, size="64k")
    assert failed.value.errno == errno.EINVAL
    assert "Too small" in notes(failed.value)
    assert size(target) == 1 << 20


def test_a_symlink_is_not_followed(target, mount_dir):
    (link := mount_dir / "link").symlink_to("target")
    with pytest.raises(OSError) as failed:
        remount(link, size="2M")
    assert failed.value.errno == errno.EINVAL
    assert failed.value.filename == str(link)
    assert size(target) == 1 << 20


def test_what_is_no_mount_point_is_EINVAL(target):
    (target / "directory").mkdir()
    for path, error in (("directory", errno.EINVAL), ("missing", errno.ENOENT)):
        with pytest.raises(OSError) as failed:
            remount(target / path, size="2M")
        assert failed.value.errno == error
        assert failed.value.filename == str(target / path)


def test_an_option_may_be_called_as_an_argument_is(target):
    with pytest.raises(OSError) as failed:
        remount(target, target="1")
    assert "Unknown parameter 'target'" in notes(failed.value)


def test_options_that_no_kernel_takes_are_refused_before_any_system_call(target):
    with faults.count(None) as calls:
        for given, error in [
            ({"ro": False}, ValueError),
            ({"size": None}, TypeError),
            ({"size": 1.0}, TypeError),
            ({"size": "1" * 256}, ValueError),
            ({"options": {"size": 1}, "size": 1}, TypeError),
        ]:
            with pytest.raises(error):
                remount(target, **given)
    assert calls.seen == 0


@pytest.mark.parametrize("form", ["bytes", "str"])
def test_a_strange_name_is_remounted(mount_dir, form):
    target = make(mount_dir, os.fsdecode(STRANGE), data=b"size=1m")
    remount(os.fsencode(target) if form == "bytes" else str(target), size="2M")
    assert size(target) == 2 << 20


# set_attr


@on_both_faces
async def test_attributes_are_set_and_cleared(face, target):
    await face.set_attr(target, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV)
    assert options(target) == {"rw", "nosuid", "nodev", "relatime"}
    await face.set_attr(target, MOUNT_ATTR_RDONLY, clear=MOUNT_ATTR_NOSUID)
    assert options(target) == {"ro", "nodev", "relatime"}
    await face.set_attr(target, clear=MOUNT_ATTR_RDONLY | MOUNT_ATTR_NODEV)
    assert options(target) == {"rw", "relatime"}


def test_an_access_time_setting_replaces_the_one_before(target):
    set_attr(target, MOUNT_ATTR_NOATIME)
    assert options(target) == {"rw", "noatime"}
    set_attr(target, MOUNT_ATTR_STRICTATIME)
    assert options(target) == {"rw"}
    set_attr(target, MOUNT_ATTR_NOATIME | MOUNT_ATTR_NOEXEC)
    assert options(target) == {"rw", "noatime", "noexec"}
    set_attr(target, MOUNT_ATTR_NODEV)
    assert options(target) == {"rw", "noatime", "noexec", "nodev"}
    set_attr(target, clear=MOUNT_ATTR__ATIME)
    assert options(target) == {"rw", "relatime", "noexec", "nodev"}


def test_two_access_time_settings_at_once_are_the_kernels_to_refuse(target):
    with pytest.raises(OSError) as failed:
        set_attr(target, MOUNT_ATTR_NOATIME | MOUNT_ATTR_STRICTATIME)
    assert failed.value.errno == errno.EINVAL
    assert options(target) == {"rw", "relatime"}


@on_both_faces
async def test_recursively_all_mounts_below_are_changed(face, target):
    points = [target, make(target, "a"), make(target / "a", "b")]
    await face.set_attr(target, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOATIME, recursive=True)
    assert [options(point) for point in points] == [{"ro", "noatime"}] * 3
    await face.set_attr(target, clear=MOUNT_ATTR_RDONLY)
    assert [("ro" in options(point)) for point in points] == [False, True, True]


def test_recursively_all_mounts_are_changed_or_none(target):
    below = make(target, "below")
    with (below / "file").open("w"), pytest.raises(OSError) as failed:
        set_attr(target, MOUNT_ATTR_RDONLY, recursive=True)
    assert failed.value.errno == errno.EBUSY
    assert failed.value.filename == str(target)
    assert [options(point) for point in (target, below)] == [{"rw", "relatime"}] * 2


def test_the_propagation_is_changed(target, mount_dir):
    below = make(target, "below")

    def tags():
        return [[tag.split(":")[0] for tag in at(p)[0].tags] for p in (target, below)]

    set_attr(target, propagation=MS_SHARED)
    assert tags() == [["shared"], []]
    set_attr(target, propagation=MS_SHARED, recursive=True)
    assert tags() == [["shared"], ["shared"]]
    (mount_dir / "peer").mkdir()
    bind(target, mount_dir / "peer")
    set_attr(target, MOUNT_ATTR_NODEV, propagation=MS_SLAVE)
    assert tags() == [["master"], ["shared"]]
    assert "nodev" in options(target)
    set_attr(target, propagation=MS_PRIVATE, recursive=True)
    assert tags() == [[], []]


@on_both_faces
async def test_a_mount_may_be_named_by_a_descriptor(face, target, mount_dir):
    fd = await face.openat2(AT_FDCWD, target, os.O_PATH)
    for given in (fd, int(fd)):
        await face.set_attr(given, MOUNT_ATTR_NODEV)
        assert "nodev" in options(target)
        await face.set_attr(given, clear=MOUNT_ATTR_NODEV)
        assert "nodev" not in options(target)
    await face.close(fd)
    make(mount_dir, "other")


def test_a_descriptor_names_its_mount_though_another_covers_it(target):
    fd = os.open(target, os.O_PATH)
    make(target.parent, "target")
    set_attr(fd, MOUNT_ATTR_NODEV)
    assert ["nodev" in m.options.split(",") for m in at(target)] == [True, False]
    os.close(fd)


def test_neither_symlinks_nor_other_directories_are_mounts(target, mount_dir):
    (link := mount_dir / "link").symlink_to("target")
    (directory := target / "directory").mkdir()
    for path in (link, directory):
        with pytest.raises(OSError) as failed:
            set_attr(path, MOUNT_ATTR_NODEV)
        assert failed.value.errno == errno.EINVAL
        assert failed.value.filename == str(path)
    fd = os.open(directory, os.O_PATH)
    with pytest.raises(OSError) as failed:
        set_attr(fd, MOUNT_ATTR_NODEV)
    assert failed.value.errno == errno.EINVAL
    os.close(fd)
    assert options(target) == {"rw", "relatime"}


def test_arguments_that_are_none_are_refused(target):
    with pytest.raises(OSError) as failed:
        set_attr(target, 1 << 30)
    assert failed.value.errno == errno.EINVAL
    with pytest.raises((ValueError, OSError)):  # bind() is who does that
        set_attr(target, MOUNT_ATTR_IDMAP)
    with pytest.raises(TypeError):
        set_attr(None, MOUNT_ATTR_NODEV)


@pytest.mark.parametrize("bit", ["NOATIME", "STRICTATIME"])
def test_clearing_an_access_time_setting_leaves_relatime(mount_dir, bit):
    attribute = getattr(blocking, f"MOUNT_ATTR_{bit}")
    blocking.set_attr(mount_dir, attribute)
    blocking.set_attr(mount_dir, clear=attribute)
    (line,) = at(mount_dir)
    assert "relatime" in line.options.split(",")


def test_an_error_of_remount_has_messages_whatever_it_is(mount_dir):
    with pytest.raises(FileNotFoundError) as failed:
        blocking.remount(mount_dir / "none", size="1M")
    assert failed.value.messages == ()
    assert failed.value.filename == str(mount_dir / "none")
