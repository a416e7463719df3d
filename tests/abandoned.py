# SPDX-License-Identifier: LGPL-3.0-or-later
"""Calls that nobody waits for any more, when another file has the number of their descriptor."""

import os

import anyio
import faults
from stuck import until

from truenas_os import _threads


async def at_each_system_call(make, path, other, monkeypatch, syscall=None, error=0):
    """Cancel the call that *make* begins, given a descriptor of *path*, wherever it may be stopped.

    It is stopped before each *syscall* (None: any), which then fails if *error*. Once cancelled,
    it finds *other* behind the number. Returns how often that was so.
    """
    monkeypatch.setattr(_threads, "GRACE_FD", 0.0)
    monkeypatch.setattr(_threads, "GRACE_CHANGE", 0.0)
    fd, theirs = os.open(path, os.O_RDONLY), os.open(other, os.O_RDONLY)
    nth, reached = 0, True
    try:
        while reached:
            ours = os.open(path, os.O_RDONLY)
            os.dup2(ours, fd)
            os.close(ours)
            with faults.stopped(syscall, skip=nth, error=error) as stop:
                reached = await _stopped_and_cancelled(make, fd, stop)
                if reached:
                    os.dup2(theirs, fd)
                    stop.go()
                await until(lambda: not _threads._portal().workers, "the end of the call")
            nth += reached
    finally:
        os.close(fd)
        os.close(theirs)
    return nth


async def _stopped_and_cancelled(make, fd, stop):
    ended = []

    async def cancel():
        await until(lambda: stop.reached() or ended)
        if stop.reached():
            scope.cancel()

    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:
            group.start_soon(cancel)
            result = await make(fd)
            ended.append(True)
        if result is not None:
            await result.aclose()
    return scope.cancelled_caught
