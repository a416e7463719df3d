# SPDX-License-Identifier: LGPL-3.0-or-later
"""A server that logs every request: what was asked, by whom, the reply, and the time it took."""

import errno
import logging
from time import perf_counter
from typing import Any, Final

from .handlers import Handler, Reply
from .protocol import Request
from .server import Server
from .wire import Opcode

_log = logging.getLogger("truenas_os.fuse")

# Where in the body of a request the name of an entry begins.
_NAMES: Final = {
    Opcode.LOOKUP: 0,
    Opcode.SYMLINK: 0,
    Opcode.UNLINK: 0,
    Opcode.RMDIR: 0,
    Opcode.MKDIR: 8,
    Opcode.LINK: 8,
    Opcode.RENAME: 8,
    Opcode.MKNOD: 16,
    Opcode.CREATE: 16,
    Opcode.RENAME2: 16,
}


class LoggingServer(Server):
    """As :class:`Server`, with a line at the level INFO for each request."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        # When the handlers under way have begun. (The number of a request may change.)
        self._begun: dict[Request, float] = {}

    async def _handle(self, handler: Handler, request: Request) -> None:
        self._begun[request] = perf_counter()
        await super()._handle(handler, request)
        if request in self._begun:
            self._tell(request, "no reply")

    def _special(self, request: Request) -> None:
        self._begun[request] = perf_counter()
        super()._special(request)
        if request in self._begun:
            self._tell(request, "no reply")

    def _reply(self, request: Request, body: Reply | None) -> bool:
        sent = super()._reply(request, body)
        if sent:
            self._tell(request, f"{0 if body is None else len(body)} bytes")
        return sent

    def _reply_error(self, request: Request, code: int) -> None:
        super()._reply_error(request, code)
        self._tell(request, errno.errorcode.get(code, str(code)) if code else "0 bytes")

    def _tell(self, request: Request, reply: str) -> None:
        now = perf_counter()
        milliseconds = (now - self._begun.pop(request, now)) * 1000
        about = str(request)
        if (at := _NAMES.get(request.opcode)) is not None:  # type: ignore[call-overload]
            about += f" {request.body[at:].partition(bytes(1))[0]!r}"
        _log.info("%s from process %d: %s, %.3f ms", about, request.pid, reply, milliseconds)
