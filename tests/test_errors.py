# SPDX-License-Identifier: LGPL-3.0-or-later
"""What a call leaves behind when it fails, is interrupted, or finds no descriptor free; and Fd."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import faults
import kernel
import pytest
from faces import Face, on_both_faces
from faults import failing_counted

from truenas_os import blocking
from truenas_os.blocking import AT_EMPTY_PATH, AT_FDCWD, FH_AT_EMPTY_PATH, RESOLVE_BENEATH

# -- every errno of every call -------------------------------------------------------------------


class Case(NamedTuple):
    """A call, and what its errors must say."""

    syscall: str
    make: Callable[[Face, int, blocking.Fd], Awaitable[Any]]
    filename: object
    filename2: object = None
    relative: bool = True
    since: str | None = None


def handle_of(face: Face) -> Any:
    return face.library.fhandle(handle_bytes=b"\4\0\0\0\1\0\0\0abcd", mount_id=7)


CASES = {
    "openat2": Case(
        "openat2", lambda face, d, fd: face.openat2(d, "name", os.O_RDONLY), "name", since="5.6"
    ),
    "openat2 bytes": Case(
        "openat2",
        lambda face, d, fd: face.openat2(AT_FDCWD, b"na\xffme", os.O_RDONLY),
        b"na\xffme",
        relative=False,
        since="5.6",
    ),
    "statx": Case("statx", lambda face, d, fd: face.statx(d, "name"), "name", since="4.11"),
    "renameat2": Case(
        "renameat2",
        lambda face, d, fd: face.renameat2(d, "old", d, b"new"),
        "old",
        b"new",
        since="3.15",
    ),
    "fhandle": Case(
        "name_to_handle_at", lambda face, d, fd: face.fhandle("name", d), "name", since="2.6.39"
    ),
    "fhandle.open": Case(
        "open_by_handle_at",
        lambda face, d, fd: face.call(handle_of(face).open, d),
        None,
        since="2.6.39",
    ),
    "Fd.close": Case("close", lambda face, d, fd: face.close(fd), int, relative=False),
}

# What the man pages list under ERRORS; open(2)'s count for those that open.
_OPEN = """EACCES EBADF EBUSY EDQUOT EEXIST EFAULT EFBIG EINVAL EISDIR ELOOP EMFILE ENAMETOOLONG
ENFILE ENODEV ENOENT ENOMEM ENOSPC ENOTDIR ENXIO EOPNOTSUPP EOVERFLOW EPERM EROFS ETXTBSY
EWOULDBLOCK"""
ERRNOS = {
    "openat2": _OPEN + " E2BIG EAGAIN EXDEV",
    "statx": "EACCES EBADF EFAULT EINVAL ELOOP ENAMETOOLONG ENOENT ENOMEM ENOTDIR",
    "renameat2": """EACCES EBADF EBUSY EDQUOT EEXIST EFAULT EINVAL EISDIR ELOOP EMLINK ENAMETOOLONG
    ENOENT ENOMEM ENOSPC ENOTDIR ENOTEMPTY EPERM EROFS EXDEV""",
    "name_to_handle_at": """EACCES EBADF EFAULT EINVAL ELOOP ENAMETOOLONG ENOENT ENOMEM ENOTDIR
    EOPNOTSUPP EOVERFLOW""",
    "open_by_handle_at": _OPEN + " ESTALE",
    "close": "EBADF EDQUOT EIO ENOSPC",
}
EVERY_ERROR = [
    pytest.param(CASES[name], getattr(errno, code), id=f"{name}-{code}")
    for name in CASES
    # EIO may come from any filesystem, ENOSYS from any seccomp filter.
    for code in sorted({"EIO", "ENOSYS", *ERRNOS[CASES[name].syscall].split()})
]


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "name").touch()
    fd = os.open(tmp_path, os.O_RDONLY)
    yield tmp_path, fd
    os.close(fd)


async def failure(face: Face, case: Case, dirfd: int, fd: blocking.Fd) -> OSError:
    before = kernel.open_fds()
    with pytest.raises(OSError) as failed:
        await case.make(face, dirfd, fd)
    assert kernel.open_fds() == before
    return failed.value


@pytest.mark.parametrize(("case", "code"), EVERY_ERROR)
@on_both_faces
async def test_every_error_arrives_whole_and_leaks_no_descriptor(face, directory, case, code):
    path, dirfd = directory
    fd = face.Fd(os.open(path, os.O_PATH))
    filename = int(fd) if case.filename is int else case.filename
    await face.statx(AT_FDCWD, "/")  # opens what an event loop opens late
    try:
        with faults.failing(case.syscall, code):
            error = await failure(face, case, dirfd, fd)
    finally:
        os.close(fd)
    names = () if filename is None else (filename, None, case.filename2)
    expected = OSError(code, os.strerror(code), *names)
    assert type(error) is type(expected)
    assert (error.errno, error.strerror) == (code, os.strerror(code))
    assert (error.filename, error.filename2) == (filename, case.filename2)
    assert str(error) == str(expected)
    notes = "\n".join(getattr(error, "__notes__", ()))
    assert (str(path) in notes) == case.relative
    if case.since:
        assert (f"Linux {case.since}" in notes) == (code == errno.ENOSYS)
        assert (os.uname().release in notes) == (code == errno.ENOSYS)


@pytest.mark.parametrize("name", CASES)
@on_both_faces
async def test_an_interrupted_call_is_made_again_except_close(face, directory, name):
    path, dirfd = directory
    case = CASES[name]
    fd = face.Fd(os.open(path, os.O_PATH))
    with failing_counted(case.syscall, errno.EINTR, times=3) as calls:
        try:
            result = await case.make(face, dirfd, fd)
        except OSError as error:  # what the kernel says of "old" and of made-up handles
            assert error.errno in (errno.ENOENT, errno.ESTALE, errno.EINVAL, errno.EPERM)
        else:
            if name == "openat2":
                os.close(result)
    # When close(2) gives EINTR, Linux has closed it: a second call would close another's.
    assert calls.seen == (1 if case.syscall == "close" else 4)
    assert fd.closed == (case.syscall == "close")
    os.close(fd)


@on_both_faces
async def test_an_error_about_a_descriptor_names_its_number(face, directory):
    _, dirfd = directory
    for syscall, call in [
        ("statx", lambda: face.statx(dirfd, "", AT_EMPTY_PATH)),
        ("name_to_handle_at", lambda: face.fhandle("", dirfd, FH_AT_EMPTY_PATH)),
    ]:
        with faults.failing(syscall, errno.EIO), pytest.raises(OSError) as failed:
            await call()
        assert failed.value.filename == dirfd


@on_both_faces
async def test_the_filename_is_what_os_functions_would_give(face, tmp_path):
    missing = tmp_path / "missing"
    for form in (missing, str(missing), bytes(missing)):
        with pytest.raises(FileNotFoundError) as witness:
            os.stat(form)
        with pytest.raises(FileNotFoundError) as failed:
            await face.statx(AT_FDCWD, form)
        assert str(failed.value) == str(witness.value)
        assert failed.value.filename == witness.value.filename
        with pytest.raises(FileNotFoundError) as witness:
            os.rename(form, form)
        with pytest.raises(FileNotFoundError) as failed:
            await face.renameat2(AT_FDCWD, form, AT_FDCWD, form)
        assert str(failed.value) == str(witness.value)


@on_both_faces
async def test_an_empty_name_is_named_as_it_is(face, tmp_path):
    with pytest.raises(FileNotFoundError) as failed:
        await face.renameat2(AT_FDCWD, "", AT_FDCWD, tmp_path / "new")
    assert (failed.value.filename, failed.value.filename2) == ("", str(tmp_path / "new"))
    with pytest.raises(FileNotFoundError) as failed:
        await face.statx(AT_FDCWD, "")
    assert failed.value.filename == ""


@on_both_faces
async def test_a_directory_descriptor_that_is_not_open_is_called_so(face):
    number = os.open("/", os.O_PATH)
    os.close(number)
    for bad in (number, -1):
        with pytest.raises(OSError) as failed:
            await face.statx(bad, "etc")
        assert failed.value.errno == errno.EBADF
        assert f"descriptor {bad}" in failed.value.__notes__[0]
        assert "not open" in failed.value.__notes__[0]


@on_both_faces
async def test_an_absolute_path_is_not_said_to_begin_at_the_descriptor(face, directory):
    path, dirfd = directory
    with pytest.raises(FileNotFoundError) as failed:
        await face.statx(dirfd, "/no such file")
    assert str(path) not in "".join(getattr(failed.value, "__notes__", ()))
    with pytest.raises(OSError) as failed:
        await face.openat2(dirfd, "/no such file", os.O_PATH, resolve=RESOLVE_BENEATH)
    assert failed.value.errno == errno.EXDEV


# -- no descriptor free --------------------------------------------------------------------------

OUT_OF_DESCRIPTORS = """
import errno, functools, os, resource, sys
import anyio, truenas_os, uvloop
from truenas_os import blocking

