# SPDX-License-Identifier: LGPL-3.0-or-later
"""Fd: a number, an owner, and exactly one close."""

import copy
import errno
import gc
import os
import pickle
import socket
import sys
import threading
import time

import anyio
import faults
import kernel
import pytest
from faces import on_both_faces
from faults import failing_counted

import truenas_os
from truenas_os import blocking
from truenas_os.blocking import AT_EMPTY_PATH, AT_FDCWD

# -- Fd ------------------------------------------------------------------------------------------


@pytest.fixture
def number():
    """A descriptor that the test closes, of a file that nothing else has open."""
    return os.memfd_create("tested", os.MFD_CLOEXEC)


def is_open(number):
    return kernel.open_fds().get(int(number), "").startswith("/memfd:tested")


BOTH = pytest.mark.parametrize("fd_type", [blocking.Fd, truenas_os.Fd], ids=["blocking", "async"])


@BOTH
def test_an_fd_is_an_int_wherever_one_is_wanted(fd_type, number):
    fd = fd_type(number)
    assert isinstance(fd, int)
    assert fd == number
    assert hash(fd) == hash(number)
    assert {fd: "x"}[number] == "x"
    assert (fd + 1, int(fd), fd.fileno()) == (number + 1, number, number)
    assert type(fd.fileno()) is int
    assert (str(fd), f"{fd}", f"{fd:03d}") == (str(number), str(number), f"{number:03d}")
    assert str(number) in repr(fd)
    assert os.write(fd, b"content") == 7
    assert os.fstat(fd).st_size == 7
    assert os.path.samestat(os.stat(fd), os.stat(f"/proc/self/fd/{fd}"))
    with os.fdopen(fd) as file:
        assert file.fileno() == number
    assert not is_open(number)


@on_both_faces
async def test_close_closes_once_and_then_does_nothing(face, number):
    fd = face.Fd(number)
    assert not fd.closed
    with faults.count("close") as calls:
        await face.close(fd)
        assert fd.closed
        assert not is_open(number)
        # Another file may have the number by now.
        again = os.memfd_create("tested")
        assert again == number
        await face.close(fd)
    assert calls.seen == 1
    assert is_open(number)
    os.close(again)


@on_both_faces
async def test_a_closed_fd_cannot_be_used(face, number):
    for end in (face.close, detach_and_close):
        fd = face.Fd(os.dup(number))
        await end(fd)
        with faults.count(None) as calls:
            for use in (fd.fileno, fd.detach, fd.__enter__):
                with pytest.raises(ValueError, match=f"{int(fd)} is closed"):
                    use()
            with pytest.raises(ValueError, match="is closed"):
                await face.statx(fd, "", AT_EMPTY_PATH)
            if face.name != "blocking":
                with pytest.raises(ValueError, match="is closed"):
                    await fd.__aenter__()
        assert calls.seen == 0
        assert "closed" in repr(fd)
    os.close(number)


async def detach_and_close(fd):
    os.close(fd.detach())


@on_both_faces
async def test_detach_hands_the_number_over_and_close_leaves_it_alone(face, number):
    fd = face.Fd(number)
    plain = fd.detach()
    assert (type(plain), plain) == (int, number)
    assert fd.closed
    await face.close(fd)
    assert is_open(number)
    os.close(plain)


@BOTH
def test_with_closes_once_also_after_an_exception(fd_type, number):
    with faults.count("close") as calls:
        with pytest.raises(KeyError), fd_type(number) as fd:
            assert is_open(number)
            raise KeyError
        assert not is_open(number)
    assert calls.seen == 1
    assert fd.closed


@BOTH
def test_leaving_a_block_closes_nothing_that_was_closed_or_detached_in_it(fd_type, number):
    with faults.count("close") as calls, fd_type(number) as fd:
        fd.detach()
    assert calls.seen == 0
    assert is_open(number)
    with faults.count("close") as calls, fd_type(number) as fd:
        fd.close()
    assert calls.seen == 1


