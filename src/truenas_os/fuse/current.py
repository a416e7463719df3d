# SPDX-License-Identifier: LGPL-3.0-or-later
"""The request that a handler serves."""

from contextvars import ContextVar
from typing import TYPE_CHECKING

from .protocol import Request

if TYPE_CHECKING:
    from .server import Server

serving: ContextVar[tuple["Server", Request]] = ContextVar("serving")


def current_request() -> Request:
    """The request that the handler serves which calls this, or a task that the handler started.

    It has ``opcode``, ``unique``, ``nodeid``, ``uid``, ``gid`` and ``pid``; ``fh``, ``flags`` and
    ``lock_owner``, which are None where the request has none; and ``interrupted``, whether the
    caller has got a signal meanwhile. Raises :exc:`LookupError` outside a handler.
    """
    return serving.get()[1]


def active_session() -> "Server | None":
    """The server of the request; None outside a handler."""
    found = serving.get(None)
    return None if found is None else found[0]
