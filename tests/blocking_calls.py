# SPDX-License-Identifier: LGPL-3.0-or-later
"""Finds blocking calls that the library makes in a thread with a running event loop.

blockbuster sees what Python's own modules do; for the native layer, every module's ``lib`` is
replaced by a stand-in that looks before it calls.
"""

import asyncio
import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import blockbuster
import trio

import truenas_os
import truenas_os._native

# What only looks at memory, under a lock that nobody holds for long.
_PROMPT = {f"tos_walk_{name}" for name in "close ended fd free release skip take unmarked".split()}

found: list[str] = []


class BlockingCall(AssertionError):
    pass


def _on_a_loop() -> bool:
    return asyncio._get_running_loop() is not None or trio.lowlevel.in_trio_task()


class _Guarded:
    def __init__(self, lib: Any) -> None:
        self._lib = lib

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._lib, name)
        if not callable(real) or name.startswith("tos_fault") or name in _PROMPT:
            return real

        def guarded(*args: Any) -> Any:
            if _on_a_loop():
                found.append(name)
                raise BlockingCall(f"{name}() was called in a thread with a running event loop")
            return real(*args)

        return guarded


_guarded = _Guarded(truenas_os._native.lib)
for _module in list(sys.modules.values()):
    if _module.__name__.startswith("truenas_os.blocking") and hasattr(_module, "lib"):
        _module.lib = _guarded  # type: ignore[attr-defined]


@contextlib.contextmanager
def detected() -> Iterator[list[str]]:
    found.clear()
    with blockbuster.blockbuster_ctx("truenas_os"):
        yield found
