# SPDX-License-Identifier: LGPL-3.0-or-later
"""What tests of worker threads share: calls that hang, and waiting for what must come true."""

import contextlib
import gc
import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import anyio
import anyio.lowlevel
import kernel
import pytest

from truenas_os import _threads

# Without the promise these tests would wait for ever; no machine is so slow that it needs this.
AMPLE = 30


async def until(condition, what="the condition"):
    with anyio.move_on_after(AMPLE):
        while not condition():
            await anyio.sleep(0.002)
        return
    pytest.fail(f"{what} did not come true")


async def fds_return_to(before):
    gc.collect()
    await until(lambda: kernel.open_fds().keys() == before.keys(), "the old set of descriptors")


def wait_until(condition, what="the condition"):
    """Like :func:`until`, without an event loop."""
    deadline = time.monotonic() + AMPLE
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true"
        time.sleep(0.002)


def fds_return_without_a_loop_to(before):
    gc.collect()
    deadline = time.monotonic() + AMPLE
    while (now := kernel.open_fds()).keys() != before.keys():
        assert time.monotonic() < deadline, {"now": now, "before": before}
        time.sleep(0.002)


def run_python(program, *args, timeout=AMPLE):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program), *args],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def open_writer(path):
    """Let every open of the FIFO's other end that waits return; closed by the caller."""
    return os.open(path, os.O_WRONLY | os.O_NONBLOCK)


async def let_go(path):
    """Hold the FIFO's other end open until no worker of this event loop is busy any more."""
    both = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    await until(lambda: not _threads._portal().workers, "the end of every call")
    os.close(both)


def in_fifo_open():
    """The worker threads that sit in open(2) of a FIFO."""
    waiting = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            if "wait_for_partner" in (task / "wchan").read_text():
                waiting.append(task.name)
    return waiting


class Gauge:
    """Calls that block until they are told to go on, and how many of them have begun."""

    def __init__(self):
        self.begun = 0
        self.most = 0
        self.now = 0
        self.lock = threading.Lock()
        self.event = threading.Event()

    def __call__(self):
        with self.lock:
            self.begun += 1
            self.now += 1
            self.most = max(self.most, self.now)
        self.event.wait(AMPLE)
        with self.lock:
            self.now -= 1


def wait_channels():
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            yield (task / "wchan").read_text()
