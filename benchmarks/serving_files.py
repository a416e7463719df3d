# SPDX-License-Identifier: LGPL-3.0-or-later
"""What is in files, served by examples/fuse/passthrough.py, beside the files themselves.

Run as root, as ``python benchmarks/serving_files.py [--source DIRECTORY]``. The kernel reads and
writes the files by itself, or has the example do it; and it reads ahead as it does by default, or
more. Begins again in a mount namespace of its own. The source is a tmpfs, or else a new directory
in the one that is given. Everything goes through the page cache.
"""

import argparse
import contextlib
import os
import sys
import tempfile
from pathlib import Path

from mounts import begin_inside
from ratios import print_table
from serving import EXAMPLE, run, served

from truenas_os import blocking

MIB = 1 << 20
SIZE = 64 * MIB
BARE = "the file"
BACKED = "served, with a backing file"
REQUESTS = "served, with requests"
AHEAD = "served, with requests, read_ahead_kb=1024"
ARGUMENTS = {
    BACKED: [],
    REQUESTS: ["--no-passthrough"],
    AHEAD: ["--no-passthrough", "-o", "read_ahead_kb=1024"],
}
# What is done, how often, and between which: the first is what the others are measured against.
KINDS = {
    "read 1 MiB after another": (256, (BARE, BACKED, REQUESTS)),
    "write 1 MiB after another": (256, (BARE, BACKED, REQUESTS)),
    "read 4 KiB at random": (40000, (BARE, BACKED)),
    "write 4 KiB at random": (40000, (BARE, BACKED)),
    "map, and read 4 KiB of it at random": (40000, (BARE, BACKED)),
    "map, and write 4 KiB of it at random": (40000, (BARE, BACKED)),
    "open, read 4 KiB and close": (1000, (BARE, BACKED, REQUESTS)),
    "read 64 KiB after another of a file that was just opened": (1024, (REQUESTS, AHEAD)),
}

_CLIENT = """
import mmap, os, random, sys, time

path, kind, times, size = *sys.argv[1:3], *map(int, sys.argv[3:])
MIB = 1 << 20
page, large, some = bytes(4096), memoryview(bytearray(MIB)), memoryview(bytearray(MIB))[:65536]
random.seed(1)
places = [random.randrange(size // 4096) * 4096 for _ in range(times)]

def opened(i):
    fd = os.open(path, os.O_RDWR)
    os.pread(fd, 4096, 0)
    os.close(fd)

fd = os.open(path, os.O_RDWR)
if kind.startswith("map"):
    map = mmap.mmap(fd, size)
    if "write" in kind:
        def call(i):
            map[places[i] : places[i] + 4096] = page
    else:
        def call(i):
            map[places[i] : places[i] + 4096]
elif kind.startswith("open"):
    call = opened
elif "64 KiB" in kind:
    call = lambda i: os.preadv(fd, [some], i * 65536 % size)
elif "MiB" in kind and kind.startswith("read"):
    call = lambda i: os.preadv(fd, [large], i * MIB % size)
elif "MiB" in kind:
    call = lambda i: os.pwritev(fd, [large], i * MIB % size)
elif kind.startswith("read"):
    call = lambda i: os.pread(fd, 4096, places[i])
else:
    call = lambda i: os.pwrite(fd, page, places[i])
if "just opened" not in kind:
    for i in range(times):
        call(i)
begin = time.perf_counter()
for i in range(times):
    call(i)
print(time.perf_counter() - begin)
"""


def compare(files: dict[str, str], rounds: int) -> None:
    for kind, (times, names) in KINDS.items():
        rows: dict[str, list[float]] = {name: [] for name in names}
        for number in range(rounds):
            # In turns, backwards every other time.
            for name in names if number % 2 else reversed(names):
                took = run(sys.executable, "-c", _CLIENT, files[name], kind, times, SIZE)
                rows[name].append(float(took) / times)
        print_table(kind, rows)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--source", metavar="DIRECTORY", type=os.path.abspath)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    begin_inside()
    print(f"load {os.getloadavg()[0]:.1f}")
    with contextlib.ExitStack() as stack:
        base = stack.enter_context(tempfile.TemporaryDirectory())
        source = stack.enter_context(tempfile.TemporaryDirectory(dir=arguments.source))
        if arguments.source is None:
            stack.enter_context(blocking.mounted("tmpfs", source))
        Path(source, "file").write_bytes(os.urandom(SIZE))
        files = {BARE: f"{source}/file"}
        for number, (name, options) in enumerate(ARGUMENTS.items()):
            top = f"{base}/{number}"
            command = [sys.executable, str(EXAMPLE), source, top, *options]
            stack.enter_context(served(command, top))
            files[name] = f"{top}/file"
        compare(files, arguments.rounds)


if __name__ == "__main__":
    main()
