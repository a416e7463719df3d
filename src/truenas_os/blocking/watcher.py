# SPDX-License-Identifier: LGPL-3.0-or-later
"""Watching the mounts of a mount namespace."""

import contextlib
import errno
import fcntl
import os
import select
import threading
import time
import warnings
from collections.abc import Iterator
from types import TracebackType
from typing import Final, Literal, NamedTuple, Protocol, Self, TypeAlias

from .._native import lib
from .arguments import FileDescriptorLike, StrOrBytesPath, fileno
from .errors import check
from .events import MountChanges, MountEvent, MountPredicate, parsed
from .fds import Fd
from .files import openat2
from .flags import AT_FDCWD, MS_PRIVATE, STATMOUNT_MNT_BASIC, STATMOUNT_MNT_POINT
from .mounts import ALL_FIELDS, iter_mount, listmount, statmounts
from .results import StatmountResult
from .trees import MountTree, TreeOfMounts, mount_tree, normal_path, snapshot

WakeupSource: TypeAlias = Literal["fanotify", "mountinfo", "poll"]

_SOURCES: Final = ("fanotify", "mountinfo", "poll")
# For systems on which wake-ups misbehave.
_FORCE_POLLING = "TRUENAS_OS_FORCE_POLLING"
_NEEDED = STATMOUNT_MNT_BASIC | STATMOUNT_MNT_POINT
# In a storm, looking at what came and went takes a tenth of the time: the rest, changes gather.
# What is not used for looking is saved up, so that changes that come one by one are seen at once.
_SHARE = 0.1
_SAVED = 0.01
# What it takes in seconds, besides the look itself, to come to look.
_OVERHEAD = 0.0004
# After a look at the whole table, the next one that a wake-up asks for waits so many times as long.
_REST = 19
_MOUNTINFO = "/proc/self/mountinfo"
# So often the table is read until nothing has changed meanwhile.
_TRIES = 16
_READ = 1 << 20
# What fanotify_init(2) and fanotify_mark(2) say where they are not to be had.
_NOT_TO_BE_HAD = (errno.EPERM, errno.EINVAL, errno.ENOSYS, errno.ENOENT, errno.EACCES)
# A stop_event has no descriptor to wait for; so often, in seconds, it is asked.
_ASK = 0.05
# The longest that poll(2) is asked to wait, in seconds: it counts milliseconds in an int.
_LONGEST = 1e6


class WatchOptions(NamedTuple):
    """How mounts are watched: the arguments of :func:`watch_mounts`."""

    interval: float | None
    wakeups: WakeupSource | None
    mask: int
    mount_filter: MountPredicate | None
    debounce: float
    initial: bool
    mnt_ns: FileDescriptorLike | None

    def checked(self) -> Self:
        """Raises :exc:`ValueError` for what makes no sense."""
        if self.wakeups is not None and self.wakeups not in _SOURCES:
            raise ValueError(f"wakeups must be None or one of {_SOURCES}, not {self.wakeups!r}")
        if self.interval is None and self.wakeups == "poll":
            raise ValueError("without an interval and without wake-ups, nothing would be seen")
        if self.interval is not None and not self.interval > 0:
            raise ValueError(f"interval must be positive, not {self.interval}")
        if not 0 <= self.mask < 1 << 64:
            raise ValueError(f"mask must be made of STATMOUNT_*, not {self.mask}")
        if not self.debounce >= 0:
            raise ValueError(f"debounce must not be negative, but is {self.debounce}")
        if self.wakeups == "mountinfo" and self.mnt_ns is not None:
            raise ValueError("mountinfo tells nothing of another mount namespace")
        return self


