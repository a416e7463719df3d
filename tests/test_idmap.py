# SPDX-License-Identifier: LGPL-3.0-or-later
"""idmap_userns: a user namespace with maps, made by a child that nobody notices."""

import asyncio
import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import faults
import kernel
import pytest
import traces
from faces import on_both_faces
from filesystems import needs_root
from stuck import AMPLE, wait_until
from witness import in_python

import truenas_os
from truenas_os.blocking import Fd, IdmapMapping, idmap_userns

# What root of a user namespace can map as well: its one id.
ZERO = (IdmapMapping(0, 0, 1),)
THREE = (
    IdmapMapping(0, 100000, 1000),
    IdmapMapping(1000, 300000, 5),
    IdmapMapping(70000, 500, 1),
)


def maps(userns):
    """What somebody inside of the namespace reads of its maps."""
    command = ["nsenter", f"--user=/proc/self/fd/{userns}", "--preserve-credentials"]
    done = subprocess.run(
        [*command, "cat", "/proc/self/uid_map", "/proc/self/gid_map"],
        pass_fds=[userns],
        stdout=subprocess.PIPE,
        check=True,
    )
    return [tuple(map(int, line.split())) for line in done.stdout.decode().splitlines()]


@on_both_faces
async def test_a_descriptor_of_a_user_namespace_of_its_own_is_returned(face):
    before = kernel.open_fds()
    userns = await face.idmap_userns(ZERO, ZERO)
    assert type(userns) is face.Fd
    assert not os.get_inheritable(userns)
    assert os.readlink(f"/proc/self/fd/{userns}").startswith("user:[")
    assert os.fstat(userns).st_ino != os.stat("/proc/self/ns/user").st_ino
    assert traces.children() == []
    await face.close(userns)
    assert kernel.open_fds() == before


def test_the_namespace_holds_the_maps():
    with idmap_userns(ZERO, ZERO) as userns:
        assert maps(userns) == [(0, 0, 1)] * 2


@needs_root
def test_the_namespace_holds_three_ranges_and_each_side_its_own():
    with idmap_userns(THREE, [(7, 8, 9)]) as userns:
        assert maps(userns) == [*map(tuple, THREE), (7, 8, 9)]


# The kernel reads the map within one page, in as many lines as fit.
MANY = [IdmapMapping(n, 2 * n, 1) for n in range(340)]


@needs_root
def test_as_many_ranges_as_the_kernel_takes_are_mapped():
    with idmap_userns(MANY, MANY[::-1]) as userns:
        assert sorted(maps(userns)) == sorted([*map(tuple, MANY)] * 2)


@needs_root
@pytest.mark.parametrize("outside", [0, (1 << 32) - 2])
def test_the_ends_of_the_ids_are_mapped(outside):
    last = (1 << 32) - 2
    with idmap_userns([(last, outside, 1)], [(0, 0, last + 1)]) as userns:
        assert maps(userns) == [(last, outside, 1), (0, 0, last + 1)]


def test_maps_may_be_any_sequence_of_triples():
    for form in (list, tuple):
        for mapping in (IdmapMapping(0, 0, 1), (0, 0, 1), [0, 0, 1]):
            with idmap_userns(form([mapping]), form([mapping])) as userns:
                assert os.fstat(userns)


TOO_LONG = [(4294960000 + n, 4294960000 + n, 1) for n in range(0, 400, 2)]
INVALID = {
    "empty": [],
    "nothing of it": [(0, 0, 0)],
    "negative length": [(5, 5, -1)],
    "negative inside": [(-1, 0, 1)],
    "negative outside": [(0, -1, 1)],
    "overlap inside": [(0, 0, 10), (9, 100, 1)],
    "overlap outside": [(0, 0, 10), (100, 9, 1)],
    "twice the same": [(0, 0, 1), (0, 0, 1)],
    "one within another": [(0, 0, 100), (50, 200, 1)],
    "the id that is none": [((1 << 32) - 1, 0, 1)],
    "the outer id that is none": [(0, (1 << 32) - 1, 1)],
    "past the end": [(1, 0, (1 << 32) - 1)],
    "more than 32 bits": [(1 << 32, 0, 1)],
    "341 ranges": [(n, n, 1) for n in range(0, 682, 2)],
    "4096 bytes": TOO_LONG,
}


@pytest.mark.parametrize("mappings", INVALID.values(), ids=INVALID)
@pytest.mark.parametrize("side", ["uid_map", "gid_map"])
def test_maps_that_the_kernel_would_refuse_are_refused_before_a_child_is_made(mappings, side):
    both = {"uid_map": ZERO, "gid_map": ZERO} | {side: mappings}
    with faults.count(None) as calls, pytest.raises(ValueError, match=side):
        idmap_userns(**both)
    assert calls.seen == 0


@pytest.mark.parametrize(
    "mappings",
    [None, 5, [5], [(0, 0)], [(0, 0, 1, 1)], [("0", "0", "1")], [(0, 0.0, 1)], [(0, 0, 1.0)]],
    ids=repr,
)
def test_what_is_no_map_is_refused_before_a_child_is_made(mappings):
    with faults.count(None) as calls, pytest.raises((TypeError, ValueError)):
        idmap_userns(mappings, ZERO)
    assert calls.seen == 0


def test_ids_that_this_user_namespace_does_not_have_are_EPERM():
    script = """
import ctypes, errno, kernel, os, traces
from truenas_os.blocking import idmap_userns
if not kernel.in_user_namespace():
    os.setgroups([])
    os.setresgid(1, 1, 1)
    os.setresuid(1, 1, 1)
    dumpable = 4  # or the files of its children in /proc would not be its own
    ctypes.CDLL(None).prctl(dumpable, 1)
before = kernel.open_fds()
try:
    idmap_userns([(0, 5, 1)], [(0, 5, 1)])
except OSError as error:
    assert error.errno == errno.EPERM, error
    assert error.filename.endswith("id_map")
else:
    raise AssertionError("mapped")
assert kernel.open_fds() == before
assert traces.children() == []
print("refused")
"""
    assert in_python(script) == "refused\n"


