# SPDX-License-Identifier: LGPL-3.0-or-later
"""Worker threads: the one place where a blocking call leaves the event loop.

A process has one pool of warm daemon threads. An event loop has one :class:`_Portal`: the queue
of its calls, its limit, and the calls that are finished and on their way back. A worker drains the
queue of one portal at a time; what it finishes is delivered in one wake-up of the loop, however
many calls have come together.

Two workers serve a portal while its calls return quickly. A supervisor, which sleeps while no queue
has anything in it, looks for calls that do not: one that has been running for ``SLOW`` seconds is
no longer counted on, so another worker takes over the queue; one that has been running for
``STUCK`` seconds no longer counts against the portal's limit either. So a server that does not
answer holds its own workers and nobody else's, up to ``CEILING`` threads in the process.

A call is in one of four states, changed under its portal's lock. Whichever side comes late, the
worker with a result or the task that was cancelled, finds the call GONE or DONE and sees to it that
the result is disposed of, always on a worker: closing a descriptor can hang.
"""

import asyncio
import contextlib
import errno
import functools
import inspect
import os
import sys
import threading
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context, copy_context
from queue import Empty, SimpleQueue
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Generic, ParamSpec, TypeVar

import anyio
import anyio.lowlevel

from .blocking.flags import AT_FDCWD

if TYPE_CHECKING:
    import trio

P = ParamSpec("P")
T = TypeVar("T")

DEFAULT_LIMIT: Final = 64
CEILING: Final = 512
SLOW: Final = 0.005
STUCK: Final = 0.1

# Seconds for which a cancelled call is waited for. One that uses its caller's descriptor is then
# surely inside the kernel with a reference of its own to the file; one that changes something has
# most likely done so.
GRACE_FD: Final = 0.1
GRACE_CHANGE: Final = 5.0

_WARM = 2
# While calls queue up, finished ones may be held back for so long, in seconds, to be delivered
# together.
_GATHER = 0.0005
_KEPT_IDLE = 16

_QUEUED, _RUNNING, _DONE, _GONE = range(4)


class _Call(Generic[T]):
    """One call on its way through a worker."""

    __slots__ = (
        "args",
        "certain",
        "context",
        "error",
        "function",
        "kwargs",
        "late",
        "result",
        "state",
        "waiter",
    )

    result: T

    def __init__(
        self,
        function: Callable[..., T],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        late: Callable[[T], object] | None = None,
        certain: bool = False,
    ) -> None:
        self.function = function
        self.args = args
        self.kwargs = kwargs
        # Undoes a result that nobody is left to receive.
        self.late = late
        # To be made even if nobody waits for it any more.
        self.certain = certain
        self.context: Context = copy_context()
        self.waiter: Any = None
        self.error: BaseException | None = None
        self.state = _QUEUED

    def run(self) -> None:
        try:
            self.result = self.context.run(self.function, *self.args, **self.kwargs)
        except BaseException as error:
            self.error = error

    def dispose(self) -> None:
        if self.late is not None and self.error is None:
            with contextlib.suppress(Exception):  # nobody is left to be told of that either
                self.late(self.result)


class _Worker(threading.Thread):
    """A warm thread: serves one portal until its queue is empty, then waits for the next."""

    def __init__(self, pool: "_Pool") -> None:
        super().__init__(name="truenas_os worker", daemon=True)
        self.pool = pool
        self.gate = threading.Lock()
        self.gate.acquire()
        self.portal: _Portal | None = None
        # When the current call began, and what the supervisor found about it.
        self.since: float | None = None
        self.slow = False
        self.stuck = False

    def serve(self, portal: "_Portal") -> None:
        self.portal = portal
        self.gate.release()

    def run(self) -> None:
        while True:
            self.gate.acquire()
            portal, self.portal = self.portal, None
            assert portal is not None
            call = portal.exchange(self, None)
            while call is not None:
                call.run()
                call = portal.exchange(self, call)
            portal = None
            if not self.pool.keep(self):
                return


