# SPDX-License-Identifier: LGPL-3.0-or-later
"""Descriptors that know whether they are still ours to close."""

import errno
from types import TracebackType
from typing import NoReturn, Self

from .._native import lib
from .errors import check


class Fd(int):
    """A file descriptor: an int that is also a context manager.

    It can be passed wherever a descriptor is expected. Leaving its block closes it exactly once.
    It is not closed by garbage collection, so code that ends it with ``os.close(fd)`` stays right.
    Every descriptor that this library returns is close-on-exec, whatever the flags.
    """

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` or :meth:`detach` has been called."""
        return "_gone" in self.__dict__

    def fileno(self) -> int:
        """The descriptor's number. Raises :exc:`ValueError` once it is closed or detached."""
        if "_gone" in self.__dict__:
            raise ValueError(f"descriptor {int(self)} is closed")
        return int(self)

    def close(self) -> None:
        """Close the descriptor; a second call does nothing.

        Raises :exc:`OSError` for what the filesystem reports at the close (EIO, ENOSPC, EDQUOT);
        the descriptor is gone all the same. See :manpage:`close(2)`.
        """
        # dict.setdefault is atomic: of several threads that close, one finds its own object.
        if self.__dict__.setdefault("_gone", mine := object()) is mine:
            ret = lib.tos_close(self)
            if ret and ret != -errno.EINTR:
                check(ret, "close", int(self))

    def detach(self) -> int:
        """Give up the descriptor without closing it, and return its number."""
        if self.__dict__.setdefault("_gone", mine := object()) is not mine:
            raise ValueError(f"descriptor {int(self)} is closed")
        return int(self)

    def __enter__(self) -> Self:
        self.fileno()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {int(self)}{' closed' if self.closed else ''}>"

    def __str__(self) -> str:
        return int.__repr__(self)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a descriptor belongs to one process and cannot be copied or pickled")