class MountWatcher:
    """Looks at the mounts when something may have happened, and knows when that is.

    The truth is in the whole table, the list of ids and mountinfo: two reads, compared with the two
    before; only what differs is asked about. A wake-up makes the next look come at once. The mounts
    that came and went are looked at first and alone, if that cannot have touched others.
    """

    def __init__(self, options: WatchOptions) -> None:
        self._options = options
        wanted = getattr(options.mount_filter, "mask", 0)
        self._mask = int(options.mask | _NEEDED | wanted)
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._fds = contextlib.ExitStack()
        self.closed: bool = False
        # Held while the descriptor that interrupts is used or closed, for a moment; a signal's
        # handler may come in between.
        self._closing = threading.RLock()
        # What is there to be fetched.
        self.ready: tuple[MountEvent, ...] = ()
        self._fanotify: Fd | None = None
        self._mountinfo: Fd | None = None
        # What the whole table was when it was last looked at.
        self._ids: list[int] | None = None
        self._lines: bytes | None = None
        # When to look at it again: at the tick, and after a rest if a wake-up asks for it.
        self._tick = 0.0
        self._due = False
        self._all_rested = 0.0
        # Events were lost: only the whole table tells what is true.
        self._lost = False
        # The mounts that fanotify has just said are gone; those found gone of which it has yet to.
        self._ended: set[int] = set()
        self._unheard: set[int] = set()
        # The time that may be spent on looking, in seconds, and when that was reckoned.
        self._credit = _SAVED
        self._reckoned = time.monotonic()
        # Since when changes have been gathered.
        self._since: float | None = None
        try:
            given = options.mnt_ns
            self._mnt_ns = None if given is None else self._duplicate(fileno(given))
            self._epoll = self._fds.enter_context(select.epoll())
            interruption = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._interruption = self._fds.enter_context(Fd(interruption))
            self._epoll.register(self._interruption, select.EPOLLIN)
            self.wakeup_source: WakeupSource = self._open()
            self.first: list[StatmountResult] = self._first_look()
            self._changes = MountChanges(self.first)
            if options.initial:
                self.ready = self._changes.initial(options.mount_filter)
            # What has been attached since is news; what came and went may have done so before.
            if not self._look_at(self._woken(), transients=False):
                self._due = True
        except BaseException:
            self._fds.close()
            self.closed = True
            raise

    def __del__(self) -> None:
        if not getattr(self, "closed", True):
            try:
                self.warn_of_drop()
            finally:
                self._fds.close()

    def warn_of_drop(self) -> None:
        """Say that nobody has closed it."""
        if self.is_ours:
            message = "watching mounts was not ended by close() or a with block"
            warnings.warn(message, ResourceWarning, stacklevel=1, source=self)

    def fileno(self) -> int:
        """A descriptor that is readable when it is time to look."""
        return self._epoll.fileno()

    def seconds_to_next(self) -> float | None:
        """Until when nobody needs to look, if the descriptor does not become readable."""
        if self._lost:
            return 0.0
        if self._lock.locked():
            return 0.0  # a cancelled look is still under way: what it finds must not be waited for
        times = [
            *([self._tick] if self._options.interval is not None else ()),
            # The look at everything waits until what was gathered is taken.
            *([self._all_rested] if self._due and self._since is None else ()),
            *([self._since + self._options.debounce] if self._since is not None else ()),
        ]
        return max(0.0, min(times) - time.monotonic()) if times else None

    def wait(self, *limits: float | None) -> None:
        """Wait until it is time to look, or for so many seconds, in poll(2), as signals want it."""
        times = [t for t in (self.seconds_to_next(), *limits, _LONGEST) if t is not None]
        waiting = select.poll()
        waiting.register(self, select.POLLIN)
        # Rounded up, or the last millisecond would be spent looking.
        if waiting.poll(1 + 1000 * min(times)):
            time.sleep(self.rest())

    def rest(self) -> float:
        """The seconds for which to let changes gather before looking."""
        if self.closed:
            return 0.0
        return max(0.0, self._reckoned - self._credit / _SHARE - time.monotonic())

    def interrupt(self) -> None:
        """From any thread: let whoever waits go on."""
        if self.is_ours:
            with self._closing:
                if not self.closed:
                    os.eventfd_write(self._interruption, 1)

    def poll(self) -> None:
        """Look at whatever may have changed; what there is to tell is then in ``ready``."""
        with self._lock:
            if self.closed or self.ready:
                return
            self.check_process()
            try:
                self._look()
            except BaseException:
                self._lost = True  # what woke is no longer there to be read
                raise
            if not self._changes:
                self._changes.forget_actors()  # of what was told already
                return
            now = time.monotonic()
            if self._since is None:
                self._since = now
            if now - self._since >= self._options.debounce:
                self.ready = self._changes.take(self._options.mount_filter)
                self._since = None  # not before, as the filter may raise

    def at(self, point: str) -> StatmountResult | None:
        """The mount that is on top at a mount point, as far as is known."""
        with self._lock:
            return TreeOfMounts(self._changes.mounts.values()).at(point)

    def close(self) -> None:
        # A forked child closes its copies. A thread that it does not have may hold the locks.
        with self._lock if self.is_ours else contextlib.nullcontext():
            with self._closing if self.is_ours else contextlib.nullcontext():
                self.closed = True
                self._fds.close()

    @property
    def is_ours(self) -> bool:
        """Whether this is the process that began it, and not its forked child."""
        return self._pid == os.getpid()

    def check_process(self) -> None:
        """Raises :exc:`RuntimeError` in a forked child."""
        if not self.is_ours:
            raise RuntimeError("mounts are watched by the process that began it, not by its child")

    # What wakes.

    def _duplicate(self, fd: int) -> Fd:
        # The caller's may be closed at any time.
        return self._fds.enter_context(Fd(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)))

    def _open(self) -> WakeupSource:
        wanted = self._options.wakeups
        if wanted is None and os.environ.get(_FORCE_POLLING):
            wanted = "poll"
        if wanted in (None, "fanotify"):
            try:
                self._open_fanotify()
            except OSError as error:
                if wanted is not None or error.errno not in _NOT_TO_BE_HAD:
                    raise
        if wanted != "poll" and self._mnt_ns is None:  # there is none by descriptor
            try:
                self._open_mountinfo()
            except FileNotFoundError:
                if wanted == "mountinfo":
                    raise
        if self._fanotify is not None:
            return "fanotify"
        if self._mountinfo is not None:
            return "mountinfo"
        if self._options.interval is None:
            raise ValueError(
                "there is no interval, and no wake-up to be had: nothing would be seen"
            )
        return "poll"

    def _open_fanotify(self) -> None:
        notes = ("mount events need Linux 6.15 and CAP_SYS_ADMIN",)
        with contextlib.ExitStack() as opened:
            while (group := lib.tos_mount_events_open()) < 0:
                check(group, "fanotify_init", notes=notes)
            fd = opened.enter_context(Fd(group))
            with openat2(AT_FDCWD, "/proc/self/ns/mnt", os.O_RDONLY) as own:
                namespace = own if self._mnt_ns is None else self._mnt_ns
                while (ret := lib.tos_mount_events_mark(fd, namespace)) < 0:
                    check(ret, "fanotify_mark", notes=notes)
            self._epoll.register(fd, select.EPOLLIN)
            self._fds.push(opened.pop_all())
        self._fanotify = fd

    def _open_mountinfo(self) -> None:
        self._mountinfo = self._fds.enter_context(openat2(AT_FDCWD, _MOUNTINFO, os.O_RDONLY))
        # It is always readable: what it has to tell are the edges.
        self._epoll.register(self._mountinfo, select.EPOLLIN | select.EPOLLET)

    def _woken(self) -> set[int]:
        """The ids of the mounts that wake-ups are about."""
        self._ended.clear()
        fds = {fd for fd, _ in self._epoll.poll(0)}
        mentioned = set()
        if self._mountinfo is not None and self._mountinfo in fds:
            self._due = True
            if self._fanotify is None:
                mentioned = self._changes.mounts.keys() ^ set(listmount())
        if self._fanotify is not None and self._fanotify in fds:
            mentioned |= self._read_events(self._fanotify)
        return mentioned

    def _read_events(self, group: Fd) -> set[int]:
        mentioned = set()
        with contextlib.suppress(BlockingIOError):
            while True:
                events, overflow = parsed(os.read(group, _READ))
                for mnt_id, pid, ended in events:
                    mentioned.add(mnt_id)
                    if ended:
                        self._ended.add(mnt_id)
                    self._changes.acted(mnt_id, pid)
                if overflow:
                    self._changes.lost()
                    self._lost = True
                    self._unheard.clear()
        return mentioned

    # What is looked at.

    def _first_look(self) -> list[StatmountResult]:
        if (lines := self._read_mountinfo()) is None:
            return snapshot(self._mask, self._mnt_ns)
        for _ in range(_TRIES):
            before = lines
            mounts = list(iter_mount(statmount_flags=self._mask))
            ids, lines = listmount(), self._read_mountinfo()
            if lines == before and ids == [mount.mnt_id for mount in mounts]:
                self._ids, self._lines = ids, lines
                break
        return mounts

    def _look(self) -> None:
        began = time.monotonic()
        mentioned = self._woken()
        enough = self._look_at(mentioned, transients=True)
        now = time.monotonic()
        if mentioned:
            saved = self._credit + _SHARE * (now - self._reckoned)
            self._credit = min(saved, _SAVED) - (now - began) - _OVERHEAD
            self._reckoned = now
        tick = self._options.interval is not None and now >= self._tick
        due = self._due and now >= self._all_rested and not self._changes
        if tick or due or not enough or self._lost:
            self._look_at_all()

    def _look_at(self, mentioned: set[int], *, transients: bool) -> bool:
        """Look at these mounts alone; False if others may have changed with them."""
        if not mentioned:
            return True
        known = self._changes.mounts
        found: dict[int, StatmountResult] = {}
        for mount in statmounts(sorted(mentioned), self._mask, mnt_ns=self._mnt_ns):
            mnt_id = mount.mnt_id or 0
            if mount.mnt_point is not None:
                found[mnt_id] = mount
            elif mnt_id not in known:  # not below this process's root
                mentioned.discard(mnt_id)
        alone = True
        for mnt_id in mentioned:
            old, new = known.get(mnt_id), found.get(mnt_id)
            if old is None and new is None:
                # Attached and gone already, it is told of when fanotify says that it is gone.
                if transients and mnt_id in self._ended and mnt_id not in self._unheard:
                    self._changes.came_and_went(mnt_id)
            elif new is None:
                # With a peer group goes what others are told of it.
                alone &= old is not None and old.mnt_propagation == MS_PRIVATE
            elif old is None:
                # Put beneath another mount, it has become that one's parent.
                alone &= not self._changes.has_in_place_of(new)
            else:
                alone &= old == new
        self._unheard -= self._ended
        if alone:
            for mnt_id in mentioned:
                if mnt_id in found:
                    self._changes.is_there(found[mnt_id])
                else:
                    self._is_gone(mnt_id)
            self._ids = None
        return alone

    def _is_gone(self, mnt_id: int) -> None:
        known = mnt_id in self._changes.mounts
        if known and self._fanotify is not None and not self._lost and mnt_id not in self._ended:
            self._unheard.add(mnt_id)
        self._changes.is_gone(mnt_id)

    def _look_at_all(self) -> None:
        began = time.monotonic()
        self._due = False
        ids = listmount(mnt_ns=self._mnt_ns)
        known = self._changes.mounts
        if (lines := self._read_mountinfo()) is None:
            asked = set(ids)
        elif ids == self._ids and lines == self._lines:
            asked = set()
        else:
            differing = _old_ids(lines, self._lines)
            asked = set(ids) - known.keys()
            asked |= {i for i, mount in known.items() if mount.mnt_id_old in differing}
        gone = (known.keys() - set(ids)) | asked
        for mount in statmounts(sorted(asked), self._mask, mnt_ns=self._mnt_ns):
            self._changes.is_there(mount)
            gone.discard(mount.mnt_id or 0)
        for mnt_id in gone:
            self._is_gone(mnt_id)
        self._lost = False
        self._ids, self._lines = ids, lines
        now = time.monotonic()
        self._all_rested = now + _REST * (now - began)
        self._tick = now + (self._options.interval or 0.0)

    def _read_mountinfo(self) -> bytes | None:
        """All of it; None where there is none: all mounts must be asked about every time."""
        if self._mnt_ns is not None:
            return None  # there is none by descriptor
        try:
            # Opened again, as its paths begin at what was the root then: it may be another one now.
            with openat2(AT_FDCWD, _MOUNTINFO, os.O_RDONLY) as mountinfo:
                return b"".join(iter(lambda: os.read(mountinfo, _READ), b""))
        except FileNotFoundError:
            return None


