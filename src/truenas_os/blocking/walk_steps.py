# SPDX-License-Identifier: LGPL-3.0-or-later
"""A walk without its waiting: the steps that both faces of the iterator take."""

import errno
import operator
import os
import time
import warnings
import weakref
from collections.abc import Callable, Generator, Iterator
from functools import partial
from itertools import dropwhile, islice
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

from .._native import lib
from .walk_items import (
    Batch,
    Decoder,
    Directory,
    FilesystemIterState,
    IterInstance,
    WalkProgress,
    bytes_in,
    entered,
    joined,
)
from .walk_native import Begun, NativeWalk, begin
from .walk_options import ProgressCallback, WalkOptions
from .walk_tokens import IteratorRestoreError, Position, ResumeToken, levels_of, token_of

# What is prepared gathers until half of the ring is full, but nothing waits longer for the rest of
# it, in seconds: the producer may be stuck.
_GATHER: Final = 0.005
# How long the end of a walk waits for its threads, in seconds. One that is stuck is left behind.
_GRACE: Final = 1.0
_ENTRY, _ERROR, _LOST, _END = (
    lib.TOS_WALK_ENTRY,
    lib.TOS_WALK_ERROR,
    lib.TOS_WALK_LOST,
    lib.TOS_WALK_END,
)
_VERDICTS: Final = ("raise", "skip", "yield")


class Ready:
    """Items are there."""


class Pause:
    """All that came so far is consumed: let others run."""


class Wait(NamedTuple):
    """Wait until the walk's descriptor is readable, or so many seconds; say whether it was not."""

    timeout: float | None


class Offload(NamedTuple):
    """Make a call that may block; a result that nobody receives goes to *late*."""

    function: Callable[[], Begun]
    late: Callable[[Begun], object]


class Call(NamedTuple):
    """Call back, and await what comes if that is to be awaited."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]


class Fail(NamedTuple):
    """Raise this to whoever asked for an item; the walk goes on after it."""

    error: OSError
    # What it is about: an item that was handed out, or else what stands at that depth.
    item: IterInstance | None
    depth: int


Step: TypeAlias = Ready | Pause | Wait | Offload | Call | Fail
Steps: TypeAlias = Generator[Step, Any, None]

T = TypeVar("T")

_READY: Final = Ready()
_PAUSE: Final = Pause()

_alive: "weakref.WeakSet[Walker]" = weakref.WeakSet()


def _forget_in_child() -> None:
    # What is at hand would be given out without a look at the process.
    for walker in _alive:
        walker.forget()


os.register_at_fork(after_in_child=_forget_in_child)


def _slot(item: IterInstance) -> int:
    batch, index = item.place()
    return batch.entry(index).slot


class _Stand(NamedTuple):
    """How far it has come: one value, since a signal's handler may ask at any moment."""

    # A part of a batch, and what of it was not handed out yet.
    segment: list[IterInstance]
    rest: Iterator[IterInstance]
    # What was handed out before that.
    last: IterInstance | None = None
    cnt: int = 0
    cnt_bytes: int = 0

    def consumed(self) -> int:
        """How much of the segment was handed out."""
        return len(self.segment) - operator.length_hint(self.rest)

    def settled(self, segment: list[IterInstance] | None = None) -> "_Stand":
        """The same, with another segment to come; what is left of this one is forgotten."""
        segment = segment or []
        done = self.segment[: self.consumed()]
        last = done[-1] if done else self.last
        cnt, cnt_bytes = self.cnt + len(done), self.cnt_bytes + bytes_in(done)
        return _Stand(segment, iter(segment), last, cnt, cnt_bytes)


