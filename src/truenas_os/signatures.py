# SPDX-License-Identifier: LGPL-3.0-or-later
"""What the async face returns where the synchronous one returns something else."""

import inspect
from collections.abc import Callable
from typing import Any


def returns(call: Callable[..., Any], result: Any) -> None:
    """Let *call*, which wraps a function of the synchronous face, tell that it gives *result*.

    Type checkers know it already; this is for :func:`help`, editors and the reference.
    """
    signature = inspect.signature(call).replace(return_annotation=result)
    call.__signature__ = signature  # type: ignore[attr-defined]
