# SPDX-License-Identifier: LGPL-3.0-or-later
"""The shape of the source: imports point one way, both faces have the same names."""

import ast
import inspect
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from pathlib import Path
from typing import IO, get_args, get_origin

import faults
import pytest

import truenas_os
from truenas_os import blocking, events

ROOT = Path(__file__).parents[1]
PACKAGE = Path(truenas_os.__file__).parent

# Lower layers first. A module may import from its own layer and from those before it.
LAYERS = ["truenas_os._native", "truenas_os.blocking", "truenas_os._threads", "truenas_os"]


def modules():
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(("truenas_os", *path.relative_to(PACKAGE).with_suffix("").parts))
        if name != "truenas_os._native.build":
            yield name.removesuffix(".__init__"), path


def layer(name):
    owners = [each for each in LAYERS if name == each or name.startswith(f"{each}.")]
    return LAYERS.index(max(owners, key=len))


def imported(name, path):
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1]
            source = ".".join([*base, node.module or ""]).rstrip(".") if node.level else node.module
            yield source
            if node.module is None:
                yield from (f"{source}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize(
    ("name", "path"), list(modules()), ids=lambda value: str(value).split("/")[-1]
)
def test_imports_point_downwards(name, path):
    for target in imported(name, path):
        if target.startswith("truenas_os") and target != "truenas_os":
            assert layer(target) <= layer(name), f"{name} imports {target}"


def test_no_module_bears_the_name_of_a_public_function():
    functions = {name for name in truenas_os.__all__ if callable(getattr(truenas_os, name))}
    stems = {path.stem for _, path in modules() if "cli" not in path.parts}
    # The class and its module, which nobody imports by name.
    assert stems & functions == set()


def test_the_faces_have_the_same_names():
    assert set(truenas_os.__all__) - set(blocking.__all__) == {"AsyncFile", "set_thread_limit"}
    assert set(blocking.__all__) <= set(truenas_os.__all__)
    assert len(truenas_os.__all__) == len(set(truenas_os.__all__))


FUNCTIONS = [name for name in blocking.__all__ if inspect.isfunction(getattr(blocking, name))]
# What is iterated over, and begins only then.
ITERATORS = ["iter_filesystem_contents", "walk", "watch_mounts"]
BLOCKS = "atomic_write bind loop_device mounted overlay".split()
WITH_TIMEOUT = "wait_for_mount wait_for_unmount watch_mounts".split()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_faces_have_the_same_signatures(name):
    ours, theirs = getattr(truenas_os, name), getattr(blocking, name)
    parameters = dict(inspect.signature(theirs).parameters)
    if name in WITH_TIMEOUT:
        # Who awaits has timeouts of another kind, and events of the loop.
        assert parameters.pop("timeout").default is None
    if name == "watch_mounts":
        parameters["stop_event"] = parameters["stop_event"].replace(
            annotation=events.StopEvent | None
        )
    assert inspect.signature(ours).parameters == parameters
    assert not inspect.iscoroutinefunction(theirs)
    if name == "iter_mount":
        assert isinstance(ours(), AsyncIterator)
    else:
        assert inspect.iscoroutinefunction(ours) == (name not in [*BLOCKS, *ITERATORS])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_call_tells_that_it_returns_what_its_face_has(name):
    told = [inspect.signature(getattr(truenas_os, name)).return_annotation]
    for each in told:
        told += get_args(each)
    differing = {getattr(blocking, name) for name in ("Fd", "FilesystemIterator", "MountTree")}
    assert differing.isdisjoint(told)
    assert IO not in map(get_origin, told)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("atomic_write", ("/nonexistent",)),
        ("bind", ("/", "/nonexistent")),
        ("loop_device", ("/nonexistent",)),
        ("mounted", ("tmpfs", "/nonexistent")),
        ("overlay", ("/nonexistent", ["/", "/usr"])),
    ],
)
def test_a_block_is_of_the_kind_of_its_face_and_calls_nothing_before_it_begins(name, arguments):
    with faults.count(None) as calls:
        ours = getattr(truenas_os, name)(*arguments)
        theirs = getattr(blocking, name)(*arguments)
    assert calls.seen == 0
    assert isinstance(ours, AbstractAsyncContextManager)
    assert not isinstance(ours, AbstractContextManager)
    assert isinstance(theirs, AbstractContextManager)
    assert not isinstance(theirs, AbstractAsyncContextManager)


def public(cls):
    return {name: getattr(cls, name) for name in dir(cls) if not name.startswith("_")}