class Walker:
    """A walk without its waiting: steps, which each face takes in its own way."""

    def __init__(self, options: WalkOptions) -> None:
        self.options: WalkOptions = options
        self.pid: int = os.getpid()
        self.begun: Begun | None = None
        self.native: NativeWalk | None = None
        self._steps = self._walk()
        self._pending: Step | None = None
        self.busy: bool = False
        self._closed = False
        self.finished: bool = False
        self._began_at = self._progress_at = 0.0
        # What is handed out without further ado, what part of a batch it is, and what follows it.
        self.ready: Iterator[IterInstance] = iter(())
        self._stand = _Stand([], self.ready)
        self._batch: Batch | None = None
        self._next = 0
        # While a list is gathered: how far it had come before, which is what others are told.
        self._before: _Stand | None = None
        # The first of the list that was handed out last, until more is asked for.
        self._held: IterInstance | None = None
        self._skipped: IterInstance | None = None
        self._cnt_skipped = self._cnt_errors = self._cnt_unmarked = 0
        _alive.add(self)

    # What the user asks.

    def get_stats(self) -> FilesystemIterState:
        self.check()
        return self._state(self._seen())

    def dir_stack(self) -> tuple[tuple[str, int], ...]:
        self.check()
        directory = self._directory(self._seen().last)
        stack: list[tuple[str, int]] = []
        for each in directory.line() if directory else ():
            stack.append((joined(stack[-1][0], each.name) if stack else each.name, each.ino))
        return tuple(stack)

    def skip(self) -> None:
        self.check()
        if self._before is not None:
            raise RuntimeError("another task or thread is waiting for the next list of this walk")
        stand = self._stand
        item = stand.settled().last
        if item is None or not item.isdir:
            raise ValueError("skip() is for a directory that was just handed out")
        depth = item.depth
        left = stand.segment[stand.consumed() :]
        rest = [*dropwhile(lambda each: each.depth > depth, left)]
        self._settle(rest)
        self._skipped = item
        failing = self._pending
        if isinstance(failing, Fail) and (failing.item is item or failing.depth > depth):
            self._pending = None
        if self._batch is not None and not rest:
            while self._next < len(self._batch) and self._batch.entry(self._next).depth > depth:
                self._next += 1
        # What was put back may be released; the native side has forgotten it then.
        native = None if self.finished else self.native
        if native is not None and not (rest and _slot(rest[0]) < native.released):
            native.skip(_slot(item), depth)

    def resume_token(self) -> ResumeToken:
        self.check()
        begun = self.begun
        if begun is None:
            raise ValueError("this walk has not begun: use a with block, or ask for an item")
        item = self._seen().last
        if item is not None:
            batch, index = item.place()
            # A directory of which nothing is known but its error could not be recognised.
            is_known = item.error is None or item.statxinfo.stx_mask
            if item.isdir and is_known and not item.ismount and item is not self._skipped:
                levels = levels_of(entered(item), 0, "")
            else:
                levels = levels_of(item.directory, batch.entry(index).cookie, item.name)
        elif self.options.resume_from is not None:
            levels = self.options.resume_from.position.levels
        else:
            levels = levels_of(begun.root, 0, "")
        failed = self._cnt_errors > 0
        if self.options.resume_from is not None:
            failed |= self.options.resume_from.position.failed
        finished = self.finished and self._before is None
        return token_of(Position(begun.identity, begun.exact, finished, failed, levels))

    # What happens, step by step.

    def beginning(self) -> Steps:
        begun = yield Offload(partial(begin, self.options), Begun.discard)
        if begun is not None:  # or it was cancelled
            self.begun, self.native = begun, begun.native
            self._began_at = self._progress_at = time.monotonic()

    def _walk(self) -> Steps:
        while self.begun is None:
            yield from self.beginning()
        resumed = self.options.resume_from
        if resumed is None or not resumed.position.finished:
            yield from self._hand_out_everything(self.begun)
        self.finished = True
        yield from self.ending()
        if self.options.reporting_callback is not None:
            yield self._report()
        if self.options.progress is not None:
            yield self._progress(self.options.progress)

    def _hand_out_everything(self, begun: Begun) -> Steps:
        decoder = Decoder(begun.line.copy())
        while True:
            yield _PAUSE
            count = yield from self._taken(begun.native)
            batch, items = decoder.decode(begun.native.batch, count)
            self._batch = batch
            self._next = 0
            while self._next < len(batch):
                index = self._next
                if not batch.is_special(index):
                    yield from self._hand_out(items, index, batch.next_special(index))
                elif batch.kind(index) == _END:
                    return
                else:
                    self._next += 1
                    yield from self._see_to(batch, items, index)

    def _taken(self, native: NativeWalk) -> Generator[Step, Any, int]:
        """How many entries were taken; waits until there are some."""
        want = native.enough
        while True:
            native.release(consumed := native.taken)
            if count := native.take(want):
                return count
            if native.taken != consumed:
                continue  # what was there was left out
            timed_out = yield Wait(_GATHER if want > 1 else None)
            native.drain()
            if timed_out:
                want = 1

    def _hand_out(self, items: list[IterInstance], start: int, stop: int) -> Steps:
        callback, increment = self.options.reporting_callback, self.options.reporting_increment
        while start < stop:
            end = stop
            if callback is not None:
                end = min(stop, start + increment - self._stand.cnt % increment)
            self._next = end
            self._settle(items[start:end])
            yield _READY
            if callback is not None and self._stand.cnt % increment == 0:
                yield self._report()
            if self.options.progress is not None:
                now = time.monotonic()
                if now - self._progress_at >= self.options.progress_interval:
                    self._progress_at = now
                    yield self._progress(self.options.progress)
            start = self._next

    def _see_to(self, batch: Batch, items: list[IterInstance], index: int) -> Steps:
        """What is no entry, or one with an error."""
        item, entry = items[index], batch.entry(index)
        kind = entry.kind
        if kind == _LOST:
            self._raise_lost(entry.depth, entry.error)
        path = item.path if kind == _ENTRY else item.parent
        error = OSError(entry.error, os.strerror(entry.error), path)
        if kind not in (_ENTRY, _ERROR):
            raise error
        self._cnt_errors += 1
        verdict = self.options.on_error
        if callable(verdict):
            verdict = yield Call(verdict, (error,))
            if verdict not in _VERDICTS:
                raise ValueError(f"on_error must return one of {_VERDICTS}, not {verdict!r}")
        if verdict == "raise":
            raise error
        if verdict == "skip":
            self._cnt_skipped += 1
            return
        if kind == _ENTRY:
            batch.failures[index] = error
            yield from self._hand_out(items, index, index + 1)
        if verdict == "report" and self._skipped is not item and (kind == _ERROR or item.isdir):
            yield Fail(error, item if kind == _ENTRY else None, entry.depth)

    def _raise_lost(self, depth: int, code: int) -> None:
        begun, resumed = self.begun, self.options.resume_from
        assert begun is not None and resumed is not None
        names = [level.name for level in resumed.position.levels[1 : depth + 1]]
        error = IteratorRestoreError(depth, joined(begun.root.name, *names))
        if code != errno.ESTALE:
            raise error from OSError(code, os.strerror(code), error.path)
        raise error

    def ending(self) -> Steps:
        """Close every descriptor; wait for a while until that has been done."""
        native = self.native
        if native is None:
            return
        until = time.monotonic() + _GRACE
        native.close(self._consumed_slot())
        try:
            while not native.ended() and (left := until - time.monotonic()) > 0:
                yield Wait(left)
                native.drain()
        finally:
            self.give_up()

    def give_up(self) -> None:
        slot = self._consumed_slot()
        native, self.native = self.native, None
        if native is not None:
            self._cnt_unmarked = native.unmarked()
            native.close(slot)
            native.free()

    # What the steps are about.

    def _report(self) -> Call:
        options = self.options
        assert options.reporting_callback is not None
        state = self._state(self._stand.settled())
        return Call(options.reporting_callback, (state, options.reporting_private_data))

    def _progress(self, callback: ProgressCallback) -> Call:
        begun = self.begun
        assert begun is not None
        elapsed = time.monotonic() - self._began_at
        state = self._state(self._stand.settled())
        return Call(callback, (WalkProgress(state, elapsed, begun.total, begun.total_bytes),))

    def _seen(self) -> _Stand:
        """How far it has come for whoever looks from outside, counted."""
        return (self._before or self._stand).settled()

    def _settle(self, segment: list[IterInstance] | None = None) -> None:
        """Count what was handed out, forget what was not, and go on with another segment."""
        stand = self._stand.settled(segment)
        self.ready = iter(())
        self._stand = stand
        self.ready = stand.rest

    def _consumed_slot(self) -> int:
        """The slot before which everything is consumed."""
        if self.finished and self.native is not None:
            return self.native.taken
        item = self._held or self._seen().last
        return 0 if item is None else _slot(item)

    def _directory(self, last: IterInstance | None) -> Directory | None:
        if last is not None:
            return last.directory
        return self.begun.line[-1] if self.begun else None

    def _state(self, stand: _Stand) -> FilesystemIterState:
        directory = self._directory(stand.last)
        native = self.native
        unmarked = native.unmarked() if native is not None else self._cnt_unmarked
        return FilesystemIterState(
            stand.cnt,
            stand.cnt_bytes,
            directory.path if directory else "",
            self._cnt_skipped,
            self._cnt_errors,
            unmarked,
        )

    # What the faces drive: each step yielded is to be made, and answered.

    def proceeding(self) -> Steps:
        """Go on until items are ready, or to the end, where none are."""
        self._held = None
        answer: object = None
        while (step := self._next_step(answer)) is not None and not isinstance(step, Ready):
            if isinstance(step, Fail):
                raise step.error
            answer = yield from self._acting(step)

    def gathering(self, size: int) -> Generator[Step, Any, list[IterInstance]]:
        """Up to *size* items; none at the end."""
        self._held = None
        self._before = before = self._stand.settled()
        items: list[IterInstance] = []
        # To wait with items in hand releases them: without descriptors and marks nothing is lost.
        options = self.options
        waits = (Pause, Wait) if options.file_open_flags is None and options.mark is None else ()
        answer: object = None
        try:
            while True:
                items += islice(self.ready, size - len(items))
                if len(items) == size or (step := self._next_step(answer)) is None:
                    break
                answer = None
                if isinstance(step, Ready):
                    continue
                # Once all is finished, nothing may be put back any more.
                if items and (self.finished or not isinstance(step, waits)):
                    self._pending = step
                    break
                if isinstance(step, Fail):
                    raise step.error
                answer = yield from self._acting(step)
        except BaseException:
            if items and not self._closed:
                items += self.ready
                self.ready = iter(items)
                self._stand = before._replace(segment=items, rest=self.ready)
            raise
        finally:
            self._held = items[0] if items else None
            self._before = None
        return items

    def _acting(self, step: Step) -> Generator[Step, Any, object]:
        try:
            answer = yield step
        except BaseException:
            if isinstance(step, Call):
                self._abort()
            raise
        if self._closed:
            if isinstance(step, Offload) and isinstance(answer, Begun):
                step.late(answer)
            raise ValueError("this walk was closed meanwhile")
        return answer

    # What the faces share.

    def forget(self) -> None:
        """In a forked child: everything belongs to the parent."""
        self._settle()

    def check(self) -> None:
        if self.pid != os.getpid():
            raise RuntimeError("this walk belongs to the process that began it")
        if self._closed:
            raise ValueError("this walk is closed")

    def check_end(self) -> None:
        """Raise :exc:`ValueError` unless what has ended has ended by itself."""
        if self._closed and not self.finished:
            raise ValueError("this walk was closed meanwhile")

    def claim(self) -> None:
        self.check()
        if self.busy:
            raise RuntimeError("another task or thread is waiting for the next item of this walk")
        self.busy = True

    def _next_step(self, answer: object) -> Step | None:
        """What is to be done; None at the end. An exception is the end as well."""
        self._settle()
        if self._pending is not None:
            step, self._pending = self._pending, None
            return step
        try:
            return self._steps.send(answer)
        except StopIteration:
            return None
        except BaseException:
            self._abort()
            raise

    def _abort(self) -> None:
        """End the walk at once, without waiting for its threads."""
        self._closed = True
        self._settle()
        self.give_up()

    def release_claim(self) -> None:
        """Whoever was asking has finished; if the walk was closed meanwhile, that ends it."""
        self.busy = False
        if self._closed:
            self._settle()
            self.give_up()

    def close_begins(self) -> bool:
        """Whether there is something to wait for: a walk of ours that nobody else is asking."""
        if self.pid != os.getpid():
            raise RuntimeError("this walk belongs to the process that began it")
        if self._closed:
            return False
        self._closed = True
        self._settle()
        if self.busy:
            if self.native is not None:
                self.native.close(self._consumed_slot())
            return False
        return self.native is not None

    def drop(self, name: str) -> None:
        """Nobody has the iterator of that *name* any more."""
        # In a forked child, the threads and their locks do not exist.
        if self.native is None or self.pid != os.getpid():
            return
        if not self.finished:
            message = f"{name} was neither finished nor closed"
            warnings.warn(message, ResourceWarning, stacklevel=1, source=self)
        self.give_up()
