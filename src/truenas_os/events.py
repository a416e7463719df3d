# SPDX-License-Identifier: LGPL-3.0-or-later
"""Mount events as an async stream."""

from collections.abc import AsyncIterator
from types import TracebackType
from typing import Protocol, Self

import anyio

from ._threads import in_background, offload
from .blocking.arguments import FileDescriptorLike, StrOrBytesPath
from .blocking.events import MountEvent, MountPredicate
from .blocking.mounts import ALL_FIELDS
from .blocking.results import StatmountResult
from .blocking.trees import normal_path
from .blocking.watcher import MountWatcher, WakeupSource, WatchOptions
from .mounting import MountTree, mount_tree


class StopEvent(Protocol):
    """What ends watching once it is set: an event of anyio, asyncio or trio."""

    async def wait(self) -> object: ...


class MountWatch(AsyncIterator[tuple[MountEvent, ...]]):
    """The changes of mounts, in batches; see :func:`watch_mounts`."""

    def __init__(self, options: WatchOptions, stop_event: StopEvent | None) -> None:
        self._options = options
        self._stop_event = stop_event
        self._begun: tuple[MountWatcher, MountTree] | None = None
        self._closed = False
        # Set when the task that asks for the next batch is done.
        self._asking: anyio.Event | None = None

    @property
    def snapshot(self) -> MountTree:
        """The mounts at the moment from which on changes are reported.

        Raises :exc:`ValueError` before the watch has begun, with ``async with`` or its first batch.
        """
        return self._has_begun()[1]

    @property
    def wakeup_source(self) -> WakeupSource:
        """What makes it look: ``"fanotify"``, ``"mountinfo"`` or ``"poll"`` (the interval)."""
        return self._has_begun()[0].wakeup_source

    def _has_begun(self) -> tuple[MountWatcher, MountTree]:
        if self._begun is None:
            raise ValueError("this watch has not begun: use async with")
        return self._begun

    async def _begin(self) -> MountWatcher:
        if self._closed:
            raise ValueError("this watch is closed")
        if self._begun is None:
            begun = await offload(_begin, self._options, late=_end)
            if self._begun is not None or self._closed:  # another task was sooner
                await offload(_end, begun, certain=True)
                return await self._begin()
            self._begun = begun
        return self._begun[0]

    async def __aenter__(self) -> Self:
        await self._begin()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        # The watcher itself would close on the event loop, and that takes the kernel 10 ms.
        if (begun := getattr(self, "_begun", None)) is not None and not begun[0].closed:
            try:
                begun[0].warn_of_drop()
            finally:
                in_background(begun[0].close)

    async def aclose(self) -> None:
        """End the watch; another task that waits for its next batch gets StopAsyncIteration."""
        self._closed = True
        if self._asking is not None:
            # That task closes what it uses.
            if self._begun is not None:
                self._begun[0].interrupt()
            await self._asking.wait()
        else:
            await self._close()

    async def _close(self) -> None:
        if self._begun is not None and not self._begun[0].closed:
            await offload(self._begun[0].close, certain=True)

    async def __anext__(self) -> tuple[MountEvent, ...]:
        if self._closed:
            raise StopAsyncIteration
        if self._asking is not None:
            raise RuntimeError("another task is waiting for the next batch of this watch")
        done = self._asking = anyio.Event()
        try:
            batch = await self._next_batch(await self._begin())
            if batch is not None:
                return batch
            self._closed = True
        finally:
            try:
                if self._closed:
                    await self._close()
            finally:
                self._asking = None
                done.set()
        raise StopAsyncIteration

    async def _next_batch(self, watcher: MountWatcher) -> tuple[MountEvent, ...] | None:
        """The next batch; None at the end."""
        watcher.check_process()
        if self._stop_event is None:
            await self._look_for_news(watcher)
        else:
            error = None
            async with anyio.create_task_group() as group:
                group.start_soon(_cancel_when, self._stop_event, group.cancel_scope)
                try:
                    await self._look_for_news(watcher)
                except Exception as exception:  # not to be wrapped into a group
                    error = exception
                group.cancel_scope.cancel()
            if error is not None:
                raise error
        if self._closed:
            return None
        # Only now that nothing is awaited any more: whoever is cancelled has taken nothing.
        batch, watcher.ready = watcher.ready, ()
        return batch or None

    async def _look_for_news(self, watcher: MountWatcher) -> None:
        while not (watcher.ready or self._closed):
            await _look(watcher)


