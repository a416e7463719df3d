# SPDX-License-Identifier: LGPL-3.0-or-later
"""AsyncFile: Python's files with every call on a worker thread, and what a cancelled call does."""

import errno
import fcntl
import inspect
import os
import sys
import termios
import threading

import anyio
import faults
import kernel
import pytest
from filesystems import written
from stuck import AMPLE, fds_return_to, until

import truenas_os

pytestmark = pytest.mark.anyio

LINES = [f"line {number}\n" for number in range(20_000)]


@pytest.fixture
def lines(tmp_path):
    return written(tmp_path / "lines", "".join(LINES).encode())


async def test_every_call_does_what_that_of_the_file_object_does(tmp_path):
    async with await truenas_os.safe_open(tmp_path / "file", "w+") as file:
        assert await file.write("one\ntwo\n") == 8
        await file.writelines(["three\n", "four"])
        await file.flush()
        assert (tmp_path / "file").read_text() == "one\ntwo\nthree\nfour"
        assert await file.seek(0) == 0
        assert await file.read(2) == "on"
        assert await file.readline() == "e\n"
        assert await file.tell() == 4
        assert await file.readlines() == ["two\n", "three\n", "four"]
        assert await file.truncate(3) == 3
        await file.seek(0)
        assert await file.read() == "one"
        with faults.count("fsync") as calls:
            await file.fsync()
        assert calls.seen == 1
        assert (file.name, file.mode) == (str(tmp_path / "file"), "w+")
        assert file.wrapped.fileno() == file.fileno()
        assert not file.closed
    assert file.closed
    assert "AsyncFile" in repr(file)
    with pytest.raises(ValueError, match="closed"):
        await file.read()


async def test_readinto_fills_the_buffer(tmp_path):
    path = written(tmp_path / "file", b"0123456789")
    async with await truenas_os.safe_open(path, "rb") as file:
        for buffer in (bytearray(4), memoryview(bytearray(8))[4:]):
            assert await file.readinto(buffer) == 4
        rest = bytearray(b"xxxx")
        assert await file.readinto(rest) == 2
        assert rest == b"89xx"


async def test_every_call_is_made_on_a_worker_thread(lines):
    seen = []

    class Spy:
        closed = False

        def __getattr__(self, name):
            def call(*args):
                seen.append((name, threading.get_ident()))
                return 0 if name != "fileno" else descriptor

            return call

    descriptor = os.open(lines, os.O_RDONLY)
    spied = truenas_os.AsyncFile(Spy())
    arguments = {"write": (b"",), "writelines": ([],), "seek": (0,), "readinto": (bytearray(1),)}
    for name, method in inspect.getmembers(spied, inspect.iscoroutinefunction):
        if not name.startswith("__") and name != "aclose":
            await method(*arguments.get(name, ()))
    await spied.aclose()
    os.close(descriptor)
    assert {"read", "write", "flush", "seek", "tell", "truncate", "close"} <= {n for n, _ in seen}
    assert threading.get_ident() not in {thread for name, thread in seen if name != "writable"}


@pytest.mark.parametrize("mode", ["r", "rb"])
async def test_iteration_gives_the_lines(lines, mode):
    async with await truenas_os.safe_open(lines, mode) as file:
        got = [line async for line in file]
        assert got == (LINES if mode == "r" else [line.encode() for line in LINES])
        assert [line async for line in file] == []
        await file.seek(0)
        assert await anext(aiter(file)) == got[0]


async def test_iteration_goes_to_a_worker_once_for_many_lines(lines, monkeypatch):
    from truenas_os import _threads

    calls = []
    real = _threads._Portal.submit
    monkeypatch.setattr(_threads._Portal, "submit", lambda *a: calls.append(1) or real(*a))
    async with await truenas_os.safe_open(lines) as file:
        async for _ in file:
            pass
    assert len(calls) < 20


@pytest.mark.parametrize("mode", ["r", "rb"])
async def test_other_calls_go_on_where_the_iteration_is(lines, mode):
    async with await truenas_os.safe_open(lines, mode) as file:
        for number in range(3):
            async for line in file:
                assert line in (LINES[2 * number], LINES[2 * number].encode())
                break
            assert await file.tell() == sum(map(len, LINES[: 2 * number + 1]))
            assert await file.readline() in (LINES[2 * number + 1], LINES[2 * number + 1].encode())
        rest = await file.read()
        assert rest in ("".join(LINES[6:]), "".join(LINES[6:]).encode())


async def test_lines_of_a_fifo_come_one_by_one(fifo):
    both = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
    try:
        async with await truenas_os.safe_open(fifo, special=True) as file:
            with anyio.fail_after(AMPLE):
                for line in (b"one\n", b"two\n"):
                    os.write(both, line)
                    assert (await anext(file)).encode() == line
    finally:
        os.close(both)


