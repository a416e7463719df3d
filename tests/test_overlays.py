# SPDX-License-Identifier: LGPL-3.0-or-later
"""overlay: layers by path and by descriptor, whatever their names."""

import errno
import os
from contextlib import ExitStack
from pathlib import Path

import faults
import kernel
import pytest
import traces
from faces import block, on_both_faces
from traces import at
from witness import STRANGE, notes

from truenas_os.blocking import AT_FDCWD, MOUNT_ATTR_NODEV, MOUNT_ATTR_RDONLY, openat2, overlay


@pytest.fixture
def target(mount_dir):
    (mount_dir / "target").mkdir()
    return mount_dir / "target"


def layer(directory, name):
    """A directory with a file that all layers have and one of its own."""
    (path := directory / name).mkdir(parents=True)
    (path / "common").write_text(name)
    (path / f"own {name}"[:255]).write_text(name)
    return path


@pytest.fixture
def layers(mount_dir):
    return [layer(mount_dir, name) for name in ("one", "two")]


@pytest.fixture
def written(mount_dir):
    """The directories that an overlay writes to."""
    places = {"upper": mount_dir / "upper", "work": mount_dir / "work"}
    for place in places.values():
        place.mkdir()
    return places


@on_both_faces
async def test_two_layers_are_seen_as_one_directory(face, layers, target):
    before = kernel.open_fds()
    async with block(face.library.overlay(target, layers)) as mount:
        assert sorted(os.listdir(target)) == ["common", "own one", "own two"]
        assert (target / "common").read_text() == "one"
        assert at(target)[0].fs_type == "overlay"
        assert type(mount) is face.library.Mount
        with pytest.raises(OSError) as failed:
            (target / "new").touch()
        assert failed.value.errno == errno.EROFS
    assert at(target) == []
    assert kernel.open_fds() == before


@on_both_faces
async def test_what_is_written_is_in_the_upper_layer_only(face, layers, target, written):
    async with block(face.library.overlay(target, layers, **written)):
        with (target / "common").open("a") as file:
            file.write(" and more")
        (target / "new").write_text("new")
        (target / "own two").unlink()
        assert sorted(os.listdir(target)) == ["common", "new", "own one"]
    upper = written["upper"]
    assert (upper / "common").read_text() == "one and more"
    assert (upper / "new").read_text() == "new"
    assert [(each / "common").read_text() for each in layers] == ["one", "two"]
    assert (layers[1] / "own two").exists()


def test_one_lower_layer_is_enough_for_an_upper_one(layers, target, written):
    with overlay(target, layers[:1], **written):
        (target / "new").touch()
    assert (written["upper"] / "new").exists()


HOSTILE = [
    *(b"colon:", b"::", b"comma,", b"a,b:c d", b" spaces ", b"back\\slash", b"\\:", b"\\,", b"\\"),
    *(b"new\nline", b"'", b'"', b"=", b"lowerdir+=x", b"\\040", b"%s", b"latin-1 \xe9", STRANGE),
    *("é漢".encode(), b"n" * 255, b":" * 255, b"\\" * 255, b"," * 255),
]


def test_fifty_layers_with_hostile_names(mount_dir, target):
    """Each in a directory with such a name, so that paths have more than 300 bytes."""
    names = [os.fsdecode(name) for name in HOSTILE] + [f"plain {n}" for n in range(50)]
    lower = []
    for number, name in enumerate(names[:50]):
        above = mount_dir / os.fsdecode(HOSTILE[number % len(HOSTILE)]) / ("d:,\\ " * 51)[:255]
        (path := above / name).mkdir(parents=True)
        assert len(os.fsencode(path)) > 300
        (path / "common").write_text(str(number))
        (path / str(number)).touch()
        lower.append(path)
    for form in (lower, [os.fsencode(path) for path in lower], tuple(map(str, reversed(lower)))):
        with overlay(target, form):
            assert sorted(os.listdir(target)) == sorted(["common", *map(str, range(50))])
            first = form[0] if isinstance(form[0], bytes) else os.fsencode(form[0])
            assert (target / "common").read_bytes() == Path(
                os.fsdecode(first), "common"
            ).read_bytes()
    assert at(target) == []


@pytest.mark.parametrize("name", HOSTILE, ids=repr)
def test_an_upper_layer_with_a_hostile_name_is_written_to(mount_dir, layers, target, name):
    places = {"upper": mount_dir / "u" / os.fsdecode(name), "work": mount_dir / "w" / "work"}
    for place in places.values():
        place.mkdir(parents=True)
    with overlay(target, layers, **places):
        (target / "new").touch()
    assert os.listdir(places["upper"]) == ["new"]


@on_both_faces
async def test_layers_may_be_descriptors(face, layers, target, written):
    fds = [os.open(path, os.O_PATH) for path in layers]
    upper, work = [await face.openat2(AT_FDCWD, path, os.O_RDONLY) for path in written.values()]
    async with block(face.library.overlay(target, fds, upper=upper, work=work)):
        (target / "new").touch()
        assert (target / "common").read_text() == "one"
    assert os.listdir(written["upper"]) == ["new"]
    for fd in fds:
        os.close(fd)
    for fd in (upper, work):
        await face.close(fd)


def test_layers_that_are_relative_paths_begin_at_the_working_directory(layers, target, monkeypatch):
    monkeypatch.chdir(layers[0].parent)
    with overlay("target", ["one", "two"]):
        assert (target / "common").read_text() == "one"
    assert at(target) == []


def test_a_layer_behind_a_symlink_is_followed(layers, target):
    (link := target.parent / "link").symlink_to("one")
    with overlay(target, [link, layers[1]]):
        assert (target / "common").read_text() == "one"


