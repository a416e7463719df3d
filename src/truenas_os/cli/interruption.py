# SPDX-License-Identifier: LGPL-3.0-or-later
"""Ctrl-C and SIGTERM, where that loses nothing."""

import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import FrameType, TracebackType
from typing import Any, Final, ParamSpec, Self, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A signal has come."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class Interruption(AbstractContextManager["Interruption"]):
    """A block in which the first signal raises :exc:`Interrupted` in :meth:`call` only.

    Elsewhere it is kept for the next call; the second one raises wherever it comes.
    """

    def __init__(self) -> None:
        self._number = 0
        self._calling = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in _SIGNALS:
            self._before[number] = signal.getsignal(number)
            # What is ignored, as in a job in the background, stays so.
            if self._before[number] is not signal.SIG_IGN:
                signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again, self._number = self._number, number
        if again or self._calling:
            raise Interrupted(number)

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call *function*, whose result may be lost."""
        self._calling = True
        try:
            if self._number:
                raise Interrupted(self._number)
            return function(*args, **kwargs)
        finally:
            self._calling = False
