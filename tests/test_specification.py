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
CALLS = (
    "listmount|statmount|open_mount_by_id|openat2|statx|fhandle"
    "|move_mount|mount_setattr|fsopen|fsconfig|fsmount"
)
# What is there to begin with, and what an example leaves of it or adds to it.
MOUNTS = {
    "/old/path": "tmpfs rw",
    "/mnt/data": "tmpfs rw",
    "/mnt/data/sub": "tmpfs rw",
    "/mnt/data/sub/below": "tmpfs rw",
}
LEFT = {
    "move_mount": {"/old/path": None, "/new/path": "tmpfs rw"},
    "mount_setattr": dict.fromkeys(list(MOUNTS)[1:], "tmpfs ro"),
    "fsmount": {"/mnt/mytmpfs": "tmpfs ro size=524288k"},
    "fsmount_complete": {"/mnt/secure_tmp": "tmpfs rw nosuid nodev size=102400k nr_inodes=10240"},
}


def synchronous(example):
    return example.replace("import truenas_os\n", "from truenas_os import blocking as truenas_os\n")


def with_await(example):
    body = re.sub(rf"truenas_os\.({CALLS})\(", r"await truenas_os.\1(", example)
    body = re.sub(r"= (\w+\.open\(mount_fd)", r"= await \1", body)
    body = re.sub(r"for (mount_info|item) in", r"async for \1 in", body)
    body = textwrap.indent(body.replace("{", "{{").replace("}", "}}"), "    ")
    return f"import {{library}}\nasync def main():\n{body}\n{{library}}.run(main{{call}})"


FACES = {
    "blocking": synchronous,
    "asyncio": lambda example: with_await(example).format(library="asyncio", call="()"),
    "trio": lambda example: with_await(example).format(library="trio", call=""),
}


def test_every_example_is_here():
    assert [path.stem for path in EXAMPLES] == sorted(
        "complete fhandle fsconfig fsmount fsmount_complete fsopen iter_filesystem_contents "
        "iter_filesystem_contents_skip iter_mount listmount mount_setattr move_mount "
        "open_mount_by_id openat2 statmount statx".split()
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
    printed, _, left = result.stdout.partition("=== left ===\n")
    expected = {
        "complete": r"=== Filesystem Mounts ===\n(.*\n)*/ +tmpfs\n(.*\n)*Size: \d+ bytes\n"
        r"(.*\n)*Read \d+ bytes\n(.*\n)*Serialized to \d+ bytes",
        "fhandle": r"Mount ID: \d{10,}",
        "fsmount_complete": "Filesystem mounted at /mnt/secure_tmp\n$",
        "iter_filesystem_contents": r"(/mnt/tank/(file|skip_this|skip_this/hidden|subdir|"
        r"subdir/file): \d+ bytes\n){5}$",
        "iter_mount": r"(.*\n)*/: tmpfs",
        "listmount": r"Found \d+ mounts",
        "statmount": r"Mount point: /.*\nFilesystem: \w+",
        "statx": r"Size: 8\nBirth time: \d+\.\d+\nMount ID: \d+",
    }.get(example.stem, "$")
    assert re.match(expected, printed), printed
    if result.returncode == 0:
        assert_left(example.stem, left.splitlines())
    assert all(str(tmp_path) != mount.mount_point for mount in kernel.mountinfo())


def assert_left(example, lines):
    """Whether mountinfo and the filesystem contexts are what the example says it makes of them."""
    contexts = [line for line in lines if line.startswith("a context, ")]
    assert contexts == {
        "fsopen": ["a context, Invalid argument"],  # nothing is created yet
        "fsconfig": ["a context, 1024 MiB, mode 755"],
    }.get(example, [])
    mounts = {line.split()[0]: set(re.split("[ ,]", line)) for line in lines if line[0] == "/"}
    expected = MOUNTS | LEFT.get(example, {})
    for point, options in expected.items():
        assert (point in mounts) == (options is not None)
        assert set((options or "").split()) <= mounts.get(point, set())
    assert ("ro" in mounts["/mnt/data"]) == (example == "mount_setattr")
