# SPDX-License-Identifier: LGPL-3.0-or-later
"""statx and openat2 beside the standard library's calls, and the price of a worker thread.

Run as ``python benchmarks/calls.py``.
"""

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable

import uvloop
from ratios import compare, compare_async

import truenas_os
from truenas_os import AT_FDCWD, blocking


def blocking_face(path: str) -> None:
    def os_open() -> None:
        os.close(os.open(path, os.O_RDONLY))

    def openat2() -> None:
        blocking.openat2(AT_FDCWD, path, os.O_RDONLY).close()

    def openat2_with() -> None:
        with blocking.openat2(AT_FDCWD, path, os.O_RDONLY):
            pass

    compare(
        "statx, blocking face (target: at most 1.5)",
        {
            "os.stat": lambda: os.stat(path),
            "blocking.statx": lambda: blocking.statx(AT_FDCWD, path),
        },
        20_000,
    )
    compare(
        "open and close, blocking face (target: at most 1.5)",
        {
            "os.open, os.close": os_open,
            "blocking.openat2, close()": openat2,
            "blocking.openat2 in a with block": openat2_with,
        },
        10_000,
    )


async def async_face(path: str, loop: str) -> None:
    competitors: dict[str, Callable[[], Awaitable[object]]] = {
        "await asyncio.to_thread(os.stat, path)": lambda: asyncio.to_thread(os.stat, path),
        "await statx(AT_FDCWD, path)": lambda: truenas_os.statx(AT_FDCWD, path),
    }
    for tasks, target in ((1, "at most 1"), (64, "at most 0.4"), (512, "none")):
        await compare_async(
            f"stat, {tasks} task(s), {loop} (target: {target})",
            competitors,
            tasks,
            max(10, 2000 // tasks),
        )


async def beside_stuck_calls(stuck: int) -> None:
    """How long the next call takes, at once and once all of them are known to be stuck."""
    with tempfile.TemporaryDirectory() as directory:
        fifo = os.path.join(directory, "fifo")
        os.mkfifo(fifo)
        opening = [
            asyncio.create_task(truenas_os.openat2(AT_FDCWD, fifo, os.O_RDONLY))
            for _ in range(stuck)
        ]
        await asyncio.sleep(0)
        print(f"\nstatx beside {stuck} calls that are stuck in opens of a FIFO (target: 0.5 s)")
        for when in ("right behind them", "a second later"):
            begin = time.perf_counter()
            await truenas_os.statx(AT_FDCWD, "/")
            print(f"  {when:<20} {time.perf_counter() - begin:.4f} s")
            await asyncio.sleep(1)
        for task in opening:
            task.cancel()
        await asyncio.wait(opening)
        os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))


def main() -> None:
    print(f"Python {sys.version.split()[0]}, Linux {os.uname().release}, {os.cpu_count()} CPUs")
    with tempfile.NamedTemporaryFile() as file:
        blocking_face(file.name)
        asyncio.run(async_face(file.name, "asyncio"))
        uvloop.run(async_face(file.name, "uvloop"))
    asyncio.run(beside_stuck_calls(200))


if __name__ == "__main__":
    main()
