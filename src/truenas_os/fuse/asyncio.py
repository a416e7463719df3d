# SPDX-License-Identifier: LGPL-3.0-or-later
"""For filesystems that choose their event loop: there is nothing to choose here."""


def enable() -> None:
    """Do nothing: asyncio just works."""


def disable() -> None:
    """Do nothing: trio just works."""
