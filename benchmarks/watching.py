# SPDX-License-Identifier: LGPL-3.0-or-later
"""watch_mounts: its latency, what it costs when nothing happens, and in a storm of bind mounts.

Run as ``python benchmarks/watching.py [MOUNTS ...]``; it begins again in a mount namespace of its
own. The competitor in a storm reads and parses mountinfo whenever the kernel says that it changed.
"""

import asyncio
import select
import statistics
import subprocess
import sys
import tempfile
import threading
import time

from mounts import begin_inside, mounts, parse

from truenas_os import MountEventKind, blocking, watch_mounts

LATENCY_ROUNDS = 300
IDLE_SECONDS = 10
STORM = 2000
STORM_ROUNDS = 7

_STORM = """
import ctypes, os, sys, time
libc, directory = ctypes.CDLL(None), os.fsencode(sys.argv[1])
count, pause = int(sys.argv[2]), float(sys.argv[3])
targets = [os.path.join(directory, b"%d" % n) for n in range(count)]
for target in targets:
    os.mkdir(target)
print(flush=True)
for target in targets:
    time.sleep(pause)
    assert libc.mount(directory, target, None, 4096, None) == 0  # MS_BIND
"""


def attach(directory: str, ends: list[float]) -> None:
    blocking.bind(directory, directory, keep=True).__enter__().fd.close()
    ends.append(time.perf_counter())


async def latencies(directory: str) -> list[float]:
    """Seconds from the end of mount(2) to the event in the consumer."""
    found = []
    async with watch_mounts() as changes:
        for _ in range(LATENCY_ROUNDS):
            waiting = asyncio.ensure_future(anext(changes))
            await asyncio.sleep(0.005)
            ends: list[float] = []

            thread = threading.Thread(target=attach, args=(directory, ends))
            thread.start()
            await waiting
            arrived = time.perf_counter()
            thread.join()
            found.append(arrived - ends[0])
            waiting = asyncio.ensure_future(anext(changes))
            await asyncio.to_thread(blocking.umount2, directory)
            await waiting
    return found


async def idle() -> float:
    """The part of one core that a watch takes while nothing happens."""
    async with watch_mounts(interval=1.0) as changes:
        waiting = asyncio.ensure_future(anext(changes))
        await asyncio.sleep(0.5)
        before = time.process_time()
        await asyncio.sleep(IDLE_SECONDS)
        used = time.process_time() - before
        waiting.cancel()
    return used / IDLE_SECONDS


async def watch(directory: str, pause: float) -> float:
    """CPU seconds that watch_mounts takes for a storm."""
    async with watch_mounts() as changes:
        storm = begin_storm(directory, pause)
        begin = time.process_time()
        seen = 0
        while seen < STORM:
            seen += sum(event.kind is MountEventKind.ATTACHED for event in await anext(changes))
        used = time.process_time() - begin
    storm.wait()
    return used


def parse_again_and_again(directory: str, pause: float) -> float:
    """CPU seconds that it takes to read and parse mountinfo whenever it changes."""
    with open("/proc/self/mountinfo", "rb") as mountinfo:
        poll = select.poll()
        poll.register(mountinfo, select.POLLPRI)
        before = len(parse())
        storm = begin_storm(directory, pause)
        begin = time.process_time()
        while len(parse()) < before + STORM:
            poll.poll()
        used = time.process_time() - begin
    storm.wait()
    return used


def begin_storm(directory: str, pause: float) -> "subprocess.Popen[bytes]":
    arguments = [sys.executable, "-c", _STORM, directory, str(STORM), str(pause)]
    storm = subprocess.Popen(arguments, stdout=subprocess.PIPE)
    assert storm.stdout is not None
    storm.stdout.read(1)  # it has made the directories
    return storm


def storm(pause: float) -> None:
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(STORM_ROUNDS):
        for times, competitor in ((ours, watch), (theirs, parse_again_and_again)):
            with mounts(50), tempfile.TemporaryDirectory() as directory:
                with blocking.mounted("tmpfs", directory):
                    used = competitor(directory, pause)
                    times.append(used if isinstance(used, float) else asyncio.run(used))
                    for mount in blocking.mount_tree().under(directory)[1:]:
                        blocking.umount2(str(mount.mnt_point))
    ratios = [their / our for our, their in zip(ours, theirs, strict=True)]
    print(
        f"\na storm of {STORM} bind mounts, one every {pause * 1e3:g} ms, CPU time of the watcher\n"
        f"  watch_mounts                        {statistics.median(ours):.3f} s\n"
        f"  mountinfo, parsed at every wake-up  {statistics.median(theirs):.3f} s, "
        f"{statistics.median(ratios):.1f} times as much (target: 5)"
    )


def main() -> None:
    begin_inside()
    counts = [int(argument) for argument in sys.argv[1:]] or [1000, 10000]
    with tempfile.TemporaryDirectory() as directory:
        for count in counts:
            with mounts(count):
                found = sorted(asyncio.run(latencies(directory)))
                part = asyncio.run(idle())
            median, late = found[len(found) // 2], found[len(found) * 99 // 100]
            print(
                f"\n{count} mounts\n"
                f"  from mount(2) to the consumer: median {median * 1e3:.2f} ms, "
                f"99th percentile {late * 1e3:.2f} ms (target at 1,000: median below 1 ms)\n"
                f"  nothing happens, interval 1 s: {part:.2%} of one core (target at 1,000: 0.5 %)"
            )
    for pause in (0.0, 0.001):
        storm(pause)


if __name__ == "__main__":
    main()
