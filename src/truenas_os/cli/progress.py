# SPDX-License-Identifier: LGPL-3.0-or-later
"""A progress bar below what is written, where there is a terminal and rich is installed."""

import sys
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Self

from ..blocking import WalkProgress
from .output import encoding_of, escaped, is_terminal, write

if TYPE_CHECKING:
    from rich.progress import Progress


class Display(AbstractContextManager["Display"]):
    """Where the output of a walk goes, with no bar."""

    is_bar = False

    def write(self, text: str) -> None:
        write(text)

    def show(self, progress: WalkProgress) -> None:
        """How far the walk has come."""

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass


class _Bar(Display):
    is_bar = True

    def __init__(self, progress: "Progress") -> None:
        self._progress = progress
        self._task = progress.add_task("", total=None, where="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def show(self, progress: WalkProgress) -> None:
        state = progress.state
        where = escaped(state.current_directory, encoding_of(sys.stderr))
        self._progress.update(self._task, completed=state.cnt, total=progress.total, where=where)


class _BarBelow(_Bar):
    """What is written goes to the same terminal, above the bar."""

    def write(self, text: str) -> None:
        from rich.text import Text

        self._progress.console.print(Text(text), soft_wrap=True, end="")


def display(with_bar: bool) -> Display:
    """What suits the terminals that there are."""
    if not with_bar or not (sys.stderr is not None and sys.stderr.isatty()):
        return Display()
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
        from rich.table import Column
    except ImportError:
        return Display()
    console = Console(stderr=not is_terminal())
    if console.is_dumb_terminal:
        return Display()
    columns = (
        TextColumn("{task.completed:,}"),
        BarColumn(20),
        TimeElapsedColumn(),
        TextColumn(
            "{task.fields[where]}",
            markup=False,
            table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),
        ),
    )
    progress = Progress(
        *columns, console=console, transient=True, expand=True, redirect_stdout=False
    )
    return _BarBelow(progress) if is_terminal() else _Bar(progress)