def test_options_and_attributes_are_as_for_mounted(layers, target, written):
    options = {"redirect_dir": "nofollow"}
    with overlay(target, layers, attr=MOUNT_ATTR_NODEV, options=options, volatile=True, **written):
        (line,) = at(target)
        assert "nodev" in line.options.split(",")
        assert "redirect_dir=nofollow" in line.super_options.split(",")
        assert "volatile" in line.super_options
    with overlay(target, layers, attr=MOUNT_ATTR_RDONLY):
        assert "ro" in at(target)[0].options.split(",")


def test_an_overlay_that_is_kept_stays(layers, target):
    with overlay(target, layers, keep=True):
        pass
    assert at(target)[0].fs_type == "overlay"


# Before Linux 6.13


@pytest.mark.parametrize("nth", range(4))
def test_a_kernel_that_takes_no_descriptors_gets_paths(layers, target, written, nth):
    with faults.failing("fsconfig", errno.EINVAL, skip=nth, times=1):
        with overlay(target, layers, **written):
            (target / "new").touch()
            assert (target / "common").read_text() == "one"
    assert os.listdir(written["upper"]) == ["new"]


@pytest.mark.parametrize("name", [n for n in HOSTILE if len(n) < 100], ids=repr)
@pytest.mark.parametrize("nth", [0, 2, 3], ids=["lower", "upper", "work"])
def test_such_a_kernel_gets_hostile_names_as_well(mount_dir, layers, target, written, name, nth):
    place = mount_dir / os.fsdecode(name)
    if nth == 0:
        layers[0].rename(place)
        layers[0] = place
    else:
        which = "upper" if nth == 2 else "work"
        written[which].rename(place)
        written[which] = place
    with faults.failing("fsconfig", errno.EINVAL, skip=nth, times=1):
        with overlay(target, layers, **written):
            (target / "new").touch()
            assert (target / "common").read_text() == "one"
    assert os.listdir(written["upper"]) == ["new"]


def test_such_a_kernel_takes_no_path_of_more_than_255_bytes(mount_dir, layers, target):
    far = layer(mount_dir / ("d" * 200), "n" * 200)
    with traces.none(target), faults.failing("fsconfig", errno.EINVAL, times=1):
        with pytest.raises(OSError) as failed, overlay(target, [far, *layers]):
            raise AssertionError("mounted")
    assert failed.value.errno == errno.EINVAL


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOMEM, errno.EPERM])
def test_another_error_is_not_taken_for_such_a_kernel(layers, target, code):
    with faults.failing_counted("fsconfig", code, times=1) as calls:
        with pytest.raises(OSError) as failed, overlay(target, layers):
            raise AssertionError("mounted")
    assert failed.value.errno == code
    assert calls.seen == 2  # the second one asks whether there is a log


# Errors


def test_layers_that_make_no_overlay_are_refused_before_any_system_call(layers, target, written):
    one = layers[0]
    upper, work = written.values()
    with faults.count(None) as calls:
        for path in (str(one), os.fsencode(one), one):
            with pytest.raises(TypeError, match="sequence"):
                overlay(target, path)
        for lower, more in [
            ([], {}),
            ([one], {}),
            ([], written),
            (layers, {"upper": upper}),
            (layers, {"work": work}),
        ]:
            with pytest.raises(ValueError):
                overlay(target, lower, **more)
        with pytest.raises(TypeError, match="twice"):
            overlay(target, layers, options={"volatile": True}, volatile=True)
    assert calls.seen == 0


@pytest.mark.parametrize("bad", [None, 1.5, "nul\0", ["list"]], ids=repr)
def test_a_layer_that_is_neither_path_nor_descriptor_leaves_nothing(layers, target, bad):
    with traces.none(target), pytest.raises((TypeError, ValueError)):
        with overlay(target, [*layers, bad]):
            raise AssertionError("mounted")


@on_both_faces
async def test_a_layer_that_does_not_exist_is_named(face, layers, target):
    missing = target.parent / "missing"
    with traces.none(target), pytest.raises(FileNotFoundError) as failed:
        async with block(face.library.overlay(target, [*layers, missing])):
            raise AssertionError("mounted")
    assert failed.value.filename == str(missing)
    assert "mounting an overlay at" in notes(failed.value)


def test_a_file_as_layer_is_ENOTDIR(layers, target):
    with traces.none(target), pytest.raises(NotADirectoryError) as failed:
        with overlay(target, [*layers, layers[0] / "common"]):
            raise AssertionError("mounted")
    assert failed.value.filename == str(layers[0] / "common")


def test_a_descriptor_that_is_closed_is_EBADF(layers, target):
    fd = os.open(layers[0], os.O_PATH)
    os.close(fd)
    with traces.none(target), pytest.raises(OSError) as failed:
        with overlay(target, [layers[1], fd]):
            raise AssertionError("mounted")
    assert failed.value.errno in (errno.EBADF, errno.EINVAL)


def test_upper_and_work_on_two_filesystems_are_refused_by_the_kernel(layers, target, tmp_path):
    places = {"upper": target.parent / "upper", "work": tmp_path / "work"}
    for place in places.values():
        place.mkdir()
    with traces.none(target), pytest.raises(OSError) as failed:
        with overlay(target, layers, **places):
            raise AssertionError("mounted")
    assert failed.value.errno in (errno.EINVAL, errno.EXDEV)


def test_many_layers_leave_no_descriptor(mount_dir, target):
    with ExitStack() as stack:
        lower = [layer(mount_dir, f"l{n}") for n in range(20)]
        fds = [stack.enter_context(openat2(AT_FDCWD, path, os.O_PATH)) for path in lower]
        with traces.none(target):
            with overlay(target, fds + lower[:0]):
                assert len(os.listdir(target)) == 21
