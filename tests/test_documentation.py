# SPDX-License-Identifier: LGPL-3.0-or-later
"""Every code block of the README, the site and the docstrings runs, and prints what it says."""

import doctest
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import documents
import kernel
import pytest
from example_programs import limited
from filesystems import require_fuse
from forked_programs import Runner
from stuck import wait_until

from truenas_os import blocking

BLOCKS = list(documents.blocks())
# Run by .ci/run, as they stand.
COMMANDS = [each for each in BLOCKS if each.language == "sh" and each.place.startswith("README")]
TANK = [
    f"{kind}/{year}/{name}"
    for kind in ("photos", "docs")
    for year in (2025, 2026)
    for name in "abc"
]


def running(language):
    return [
        pytest.param(block, id=block.place)
        for block in BLOCKS
        if block.language == language and block.reason is None and block not in COMMANDS
    ]


@pytest.fixture(scope="module")
def runner():
    with Runner() as runner:
        yield runner


@pytest.fixture
def scene():
    """The files that examples name, on filesystems of their own, in use by nobody afterwards."""
    places = [Path("/mnt"), Path("/srv")]
    for place in places:
        kernel.mount("tmpfs", place, "tmpfs")
    try:
        tank = Path("/mnt/tank")
        tank.mkdir()
        kernel.mount("tank/data", tank, "tmpfs")
        places.insert(0, tank)
        for name in TANK:
            path = tank / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{name}\n" * 100)
        for name in ("scratch", "container"):
            Path("/mnt", name).mkdir()
        Path("/srv/data").mkdir()
        Path("/srv/data/report.txt").write_text("quarterly\n")
        Path("/srv/uploads/alice").mkdir(parents=True)
        Path("/srv/uploads/alice/notes.txt").write_text("hello from alice\n")
        Path("/srv/uploads/alice/link").symlink_to("/etc/passwd")
        before = kernel.mountinfo()
        yield
        assert kernel.mountinfo() == before
    finally:
        for place in places:
            kernel.umount(place)


def test_every_block_is_run_or_says_why_not():
    # The site's directives begin with a brace.
    languages = {block.language for block in BLOCKS if not block.language.startswith("{")}
    assert languages <= {"python", "sh", "text"}
    assert len(running("python")) > 50
    assert [block.reason for block in BLOCKS if block.reason] == []
    first, second = (block.code for block in COMMANDS)
    assert first.endswith("-m truenas_os mounts\n")
    assert second == "scripts/test\n"
    for path in documents.PAGES:
        assert documents.unseen(path.read_text()) == [], path


@pytest.mark.parametrize(
    "fence",
    ["```\nls\n```", "- so:\n  ```python\n  1\n  ```", "~~~sh\nls\n~~~", "````sh\nls\n````"],
)
def test_a_fence_that_would_not_be_run_is_seen_to(fence):
    assert documents.unseen(f"# Page\n\n{fence}\n\n```python\n1\n```\n")


@pytest.mark.parametrize(
    ("code", "seen"),
    [
        ("raise ValueError('wrong')", "ValueError: wrong"),
        ("import warnings; warnings.warn('old')", "UserWarning: old"),
        ("print(json)", "NameError"),
        ("import os; os._exit(3)", ""),
        ("import os; os.abort()", ""),
    ],
)
def test_a_program_that_fails_is_seen_to(runner, tmp_path, code, seen):
    ended = runner.run(code, "program", tmp_path)
    assert ended.status != 0
    assert seen in ended.stderr


def check_output(block, stdout):
    assert stdout or "print(" not in block.code
    if block.printed is not None:
        same = doctest.OutputChecker().check_output(block.printed, stdout, doctest.ELLIPSIS)
        assert same, stdout


@pytest.mark.parametrize("block", running("python"))
def test_a_python_block_runs_as_a_whole_program(block, runner, scene, tmp_path):
    if "fuse.mount(" in block.code:
        require_fuse()
    ended = runner.run(block.code, block.place, tmp_path)
    assert (ended.status, ended.stderr) == (0, "")
    check_output(block, ended.stdout)


@pytest.mark.parametrize("block", running("sh"))
def test_a_shell_block_runs(block, scene, tmp_path):
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    result = subprocess.run(
        ["unshare", "--mount", "sh", "-euc", block.code],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    check_output(block, result.stdout)


def program_in(page, what):
    """The one program of the page that has *what* in it."""
    (found,) = [
        block.code for block in BLOCKS if block.place.startswith(page) and what in block.code
    ]
    return found


def service(directory, mountpoint="/mnt/tank", prefix=()):
    """The service of the tutorial, started in *directory*."""
    code = program_in("docs/tutorial.md", "scan_or_go_on").replace("/mnt/tank", mountpoint)
    return limited([*prefix, sys.executable, "-W", "error", "-c", code], cwd=directory)


def reported(directory):
    lines = [json.loads(line) for line in (directory / "scan.jsonl").read_text().splitlines()]
    return sorted(line["path"].removeprefix("/mnt/tank/") for line in lines if "sha256" in line)


def test_the_service_goes_on_after_a_directory_that_cannot_be_read(scene, tmp_path):
    Path("/mnt/tank/docs/2025").chmod(0)
    nobody_special = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
    with service(tmp_path, prefix=nobody_special) as process:
        told = process.communicate()[0]
    assert process.returncode == 0, told
    assert "Permission denied: '/mnt/tank/docs/2025'" in told
    assert "complete: 9 checksums" in told
    assert reported(tmp_path) == sorted(name for name in TANK if "docs/2025" not in name)


def test_the_service_that_begins_anew_begins_a_new_report(scene, tmp_path):
    with blocking.iter_filesystem_contents("/mnt/tank", "tank/data") as items:
        gone = next(item.parent for item in items if item.isreg)
        (tmp_path / "scan.state").write_bytes(items.resume_token())
    (tmp_path / "scan.jsonl").write_text("of another time")
    shutil.rmtree(gone)
    with service(tmp_path) as process:
        told = process.communicate()[0]
    assert process.returncode == 0, told
    assert f"{gone} is gone: beginning anew" in told
    assert reported(tmp_path) == sorted(name for name in TANK if f"/mnt/tank/{name}"[:-2] != gone)


def test_the_service_is_stopped_while_it_waits_for_the_dataset(scene, tmp_path):
    with service(tmp_path, mountpoint="/mnt/scratch") as process:
        caught = re.compile(r"^SigCgt:\t(\S+)$", re.MULTILINE)
        status = Path(f"/proc/{process.pid}/status")
        bit = 1 << signal.SIGTERM - 1
        wait_until(lambda: int(caught.search(status.read_text())[1], 16) & bit, "the handler")
        process.terminate()
        assert process.communicate()[0] == "SIGTERM: stopping\n"
    assert process.returncode == 0


def test_the_change_of_owners_leaves_out_what_no_descriptor_changes(runner, scene, tmp_path):
    os.mkfifo("/mnt/tank/fifo")
    code = program_in("docs/howto/change-many-files.md", "os.fchown(")
    assert runner.run(code, "chown", tmp_path) == (0, "all 19\n", "")
