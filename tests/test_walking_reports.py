# SPDX-License-Identifier: LGPL-3.0-or-later
"""What a walk tells of itself: statistics, callbacks, progress; and items by the batch."""

import errno
import os
import textwrap

import anyio
import faults
import kernel
import pytest
from faces import Face, on_both_faces
from grown import filled, grown, tree
from walked import OPENING, fds_return_without_a_loop_to, following, paths, walked, walking
from witness import in_python

import truenas_os
from truenas_os import blocking

pytestmark = pytest.mark.usefixtures("ends")


class Wrong(Exception):
    pass


def size_of(path):
    """What counts as bytes: the size of a file."""
    return os.lstat(path).st_size if os.path.isfile(path) and not os.path.islink(path) else 0


# Statistics


@on_both_faces
async def test_statistics_are_those_of_the_items_handed_out(face, place):
    grown(place)
    async with walking(face, place, include_symlinks=True) as walk:
        assert walk.get_stats() == (0, 0, str(place), 0, 0, 0)
        count = size = 0
        async for item in walk:
            count += 1
            size += size_of(item.path)
            stats = walk.get_stats()
            assert isinstance(stats, face.library.FilesystemIterState)
            assert stats == (count, size, item.parent, 0, 0, 0)
        assert walk.get_stats()[:2] == (count, size)
    assert stats._fields == (
        *("cnt", "cnt_bytes", "current_directory"),
        *("cnt_skipped", "cnt_errors", "cnt_unmarked"),
    )


@on_both_faces
async def test_the_stack_leads_from_the_root_to_the_directory_of_the_item(face, place):
    grown(place)
    async with walking(face, place) as walk:
        async for item in walk:
            stack = walk.dir_stack()
            assert isinstance(stack, tuple)
            assert [path for path, _ in stack] == [
                str(place),
                *reversed([str(p) for p in parents(item.path, place)]),
            ]
            assert [inode for _, inode in stack] == [os.stat(path).st_ino for path, _ in stack]


def parents(path, root):
    """The directories between a path and the root, the nearest first."""
    while (path := os.path.dirname(path)) != str(root):
        yield path


@on_both_faces
async def test_before_the_first_item_the_stack_is_the_root(face, place):
    grown(place)
    async with walking(face, place) as walk:
        assert walk.dir_stack() == ((str(place), place.stat().st_ino),)


@on_both_faces
async def test_very_large_files_are_counted(face, mount_dir):
    for number in range(3):
        with open(mount_dir / str(number), "w") as file:
            file.truncate(3 << 40)
    async with walking(face, mount_dir) as walk:
        await walk.rest()
        assert walk.get_stats().cnt_bytes == 9 << 40


@on_both_faces
async def test_more_bytes_than_64_bits_hold_are_counted(face, mount_dir):
    """At each item, in lists, and where some of it is skipped."""
    largest = (1 << 63) - 4096
    (mount_dir / "directory").mkdir()
    for path in ("1", "2", "3", "directory/1", "directory/2", "directory/3"):
        with open(mount_dir / path, "w") as file:
            file.truncate(largest)
    async with walking(face, mount_dir) as walk:
        size = 0
        async for item in walk:
            size += size_of(item.path)
            assert walk.get_stats().cnt_bytes == size
    assert size == 6 * largest
    async with walking(face, mount_dir) as walk:
        size = 0
        async for batch in batches_of(face, walk, 4):
            size += sum(size_of(item.path) for item in batch)
            assert walk.get_stats().cnt_bytes == size
    assert size == 6 * largest
    async with walking(face, mount_dir) as walk:
        async for item in walk:
            if item.isdir:
                walk.skip()
        assert walk.get_stats().cnt_bytes == 3 * largest


# Reports


def counts(increment, total):
    """What a callback is told of a walk of so many items."""
    return [*range(increment, total + 1, increment), total]


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("increment", [1, 2, 7, 10_000])
@on_both_faces
async def test_a_callback_is_told_of_each_multiple_and_of_the_end(
    face, mount_dir, increment, asynchronous
):
    grown(mount_dir)
    total = len(tree(mount_dir))
    events = []
    private = object()

    def callback(state, data):
        assert data is private
        assert isinstance(state, face.library.FilesystemIterState)
        events.append(("report", state.cnt))

    async def coroutine(state, data):
        await anyio.sleep(0)
        callback(state, data)

    options = {
        "reporting_increment": increment,
        "reporting_callback": coroutine if asynchronous else callback,
        "reporting_private_data": private,
    }
    if face.name == "blocking":
        options["reporting_callback"] = callback  # there is nobody to await the other
    async with walking(face, mount_dir, **options) as walk:
        async for _ in walk:
            events.append(("item", walk.get_stats().cnt))
    assert [n for what, n in events if what == "report"] == counts(increment, total)
    handed_out = 0
    for position, (what, number) in enumerate(events):
        if what == "item":
            handed_out += 1
            # Each report comes before the item after it.
            due = list(range(increment, handed_out, increment))
            assert [n for w, n in events[:position] if w == "report"][: len(due)] == due
        else:
            assert number in (handed_out, handed_out + 1)
    assert events[-1] == ("report", total)