@pytest.mark.parametrize("name", ["Fd", "LoopDevice", "Mount", "MountTree"])
def test_the_classes_have_the_same_methods_and_fields(name):
    ours, theirs = public(getattr(truenas_os, name)), public(getattr(blocking, name))
    assert ours.keys() - theirs.keys() == ({"aclose"} if name == "Fd" else set())
    assert theirs.keys() <= ours.keys()
    for each, value in theirs.items():
        if inspect.isfunction(value):
            assert inspect.signature(ours[each]).parameters == inspect.signature(value).parameters
            # Only this one may have to ask the kernel.
            assert inspect.iscoroutinefunction(ours[each]) == (each == "containing")
            assert not inspect.iscoroutinefunction(value)
    assert getattr(getattr(truenas_os, name), "_fields", ()) == getattr(
        getattr(blocking, name), "_fields", ()
    )


def test_the_signatures_are_those_of_the_specification():
    flags = truenas_os
    for face in (truenas_os, blocking):
        for name, expected in {
            "listmount": {"mnt_id": flags.LSMT_ROOT, "last_mnt_id": 0, "reverse": False},
            "statmount": {
                "mnt_id": inspect.Parameter.empty,
                "mask": flags.STATMOUNT_MNT_BASIC | flags.STATMOUNT_SB_BASIC,
            },
            "open_mount_by_id": {"mount_id": inspect.Parameter.empty, "flags": 0o200000},
            "openat2": {
                "dirfd": inspect.Parameter.empty,
                "pathname": inspect.Parameter.empty,
                "flags": inspect.Parameter.empty,
                "mode": 0,
                "resolve": 0,
            },
            "statx": {
                "dirfd": inspect.Parameter.empty,
                "pathname": inspect.Parameter.empty,
                "flags": 0,
                "mask": flags.STATX_BASIC_STATS | flags.STATX_BTIME,
            },
            # Its examples leave out the first.
            "move_mount": {
                "from_dirfd": flags.AT_FDCWD,
                "from_path": None,
                "to_dirfd": flags.AT_FDCWD,
                "to_path": None,
                "flags": 0,
            },
            "fspick": {
                "dirfd": inspect.Parameter.empty,
                "path": inspect.Parameter.empty,
                "flags": 0,
            },
            "open_tree": {
                "dirfd": inspect.Parameter.empty,
                "path": inspect.Parameter.empty,
                "flags": 0,
            },
            "umount2": {"target": inspect.Parameter.empty, "flags": 0},
            "fhandle": {
                "path": None,
                "dir_fd": flags.AT_FDCWD,
                "flags": 0,
                "handle_bytes": None,
                "mount_id": None,
            },
        }.items():
            parameters = inspect.signature(getattr(face, name)).parameters
            given = {
                parameter.name: parameter.default
                for parameter in parameters.values()
                if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
            }
            assert given == expected, name


def test_what_the_specification_has_as_keywords_are_keywords():
    flags = truenas_os
    empty = inspect.Parameter.empty
    for face in (truenas_os, blocking):
        for name, expected in {
            "fsopen": {"fs_name": empty, "flags": 0},
            "fsconfig": {"fs_fd": empty, "cmd": empty, "key": None, "value": None, "aux": 0},
            "fsmount": {"fs_fd": empty, "flags": 0, "attr_flags": 0},
            "mount_setattr": {
                "path": empty,
                "attr_set": 0,
                "attr_clr": 0,
                "propagation": 0,
                "userns_fd": 0,
                "dirfd": flags.AT_FDCWD,
                "flags": 0,
            },
        }.items():
            parameters = inspect.signature(getattr(face, name)).parameters.values()
            assert {p.name: p.default for p in parameters} == expected, name
            assert all(p.kind is p.KEYWORD_ONLY for p in parameters), name


def test_every_public_name_is_documented():
    for name in truenas_os.__all__:
        value = getattr(truenas_os, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert inspect.getdoc(value), name


def test_importing_needs_no_system_call_that_a_kernel_may_lack():
    """Every call of the native layer fails, and the import does not notice."""
    result = subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            "-c",
            "from truenas_os._native._lib import lib\n"
            "import errno, sys\n"
            "for name in [n for n in sys.modules if n.startswith('truenas_os')]:\n"
            "    if name != 'truenas_os._native._lib': del sys.modules[name]\n"
            "lib.tos_fault_arm(-1, 0, 1 << 40, errno.ENOSYS, -1, -1)\n"
            "import truenas_os, truenas_os.blocking\n"
            "assert lib.tos_fault_disarm() == 0\n",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")


def sources():
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        return [path for path in ROOT.rglob("*") if path.is_file() and path.suffix in (".py", ".c")]
    return [ROOT / name for name in listed.stdout.splitlines()]


def test_every_source_file_names_its_licence():
    checked = 0
    for path in sources():
        is_script = path.parent.name in ("scripts", ".ci")
        if (path.suffix in (".py", ".c", ".h", ".toml") or is_script) and path.exists():
            if path.parent.name == "specification":
                continue  # the specification's own words
            checked += 1
            first = path.read_text().splitlines()[:2]
            assert any("SPDX-License-Identifier: LGPL-3.0-or-later" in line for line in first), path
    assert checked > 30
