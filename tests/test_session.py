# SPDX-License-Identifier: LGPL-3.0-or-later
"""The test session itself: its namespace, its detector, its fault injection."""

import errno
import os
import threading

import faults
import kernel
import pytest

import truenas_os
from truenas_os import blocking


def test_the_session_has_a_mount_namespace_of_its_own(outside_namespace):
    assert os.readlink("/proc/self/ns/mnt") != outside_namespace


def test_nothing_mounted_here_propagates(mount_dir):
    point = next(m for m in kernel.mountinfo() if m.mount_point == str(mount_dir))
    assert not point.tags


@pytest.mark.anyio
async def test_worker_threads_share_the_mount_namespace_of_the_main_thread():
    def namespace():
        return threading.get_native_id(), os.readlink("/proc/thread-self/ns/mnt")

    from truenas_os import _threads

    thread, seen = await _threads.offload(namespace)
    assert thread != threading.get_native_id()
    assert seen == os.readlink("/proc/self/ns/mnt")


@pytest.mark.anyio
@pytest.mark.provokes_blocking_calls
async def test_a_native_call_on_the_loop_is_detected():
    import blocking_calls

    with pytest.raises(AssertionError, match="tos_statx"):
        blocking.statx(truenas_os.AT_FDCWD, "/")
    assert blocking_calls.found == ["tos_statx"]


def test_injected_errors_arrive_for_as_many_calls_as_asked():
    with faults.failing("statx", errno.EIO, skip=1, times=2):
        blocking.statx(blocking.AT_FDCWD, "/")
        for _ in range(2):
            with pytest.raises(OSError) as failed:
                blocking.statx(blocking.AT_FDCWD, "/")
            assert failed.value.errno == errno.EIO
        blocking.statx(blocking.AT_FDCWD, "/")
    with faults.count("statx") as calls:
        blocking.statx(blocking.AT_FDCWD, "/")
    assert calls.seen == 1
