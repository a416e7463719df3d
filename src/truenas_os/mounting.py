# SPDX-License-Identifier: LGPL-3.0-or-later
"""``async with`` for mounts and loop devices, and the mount table as a tree."""

import functools
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, ParamSpec, Protocol, TypeVar

from . import blocking
from ._threads import in_thread
from .blocking.arguments import FileDescriptorLike, StrOrBytesPath
from .blocking.flags import RESOLVE_NO_SYMLINKS
from .blocking.loop import LoopDevice
from .blocking.mounting import Mount
from .blocking.mounts import ALL_FIELDS
from .blocking.results import StatmountResult
from .blocking.trees import TreeOfMounts, mnt_id_of, snapshot
from .blocks import Block, Undoable
from .fds import Fd
from .signatures import returns

P = ParamSpec("P")
T = TypeVar("T")

_snapshot = in_thread(snapshot)
_mnt_id_of = in_thread(mnt_id_of)


class _Holding(Undoable[Any], Protocol):
    """A block that holds a descriptor, which it closes at its end."""

    fd: blocking.Fd | None


class _HoldingBlock(Block[T]):
    """A block that yields what the synchronous one does, but with the async Fd."""

    def __init__(self, block: _Holding) -> None:
        super().__init__(block)
        self._holding = block

    async def __aenter__(self) -> T:
        held: Any = await super().__aenter__()
        self._holding.fd = fd = Fd(held.fd.detach())
        yielded: T = held._replace(fd=fd)
        return yielded


def _in_block(
    function: Callable[P, _Holding], yields: type[T]
) -> Callable[P, AbstractAsyncContextManager[T]]:
    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> AbstractAsyncContextManager[T]:
        return _HoldingBlock(function(*args, **kwargs))

    returns(call, AbstractAsyncContextManager[yields])  # type: ignore[valid-type]
    return call


mounted: Final = _in_block(blocking.mounted, Mount[Fd])
bind: Final = _in_block(blocking.bind, Mount[Fd])
overlay: Final = _in_block(blocking.overlay, Mount[Fd])
loop_device: Final = _in_block(blocking.loop_device, LoopDevice[Fd])


class MountTree(TreeOfMounts):
    """The mounts of a mount namespace, as :func:`mount_tree` returns them."""

    async def containing(
        self,
        path_or_fd: StrOrBytesPath | FileDescriptorLike,
        *,
        resolve: int = RESOLVE_NO_SYMLINKS,
    ) -> StatmountResult | None:
        """The mount that holds a path or an open descriptor; None if the tree does not have it.

        The path is looked up now; *resolve* is as for :func:`mount_of`. Raises :exc:`OSError` as
        :func:`openat2` does.
        """
        return self.get(await _mnt_id_of(path_or_fd, resolve))


async def mount_tree(
    *, mask: int = ALL_FIELDS, mnt_ns: FileDescriptorLike | None = None
) -> MountTree:
    """All mounts that this process can see, as they are at one moment.

    *mask* says which fields of each are wanted (``STATMOUNT_*``); those that make the tree are
    always there. *mnt_ns* is the descriptor of a mount namespace other than one's own. The table is
    read until no mount has come, gone or moved meanwhile, 16 times at most: where mounts change
    without a pause, what is returned was not all seen at one moment.

    Raises :exc:`OSError` as :func:`listmount` does. Linux 6.8; *mnt_ns* 6.11.
    """
    return MountTree(await _snapshot(mask, mnt_ns))
