# SPDX-License-Identifier: LGPL-3.0-or-later
"""Serving /dev/fuse: requests in, handlers started, replies out."""

import contextlib
import enum
import errno
import functools
import logging
import os
import stat
import threading
from collections import deque
from time import perf_counter
from typing import Final, NamedTuple

import anyio
import anyio.lowlevel

from .._threads import offload
from . import notifications, protocol, wire
from .backing import Backing
from .current import current_request, serving
from .datatypes import FUSEError
from .forks import own
from .handlers import Handler, Handlers, Reply
from .loops import Loop, in_event_loop
from .negotiation import ABSENT, MAX_WRITE, Features, negotiate
from .notifications import Notifier, PollHandle
from .operations import Operations
from .protocol import ProtocolError, Request
from .wire import Opcode

_log = logging.getLogger("truenas_os.fuse")

# What is taken from the kernel at most before other tasks of the event loop run.
_REQUESTS_AT_ONCE: Final = 64
_SECONDS_AT_ONCE: Final = 0.001
# How often it is looked for the next request, where one was just answered, before the event loop
# waits: that client asks again sooner than a sleeping process is woken.
_LOOKS: Final = 10
# Two requests of 1 MiB at once are so much memory that free(3) gives it back to the kernel, which
# has to clear it for the next: one of more bytes than this is handled before the next is taken, if
# its handler does not wait.
_LARGE: Final = 1 << 16
# Seconds for which a reply is held back for a notice that its handler has had sent: the kernel may
# keep that waiting until it has the very reply.
_AHEAD: Final = 0.1
# Seconds between looks at how many releases have come.
_MOMENT: Final = 0.002
# A reply of so many bytes is copied behind its header rather than gathered by the kernel.
_SMALL: Final = 4096
_HEADER: Final = wire.OUT_HEADER.pack

_UNANSWERED: Final = frozenset((Opcode.FORGET, Opcode.BATCH_FORGET))
# What is owed for each open file, whether or not anybody is left to take the reply.
_RELEASES: Final = frozenset((Opcode.RELEASE, Opcode.RELEASEDIR))
# What takes no slot of max_tasks: what must not wait, and what may wait for long.
_SLOTLESS: Final = frozenset((Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.SETLKW))


class SessionEnd(enum.Enum):
    """How a session has ended."""

    UNMOUNTED = "unmounted"
    """The filesystem is mounted nowhere any more."""
    ABORTED = "aborted"
    """The connection was aborted: through fusectl, by a request timeout, or with ``umount -f`` of
    what was in use."""
    CLOSED = "closed"
    """This process has stopped serving."""
    FAILED = "failed"
    """/dev/fuse has failed, or the kernel's protocol is too old."""


class SessionStats(NamedTuple):
    """What a session has done."""

    requests: dict[str, int]
    """How many requests there were, by the name of the operation code."""
    active: int
    """How many handlers are under way."""
    queued: int
    """How many requests wait because ``max_tasks`` handlers are under way."""


