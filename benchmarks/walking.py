# SPDX-License-Identifier: LGPL-3.0-or-later
"""Walking 200,000 small files in 2,000 directories, beside what one would use instead.

Run as ``python benchmarks/walking.py [DIRECTORY]``: a tree is made there (by default in the
directory for temporary files) and removed at the end. Everything is read before it is timed, so
that no disk is measured. With ``--growth``, time and memory for ten times as many files and for one
directory with a million are measured instead, on a tmpfs (2 GB of memory).
"""

import argparse
import asyncio
import importlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import anyio
from mounts import begin_inside
from ratios import print_table

import truenas_os
from truenas_os import blocking

ROUNDS = 7
DIRECTORIES, FILES = 2000, 100
# What takes a worker thread for every entry is timed on so many of the directories at the top.
SAMPLE = "0"


def make_tree(root: str, directories: int, files: int) -> None:
    for number in range(directories):
        path = f"{root}/{number % 20}/{number}"
        os.makedirs(path)
        directory = os.open(path, os.O_RDONLY)
        for name in range(files):
            os.mknod(f"file{name:06}.txt", dir_fd=directory)
        os.close(directory)


def scandir_and_stat(path: str) -> int:
    count = size = 0
    with os.scandir(path) as entries:
        for entry in entries:
            count += 1
            size += entry.stat(follow_symlinks=False).st_size
            if entry.is_dir(follow_symlinks=False):
                count += scandir_and_stat(entry.path)
    return count


def scandir_and_open(path: str) -> int:
    count = size = 0
    with os.scandir(path) as entries:
        for entry in entries:
            count += 1
            if entry.is_dir(follow_symlinks=False):
                count += scandir_and_open(entry.path)
            else:
                fd = os.open(entry.path, os.O_RDONLY)
                size += os.fstat(fd).st_size
                os.close(fd)
    return count


def find(path: str) -> int:
    command = ["find", path, "-mindepth", "1", "-printf", r"%s\n"]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.count(b"\n")


def blocking_walk(path: str, flags: int | None) -> int:
    count = 0
    with blocking.walk(path, file_open_flags=flags) as items:
        for _ in items:
            count += 1
    return count


async def async_walk(path: str, flags: int | None) -> int:
    count = 0
    async with truenas_os.walk(path, file_open_flags=flags) as items:
        async for _ in items:
            count += 1
    return count


async def async_sizes(path: str, flags: int | None) -> int:
    count = size = 0
    async with truenas_os.walk(path, file_open_flags=flags) as items:
        async for item in items:
            count += 1
            size += item.statxinfo.stx_size
    return count


async def async_batches(path: str) -> int:
    count = 0
    async with truenas_os.walk(path, file_open_flags=None) as items:
        async for batch in items.batches(1000):
            count += len(batch)
    return count


async def rglob_and_stat(path: str) -> int:
    count = 0
    async for entry in anyio.Path(path, SAMPLE).rglob("*"):
        await entry.stat(follow_symlinks=False)
        count += 1
    return count


async def thread_for_each_directory(path: str) -> int:
    def listed(path: str) -> tuple[int, list[str]]:
        with os.scandir(path) as entries:
            found = [(entry, entry.stat(follow_symlinks=False).st_size) for entry in entries]
        return len(found), [e.path for e, _ in found if e.is_dir(follow_symlinks=False)]

    count, left = 0, [path]
    while left:
        here, below = await asyncio.to_thread(listed, left.pop())
        count += here
        left += below
    return count


def scandir_rs(path: str) -> int:
    module = importlib.import_module("scandir_rs")
    kind = module.ReturnType.Ext
    return len(module.Scandir(path, skip_hidden=False, return_type=kind).collect()[0])