def _old_ids(lines: bytes, before: bytes | None) -> set[int]:
    """The ids, as mountinfo has them, of the lines that are new or differ."""
    # Not splitlines(): a carriage return in a name is no end of a line.
    differing = set(lines.split(b"\n")).difference((before or b"").split(b"\n"))
    return {int(line.split(b" ", 1)[0]) for line in differing if line}


class StopEvent(Protocol):
    """What ends watching once it is set: a :class:`threading.Event`."""

    def is_set(self) -> bool: ...


class MountWatch(Iterator[tuple[MountEvent, ...]]):
    """The changes of mounts, in batches; see :func:`watch_mounts`."""

    def __init__(
        self, options: WatchOptions, stop_event: StopEvent | None, timeout: float | None
    ) -> None:
        self._options = options
        self._stop_event = stop_event
        self._timeout = timeout
        self._watcher: MountWatcher | None = None
        self._closed = False
        # Held by the thread that asks for the next batch.
        self._waiting = threading.Lock()
        self._asking: int | None = None

    @property
    def snapshot(self) -> MountTree:
        """The mounts at the moment from which on changes are reported."""
        return MountTree(self._begun().first)

    @property
    def wakeup_source(self) -> WakeupSource:
        """What makes it look: ``"fanotify"``, ``"mountinfo"`` or ``"poll"`` (the interval)."""
        return self._begun().wakeup_source

    def _begun(self) -> MountWatcher:
        if self._closed:
            raise ValueError("this watch is closed")
        if self._watcher is None:
            self._watcher = MountWatcher(self._options)
        return self._watcher

    def __enter__(self) -> Self:
        self._begun()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the watch; another thread that waits for its next batch gets StopIteration."""
        self._closed = True
        if self._watcher is not None and not self._watcher.closed:
            self._watcher.interrupt()
            if self._asking == threading.get_ident():
                return  # from a signal handler or a filter: what it interrupts will close
            with self._waiting if self._watcher.is_ours else contextlib.nullcontext():
                self._watcher.close()

    def __next__(self) -> tuple[MountEvent, ...]:
        if self._closed:
            raise StopIteration
        if not self._waiting.acquire(blocking=False):
            raise RuntimeError("another thread is waiting for the next batch of this watch")
        try:
            self._asking = threading.get_ident()
            batch = self._next_batch(self._begun())
            if batch is None:
                self._closed = True
        finally:
            self._asking = None
            self._waiting.release()
            if self._closed:
                self.close()
        if batch is None:
            raise StopIteration
        return batch

    def _next_batch(self, watcher: MountWatcher) -> tuple[MountEvent, ...] | None:
        watcher.check_process()
        deadline = None if self._timeout is None else time.monotonic() + self._timeout
        while not self._closed and not (self._stop_event and self._stop_event.is_set()):
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not watcher.ready:
                watcher.wait(left, None if self._stop_event is None else _ASK)
                watcher.poll()
            if watcher.ready or left == 0.0:
                batch, watcher.ready = watcher.ready, ()
                return batch
        return None


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
    timeout: float | None = None,
) -> MountWatch:
    """The changes of mounts as they happen, in batches of :class:`MountEvent`.

    Iterate over it, best inside ``with``. Applying all batches to ``snapshot`` gives the mount
    table as it is; what happens while nobody asks for the next batch comes in one, each mount once.

    Every *interval* seconds the whole table is looked at; None leaves that to the wake-ups.
    *wakeups*: what makes it look at once, ``"fanotify"`` (what is attached and detached, and by
    whom; Linux 6.15 and CAP_SYS_ADMIN; mountinfo wakes as well), ``"mountinfo"``, ``"poll"``
    (nothing does), or None for the best that this process may use; ``wakeup_source`` tells which.
    Some changes wake nothing and are seen at the interval: options and read-only state changed by
    fspick, propagation changed by mount(2), MOVE_MOUNT_SET_GROUP, renames of a directory above a
    mount point or of a bind mount's source. The environment variable ``TRUENAS_OS_FORCE_POLLING``
    makes None mean ``"poll"``.

    *mask*: which fields are wanted (``STATMOUNT_*``); changes of others are not seen.
    *mount_filter*: a :class:`MountFilter` or a function of a :class:`StatmountResult`; an event
    passes if the mount as it was or as it is does. *debounce*: seconds for which changes are
    gathered, from the first one on. *initial*: the first batch has the existing mounts, as
    ATTACHED. *mnt_ns*: the descriptor of another mount namespace; a look then asks about every
    mount. *stop_event*: ends the iteration once it is set. *timeout*: seconds without a change
    after which an empty batch comes.

    Raises :exc:`ValueError` for arguments that make no sense; :exc:`OSError`, when it begins, if
    what *wakeups* names is not to be had (EPERM, EINVAL), and as :func:`listmount`. Linux 6.8.
    """
    options = WatchOptions(interval, wakeups, mask, mount_filter, debounce, initial, mnt_ns)
    return MountWatch(options.checked(), stop_event, timeout)


def wait_for_mount(
    path: StrOrBytesPath, *, interval: float = 1.0, timeout: float | None = None
) -> StatmountResult:
    """Wait until something is mounted at *path*, and return it; at once if it is.

    *path* is absolute, and that of the mount point itself; it need not exist yet. *interval* is as
    for :func:`watch_mounts`. Raises :exc:`TimeoutError` (ETIMEDOUT) after *timeout* seconds.
    """
    found = _wait_for(path, True, interval, timeout)
    assert found is not None
    return found


def wait_for_unmount(
    path: StrOrBytesPath, *, interval: float = 1.0, timeout: float | None = None
) -> None:
    """Wait until nothing is mounted at *path*; return at once if nothing is.

    Arguments and errors are those of :func:`wait_for_mount`.
    """
    _wait_for(path, False, interval, timeout)


def _wait_for(
    path: StrOrBytesPath, mounted: bool, interval: float, timeout: float | None
) -> StatmountResult | None:
    point = normal_path(path)
    options = WatchOptions(interval, None, ALL_FIELDS, None, 0.0, False, None).checked()
    found = mount_tree().at(point)
    if (found is not None) == mounted:
        return found
    deadline = None if timeout is None else time.monotonic() + timeout
    with contextlib.closing(MountWatcher(options)) as watcher:
        while ((found := watcher.at(point)) is not None) != mounted:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT), point)
            watcher.wait(left)
            watcher.poll()
            watcher.ready = ()
        return found
