# SPDX-License-Identifier: LGPL-3.0-or-later
"""A walk that is looked at, or closed, at any moment: from a signal's handler, say.

A trace function stands for the handler: it is called before each line of the walk's own code.
"""

import contextlib
import gc
import sys
from pathlib import Path

import anyio
import kernel
import pytest
from stuck import AMPLE, wait_until

import truenas_os
from truenas_os import blocking
from truenas_os.blocking import walk_steps, walker

TRACED = {walk_steps.__file__, walker.__file__}
LISTS = [None, 3, 100]


@pytest.fixture
def tree(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    return tmp_path


@contextlib.contextmanager
def before_each_line(action):
    """Call *action* before each line of the walk's code, but not of what it calls itself."""
    acting = False

    def trace(frame, event, _):
        nonlocal acting
        if frame.f_code.co_filename not in TRACED or acting:
            return None
        if event == "line":
            acting = True
            try:
                action()
            finally:
                acting = False
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


def handed_out(walk, size, seen):
    """Walk to the end; what comes is in *seen* as soon as it has come."""
    if size is None:
        for item in walk:
            seen.append(item.path)
    else:
        for items in walk.batches(size):
            seen += [item.path for item in items]


@pytest.mark.parametrize("size", LISTS)
def test_a_token_is_never_ahead_of_what_was_handed_out(tree, size):
    everything = sorted(map(str, tree.rglob("*")))
    taken = []
    seen = []
    with blocking.walk(tree, file_open_flags=None) as walk:

        def look():
            taken.append((walk.resume_token(), walk.get_stats().cnt, len(seen)))

        with before_each_line(look):
            handed_out(walk, size, seen)
    assert sorted(seen) == everything
    assert len(taken) > 100
    tokens = {}
    for token, count, length in taken:
        # What is about to be returned counts already, and nothing else does.
        returned = length if count == length else min(length + (size or 1), len(everything))
        assert count == returned
        tokens[token] = count
    for token, count in tokens.items():
        with blocking.walk(tree, file_open_flags=None, resume_from=token) as walk:
            assert [item.path for item in walk] == seen[count:]


@pytest.mark.parametrize("size", LISTS)
@pytest.mark.parametrize("opening", [None, 0])
def test_a_walk_that_is_closed_at_any_line_does_not_look_complete(tree, size, opening):
    everything = sorted(map(str, tree.rglob("*")))
    before = kernel.open_fds()
    line = outcomes = 0
    while True:
        walk = blocking.walk(tree, file_open_flags=opening)
        walk.__enter__()
        left, seen = line, []

        def close_in_time(walk=walk):
            nonlocal left
            left -= 1
            if left == -1:
                walk.close()

        try:
            with before_each_line(close_in_time):
                handed_out(walk, size, seen)
            assert sorted(seen) == everything
            if left >= 0:
                break
        except ValueError as error:
            assert "closed" in str(error)
            outcomes += 1
        line += 1
    assert outcomes > 50
    walk.close()
    del walk, close_in_time
    gc.collect()
    # A thread of the test before this one may have been on its way out.
    wait_until(lambda: kernel.open_fds().keys() <= before.keys(), "the end of every descriptor")


@pytest.mark.anyio
async def test_a_task_that_keeps_tokens_while_another_gathers_a_list_loses_nothing(tmp_path):
    for number in range(2000):
        (tmp_path / str(number)).touch()
    tokens = []
    async with truenas_os.walk(tmp_path, file_open_flags=None) as items:
        lists = items.batches(5000)

        async def keep():
            while not done:
                tokens.append(items.resume_token())
                await anyio.sleep(0)

        done = False
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(keep)
            assert len(await anext(lists)) == 2000
            done = True
    # None was taken after the list had come.
    assert len(tokens) > 1
    for token in set(tokens):
        async with truenas_os.walk(tmp_path, file_open_flags=None, resume_from=token) as rest:
            assert len([item async for item in rest]) == 2000


@pytest.mark.anyio
async def test_a_callback_may_close_its_walk(tree):
    async def close(state, walk):
        await walk[0].aclose()

    box = []
    box.append(
        truenas_os.walk(
            tree, reporting_callback=close, reporting_increment=2, reporting_private_data=box
        )
    )
    seen = []
    with anyio.fail_after(AMPLE), pytest.raises(ValueError, match="closed meanwhile"):
        async for item in box[0]:
            seen.append(item.path)
    assert len(seen) == 2


def test_a_callback_may_close_its_walk_synchronously(tree):
    def close(state, walk):
        walk[0].close()

    box = []
    box.append(
        blocking.walk(
            tree, reporting_callback=close, reporting_increment=2, reporting_private_data=box
        )
    )
    with pytest.raises(ValueError, match="closed meanwhile"):
        list(box[0])


def test_skip_is_refused_while_a_list_is_gathered(tree):
    (tree / "d").mkdir()
    refused = []
    with blocking.walk(tree, file_open_flags=None) as walk:

        def skip():
            if walk._walker._before is not None:
                with pytest.raises(RuntimeError, match="waiting for the next list"):
                    walk.skip()
                refused.append(True)

        seen = []
        with before_each_line(skip):
            handed_out(walk, 3, seen)
    assert refused
    assert sorted(seen) == sorted(map(str, Path(tree).rglob("*")))
