# SPDX-License-Identifier: LGPL-3.0-or-later
"""Tokens: a walk goes on where another one was, in another process and after a remount."""

import contextlib
import errno
import json
import os
import random
import shutil
from pathlib import Path

import faults
import kernel
import pytest
from faces import Face, on_both_faces
from filesystems import make_image, needs_root
from grown import EXACT, as_nobody, directories, filled, grown, mounted_image, tree
from test_walking_marks import MARKS, small
from walked import OPENING, paths, walked, walking
from witness import in_python

from truenas_os import blocking
from truenas_os.blocking import walk_tokens

pytestmark = pytest.mark.usefixtures("ends")


async def token_after(face, where, count, **options):
    """What was seen first, and the token of then."""
    async with walking(face, where, **options) as walk:
        seen = paths(await walk.take(count))
        token = walk.resume_token()
    return seen, token


# A token goes on with the next item


@pytest.mark.parametrize("opening", OPENING)
@on_both_faces
async def test_a_walk_goes_on_from_after_any_item(face, place, opening):
    small(place)
    order = tree(place)
    for count in range(len(order) + 1):
        seen, token = await token_after(face, place, count, file_open_flags=opening)
        assert seen == order[:count]
        rest = await walked(face, place, resume_from=token, file_open_flags=opening)
        if place.parent.name in EXACT:
            assert token.exact is True
            assert rest == order[count:]
        else:
            assert set(rest) >= set(order[count:])
            assert len(set(rest)) == len(rest)


@on_both_faces
async def test_a_walk_of_a_squashfs_goes_on_from_after_any_item(face, squashed):
    order = tree(squashed)
    for count in range(0, len(order) + 1, 5):
        _, token = await token_after(face, squashed, count)
        assert token.exact is True
        assert await walked(face, squashed, resume_from=token) == order[count:]


@on_both_faces
async def test_a_token_is_bytes_and_bytes_are_a_token(face, mount_dir):
    small(mount_dir)
    seen, token = await token_after(face, mount_dir, 4)
    assert isinstance(token, face.library.ResumeToken)
    assert isinstance(token, bytes)
    plain = bytes(token)
    assert type(plain) is bytes
    again = face.library.ResumeToken(plain)
    assert again == token
    assert again.exact is token.exact
    expected = tree(mount_dir)[len(seen) :]
    for one in (token, plain, again, bytearray(plain), memoryview(plain)):
        with contextlib.nullcontext() if isinstance(one, bytes) else contextlib.suppress(TypeError):
            assert await walked(face, mount_dir, resume_from=one) == expected


@on_both_faces
async def test_a_token_of_one_face_goes_on_in_the_other(face, mount_dir):
    small(mount_dir)
    seen, token = await token_after(face, mount_dir, 7)
    if face.name == "blocking":
        other = Face("trio")
        rest = other.run(lambda: walked(other, mount_dir, resume_from=token))
    else:
        import anyio

        rest = await anyio.to_thread.run_sync(
            lambda: [os.fsencode(i.path) for i in blocking.walk(mount_dir, resume_from=token)]
        )
    assert seen + rest == tree(mount_dir)


@on_both_faces
async def test_before_the_first_item_a_token_is_the_beginning(face, place):
    small(place)
    _, token = await token_after(face, place, 0)
    assert await walked(face, place, resume_from=token) == tree(place)


@on_both_faces
async def test_after_the_end_nothing_is_left(face, place):
    small(place)
    async with walking(face, place) as walk:
        await walk.rest()
        token = walk.resume_token()
    filled(place, "new")
    async with walking(face, place, resume_from=token) as walk:
        assert await walk.rest() == []
        again = walk.resume_token()
    assert await walked(face, place, resume_from=again) == []


