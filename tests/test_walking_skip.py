# SPDX-License-Identifier: LGPL-3.0-or-later
"""skip(): the directory just handed out is not entered, and nothing else is left out."""

import errno
import os
import tempfile

import faults
import pytest
from faces import NAMES, Face, on_both_faces
from grown import filled, grown, tree
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from walked import OPENING, paths, walked, walking

from truenas_os import blocking

pytestmark = pytest.mark.usefixtures("ends")


async def pruned(walk, pruning):
    """The paths of a walk that skips what *pruning* says."""
    found = []
    async for item in walk:
        found.append(os.fsencode(item.path))
        if item.isdir and pruning(found[-1]):
            walk.skip()
    return found


@pytest.mark.parametrize("read_ahead", [None, 1, 3, 1000])
@on_both_faces
async def test_each_directory_can_be_skipped(face, place, read_ahead):
    grown(place)
    every = [path for path in tree(place) if os.path.isdir(path)]
    assert len(every) > 5
    for opening in OPENING:
        for chosen in [{path} for path in every] + [set(every), set(every[::2])]:
            options = {"read_ahead": read_ahead, "file_open_flags": opening}
            async with walking(face, place, **options) as walk:
                assert await pruned(walk, chosen.__contains__) == tree(
                    place, skip=chosen.__contains__
                )
                assert walk.get_stats()[3:] == (0, 0, 0)


@on_both_faces
async def test_a_directory_whose_contents_were_read_ahead_is_skipped_alone(face, mount_dir):
    for name in ("one", "two", "three"):
        (mount_dir / name / "inside" / "deeper").mkdir(parents=True)
        filled(mount_dir / name / "inside", "file")
    async with walking(face, mount_dir, read_ahead=1000) as walk:
        names = [(await anext(walk)).name]
        # All is read ahead by now: a batch holds more than there is.
        for _ in range(2):
            await anext(walk)
        if face.name != "blocking":
            import anyio

            await anyio.sleep(0.05)
        names = [name for name in ("one", "two", "three") if name not in names]
        found = await pruned(walk, lambda path: os.path.basename(path).decode() in names)
    inside = [path for path in found if b"inside" in path.removeprefix(os.fsencode(mount_dir))]
    assert not [path for path in inside if any(f"/{n}/".encode() in path for n in names)]


@on_both_faces
async def test_only_a_directory_can_be_skipped_and_only_at_once(face, mount_dir):
    (mount_dir / "directory").mkdir()
    filled(mount_dir / "directory", "file")
    (mount_dir / "link").symlink_to("directory")
    async with walking(face, mount_dir, include_symlinks=True) as walk:
        with pytest.raises(ValueError):
            walk.skip()
        found = []
        async for item in walk:
            found.append(item.name)
            if item.isdir:
                continue
            for _ in range(2):
                with pytest.raises(ValueError):
                    walk.skip()
        assert sorted(found) == ["directory", "file", "link"]
        with pytest.raises(ValueError):
            walk.skip()
    with pytest.raises(ValueError):
        walk.skip()


@on_both_faces
async def test_an_empty_directory_and_the_last_one_can_be_skipped(face, mount_dir):
    (mount_dir / "empty").mkdir()
    async with walking(face, mount_dir) as walk:
        assert (await anext(walk)).isdir
        walk.skip()
        with pytest.raises(StopAsyncIteration):
            await anext(walk)
    (mount_dir / "empty" / "no longer").mkdir()
    async with walking(face, mount_dir) as walk:
        await anext(walk)
        walk.skip()
        assert await walk.rest() == []


@on_both_faces
async def test_the_descriptor_of_a_skipped_directory_stays_valid(face, mount_dir):
    for name in ("one", "two"):
        (mount_dir / name).mkdir()
        filled(mount_dir / name, "inside")
    async with walking(face, mount_dir) as walk:
        async for item in walk:
            walk.skip()
            assert os.listdir(item.fd) == ["inside"]
            assert os.path.samestat(os.fstat(item.fd), os.stat(item.path))
            assert walk.dir_stack()[-1][0] == str(mount_dir)


@on_both_faces
async def test_skipping_counts_nowhere(face, mount_dir):
    (mount_dir / "one").mkdir()
    filled(mount_dir / "one", "first", "second", size=7)
    async with walking(face, mount_dir) as walk:
        await anext(walk)
        walk.skip()
        await walk.rest()
        assert walk.get_stats() == (1, 0, str(mount_dir), 0, 0, 0)


