# SPDX-License-Identifier: LGPL-3.0-or-later
"""The native layer: system calls that return 0, a count or ``-errno``."""

from ._lib import ffi, lib

__all__ = ["ffi", "lib"]
