# SPDX-License-Identifier: LGPL-3.0-or-later
"""What tests of atomic_write share: contents, filesystems without O_TMPFILE, and death by kill -9.

``main(directory, variant)`` replaces a file in the directory again and again, by processes of which
one is killed before its first system call, the next before its second, and so on, and prints what
each has left behind.
"""

import contextlib
import errno
import itertools
import json
import os
import select
import signal
from pathlib import Path

import faults

from truenas_os import blocking
from truenas_os.blocking import replacement

OLD = b"old " * 1024
NEW = b"new content " * 1024


class WithoutTmpfile:
    """The native layer on a filesystem that lacks O_TMPFILE."""

    def __init__(self, lib):
        self._lib = lib

    def __getattr__(self, name):
        real = getattr(self._lib, name)
        if name != "tos_openat2":
            return real

        def openat2(dirfd, path, flags, mode, resolve):
            if flags & os.O_TMPFILE == os.O_TMPFILE:
                return -errno.EOPNOTSUPP
            return real(dirfd, path, flags, mode, resolve)

        return openat2


@contextlib.contextmanager
def without_tmpfile():
    real = replacement.lib
    replacement.lib = WithoutTmpfile(real)
    try:
        yield
    finally:
        replacement.lib = real


# How a file is replaced, and whether there is an old one.
VARIANTS = {
    "new file": (contextlib.nullcontext, False, {}),
    "new file, noclobber": (contextlib.nullcontext, False, {"noclobber": True}),
    "old file": (contextlib.nullcontext, True, {}),
    "old file, not durable": (contextlib.nullcontext, True, {"durable": False}),
    "without O_TMPFILE: new file": (without_tmpfile, False, {}),
    "without O_TMPFILE: new file, noclobber": (without_tmpfile, False, {"noclobber": True}),
    "without O_TMPFILE: old file": (without_tmpfile, True, {}),
}


def emptied(directory):
    for path in directory.iterdir():
        path.unlink()


def killed_before(nth, target, arguments):
    """Whether a process that replaces *target* has been killed before its *nth* system call."""
    reached, reaching = os.pipe()
    waiting, _going = os.pipe()
    pid = os.fork()
    if not pid:
        faults.lib.tos_fault_arm(-1, nth, 1, 0, reaching, waiting)
        blocking.atomic_replace(target, NEW, **arguments)
        os._exit(0)
    os.close(reaching)
    # The end of the pipe says that the process has ended without having been stopped.
    assert select.select([reached], [], [], 30)[0], "neither reached nor ended"
    stopped = bool(os.read(reached, 1))
    if stopped:
        os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    assert status == (signal.SIGKILL if stopped else 0), status
    for fd in (reached, waiting, _going):
        os.close(fd)
    return stopped


def main(directory, variant):
    way, exists, arguments = VARIANTS[variant]
    target = Path(directory, "target")
    deaths = []
    with way():
        for nth in itertools.count():
            emptied(target.parent)
            if exists:
                target.write_bytes(OLD)
            stopped = killed_before(nth, target, arguments)
            found = {path.name: path.read_bytes() for path in target.parent.iterdir()}
            content = {OLD: "old", NEW: "new", None: "none"}.get(found.pop("target", None), "mixed")
            if not stopped:
                break
            blocking.atomic_replace(target, OLD)
            later = [name for name in os.listdir(directory) if name != "target"]
            deaths.append({"content": content, "left": list(found), "left later": later})
    print(json.dumps({"deaths": deaths, "end": content, "left": list(found)}))
