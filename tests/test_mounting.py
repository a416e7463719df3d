# SPDX-License-Identifier: LGPL-3.0-or-later
"""mounted: what it takes, what is mounted then, and what its errors say."""

import errno
import os
import subprocess
from contextlib import ExitStack
from pathlib import Path

import faults
import kernel
import pytest
import traces
from faces import block, on_both_faces
from filesystems import DISKS, make_image, needs_root
from traces import at
from witness import STRANGE, id_of, notes

from truenas_os import blocking
from truenas_os.blocking import (
    MOUNT_ATTR_IDMAP,
    MOUNT_ATTR_NOATIME,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    mounted,
)


@pytest.fixture
def target(mount_dir):
    (mount_dir / "target").mkdir()
    return mount_dir / "target"


@on_both_faces
async def test_a_filesystem_is_mounted_for_the_time_of_the_block(face, target):
    before = kernel.open_fds()
    async with block(face.library.mounted("tmpfs", target)) as mount:
        (line,) = at(target)
        assert (line.fs_type, line.source, line.root) == ("tmpfs", "none", "/")
        assert mount.mnt_id == id_of(target)
        assert mount.target == str(target)
        assert type(mount) is face.library.Mount
    assert at(target) == []
    assert kernel.open_fds() == before


@on_both_faces
async def test_the_descriptor_is_the_root_of_the_mount_and_closed_at_its_end(face, target):
    async with block(face.library.mounted("tmpfs", target)) as mount:
        assert type(mount.fd) is face.Fd
        assert not os.get_inheritable(mount.fd)
        assert os.path.samestat(os.stat(mount.fd), target.stat())
        os.mkdir("made", dir_fd=mount.fd)
        assert os.listdir(target) == ["made"]
    assert mount.fd.closed


@on_both_faces
async def test_the_block_may_close_the_descriptor_itself(face, target):
    before = kernel.open_fds()
    async with block(face.library.mounted("tmpfs", target)) as mount:
        await face.close(mount.fd)
        assert kernel.open_fds() == before
    assert at(target) == []


@on_both_faces
async def test_an_exception_in_the_block_comes_out_of_it_and_the_mount_is_gone(face, target):
    with pytest.raises(ZeroDivisionError):
        async with block(face.library.mounted("tmpfs", target)):
            raise ZeroDivisionError
    assert at(target) == []


@on_both_faces
async def test_nested_blocks_unmount_inner_mounts_first(face, target):
    async with block(face.library.mounted("tmpfs", target, source="outer")):
        inner = target / "inner"
        inner.mkdir()
        async with block(face.library.mounted("tmpfs", inner, source="inner")):
            async with block(face.library.mounted("tmpfs", inner, source="on top")):
                sources = [line.source for line in at(target) + at(inner)]
                assert sources == ["outer", "inner", "on top"]
        assert [line.source for line in at(target) + at(inner)] == ["outer"]
    assert at(target) == []


@on_both_faces
async def test_a_mount_that_is_kept_stays_and_its_descriptor_does_not(face, target):
    before = kernel.open_fds()
    async with block(face.library.mounted("tmpfs", target, keep=True)) as mount:
        pass
    assert mount.mnt_id == id_of(target)
    assert mount.fd.closed
    assert kernel.open_fds() == before
    kernel.umount(target)


@on_both_faces
async def test_a_block_cannot_be_entered_while_it_lasts(face, target):
    manager = face.library.mounted("tmpfs", target)
    async with block(manager):
        with pytest.raises(RuntimeError, match="begun"):
            async with block(manager):
                raise AssertionError("entered")
        assert len(at(target)) == 1
    assert at(target) == []


@on_both_faces
async def test_a_manager_that_is_never_entered_does_nothing(face, target):
    face.library.mounted("tmpfs", target / "missing", mkdir=True)
    assert not (target / "missing").exists()


# Disks


@pytest.fixture(scope="module", params=DISKS)
def disk(request, tmp_path_factory):
    """An image of a filesystem, whose file name is the type."""
    return make_image(request.param, tmp_path_factory.mktemp("disk") / request.param)


