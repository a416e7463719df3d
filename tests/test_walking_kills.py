# SPDX-License-Identifier: LGPL-3.0-or-later
"""kill -9 at any time: what was saved and what is walked from there on is the whole, exactly."""

import json
import os

import pytest
from grown import EXACT, filled, tree
from witness import in_python

pytestmark = pytest.mark.usefixtures("ends")
KILLS = 100


def killed(place, how, seed):
    script = f"import walk_kills; walk_kills.main({str(place)!r}, {how!r}, {KILLS}, {seed})"
    result = json.loads(in_python(script))
    assert result["kills"] >= KILLS
    result["walks"] = [list(map(bytes.fromhex, walk)) for walk in result["walks"]]
    return result


def middling(place):
    for name in ("a/b/c/d", "a/e", "f/g", "h"):
        (place / name).mkdir(parents=True)
    for path in (place, *(place / name for name in ("a", "a/b/c", "a/b/c/d", "f", "f/g", "h"))):
        filled(path, *(f"file {number}" for number in range(9)))
    os.mkfifo(place / "a" / "e" / "fifo")
    return place


@pytest.mark.parametrize("how", ["still", "changing"])
def test_a_walk_that_is_killed_again_and_again_sees_each_entry_once(place, how):
    middling(place)
    order = tree(place)
    for walk in killed(place, how, seed=1)["walks"]:
        if place.parent.name not in EXACT:
            assert set(walk) == set(order)
        elif how == "still":
            assert walk == order
        else:
            assert sorted(walk) == sorted(order)


def test_a_walk_of_a_squashfs_that_is_killed_sees_each_entry_once(squashed):
    order = tree(squashed)
    for walk in killed(squashed, "still", seed=2)["walks"]:
        assert walk == order


def test_no_mark_is_written_too_early_and_nothing_is_lost_by_marks(place):
    middling(place)
    result = killed(place, "marks", seed=3)
    assert result["early"] == []
    for walk in result["walks"]:
        assert set(walk) == set(tree(place))
