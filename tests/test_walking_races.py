# SPDX-License-Identifier: LGPL-3.0-or-later
"""Trees that change while they are walked: nothing from outside, nothing lost, no strange end."""

import os
import stat

import kernel
import pytest
from faces import on_both_faces
from filesystems import needs_root
from grown import deep, filled, grown, tree
from walk_races import changed_by_another, exchange
from walked import OPENING, paths, walked, walking

pytestmark = pytest.mark.usefixtures("ends")
each_opening = pytest.mark.parametrize("opening", OPENING, ids=["with fds", "without"])
ROUNDS = 40


def outside_of(root):
    """A tree beside the one that is walked."""
    outside = root / "outside"
    outside.mkdir()
    filled(outside, "outside one", "outside two")
    (outside / "outside three").mkdir()
    filled(outside / "outside three", "outside four")
    return outside


def is_consistent(item):
    """The type that was told is that of the descriptor."""
    told = item.statxinfo.stx_mode
    kinds = (stat.S_ISDIR(told), stat.S_ISREG(told), stat.S_ISLNK(told))
    if item.ismount:
        return True
    if item.fd >= 0:
        status = os.fstat(item.fd)
        if (status.st_ino, stat.S_IFMT(status.st_mode)) != (
            item.statxinfo.stx_ino,
            stat.S_IFMT(told),
        ):
            return False
    return kinds == (item.isdir, item.isreg, item.islnk)


def make_pair(directory, outside, kinds):
    directory.mkdir()
    for name, kind in zip(("one", "two"), kinds, strict=True):
        path = directory / name
        if kind == "directory":
            path.mkdir()
            filled(path, "inside")
            (path / "deeper").mkdir()
            filled(path / "deeper", "inside")
        elif kind == "file":
            path.write_bytes(b"content")
        elif kind == "fifo":
            os.mkfifo(path)
        else:
            path.symlink_to(outside if kind == "symlink" else "/nothing")


KINDS = ("directory", "symlink", "file", "fifo", "dangling")
PAIRS = [(one, two) for n, one in enumerate(KINDS) for two in KINDS[n + 1 :]]


@each_opening
@pytest.mark.parametrize("symlinks", [False, True])
@on_both_faces
async def test_what_changes_its_type_all_the_time_leads_nowhere_and_ends_nothing(
    face, mount_dir, opening, symlinks
):
    outside = outside_of(mount_dir)
    root = mount_dir / "tree"
    root.mkdir()
    for number, kinds in enumerate(PAIRS):
        make_pair(root / str(number), outside, kinds)
    filled(root, "file")
    seen = set()
    options = {"file_open_flags": opening, "include_symlinks": symlinks}
    with changed_by_another("swap", root):
        for turn in range(ROUNDS):
            async with walking(face, root, read_ahead=1 + turn % 7, **options) as walk:
                found = []
                async for item in walk:
                    assert "outside" not in item.name
                    assert is_consistent(item)
                    found.append(item.path)
                    seen.add((item.name, item.isdir, item.isreg, item.islnk))
                stats = walk.get_stats()
            assert len(set(found)) == len(found)
            assert {str(root / "file"), *(str(root / str(n)) for n in range(len(PAIRS)))} <= {
                *found
            }
            assert (stats.cnt_skipped, stats.cnt_errors) == (0, 0)
    # Both were seen under the same name, so that there was something to race with.
    assert {("one", True, False, False), ("one", False, True, False)} <= seen


@on_both_faces
async def test_a_directory_that_becomes_a_symlink_after_its_item_is_not_followed(face, mount_dir):
    outside = outside_of(mount_dir)
    root = mount_dir / "tree"
    for name in ("a", "b", "c", "d"):
        (root / name / "inner").mkdir(parents=True)
        filled(root / name / "inner", "inside")
    for opening in OPENING:
        async with walking(face, root, read_ahead=1, file_open_flags=opening) as walk:
            names = []
            async for item in walk:
                names.append(item.name)
                for path in list(root.iterdir()):
                    if not path.is_symlink():
                        path.rename(mount_dir / f"away {path.name}")
                        path.symlink_to(outside)
        assert not [name for name in names if "outside" in name]
        for path in list(root.iterdir()):
            path.unlink()
            (mount_dir / f"away {path.name}").rename(path)


@each_opening
@on_both_faces
async def test_what_stays_is_seen_once_whatever_comes_and_goes(face, place, opening):
    grown(place)
    stays = tree(place)
    with changed_by_another("come and go", place):
        for turn in range(15):
            options = {"read_ahead": (None, 1, 10)[turn % 3], "file_open_flags": opening}
            async with walking(face, place, **options) as walk:
                found = paths(await walk.rest())
                stats = walk.get_stats()
            assert sorted(path for path in found if b"passing" not in path) == sorted(stays)
            assert len(set(found)) == len(found)
            assert stats[3:] == (0, 0, 0)