class _Pool:
    """The process's threads: workers, and the supervisor of the portals whose queues wait."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.size = 0
        self.idle: list[_Worker] = []
        # Portals to watch, and functions to call. A SimpleQueue can be put to from anywhere, even
        # from a finalizer that runs while this very thread holds a lock.
        self.inbox: SimpleQueue[_Portal | Callable[[], object]] = SimpleQueue()
        self.supervisor: threading.Thread | None = None

    def worker(self) -> _Worker | None:
        """An idle worker or a new one; None if there can be no more."""
        try:
            return self.idle.pop()
        except IndexError:
            pass
        with self.lock:
            if self.size >= CEILING:
                return None
            try:
                if self.supervisor is None:
                    supervisor = threading.Thread(
                        target=self._supervise, name="truenas_os supervisor", daemon=True
                    )
                    supervisor.start()
                    self.supervisor = supervisor
                worker = _Worker(self)
                worker.start()
            except RuntimeError:  # what threading raises where the system has no more threads
                return None
            self.size += 1
            return worker

    def keep(self, worker: _Worker) -> bool:
        """Whether a worker without work is to stay; it then is in the list of idle ones."""
        if len(self.idle) < _KEPT_IDLE:
            self.idle.append(worker)
            return True
        with self.lock:
            self.size -= 1
        return False

    def _supervise(self) -> None:
        watched: set[_Portal] = set()
        while True:
            try:
                message = self.inbox.get(timeout=SLOW) if watched else self.inbox.get()
                if isinstance(message, _Portal):
                    watched.add(message)
                else:
                    _call_elsewhere(message)
                del message
            except Empty:
                pass
            watched = {portal for portal in watched if portal.supervise()}


class _Portal:
    """An event loop's calls: those that wait, those that run, those that are finished."""

    def __init__(self, loop: object) -> None:
        self.loop: weakref.ref[Any] = weakref.ref(loop)
        self.pid = os.getpid()
        # Reentrant, as the pool's: a signal handler or a finalizer may submit a call.
        self.lock = threading.RLock()
        self.limit = DEFAULT_LIMIT
        self.queue: deque[_Call[Any]] = deque()
        self.done: deque[_Call[Any]] = deque()
        self.waking = False
        self.woken = 0.0
        self.watched = False
        self.workers: set[_Worker] = set()
        # Of those workers: not in a slow call; not in a stuck one.
        self.quick = 0
        self.running = 0
        # Workers that were sent and have not arrived, and when the last one was.
        self.coming = 0
        self.sent = 0.0
        # Since when there has been neither a worker here nor one to be had.
        self.deserted: float | None = None

    # What depends on the kind of event loop.

    def set_waiter(self, call: _Call[Any]) -> None:
        """Make ``call.waiter`` what :meth:`release` takes to let the current task go on."""
        raise NotImplementedError

    def wait(self, call: _Call[Any]) -> Awaitable[object]:
        """What the current task is to await, once it is the call's waiter."""
        raise NotImplementedError

    def wake(self) -> None:
        """From any thread: have the loop call :meth:`deliver`. RuntimeError if it is closed."""
        raise NotImplementedError

    def release(self, waiter: Any) -> None:
        """On the loop: let the task go on."""
        raise NotImplementedError

    def is_closed(self) -> bool:
        """Whether the loop can run no more, though tasks may still wait."""
        raise NotImplementedError

    # On the loop.

    def submit(self, call: _Call[Any]) -> None:
        with self.lock:
            self.queue.append(call)
            coming = self.coming
            wanted = self.quick + coming < _WARM and self.running + coming < self.limit
            if wanted:
                self.coming += 1
            else:
                self._watch()
        if wanted:
            self._send_worker()

    def deliver(self) -> None:
        with self.lock:
            done, self.done = self.done, deque()
            self.waking = False
        try:
            while done:
                waiter = done.popleft().waiter
                if waiter is not None:
                    self.release(waiter)
        except BaseException:  # a signal's handler raised it
            with self.lock:
                self.done.extendleft(reversed(done))
                self._watch()
            raise

    def withdraw(self, call: _Call[Any]) -> bool:
        """Take back a call that has not begun; False if it has, or must be made."""
        with self.lock:
            if call.state != _QUEUED or call.certain:
                return False
            call.state = _GONE
            return True

    def wait_again(self, call: _Call[Any]) -> bool:
        """Make the current task the waiter again; False if there is nothing to wait for."""
        with self.lock:
            pending = call.state in (_QUEUED, _RUNNING)
            if pending:
                self.set_waiter(call)
            return pending

    def abandon(self, call: _Call[Any]) -> _Call[Any] | None:
        """Nobody waits for *call* any more. The result is the call that undoes it, if any."""
        with self.lock:
            call.waiter = None
            finished = call.state == _DONE
            if not (call.certain and call.state == _QUEUED):
                call.state = _GONE
        if not finished or call.late is None or call.error is not None:
            return None
        undoing = _Call(call.dispose, (), {}, certain=True)
        self.submit(undoing)
        return undoing

    # On any thread.

    def _watch(self) -> None:
        if not self.watched:
            self.watched = True
            _pool.inbox.put(self)

    def _send_worker(self) -> bool:
        """Send the worker that is counted as coming; False if there is none to be had."""
        worker = _pool.worker()
        if worker is not None:
            self.sent = monotonic()
            worker.serve(self)
            return True
        with self.lock:
            self.coming -= 1
            if _pool.supervisor is None:
                self._refuse()
            else:
                self._watch()
            wake = self._to_be_woken(None)
        if wake:
            self._wake_or_drop()
        return False

    def _refuse(self) -> None:
        note = (
            f"no thread is free for the call: the process has {_pool.size} of at most {CEILING}, "
            "all busy with calls that do not return, or the system gives no more"
        )
        for call in self.queue:
            if call.state == _QUEUED and not call.certain:
                call.error = OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
                call.error.add_note(note)
                call.state = _DONE
                self.done.append(call)
        self.queue = deque(call for call in self.queue if call.state == _QUEUED)

    def _wake_or_drop(self) -> None:
        try:
            self.wake()
        except RuntimeError:
            # The loop is closed: no task is left to receive anything.
            self.drop()

    def drop(self) -> None:
        """Dispose of what a loop that is closed will not deliver."""
        with self.lock:
            done, self.done = self.done, deque()
            self.waking = False
        for call in done:
            self.abandon(call)

    # On a worker.

    def exchange(self, worker: _Worker, finished: _Call[Any] | None) -> _Call[Any] | None:
        """Hand in a finished call and take the next; None, and the worker is free, without one."""
        wake = False
        while True:
            with self.lock:
                if finished is None or finished.state != _GONE:
                    if finished is not None:
                        finished.state = _DONE
                        if finished.waiter is not None:
                            self.done.append(finished)
                    call = self._take(worker)
                    wake = self._to_be_woken(worker.since)
                    break
            finished.dispose()
            finished = None
        if wake:
            self._wake_or_drop()
        return call

    def _to_be_woken(self, now: float | None) -> bool:
        """Whether finished calls are to be delivered, at the time *now* at which another begins."""
        if not self.done or (self.waking and not self.is_closed()):
            return False
        # While more wait, and the supervisor sees to it that it does not last, one wake-up may
        # serve many.
        if now is not None and self.queue and self.watched and now - self.woken < _GATHER:
            return False
        self.waking = True
        self.woken = now or 0.0
        return True

    def _take(self, worker: _Worker) -> _Call[Any] | None:
        if worker not in self.workers:
            self.workers.add(worker)
            self.coming = max(0, self.coming - 1)
            self.quick += 1
            self.running += 1
        if worker.slow:
            worker.slow = False
            self.quick += 1
        if worker.stuck:
            worker.stuck = False
            self.running += 1
        while self.queue and self.running <= self.limit:
            call = self.queue.popleft()
            if call.state == _QUEUED:
                call.state = _RUNNING
                worker.since = monotonic()
                return call
        worker.since = None
        self.workers.discard(worker)
        self.quick -= 1
        self.running -= 1
        if self.queue:  # the limit was lowered, and who is left may be stuck
            self._watch()
        return None

    # On the supervisor.

    def supervise(self) -> bool:
        """Find the slow and the stuck and replace them; False once nothing waits."""
        with self.lock:
            now = monotonic()
            for worker in self.workers:
                age = 0.0 if worker.since is None else now - worker.since
                if age >= SLOW and not worker.slow:
                    worker.slow = True
                    self.quick -= 1
                if age >= STUCK and not worker.stuck:
                    worker.stuck = True
                    self.running -= 1
            if now - self.sent >= SLOW:
                # All have arrived, but for those that a signal kept from being sent.
                self.coming = 0
            # With no quick worker left, double: a disk that is slow wants many calls at once.
            quick = self.quick + self.coming
            wanted = _WARM - quick if quick else max(_WARM, len(self.workers))
            room = self.limit - self.running - self.coming
            wanted = max(0, min(wanted, len(self.queue), room))
        for _ in range(wanted):
            with self.lock:
                self.coming += 1
            if not self._send_worker():
                break
        with self.lock:
            if not self.queue or self.running + self.coming:
                self.deserted = None
            elif self.deserted is None:
                self.deserted = now
            elif now - self.deserted >= STUCK:
                self._refuse()
            wake = self._to_be_woken(None)
            self.watched = bool(self.queue)
        if wake:
            self._wake_or_drop()
        return self.watched


