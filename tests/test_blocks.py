# SPDX-License-Identifier: LGPL-3.0-or-later
"""Blocks whose beginning and end run on worker threads: each happens whole, or is undone."""

import contextvars
import threading

import anyio
import pytest
from stuck import until

from truenas_os.blocks import Block

pytestmark = pytest.mark.anyio


class Recorded:
    """A context manager that says what happened to it; its ends wait to be let go."""

    def __init__(self, *, hold_begin=False, hold_end=False):
        self.seen = []
        self.begin, self.end = threading.Event(), threading.Event()
        if not hold_begin:
            self.begin.set()
        if not hold_end:
            self.end.set()
        self.error = None

    def __enter__(self):
        self.seen.append("beginning")
        self.begin.wait(30)
        if self.error:
            raise self.error
        self.seen.append("begun")
        return "value"

    def __exit__(self, exc_type, exc, traceback):
        self.seen.append("ending")
        self.end.wait(30)
        self.seen.append(f"ended with {exc!r}")
        return exc_type is ZeroDivisionError

    def undo(self):
        self.seen.append("undone")


async def test_both_ends_run_elsewhere_with_the_context_of_the_task():
    variable = contextvars.ContextVar("variable", default="unset")
    seen = []

    class Here(Recorded):
        def __enter__(self):
            seen.append((threading.get_ident(), variable.get()))
            return super().__enter__()

        def __exit__(self, *exc):
            seen.append((threading.get_ident(), variable.get()))
            return super().__exit__(*exc)

    variable.set("set")
    async with Block(Here()) as value:
        assert value == "value"
    assert [each for _, each in seen] == ["set", "set"]
    assert threading.get_ident() not in {thread for thread, _ in seen}


async def test_the_end_hears_of_an_exception_and_may_swallow_it():
    recorded = Recorded()
    async with Block(recorded):
        raise ZeroDivisionError("expected")
    assert recorded.seen[-1] == "ended with ZeroDivisionError('expected')"
    with pytest.raises(KeyError):
        async with Block(Recorded()):
            raise KeyError


async def test_a_beginning_that_fails_is_not_undone_from_outside():
    recorded = Recorded()
    recorded.error = FileNotFoundError("expected")
    with pytest.raises(FileNotFoundError, match="expected"):
        async with Block(recorded):
            raise AssertionError("not begun")
    assert recorded.seen == ["beginning"]


async def test_a_cancelled_beginning_is_waited_for_and_undone_before_the_await_ends():
    recorded = Recorded(hold_begin=True)
    async with anyio.create_task_group() as group:

        async def enter():
            try:
                async with Block(recorded):
                    raise AssertionError("not begun")
            finally:
                recorded.seen.append("left")

        group.start_soon(enter)
        await until(lambda: recorded.seen)
        group.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await anyio.sleep(0.05)
        assert recorded.seen == ["beginning"]
        recorded.begin.set()
    assert recorded.seen == ["beginning", "begun", "undone", "left"]


async def test_in_a_scope_that_is_cancelled_nothing_begins():
    recorded = Recorded()
    with anyio.CancelScope() as scope:
        scope.cancel()
        async with Block(recorded):
            raise AssertionError("not begun")
    assert scope.cancelled_caught
    assert recorded.seen == []


async def test_an_end_is_made_and_waited_for_whatever_is_cancelled():
    recorded = Recorded(hold_end=True)
    with anyio.CancelScope() as scope:
        async with Block(recorded):
            scope.cancel()
            threading.Timer(0.05, recorded.end.set).start()
            await anyio.sleep(10)
    assert scope.cancelled_caught
    assert recorded.seen[:3] == ["beginning", "begun", "ending"]
    assert recorded.seen[3].startswith("ended with Cancel")


async def test_an_end_that_was_cancelled_before_a_worker_had_it_is_made():
    recorded = Recorded()
    with anyio.CancelScope() as scope:
        async with Block(recorded):
            scope.cancel()
    assert recorded.seen == ["beginning", "begun", "ending", "ended with None"]
