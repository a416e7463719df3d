#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-3.0-or-later
"""Show the mounts on a terminal, live: what is there, and what has just happened.

Usage: mount_dashboard.py [PATH], for the mounts at PATH or below. Ctrl-C or SIGTERM ends it. Where
there are more mounts than the terminal has lines, the last ones are not shown. It needs rich.
"""

import argparse
import os
import signal
import time
from collections import deque

import anyio
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

import truenas_os
from truenas_os import MountEvent, MountEventKind, MountFilter, StatmountResult

COLOURS = {
    MountEventKind.ATTACHED: "green",
    MountEventKind.DETACHED: "red",
    MountEventKind.MOVED: "yellow",
    MountEventKind.CHANGED: "yellow",
    MountEventKind.TRANSIENT: "dim",
    MountEventKind.RESYNC: "bold red",
}
EVENTS = 8


class Dashboard:
    """The mounts by id, and the last events."""

    def __init__(self, mounts: list[StatmountResult], wanted: MountFilter) -> None:
        self.mounts = {mount.mnt_id: mount for mount in mounts if wanted(mount)}
        self.wanted = wanted
        self.events: deque[tuple[str, MountEvent]] = deque(maxlen=EVENTS)

    def apply(self, event: MountEvent) -> None:
        self.events.appendleft((time.strftime("%H:%M:%S"), event))
        if event.new is not None and self.wanted(event.new):
            self.mounts[event.new.mnt_id] = event.new
        elif event.mnt_id is not None:  # it is gone, or moved away
            self.mounts.pop(event.mnt_id, None)

    def __rich__(self) -> Group:
        # The table last: what does not fit is cut off at the bottom.
        return Group(Panel(self.history(), title="events", title_align="left"), self.table())

    def table(self) -> Table:
        table = Table(title=f"{len(self.mounts)} mounts", expand=True)
        for name, ratio in (("mount point", 4), ("source", 2), ("type", 1)):
            table.add_column(name, ratio=ratio, overflow="fold")
        fresh = {event.mnt_id: COLOURS[event.kind] for _, event in reversed(self.events)}
        for mount in sorted(self.mounts.values(), key=lambda mount: mount.mnt_point or ""):
            cells = (mount.mnt_point, mount.sb_source, mount.fs_type)
            table.add_row(*map(printable, cells), style=fresh.get(mount.mnt_id, ""))
        return table

    def history(self) -> Text:
        lines = Text(no_wrap=True, overflow="ellipsis")
        for at, event in self.events:
            mount = event.new or event.old
            where = printable(mount.mnt_point if mount else None)
            lines.append(f"{at} {event.kind.value:<9} ", COLOURS[event.kind]).append_text(where)
            lines.append(f" {', '.join(event.fields)}\n", "dim")
        return lines


def printable(text: str | None) -> Text:
    """What a terminal may get of a name that anybody may have chosen."""
    return Text("".join(char if char.isprintable() else "?" for char in text or ""))


async def run(under: str | None, console: Console) -> None:
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch, under, console)
            await anext(signals)
            tasks.cancel_scope.cancel()


async def watch(under: str | None, console: Console) -> None:
    wanted = MountFilter(under=under)
    async with truenas_os.watch_mounts(mount_filter=wanted) as changes:
        dashboard = Dashboard([*changes.snapshot], wanted)
        with Live(dashboard, console=console, auto_refresh=False) as live:
            live.refresh()
            async for batch in changes:
                for event in batch:
                    dashboard.apply(event)
                live.refresh()


def main() -> None:
    parser = argparse.ArgumentParser(description="Show the mounts on a terminal, live.")
    parser.add_argument("path", nargs="?", help="only the mounts here or below")
    path = parser.parse_args().path
    anyio.run(run, None if path is None else os.path.realpath(path), Console())


if __name__ == "__main__":
    main()