class _AsyncioPortal(_Portal):
    """asyncio, and every loop that is one (uvloop)."""

    def set_waiter(self, call: _Call[Any]) -> None:
        call.waiter = asyncio.get_running_loop().create_future()

    def wait(self, call: _Call[Any]) -> "asyncio.Future[None]":
        waiter: asyncio.Future[None] = call.waiter
        return waiter

    def wake(self) -> None:
        loop = self.loop()
        if loop is None:
            raise RuntimeError("the event loop is gone")
        loop.call_soon_threadsafe(self.deliver)

    def release(self, waiter: "asyncio.Future[None]") -> None:
        if not waiter.done():
            waiter.set_result(None)

    def is_closed(self) -> bool:
        loop = self.loop()
        return loop is None or loop.is_closed()


class _TrioPortal(_Portal):
    """trio, whose token stands for the loop."""

    def set_waiter(self, call: _Call[Any]) -> None:
        import trio

        call.waiter = trio.lowlevel.current_task()

    def wait(self, call: _Call[Any]) -> Awaitable[object]:
        import trio

        def abort(_: object) -> trio.lowlevel.Abort:
            call.waiter = None
            return trio.lowlevel.Abort.SUCCEEDED

        return trio.lowlevel.wait_task_rescheduled(abort)

    def wake(self) -> None:
        token = self.loop()
        if token is None:
            raise RuntimeError("the event loop is gone")
        token.run_sync_soon(self.deliver)

    def release(self, waiter: "trio.lowlevel.Task") -> None:
        import trio

        trio.lowlevel.reschedule(waiter)

    def is_closed(self) -> bool:
        return False  # a trio run does not end before its tasks