@on_both_faces
async def test_a_resumed_walk_can_be_resumed(face, place):
    """One item at a time."""
    small(place)
    found = []
    token = None
    while True:
        async with walking(face, place, resume_from=token) as walk:
            if (item := await anext(walk, None)) is None:
                break
            found.append(os.fsencode(item.path))
            token = walk.resume_token()
        assert len(found) < 100
    if place.parent.name in EXACT:
        assert found == tree(place)
    else:
        assert set(found) == set(tree(place))


@on_both_faces
async def test_a_token_may_be_used_with_other_options(face, mount_dir):
    small(mount_dir)
    order = tree(mount_dir)
    _, token = await token_after(face, mount_dir, 5, file_open_flags=os.O_RDONLY, read_ahead=1)
    for opening in OPENING:
        options = {"file_open_flags": opening, "read_ahead": 100}
        assert await walked(face, mount_dir, resume_from=token, **options) == order[5:]


@on_both_faces
async def test_items_of_a_resumed_walk_are_those_of_the_first(face, place):
    small(place)

    def seen(item):
        return item.path, item.parent, item.name, item.depth, item.statxinfo.stx_ino

    async with walking(face, place) as walk:
        every = await walk.rest_of(seen)
    _, token = await token_after(face, place, 6)
    async with walking(face, place, resume_from=token) as walk:
        stacks = []
        rest = []
        async for item in walk:
            rest.append(seen(item))
            stacks.append(walk.dir_stack())
            assert stacks[-1][0][0] == str(place)
            assert stacks[-1][-1] == (item.parent, os.stat(item.parent).st_ino)
    if place.parent.name in EXACT:
        assert rest == every[6:]
    assert set(rest) <= set(every)


@on_both_faces
async def test_a_token_after_skip_goes_on_behind_the_directory(face, mount_dir):
    small(mount_dir)
    async with walking(face, mount_dir) as walk:
        async for item in walk:
            if item.name == "a":
                before = walk.resume_token()
                walk.skip()
                token = walk.resume_token()
                break
    order = tree(mount_dir)
    position = order.index(os.fsencode(mount_dir / "a")) + 1
    assert await walked(face, mount_dir, resume_from=before) == order[position:]
    inside = os.fsencode(mount_dir / "a") + b"/"
    assert await walked(face, mount_dir, resume_from=token) == [
        path for path in order[position:] if not path.startswith(inside)
    ]


@on_both_faces
async def test_the_size_of_a_token_is_that_of_the_depth(face, mount_dir):
    (mount_dir / "one" / "two").mkdir(parents=True)
    filled(mount_dir / "one" / "two", *map(str, range(5000)), size=0)
    sizes = []
    async with walking(face, mount_dir) as walk:
        async for item in walk:
            if item.depth == 3:
                sizes.append(len(walk.resume_token()))
    assert len(sizes) == 5000
    assert max(sizes) < 1024


@on_both_faces
async def test_a_token_of_the_last_item_of_every_directory_goes_up(face, place):
    for name in ("x/y/z", "empty"):
        (place / name).mkdir(parents=True)
    order = tree(place)
    for count in range(len(order) + 1):
        _, token = await token_after(face, place, count)
        rest = await walked(face, place, resume_from=token)
        assert set(rest) >= set(order[count:])
        assert rest == order[count:] or place.parent.name not in EXACT


# Another process, another mount


ELSEWHERE = """
import os, sys
from truenas_os import blocking

token = bytes.fromhex({token!r})
for item in blocking.walk({path!r}, resume_from=token):
    sys.stdout.buffer.write(os.fsencode(item.path) + b"\\0")
"""


def rest_in_another_process(path, token):
    text = in_python(ELSEWHERE.format(token=token.hex(), path=os.fspath(path)))
    return [os.fsencode(one) for one in text.split("\0")[:-1]]


def test_another_process_goes_on(place):
    small(place)
    order = tree(place)
    for count in (0, 1, 7, len(order)):
        with blocking.walk(place) as walk:
            for _ in range(count):
                next(walk)
            token = walk.resume_token()
        rest = rest_in_another_process(place, token)
        assert set(rest) >= set(order[count:])
        assert rest == order[count:] or place.parent.name not in EXACT