@each_opening
@on_both_faces
async def test_a_directory_that_moves_about_ends_nothing(face, mount_dir, opening):
    outside_of(mount_dir)
    root = mount_dir / "tree"
    for name in ("here/moving/deep/deeper", "there", "stays"):
        (root / name).mkdir(parents=True)
        filled(root / name, "one", "two")
    with changed_by_another("move", mount_dir):
        for turn in range(ROUNDS):
            options = {"read_ahead": 1 + turn % 5, "file_open_flags": opening}
            found = await walked(face, root, **options)
            for name in ("there/one", "stays/two", "here", "stays"):
                assert found.count(os.fsencode(root / name)) == 1
            assert not [path for path in found if b"outside" in path]


@each_opening
@on_both_faces
async def test_mounts_that_appear_and_vanish_are_never_entered(face, mount_dir, opening):
    outside_of(mount_dir)
    root = mount_dir / "tree"
    for name in ("before", "target", "zafter"):
        (root / name).mkdir(parents=True)
        filled(root / name, "one", "two")
    options = {"file_open_flags": opening, "read_ahead": 1}
    with changed_by_another("mount", mount_dir):
        for turn in range(2 * ROUNDS):
            async with walking(face, root, include_mountpoints=bool(turn % 2), **options) as walk:
                found = []
                async for item in walk:
                    assert "outside" not in item.name
                    found.append(os.fsencode(item.path))
            assert {os.fsencode(root / n) for n in ("before", "before/one", "zafter/two")} <= {
                *found
            }


# One change at a time


@needs_root
@on_both_faces
async def test_a_directory_that_is_moved_out_of_the_walk_takes_it_nowhere_else(face, mount_dir):
    """The way back up from a deep place would lead outside."""
    root, outside = mount_dir / "tree", outside_of(mount_dir)
    root.mkdir()
    deep(root, b"d", 300)
    filled(outside, *(f"outside {n}" for n in range(50)))
    expected = {os.path.basename(path) for path in tree(root)}
    for opening in OPENING:
        moved = outside / "outside moved"
        async with walking(face, root, read_ahead=1, file_open_flags=opening) as walk:
            names = []
            errors = []
            while True:
                try:
                    item = await anext(walk)
                except StopAsyncIteration:
                    break
                except OSError as error:
                    errors.append(error)
                    assert len(errors) < 1000
                    continue
                names.append(os.fsencode(item.name))
                if item.depth == 200 and not moved.exists():
                    (root / "d" / "d").rename(moved)
        assert set(names) <= expected
        assert walk_is_told(names, errors)
        moved.rename(root / "d" / "d")


def walk_is_told(names, errors):
    """All was seen, or it was told that something is missing."""
    return len(names) == 900 or errors


@on_both_faces
async def test_an_entry_that_vanishes_before_its_turn_is_no_error(face, mount_dir):
    (mount_dir / "big").mkdir()
    filled(mount_dir / "big", *map(str, range(300)))
    (mount_dir / "empty").mkdir()
    for opening in OPENING:
        async with walking(face, mount_dir, read_ahead=1, file_open_flags=opening) as walk:
            seen = 0
            async for item in walk:
                seen += 1
                if item.depth == 2:
                    for path in (mount_dir / "big").iterdir():
                        path.unlink()
            assert walk.get_stats()[3:] == (0, 0, 0)
        assert seen < 100
        filled(mount_dir / "big", *map(str, range(300)))


@on_both_faces
async def test_a_removed_directory_is_empty(face, mount_dir):
    (mount_dir / "gone" / "sub").mkdir(parents=True)
    async with walking(face, mount_dir, read_ahead=1) as walk:
        async for item in walk:
            if item.name == "gone":
                (mount_dir / "gone" / "sub").rmdir()
                (mount_dir / "gone").rmdir()
            assert item.name in ("gone", "sub")
        assert walk.get_stats()[3:] == (0, 0, 0)


@on_both_faces
async def test_a_root_that_is_exchanged_is_walked_on(face, mount_dir):
    root, outside = mount_dir / "tree", outside_of(mount_dir)
    root.mkdir()
    grown(root)
    expected = [os.path.basename(path) for path in tree(root)]
    async with walking(face, root, read_ahead=1) as walk:
        names = []
        async for item in walk:
            names.append(os.fsencode(item.name))
            if len(names) == 3:
                exchange(root, outside)
    assert names == expected


@on_both_faces
async def test_an_unmounted_filesystem_is_still_walked_to_its_end(face, mount_dir):
    """A lazy unmount takes the names away, not the directories that are open."""
    root = mount_dir / "root"
    root.mkdir()
    kernel.mount("tmpfs", root, "tmpfs")
    grown(root)
    expected = tree(root)
    async with walking(face, root, read_ahead=1) as walk:
        first = await anext(walk)
        kernel.umount(root, kernel.MNT_DETACH)
        rest = paths(await walk.rest())
    assert [os.fsencode(first.path), *rest] == expected
