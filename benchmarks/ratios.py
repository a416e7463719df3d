# SPDX-License-Identifier: LGPL-3.0-or-later
"""Times competitors side by side: in turn, so that a noisy machine is fair to all."""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable

ROUNDS = 15


def seconds(function: Callable[[], object], times: int) -> float:
    """How long one call takes, over so many *times*."""
    begin = time.perf_counter()
    for _ in range(times):
        function()
    return (time.perf_counter() - begin) / times


async def async_seconds(function: Callable[[], Awaitable[object]], tasks: int, times: int) -> float:
    """How long one call takes when so many *tasks* make it so many *times* each."""

    async def work() -> None:
        for _ in range(times):
            await function()

    begin = time.perf_counter()
    if tasks == 1:
        await work()
    else:
        await asyncio.gather(*(work() for _ in range(tasks)))
    return (time.perf_counter() - begin) / (tasks * times)


def print_table(title: str, rows: dict[str, list[float]]) -> None:
    """The rounds of each competitor; the first is what the others are measured against."""
    baseline = next(iter(rows.values()))
    print(f"\n{title}\n  {'':<52}{'median':>10}   time as a multiple (min .. max)")
    for name, times in rows.items():
        ratios = [mine / its for mine, its in zip(times, baseline, strict=True)]
        print(
            f"  {name:<52}{statistics.median(times) * 1e6:>7.1f} us"
            f"   {statistics.median(ratios):.2f} ({min(ratios):.2f} .. {max(ratios):.2f})"
        )


def compare(title: str, competitors: dict[str, Callable[[], object]], times: int) -> None:
    rows: dict[str, list[float]] = {name: [] for name in competitors}
    for function in competitors.values():
        function()
    for _ in range(ROUNDS):
        for name, function in competitors.items():
            rows[name].append(seconds(function, times))
    print_table(title, rows)


async def compare_async(
    title: str, competitors: dict[str, Callable[[], Awaitable[object]]], tasks: int, times: int
) -> None:
    rows: dict[str, list[float]] = {name: [] for name in competitors}
    for function in competitors.values():
        await function()
    for _ in range(ROUNDS):
        for name, function in competitors.items():
            rows[name].append(await async_seconds(function, tasks, times))
    print_table(title, rows)