@needs_root
@pytest.mark.parametrize("fs_type", ["ext4", "xfs", "btrfs", "squashfs"])
def test_after_a_remount_from_another_device_a_walk_goes_on(tmp_path, fs_type):
    content = tmp_path / "content"
    content.mkdir()
    image = make_image(fs_type, tmp_path / "image", grown(content))
    mounted = tmp_path / "mounted"
    with mounted_image(image, mounted, fs_type=fs_type):
        if fs_type != "squashfs":
            grown(mounted)
        order = tree(mounted)
        with blocking.walk(mounted) as walk:
            for _ in range(len(order) // 2):
                next(walk)
            token = walk.resume_token()
        device = mounted.stat().st_dev
    # A squashfs has no UUID: it is recognised by its source, which has to be the same.
    other = contextlib.nullcontext() if fs_type == "squashfs" else make_busy_loop(tmp_path)
    with other, mounted_image(image, mounted, fs_type=fs_type):
        # btrfs has an anonymous device, and that number may come again.
        assert fs_type in ("btrfs", "squashfs") or mounted.stat().st_dev != device
        rest = [os.fsencode(item.path) for item in blocking.walk(mounted, resume_from=token)]
    assert rest == order[len(order) // 2 :]


@contextlib.contextmanager
def make_busy_loop(tmp_path):
    """Take the loop device that was free, so that the next one is another."""
    image = make_image("ext4", tmp_path / "other image")
    with mounted_image(image, tmp_path / "other", fs_type="ext4"):
        yield


# Changes in between


def numbered(place, count=600):
    for name in ("top", "top/sub"):
        (place / name).mkdir()
    filled(place / "top" / "sub", *(f"{n:04}" for n in range(count)), size=0)
    filled(place / "top", *(f"t{n:04}" for n in range(50)), size=0)


@pytest.mark.parametrize("seed", range(4))
@on_both_faces
async def test_changes_elsewhere_neither_repeat_nor_lose_an_entry(face, place, seed):
    numbered(place)
    order = tree(place)
    chance = random.Random(seed)
    count = chance.randrange(2, len(order))
    seen, token = await token_after(face, place, count)
    gone = set()
    for path in {*chance.sample(order, 200), *seen[-1:]}:
        if not os.path.isdir(path):
            os.unlink(path)
            gone.add(path)
    for directory in directories(place):
        filled(directory, *(f"new {n}" for n in range(chance.randrange(400))), size=0)
    rest = await walked(face, place, resume_from=token)
    old = [path for path in rest if b"new " not in os.path.basename(path)]
    expected = [path for path in order[count:] if path not in gone]
    if place.parent.name in EXACT:
        assert old == expected
        assert len(set(rest)) == len(rest)
    else:
        assert set(old) >= set(expected)


async def has_handles(face, place):
    """Whether the filesystem has file handles by which a directory is found again."""
    try:
        await face.call(face.library.fhandle, place)
    except OSError as error:
        assert error.errno == errno.EOPNOTSUPP
        return False
    return True


@needs_root
@on_both_faces
async def test_a_renamed_directory_on_the_path_is_found(face, place):
    grown(place)
    for name in (b"one", b"c"):
        order = tree(place)
        within = os.fsencode(place / "a" / "b" / "c")
        position = next(
            n for n, p in enumerate(order, 1) if p.startswith(within) and p.endswith(name)
        )
        _, token = await token_after(face, place, position)
        (place / "a").rename(place / "renamed")
        (place / "renamed" / "b").rename(place / "renamed" / "moved")
        if not await has_handles(face, place):
            with pytest.raises(face.library.IteratorRestoreError):
                await walked(face, place, resume_from=token)
            return
        rest = await walked(face, place, resume_from=token)
        left = [os.path.basename(path) for path in order[position:]]
        names = [os.path.basename(path) for path in rest]
        renamed = {b"a", b"b"}
        assert set(left) <= set(names) | renamed
        # A directory may come once more under its new name, with all that is in it.
        if place.parent.name in EXACT:
            again = (b"/renamed", b"/moved")
            once = [path for path in rest if not any(name in path for name in again)]
            assert len(once) <= len(left)
            assert len(set(rest)) == len(rest)
        (place / "renamed" / "moved").rename(place / "renamed" / "b")
        (place / "renamed").rename(place / "a")


@on_both_faces
async def test_a_directory_that_is_gone_is_told_with_its_depth(face, place):
    (place / "a" / "b" / "c").mkdir(parents=True)
    filled(place / "a" / "b" / "c", "one", "two")
    filled(place, "file")
    async with walking(face, place) as walk:
        async for item in walk:
            if item.parent.endswith("/c"):
                token = walk.resume_token()
                break
    shutil.rmtree(place / "a" / "b")
    with pytest.raises(face.library.IteratorRestoreError) as failed:
        await walked(face, place, resume_from=token)
    error = failed.value
    assert isinstance(error, OSError)
    assert error.errno == errno.ESTALE
    assert error.path == str(place / "a" / "b")
    assert error.depth == 2


@on_both_faces
async def test_another_directory_of_the_same_name_is_not_taken_for_it(face, place):
    (place / "a" / "b").mkdir(parents=True)
    filled(place / "a" / "b", "one", "two")
    async with walking(face, place) as walk:
        async for item in walk:
            if item.parent.endswith("/b"):
                token = walk.resume_token()
                break
    shutil.rmtree(place / "a")
    (place / "a" / "b").mkdir(parents=True)
    filled(place / "a" / "b", "three", "four")
    with pytest.raises(face.library.IteratorRestoreError):
        await walked(face, place, resume_from=token)


def rest_of(where, token):
    with blocking.walk(where, resume_from=token) as walk:
        return paths(walk)


@needs_root
@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENOMEM, errno.EIO, errno.EACCES])
@pytest.mark.parametrize("syscall", ["openat2", "statx"])
def test_what_cannot_be_opened_now_is_not_told_to_be_gone(public, syscall, code):
    """Without privileges, where no handle leads there: the token is as good as before."""
    (public / "a" / "b" / "c").mkdir(parents=True)
    filled(public / "a" / "b" / "c", "one", "two")
    order = tree(public)
    with as_nobody():
        with blocking.walk(public) as walk:
            while not next(walk).parent.endswith("/c"):
                pass
            token = walk.resume_token()
        told = set()
        with faults.count(syscall) as calls:
            rest_of(public, token)
        for nth in range(calls.seen):
            with faults.failing(syscall, code, skip=nth, times=1):
                try:
                    rest_of(public, token)
                except OSError as error:
                    assert not isinstance(error, blocking.IteratorRestoreError)
                    assert error.errno == code
                    told.add(error.filename)
        assert told >= {str(public / "a"), str(public / "a" / "b"), str(public / "a" / "b" / "c")}
        assert rest_of(public, token) == order[-1:]