# The child


QUIET = """
import os, signal, sys
from truenas_os.blocking import idmap_userns
import traces
seen = []
if sys.argv[1] == "handled":
    signal.signal(signal.SIGCHLD, lambda *_: seen.append(1))
elif sys.argv[1] == "ignored":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
elif sys.argv[1] == "blocked":
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
for _ in range(50):
    idmap_userns([(0, 0, 1)], [(0, 0, 1)]).close()
assert seen == []
assert not signal.sigpending()
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    print("quiet", traces.children())
"""


@pytest.mark.parametrize("how", ["handled", "ignored", "blocked", "default"])
def test_no_SIGCHLD_comes_and_no_child_is_there_to_be_waited_for(how):
    done = subprocess.run(
        [sys.executable, "-c", QUIET, how],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
        stdout=subprocess.PIPE,
        check=True,
        timeout=AMPLE,
    )
    assert done.stdout == b"quiet []\n"


def test_a_wait_for_any_child_that_runs_meanwhile_gets_its_own_only():
    script = """
import os, threading
from truenas_os.blocking import idmap_userns
seen = []
pid = os.fork()
if not pid:
    os.execvp("sleep", ["sleep", "0.3"])
thread = threading.Thread(target=lambda: seen.append(os.waitpid(-1, 0)))
thread.start()
while thread.is_alive():
    idmap_userns([(0, 0, 1)], [(0, 0, 1)]).close()
assert seen == [(pid, 0)], seen
print("own")
"""
    assert in_python(script) == "own\n"


@pytest.mark.anyio
@pytest.mark.parametrize(
    "anyio_backend", [("asyncio", {"use_uvloop": False}), ("asyncio", {"use_uvloop": True})]
)
async def test_the_event_loops_own_children_are_not_disturbed(anyio_backend):
    async def run(code):
        process = await asyncio.create_subprocess_exec("sh", "-c", f"sleep 0.1; exit {code}")
        return await process.wait()

    async def make():
        async with await truenas_os.idmap_userns(ZERO, ZERO):
            pass

    codes = [run(code) for code in range(4)]
    results = await asyncio.gather(*codes, *(make() for _ in range(40)))
    assert results[:4] == [0, 1, 2, 3]


WAITING = """
import sys, threading, faults, traces
from truenas_os.blocking import idmap_userns
with faults.stopped("openat2", skip=int(sys.argv[1])) as stop:
    zero = [(0, 0, 1)]
    thread = threading.Thread(target=idmap_userns, args=(zero, zero), daemon=True)
    thread.start()
    stop.wait_reached()
    print(*traces.children(), flush=True)
    thread.join()
"""


def alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"  # dead, though whoever inherited it has not looked yet


@pytest.mark.parametrize("nth", range(3))
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_is_killed_meanwhile_leaves_no_child(nth, signum):
    with subprocess.Popen(
        [sys.executable, "-c", WAITING, str(nth)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
        stdout=subprocess.PIPE,
    ) as process:
        (child,) = map(int, process.stdout.readline().split())
        assert alive(child)
        process.send_signal(signum)
        process.wait(AMPLE)
    wait_until(lambda: not alive(child), "the child's end")


def test_the_child_holds_no_copy_of_a_descriptor():
    """Or a pipe whose other end waits for its end would not see it."""
    reading, writing = os.pipe()
    with faults.stopped("openat2") as stop:
        made = []
        thread = threading.Thread(target=lambda: made.append(idmap_userns(ZERO, ZERO)))
        thread.start()
        stop.wait_reached()
        assert len(traces.children()) == 1
        os.close(writing)
        assert os.read(reading, 1) == b""
        stop.go()
        thread.join(AMPLE)
    os.close(reading)
    (userns,) = made
    assert isinstance(userns, Fd)
    userns.close()
    assert traces.children() == []


def test_a_kernel_that_allows_no_user_namespaces_says_so():
    for code in (errno.ENOSPC, errno.EPERM, errno.EUSERS, errno.EAGAIN):
        with faults.failing("clone3", code), pytest.raises(OSError) as failed:
            idmap_userns(ZERO, ZERO)
        assert failed.value.errno == code


@needs_root
def test_in_a_pid_namespace_without_a_proc_of_its_own_the_right_child_is_mapped():
    """Its pid there is that of somebody else here."""
    script = (
        "import os\nfrom truenas_os.blocking import idmap_userns\n"
        "with idmap_userns([(0, 100000, 10)], [(0, 100000, 10)]) as fd:\n"
        "    print(os.getpid() < 10, os.readlink(f'/proc/self/fd/{fd}').startswith('user:'))\n"
        "    print(fd, flush=True)\n    input()\n"
    )
    child = subprocess.Popen(
        ["unshare", "--pid", "--fork", sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout.readline() == "True True\n"
    number = int(child.stdout.readline())
    (inner,) = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
    with Fd(os.open(f"/proc/{inner}/fd/{number}", os.O_RDONLY)) as userns:
        assert maps(userns) == [(0, 100000, 10)] * 2
    child.communicate("\n")
    assert child.returncode == 0


def test_a_child_that_somebody_else_has_reaped_is_fine():
    before = kernel.open_fds()
    with faults.failing("waitid", errno.ECHILD, times=1):
        idmap_userns(ZERO, ZERO).close()
    assert kernel.open_fds() == before
    os.waitpid(-1, 0x40000000)  # __WALL: the real one, which the fault has left
