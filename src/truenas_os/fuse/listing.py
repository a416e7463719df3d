# SPDX-License-Identifier: LGPL-3.0-or-later
"""What a handler is given to list a directory with."""

from .datatypes import EntryAttributes, FileNameT
from .protocol import Readdir, check_entry


class ReaddirToken:
    """The reply to a request for entries of a directory, for :func:`readdir_reply` to fill."""

    __slots__ = ("_closed", "_full", "_kinds", "granted", "reply")

    def __init__(self, size: int, kinds: dict[int, int] | None = None) -> None:
        """Have room for *size* bytes, with attributes if there is a place for inodes' types."""
        self.reply: Readdir = Readdir(size)
        self._kinds = kinds
        self._closed = False
        self._full = False
        self.granted: list[tuple[int, int]] = []

    @property
    def plus(self) -> bool:
        """Whether the kernel takes attributes as well."""
        return self._kinds is not None

    def add(self, name: bytes, attr: EntryAttributes, next_id: int) -> bool:
        """See :func:`readdir_reply`."""
        if self._closed:
            raise ValueError("this token's handler has returned")
        if not attr.st_ino:
            raise ValueError(f"the entry {name!r} has no inode")
        if self._full:  # a shorter name may fit, but what had no room would be lost
            check_entry(name, next_id)
            return False
        if self._kinds is None:
            taken = self.reply.try_add(attr.st_ino, next_id, attr.st_mode, name)
        else:
            taken = self.reply.try_add_plus(attr, next_id, name)
        self._full = not taken
        if taken and name not in (b".", b".."):
            self.granted.append((attr.st_ino, 1))
            if self._kinds is not None:
                self._kinds[attr.st_ino] = attr.st_mode >> 12
        return taken

    def add_name(self, name: bytes, inode: int, mode: int, next_id: int) -> bool:
        """Add an entry whose attributes the kernel is to look up when they are needed.

        Of *mode* only the type is used, 0 if that is not known either. No lookup is counted.
        """
        add = self.reply.try_add if self._kinds is None else self.reply.try_add_name
        return add(inode, next_id, mode, name)

    def close(self) -> None:
        """The handler has returned: nothing more is to be added."""
        self._closed = True


def readdir_reply(
    token: ReaddirToken, name: FileNameT, attr: EntryAttributes, next_id: int
) -> bool:
    """Add an entry to what ``readdir`` lists; False if there is no room, and the handler returns.

    *next_id*, from 1 on, is what ``readdir`` gets as its ``start_id`` to go on behind this entry.
    Once there was no room for an entry, there is none for any other. If the result is True, the
    lookup count of the inode is one more, but for ``.`` and ``..``.

    Raises :exc:`ValueError` for a name or an id that the kernel would refuse, and for a token whose
    handler has returned.
    """
    return token.add(name, attr, next_id)