@needs_root
@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENOMEM, errno.EIO])
def test_a_handle_that_cannot_be_opened_now_does_not_make_its_directory_lost(mount_dir, code):
    (mount_dir / "a").mkdir()
    filled(mount_dir / "a", "one", "two")
    with blocking.walk(mount_dir) as walk:
        rest = tree(mount_dir)[len([next(walk), next(walk)]) :]
        token = walk.resume_token()
    (mount_dir / "a").rename(mount_dir / "renamed")
    with faults.failing("open_by_handle_at", code), pytest.raises(OSError) as failed:
        rest_of(mount_dir, token)
    assert (failed.value.errno, failed.value.filename) == (code, str(mount_dir / "a"))
    assert not isinstance(failed.value, blocking.IteratorRestoreError)
    assert set(rest) <= set(rest_of(mount_dir, token))


# Tokens that are none


@on_both_faces
async def test_a_damaged_token_is_refused(face, mount_dir):
    small(mount_dir)
    _, token = await token_after(face, mount_dir, 5)
    plain = bytes(token)
    make = face.library.ResumeToken
    damaged = [plain[:length] for length in range(len(plain))]
    damaged += [plain + b"\0", plain * 2, b"\0" * len(plain)]
    for position in range(len(plain)):
        for bits in (0xFF, 0x01, 0x80):
            changed = bytearray(plain)
            changed[position] ^= bits
            damaged.append(bytes(changed))
    for one in damaged:
        with pytest.raises(ValueError):
            make(one)
        with pytest.raises(ValueError):
            face.library.walk(mount_dir, resume_from=one)
    for wrong in ("text", 5, None):
        with pytest.raises((TypeError, ValueError)):
            make(wrong)