@needs_root
def test_a_file_that_holds_a_filesystem_is_mounted_by_a_loop_device(face, disk, target):
    with traces.none(target, disk):

        async def body(face):
            async with block(face.library.mounted(disk.name, target, source=disk, loop=True)):
                (line,) = at(target)
                (device,) = traces.loop_devices(disk)
                assert (line.fs_type, line.source) == (disk.name, f"/dev/{device}")

        face.face.run(body, face.face)


@needs_root
def test_what_is_written_through_a_loop_device_is_in_the_file(disk, target):
    if disk.name == "squashfs":
        with mounted("squashfs", target, source=disk, loop=True):
            assert "ro" in at(target)[0].super_options.split(",")
        return
    with mounted(disk.name, target, source=str(disk), loop=True):
        (target / "written").write_text("content")
    assert not (target / "written").exists()
    with mounted(disk.name, target, source=os.fsencode(disk), loop=True):
        assert (target / "written").read_text() == "content"


@needs_root
def test_a_device_of_ones_own_is_mounted_and_stays(disk, target):
    command = ["losetup", "--find", "--show", disk]
    device = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.decode().strip()
    try:
        with mounted(disk.name, target, source=device):
            assert at(target)[0].source == device
        assert traces.loop_devices(disk) == [Path(device).name]
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


@needs_root
@pytest.mark.parametrize("read_only", [{"attr": MOUNT_ATTR_RDONLY}, {"ro": True}], ids=str)
def test_a_file_that_is_mounted_read_only_is_not_written_to(disk, target, read_only):
    with mounted(disk.name, target, source=disk, loop=True, **read_only):
        assert os.statvfs(target).f_flag & os.ST_RDONLY
        with pytest.raises(OSError) as failed:
            (target / "file").touch()
        assert failed.value.errno == errno.EROFS
    assert at(target) == []
    assert traces.loop_devices(disk) == []


@needs_root
def test_a_file_that_holds_another_filesystem_leaves_no_loop_device(disk, target):
    wrong = "squashfs" if disk.name != "squashfs" else "ext4"
    with traces.none(target, disk):
        with pytest.raises(OSError) as failed:
            with mounted(wrong, target, source=disk, loop=True):
                raise AssertionError("mounted")
        assert failed.value.errno == errno.EINVAL
        assert f"mounting {wrong} from {disk} at" in notes(failed.value)


@needs_root
def test_the_kernels_words_about_a_disk_are_in_the_error(tmp_path, target):
    image = make_image("ext4", tmp_path / "ext4")
    with pytest.raises(OSError) as failed:
        with mounted("squashfs", target, source=image, loop=True):
            raise AssertionError("mounted")
    assert any("SQUASHFS superblock" in line for line in failed.value.messages)
    assert "SQUASHFS superblock" in notes(failed.value)


def test_loop_needs_a_file_that_exists(target):
    with pytest.raises(ValueError, match="source"):
        mounted("ext4", target, loop=True)
    with pytest.raises(FileNotFoundError) as failed:
        with mounted("ext4", target, source=target / "missing", loop=True):
            raise AssertionError("mounted")
    assert failed.value.filename == str(target / "missing")


# Options


GIB = "size=1048576k"


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({"size": 1 << 30}, {GIB}),
        ({"size": "1G"}, {GIB}),
        ({"size": b"1G"}, {GIB}),
        ({"size": Path("1G")}, {GIB}),
        ({"size": "1G", "nr_inodes": 100, "mode": "700"}, {GIB, "nr_inodes=100", "mode=700"}),
        ({"ro": True}, {"ro"}),
        ({"rw": True, "size": "1G"}, {"rw", GIB}),
    ],
    ids=str,
)
@pytest.mark.parametrize("form", ["keywords", "mapping", "both"])
def test_options_are_keywords_or_a_mapping(target, options, shown, form):
    names = list(options)
    cut = {"keywords": 0, "mapping": len(names), "both": 1}[form]
    mapping = {name: options[name] for name in names[:cut]}
    keywords = {name: options[name] for name in names[cut:]}
    with mounted("tmpfs", target, options=mapping, **keywords):
        assert shown <= set(at(target)[0].super_options.split(","))
    assert mapping.keys() | keywords.keys() == options.keys()  # and nothing was changed in it