@on_both_faces
async def test_without_items_a_callback_is_told_of_the_end(face, mount_dir):
    seen = []
    options = {"reporting_callback": lambda state, data: seen.append((state.cnt, data))}
    assert await walked(face, mount_dir, **options) == []
    assert seen == [(0, None)]


@on_both_faces
async def test_a_walk_that_is_closed_reports_no_end(face, mount_dir):
    grown(mount_dir)
    seen = []
    options = {"reporting_callback": lambda state, data: seen.append(state.cnt)}
    async with walking(face, mount_dir, reporting_increment=2, **options) as walk:
        await walk.take(5)
    assert set(seen) == {2, 4}


@pytest.mark.parametrize("increment", [1, 3, 10_000])
@on_both_faces
async def test_a_callback_that_raises_ends_the_walk(face, mount_dir, increment):
    grown(mount_dir)
    await walked(face, mount_dir)
    before = kernel.open_fds()

    def callback(state, data):
        raise Wrong

    options = {"reporting_callback": callback, "reporting_increment": increment}
    async with walking(face, mount_dir, **options) as walk:
        with pytest.raises(Wrong):
            await walk.rest()
        with pytest.raises(ValueError):
            await anext(walk)
        with pytest.raises(ValueError):
            walk.get_stats()
    if face.name == "blocking":
        fds_return_without_a_loop_to(before)


@on_both_faces
async def test_a_callback_may_ask_the_walk(face, mount_dir):
    """It sees the walk where the last item was handed out."""
    grown(mount_dir)
    seen = []

    def callback(state, data):
        assert data.get_stats() == state
        seen.append((state.cnt, data.resume_token(), data.dir_stack()))

    async def body(face):
        box = []

        class Later:
            def __getattr__(self, name):
                return getattr(box[0], name)

        options = {"reporting_callback": callback, "reporting_private_data": Later()}
        async with walking(face, mount_dir, reporting_increment=10, **options) as walk:
            box.append(walk.walk)
            await walk.rest()

    await body(face)
    order = tree(mount_dir)
    count, token, _ = seen[2]
    assert count == 30
    assert await walked(face, mount_dir, resume_from=token) == order[30:]


# Progress


@pytest.mark.parametrize("asynchronous", [False, True])
@on_both_faces
async def test_progress_is_told_at_the_end_with_an_estimate_of_the_whole(face, place, asynchronous):
    grown(place)
    seen = []
    before = os.statvfs(place)

    async def coroutine(told):
        seen.append(told)

    # There is nobody to await it in the blocking face.
    asynchronous = asynchronous and face.name != "blocking"
    options = {"progress": coroutine if asynchronous else seen.append}
    async with walking(face, place, progress_interval=1e9, **options) as walk:
        await walk.rest()
        stats = walk.get_stats()
    (told,) = seen[-1:]
    assert len(seen) <= 2
    assert isinstance(told, face.library.WalkProgress)
    assert told._fields == ("state", "elapsed", "total", "total_bytes")
    assert told.state == stats
    assert told.elapsed > 0
    # Filesystems give back what was removed when they come to it, and btrfs counts no inodes.
    after = os.statvfs(place)
    if before.f_files:
        assert after.f_files - after.f_ffree <= told.total <= before.f_files - before.f_ffree
    else:
        assert told.total is None
    used = [(each.f_blocks - each.f_bfree) * each.f_frsize for each in (before, after)]
    assert min(used) - (64 << 20) <= told.total_bytes <= max(used) + (64 << 20)


@on_both_faces
async def test_progress_without_an_interval_is_told_often(face, mount_dir):
    filled(mount_dir, *map(str, range(3000)), size=0)
    seen = []
    async with walking(face, mount_dir, progress=seen.append, progress_interval=0) as walk:
        await walk.rest()
    assert len(seen) > 2
    told = [(one.state.cnt, one.elapsed) for one in seen]
    assert told == sorted(told)
    assert told[-1][0] == 3000


@on_both_faces
async def test_progress_that_raises_ends_the_walk(face, mount_dir):
    grown(mount_dir)

    def progress(told):
        raise Wrong

    async with walking(face, mount_dir, progress=progress, progress_interval=0) as walk:
        with pytest.raises(Wrong):
            await walk.rest()
        with pytest.raises(ValueError):
            await anext(walk)


# Batches


async def batches_of(face, walk, size):
    iterator = walk.batches(size)
    while True:
        try:
            batch = await following(face, iterator)
        except StopAsyncIteration:
            return
        yield batch


