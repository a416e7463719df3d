# SPDX-License-Identifier: LGPL-3.0-or-later
"""Marks: the extended attribute of a directory whose contents have all been consumed."""

import array
import contextlib
import errno
import fcntl
import os

import faults
import kernel
import pytest
from faces import on_both_faces
from filesystems import needs_root
from grown import directories, filled, grown, tree
from walked import OPENING, paths, walked, walking

pytestmark = pytest.mark.usefixtures("ends")
NAME = "user.walked"
DATA = bytes(range(16))
MARKS = {"resume_token_name": NAME, "resume_token_data": DATA}


def marked(root):
    """The directories that carry the mark."""
    found = set()
    for path in directories(root):
        with contextlib.suppress(OSError):
            if os.getxattr(path, NAME) == DATA:
                found.add(path)
    return found


def unmark(root):
    for path in directories(root):
        with contextlib.suppress(OSError):
            os.removexattr(path, NAME)


def ends_of(root, order):
    """Of each directory, how many items of a walk are to be consumed until its contents are."""
    ends = {}
    for path in directories(root):
        inside = [n for n, one in enumerate(order, 1) if one == path or one.startswith(path + b"/")]
        ends[path] = max(inside, default=0)
    return ends


def small(root):
    for name in ("a/b/c", "a/empty", "d", "e/f"):
        (root / name).mkdir(parents=True)
    for name in ("a", "a/b", "a/b/c", "d", "e/f"):
        filled(root / name, "one", "two")
    filled(root, "file")
    return root


def immutable(path, *, is_so=True):
    """chattr(1) +i: not even root may open it for writing."""
    get_flags, set_flags, immutable_flag = 0x80086601, 0x40086602, 0x10
    fd = os.open(path, os.O_RDONLY)
    try:
        flags = array.array("L", [0])
        fcntl.ioctl(fd, get_flags, flags)
        flags[0] = flags[0] | immutable_flag if is_so else flags[0] & ~immutable_flag
        fcntl.ioctl(fd, set_flags, flags)
    finally:
        os.close(fd)


@contextlib.contextmanager
def unwritable(path):
    immutable(path)
    try:
        yield
    finally:
        immutable(path, is_so=False)


# What is marked


@pytest.mark.parametrize("opening", OPENING)
@on_both_faces
async def test_a_whole_walk_marks_every_directory_and_the_next_finds_nothing(face, place, opening):
    grown(place)
    options = {**MARKS, "file_open_flags": opening}
    assert await walked(face, place, **options) == tree(place)
    assert marked(place) == set(directories(place))
    async with walking(face, place, **options) as walk:
        assert await walk.rest() == []
        assert walk.get_stats()[3:] == (0, 0, 0)
    other = {**options, "resume_token_data": bytes(16)}
    assert await walked(face, place, **other) == tree(place)
    assert marked(place) == set()


@pytest.mark.parametrize("read_ahead", [1, 1000])
@on_both_faces
async def test_a_directory_is_marked_once_all_in_it_is_consumed_and_not_before(
    face, mount_dir, read_ahead
):
    """Consumed is an item when another one was asked for."""
    small(mount_dir)
    order = tree(mount_dir)
    ends = ends_of(mount_dir, order)
    for count in range(len(order) + 1):
        async with walking(face, mount_dir, read_ahead=read_ahead, **MARKS) as walk:
            assert paths(await walk.take(count)) == order[:count]
        expected = {path for path, end in ends.items() if end < count}
        assert marked(mount_dir) == expected
        rest = [
            path
            for path in order
            if not any(path == one or path.startswith(one + b"/") for one in expected)
        ]
        assert await walked(face, mount_dir, **MARKS) == rest
        assert marked(mount_dir) == set(ends)
        unmark(mount_dir)


@on_both_faces
async def test_the_marks_are_there_when_the_end_is_told(face, mount_dir):
    small(mount_dir)
    async with walking(face, mount_dir, **MARKS) as walk:
        await walk.take(len(tree(mount_dir)))
        before = marked(mount_dir)
        assert os.fsencode(mount_dir) not in before
        with pytest.raises(StopAsyncIteration):
            await anext(walk)
        assert marked(mount_dir) == set(directories(mount_dir))


@on_both_faces
async def test_an_empty_root_is_marked(face, mount_dir):
    assert await walked(face, mount_dir, **MARKS) == []
    assert marked(mount_dir) == {os.fsencode(mount_dir)}


@on_both_faces
async def test_a_skipped_directory_is_not_marked_but_its_parent_is(face, mount_dir):
    small(mount_dir)
    async with walking(face, mount_dir, **MARKS) as walk:
        async for item in walk:
            if item.name == "b":
                walk.skip()
    assert marked(mount_dir) == {
        path for path in directories(mount_dir) if not path.endswith((b"/b", b"/c"))
    }


@on_both_faces
async def test_other_contents_of_the_attribute_are_no_mark(face, mount_dir):
    small(mount_dir)
    for number, path in enumerate(directories(mount_dir)):
        os.setxattr(path, NAME, DATA[:number] if number % 2 else DATA + bytes(number + 1))
    assert await walked(face, mount_dir, **MARKS) == tree(mount_dir)
    assert marked(mount_dir) == set(directories(mount_dir))