def test_numbers_are_what_the_kernel_gets(target):
    with mounted("tmpfs", target, size=1 << 30, nr_inodes=77):
        assert os.statvfs(target).f_blocks * os.statvfs(target).f_frsize == 1 << 30
        assert os.statvfs(target).f_files == 77


def test_an_option_may_be_a_descriptor(mount_dir, target):
    with ExitStack() as stack:
        fds = {}
        for name in ("lowerdir+", "upperdir", "workdir"):
            (mount_dir / name).mkdir()
            fds[name] = blocking.openat2(blocking.AT_FDCWD, mount_dir / name, os.O_PATH)
            stack.enter_context(fds[name])
        with mounted("overlay", target, options=fds):
            (target / "new").write_text("new")
    assert os.listdir(mount_dir / "upperdir") == ["new"]


@pytest.mark.parametrize("source", ["text", b"bytes \xff", Path("a path"), "new\nline \\040", ""])
def test_a_source_may_be_any_text(target, source):
    with mounted("tmpfs", target, source=source):
        assert os.fsencode(at(target)[0].source) == os.fsencode(source)


def test_attributes_are_those_of_the_mount(target):
    careful = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC | MOUNT_ATTR_NOATIME
    with mounted("tmpfs", target, attr=careful | MOUNT_ATTR_RDONLY):
        (line,) = at(target)
        assert set(line.options.split(",")) == {"ro", "nosuid", "nodev", "noexec", "noatime"}
        assert line.super_options.startswith("rw")


BAD_OPTIONS = {
    "False": ({"ro": False}, ValueError, "ro"),
    "None": ({"size": None}, TypeError, "needs a value"),
    "float": ({"size": 1.5}, TypeError, "float"),
    "list": ({"size": ["1G"]}, TypeError, "list"),
    "NUL": ({"size": "1\0G"}, ValueError, "null"),
    "256 characters": ({"size": "1" * 256}, ValueError, "255"),
    "256 bytes": ({"size": b"1" * 256}, ValueError, "255"),
    "130 letters that are 260 bytes": ({"size": "é" * 130}, ValueError, "255"),
    "long name": ({"n" * 256: "1"}, ValueError, "255"),
}


@pytest.mark.parametrize(("options", "error", "words"), BAD_OPTIONS.values(), ids=BAD_OPTIONS)
def test_options_that_no_kernel_takes_are_refused_before_any_system_call(
    target, options, error, words
):
    with faults.count(None) as calls, pytest.raises(error, match=words):
        mounted("tmpfs", target, options=options)
    assert calls.seen == 0


def test_an_option_given_twice_is_refused(target):
    with pytest.raises(TypeError, match=r"twice.*size"):
        mounted("tmpfs", target, options={"size": "1G"}, size="2G")


def test_a_source_given_twice_is_refused(target):
    with pytest.raises((TypeError, OSError)):
        with mounted("tmpfs", target, source="one", options={"source": "two"}):
            raise AssertionError("mounted")


def test_a_text_of_255_bytes_reaches_the_kernel(target):
    with mounted("tmpfs", target, source="s" * 255):
        assert at(target)[0].source == "s" * 255


def test_a_longer_source_is_refused_as_a_text_and_passed_on_as_a_path(target):
    with pytest.raises(ValueError, match="255"):
        mounted("tmpfs", target, source="s" * 256)
    # Whether to take it is then the filesystem's to say: this one's source is no path.
    with pytest.raises(OSError) as failed:
        with mounted("tmpfs", target, source=Path("s" * 200, "s" * 200)):
            raise AssertionError("mounted")
    assert failed.value.errno in (errno.EINVAL, errno.ENOENT)


@pytest.mark.parametrize("path", ["nul\0", b"nul\0"])
def test_a_target_with_a_NUL_is_refused(path):
    with pytest.raises(ValueError, match="null"):
        mounted("tmpfs", path)


def test_a_target_must_be_a_path():
    with pytest.raises(TypeError):
        mounted("tmpfs", 3)
    with pytest.raises(TypeError):
        mounted("tmpfs", None)


