# SPDX-License-Identifier: LGPL-3.0-or-later
"""Helper processes, which nobody else notices."""

import errno

from .._native import lib
from .fds import Fd


def end_child(pidfd: int) -> None:
    """Kill and reap the child with that descriptor, if it is still there, and close it."""
    if pidfd >= 0:
        # Nothing but a signal keeps it from being killed and reaped.
        while lib.tos_end_child(pidfd) == -errno.EINTR:
            pass
        Fd(pidfd).close()
