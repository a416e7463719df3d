# SPDX-License-Identifier: LGPL-3.0-or-later
from typing import Any

ffi: Any
lib: Any