@pytest.mark.parametrize(
    ("attr", "error"), [(-1, OverflowError), (1 << 40, OverflowError), (1.5, TypeError)]
)
def test_attributes_that_do_not_fit_are_refused_before_any_system_call(target, attr, error):
    with faults.count(None) as calls:
        with pytest.raises(error):
            mounted("tmpfs", target, attr=attr)
        with pytest.raises(error):
            blocking.overlay(target, [target, target], attr=attr)
    assert calls.seen == 0


def test_a_new_mount_cannot_be_idmapped(target):
    with pytest.raises(ValueError, match="bind"):
        mounted("tmpfs", target, attr=MOUNT_ATTR_IDMAP)


# Errors


BAD_BEGINNINGS = {
    "unknown option": ({"bogus": "1"}, errno.EINVAL, "Unknown parameter 'bogus'"),
    "unknown flag": ({"bogus": True}, errno.EINVAL, "Unknown parameter 'bogus'"),
    "bad value": ({"size": "huge"}, errno.EINVAL, "Bad value for 'size'"),
    "bad number": ({"nr_inodes": -1}, errno.EINVAL, None),
    "value for a flag": ({"inode64": "yes"}, errno.EINVAL, "inode64"),
}


@pytest.mark.parametrize(("options", "code", "words"), BAD_BEGINNINGS.values(), ids=BAD_BEGINNINGS)
def test_an_error_names_the_target_and_has_the_kernels_words(face, target, options, code, words):
    async def body(face):
        with pytest.raises(OSError) as failed:
            async with block(face.library.mounted("tmpfs", target, options=options)):
                raise AssertionError("mounted")
        return failed.value

    with traces.none(target):
        error = face.face.run(body, face.face)
    assert error.errno == code
    assert error.filename == str(target)
    assert "mounting tmpfs at" in notes(error)
    assert str(target) in notes(error)
    if words:
        assert words in notes(error)
        assert any(words in line for line in error.messages)


@pytest.mark.parametrize("option", ["noatime", "nosuid", "nodev", "noexec", "relatime"])
def test_an_attribute_among_the_options_is_pointed_out(target, option):
    with pytest.raises(OSError) as failed:
        with mounted("tmpfs", target, options={option: True}):
            raise AssertionError("mounted")
    assert f"MOUNT_ATTR_{option.upper()}" in notes(failed.value)


def test_an_unknown_filesystem_is_ENODEV(target):
    with pytest.raises(OSError) as failed:
        with mounted("nosuchfs", target):
            raise AssertionError("mounted")
    assert failed.value.errno == errno.ENODEV
    assert "mounting nosuchfs at" in notes(failed.value)


@on_both_faces
async def test_a_target_that_does_not_exist_is_named(face, target):
    missing = target / "missing" / "too"
    with traces.none(target):
        with pytest.raises(FileNotFoundError) as failed:
            async with block(face.library.mounted("tmpfs", missing)):
                raise AssertionError("mounted")
    assert failed.value.filename == str(missing)
    assert failed.value.filename2 is None


# move_mount(2) says EINVAL, mount(2) says ENOTDIR.
NO_DIRECTORY = (errno.EINVAL, errno.ENOTDIR)


def test_a_file_as_target_is_refused_and_nothing_is_mounted(target):
    (target / "file").touch()
    with traces.none(target), pytest.raises(OSError) as failed:
        with mounted("tmpfs", target / "file"):
            raise AssertionError("mounted")
    assert failed.value.errno in NO_DIRECTORY
    assert failed.value.filename == str(target / "file")


@pytest.mark.parametrize("mkdir", [False, True])
@pytest.mark.parametrize("kind", ["to a directory", "dangling"])
def test_a_symlink_as_target_is_refused_and_nothing_is_mounted(target, kind, mkdir):
    (target / "directory").mkdir()
    (target / "link").symlink_to("directory" if kind == "to a directory" else "missing")
    with traces.none(target), pytest.raises(OSError) as failed:
        with mounted("tmpfs", target / "link", mkdir=mkdir):
            raise AssertionError("mounted")
    assert failed.value.errno in NO_DIRECTORY
    assert failed.value.filename == str(target / "link")


# Names


HOSTILE = [
    *(b"new\nline", b"tab\t", b" spaces  ", b"\\040", b"back\\slash", b"#hash", b"'\"`$(x)"),
    *(b"latin-1 \xe9\xff", "utf-8 é漢".encode(), STRANGE, b"n" * 255, b"-rf", b"..."),
]


