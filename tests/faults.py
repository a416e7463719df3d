# SPDX-License-Identifier: LGPL-3.0-or-later
"""Makes the library's system calls fail, or stop until the test lets them go on."""

import contextlib
import os
import select
import time
from collections.abc import Iterator

from truenas_os._native import lib

ALWAYS = 1 << 40


def number(syscall: str | None) -> int:
    return -1 if syscall is None else getattr(lib, f"TOS_SYS_{syscall}")


@contextlib.contextmanager
def failing(
    syscall: str | None, error: int, *, skip: int = 0, times: int = ALWAYS
) -> Iterator[None]:
    """Let *skip* calls of *syscall* (None: of any) through, then fail so many *times*."""
    lib.tos_fault_arm(number(syscall), skip, times, error, -1, -1)
    try:
        yield
    finally:
        lib.tos_fault_disarm()


class count:
    """Counts the calls of *syscall* (None: all) made inside its block, in ``seen``."""

    def __init__(self, syscall: str | None) -> None:
        self._syscall = syscall
        self.seen = 0

    def __enter__(self) -> "count":
        lib.tos_fault_arm(number(self._syscall), ALWAYS, 0, 0, -1, -1)
        return self

    def __exit__(self, *exc: object) -> None:
        self.seen = lib.tos_fault_disarm()


class Stopped:
    """System calls that wait, before they are made, until :meth:`go`."""

    def __init__(self) -> None:
        self._reached, self.reached_fd = os.pipe()
        self.go_fd, self._go = os.pipe()
        self._count = 0

    def reached(self, count: int = 1) -> bool:
        """Whether *count* calls have stopped so far."""
        while self._count < count and select.select([self._reached], [], [], 0)[0]:
            self._count += len(os.read(self._reached, count))
        return self._count >= count

    def wait_reached(self, count: int = 1, timeout: float = 30) -> None:
        """Wait until *count* more calls have stopped."""
        while count:
            if not select.select([self._reached], [], [], timeout)[0]:
                raise TimeoutError("the system call was not made")
            count -= len(os.read(self._reached, count))

    def go(self, count: int = 1) -> None:
        """Let *count* of them be made."""
        os.write(self._go, b"x" * count)

    def close(self) -> None:
        # Whoever was told to go is to have read it before the pipe's number is used again.
        deadline = time.monotonic() + 30
        while select.select([self.go_fd], [], [], 0)[0]:
            assert time.monotonic() < deadline, "nobody has taken the permission to go on"
            time.sleep(0.001)
        for fd in (self._reached, self.reached_fd, self.go_fd, self._go):
            os.close(fd)


@contextlib.contextmanager
def stopped(
    syscall: str | None, *, skip: int = 0, times: int = 1, error: int = 0
) -> Iterator[Stopped]:
    """Stop so many calls of *syscall* (None: of any), after *skip*; then fail them if *error*.

    The test lets every call that stopped go before it leaves the block.
    """
    stop = Stopped()
    lib.tos_fault_arm(number(syscall), skip, times, error, stop.reached_fd, stop.go_fd)
    try:
        yield stop
    finally:
        lib.tos_fault_disarm()
        stop.close()


@contextlib.contextmanager
def failing_counted(syscall: str, error: int, *, times: int = ALWAYS) -> Iterator[count]:
    """Fail *times* calls as :func:`failing` does, and count all of them as :func:`count` does."""
    calls = count(syscall)
    with failing(syscall, error, times=times):
        try:
            yield calls
        finally:
            calls.seen = lib.tos_fault_disarm()
