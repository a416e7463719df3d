# SPDX-License-Identifier: LGPL-3.0-or-later
"""Items that a cancelled list had are handed out again, as if nobody had asked for the list."""

import random

import anyio
import pytest
from faces import on_both_faces
from stuck import AMPLE
from walked import following, walking

import truenas_os
from truenas_os.blocking import walk_steps
from truenas_os.blocking.walk_native import NativeWalk


@pytest.fixture
def tree(tmp_path):
    for i in range(30):
        inner = tmp_path / f"dir{i}" / "inner"
        inner.mkdir(parents=True)
        for j in range(20):
            (inner.parent / f"file{j}").touch()
            (inner / f"file{j}").touch()
    return tmp_path


def expected(tree, skipped):
    """The paths below *tree*, but not those below *skipped*."""
    for path in tree.iterdir():
        yield str(path)
        if str(path) not in skipped:
            yield from map(str, path.rglob("*"))


@pytest.mark.anyio
async def test_skip_after_a_cancelled_list_leaves_out_that_directory_and_no_other(tree):
    for attempt in range(60):
        skipped, seen = set(), []
        async with truenas_os.walk(tree, file_open_flags=None, read_ahead=8 + attempt) as items:
            with anyio.move_on_after(random.random() * 0.003):
                await anext(items.batches(5000))
                continue
            async for item in items:
                seen.append(item.path)
                if item.isdir and item.depth == 1 and random.random() < 0.5:
                    items.skip()
                    skipped.add(item.path)
        assert sorted(seen) == sorted(expected(tree, skipped))


@pytest.mark.anyio
async def test_a_token_after_a_cancelled_list_repeats_everything_that_was_in_it(tree):
    everything = sorted(map(str, tree.rglob("*")))
    for attempt in range(100):
        async with truenas_os.walk(tree, file_open_flags=None) as items:
            # Most often the list is whole by then, and the walk's threads are about to end.
            with anyio.move_on_after(0.0005 * (attempt % 10)):
                await anext(items.batches(5000))
                continue
            token = items.resume_token()
            assert sorted([item.path async for item in items]) == everything
        async with truenas_os.walk(tree, file_open_flags=None, resume_from=token) as items:
            assert sorted([item.path async for item in items]) == everything


@pytest.mark.anyio
async def test_what_was_listed_before_the_end_is_waited_for_is_handed_out_first(tree, monkeypatch):
    """The end, here, never comes: who waits for it with a list in hand is cancelled."""
    monkeypatch.setattr(walk_steps, "_GRACE", AMPLE)
    everything = sorted(map(str, tree.rglob("*")))
    walk = truenas_os.walk(tree, file_open_flags=None)
    async with walk as items:
        listed = []
        with monkeypatch.context() as patch:
            patch.setattr(NativeWalk, "ended", lambda self: False)
            with anyio.move_on_after(1):
                listed = await anext(items.batches(5000))
            with anyio.move_on_after(0.1) as scope:
                await anext(items.batches(5000))
            assert scope.cancelled_caught
        token = items.resume_token()
        async with truenas_os.walk(tree, file_open_flags=None, resume_from=token) as rest:
            resumed = [item.path async for item in rest]
        assert sorted([item.path for item in listed] + resumed) == everything


@on_both_faces
async def test_a_directory_at_the_end_of_the_last_list_can_be_skipped(face, tmp_path):
    (tmp_path / "directory").mkdir()
    for _ in range(30):
        async with walking(face, tmp_path, file_open_flags=None) as walk:
            (item,) = await following(face, walk.batches(10))
            assert item.name == "directory"
            walk.skip()
            with pytest.raises(StopAsyncIteration):
                await following(face, walk.batches(10))
