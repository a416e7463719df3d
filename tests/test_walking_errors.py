# SPDX-License-Identifier: LGPL-3.0-or-later
"""Entries that cannot be read, and what `on_error` makes of them."""

import errno
import fcntl
import os

import faults
import pytest
from faces import on_both_faces
from filesystems import needs_root
from grown import NOBODY, O_PATH, as_nobody, filled, tree
from stuck import run_python
from walked import OPENING, paths, walking

pytestmark = [pytest.mark.usefixtures("ends"), needs_root]


@pytest.fixture
def locked(public):
    """A tree with two files and two directories that an ordinary user cannot read."""
    for name in ("a", "b", "b/closed", "b/open", "closed", "closed/inside", "z"):
        (public / name).mkdir()
        filled(public / name, "one", "two")
    for name in ("a/one", "z/two"):
        (public / name).chmod(0)
    for name in ("closed", "b/closed"):
        (public / name).chmod(0)
    return public


FILES = ("a/one", "z/two")
DIRECTORIES = ("closed", "b/closed")


def among(root, names):
    return {os.fsencode(root / name) for name in names}


def reachable(root):
    """In the order of a walk, without what is inside of a closed directory."""
    return tree(root, skip=lambda path: path in among(root, DIRECTORIES))


def is_closed(error, path):
    return (type(error), error.errno, os.fsencode(error.filename)) == (
        PermissionError,
        errno.EACCES,
        os.fsencode(path),
    )


@on_both_faces
async def test_report_yields_what_is_unreadable_and_raises_for_directories(face, locked):
    with as_nobody():
        async with walking(face, locked) as walk:
            found, raised = [], []
            while True:
                try:
                    item = await anext(walk)
                except StopAsyncIteration:
                    break
                except OSError as error:
                    assert is_closed(error, found[-1])
                    raised.append(found[-1])
                    continue
                found.append(os.fsencode(item.path))
                if found[-1] in among(locked, FILES + DIRECTORIES):
                    assert is_closed(item.error, item.path)
                    # /proc is closed to who has changed its user.
                    assert fcntl.fcntl(item.fd, fcntl.F_GETFL) & O_PATH
                    assert os.fstat(item.fd).st_ino == item.statxinfo.stx_ino
                else:
                    assert item.error is None
            stats = walk.get_stats()
    assert found == reachable(locked)
    assert set(raised) == among(locked, DIRECTORIES)
    assert len(raised) == 2
    assert (stats.cnt, stats.cnt_skipped, stats.cnt_errors) == (len(found), 0, 4)


@pytest.mark.parametrize("read_ahead", [1, 1000])
@on_both_faces
async def test_to_skip_an_unreadable_directory_drops_its_error(face, locked, read_ahead):
    with as_nobody():
        async with walking(face, locked, read_ahead=read_ahead) as walk:
            found = []
            async for item in walk:
                found.append(os.fsencode(item.path))
                if item.isdir and item.error:
                    walk.skip()
    assert found == reachable(locked)


@pytest.mark.parametrize("opening", [os.O_RDONLY, None])
@on_both_faces
async def test_raise_ends_the_walk_at_the_first_error(face, locked, opening):
    bad = among(locked, (*FILES, *DIRECTORIES) if opening is not None else DIRECTORIES)
    with as_nobody():
        async with walking(face, locked, on_error="raise", file_open_flags=opening) as walk:
            found = []
            with pytest.raises(PermissionError) as failed:
                async for item in walk:
                    found.append(os.fsencode(item.path))
            for _ in range(2):
                with pytest.raises(ValueError):
                    await anext(walk)
            with pytest.raises(ValueError):
                walk.get_stats()
    expected = reachable(locked)
    first = next(path for path in expected if path in bad)
    assert os.fsencode(failed.value.filename) == first
    # A directory's own item may come before the error of its contents.
    assert [path for path in found if path != first] == expected[: expected.index(first)]


@on_both_faces
async def test_skip_leaves_out_what_is_unreadable_and_counts_it(face, locked):
    with as_nobody():
        async with walking(face, locked, on_error="skip") as walk:
            found = paths(await walk.rest())
            stats = walk.get_stats()
    left_out = among(locked, FILES + DIRECTORIES)
    assert [path for path in found if path not in left_out] == [
        path for path in reachable(locked) if path not in left_out
    ]
    assert not among(locked, FILES) & set(found)
    assert (stats.cnt, stats.cnt_skipped, stats.cnt_errors) == (len(found), 4, 4)


@on_both_faces
async def test_a_function_decides_about_each_error(face, locked):
    asked = []

    def decide(error):
        asked.append(error)
        return "skip" if os.path.basename(error.filename) in ("one", "closed") else "yield"

    with as_nobody():
        async with walking(face, locked, on_error=decide) as walk:
            found = paths(await walk.rest())
            stats = walk.get_stats()
    assert {os.fsencode(error.filename) for error in asked} == among(locked, FILES + DIRECTORIES)
    assert len(asked) == 4
    assert all(is_closed(error, error.filename) for error in asked)
    assert among(locked, ["z/two"]) <= set(found)
    assert not among(locked, ["a/one"]) & set(found)
    assert (stats.cnt_skipped, stats.cnt_errors) == (3, 4)