@needs_root
@on_both_faces
async def test_an_attribute_of_root_is_a_mark_as_well(face, place):
    small(place)
    options = {**MARKS, "resume_token_name": "trusted.walked"}
    await walked(face, place, **options)
    assert all(os.getxattr(path, "trusted.walked") == DATA for path in directories(place))
    assert await walked(face, place, **options) == []


# What prevents a mark


@needs_root
@pytest.mark.parametrize("on_error", ["report", "skip", "yield"])
@on_both_faces
async def test_what_cannot_be_read_keeps_the_marks_from_all_above_it(face, mount_dir, on_error):
    small(mount_dir)
    options = {**MARKS, "file_open_flags": os.O_RDWR, "on_error": on_error}
    if on_error == "yield":
        options["on_error"] = lambda error: "yield"
    with unwritable(mount_dir / "a" / "b" / "one"):
        async with walking(face, mount_dir, **options) as walk:
            await walk.rest()
            assert walk.get_stats().cnt_errors == 1
        above = {os.fsencode(mount_dir / name) for name in ("", "a", "a/b")}
        assert marked(mount_dir) == set(directories(mount_dir)) - above
    # Once it can be read, only what was missing is walked again.
    found = await walked(face, mount_dir, **options)
    assert os.fsencode(mount_dir / "a/b/one") in found
    assert os.fsencode(mount_dir / "a/b/c/one") not in found
    assert marked(mount_dir) == set(directories(mount_dir))


@pytest.mark.parametrize("syscall", ["getdents64"])
@on_both_faces
async def test_a_listing_that_broke_off_keeps_the_marks_from_all_above_it(face, mount_dir, syscall):
    small(mount_dir)
    with faults.count(syscall) as calls:
        await walked(face, mount_dir)
    prevented = 0
    for skip in range(calls.seen):
        unmark(mount_dir)
        errors = []
        with faults.failing(syscall, errno.EIO, skip=skip, times=1):
            try:
                found = await walked(face, mount_dir, errors=errors, **MARKS)
            except OSError:
                found = None  # the root itself
        if found is None or not errors:
            assert os.fsencode(mount_dir) not in marked(mount_dir)
            continue
        broken = os.fsencode(errors[0].filename)
        above = {path for path in directories(mount_dir) if (broken + b"/").startswith(path + b"/")}
        assert not marked(mount_dir) & above
        prevented += 1
    assert prevented


@on_both_faces
async def test_a_mark_that_cannot_be_written_is_counted(face, mount_dir):
    small(mount_dir)
    kernel.mount(None, mount_dir, None, kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY)
    async with walking(face, mount_dir, **MARKS) as walk:
        assert paths(await walk.rest()) == tree(mount_dir)
        stats = walk.get_stats()
    assert stats.cnt_unmarked == len(directories(mount_dir))
    assert stats[3:5] == (0, 0)
    assert marked(mount_dir) == set()


@on_both_faces
async def test_on_a_squashfs_no_mark_can_be_written(face, squashed):
    async with walking(face, squashed, **MARKS) as walk:
        assert paths(await walk.rest()) == tree(squashed)
        assert walk.get_stats().cnt_unmarked == len(directories(squashed))


@on_both_faces
async def test_a_name_that_no_filesystem_takes_is_counted(face, mount_dir):
    small(mount_dir)
    async with walking(face, mount_dir, **{**MARKS, "resume_token_name": "nonsense.name"}) as walk:
        assert paths(await walk.rest()) == tree(mount_dir)
        assert walk.get_stats().cnt_unmarked == len(directories(mount_dir))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EOPNOTSUPP, errno.EIO])
@on_both_faces
async def test_each_mark_that_fails_is_counted_and_ends_nothing(face, mount_dir, code):
    small(mount_dir)
    for times in (1, 3, faults.ALWAYS):
        unmark(mount_dir)
        with faults.failing("fsetxattr", code, times=times):
            async with walking(face, mount_dir, **MARKS) as walk:
                assert paths(await walk.rest()) == tree(mount_dir)
                unmarked = walk.get_stats().cnt_unmarked
        every = directories(mount_dir)
        assert unmarked == min(times, len(every))
        assert len(marked(mount_dir)) == len(every) - unmarked


@on_both_faces
async def test_a_walk_without_a_name_marks_nothing(face, mount_dir):
    small(mount_dir)
    await walked(face, mount_dir)
    assert marked(mount_dir) == set()


@on_both_faces
async def test_a_marked_directory_is_neither_yielded_nor_entered_nor_counted(face, mount_dir):
    small(mount_dir)
    os.setxattr(mount_dir / "a", NAME, DATA)
    os.setxattr(mount_dir / "e" / "f", NAME, DATA)
    async with walking(face, mount_dir, **MARKS) as walk:
        found = paths(await walk.rest())
        stats = walk.get_stats()
    outside = tree(mount_dir, skip=lambda path: os.path.basename(path) in (b"a", b"f"))
    assert found == [path for path in outside if os.path.basename(path) not in (b"a", b"f")]
    assert (stats.cnt, *stats[3:]) == (len(found), 0, 0, 0)


@on_both_faces
async def test_what_a_list_had_when_the_walk_was_closed_is_not_taken_for_consumed(face, place):
    small(place)
    async with walking(face, place, **MARKS) as walk:
        lists = walk.batches(100)
        items = await (face.call(next, lists) if face.name == "blocking" else anext(lists))
        assert len(items) > 3
    assert not marked(place)