class _Portals(threading.local):
    """The portals that this thread's event loops have used, and the last of them."""

    def __init__(self) -> None:
        self.last: _Portal | None = None
        self.all: weakref.WeakKeyDictionary[object, _Portal] = weakref.WeakKeyDictionary()


_pool = _Pool()
_portals = _Portals()


def _start_empty() -> None:
    # A forked child has none of its parent's threads, and cannot know who held which lock.
    global _pool, _portals
    _pool = _Pool()
    _portals = _Portals()


os.register_at_fork(after_in_child=_start_empty)


def _portal() -> _Portal:
    """The portal of the running event loop. RuntimeError if there is none."""
    # Who uses trio has imported it; who does not is spared the time.
    # (Another thread may be importing it right now.)
    lowlevel: Any = getattr(sys.modules.get("trio"), "lowlevel", None)
    in_trio = lowlevel is not None and lowlevel.in_trio_task()
    loop = lowlevel.current_trio_token() if in_trio else asyncio.get_running_loop()
    portal = _portals.last
    if portal is None or portal.loop() is not loop:
        portal = _portals.all.get(loop)
        if portal is None:
            for other in list(_portals.all.values()):
                if other.is_closed():
                    # Its last results were on their way, and hold the loop they cannot reach.
                    other.drop()
            portal = _TrioPortal(loop) if in_trio else _AsyncioPortal(loop)
            _portals.all[loop] = portal
        _portals.last = portal
    return portal


def _call_elsewhere(function: Callable[[], object]) -> None:
    # On a thread of its own: it may wait and fail, the supervisor may not.
    try:
        threading.Thread(target=function, name="truenas_os closing", daemon=True).start()
    except RuntimeError:  # the system has no more threads
        with contextlib.suppress(Exception):
            function()


def in_background(function: Callable[[], object]) -> None:
    """Call *function* on another thread; even for a finalizer."""
    if _pool.supervisor is None:  # in a forked child
        function()
    else:
        _pool.inbox.put(function)