@on_both_faces
async def test_a_function_may_yield_everything(face, locked):
    with as_nobody():
        async with walking(face, locked, on_error=lambda error: "yield") as walk:
            errors = []
            found = paths(await walk.rest(errors))
            stats = walk.get_stats()
    assert found == reachable(locked)
    assert (stats.cnt_skipped, stats.cnt_errors) == (0, 4)


@on_both_faces
async def test_a_function_may_raise_the_error(face, locked):
    with as_nobody():
        async with walking(face, locked, on_error=lambda error: "raise") as walk:
            with pytest.raises(PermissionError):
                await walk.rest()
            with pytest.raises(ValueError):
                await anext(walk)


@pytest.mark.parametrize("answer", ["ignore", "report", None, True])
@on_both_faces
async def test_an_answer_without_a_meaning_ends_the_walk(face, locked, answer):
    with as_nobody():
        async with walking(face, locked, on_error=lambda error: answer) as walk:
            with pytest.raises(ValueError):
                await walk.rest()
            with pytest.raises(ValueError):
                walk.get_stats()


@on_both_faces
async def test_what_the_function_raises_ends_the_walk(face, locked):
    def decide(error):
        raise ZeroDivisionError

    with as_nobody():
        async with walking(face, locked, on_error=decide) as walk:
            with pytest.raises(ZeroDivisionError):
                await walk.rest()
            with pytest.raises(ValueError):
                await anext(walk)


@on_both_faces
async def test_the_function_may_be_a_coroutine_function_in_the_async_face(face, locked):
    import anyio

    async def decide(error):
        await anyio.sleep(0)
        return "skip"

    if face.name == "blocking":
        return  # there is nobody to await it
    with as_nobody():
        async with walking(face, locked, on_error=decide) as walk:
            await walk.rest()
            assert walk.get_stats().cnt_skipped == 4


@pytest.mark.parametrize("opening", OPENING)
@on_both_faces
async def test_a_directory_that_may_be_listed_but_not_searched_is_accounted_for(
    face, public, opening
):
    """Its names can be read; what is behind them cannot even be looked at."""
    (public / "listed").mkdir()
    filled(public / "listed", "one", "two", "three")
    (public / "listed").chmod(0o744)
    filled(public, "beside")
    with as_nobody():
        async with walking(face, public, file_open_flags=opening) as walk:
            errors = []
            items = await walk.rest(errors)
            stats = walk.get_stats()
    assert among(public, ["listed", "beside"]) <= set(paths(items))
    told = {os.fsencode(error.filename) for error in errors}
    told |= {os.fsencode(item.path) for item in items if item.error}
    assert told
    assert len(told) <= stats.cnt_errors
    for path in set(tree(public)) - set(paths(items)):
        assert told & {path, os.path.dirname(path)}


def test_a_root_that_cannot_be_read_is_told_at_once(public):
    from truenas_os import blocking

    (public / "closed").mkdir(mode=0o700)
    with as_nobody(), pytest.raises(PermissionError) as failed:
        list(blocking.walk(public / "closed"))
    assert is_closed(failed.value, public / "closed")


# A listing that fails in the middle


@pytest.mark.parametrize("code", [errno.EIO, errno.EBADMSG])
@on_both_faces
async def test_a_listing_that_breaks_off_is_told_after_what_it_had(face, mount_dir, code):
    """And the walk goes on beside it."""
    (mount_dir / "big").mkdir()
    filled(mount_dir / "big", *(f"{n:0>200}" for n in range(3000)), size=0)
    for name in ("a", "z"):
        (mount_dir / name).mkdir()
        filled(mount_dir / name, "one", "two")
    expected = tree(mount_dir)
    counts = []
    for name in ("a", "z", "big"):
        with faults.count("getdents64") as calls:
            async with walking(face, mount_dir / name, file_open_flags=None) as walk:
                await walk.rest()
        counts.append(calls.seen)
    assert counts[2] > 3, "the directory is not big enough"
    broken = 0
    for skip in range(sum(counts)):
        async with walking(face, mount_dir, file_open_flags=None) as walk:
            errors = []
            with faults.failing("getdents64", code, skip=skip, times=1):
                try:
                    found = paths(await walk.rest(errors))
                except OSError:
                    continue  # the root itself
            stats = walk.get_stats()
        if not errors:
            continue
        (error,) = errors
        assert error.errno == code
        assert stats.cnt_errors == 1
        inside = os.fsencode(error.filename) + b"/"
        assert [path for path in found if not path.startswith(inside)] == [
            path for path in expected if not path.startswith(inside)
        ]
        had = [path for path in found if path.startswith(inside)]
        assert had == [path for path in expected if path.startswith(inside)][: len(had)]
        broken += inside.endswith(b"/big/") and bool(had)
    assert broken


# Another user


CHANGED = """
import os, sys, threading
import faults
from truenas_os import blocking

with faults.stopped("getdents64") as stop:
    walk = blocking.walk(sys.argv[1])
    thread = threading.Thread(target=lambda: print(len(list(walk))))
    thread.start()
    stop.wait_reached()
    os.setresuid({nobody}, {nobody}, {nobody})
    print("changed", flush=True)
    stop.go()
    thread.join()
"""


def test_a_process_may_change_its_user_while_a_walk_waits(public):
    """The C library tells each thread of a change by a signal that none of them may hold up."""
    filled(public, "one", "two")
    program = f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r})\n"
    done = run_python(program + CHANGED.format(nobody=NOBODY), str(public))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "changed\n2\n"