async def call(function, *args):
    return function(*args)

async def fill(openat2, close):
    os.close(await openat2(blocking.AT_FDCWD, "/", os.O_PATH))
    resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
    before = sum(is_open(fd) for fd in range(40))
    fds = []
    for _ in range(3):  # once full, it is full, and each failure takes nothing
        try:
            while True:
                fds.append(await openat2(blocking.AT_FDCWD, "/", os.O_PATH))
        except OSError as error:
            assert error.errno == errno.EMFILE, error
            assert error.filename == "/"
    assert before + len(fds) == 40, (before, fds)
    assert len(set(fds)) == len(fds)
    for fd in fds:
        await close(fd)
    assert sum(is_open(fd) for fd in range(40)) == before

def is_open(fd):
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True

face = sys.argv[1]
if face == "blocking":
    try:
        calls = (functools.partial(call, f) for f in (blocking.openat2, blocking.Fd.close))
        fill(*calls).send(None)
    except StopIteration:
        pass
elif face == "trio":
    anyio.run(fill, truenas_os.openat2, truenas_os.Fd.aclose, backend="trio")
else:
    options = {"use_uvloop": face == "uvloop"}
    anyio.run(fill, truenas_os.openat2, truenas_os.Fd.aclose, backend_options=options)
print("done")
"""


@pytest.mark.parametrize("face", ["blocking", "asyncio", "uvloop", "trio"])
def test_running_out_of_descriptors_is_emfile_and_loses_none(face):
    done = subprocess.run(
        [sys.executable, "-c", OUT_OF_DESCRIPTORS, face], capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("done\n", "")


# -- signals -------------------------------------------------------------------------------------

OPEN_A_FIFO = """
import os, signal, sys
from truenas_os import blocking

