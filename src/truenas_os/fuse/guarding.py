# SPDX-License-Identifier: LGPL-3.0-or-later
"""Crash safety: a process that detaches a mount if the one that serves it dies.

It is a program of its own, which holds a pipe and a descriptor that stands for the server, and no
more: nothing of the server's stays open because of it, and no signal of the server's terminal
reaches it. What kills all processes of a group or container at once kills it, too.
"""

import contextlib
import errno
import logging
import os
import subprocess
import sys
import threading
from typing import Final

from ..blocking.fds import Fd

_log = logging.getLogger("truenas_os.fuse")

_PROGRAM: Final = os.path.join(os.path.dirname(__file__), "guard.py")
# Seconds for which the process is waited for, which ends at once unless the mount is covered.
_PATIENCE: Final = 1.0


class Guard:
    """Watches over one mount, by its unique id.

    A thread starts the process and waits for its end. The thread is also what the process watches:
    unlike the server as a whole, it ends when the server is killed even if another thread hangs in
    the very mount; and, unlike the pipe, a child that C code has forked does not keep it.
    """

    def __init__(self, mnt_id: int, helper: str | None = None) -> None:
        self._lock = threading.Lock()
        self._arguments = [str(mnt_id), *([helper] if helper else [])]
        self._pipe: Fd | None = None
        self._error: OSError | None = None
        started = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=[started], name="truenas_os.fuse guard", daemon=True
        )
        self._thread.start()
        started.wait()
        if self._error is not None:
            _log.warning(
                "mount %d will stay behind if this process is killed: %s", mnt_id, self._error
            )

    def _run(self, started: threading.Event) -> None:
        try:
            process = self._start()
        except OSError as error:
            self._error = error
            return
        finally:
            started.set()
        process.wait()

    def _start(self) -> "subprocess.Popen[bytes]":
        if not sys.executable:
            raise FileNotFoundError(errno.ENOENT, "it is not known where Python is")
        mnt_id, *helper = self._arguments
        theirs, ours = map(Fd, os.pipe2(os.O_CLOEXEC))
        os.set_blocking(ours, False)  # two bytes at the most are written to it
        self._pipe = ours
        try:
            with theirs, _this_thread() as pidfd:
                return subprocess.Popen(
                    [sys.executable, "-I", "-S", _PROGRAM, mnt_id, str(int(pidfd)), *helper],
                    stdin=theirs,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    pass_fds=[pidfd],
                    cwd="/",
                    start_new_session=True,
                )
        except BaseException:
            self.act()
            raise

    def watch_server(self) -> None:
        """Have it heed the end of this process as well, which now serves.

        Until then, it heeds only that nobody has the pipe any more: a child may have it, too.
        """
        with self._lock:
            if self._pipe is not None:
                self._say(self._pipe, b"1")

    def dismiss(self, leave: bool = False) -> None:
        """End it. If the mount is still there, it is detached before that, unless *leave*.

        Something that covers the mount is waited for no longer than a second; the process waits
        longer. A second call does nothing.
        """
        self._let_go(leave)
        self._thread.join(_PATIENCE)

    def act(self) -> None:
        """The same, without waiting for it."""
        self._let_go(False)

    def _let_go(self, leave: bool) -> None:
        with self._lock:
            pipe, self._pipe = self._pipe, None
        if pipe is not None:
            try:
                if leave:
                    self._say(pipe, b"0")
            finally:
                os.close(pipe.detach())

    def _say(self, pipe: Fd, byte: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):  # somebody has killed it
            os.write(pipe, byte)

    def disown(self) -> None:
        """Have no part in it, in a forked child."""
        pipe, self._pipe = self._pipe, None
        if pipe is not None and not pipe.closed:
            os.close(pipe.detach())


def _this_thread() -> Fd:
    try:
        return Fd(os.pidfd_open(threading.get_native_id(), os.O_EXCL))  # PIDFD_THREAD, Linux 6.9
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return Fd(os.pidfd_open(os.getpid()))