async def test_an_error_of_the_last_flush_is_raised_and_the_file_closed(mount_dir):
    (mount_dir / "small").mkdir()
    kernel.mount("tmpfs", mount_dir / "small", "tmpfs", data=b"size=4k")
    written(mount_dir / "small" / "filler", b"x" * 4096)
    fds = kernel.open_fds()
    file = await truenas_os.safe_open(mount_dir / "small" / "file", "w")
    await file.write("x")
    with pytest.raises(OSError) as failed:
        await file.aclose()
    assert failed.value.errno == errno.ENOSPC
    assert file.closed
    await file.aclose()
    assert kernel.open_fds() == fds


async def test_an_error_of_fsync_names_the_file(tmp_path):
    async with await truenas_os.safe_open(tmp_path / "file", "w") as file:
        with faults.failing("fsync", errno.EIO), pytest.raises(OSError) as failed:
            await file.fsync()
    assert (failed.value.errno, failed.value.filename) == (errno.EIO, str(tmp_path / "file"))


# -- Cancellation --------------------------------------------------------------------------------


async def cancel_while(waiting, call):
    """Cancel *call* once *waiting* says that it waits."""
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:
            group.start_soon(call)
            await until(waiting)
            scope.cancel()
    assert scope.cancelled_caught


def in_pipe_read():
    from stuck import wait_channels

    return any("pipe_read" in channel for channel in wait_channels())


def unread(fd):
    """How many bytes a pipe holds."""
    return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder)


async def test_a_cancelled_read_is_abandoned_and_the_close_comes_after_it(fifo):
    both = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
    before = kernel.open_fds()
    file = await truenas_os.safe_open(fifo, "rb", special=True)
    await cancel_while(in_pipe_read, file.readline)
    with anyio.move_on_after(0.05) as scope:
        await file.aclose()
    assert scope.cancelled_caught  # it waits for the read
    assert not file.closed
    os.write(both, b"late\n")
    await until(lambda: file.closed)
    await fds_return_to(before)
    os.close(both)


async def test_a_cancelled_readinto_never_touches_the_buffer_later(fifo):
    both = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
    async with await truenas_os.safe_open(fifo, "rb", 0, special=True) as file:
        buffer = bytearray(b"untouched")
        await cancel_while(in_pipe_read, lambda: file.readinto(buffer))
        os.write(both, b"late")
        await until(lambda: not unread(both), "the end of the abandoned call")
        # The next call comes after it, so now it has written what it writes.
        os.write(both, b"next")
        assert await file.read(4) == b"next"
        assert buffer == b"untouched"
    os.close(both)


async def test_a_cancelled_write_is_waited_for(tmp_path):
    path = tmp_path / "file"
    seen = []
    async with await truenas_os.safe_open(path, "w") as file:

        async def write_and_sync():
            await file.write("content")
            try:
                await file.fsync()
            finally:
                seen.append(path.read_text())

        with faults.stopped("fsync") as stop:

            def reached():
                if stop.reached():
                    threading.Timer(0.1, stop.go).start()
                    return True
                return False

            await cancel_while(reached, write_and_sync)
    assert seen == ["content"]


async def test_in_a_cancelled_scope_nothing_is_written_and_the_file_is_closed(tmp_path):
    path = tmp_path / "file"
    fds = kernel.open_fds()
    with anyio.CancelScope() as scope:
        async with await truenas_os.safe_open(path, "w") as file:
            scope.cancel()
            await file.write("never")
    assert scope.cancelled_caught
    await until(lambda: file.closed)
    assert path.read_text() == ""
    await fds_return_to(fds)


async def test_what_was_written_is_flushed_by_a_close_in_a_cancelled_scope(tmp_path):
    path = tmp_path / "file"
    with anyio.CancelScope() as scope:
        async with await truenas_os.safe_open(path, "w") as file:
            await file.write("kept")
            scope.cancel()
    assert file.closed
    assert path.read_text() == "kept"


async def test_calls_that_are_cancelled_at_random_moments_leak_nothing(lines):
    await truenas_os.statx(truenas_os.AT_FDCWD, "/")
    before = kernel.open_fds()

    async def one(delay):
        with anyio.move_on_after(delay):
            async with await truenas_os.safe_open(lines) as file:
                async for line in file:
                    assert line == LINES[0]
                    break
                await file.read()

    for round_ in range(10):
        async with anyio.create_task_group() as group:
            for number in range(20):
                group.start_soon(one, (number + round_) * 0.0002)
    await fds_return_to(before)