@pytest.mark.parametrize("name", [None, "", "/", "a/b", "nul\0"])
def test_a_token_that_leads_to_no_directory_is_refused(mount_dir, name):
    """It is none that a walk has made."""
    (mount_dir / "a").mkdir()
    with blocking.walk(mount_dir) as walk:
        next(walk)
        position = walk.resume_token().position
    top, below = position.levels
    levels = () if name is None else (top, below._replace(name=name))
    with pytest.raises(ValueError, match="leads to no directory"):
        walk_tokens.token_of(position._replace(levels=levels))


@on_both_faces
async def test_a_token_of_another_filesystem_or_another_root_is_refused(face, tmp_path, mount_dir):
    small(mount_dir)
    other = mount_dir / "other"
    other.mkdir()
    kernel.mount("tmpfs", other, "tmpfs")
    small(other)
    _, token = await token_after(face, mount_dir, 5)
    for wrong in (other, mount_dir / "a", tmp_path):
        walk = walking(face, wrong, resume_from=token)
        with pytest.raises(ValueError):
            async with walk:
                await anext(walk)
    _, inside = await token_after(face, mount_dir / "a", 2)
    for wrong in (mount_dir, mount_dir / "e"):
        with pytest.raises(ValueError):
            await walked(face, wrong, resume_from=inside)


def test_tokens_of_all_filesystems_are_told_apart(place, mount_dir):
    small(place)
    small(mount_dir)
    with blocking.walk(place) as walk:
        next(walk)
        token = walk.resume_token()
    with pytest.raises(ValueError):
        list(blocking.walk(mount_dir, resume_from=token))


@on_both_faces
async def test_marks_and_tokens_go_together(face, mount_dir):
    small(mount_dir)
    order = tree(mount_dir)
    for count in range(len(order) + 1):
        seen, token = await token_after(face, mount_dir, count, **MARKS)
        rest = await walked(face, mount_dir, resume_from=token, **MARKS)
        assert seen + rest == order
        for path in directories(mount_dir):
            with contextlib.suppress(OSError):
                os.removexattr(path, "user.walked")


def test_a_token_goes_through_json(mount_dir):
    small(mount_dir)
    with blocking.walk(mount_dir) as walk:
        next(walk)
        text = json.dumps(walk.resume_token().hex())
    rest = list(blocking.walk(mount_dir, resume_from=bytes.fromhex(json.loads(text))))
    assert len(rest) == len(tree(mount_dir)) - 1


def test_a_token_is_taken_by_a_walk_of_a_descriptor(place: Path):
    small(place)
    with blocking.walk(place) as walk:
        next(walk)
        token = walk.resume_token()
    fd = os.open(place, os.O_RDONLY)
    try:
        rest = paths(blocking.walk(fd, resume_from=token))
    finally:
        os.close(fd)
    assert set(rest) >= set(tree(place)[1:])