@pytest.mark.parametrize("name", HOSTILE, ids=repr)
@pytest.mark.parametrize("form", ["bytes", "str", "path"])
def test_a_target_may_have_any_name(target, name, form):
    raw = os.fsencode(target) + b"/" + name
    path = {"bytes": raw, "str": os.fsdecode(raw), "path": Path(os.fsdecode(raw))}[form]
    with traces.none(target):
        with mounted("tmpfs", path, mkdir=True) as mount:
            assert len(at(os.fsdecode(raw))) == 1
            assert os.fsencode(mount.target) == raw
            assert id_of(raw) == mount.mnt_id


@on_both_faces
async def test_a_target_deeper_than_any_path_is_mounted_and_unmounted(face, mount_dir, monkeypatch):
    monkeypatch.chdir(mount_dir)
    for _ in range(25):
        os.mkdir("d" * 200)
        os.chdir("d" * 200)
    os.mkdir("target")
    async with block(face.library.mounted("tmpfs", "target")):
        os.chdir("/")  # a relative target is that of the beginning
        (point,) = traces.below(mount_dir)
        assert len(point) > 5000
    assert traces.below(mount_dir) == []


@on_both_faces
async def test_the_working_directory_may_change_during_the_block(face, target, monkeypatch):
    monkeypatch.chdir(target)
    async with block(face.library.mounted("tmpfs", "a/b", mkdir=True)):
        assert len(at(target / "a" / "b")) == 1
        monkeypatch.chdir("/")
    assert at(target / "a" / "b") == []
    assert os.listdir(target) == []


# Directories


@on_both_faces
async def test_missing_directories_are_made_and_only_those_are_removed(face, target):
    (target / "there").mkdir()
    nested = target / "there" / "a" / "b" / "c"
    async with block(face.library.mounted("tmpfs", nested, mkdir=True)):
        assert len(at(nested)) == 1
        assert os.listdir(target / "there") == ["a"]
    assert traces.names(target) == [str(target / "there")]


@on_both_faces
async def test_a_directory_that_was_there_stays(face, target):
    async with block(face.library.mounted("tmpfs", target, mkdir=True)):
        pass
    assert target.is_dir()


@on_both_faces
async def test_a_directory_into_which_something_was_put_stays(face, target):
    async with block(face.library.mounted("tmpfs", target / "a" / "b", mkdir=True)):
        (target / "a" / "other").touch()
    assert traces.names(target) == [str(target / "a"), str(target / "a" / "other")]


@on_both_faces
async def test_directories_are_kept_with_a_mount_that_is_kept(face, target):
    async with block(face.library.mounted("tmpfs", target / "a", mkdir=True, keep=True)):
        pass
    assert len(at(target / "a")) == 1
    kernel.umount(target / "a")


@on_both_faces
async def test_no_directory_is_left_when_mounting_fails(face, target):
    with traces.none(target):
        with pytest.raises(OSError):
            async with block(
                face.library.mounted("tmpfs", target / "a" / "b", mkdir=True, size="huge")
            ):
                raise AssertionError("mounted")


def test_no_directory_is_left_when_one_cannot_be_made(target):
    with traces.none(target):
        with pytest.raises(OSError) as failed:
            with mounted("tmpfs", target / "a" / ("n" * 256), mkdir=True):
                raise AssertionError("mounted")
    assert failed.value.errno == errno.ENAMETOOLONG


def test_directories_are_made_where_the_kernel_looks_for_them(target):
    """Behind a symlink, ``..`` is not what it seems."""
    (target / "far" / "away").mkdir(parents=True)
    (target / "link").symlink_to("far/away")
    with traces.none(target):
        with mounted("tmpfs", target / "link" / ".." / "new", mkdir=True):
            assert len(at(target / "far" / "new")) == 1


@pytest.mark.parametrize("ending", ["/", "//", "/."])
def test_a_target_may_end_in_slashes(target, ending):
    with traces.none(target):
        with mounted("tmpfs", f"{target}/made{ending}", mkdir=True):
            assert len(at(target / "made")) == 1
