# SPDX-License-Identifier: LGPL-3.0-or-later
"""Whichever system call of a walk fails: an end or a report, no hang, no leak, no silent loss."""

import contextlib
import errno
import os

import faults
import kernel
import pytest
from faces import Face, on_both_faces
from grown import filled, tree
from test_walking_marks import MARKS, marked, unmark
from walked import OPENING, fds_return_without_a_loop_to, old_descriptors, paths, walked, walking

from truenas_os import blocking
from truenas_os._native import lib

pytestmark = pytest.mark.usefixtures("ends")
# A close that is made to fail has not closed anything, which no real one does.
NOT_TO_FAIL = {"close"}
SYSCALLS = sorted(
    name
    for name in (constant.removeprefix("TOS_SYS_") for constant in dir(lib) if "_SYS_" in constant)
    if name not in NOT_TO_FAIL
)
# That an entry is gone, or is another, is believed.
GONE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV, errno.ESTALE}
CODES = (
    *(errno.EIO, errno.ENOMEM, errno.EMFILE, errno.EACCES, errno.EPERM, errno.EINVAL),
    *(errno.EINTR, errno.EAGAIN, errno.EOPNOTSUPP, errno.ENOSYS, *sorted(GONE)),
)


@pytest.fixture
def little(mount_dir):
    for name in ("a/b", "c"):
        (mount_dir / name).mkdir(parents=True)
        filled(mount_dir / name, "one", "two")
    (mount_dir / "a" / "link").symlink_to("b")
    os.mkfifo(mount_dir / "c" / "fifo")
    return mount_dir


def made_by(where, **options):
    """How often a walk makes each system call."""
    numbers = {}
    for syscall in SYSCALLS:
        unmark(where)
        with faults.count(syscall) as calls:
            for _ in blocking.walk(where, **options):
                pass
        if calls.seen:
            numbers[syscall] = calls.seen
    return numbers


def outcome(where, **options):
    """The paths, the errors, and the statistics of a walk, None if it did not begin."""
    found, errors = [], []
    try:
        with blocking.walk(where, **options) as walk:
            while True:
                assert len(errors) < 50, "the same error again and again"
                try:
                    found.append(os.fsencode(next(walk).path))
                except StopIteration:
                    return found, errors, walk.get_stats()
                except OSError as error:
                    errors.append(error)
                    with contextlib.suppress(ValueError):
                        walk.get_stats()
                        continue
                    return found, errors, None
    except OSError as error:
        return found, [*errors, error], None


def is_accounted_for(expected, found, errors, stats, code, syscall):
    """Nothing twice, nothing in another order, and what is missing is told."""
    assert [path for path in expected if path in set(found)] == found
    if missing := set(expected) - set(found):
        if stats is None:
            assert errors
        elif syscall == "getdents64" and code in (errno.ENOENT, errno.ESTALE):
            pass  # the directory was removed, and nothing is in it
        elif code not in GONE:
            assert stats.cnt_errors, missing
            assert errors or stats.cnt_skipped, missing
        else:
            # One entry, and what is in it.
            top = min(missing, key=len)
            assert all(path == top or path.startswith(top + b"/") for path in missing) or (
                errors or stats.cnt_skipped
            )
    if stats is not None:
        assert stats.cnt == len(found)


CASES = {
    "with fds": {},
    "without": {"file_open_flags": None, "include_symlinks": True},
    "skip": {"on_error": "skip"},
    "raise": {"on_error": "raise", "read_ahead": 1},
    "marks": MARKS,
}


@pytest.mark.parametrize("case", CASES)
def test_whichever_system_call_fails_all_is_accounted_for(little, case):
    options = CASES[case]
    expected = tree(little, symlinks=options.get("include_symlinks", False))
    assert outcome(little, **options)[0] == expected
    unmark(little)
    numbers = made_by(little, **options)
    assert {"openat2", "statx", "getdents64"} <= numbers.keys()
    before = kernel.open_fds()
    for syscall, number in numbers.items():
        for nth in range(number):
            for code in CODES:
                unmark(little)
                with faults.failing(syscall, code, skip=nth, times=1):
                    found, errors, stats = outcome(little, **options)
                try:
                    is_accounted_for(expected, found, errors, stats, code, syscall)
                    if "resume_token_name" in options and stats is not None and (errors):
                        assert os.fsencode(little) not in marked(little)
                except AssertionError as error:
                    error.add_note(f"call {nth} of {syscall}: {errno.errorcode[code]}")
                    error.add_note(f"{found=} {errors=} {stats=}")
                    raise
    fds_return_without_a_loop_to(before)


