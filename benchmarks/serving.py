# SPDX-License-Identifier: LGPL-3.0-or-later
"""A mirror of a directory, served by examples/fuse/passthrough.py, beside the directory itself.

Run as ``python benchmarks/serving.py [--against PASSTHROUGHFS [--python PYTHON]]``: PASSTHROUGHFS
is the example of that name in the source distribution of the PyPI package pyfuse3, PYTHON an
interpreter that has the package (by default this one). Begins again in a mount namespace of its
own. The source is a tmpfs, the timeouts are zero, and the clients are threads of other processes.
What they read and write 1 MiB or 4 KiB of, they open with O_DIRECT, so that each call is a request.
Our example is served on asyncio, and on trio as well.
"""

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from mounts import begin_inside
from ratios import print_table

from truenas_os import blocking

EXAMPLE = Path(__file__).parents[1] / "examples" / "fuse" / "passthrough.py"
OURS, THEIRS, BARE = "examples/fuse/passthrough.py", "pyfuse3's passthroughfs.py", "the directory"
AMPLE = 60
FILES, ENTRIES, BYTES = 100, 1000, 16 << 20
IDLE = 10_000
# What is done, how often by all threads together, and how much faster than the package it should
# be with four of them.
KINDS = {
    "stat": (4000, "4.0"),
    "open, read and close a small file": (1600, "2.0"),
    "create, close and unlink a file": (1600, "2.0"),
    f"list {ENTRIES} entries": (8, "3.0"),
    "read 1 MiB sequentially": (64, "1.0"),
    "write 1 MiB sequentially": (64, "1.0"),
    "read 4 KiB at random": (3200, "2.0"),
}

_CLIENT = """
import mmap, os, random, sys, threading, time

top, kind, threads, times, files, size = sys.argv[1:3] + list(map(int, sys.argv[3:]))
MIB = 1 << 20

def calls(number):
    names = [f"{top}/small/{name}" for name in range(files)]
    if kind.startswith("stat"):
        yield lambda i: os.stat(names[i % files])
    elif kind.startswith("open"):
        def small(i):
            fd = os.open(names[i % files], os.O_RDONLY)
            os.read(fd, 8192)
            os.close(fd)
        yield small
    elif kind.startswith("create"):
        def create(i):
            name = f"{top}/new{number}.{i}"
            os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            os.unlink(name)
        yield create
    elif kind.startswith("list"):
        yield lambda i: os.listdir(top + "/entries")
    else:
        buffers = [mmap.mmap(-1, 4096 if kind.endswith("random") else MIB)]
        fd = os.open(f"{top}/large/{number}", os.O_RDWR | os.O_DIRECT)
        if kind.startswith("write"):
            yield lambda i: os.pwritev(fd, buffers, i * MIB % size)
        elif kind.endswith("random"):
            yield lambda i: os.preadv(fd, buffers, random.randrange(size // 4096) * 4096)
        else:
            yield lambda i: os.preadv(fd, buffers, i * MIB % size)
        os.close(fd)

barrier = threading.Barrier(threads)
begins, ends = [], []

def work(number):
    for call in calls(number):
        call(0)
        barrier.wait()
        begins.append(time.perf_counter())
        for i in range(times // threads):
            call(i)
        ends.append(time.perf_counter())

workers = [threading.Thread(target=work, args=[number]) for number in range(threads)]
for worker in workers:
    worker.start()
for worker in workers:
    worker.join()
print(max(ends) - min(begins))
"""

# Runs the example, which uses asyncio.
_ON_TRIO = """
import asyncio, os, runpy, sys
import trio

def run(coroutine):
    async def main():
        await coroutine
    trio.run(main)

asyncio.run = run
del sys.argv[0]
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""

_SLEEPY = """
import errno, stat, sys
import anyio
if sys.argv[2] == "pyfuse3":
    import pyfuse3 as fuse
else:
    from truenas_os import fuse

class Sleepy(fuse.Operations):
    supports_dot_lookup = False
    async def getattr(self, inode, ctx):
        attr = fuse.EntryAttributes()
        attr.st_ino = inode
        attr.st_mode = stat.S_IFDIR | 0o755 if inode == 1 else stat.S_IFREG | 0o644
        attr.entry_timeout = attr.attr_timeout = 0
        return attr
    async def lookup(self, parent_inode, name, ctx):
        if name == b"sleep":
            await anyio.sleep(1)
            raise fuse.FUSEError(errno.ENOENT)
        return await self.getattr(2, ctx)

fuse.init(Sleepy(), sys.argv[1])
try:
    anyio.run(fuse.main, backend=sys.argv[3])
finally:
    fuse.close()
"""

_LATENCIES = """
import os, subprocess, sys, time
top, sleeping = sys.argv[1:]
sleeper = None
if sleeping:
    sleeper = subprocess.Popen(["stat", top + "/sleep"], stderr=subprocess.DEVNULL)
    time.sleep(0.2)
