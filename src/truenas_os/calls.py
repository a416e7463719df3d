# SPDX-License-Identifier: LGPL-3.0-or-later
"""The index of the async face: every blocking call, on a worker thread.

The signatures and the docstrings are those of :mod:`truenas_os.blocking`.
"""

import functools
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, Final, ParamSpec

from . import blocking
from ._threads import changing, in_thread
from .blocking.arguments import FileDescriptorLike
from .blocking.flags import LSMT_ROOT, STATMOUNT_MNT_BASIC, STATMOUNT_SB_BASIC
from .blocking.mounts import mount_batches
from .blocking.results import StatmountResult
from .fds import Fd
from .signatures import returns

P = ParamSpec("P")


def _opening(
    function: Callable[P, blocking.Fd],
    offloaded: Callable[..., Callable[P, Coroutine[Any, Any, blocking.Fd]]] = in_thread,
) -> Callable[P, Coroutine[Any, Any, Fd]]:
    open_late_closed = offloaded(function, late=blocking.Fd.close)

    @functools.wraps(function)
    async def call(*args: P.args, **kwargs: P.kwargs) -> Fd:
        return Fd(await open_late_closed(*args, **kwargs))

    returns(call, Fd)
    return call


listmount: Final = in_thread(blocking.listmount)
statmount: Final = in_thread(blocking.statmount)
mount_of: Final = in_thread(blocking.mount_of)
open_mount_by_id: Final = _opening(blocking.open_mount_by_id)
openat2: Final = _opening(blocking.openat2)
statx: Final = in_thread(blocking.statx)
renameat2: Final = changing(blocking.renameat2)
exchange: Final = changing(blocking.exchange)
rename_noreplace: Final = changing(blocking.rename_noreplace)
link_tmpfile: Final = changing(blocking.link_tmpfile)
atomic_replace: Final = changing(blocking.atomic_replace)
getxattr: Final = in_thread(blocking.getxattr)
listxattr: Final = in_thread(blocking.listxattr)
setxattr: Final = changing(blocking.setxattr)
removexattr: Final = changing(blocking.removexattr)
file_getattr: Final = in_thread(blocking.file_getattr)
file_setattr: Final = changing(blocking.file_setattr)
check_access: Final = in_thread(blocking.check_access)

fsopen: Final = _opening(blocking.fsopen)
fsconfig: Final = changing(blocking.fsconfig)
fscontext_messages: Final = in_thread(blocking.fscontext_messages)
fsmount: Final = _opening(blocking.fsmount)
fspick: Final = _opening(blocking.fspick)
open_tree: Final = _opening(blocking.open_tree)
open_tree_attr: Final = _opening(blocking.open_tree_attr, changing)
move_mount: Final = changing(blocking.move_mount)
mount_setattr: Final = changing(blocking.mount_setattr)
umount2: Final = changing(blocking.umount2)

umount: Final = changing(blocking.umount)
remount: Final = changing(blocking.remount)
set_attr: Final = changing(blocking.set_attr)
idmap_userns: Final = _opening(blocking.idmap_userns)


@in_thread
def _next_batch(
    batches: Iterator[list[StatmountResult]], *, mnt_ns: FileDescriptorLike | None
) -> list[StatmountResult]:
    # The descriptor is the batches' own argument; it stands here for what a cancellation must know.
    return next(batches, [])


class _MountIterator(AsyncIterator[StatmountResult]):
    # Not an async generator: there is nothing to clean up, so leaving the loop early is no mistake.
    def __init__(
        self, batches: Iterator[list[StatmountResult]], mnt_ns: FileDescriptorLike | None
    ) -> None:
        self._batches = batches
        self._mnt_ns = mnt_ns
        self._batch: Iterator[StatmountResult] = iter(())
        self._asking = False

    async def __anext__(self) -> StatmountResult:
        for mount in self._batch:
            return mount
        if self._asking:
            raise RuntimeError("another task is waiting for the next item of this iterator")
        self._asking = True
        try:
            self._batch = iter(await _next_batch(self._batches, mnt_ns=self._mnt_ns))
        except BaseException:
            # A worker may have taken a batch that nobody got: to go on would leave a gap.
            self._batches = iter(())
            raise
        finally:
            self._asking = False
        for mount in self._batch:
            return mount
        raise StopAsyncIteration


def iter_mount(
    mnt_id: int = LSMT_ROOT,
    last_mnt_id: int = 0,
    reverse: bool = False,
    statmount_flags: int = STATMOUNT_MNT_BASIC | STATMOUNT_SB_BASIC,
    *,
    mnt_ns: FileDescriptorLike | None = None,
) -> AsyncIterator[StatmountResult]:
    """The mounts that :func:`listmount` lists, each described as :func:`statmount` does.

    A mount that vanishes meanwhile is left out. A worker thread is asked once for every few hundred
    mounts. Raises what those two raise, when the iteration comes to it, and :exc:`RuntimeError` to
    a second task that asks for an item while the first still waits. A cancelled iteration is over.
    """
    batches = mount_batches(mnt_id, last_mnt_id, reverse, statmount_flags, mnt_ns=mnt_ns)
    return _MountIterator(batches, mnt_ns)
