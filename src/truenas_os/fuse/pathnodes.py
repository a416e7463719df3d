# SPDX-License-Identifier: LGPL-3.0-or-later
"""Which paths lead to which inodes, as far as the kernel knows them. There is no I/O here."""

import itertools
from collections.abc import Hashable
from typing import Final

from .datatypes import EntryAttributes
from .pathforms import Entry
from .wire import FUSE_ROOT_ID

HIDDEN: Final = ".fuse_hidden"
"""What the name begins with that an open file has once it was removed."""


class OpenFile:
    """An open file or directory: the handle that the filesystem has given it, None if none."""

    __slots__ = ("flags", "handle", "listing", "node")

    def __init__(self, node: "Node", flags: int, handle: object) -> None:
        self.node: Node = node
        self.flags: int = flags
        self.handle: object = handle
        # Of a directory: what it had when it was last listed from its beginning.
        self.listing: list[Entry] | None = None


class Node:
    """An inode that the kernel knows, or that is on the way to one."""

    __slots__ = (
        "entries",
        "files",
        "hidden",
        "is_moving",
        "key",
        "kind",
        "lock_owners",
        "lookups",
        "names",
        "number",
        "status",
        "users",
    )

    def __init__(self, number: int, kind: int) -> None:
        self.number: int = number
        self.kind: int = kind
        self.key: Hashable = None
        self.lookups: int = 0
        # Directories and names in them that lead here; the last one was confirmed last.
        self.names: dict[tuple[Node, str], None] = {}
        self.entries: dict[str, Node] = {}
        # Who has it open, in this order.
        self.files: dict[OpenFile, None] = {}
        # Where it goes on unseen since it was removed while it was open: a directory, a name.
        self.hidden: tuple[Node, str] | None = None
        # Who holds POSIX locks.
        self.lock_owners: set[int] = set()
        # What the filesystem has last said about it, with the size that it has had since then.
        self.status: EntryAttributes | None = None
        # How many callbacks use paths through it, and whether one is changing them.
        self.users: int = 0
        self.is_moving: bool = False


class NodeTable:
    """The tree of the nodes. A node is in it while anything needs it.

    That is: lookups of the kernel's, open files, a hidden file that could not be removed yet,
    entries below it that are needed. What leads to a node can be walked up to the root; a node
    without a name has been removed.
    """

    def __init__(self) -> None:
        self.root: Node = Node(FUSE_ROOT_ID, 0)
        self._nodes = {FUSE_ROOT_ID: self.root}
        self._by_key: dict[Hashable, Node] = {}
        self._numbers = itertools.count(1 << 63)

    def __len__(self) -> int:
        return len(self._nodes)

    def __getitem__(self, number: int) -> Node:
        return self._nodes[number]

    def chain(self, node: Node) -> list[Node]:
        """*node* and the directories that its path goes through, the root excluded."""
        found = []
        while node.names:
            found.append(node)
            node = next(reversed(node.names))[0]
        return found

    def path(self, node: Node) -> str | None:
        """The path of a node, from the root on; None if it was removed."""
        names = []
        while node.names:
            node, name = next(reversed(node.names))
            names.append(name)
        return "/" + "/".join(reversed(names)) if node is self.root else None

    def path_in(self, directory: Node, name: str) -> str | None:
        """The path of an entry, whether or not there is one."""
        path = self.path(directory)
        return None if path is None else f"{path.rstrip('/')}/{name}"

    def look_up(self, parent: Node, name: str, kind: int, key: Hashable, hint: int) -> Node:
        """The node that an entry has been found to lead to, known once more.

        *kind* is the type of file. Entries with the same *key* and kind lead to one node; None is
        the key of what has no more than one entry. *hint* will be the node's number, if that is
        free.
        """
        old = parent.entries.get(name)
        node = self._by_key.get(key) if key is not None else old
        if node is None or node.kind != kind or node.key != key:
            node = self._new(kind, key, hint)
        node.lookups += 1
        parent.entries[name] = node
        node.names.pop((parent, name), None)
        node.names[parent, name] = None
        if old is not None and old is not node:
            self._lose_name(old, parent, name)
        return node

    def _new(self, kind: int, key: Hashable, hint: int) -> Node:
        is_free = FUSE_ROOT_ID < hint < 1 << 63 and hint not in self._nodes
        node = Node(hint if is_free else next(self._numbers), kind)
        self._nodes[node.number] = node
        if key is not None:
            node.key = key
            self._by_key[key] = node
        return node

    def remove(self, parent: Node, name: str) -> None:
        """An entry is gone, and what was below it."""
        node = parent.entries.pop(name, None)
        if node is not None:
            self._lose_name(node, parent, name)
            self._drop_unused(parent)

    def _lose_name(self, node: Node, parent: Node, name: str) -> None:
        lost = [(node, parent, name)]
        while lost:
            node, parent, name = lost.pop()
            del node.names[parent, name]
            if node.hidden == (parent, name):
                node.hidden = None
            if not node.names:
                if self._by_key.get(node.key) is node:
                    del self._by_key[node.key]  # the filesystem may use the number again
                lost += [(child, node, each) for each, child in node.entries.items()]
                node.entries.clear()
            self._drop_unused(node)

    def move(self, parent: Node, name: str, new_parent: Node, new_name: str) -> None:
        """An entry has become another one, and taken its place."""
        node = parent.entries.get(name)
        replaced = new_parent.entries.get(new_name)
        if node is None:
            self.remove(new_parent, new_name)
        elif node is not replaced:
            del parent.entries[name], node.names[parent, name]
            new_parent.entries[new_name] = node
            node.names[new_parent, new_name] = None
            if node.hidden == (parent, name):
                node.hidden = (new_parent, new_name)
            if replaced is not None:
                self._lose_name(replaced, new_parent, new_name)
            self._drop_unused(parent)

    def forget(self, node: Node, count: int) -> None:
        """The kernel takes back lookups."""
        node.lookups -= count
        self._drop_unused(node)

    def open(self, file: OpenFile) -> None:
        """*file* is open."""
        file.node.files[file] = None

    def close(self, file: OpenFile) -> None:
        """*file* is not open any more."""
        node = file.node
        node.files.pop(file, None)
        self._drop_unused(node)

    def hidden_paths(self) -> list[str]:
        """The paths of all that was removed while it was open, and goes on unseen."""
        hidden = (node.hidden for node in self._nodes.values() if node.hidden is not None)
        return [path for entry in hidden if (path := self.path_in(*entry)) is not None]

    def _drop_unused(self, node: Node) -> None:
        unused = [node]
        while unused:
            node = unused.pop()
            needed = node.lookups > 0 or node.entries or node.files or node.hidden is not None
            if needed or node is self.root or self._nodes.get(node.number) is not node:
                continue
            del self._nodes[node.number]
            if self._by_key.get(node.key) is node:
                del self._by_key[node.key]
            for parent, name in node.names:
                del parent.entries[name]
                unused.append(parent)
            node.names.clear()
