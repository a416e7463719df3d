# SPDX-License-Identifier: LGPL-3.0-or-later
"""The examples of the specification: verbatim in the synchronous face, else with ``await``."""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import kernel
import pytest

HERE = Path(__file__).parent
EXAMPLES = sorted((HERE / "specification").glob("*.py"), key=lambda path: path.stem)
CALLS = "listmount|statmount|open_mount_by_id|openat2|statx|fhandle"


def synchronous(example):
    return example.replace("import truenas_os\n", "from truenas_os import blocking as truenas_os\n")


def with_await(example):
    body = re.sub(rf"truenas_os\.({CALLS})\(", r"await truenas_os.\1(", example)
    body = re.sub(r"= (\w+\.open\(mount_fd)", r"= await \1", body)
    body = body.replace("for mount_info in truenas_os", "async for mount_info in truenas_os")
    body = textwrap.indent(body.replace("{", "{{").replace("}", "}}"), "    ")
    return f"import {{library}}\nasync def main():\n{body}\n{{library}}.run(main{{call}})"


FACES = {
    "blocking": synchronous,
    "asyncio": lambda example: with_await(example).format(library="asyncio", call="()"),
    "trio": lambda example: with_await(example).format(library="trio", call=""),
}


def test_every_example_is_here():
    assert [path.stem for path in EXAMPLES] == sorted(
        "complete fhandle iter_mount listmount open_mount_by_id openat2 statmount statx".split()
    )


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(example, face, tmp_path):
    result = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", sys.executable, "-W", "error"]
        + [HERE / "fresh_root.py", tmp_path, FACES[face](example.read_text())],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if example.stem == "fhandle" and kernel.in_user_namespace():
        # The kernel opens handles for an ordinary user's root on few mounts, and not on this one.
        assert result.returncode == 1
        assert "PermissionError" in result.stderr
        assert "open_by_handle_at() began at descriptor" in result.stderr
    else:
        assert (result.returncode, result.stderr) == (0, "")
    expected = {
        "complete": r"=== Filesystem Mounts ===\n(.*\n)*/ +tmpfs\n(.*\n)*Size: \d+ bytes\n"
        r"(.*\n)*Read \d+ bytes\n(.*\n)*Serialized to \d+ bytes",
        "fhandle": r"Mount ID: \d{10,}",
        "iter_mount": r"(.*\n)*/: tmpfs",
        "listmount": r"Found \d+ mounts",
        "open_mount_by_id": "",
        "openat2": "",
        "statmount": r"Mount point: /.*\nFilesystem: \w+",
        "statx": r"Size: 8\nBirth time: \d+\.\d+\nMount ID: \d+",
    }[example.stem]
    assert re.match(expected, result.stdout), result.stdout
    assert all(str(tmp_path) != mount.mount_point for mount in kernel.mountinfo())
