# SPDX-License-Identifier: LGPL-3.0-or-later
"""Walks of a filesystem whose every call in turn fails or hangs; os.scandir of its source knows."""

import contextlib
import errno
import os

import anyio
import kernel
import pytest
from faces import on_both_faces
from faulted import relative, small
from grown import filled
from stuck import until
from walked import OPENING, fds_return_to, old_descriptors, paths, walked, walking

import truenas_os
from truenas_os import blocking
from truenas_os.blocking import walker

pytestmark = pytest.mark.usefixtures("ends")
MARKS = {"resume_token_name": "user.walked", "resume_token_data": bytes(16)}
# What a walk asks a server for: to open, to describe, to list.
OPERATIONS = ("lookup", "getattr", "statx", "open", "opendir", "readdir")


async def number_of(face, faulty, operation, **options):
    """How often a walk of the whole filesystem makes a call."""
    with faulty.rules(f"{operation} fail EIO nth=1000000"):
        await walked(face, faulty.top, **options)
        return faulty.counts()[0].matched


def is_below(path, *tops):
    return any(top == b"." or path == top or path.startswith(top + b"/") for top in tops)


class Told:
    """What a walk has told: the paths that came, and the errors, in their order."""

    def __init__(self, faulty):
        self.top = faulty.top
        self.found = []
        self.failed = []
        # Directories that could not even be looked at.
        self.unknown = []

    def came(self, item):
        self.found += relative([os.fsencode(item.path)], self.top)
        if item.error is not None:
            self.error(item.error)
            if item.isdir and not item.statxinfo.stx_mask:
                self.unknown.append(self.found[-1])

    def error(self, error):
        assert error.errno == errno.EIO
        (path,) = relative([os.fsencode(error.filename)], self.top)
        if path not in self.failed:  # a directory comes with its error, which is raised then
            self.failed.append(path)

    def check(self, expected):
        assert len(set(self.found)) == len(self.found)
        assert self.found == [path for path in expected if path in self.found]
        lost = [path for path in expected if path not in self.found]
        assert all(is_below(path, *self.failed) for path in lost)
        assert all(is_below(path, b".", *expected) for path in self.failed)


async def taken(walk, told):
    """All of a walk, and each time where it stands; an error that ends it comes last."""
    token = None
    while True:
        try:
            told.came(await anext(walk))
        except StopAsyncIteration:
            return None
        except OSError as error:
            told.error(error)
            with contextlib.suppress(ValueError):
                token = walk.resume_token()
            return token
        token = walk.resume_token()


@pytest.mark.parametrize("which", ["nth", "from"])
@pytest.mark.parametrize("operation", OPERATIONS)
@on_both_faces
async def test_whichever_calls_fail_nothing_else_is_lost_and_the_error_names_it(
    face, faulty, operation, which
):
    expected = small(faulty.source)
    failures = 0
    for opening in OPENING:
        number = await number_of(face, faulty, operation, file_open_flags=opening)
        for n in range(1, number + 1):
            told, errors = Told(faulty), []
            with faulty.rules(f"{operation} fail EIO {which}={n}"):
                try:
                    async with walking(face, faulty.top, file_open_flags=opening) as walk:
                        for item in await walk.rest(errors):
                            told.came(item)
                        stats = walk.get_stats()
                except OSError as error:
                    told.error(error)
                    assert told.failed == [b"."] and not told.found
                    continue
                assert faulty.counts()[0].struck
            for error in errors:
                told.error(error)
            told.check(expected)
            assert (stats.cnt, stats.cnt_errors) == (len(told.found), len(told.failed))
            failures += stats.cnt_errors
    # A single lookup that fails is made again by the kernel.
    assert failures or (operation, which) == ("lookup", "nth")


@pytest.mark.parametrize("operation", OPERATIONS)
@on_both_faces
async def test_whichever_call_fails_what_is_skipped_is_counted(face, faulty, operation):
    expected = small(faulty.source)
    for n in range(1, await number_of(face, faulty, operation) + 1):
        told = Told(faulty)
        with faulty.rules(f"{operation} fail EIO from={n}"):
            try:
                async with walking(face, faulty.top, on_error="skip") as walk:
                    for item in await walk.rest():
                        told.came(item)
                    stats = walk.get_stats()
            except OSError as error:
                told.error(error)
                assert told.failed == [b"."] and not told.found
                continue
        assert not told.failed
        assert told.found == [path for path in expected if path in told.found]
        assert (stats.cnt, stats.cnt_skipped) == (len(told.found), stats.cnt_errors)
        assert stats.cnt_errors or told.found == expected


@pytest.mark.parametrize("on_error", ["report", "raise"])
@pytest.mark.parametrize("operation", OPERATIONS)
@on_both_faces
async def test_after_an_error_a_walk_is_resumed_with_exactly_the_rest(
    face, faulty, operation, on_error
):
    expected = small(faulty.source)
    resumed = 0
    for n in range(1, await number_of(face, faulty, operation) + 1):
        told = Told(faulty)
        with faulty.rules(f"{operation} fail EIO from={n}"):
            try:
                async with walking(face, faulty.top, on_error=on_error) as walk:
                    token = await taken(walk, told)
            except OSError as error:
                told.error(error)  # the walk has not begun
                continue
        if token is None:
            continue
        resumed += 1
        rest = relative(await walked(face, faulty.top, resume_from=token), faulty.top)
        # What was in a directory that could not even be looked at is lost with it.
        left = [path for path in expected if path in told.found or not is_below(path, *told.unknown)]
        assert told.found + rest == left
    assert resumed or (operation, on_error) == ("open", "report")  # files come with their errors
