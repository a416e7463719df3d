# SPDX-License-Identifier: LGPL-3.0-or-later
"""Items that a cancelled list had are handed out again, as if nobody had asked for the list."""

import random

import anyio
import pytest

import truenas_os


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