@BOTH
def test_os_close_stays_right_since_collection_closes_nothing(fd_type, number):
    fd = fd_type(number)
    os.close(fd)
    again = os.memfd_create("tested")
    assert again == number
    with faults.count("close") as calls:
        del fd
        gc.collect()
    assert calls.seen == 0
    assert is_open(again)
    os.close(again)


@BOTH
def test_threads_that_close_one_fd_close_it_exactly_once(fd_type):
    threads, rounds = 4, 100
    fds = [fd_type(os.memfd_create("tested")) for _ in range(rounds)]
    barrier = threading.Barrier(threads)
    failed = []

    def between_all_opcodes(frame, event, arg):
        """Let other threads run, wherever in fds.py this one is."""
        if frame.f_code.co_filename == blocking.Fd.close.__code__.co_filename:
            frame.f_trace_opcodes = True
            time.sleep(0)
            return between_all_opcodes
        return None

    def close_all():
        sys.settrace(between_all_opcodes)
        try:
            for fd in fds:
                barrier.wait(timeout=30)
                fd.close()
        except BaseException as error:
            failed.append(error)
            barrier.abort()

    with faults.count("close") as calls:
        running = [threading.Thread(target=close_all) for _ in range(threads)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
    assert not failed
    assert calls.seen == rounds
    assert not any(is_open(fd) for fd in fds)


@BOTH
def test_an_fd_cannot_be_pickled_or_copied(fd_type, number):
    fd = fd_type(number)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match="belongs to one process"):
            pickle.dumps(fd, protocol)
    for copied in (copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="belongs to one process"):
            copied(fd)
    fd.close()


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
@on_both_faces
async def test_an_error_at_close_is_raised_and_the_fd_is_gone_all_the_same(face, number, code):
    fd = face.Fd(number)
    with failing_counted("close", code) as calls:
        with pytest.raises(OSError) as failed:
            await face.close(fd)
        await face.close(fd)
    assert (failed.value.errno, failed.value.filename) == (code, number)
    assert fd.closed
    assert calls.seen == 1
    os.close(number)  # which only the injected failure kept open


@on_both_faces
async def test_closing_what_os_close_closed_already_is_ebadf(face, number):
    fd = face.Fd(number)
    os.close(number)
    with pytest.raises(OSError) as failed:
        await face.close(fd)
    assert failed.value.errno == errno.EBADF


@pytest.mark.anyio
async def test_async_with_closes_on_a_worker_thread(number):
    with faults.count("close") as calls:
        with pytest.raises(KeyError):
            async with truenas_os.Fd(number) as fd:
                assert type(fd) is truenas_os.Fd
                raise KeyError
        assert not is_open(number)
        await fd.aclose()
    assert calls.seen == 1


@pytest.mark.anyio
async def test_tasks_that_close_one_fd_close_it_exactly_once(number):
    fd = truenas_os.Fd(number)
    with faults.count("close") as calls:
        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(fd.aclose)
    assert calls.seen == 1
    assert not is_open(number)


@pytest.mark.anyio
async def test_async_with_closes_also_when_the_block_is_cancelled(number):
    with anyio.CancelScope() as scope:
        async with truenas_os.Fd(number) as fd:
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    with anyio.fail_after(30):  # the cancellation ended the wait for the close, not the close
        while not fd.closed or is_open(number):
            await anyio.sleep(0.001)


@on_both_faces
async def test_opened_descriptors_are_of_the_faces_own_type(face, tmp_path):
    fd = await face.openat2(AT_FDCWD, tmp_path, os.O_PATH)
    assert type(fd) is face.Fd
    await face.close(fd)
    with pytest.raises(OSError):
        os.fstat(fd)


def test_a_socket_serves_as_a_descriptor_too():
    with socket.socket() as given:
        result = blocking.statx(given, "", AT_EMPTY_PATH)
        assert result.stx_ino == os.fstat(given.fileno()).st_ino
