# SPDX-License-Identifier: LGPL-3.0-or-later
"""Paths that stay right for as long as a callback uses them.

A callback uses the nodes that its path goes through; many may use one node. What renames or removes
a node waits until nobody uses it, and whoever wants to use it meanwhile waits until that is done.
Who waits to use nodes holds none, and who changes one holds only what is above it, so there is
always somebody who can go on.
"""

import errno
from collections.abc import Callable, Sequence
from typing import TypeAlias

import anyio

from .datatypes import FUSEError
from .pathnodes import Node

Entry: TypeAlias = tuple[Node, str]


class PathLocks:
    """Who uses which nodes is in the nodes; here is which entries change, and who waits."""

    def __init__(self) -> None:
        self._entries: set[Entry] = set()
        self._changed: anyio.Event | None = None

    async def _change(self) -> None:
        if self._changed is None:
            self._changed = anyio.Event()
        await self._changed.wait()

    def _wake(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    async def use(
        self, find: Callable[[], Sequence[Node]], entry: Entry | None = None
    ) -> Sequence[Node]:
        """Use the nodes that *find* finds, once none of them, nor *entry*, is being changed."""
        found = find()
        while entry in self._entries or any(node.is_moving for node in found):
            await self._change()
            found = find()
        for node in found:
            node.users += 1
        return found

    def leave(self, used: Sequence[Node]) -> None:
        """Use nodes no more."""
        for node in used:
            node.users -= 1
        self._wake()

    async def begin_change(
        self, entries: Sequence[Entry], find: Callable[[], tuple[Sequence[Node], Sequence[Node]]]
    ) -> tuple[Sequence[Node], Sequence[Node]]:
        """Use the first of what *find* finds; have the second, and *entries*, for this caller.

        Raises :exc:`FUSEError` with ENOTEMPTY if a node is to be replaced by what is below it.
        """
        while True:
            used, moved = find()
            if not self._entries.intersection(entries) and not any(
                node.is_moving for node in (*used, *moved)
            ):
                break
            await self._change()
        if set(used) & set(moved):
            raise FUSEError(errno.ENOTEMPTY)
        self._entries.update(entries)
        for node in used:
            node.users += 1
        for node in moved:
            node.is_moving = True
        try:
            while any(node.users for node in moved):
                await self._change()
        except BaseException:
            self.end_change(entries, used, moved)
            raise
        return used, moved

    def end_change(
        self, entries: Sequence[Entry], used: Sequence[Node], moved: Sequence[Node]
    ) -> None:
        """It is done."""
        self._entries.difference_update(entries)
        for node in moved:
            node.is_moving = False
        self.leave(used)
