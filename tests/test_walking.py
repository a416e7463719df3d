# SPDX-License-Identifier: LGPL-3.0-or-later
"""Walking: all that find finds, in the order of the directories, from wherever one begins."""

import errno
import os
import subprocess
from pathlib import Path

import faults
import kernel
import pytest
from faces import on_both_faces
from filesystems import make_image, needs_root
from grown import filled, find, grown, hostile, mounted_image, mounted_without_types, tree
from walked import OPENING, entry, fds_return_without_a_loop_to, paths, source_of, walked, walking

pytestmark = pytest.mark.usefixtures("ends")
each_opening = pytest.mark.parametrize("opening", OPENING, ids=["with fds", "without"])


# What is found


@each_opening
@on_both_faces
async def test_a_walk_finds_what_find_finds(face, place, opening):
    hostile(grown(place))
    async with walking(face, place, file_open_flags=opening) as walk:
        found = await walk.rest_of(entry)
    assert sorted(found) == sorted(find(place, "!", "-type", "l"))


@each_opening
@on_both_faces
async def test_with_symlinks_a_walk_finds_all_that_find_finds(face, place, opening):
    hostile(grown(place))
    async with walking(face, place, file_open_flags=opening, include_symlinks=True) as walk:
        found = await walk.rest_of(entry)
    assert sorted(found) == sorted(find(place))
    assert any(one.kind == "l" for one in found)


@each_opening
@on_both_faces
async def test_a_walk_of_a_squashfs_finds_what_find_finds(face, squashed, opening):
    async with walking(face, squashed, file_open_flags=opening, include_symlinks=True) as walk:
        found = await walk.rest_of(entry)
    assert sorted(found) == sorted(find(squashed))


@pytest.mark.parametrize("read_ahead", [None, 1, 2, 7, 100_000])
@on_both_faces
async def test_each_directory_is_followed_by_its_contents_in_the_order_of_getdents(
    face, place, read_ahead
):
    hostile(grown(place))
    for opening in OPENING:
        options = {"file_open_flags": opening, "read_ahead": read_ahead}
        assert await walked(face, place, **options) == tree(place)
        links = await walked(face, place, **options, include_symlinks=True)
        assert links == tree(place, symlinks=True)


@on_both_faces
async def test_a_directory_of_100_000_entries_is_walked_once(face, mount_dir):
    names = [str(number) for number in range(100_000)]
    filled(mount_dir, *names, size=0)
    for opening in OPENING:
        async with walking(face, mount_dir, file_open_flags=opening) as walk:
            found = await walk.rest_of(lambda item: item.name)
        assert len(found) == 100_000
        assert set(found) == set(names)


@on_both_faces
async def test_an_empty_directory_has_nothing(face, place):
    assert await walked(face, place) == []
    async with walking(face, place) as walk:
        with pytest.raises(StopAsyncIteration):
            await anext(walk)
        with pytest.raises(StopAsyncIteration):
            await anext(walk)
        stats = walk.get_stats()
    assert (stats.cnt, stats.cnt_bytes, stats.current_directory) == (0, 0, str(place))
    assert stats[3:] == (0, 0, 0)


@needs_root
@on_both_faces
async def test_where_the_kernel_does_not_tell_types_statx_does(face, tmp_path):
    with mounted_without_types(tmp_path) as root:
        grown(root)
        for opening in OPENING:
            for symlinks in (False, True):
                options = {"file_open_flags": opening, "include_symlinks": symlinks}
                assert await walked(face, root, **options) == tree(root, symlinks=symlinks)