times = []
for _ in range(500):
    begin = time.perf_counter()
    os.stat(top + "/file")
    times.append(time.perf_counter() - begin)
assert sleeper is None or sleeper.poll() is None
print(*times)
"""


def run(*command: object) -> str:
    """Run a client; what it has printed."""
    return subprocess.run(
        list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True, timeout=AMPLE
    ).stdout


def is_mounted(path: str) -> bool:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return any(line.split()[4] == path for line in lines)


@contextlib.contextmanager
def served(command: list[str], mountpoint: str) -> Iterator[int]:
    """A filesystem, served by a process of its own, whose id this gives."""
    Path(mountpoint).mkdir(exist_ok=True)
    process = subprocess.Popen(command)
    try:
        deadline = time.monotonic() + AMPLE
        while not is_mounted(mountpoint):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[1]} does not serve")
            time.sleep(0.01)
        yield process.pid
        subprocess.run(["umount", mountpoint], check=True, timeout=AMPLE)
        process.wait(AMPLE)
    finally:
        process.kill()
        process.wait()
        if is_mounted(mountpoint):
            subprocess.run(["umount", "--lazy", mountpoint], check=False, timeout=AMPLE)


def fill(source: str) -> None:
    for name, count in {"small": FILES, "entries": ENTRIES, "idle": IDLE, "large": 4}.items():
        size = {"small": 4096, "large": BYTES}.get(name, 0)
        os.mkdir(f"{source}/{name}")
        for number in range(count):
            Path(f"{source}/{name}/{number}").write_bytes(bytes(size))


def compare(tops: dict[str, str], rounds: int) -> None:
    for threads in (1, 4):
        for kind, (times, target) in KINDS.items():
            rows: dict[str, list[float]] = {name: [] for name in tops}
            for number in range(rounds + 1):
                for name, top in tops.items():
                    arguments = (top, kind, threads, times, FILES, BYTES)
                    took = float(run(sys.executable, "-c", _CLIENT, *arguments))
                    if number:
                        rows[name].append(took / times)
            title = f"{kind}, {threads} client thread{'s' * (threads > 1)}"
            title += f" (target: the package at least {target})" * (threads > 1)
            print_table(title, rows)


def resident(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise ValueError(f"process {pid} has no memory")


def memory(source: str, commands: dict[str, list[str]], mountpoint: str) -> None:
    print(f"\nmemory for {IDLE} idle inodes")
    look = "import os, sys; [os.stat(f'{sys.argv[1]}/idle/{i}') for i in range(int(sys.argv[2]))]"
    for name, command in commands.items():
        with served([*command, source, mountpoint], mountpoint) as pid:
            run(sys.executable, "-c", look, mountpoint, 10)
            before = resident(pid)
            run(sys.executable, "-c", look, mountpoint, IDLE)
            print(f"  {name:<52}{(resident(pid) - before) / 1024:>7.1f} MiB")


def latency(servers: dict[str, list[str]], mountpoint: str) -> None:
    print("\nstat of others, from 500 (median .. 99 % .. most)")
    for name, (python, package, backend) in servers.items():
        command = [python, "-c", _SLEEPY, mountpoint, package, backend]
        with served(command, mountpoint):
            for what, sleeping in {"all are idle": "", "one handler sleeps": "1"}.items():
                out = run(sys.executable, "-c", _LATENCIES, mountpoint, sleeping)
                times = sorted(float(word) * 1e6 for word in out.split())
                shown = f"{statistics.median(times):.0f} .. {times[494]:.0f} .. {times[-1]:.0f} us"
                print(f"  {name}, {what:<{50 - len(name)}}{shown}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--against", metavar="PASSTHROUGHFS", type=os.path.abspath)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    begin_inside()
    print(f"load {os.getloadavg()[0]:.1f}")
    # Each call is to be a request: see serving_files.py for what the kernel can do without.
    example = [str(EXAMPLE), "--timeout", "0", "--no-passthrough"]
    commands = {
        OURS: [sys.executable, *example],
        f"{OURS} on trio": [sys.executable, "-c", _ON_TRIO, *example],
    }
    servers = {"truenas_os on asyncio": [sys.executable, "truenas_os", "asyncio"]}
    if arguments.against is None:
        print("nothing to compare with but the directory: see --against")
    else:
        commands[THEIRS] = [arguments.python, arguments.against]
        servers["pyfuse3 on trio"] = [arguments.python, "pyfuse3", "trio"]
    with tempfile.TemporaryDirectory() as base, contextlib.ExitStack() as stack:
        source = f"{base}/source"
        os.mkdir(source)
        stack.enter_context(blocking.mounted("tmpfs", source))
        fill(source)
        memory(source, commands, f"{base}/memory")
        latency(servers, f"{base}/sleepy")
        tops = {}
        for number, (name, command) in enumerate(commands.items()):
            tops[name] = f"{base}/{number}"
            stack.enter_context(served([*command, source, tops[name]], tops[name]))
        compare(tops | {BARE: source}, arguments.rounds)


if __name__ == "__main__":
    main()