def _begin(options: WatchOptions) -> tuple[MountWatcher, MountTree]:
    watcher = MountWatcher(options)
    return watcher, MountTree(watcher.first)


def _end(begun: tuple[MountWatcher, MountTree]) -> None:
    begun[0].close()


async def _cancel_when(event: StopEvent, scope: anyio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


async def _look(watcher: MountWatcher) -> None:
    """Wait until it is time to look, and look. What a cancelled look has found stays found."""
    with anyio.move_on_after(watcher.seconds_to_next()):
        await anyio.wait_readable(watcher)
        await anyio.sleep(watcher.rest())
    await offload(watcher.poll)


def watch_mounts(
    *,
    interval: float | None = 1.0,
    wakeups: WakeupSource | None = None,
    mask: int = ALL_FIELDS,
    mount_filter: MountPredicate | None = None,
    debounce: float = 0.0,
    initial: bool = False,
    mnt_ns: FileDescriptorLike | None = None,
    stop_event: StopEvent | None = None,
) -> MountWatch:
    """The changes of mounts as they happen, in batches of :class:`MountEvent`.

    Iterate over it with ``async for``, best inside ``async with``. Applying all batches to
    ``snapshot`` gives the mount table as it is; what happens while nobody asks for the next batch
    comes in one, each mount once.

    Every *interval* seconds the whole table is looked at; None leaves that to the wake-ups.
    *wakeups*: what makes it look at once, ``"fanotify"`` (what is attached and detached, and by
    whom; Linux 6.15 and CAP_SYS_ADMIN; mountinfo wakes as well), ``"mountinfo"``, ``"poll"``
    (nothing does), or None for the best that this process may use; ``wakeup_source`` tells which.
    Some changes wake nothing and are seen at the interval: options and read-only state changed by
    fspick, propagation changed by mount(2), MOVE_MOUNT_SET_GROUP, renames of a directory above a
    mount point or of a bind mount's source. The environment variable ``TRUENAS_OS_FORCE_POLLING``
    makes None mean ``"poll"``.

    *mask*: which fields are wanted (``STATMOUNT_*``); changes of others are not seen.
    *mount_filter*: a :class:`MountFilter` or a function of a :class:`StatmountResult`, called on a
    worker thread; an event passes if the mount as it was or as it is does. *debounce*: seconds for
    which changes are gathered, from the first one on. *initial*: the first batch has the existing
    mounts, as ATTACHED. *mnt_ns*: the descriptor of another mount namespace; a look then asks about
    every mount. *stop_event*: ends the iteration once it is set.

    Raises :exc:`ValueError` for arguments that make no sense; :exc:`OSError`, when it begins, if
    what *wakeups* names is not to be had (EPERM, EINVAL), and as :func:`listmount`. A cancelled
    wait for a batch loses nothing. Linux 6.8.
    """
    options = WatchOptions(interval, wakeups, mask, mount_filter, debounce, initial, mnt_ns)
    return MountWatch(options.checked(), stop_event)


async def wait_for_mount(path: StrOrBytesPath, *, interval: float = 1.0) -> StatmountResult:
    """Wait until something is mounted at *path*, and return it; at once if it is.

    *path* is absolute, and that of the mount point itself; it need not exist yet. *interval* is as
    for :func:`watch_mounts`.
    """
    found = await _wait_for(path, True, interval)
    assert found is not None
    return found


async def wait_for_unmount(path: StrOrBytesPath, *, interval: float = 1.0) -> None:
    """Wait until nothing is mounted at *path*; return at once if nothing is.

    Arguments are those of :func:`wait_for_mount`.
    """
    await _wait_for(path, False, interval)


async def _wait_for(path: StrOrBytesPath, mounted: bool, interval: float) -> StatmountResult | None:
    point = normal_path(path)
    options = WatchOptions(interval, None, ALL_FIELDS, None, 0.0, False, None).checked()
    found = (await mount_tree()).at(point)
    if (found is not None) == mounted:
        return found
    watcher = await offload(MountWatcher, options, late=MountWatcher.close)
    try:
        while ((found := await offload(watcher.at, point)) is not None) != mounted:
            watcher.ready = ()
            await _look(watcher)
        return found
    finally:
        await offload(watcher.close, certain=True)
