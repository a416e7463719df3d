# SPDX-License-Identifier: LGPL-3.0-or-later
"""Walks of a filesystem whose every call in turn fails or hangs; os.scandir of its source knows."""

import contextlib
import errno
import os
import sys
import threading

import anyio
import kernel
import pytest
from faces import on_both_faces
from faulted import fds_close, fds_close_without_a_loop, relative, small, smaller
from grown import directories, filled
from stuck import until, wait_until
from test_walking_ends import warm_up
from walked import OPENING, walked, walking

import truenas_os
from truenas_os import blocking
from truenas_os.blocking import walk_steps

pytestmark = pytest.mark.usefixtures("ends")
MARKS = {"resume_token_name": "user.walked", "resume_token_data": bytes(16)}
# What a walk asks a server for: to open, to describe, to list.
OPERATIONS = ("lookup", "getattr", "statx", "open", "opendir", "readdir")


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


@pytest.mark.parametrize("operation", OPERATIONS)
@on_both_faces
async def test_whichever_call_fails_nothing_else_is_lost_and_the_error_names_it(
    face, faulty, operation
):
    expected = small(faulty.source)
    failures = 0
    # Without descriptors no file is opened.
    for opening in OPENING if operation != "open" else OPENING[:1]:
        for armed in faulty.rounds(f"{operation} fail EIO"):
            told, errors = Told(faulty), []
            with armed:
                try:
                    async with walking(face, faulty.top, file_open_flags=opening) as walk:
                        for item in await walk.rest(errors):
                            told.came(item)
                        stats = walk.get_stats()
                except OSError as error:
                    told.error(error)
                    assert told.failed == [b"."] and not told.found
                    continue
            for error in errors:
                told.error(error)
            told.check(expected)
            assert (stats.cnt, stats.cnt_errors) == (len(told.found), len(told.failed))
            failures += stats.cnt_errors
    # A single lookup that fails is made again by the kernel.
    assert failures or operation == "lookup"


@pytest.mark.parametrize("operation", OPERATIONS)
@on_both_faces
async def test_whichever_call_fails_what_is_skipped_is_counted(face, faulty, operation):
    expected = small(faulty.source)
    for armed in faulty.rounds(f"{operation} fail EIO", "from"):
        told = Told(faulty)
        with armed:
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
    for armed in faulty.rounds(f"{operation} fail EIO", "from"):
        told = Told(faulty)
        with armed:
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
        lost = {path for path in expected if is_below(path, *told.unknown)} - {*told.found}
        assert told.found + rest == [path for path in expected if path not in lost]
    assert resumed or (operation, on_error) == ("open", "report")  # files come with their errors


# A server that does not answer

# A close flushes, and marks are read and written.
HANGING = ("statx", "open", "readdir", "flush", "statfs")
MARKING = ("getxattr", "setxattr")
each_call = pytest.mark.parametrize("operation", (*HANGING, "setxattr"))
every_call = pytest.mark.parametrize("operation", sorted({*OPERATIONS, *HANGING, *MARKING}))


def options_for(operation):
    return MARKS if operation in MARKING else {}


def unmark(root):
    for path in directories(root):
        with contextlib.suppress(OSError):
            os.removexattr(path, MARKS["resume_token_name"])


class Collecting:
    """A walk of the async face, and what has come of it; it is taken up again where it was left."""

    def __init__(self, faulty, **options):
        self.faulty = faulty
        self.walk = truenas_os.walk(faulty.top, **options)
        self.found = []
        self.ended = False

    async def run(self):
        async for item in self.walk:
            self.found.append(item.path)
        self.ended = True

    async def until_it_hangs(self, elsewhere):
        """Go on until a call hangs; then look elsewhere, and be cancelled."""
        async with anyio.create_task_group() as group:
            group.start_soon(self.run)
            await until(lambda: self.ended or self.faulty.is_hanging(), "a call that hangs")
            async with truenas_os.walk(elsewhere) as other:
                assert [item.name async for item in other] == ["file"]
            await truenas_os.statx(truenas_os.AT_FDCWD, elsewhere)
            group.cancel_scope.cancel()

    def came(self):
        return relative(list(map(os.fsencode, self.found)), self.faulty.top)


@pytest.fixture
def impatient(monkeypatch):
    """What is waited for is not to come; the tests need not wait as long."""
    monkeypatch.setattr(walk_steps, "_GRACE", 0.01)
    monkeypatch.setattr(sys.modules["truenas_os.walker"], "GRACE_FD", 0.01)


@pytest.fixture
def elsewhere(tmp_path):
    """A directory of a filesystem that answers."""
    directory = tmp_path / "elsewhere"
    directory.mkdir()
    filled(directory, "file")
    return directory


