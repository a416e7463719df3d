# SPDX-License-Identifier: LGPL-3.0-or-later
"""The walker's producer without Python; ``scripts/sanitize`` runs the same with sanitizers."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

BUILD = Path(__file__).parent / "native" / "build"


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    compiler = shlex.split(os.environ.get("CC", "cc"))[0]
    if shutil.which(compiler) is None:
        pytest.skip(f"there is no C compiler {compiler!r}")
    output = tmp_path_factory.mktemp("driver") / "walk_driver"
    subprocess.run([BUILD, output], check=True)
    return output


def test_every_scenario_of_the_driver_succeeds(driver, mount_dir):
    result = subprocess.run(
        [driver, mount_dir],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout
    assert result.stdout.count(" s\n") > 10
