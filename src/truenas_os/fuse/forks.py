# SPDX-License-Identifier: LGPL-3.0-or-later
"""Forked children: what serves belongs to the process that began to."""

import os
import weakref
from typing import Protocol


class Owned(Protocol):
    """What a forked child must not keep."""

    def disown(self) -> None:
        """Close this process's copies of descriptors, and work no more."""


_owned: weakref.WeakSet[Owned] = weakref.WeakSet()


def own(thing: Owned) -> None:
    """Have *thing* disowned in forked children, more than once in theirs.

    A child that kept /dev/fuse open would keep the connection alive after the server's death.
    """
    _owned.add(thing)


def check_process(pid: int) -> None:
    """Raise :exc:`RuntimeError` unless this is the process *pid*."""
    if os.getpid() != pid:
        raise RuntimeError(
            "this belongs to the process that it was begun in, not to a forked child"
        )


def _disown() -> None:
    for thing in list(_owned):
        thing.disown()


os.register_at_fork(after_in_child=_disown)
