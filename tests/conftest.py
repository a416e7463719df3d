# SPDX-License-Identifier: LGPL-3.0-or-later
"""The session: a private mount namespace, three event loops, and a detector of blocking calls."""

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import hostile_mounts, many_mounts, nearly_full_list, various_mounts
from faulted import faulty, faulty_server, server_of_the_module
from filesystems import filesystem, place, require_fuse
from grown import ends, public, squashed

# Fixtures that live beside what they need.
__all__ = [
    "ends",
    "faulty",
    "faulty_server",
    "filesystem",
    "hostile_mounts",
    "many_mounts",
    "nearly_full_list",
    "place",
    "public",
    "server_of_the_module",
    "squashed",
    "various_mounts",
]

_OUTSIDE = "TRUENAS_OS_TESTS_LEFT_NAMESPACE"


def _namespace() -> str:
    return os.readlink("/proc/self/ns/mnt")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Begin again inside a private mount namespace: as root directly, else in a user namespace."""
    if outside := os.environ.get(_OUTSIDE):
        if outside == _namespace():
            raise pytest.UsageError("the tests are not in a mount namespace of their own")
        return
    if (tasks := len(os.listdir("/proc/self/task"))) != 1:
        # Other threads would stay behind in the old namespace.
        raise pytest.UsageError(f"{tasks} threads exist already, a plugin must have started one")
    config.pluginmanager.getplugin("capturemanager").suspend_global_capture(in_=True)
    sys.stdout.flush()
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    os.environ[_OUTSIDE] = _namespace()
    os.execvp(
        "unshare",
        ["unshare", *user, "--mount", "--propagation", "private", "--"]
        + [sys.executable, *sys.orig_argv[1:]],
    )


@pytest.fixture(
    params=[
        pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
        pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
        pytest.param(("trio", {}), id="trio"),
    ]
)
def anyio_backend(request: pytest.FixtureRequest) -> object:
    return request.param


@pytest.fixture(scope="session")
def unfrozen_at_the_end() -> Iterator[None]:
    yield
    gc.unfreeze()  # or others, who look for referrers, find none


@pytest.fixture(scope="module", autouse=True)
def quick_collections(unfrozen_at_the_end: None) -> None:
    """Tests of leaks collect garbage; what pytest keeps of ten thousand others is none."""
    gc.collect()
    gc.freeze()


@pytest.fixture(params=["blocking", "asyncio", "uvloop", "trio"])
def face(request: pytest.FixtureRequest) -> object:
    """Each face of the library, the async one on each event loop."""
    import faces

    return faces.Driven(faces.Face(request.param))


@pytest.fixture
def many(mount_dir: Path) -> Path:
    """More mounts than listmount(2) is asked for at once."""
    import witness

    for number in range(4200):
        witness.make(mount_dir, str(number))
    return mount_dir


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    """A FIFO that nobody has open: to open an end of it is to wait for the other."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


# Of the tests of serving, these need no device.
_WITHOUT_DEVICE = (
    "test_fuse_fuzz",
    "test_fuse_pathforms",
    "test_fuse_pathnodes",
    "test_fuse_protocol",
)


@pytest.fixture(autouse=True)
def device_of_fuse(request: pytest.FixtureRequest) -> None:
    """What serves a filesystem needs a device that an ordinary user may not open everywhere."""
    name = request.path.stem
    if name.startswith("test_fuse_") and name not in _WITHOUT_DEVICE:
        require_fuse()


@pytest.fixture(autouse=True)
def no_blocking_call_on_the_loop(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail the test if the library makes a blocking call in a thread with a running event loop."""
    import blocking_calls

    with blocking_calls.detected() as found:
        yield
    if found and "provokes_blocking_calls" not in request.keywords:
        pytest.fail("blocking calls on the event loop: " + ", ".join(found))


@pytest.fixture(scope="session")
def outside_namespace() -> str:
    """The mount namespace that the session was started in, as /proc/PID/ns/mnt reads."""
    return os.environ[_OUTSIDE]


@pytest.fixture
def mount_dir(tmp_path: Path) -> Iterator[Path]:
    """A directory of a tmpfs of its own; everything mounted below it is unmounted afterwards."""
    import kernel

    directory = tmp_path / "mounts"
    directory.mkdir()
    kernel.mount("tmpfs", directory, "tmpfs")
    try:
        yield directory
    finally:
        kernel.umount(directory, kernel.MNT_DETACH)
