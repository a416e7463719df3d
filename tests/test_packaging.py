# SPDX-License-Identifier: LGPL-3.0-or-later
"""The installed distribution: one wheel for every later Python, the library and nothing else."""

import json
import re
import sysconfig
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DISTRIBUTION = metadata.distribution("truenas-os")


@pytest.fixture
def installed():
    origin = json.loads(DISTRIBUTION.read_text("direct_url.json") or "{}")
    if origin.get("dir_info", {}).get("editable"):
        pytest.skip("the installation is editable, there is no wheel to look at")
    return {str(file) for file in DISTRIBUTION.files or ()}


def test_the_wheel_serves_every_later_python(installed):
    tag = re.search(r"^Tag: (.*)$", DISTRIBUTION.read_text("WHEEL") or "", re.MULTILINE)
    assert tag is not None
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        assert "abi3" not in tag[1]  # the stable ABI of free-threaded builds is yet to come
    else:
        assert tag[1].startswith("cp311-abi3-linux_")
        assert "truenas_os/_native/_lib.abi3.so" in installed


def test_the_wheel_holds_the_library_and_its_licences(installed):
    names = {name for name in installed if not name.endswith(".pyc")}
    assert "truenas_os/py.typed" in names
    assert {Path(name).suffix for name in names if name.startswith("truenas_os/")} <= {
        ".py",
        ".pyi",
        ".so",
        ".typed",
    }
    assert {"COPYING", "COPYING.LESSER"} <= {Path(name).name for name in names}


def test_the_runtime_dependencies_are_three():
    required = [line for line in DISTRIBUTION.requires or () if "extra ==" not in line]
    names = sorted(re.match(r"[\w-]+", line)[0] for line in required)
    assert names == ["anyio", "cffi", "typing-extensions"]


def test_the_native_layer_needs_no_kernel_headers():
    """A build on a machine with old ones serves new kernels."""
    sources = [
        path
        for path in (ROOT / "src" / "truenas_os" / "_native").iterdir()
        if path.suffix in (".c", ".h")
    ]
    assert len(sources) > 8
    for path in sources:
        assert not re.search(r"#\s*include\s*<(linux|asm)/", path.read_text()), path
