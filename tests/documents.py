# SPDX-License-Identifier: LGPL-3.0-or-later
"""The code blocks of the README, the site and the docstrings."""

import ast
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md")))
# A fence, perhaps below a comment why it is not run, and perhaps above the fence of what it prints.
_FENCE = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^\n]*) -->\n\n?)?"
    r"^```(?P<language>[^\s`]+)[^\n]*\n(?P<code>.*?)^```$"
    r"(?:\n\n```text\n(?P<printed>.*?)^```$)?",
    re.DOTALL | re.MULTILINE,
)
_ANY_FENCE = re.compile(r"^[ \t>]*(?:```|~~~).*", re.MULTILINE)
_LITERAL = re.compile(r"::\n\n((?:(?:    [^\n]*)?\n)+)")


class Block(NamedTuple):
    """A code block, and what the page says of it."""

    place: str
    language: str
    code: str
    reason: str | None = None
    printed: str | None = None


def unseen(text: str) -> list[str]:
    """The fences that :func:`blocks` does not find: indented, without a language, of tildes."""
    return _ANY_FENCE.findall(_FENCE.sub("", text))


def blocks() -> Iterator[Block]:
    for path in PAGES:
        text = path.read_text()
        for match in _FENCE.finditer(text):
            line = text[: match.start("code")].count("\n")
            place = f"{path.relative_to(ROOT)}:{line}"
            yield Block(place, *match.group("language", "code", "reason", "printed"))
    for path in sorted((ROOT / "src").glob("**/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                for code in _LITERAL.findall((ast.get_docstring(node) or "") + "\n"):
                    place = f"{path.relative_to(ROOT)}:{getattr(node, 'name', 'module')}"
                    yield Block(place, "python", textwrap.dedent(code))