@pytest.mark.anyio
@each_call
async def test_wherever_the_server_hangs_a_cancelled_wait_loses_nothing(
    faulty, elsewhere, operation, anyio_backend, impatient
):
    expected = smaller(faulty.source)
    await warm_up(elsewhere)
    before = kernel.open_fds()
    for armed in faulty.rounds(f"{operation} hang"):
        collecting = Collecting(faulty, **options_for(operation))
        with armed:
            await collecting.until_it_hangs(elsewhere)
            assert collecting.ended or faulty.is_hanging()
        await collecting.run()
        await collecting.walk.aclose()
        assert collecting.came() == expected
        unmark(faulty.source)
        await fds_close(before)


@pytest.mark.anyio
@each_call
async def test_wherever_the_server_hangs_a_walk_is_closed_at_once_and_leaves_nothing_later(
    faulty, elsewhere, operation, anyio_backend, impatient
):
    expected = smaller(faulty.source)
    await warm_up(elsewhere)
    before = kernel.open_fds()
    hung = 0
    for armed in faulty.rounds(f"{operation} hang"):
        collecting = Collecting(faulty, **options_for(operation))
        with armed:
            await collecting.until_it_hangs(elsewhere)
            await collecting.walk.aclose()
            with pytest.raises(ValueError):
                await anext(collecting.walk)
            hung += faulty.is_hanging()
        came = collecting.came()
        assert came == expected[: len(came)]
        await fds_close(before)
        unmark(faulty.source)
    assert hung


@pytest.mark.anyio
@each_call
async def test_wherever_the_server_hangs_another_task_closes_the_walk(
    faulty, operation, anyio_backend, impatient
):
    expected = smaller(faulty.source)
    await warm_up(faulty.source)
    before = kernel.open_fds()
    for armed in faulty.rounds(f"{operation} hang"):
        collecting = Collecting(faulty, **options_for(operation))

        async def run():
            with contextlib.suppress(ValueError):  # it was closed meanwhile
                await collecting.run()

        with armed:
            async with anyio.create_task_group() as group:
                group.start_soon(run)
                await until(lambda: collecting.ended or faulty.is_hanging())
                await collecting.walk.aclose()
            assert collecting.ended or faulty.is_hanging()
        came = collecting.came()
        assert came == expected[: len(came)]
        await fds_close(before)
        unmark(faulty.source)


@every_call
def test_wherever_the_server_hangs_another_thread_closes_the_walk(
    faulty, elsewhere, operation, impatient
):
    expected = smaller(faulty.source)
    options = options_for(operation)
    before = kernel.open_fds()
    for armed in faulty.rounds(f"{operation} hang"):
        walk, found = blocking.walk(faulty.top, **options), []

        def collect():
            with contextlib.suppress(ValueError):  # it was closed meanwhile
                for item in walk:
                    found.append(item.path)

        with armed:
            thread = threading.Thread(target=collect)
            thread.start()
            wait_until(lambda: not thread.is_alive() or faulty.is_hanging())
            walk.close()
            assert [item.name for item in blocking.walk(elsewhere)] == ["file"]
        thread.join()
        came = relative(list(map(os.fsencode, found)), faulty.top)
        assert came == expected[: len(came)]
        fds_close_without_a_loop(before)
        unmark(faulty.source)


@pytest.mark.anyio
async def test_the_last_closes_of_files_hold_up_no_walk(faulty, anyio_backend):
    """The kernel tells the server of them, and does not wait."""
    expected = smaller(faulty.source)
    with faulty.rules("release hang", "releasedir hang"):
        collecting = Collecting(faulty)
        await collecting.run()
        await faulty.hangs()
    assert collecting.came() == expected


@pytest.mark.anyio
async def test_walks_that_hang_end_with_errors_when_the_server_is_killed(
    faulty_server, elsewhere, anyio_backend
):
    faulty = faulty_server
    smaller(faulty.source)
    await warm_up(elsewhere)
    before = kernel.open_fds()
    walks, errors = [], []

    async def run(walk):
        while True:
            try:
                await anext(walk)
            except StopAsyncIteration:
                return
            except OSError as error:
                errors.append(error)
                if walk not in begun:
                    return

    begun = set()
    async with anyio.create_task_group() as group:
        for number, operation in enumerate(HANGING, 1):
            faulty.do(f"{operation} hang nth=2")
            walk = truenas_os.walk(faulty.top)
            walks.append(walk)
            group.start_soon(run, walk)
            await faulty.hangs(number)
        for walk in walks:
            with contextlib.suppress(ValueError):
                walk.resume_token()
                begun.add(walk)
        await anyio.to_thread.run_sync(faulty.kill)
    assert len(errors) >= len(HANGING)
    assert {error.errno for error in errors} <= {errno.ENOTCONN, errno.ECONNABORTED, errno.EIO}
    for walk in walks:
        await walk.aclose()
    await fds_close(before)