class Server:
    """A connection with the kernel, served by handlers on an event loop."""

    def __init__(
        self,
        operations: Operations,
        fd: int,
        loop: Loop,
        *,
        max_tasks: int,
        grace: float,
        root_mode: int = stat.S_IFDIR,
        request_timeout: int = 0,
    ) -> None:
        self.fd: int = fd
        self.features: Features | None = None
        self.end: SessionEnd | None = None
        self.error: BaseException | None = None
        self.deadline: float | None = None
        self.ready: anyio.Event = anyio.Event()
        self.ended: anyio.Event = anyio.Event()
        self.finished: anyio.Event = anyio.Event()
        self.notifier: Notifier = Notifier(fd)
        self._operations = operations
        make_handle = functools.partial(PollHandle, self.notifier)
        self._handlers = Handlers(operations, make_handle, root_mode)
        self._table = self._handlers.table
        self._loop = loop
        self._max_tasks = max_tasks
        # Seconds for which handlers may go on when there is nobody left to reply to, unless there
        # is a deadline on the event loop's clock.
        self._grace = grace
        self._request_timeout = request_timeout
        self._backing = Backing(fd)
        self._buffer = bytearray(MAX_WRITE + wire.PAGE)
        self._view = memoryview(self._buffer)
        self._buffers = [self._buffer]
        # Requests whose handlers have not returned at once, by unique; those of them that count
        # against max_tasks; and those that wait for one to return.
        self._active: dict[int, Request] = {}
        self._taken = 0
        self._queue: deque[tuple[Handler, Request]] = deque()
        self._catching_up = False
        self._idle = anyio.Event()
        self._counts = [0] * 64
        # How many files and directories were opened of which a release is to come.
        self._opened = 0
        # How many requests have come once more while they were being served.
        self._recognized = 0
        self._disowned = False
        own(self)

    @property
    def stats(self) -> SessionStats:
        """What has been done so far."""
        counts = {
            protocol.opcode_name(opcode): count
            for opcode, count in enumerate(self._counts)
            if count
        }
        return SessionStats(counts, len(self._active), len(self._queue))

    def describe_handlers(self) -> list[str]:
        """Where each handler under way is."""
        return self._loop.describe()

    async def run(self) -> None:
        """Serve until the end, and clean up."""
        try:
            async with self._loop.handlers():
                try:
                    self._watch()
                    await self.ended.wait()
                    await self._wait_for_handlers()
                finally:
                    self._queue.clear()
        finally:
            self.stop(SessionEnd.CLOSED)
            if not self._disowned:
                try:
                    await self._destroy()
                finally:
                    self.hang_up()

    def _count_opened(self, request: Request) -> None:
        # What was made with CREATE, and cannot be opened, is not released.
        if request.opcode == Opcode.OPENDIR or Opcode.OPEN in self._table:
            self._opened += 1

    async def wait_for_releases(self) -> None:
        """Wait until what was opened is being released, at most until the deadline.

        The kernel holds releases back when there are many, and at the unmounting it forgets those.
        """
        assert self.deadline is not None
        with anyio.CancelScope(deadline=self.deadline):
            while sum(self._counts[opcode] for opcode in _RELEASES) < self._opened:
                if self.end is not None:
                    return
                await anyio.sleep(_MOMENT)

    async def _wait_for_handlers(self) -> None:
        deadline = self.deadline
        if deadline is None:
            deadline = anyio.current_time() + self._grace
        with anyio.CancelScope(deadline=deadline):
            while self._active or self._queue:
                self._idle = anyio.Event()
                await self._idle.wait()

    def _watch(self) -> None:
        try:
            self._loop.watch(self.fd, self.drain)
        except OSError as error:
            self.error = error
            self.stop(SessionEnd.FAILED)

    def is_asking(self) -> bool:
        """Whether what runs is a handler of this server, whose request is not answered yet."""
        current = serving.get(None)
        return current is not None and current[0] is self and not current[1].answered

    def hang_up(self) -> None:
        """Have no more to do with the descriptor: handlers that are late must not write to it."""
        self._backing.close()
        self.notifier.close()
        self.fd = -1

    def disown(self) -> None:
        """Be of no further use, in a forked child."""
        self._disowned = True
        self.fd = -1

    async def _destroy(self) -> None:
        try:
            pending = self._operations.destroy()
            if pending is not None:
                with anyio.CancelScope(shield=True):
                    await pending
        except Exception:
            _log.exception("destroy has raised an exception")

    def stop(self, end: SessionEnd) -> None:
        """Take no more requests; of those that wait, only releases are still served."""
        # A forked child has the event loop's descriptors, but they are the parent's.
        if self.end is None and not self._disowned:
            self.end = end
            self._loop.unwatch()
            waiting, self._queue = self._queue, deque()
            for handler, request in waiting:
                if request.opcode in _RELEASES:
                    self._queue.append((handler, request))
                else:
                    self._reply_error(request, errno.EIO)
            for request in self._active.values():
                self._interrupt(request)
            self.ready.set()
            self.ended.set()

    # From the kernel.

    def drain(self) -> None:
        """Take the requests that there are, and start their handlers; not too many at once."""
        until = perf_counter() + _SECONDS_AT_ONCE
        table, view, counts = self._table, self._view, self._counts
        looks = 0
        for _ in range(_REQUESTS_AT_ONCE):
            request = None  # see _LARGE
            try:
                size = os.readv(self.fd, self._buffers)
            except BlockingIOError:
                if not looks or perf_counter() > until:
                    return
                looks -= 1
                os.sched_yield()
                continue
            except OSError as error:
                if error.errno == errno.ENOENT:
                    continue  # the request was interrupted before it could be read
                if self.fd >= 0:
                    self._disconnected(error)
                return
            try:
                request = Request(view[:size])
            except ProtocolError as error:
                _log.error("a message that cannot be read: %s", error)
                continue
            opcode = request.opcode
            counts[opcode & 63] += 1
            if request.unique >= wire.UNIQUE_RESEND and self._is_under_way(request):
                continue
            handler = table.get(opcode)
            if handler is None:
                self._special(request)
            elif opcode in _SLOTLESS or (self._taken < self._max_tasks and not self._queue):
                self._start(handler, request)
            else:
                self._queue.append((handler, request))
            if self.end is not None or perf_counter() > until:
                return
            if size > _LARGE and not request.answered:
                return
            looks = _LOOKS if request.answered else 0

    async def resend(self) -> None:
        """Have the kernel send once more what has no reply yet, and recognize it."""
        await anyio.lowlevel.checkpoint()  # or a handler that calls this might not be known yet
        if self.end is not None:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        requests = [*self._active.values(), *(request for _, request in self._queue)]
        coming = sum(not r.answered and r.opcode not in _UNANSWERED for r in requests)
        # The kernel keeps nobody waiting here. What it sends again it takes no reply to until that
        # has been read: no handler may return meanwhile.
        os.write(self.fd, b"".join(notifications.resend()))
        until, before = self._recognized + coming, -1
        while self._recognized < until and self.end is None and before != sum(self._counts):
            before = sum(self._counts)
            self.drain()

    def _is_under_way(self, request: Request) -> bool:
        """Whether what has been sent again is being served: the reply then has its new number."""
        unique = request.unique
        old = unique ^ wire.UNIQUE_RESEND
        found = self._active.pop(old, None) or self._active.get(unique)
        if found is not None:
            self._active[unique] = found
        else:
            queued = (waiting for _, waiting in self._queue if waiting.unique in (old, unique))
            found = next(queued, None)
            if found is None:
                return False
        found.unique = unique
        self._recognized += 1
        return True

    def _disconnected(self, error: OSError) -> None:
        if error.errno == errno.ENODEV:
            self.stop(SessionEnd.UNMOUNTED)
        elif error.errno == errno.ECONNABORTED:
            self.stop(SessionEnd.ABORTED)
        else:
            self.error = error
            _log.error("reading /dev/fuse has failed: %s", error)
            self.stop(SessionEnd.FAILED)

    def _special(self, request: Request) -> None:
        opcode = request.opcode
        try:
            if opcode == Opcode.INIT:
                self._init(request)
            elif opcode == Opcode.INTERRUPT:
                self._interrupted(request.read(wire.INTERRUPT_IN)[0])
            elif opcode == Opcode.NOTIFY_REPLY:
                self.notifier.retrieved(request)
            elif opcode == Opcode.DESTROY:
                self._reply(request, None)
            else:
                self._reply_error(request, ABSENT.get(opcode, errno.ENOSYS))
        except ProtocolError as error:
            _log.error("%s", error)

    def _interrupted(self, unique: int) -> None:
        # One that is found nowhere has been answered.
        for request in (self._active.get(unique), *(request for _, request in self._queue)):
            if request is not None and request.unique == unique:
                request.interrupted = True
                self._interrupt(request)

    def _interrupt(self, request: Request) -> None:
        if request.scope is not None:
            request.scope.cancel()

    def _init(self, request: Request) -> None:
        try:
            features, body = negotiate(request, self._operations, self._request_timeout)
        except ProtocolError as error:
            self.error = error
            self._reply_error(request, errno.EPROTO)
            self.stop(SessionEnd.FAILED)
            return
        if features is not None:
            try:
                self._operations.init()
            except Exception:
                _log.exception("init has raised an exception, which it must not")
        self._reply(request, body)
        if features is not None:
            self.features = features = self._backing.agree(features)
            self._handlers.agree(features, self._backing)
            self.ready.set()

    # To the handlers.

    def _start(self, handler: Handler, request: Request) -> None:
        if self._loop.start(self._handle(handler, request), self._returned, request):
            return
        self._active[request.unique] = request
        if request.opcode not in _SLOTLESS:
            self._taken += 1

    def _returned(self, request: Request) -> None:
        self._active.pop(request.unique, None)
        if request.opcode not in _SLOTLESS:
            self._taken -= 1
        if self._queue and not self._catching_up:
            self._catching_up = True
            self._loop.spawn(self._catch_up)
        if not self._active:
            self._idle.set()

    async def _catch_up(self) -> None:
        """Start the handlers of what waits; as in :meth:`drain`, not too many at once."""
        self._catching_up = False
        until = perf_counter() + _SECONDS_AT_ONCE
        while self._queue and self._taken < self._max_tasks:
            if perf_counter() > until:
                self._catching_up = True
                self._loop.spawn(self._catch_up)
                return
            self._start(*self._queue.popleft())
        if not self._active and not self._queue:
            self._idle.set()

    async def _handle(self, handler: Handler, request: Request) -> None:
        serving.set((self, request))
        body: Reply | None = None
        code = 0
        try:
            body = await handler(request)
        except (FUSEError, OSError) as error:
            if isinstance(error.errno, int) and 0 < error.errno <= wire.ERRNO_MAX:
                code = error.errno
            else:
                _log.exception("%s: %r is no errno that the kernel takes", request, error.errno)
                code = errno.EIO
        except ProtocolError as error:
            _log.error("%s", error)
            code = errno.EINVAL
        except Exception:
            _log.exception("%s: the handler has raised an exception", request)
            code = errno.EIO
        except BaseException:
            if self.end is None:  # or it is cancelled with the event loop
                _log.exception("%s: the handler has not returned", request)
            self._reply_error(request, errno.EIO)
            raise
        try:
            if request.posted is not None:
                await _wait_for_notice(request.posted)
        finally:
            received = self._answer(request, body, code)
        if not received and (request.granted or request.opened is not None):
            await self._handlers.take_back(request)

    # To the kernel.

    def post(
        self, notice: notifications.Notice, ignore_enoent: bool = True, ahead: bool = True
    ) -> None:
        """Have a thread write a notice; *ahead* of the reply to the request whose handler asks.

        Who is no handler, but a thread that may wait, writes *ahead* of what it does next.
        """
        if not ahead:
            self.notifier.post(notice, ignore_enoent)
        elif self.is_asking():
            current_request().posted = self.notifier.post(notice, ignore_enoent)
        elif in_event_loop():
            self.notifier.post(notice, ignore_enoent)
        else:
            self.notifier.write(notice, ignore_enoent)

    def _answer(self, request: Request, body: Reply | None, code: int) -> bool:
        """Send what a handler has returned, or its errno; whether anybody has received the former.

        What has no reply counts as received.
        """
        if request.opcode in _UNANSWERED:
            request.answered = True
            return True
        if code:
            self._reply_error(request, code)
            return False
        received = self._reply(request, body)
        if received and request.opened is not None:
            self._count_opened(request)
        return received

    def _reply(self, request: Request, body: Reply | None) -> bool:
        """Send a reply; False if it did not get through."""
        request.answered = True
        try:
            if body is None:
                os.write(self.fd, _HEADER(16, 0, request.unique))
            elif (size := len(body)) <= _SMALL:
                os.write(self.fd, _HEADER(16 + size, 0, request.unique) + body)
            else:
                os.writev(self.fd, (_HEADER(16 + size, 0, request.unique), body))
        except OSError as error:
            # ENOENT: it was interrupted or aborted. What else there is says that nobody listens.
            if error.errno == errno.EINVAL:
                _log.error("the kernel has refused the reply to %s", request)
                self._reply_error(request, errno.EIO)
            return False
        return True

    def _reply_error(self, request: Request, code: int) -> None:
        request.answered = True
        if request.opcode in _UNANSWERED:
            return
        with contextlib.suppress(OSError):  # nobody waits for it any more
            os.write(self.fd, _HEADER(16, -code, request.unique))


async def _wait_for_notice(written: threading.Event) -> None:
    with contextlib.suppress(OSError):  # no thread is to be had
        await offload(written.wait, _AHEAD)