def compare(path: str) -> None:
    competitors: dict[str, Callable[[], int]] = {
        "os.scandir + entry.stat()": lambda: scandir_and_stat(path),
        "os.scandir + open + fstat + close": lambda: scandir_and_open(path),
        r"find -printf '%s\n'": lambda: find(path),
        "async walk, descriptors": lambda: asyncio.run(async_walk(path, os.O_RDONLY)),
        "async walk, file_open_flags=None": lambda: asyncio.run(async_walk(path, None)),
        "async walk, descriptors, every statxinfo read": lambda: asyncio.run(
            async_sizes(path, os.O_RDONLY)
        ),
        "async walk, None, every statxinfo read": lambda: asyncio.run(async_sizes(path, None)),
        "async walk, None, batches(1000)": lambda: asyncio.run(async_batches(path)),
        "blocking walk, descriptors": lambda: blocking_walk(path, os.O_RDONLY),
        "blocking walk, file_open_flags=None": lambda: blocking_walk(path, None),
        "asyncio.to_thread for each directory": lambda: asyncio.run(
            thread_for_each_directory(path)
        ),
        "anyio.Path.rglob + stat (a twentieth)": lambda: asyncio.run(rglob_and_stat(path)),
        "scandir-rs, Scandir.collect, Ext": lambda: scandir_rs(path),
    }
    try:
        scandir_rs(path)
    except ImportError:
        del competitors["scandir-rs, Scandir.collect, Ext"]
        print("scandir-rs is not installed")
    rows: dict[str, list[float]] = {name: [] for name in competitors}
    for number in range(ROUNDS + 1):
        for name, function in competitors.items():
            begin = time.perf_counter()
            count = function()
            if number:  # the first round is there to read everything
                rows[name].append((time.perf_counter() - begin) / count)
    print_table(
        f"an entry of {DIRECTORIES * FILES} files in {DIRECTORIES} directories\n"
        "  (targets: descriptors at most 1.0, and 0.67 of scandir + open; None at most 0.59, and no"
        " more than find)",
        rows,
    )
    baseline = statistics.median(rows["os.scandir + open + fstat + close"])
    mine = statistics.median(rows["async walk, descriptors"])
    print(f"  descriptors against scandir + open + fstat + close: {mine / baseline:.2f}")
    baseline = statistics.median(rows[r"find -printf '%s\n'"])
    mine = statistics.median(rows["async walk, file_open_flags=None"])
    print(f"  None against find: {mine / baseline:.2f}")


_WALK = """
import asyncio, os, resource, sys, time
import truenas_os

async def main(path, flags):
    count = 0
    begin = time.perf_counter()
    async with truenas_os.walk(path, file_open_flags=flags) as items:
        async for item in items:
            count += 1
    took = (time.perf_counter() - begin) / count
    print(count, took, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)

asyncio.run(main(sys.argv[1], None if sys.argv[2] == "None" else os.O_RDONLY))
"""


def growth(path: str) -> None:
    """Each in a process of its own, whose memory is looked at."""
    trees = {
        "200,000 files in 2,000 directories": (DIRECTORIES, FILES),
        "2,000,000 files in 20,000 directories": (10 * DIRECTORIES, FILES),
        "1,000,000 files in one directory": (1, 1_000_000),
    }
    for number, (directories, files) in enumerate(trees.values()):
        make_tree(f"{path}/{number}", directories, files)
    for flags in ("None", "O_RDONLY"):
        print(f"\nfile_open_flags={flags}: medians of {ROUNDS} processes")
        for number, name in enumerate(trees):
            runs = []
            for _ in range(ROUNDS):
                command = [sys.executable, "-c", _WALK, f"{path}/{number}", flags]
                output = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
                runs.append([float(word) for word in output.split()])
            took = statistics.median(run[1] for run in runs) * 1e6
            memory = statistics.median(run[2] for run in runs) / 1024
            print(f"  {name:<40}{took:>6.2f} us an entry   {memory:>6.1f} MiB at the most")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", nargs="?", default=tempfile.gettempdir())
    parser.add_argument("--growth", action="store_true")
    arguments = parser.parse_args()
    if arguments.growth:
        begin_inside()
        with tempfile.TemporaryDirectory() as target, blocking.mounted("tmpfs", target):
            blocking.remount(target, nr_inodes=4_000_000)
            growth(target)
        return
    print(f"Python {sys.version.split()[0]}, Linux {os.uname().release}, {os.cpu_count()} CPUs")
    path = tempfile.mkdtemp(dir=arguments.directory)
    try:
        make_tree(path, DIRECTORIES, FILES)
        compare(path)
    finally:
        shutil.rmtree(path)


if __name__ == "__main__":
    main()
