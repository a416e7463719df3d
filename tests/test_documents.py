# SPDX-License-Identifier: LGPL-3.0-or-later
"""Every code block of the README and the documentation runs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from filesystems import require_fuse

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks():
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))):
        for match in BLOCK.finditer(path.read_text()):
            line = path.read_text()[: match.start()].count("\n") + 1
            yield pytest.param(match[1], match[2], id=f"{path.name}:{line}")


PYTHON = [block for block in blocks() if block.values[0] == "python"]


def test_a_block_is_python_or_one_of_the_two_commands():
    others = [block.values for block in blocks() if block.values[0] != "python"]
    # The commands themselves are run by .ci/run, as they stand.
    assert [language for language, _ in others] == ["sh", "sh"]
    assert others[0][1].endswith("-m truenas_os mounts\n")
    assert others[1][1] == "scripts/test\n"
    assert len(PYTHON) >= 2


@pytest.mark.parametrize(("_language", "code"), PYTHON)
def test_a_python_block_runs_as_a_whole_program(_language, code):
    if "fuse.mount(" in code:
        require_fuse()
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.count("\n") > 1
