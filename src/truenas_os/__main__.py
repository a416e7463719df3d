# SPDX-License-Identifier: LGPL-3.0-or-later
"""``python -m truenas_os``."""

from .cli import main

if __name__ == "__main__":
    raise SystemExit(main())