@pytest.mark.parametrize("size", [1, 2, 10, 64, 100_000])
@pytest.mark.parametrize("opening", OPENING)
@on_both_faces
async def test_batches_have_all_items_in_order(face, place, opening, size):
    grown(place)
    expected = tree(place)
    async with walking(face, place, file_open_flags=opening) as walk:
        found, sizes = [], []
        async for batch in batches_of(face, walk, size):
            assert type(batch) is list
            sizes.append(len(batch))
            found += paths(batch)
            for item in batch:
                if opening is None:
                    assert item.fd == -1
                else:
                    assert os.path.samestat(os.fstat(item.fd), os.lstat(item.path))
            assert walk.get_stats().cnt == len(found)
            assert walk.get_stats().current_directory == batch[-1].parent
    assert found == expected
    assert max(sizes) <= size
    assert min(sizes) >= 1


@on_both_faces
async def test_a_walk_goes_on_from_after_a_batch(face, mount_dir):
    grown(mount_dir)
    order = tree(mount_dir)
    async with walking(face, mount_dir) as walk:
        done = 0
        async for batch in batches_of(face, walk, 7):
            done += len(batch)
            token = walk.resume_token()
            assert await walked(face, mount_dir, resume_from=token) == order[done:]


@on_both_faces
async def test_batches_and_items_can_be_mixed(face, mount_dir):
    grown(mount_dir)
    async with walking(face, mount_dir) as walk:
        found = paths(await walk.take(3))
        found += paths(await following(face, walk.batches(5)))
        found += paths(await walk.take(2))
        async for batch in batches_of(face, walk, 4):
            found += paths(batch)
    assert found == tree(mount_dir)


@pytest.mark.parametrize("size", [0, -1])
@on_both_faces
async def test_a_batch_holds_at_least_one(face, mount_dir, size):
    async with walking(face, mount_dir) as walk:
        with pytest.raises(ValueError):
            await following(face, walk.batches(size))


@on_both_faces
async def test_an_empty_directory_has_no_batches(face, mount_dir):
    async with walking(face, mount_dir) as walk:
        assert [batch async for batch in batches_of(face, walk, 5)] == []


CAPPED = """
import os, resource
from truenas_os import blocking

os.chdir({directory!r})
resource.setrlimit(resource.RLIMIT_NOFILE, (512, 512))
before = len(os.listdir("/proc/self/fd"))
most = total = largest = 0
with blocking.walk(".") as walk:
    for batch in walk.batches(10_000):
        assert all(os.fstat(item.fd).st_ino == item.statxinfo.stx_ino for item in batch)
        most = max(most, len(os.listdir("/proc/self/fd")) - before)
        largest = max(largest, len(batch))
        total += len(batch)
with blocking.walk(".", file_open_flags=None) as walk:
    assert [len(batch) for batch in walk.batches(10_000)] == [total]
print(most, largest, total)
"""


def test_batches_with_descriptors_are_capped_by_the_limit_of_descriptors(mount_dir):
    filled(mount_dir, *map(str, range(2000)), size=0)
    directory = str(mount_dir)
    most, largest, total = map(int, in_python(CAPPED.format(directory=directory)).split())
    assert total == 2000
    assert largest >= 1
    assert most <= 51


@on_both_faces
async def test_an_error_comes_after_the_batch_before_it(face, mount_dir):
    (mount_dir / "big").mkdir()
    filled(mount_dir / "big", *(f"{n:0>200}" for n in range(3000)), size=0)
    expected = tree(mount_dir)
    with faults.failing("getdents64", errno.EIO, skip=2, times=1):
        async with walking(face, mount_dir, file_open_flags=None) as walk:
            found, errors = [], []
            while True:
                try:
                    found += paths(await following(face, walk.batches(100)))
                except StopAsyncIteration:
                    break
                except OSError as error:
                    errors.append(error)
                    assert len(errors) == 1
    assert len(errors) == 1
    assert found == expected[: len(found)]
    assert 1 < len(found) < len(expected)


def test_batches_can_be_handed_to_threads(mount_dir):
    """As long as the next list is not asked for."""
    grown(mount_dir)

    def sizes(batch):
        return [os.fstat(item.fd).st_size for item in batch if item.isreg]

    async def body():
        found = []
        async with truenas_os.walk(mount_dir) as walk:
            async for batch in walk.batches(16):
                found += await anyio.to_thread.run_sync(sizes, batch)
        return found

    expected = [os.stat(path).st_size for path in tree(mount_dir) if os.path.isfile(path)]
    assert Face("trio").run(body) == expected
    assert Face("asyncio").run(body) == expected


def test_the_interface_of_batches(mount_dir):
    grown(mount_dir)
    program = f"""
    from truenas_os import blocking

    with blocking.walk({str(mount_dir)!r}) as walk:
        print(sum(len(batch) for batch in walk.batches(10)))
    """
    assert int(in_python(textwrap.dedent(program))) == len(tree(mount_dir))
    with blocking.walk(mount_dir) as walk:
        batches = walk.batches(10)
        assert iter(batches) is iter(batches)