def set_thread_limit(limit: int) -> int:
    """Set how many calls of the running event loop may be under way at once; return the old limit.

    The default is 64. A call that has been under way for more than 0.1 s does not count. Raises
    :exc:`ValueError` for a limit that is not between 1 and 512, the most threads that all event
    loops of a process have together, and :exc:`RuntimeError` outside an event loop.
    """
    if not 1 <= limit <= CEILING:
        raise ValueError(f"the limit must be between 1 and {CEILING}, not {limit}")
    portal = _portal()
    with portal.lock:
        old, portal.limit = portal.limit, limit
    return old


async def _finish(portal: _Portal, call: _Call[T], grace: Callable[[_Call[Any]], float]) -> T:
    portal.set_waiter(call)
    try:
        portal.submit(call)
        await portal.wait(call)
    except GeneratorExit:
        # Closed, perhaps by the garbage collector inside of anything: no lock may be taken here.
        if portal.pid == os.getpid():
            _pool.inbox.put(functools.partial(portal.abandon, call))
        raise
    except BaseException:
        if portal.pid != os.getpid():
            raise  # in a forked child: the call is the parent's, and so is the lock
        seconds = 0.0
        try:
            if not portal.withdraw(call):
                seconds = grace(call)
                await _linger(portal, call, seconds)
        finally:
            undoing = portal.abandon(call)
        if undoing is not None:
            await _linger(portal, undoing, seconds)
            portal.abandon(undoing)
        raise
    # The error's traceback leads to frames that lead to the call: do not make it a cycle.
    error, call.error = call.error, None
    if error is None:
        return call.result
    try:
        raise error
    finally:
        del error


async def _linger(portal: _Portal, call: _Call[Any], seconds: float) -> None:
    """Wait for a call that runs, deaf to further cancellation, but not for long."""
    deadline = anyio.current_time() + seconds
    while (left := deadline - anyio.current_time()) > 0:
        if not portal.wait_again(call):
            return
        try:
            with anyio.move_on_after(left, shield=True):
                await portal.wait(call)
        except anyio.get_cancelled_exc_class():
            pass  # Task.cancel() knows no shields


async def offload(
    function: Callable[..., T],
    *args: Any,
    late: Callable[[T], object] | None = None,
    certain: bool = False,
    grace: float = 0.0,
) -> T:
    """Call *function* with *args* on a worker thread; when cancelled, wait *grace* seconds for it.

    A call that is *certain* is made even then. A result that nobody receives goes to *late*.
    """
    return await _finish(_portal(), _Call(function, args, {}, late, certain), lambda _: grace)


def in_thread(
    function: Callable[P, T], late: Callable[[T], object] | None = None
) -> Callable[P, Coroutine[Any, Any, T]]:
    """The async form of a call that asks or opens.

    When cancelled it is abandoned, but not before it has had its own reference to any descriptor of
    the caller's. A result that nobody receives goes to *late*.
    """
    grace = _fd_grace(inspect.signature(function))

    @functools.wraps(function)
    async def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return await _finish(_portal(), _Call(function, args, kwargs, late), grace)

    return call


def changing(
    function: Callable[P, T], late: Callable[[T], object] | None = None
) -> Callable[P, Coroutine[Any, Any, T]]:
    """The async form of a call that changes something: when cancelled, it is waited for.

    A result that nobody receives goes to *late*.
    """

    @functools.wraps(function)
    async def call(*args: P.args, **kwargs: P.kwargs) -> T:
        await anyio.lowlevel.checkpoint_if_cancelled()
        return await _finish(_portal(), _Call(function, args, kwargs, late), _change_grace)

    return call


def _change_grace(_: _Call[Any]) -> float:
    return GRACE_CHANGE


def _fd_grace(signature: inspect.Signature) -> Callable[[_Call[Any]], float]:
    def grace(call: _Call[Any]) -> float:
        try:
            given = signature.bind(*call.args, **call.kwargs).arguments
        except TypeError:  # the call itself says so
            return 0.0
        fds = (value for name, value in given.items() if name in _FD_PARAMETERS)
        return GRACE_FD if any(_is_fd(value) for value in fds) else 0.0

    return grace


def _is_fd(value: object) -> bool:
    return value != AT_FDCWD if isinstance(value, int) else hasattr(value, "fileno")


_FD_PARAMETERS = frozenset(
    {
        "beneath",
        "dir_fd",
        "dirfd",
        "fs_fd",
        "mnt_ns",
        "mount_fd",
        "newdirfd",
        "olddirfd",
        "path_or_fd",
    }
)