@needs_root
@on_both_faces
async def test_a_subvolume_is_no_mount(face, tmp_path):
    image = make_image("btrfs", tmp_path / "image")
    with mounted_image(image, tmp_path / "btrfs", fs_type="btrfs") as root:
        grown(root)
        command = ["btrfs", "-q", "subvolume", "create", root / "a" / "subvolume"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        filled(root / "a" / "subvolume", "one", "two")
        assert await walked(face, root) == tree(root)


# Where a walk begins


@on_both_faces
async def test_a_mount_and_its_source_are_walked_as_their_path_is(face, filesystem, place):
    grown(place)
    source = source_of(filesystem)
    async with walking(face, filesystem, source, relative_path=place.name) as walk:
        found = await walk.rest_of(entry)
    async with walking(face, place) as walk:
        assert await walk.rest_of(entry) == found
    assert [one.path for one in found] == tree(place)
    assert await walked(face, filesystem, source) == await walked(face, filesystem)
    assert await walked(face, str(filesystem), source) == tree(filesystem)


@on_both_faces
async def test_a_relative_path_is_walked_from_where_it_leads(face, mount_dir):
    grown(mount_dir)
    for relative in ("a", "a/b", "a/b/", "z//y"):
        found = await walked(face, mount_dir, "tmpfs", relative_path=relative)
        inside = os.path.normpath(mount_dir / relative)
        assert [os.path.normpath(path) for path in found] == tree(inside)


@on_both_faces
async def test_a_walk_of_a_descriptor_leaves_it_alone(face, place):
    grown(place)
    before = kernel.open_fds()
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for move in (lambda: None, lambda: os.listdir(fd)):
            move()
            offset = os.lseek(fd, 0, os.SEEK_CUR)
            assert await walked(face, fd) == tree(place)
            assert os.lseek(fd, 0, os.SEEK_CUR) == offset
            assert os.path.samestat(os.fstat(fd), place.stat())
    finally:
        os.close(fd)
    fd = os.open(place, os.O_PATH)
    try:
        assert await walked(face, fd) == tree(place)
        os.fstat(fd)
    finally:
        os.close(fd)
    if face.name == "blocking":
        fds_return_without_a_loop_to(before)


@on_both_faces
async def test_a_path_is_taken_in_every_form(face, mount_dir, monkeypatch):
    grown(mount_dir)
    expected = tree(mount_dir)
    for path in (mount_dir, str(mount_dir), os.fsencode(mount_dir)):
        assert await walked(face, path) == expected
    monkeypatch.chdir(mount_dir)
    for path in (".", "a"):
        found = await walked(face, path)
        assert list(map(os.path.abspath, found)) == tree(mount_dir / path)


@on_both_faces
async def test_another_source_is_told_with_what_was_expected(face, mount_dir):
    with pytest.raises(face.library.FilesystemMismatchError) as failed:
        await walked(face, mount_dir, "tank/dataset")
    error = failed.value
    assert isinstance(error, OSError)
    assert (error.errno, error.filename) == (errno.ENODEV, str(mount_dir))
    assert (error.expected, error.found) == ("tank/dataset", "tmpfs")


@on_both_faces
async def test_a_path_that_is_not_there_is_told_when_the_walk_begins(face, mount_dir):
    (mount_dir / "file").touch()
    for path, code in (("nothing", errno.ENOENT), ("file", errno.ENOTDIR)):
        with pytest.raises(OSError) as failed:
            await walked(face, mount_dir / path)
        assert failed.value.errno == code
        assert failed.value.filename == str(mount_dir / path)
        with pytest.raises(OSError) as failed:
            await walked(face, mount_dir, "tmpfs", relative_path=path)
        assert failed.value.errno == code
    with pytest.raises(FileNotFoundError):
        await walked(face, mount_dir / "nothing", "tmpfs")


@on_both_faces
async def test_a_symlink_on_the_way_is_not_followed(face, tmp_path, mount_dir):
    (mount_dir / "real" / "sub").mkdir(parents=True)
    (mount_dir / "real" / "sub" / "file").touch()
    (mount_dir / "link").symlink_to("real")
    (tmp_path / "to the mount").symlink_to(mount_dir)
    for where, options in (
        ((tmp_path / "to the mount", "tmpfs"), {}),
        ((mount_dir, "tmpfs"), {"relative_path": "link"}),
        ((mount_dir, "tmpfs"), {"relative_path": "link/sub"}),
    ):
        with pytest.raises(OSError) as failed:
            await walked(face, *where, **options)
        assert failed.value.errno == errno.ELOOP


@on_both_faces
async def test_a_relative_path_enters_no_other_mount(face, mount_dir):
    inside = mount_dir / "inside"
    inside.mkdir()
    kernel.mount("other", inside, "tmpfs")
    (inside / "sub").mkdir()
    for relative in ("inside", "inside/sub"):
        with pytest.raises(OSError) as failed:
            await walked(face, mount_dir, "tmpfs", relative_path=relative)
        assert failed.value.errno == errno.EXDEV
    assert await walked(face, inside, "other") == [os.fsencode(inside / "sub")]


# Arguments


WRONG = [
    ({"relative_path": ".."}, ValueError),
    ({"relative_path": "a/../.."}, ValueError),
    ({"relative_path": "/etc"}, ValueError),
    ({"file_open_flags": os.O_RDWR | os.O_CREAT}, ValueError),
    ({"file_open_flags": os.O_RDWR | os.O_TRUNC}, ValueError),
    ({"file_open_flags": os.O_RDWR | os.O_TMPFILE}, ValueError),
    ({"file_open_flags": 1 << 31}, ValueError),
    ({"file_open_flags": 1 << 40}, ValueError),
    ({"file_open_flags": -(1 << 31)}, ValueError),
    ({"resume_token_name": "user.name"}, ValueError),
    ({"resume_token_data": bytes(16)}, ValueError),
    ({"resume_token_name": "user.name", "resume_token_data": bytes(15)}, ValueError),
    ({"resume_token_name": "user.name", "resume_token_data": bytes(17)}, ValueError),
    ({"reporting_increment": 0}, ValueError),
    ({"reporting_increment": -1}, ValueError),
    ({"read_ahead": 0}, ValueError),
    ({"read_ahead": -1}, ValueError),
    ({"read_ahead": (1 << 32) - 1}, ValueError),
    ({"read_ahead": 1 << 40}, ValueError),
    ({"on_error": "ignore"}, ValueError),
    ({"on_error": 1}, (TypeError, ValueError)),
    ({"resume_from": b"no token"}, ValueError),
    ({"resume_from": "no bytes"}, TypeError),
    ({"btime_cutoff": "yesterday"}, TypeError),
    ({"file_open_flags": "r"}, TypeError),
    ({"no_such_option": 1}, TypeError),
]


@pytest.mark.parametrize(("options", "error"), WRONG, ids=str)
@on_both_faces
async def test_a_wrong_argument_is_refused_at_once(face, mount_dir, options, error):
    with pytest.raises(error):
        face.library.iter_filesystem_contents(str(mount_dir), "tmpfs", **options)
    if "relative_path" not in options:
        with pytest.raises(error):
            face.library.walk(mount_dir, **options)


@on_both_faces
async def test_to_make_a_walk_is_to_ask_the_kernel_nothing(face):
    with faults.count(None) as calls:
        walks = [
            face.library.walk("/nonexistent"),
            face.library.iter_filesystem_contents("/nonexistent", "nothing"),
        ]
    assert calls.seen == 0
    for walk in walks:
        with pytest.raises(FileNotFoundError) as failed:
            await (anext(walk) if face.name != "blocking" else face.call(next, walk))
        assert failed.value.filename == "/nonexistent"


@on_both_faces
async def test_both_faces_have_the_same_names(face):
    for name in (
        *("iter_filesystem_contents", "walk", "FilesystemIterator", "IterInstance"),
        *("FilesystemIterState", "WalkProgress", "ResumeToken", "IteratorRestoreError"),
        "FilesystemMismatchError",
    ):
        assert getattr(face.library, name).__name__ == name
        assert name in face.library.__all__


@on_both_faces
async def test_the_example_of_the_specification_runs(face, mount_dir):
    grown(mount_dir)
    seen = []
    iterator = face.library.iter_filesystem_contents(str(mount_dir), "tmpfs")
    assert isinstance(iterator, face.library.FilesystemIterator)
    for item in await _each(face, iterator):
        seen.append((os.path.join(item.parent, item.name), item.statxinfo.stx_size))
    assert [os.fsencode(path) for path, _ in seen] == tree(mount_dir)
    assert all(size == Path(path).lstat().st_size for path, size in seen)


async def _each(face, iterator):
    if face.name == "blocking":
        return list(iterator)
    return [item async for item in iterator]


@on_both_faces
async def test_what_was_born_after_the_cutoff_is_left_out(face, place):
    """Where there is no time of birth, nothing is."""
    grown(place)
    born = {}
    for path in tree(place):
        shown = subprocess.run(["stat", "-c", "%W", path], check=True, stdout=subprocess.PIPE)
        born[path] = int(shown.stdout)
    told = [seconds for seconds in born.values() if seconds]
    early = min(told) - 1 if told else 1
    async with walking(face, place, btime_cutoff=early) as walk:
        found = paths(await walk.rest())
        assert walk.get_stats()[3:] == (0, 0, 0)
    assert found == [path for path in born if os.path.isdir(path) or not born[path]]
    late = max(told, default=1)
    assert await walked(face, place, btime_cutoff=late) == list(born)
