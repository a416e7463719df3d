# SPDX-License-Identifier: LGPL-3.0-or-later
"""Filesystems whose callbacks are given paths, as ``async def`` or as plain functions.

Serve an object of a class derived from :class:`PathOperations` with :func:`truenas_os.fuse.mount`,
or functions with :func:`main`, as in
``asyncio.run(fuse.path.main(mountpoint="/mnt", getattr=my_getattr, getdir=my_getdir))``.
"""

import logging
import re
from collections.abc import Callable
from typing import Any, Final

import anyio

from ..blocking.arguments import StrOrBytesPath
from .datatypes import ENOATTR, XATTR_CREATE, XATTR_REPLACE, FileInfo, FUSEError
from .options import parse_options
from .pathcallbacks import CALLBACKS, Flock, PathOperations
from .pathcalls import Context, PollHandle, fuse_get_context, notify_poll, pollhandle_destroy
from .program import ended_by_signals, wait_for
from .session import Session

__all__ = [
    "CALLBACKS",
    "Context",
    "ENOATTR",
    "FUSEError",
    "FileInfo",
    "Flock",
    "PathOperations",
    "PollHandle",
    "XATTR_CREATE",
    "XATTR_REPLACE",
    "fuse_get_context",
    "fuse_version",
    "main",
    "notify_poll",
    "pollhandle_destroy",
]

_VERSION: Final = 2.8
_OPTION: Final = re.compile(r"(?:\\.|[^,])+")
_ESCAPED: Final = re.compile(r"\\([\\,])")


def fuse_version() -> float:
    """The version of libfuse's interface that the callbacks are those of: 2.8."""
    return _VERSION


async def main(
    *,
    mountpoint: StrOrBytesPath,
    mountopts: str = "",
    debug: bool = False,
    threaded: bool = False,
    nullpath_ok: bool = False,
    utimens_as_array: bool = False,
    hard_remove: bool = False,
    **callbacks: Callable[..., Any],
) -> None:
    """Mount a filesystem of *callbacks*, and serve it until it is unmounted or a signal comes.

    The callbacks are the methods of :class:`PathOperations`, which describes them, and the other
    arguments but for *mountopts*. With *debug* and no logging set up, lines go to standard error.

    *mountopts*: the options of :func:`mount`, as texts with commas between them, such as
    ``"allow_other,fsname=hello"``; a comma in a value is ``\\,``, a backslash ``\\\\``. Unless
    there is an ``access`` callback, ``default_permissions`` is one of them: the kernel checks
    modes.

    What ends this unmounts the filesystem while it still serves. In the main thread, SIGINT and
    SIGTERM end it, unless they have handlers of the program's own.

    Raises :exc:`TypeError` for a callback that is not known, is no function, or takes other
    arguments; otherwise as :func:`mount` and :meth:`Session.wait`.
    """
    operations = PathOperations()
    for name, callback in callbacks.items():
        if name not in CALLBACKS:
            raise TypeError(f"unknown callback {name!r}; those known are: {', '.join(CALLBACKS)}")
        if not callable(callback):
            raise TypeError(f"{name} must be a function, not {callback!r}")
        setattr(operations, name, callback)
    operations.debug = debug
    operations.threaded = threaded
    operations.nullpath_ok = nullpath_ok
    operations.utimens_as_array = utimens_as_array
    operations.hard_remove = hard_remove
    if debug:
        logging.basicConfig(format="%(message)s")
        logging.getLogger("truenas_os.fuse").setLevel(logging.INFO)
    options = [_ESCAPED.sub(r"\1", text) for text in _OPTION.findall(mountopts)]
    if "access" not in callbacks:
        options.append("default_permissions")
    session = Session(operations, mountpoint, parse_options(options))
    async with session:
        stop = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait_for, session, stop)
            with ended_by_signals(stop):
                await stop.wait()
            tasks.cancel_scope.cancel()
    await session.wait()
