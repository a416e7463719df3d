# SPDX-License-Identifier: LGPL-3.0-or-later
"""Where everything is, for who asks why nothing goes on."""

import logging
import sys
import threading
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Any

from .current import active_session

_log = logging.getLogger("truenas_os.fuse")


def stack_of(coroutine: Any) -> str:
    """Where a coroutine waits that does not run now, the outermost call first."""
    frames: list[tuple[FrameType, int]] = []
    while (frame := getattr(coroutine, "cr_frame", None)) is not None:
        frames.append((frame, frame.f_lineno))
        coroutine = coroutine.cr_await
    return "".join(traceback.StackSummary.extract(iter(frames)).format())


def log_stacks() -> None:
    """Log where every thread is, and every handler of the session that calls this."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    parts = []
    for ident, frame in sys._current_frames().items():
        stack = "".join(traceback.format_stack(frame))
        parts.append(f"thread {names.get(ident, '?')} ({ident}):\n{stack}")
    running: Callable[[], list[str]] | None = getattr(active_session(), "describe_handlers", None)
    if running is not None:
        parts += running()
    _log.error("what is under way:\n%s", "\n".join(parts))
