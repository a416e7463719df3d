# SPDX-License-Identifier: LGPL-3.0-or-later
"""Draws what a picture says better than a table: growth with the tree, and latencies.

Run as ``python benchmarks/plots.py [DIRECTORY]``, by default docs/images; it begins again in a
mount namespace of its own, and needs 2 GB of memory. Times are multiples of a competitor's of the
same run.
"""

import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
from mounts import begin_inside
from walking import async_walk, make_tree, scandir_and_open, scandir_and_stat

import truenas_os
from truenas_os import AT_FDCWD, blocking

SIZES = (1_000, 10_000, 100_000, 1_000_000)
ROUNDS = 7
TASKS, CALLS = 64, 200
Rows = dict[str, list[float]]


def growth(directory: str) -> Rows:
    """The time for an entry, for each of SIZES, as a multiple of the first competitor's first."""
    competitors: dict[str, Callable[[str], int]] = {
        "os.scandir + stat": scandir_and_stat,
        "os.scandir + open + fstat + close": scandir_and_open,
        "walk, with descriptors": lambda path: asyncio.run(async_walk(path, os.O_RDONLY)),
        "walk, file_open_flags=None": lambda path: asyncio.run(async_walk(path, None)),
    }
    for size in SIZES:
        make_tree(f"{directory}/{size}", size // 100, 100)
    times: dict[str, Rows] = {name: {str(size): [] for size in SIZES} for name in competitors}
    for _ in range(ROUNDS):
        for tree in times["os.scandir + stat"]:
            for name, function in competitors.items():
                begin = time.perf_counter()
                count = function(f"{directory}/{tree}")
                times[name][tree].append((time.perf_counter() - begin) / count)
    # The best round: what disturbs one only ever adds to it.
    unit = min(times["os.scandir + stat"][str(SIZES[0])])
    return {name: [min(row) / unit for row in rows.values()] for name, rows in times.items()}


async def latencies(call: Callable[[], Awaitable[object]]) -> list[float]:
    found: list[float] = []

    async def work() -> None:
        for _ in range(CALLS):
            begin = time.perf_counter()
            await call()
            found.append(time.perf_counter() - begin)

    await asyncio.gather(*(work() for _ in range(TASKS)))
    return found


def percentiles(path: str) -> Rows:
    """Of each competitor, as multiples of the first one's median."""
    competitors: dict[str, Callable[[], Awaitable[object]]] = {
        "await asyncio.to_thread(os.stat, path)": lambda: asyncio.to_thread(os.stat, path),
        "await statx(AT_FDCWD, path)": lambda: truenas_os.statx(AT_FDCWD, path),
    }
    times: Rows = {name: [] for name in competitors}
    for _ in range(ROUNDS):
        for name, call in competitors.items():
            times[name] += asyncio.run(latencies(call))
    unit = statistics.median(times["await asyncio.to_thread(os.stat, path)"])
    return {
        name: [each / unit for each in statistics.quantiles(row, n=200)]
        for name, row in times.items()
    }


def draw(
    target: Path, title: str, base: int, x_label: str, y_label: str, lines: dict[str, Rows]
) -> None:
    # The same file from the same numbers; text that can be searched.
    mpl.rcParams["svg.hashsalt"] = "truenas_os"
    mpl.rcParams["svg.fonttype"] = "none"
    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for name, line in lines.items():
        axes.plot(line["x"], line["y"], label=name, marker="o" if len(line["x"]) < 10 else "")
    axes.set(title=title, xlabel=x_label, ylabel=y_label)
    axes.set_xscale("log", base=base)
    axes.xaxis.set_major_formatter("{x:,.7g}")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9)
    figure.savefig(target, metadata={"Date": None})
    plt.close(figure)
    # Without what the drawing program adds at the ends of lines.
    target.write_text("".join(f"{line.rstrip()}\n" for line in target.read_text().splitlines()))


def main() -> None:
    begin_inside()
    target = Path(sys.argv[1] if sys.argv[1:] else Path(__file__).parents[1] / "docs" / "images")
    with tempfile.TemporaryDirectory() as directory, blocking.mounted("tmpfs", directory):
        blocking.remount(directory, nr_inodes=4_000_000)
        grown = growth(directory)
        late = percentiles(directory)
    for name, row in grown.items():
        print(f"{name:<40}", *(f"{each:.2f}" for each in row))
    for name, row in late.items():
        print(f"{name:<40} median {row[99]:.2f}, 90 % {row[179]:.2f}, 99 % {row[197]:.2f}")
    draw(
        target / "growth.svg",
        "Time for an entry, against the size of the tree",
        10,
        "files, 100 in a directory",
        "multiple of os.scandir + stat",
        {name: {"x": [float(size) for size in SIZES], "y": row} for name, row in grown.items()},
    )
    draw(
        target / "latencies.svg",
        f"How long a call takes while {TASKS} tasks make calls",
        2,
        "multiple of the median of asyncio.to_thread",
        "% of calls that are done",
        {
            name: {"x": row, "y": [(number + 1) / 2 for number in range(len(row))]}
            for name, row in late.items()
        },
    )


if __name__ == "__main__":
    main()