handled = []
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGUSR1, lambda *_: (handled.append(1), print("handled", flush=True)))
print("ready", flush=True)
try:
    fd = blocking.openat2(blocking.AT_FDCWD, sys.argv[1], os.O_RDONLY)
except KeyboardInterrupt:
    print("KeyboardInterrupt")
else:
    print(f"opened, read {os.read(fd, 10)}, after {len(handled)} signals")
"""


@pytest.fixture
def opening(tmp_path):
    """A process that is inside of blocking.openat2() of a FIFO, and the FIFO."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with subprocess.Popen(
        [sys.executable, "-c", OPEN_A_FIFO, fifo], stdout=subprocess.PIPE, text=True
    ) as child:
        try:
            assert child.stdout.readline() == "ready\n"
            wait_inside_openat2(child)
            yield child, fifo
        finally:
            child.kill()


def wait_inside_openat2(child):
    deadline = time.monotonic() + 30
    while not Path(f"/proc/{child.pid}/syscall").read_text().startswith("437 "):
        assert time.monotonic() < deadline, "it never got there"
        time.sleep(0.005)


def test_ctrl_c_ends_an_open_that_hangs(opening):
    child, _ = opening
    os.kill(child.pid, signal.SIGINT)
    assert child.communicate(timeout=30)[0] == "KeyboardInterrupt\n"
    assert child.returncode == 0


def test_a_call_goes_on_after_a_signal_handler_that_returns(opening):
    child, fifo = opening
    for _ in range(3):
        os.kill(child.pid, signal.SIGUSR1)
        assert child.stdout.readline() == "handled\n"
        wait_inside_openat2(child)
    fifo.write_bytes(b"content")
    assert child.communicate(timeout=30)[0] == "opened, read b'content', after 3 signals\n"