def test_before_statmount_a_walk_knows_its_path_only(little):
    with faults.failing("statmount", errno.ENOSYS):
        found, errors, _ = outcome(little)
        with pytest.raises(OSError) as failed, blocking.iter_filesystem_contents(little, "tmpfs"):
            pass
    assert (found, errors) == (tree(little), [])
    assert failed.value.errno == errno.ENOSYS
    assert "Linux 6.8" in failed.value.__notes__[0]


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENOENT])
def test_system_calls_that_fail_from_now_on_end_every_walk(little, code):
    """All of one kind, or all of any: there is an end nevertheless."""
    numbers = made_by(little, **MARKS)
    expected = tree(little)
    before = kernel.open_fds()
    for syscall, number in numbers.items():
        for nth in range(number):
            unmark(little)
            with faults.failing(syscall, code, skip=nth):
                found, errors, stats = outcome(little, **MARKS)
            assert [path for path in expected if path in set(found)] == found
            assert set(found) == set(expected) or errors or stats[3:] != (0, 0, 0) or code in GONE
    fds_return_without_a_loop_to(before)


def test_any_system_call_that_fails_when_a_walk_goes_on_is_told(little):
    expected = tree(little)
    with blocking.walk(little) as walk:
        for _ in range(4):
            next(walk)
        token = walk.resume_token()
    numbers = made_by(little, resume_from=token)
    before = kernel.open_fds()
    for syscall, number in numbers.items():
        for nth in range(number):
            for code in CODES:
                with faults.failing(syscall, code, skip=nth, times=1):
                    try:
                        found, errors, stats = outcome(little, resume_from=token)
                    except ValueError:
                        continue  # it is not recognised as the same filesystem
                try:
                    is_accounted_for(expected[4:], found, errors, stats, code, syscall)
                except AssertionError as error:
                    error.add_note(f"call {nth} of {syscall}: {errno.errorcode[code]}")
                    error.add_note(f"{found=} {errors=} {stats=}")
                    raise
    fds_return_without_a_loop_to(before)


@pytest.mark.parametrize("syscall", ["openat2", "statx", "getdents64"])
@on_both_faces
async def test_an_interrupted_call_is_made_again(face, little, syscall):
    for nth in range(8):
        for opening in OPENING:
            with faults.failing(syscall, errno.EINTR, skip=nth, times=2):
                async with walking(face, little, file_open_flags=opening) as walk:
                    assert paths(await walk.rest()) == tree(little)
                    assert walk.get_stats()[3:] == (0, 0, 0)


@pytest.mark.parametrize("code", [errno.ENOENT, errno.ESTALE])
@on_both_faces
async def test_an_entry_that_is_gone_is_no_error(face, little, code):
    """Neither in the statistics nor for who decides about errors."""

    def decide(error):
        raise AssertionError(error)

    expected = tree(little)
    for opening in OPENING:
        options = {"file_open_flags": opening, "on_error": decide, "read_ahead": 1}
        for syscall in ("openat2", "statx"):
            missing = 0
            for nth in range(1, 12):
                async with walking(face, little, **options) as walk:
                    item = await anext(walk)
                    with faults.failing(syscall, code, skip=nth, times=1):
                        found = paths([item, *await walk.rest()])
                    assert walk.get_stats()[3:] == (0, 0, 0)
                assert set(found) <= set(expected)
                missing += len(found) < len(expected)
            assert missing


@pytest.mark.parametrize("code", sorted(GONE))
@on_both_faces
async def test_an_entry_that_is_something_else_ends_nothing(face, little, code):
    for opening in OPENING:
        for nth in range(1, 12):
            async with walking(face, little, file_open_flags=opening, read_ahead=1) as walk:
                item = await anext(walk)
                with faults.failing("openat2", code, skip=nth, times=1):
                    found = paths([item, *await walk.rest()])
            assert set(tree(little, skip=lambda path: True)) - set(found) <= {
                os.fsencode(little / name) for name in ("a", "c")
            }


@pytest.mark.parametrize("name", ["asyncio", "trio"])
def test_the_async_face_accounts_for_all_as_well(little, name):
    expected = tree(little)
    numbers = made_by(little)
    face = Face(name)

    async def body():
        errors = []
        try:
            async with walking(face, little) as walk:
                found = paths(await walk.rest(errors))
                return found, errors, walk.get_stats()
        except OSError as error:
            return [], [error], None

    for syscall, number in numbers.items():
        for nth in range(number):
            with faults.failing(syscall, errno.EIO, skip=nth, times=1):
                found, errors, stats = face.run(body)
            is_accounted_for(expected, found, errors, stats, errno.EIO, syscall)


@on_both_faces
async def test_the_descriptor_of_a_late_error_is_closed(face, little):
    """The consumer has stopped asking; what was prepared for it is let go."""
    await walked(face, little)
    before = kernel.open_fds()
    for nth in range(12):
        with faults.failing("openat2", errno.EIO, skip=nth):
            with contextlib.suppress(OSError, StopAsyncIteration):
                async with walking(face, little) as walk:
                    await anext(walk)
        await old_descriptors(face, before)