@on_both_faces
async def test_a_directory_with_very_much_in_it_is_skipped(face, mount_dir):
    """More than fits into whatever is read ahead."""
    (mount_dir / "big").mkdir()
    filled(mount_dir / "big", *(f"{n:0>100}" for n in range(30_000)), size=0)
    filled(mount_dir, "a", "z")
    assert sorted(await walked(face, mount_dir / "big")) == sorted(tree(mount_dir / "big"))
    for read_ahead in (None, 5, 100_000):
        async with walking(face, mount_dir, file_open_flags=None, read_ahead=read_ahead) as walk:
            found = await pruned(walk, lambda path: True)
        assert found == tree(mount_dir, skip=lambda path: True)


# Trees of all shapes


shapes = st.recursive(
    st.integers(0, 4),  # so many files
    lambda inner: st.lists(inner, max_size=5),  # directories
    max_leaves=40,
)


def grow(shape, directory):
    if isinstance(shape, int):
        filled(directory, *(f"f{number}" for number in range(shape)))
        return
    for number, inner in enumerate(shape):
        if isinstance(inner, int) and inner % 2:
            filled(directory, f"file {number}")
        path = os.path.join(directory, f"d{number}")
        os.mkdir(path)
        grow(inner, path)


@given(
    shape=shapes,
    decisions=st.lists(st.booleans(), min_size=1, max_size=20),
    read_ahead=st.sampled_from([1, 2, 3, 8, 1000, None]),
    opening=st.sampled_from(OPENING),
    name=st.sampled_from(NAMES),
    stop=st.none() | st.integers(0, 60),
)
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_whatever_is_skipped_of_whatever_tree_the_rest_comes_in_order(
    mount_dir, shape, decisions, read_ahead, opening, name, stop
):
    root = tempfile.mkdtemp(dir=mount_dir)
    grow(shape, root)
    every = [path for path in tree(root) if os.path.isdir(path)]
    skipped = {path for number, path in enumerate(every) if decisions[number % len(decisions)]}
    expected = tree(root, skip=skipped.__contains__)

    async def body(face):
        options = {"read_ahead": read_ahead, "file_open_flags": opening}
        async with walking(face, root, **options) as walk:
            if stop is not None:
                begun = min(stop, len(expected))
                found = []
                for _ in range(begun):
                    item = await anext(walk)
                    found.append(os.fsencode(item.path))
                    if found[-1] in skipped:
                        walk.skip()
                assert found == expected[:begun]
                # What comes after is the same in a walk that goes on from a token.
                token = walk.resume_token()
            else:
                assert await pruned(walk, skipped.__contains__) == expected
                return
        async with walking(face, root, resume_from=token, **options) as walk:
            assert await pruned(walk, skipped.__contains__) == expected[begun:]

    face = Face(name)
    face.run(body, face)


@on_both_faces
async def test_two_walks_skip_each_on_its_own(face, mount_dir):
    grown(mount_dir)
    async with walking(face, mount_dir) as one, walking(face, mount_dir) as two:
        first, second = [], []
        for _ in range(len(tree(mount_dir)) + 1):
            for walk, found in ((one, first), (two, second)):
                if (item := await anext(walk, None)) is None:
                    continue
                found.append(item)
                if item.isdir and (walk is one) == (item.name in "ab"):
                    walk.skip()
    assert paths(first) == tree(mount_dir, skip=lambda path: os.path.basename(path) in b"ab")
    assert paths(second) == tree(mount_dir, skip=lambda path: os.path.basename(path) not in b"ab")


@pytest.mark.parametrize("size", [None, 100])
def test_the_error_of_another_directory_is_told_in_spite_of_skip(mount_dir, size):
    (mount_dir / "parent" / "empty").mkdir(parents=True)
    told = {}
    for skips in (False, True):
        for number in range(6):
            with (
                faults.failing("getdents64", errno.EIO, skip=number, times=1),
                blocking.walk(mount_dir, file_open_flags=None) as walk,
            ):
                handed_out = walk if size is None else walk.batches(size)
                errors = told.setdefault(skips, [])
                while True:
                    try:
                        found = next(handed_out)
                    except StopIteration:
                        break
                    except OSError as error:
                        errors.append(error.filename)
                        continue
                    last = found if size is None else found[-1]
                    if skips and last.name == "empty":
                        walk.skip()
    of_the_skipped = str(mount_dir / "parent" / "empty")
    assert told[True] == [path for path in told[False] if path != of_the_skipped]
    assert len(told[True]) == 4
