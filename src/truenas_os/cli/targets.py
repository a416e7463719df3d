# SPDX-License-Identifier: LGPL-3.0-or-later
"""What is wrong with a target, where the kernel says no more than EINVAL."""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from stat import S_ISLNK

from .. import blocking
from ..blocking import AT_FDCWD, AtFlag, StatxMask, StatxResult
from ..blocking.arguments import unfollowed

_LOOK = AtFlag.SYMLINK_NOFOLLOW | AtFlag.NO_AUTOMOUNT | AtFlag.STATX_DONT_SYNC


@contextmanager
def explained(target: str, fits: Callable[[StatxResult], bool], otherwise: str) -> Iterator[None]:
    """A block whose error tells that *target* is a symlink, or, if it does not fit, *otherwise*."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.EINVAL:
            with suppress(OSError):
                found = blocking.statx(AT_FDCWD, unfollowed(target), _LOOK, StatxMask.TYPE)
                if S_ISLNK(found.stx_mode):
                    error.add_note("TARGET is a symlink")
                elif not fits(found):
                    error.add_note(f"TARGET is {otherwise}")
        raise
