# SPDX-License-Identifier: LGPL-3.0-or-later
"""safe_open, exchange, rename_noreplace, link_tmpfile."""

import errno
import fcntl
import os
import socket
import stat
import subprocess
import sys
import threading

import abandoned
import anyio
import faults
import kernel
import pytest
from faces import on_both_faces
from filesystems import written
from stuck import AMPLE, fds_return_to, in_fifo_open, open_writer, until
from witness import notes

import truenas_os
from truenas_os import blocking


async def closed(face, file):
    await face.call(file.close if face.name == "blocking" else file.aclose)


class opened:
    def __init__(self, face, *args, **kwargs):
        self.face, self.args, self.kwargs = face, args, kwargs

    async def __aenter__(self):
        self.file = await self.face.safe_open(*self.args, **self.kwargs)
        return self.file

    async def __aexit__(self, *exc):
        await closed(self.face, self.file)


@pytest.mark.parametrize(
    "mode", "r rb w wb a ab x xb r+ rb+ r+b w+ wb+ a+ ab+ x+ xb+ rt wt at".split()
)
@on_both_faces
async def test_the_modes_are_those_of_the_built_in_open(face, place, mode):
    async def trial(directory, opening):
        """What comes of opening a file that exists and one that does not."""
        directory.mkdir()
        written(directory / "old", b"line 1\r\nline 2\n")
        seen = []
        data = b"new\n" if "b" in mode else "new\n"
        for name in ("old", "new"):
            try:
                file = await opening(directory / name, mode)
            except OSError as error:
                seen.append((type(error), error.errno, error.filename == str(directory / name)))
                continue
            flags = fcntl.fcntl(file.fileno(), fcntl.F_GETFL)
            seen.append((flags, file.mode, file.name == str(directory / name)))
            if "r" in mode or "+" in mode:
                seen.append(await face.call(file.read))
            if "r" not in mode or "+" in mode:
                seen.append(await face.call(file.write, data))
            await closed(face if opening is not open_really else REALLY, file)
            seen.append((directory / name).read_bytes())
        return seen

    ours = await trial(place / "ours", face.safe_open)
    assert ours == await trial(place / "theirs", open_really)


class REALLY:
    name = "blocking"

    @staticmethod
    async def call(function):
        return function()


async def open_really(path, mode):
    return open(path, mode)


@on_both_faces
async def test_buffering_and_text_options_are_passed_on(face, tmp_path):
    path = written(tmp_path / "file", "grün\r\n".encode("latin-1"))
    async with opened(face, path, encoding="latin-1", newline="") as file:
        assert await face.call(file.read) == "grün\r\n"
    async with opened(face, path, encoding="utf-8", errors="replace") as file:
        assert await face.call(file.read) == "gr�n\n"
    async with opened(face, path, "rb", 0) as file:
        assert await face.call(file.read, 2) == b"gr"
        assert os.lseek(file.fileno(), 0, os.SEEK_CUR) == 2


@on_both_faces
async def test_descriptors_are_close_on_exec_and_files_close_them(face, place):
    written(place / "file")
    fds = kernel.open_fds()
    for mode in ("r", "w", "a"):
        async with opened(face, place / "file", mode) as file:
            assert not os.get_inheritable(file.fileno())
    assert kernel.open_fds() == fds


@on_both_faces
async def test_a_symlink_in_any_component_is_refused(face, place):
    (place / "real").mkdir()
    written(place / "real" / "file")
    (place / "directory").symlink_to("real")
    (place / "file").symlink_to("real/file")
    (place / "dangling").symlink_to("nowhere")
    (place / "loop").symlink_to("loop")
    for path in ("directory/file", "file", "dangling", "loop", "loop/x", "directory/new"):
        for mode in ("r", "w", "a", "r+"):
            with pytest.raises(OSError) as failed:
                await face.safe_open(place / path, mode)
            assert failed.type is face.library.SymlinkInPathError
            assert failed.value.errno == errno.ELOOP
            assert failed.value.filename == str(place / path)
    assert sorted(os.listdir(place / "real")) == ["file"]
    for path in ("/proc/self/status", f"/proc/{os.getpid()}/cwd/anything", "/dev/fd/0"):
        with pytest.raises(face.library.SymlinkInPathError):
            await face.safe_open(path)


def test_both_faces_raise_the_same_class_and_it_is_an_oserror():
    assert truenas_os.SymlinkInPathError is blocking.SymlinkInPathError
    assert issubclass(truenas_os.SymlinkInPathError, OSError)


@pytest.mark.parametrize("mode", ["r", "w", "a", "r+", "rb"])
@on_both_faces
async def test_what_is_no_regular_file_is_refused_without_opening_it(face, place, fifo, mode):
    os.mkfifo(place / "fifo")
    directory = os.open(place, os.O_PATH)
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(f"/proc/self/fd/{directory}/socket")
    os.close(directory)
    (place / "directory").mkdir()
    for path, code in (
        (place / "fifo", errno.EOPNOTSUPP),
        (place / "socket", errno.EOPNOTSUPP),
        ("/dev/null", errno.EOPNOTSUPP),
        (place / "directory", errno.EISDIR),
    ):
        with faults.count("openat2") as calls, pytest.raises(OSError) as failed:
            await face.safe_open(path, mode)
        assert (failed.value.errno, failed.value.filename) == (code, os.fspath(path))
        assert ("special=True" in notes(failed.value)) == (code == errno.EOPNOTSUPP)
        assert calls.seen == 1  # which opened it with O_PATH


@on_both_faces
async def test_a_device_and_a_fifo_are_opened_when_asked_for(face, place):
    async with opened(face, "/dev/zero", "rb", special=True) as file:
        assert await face.call(file.read, 3) == b"\0\0\0"
    os.mkfifo(place / "fifo")
    both = os.open(place / "fifo", os.O_RDWR | os.O_NONBLOCK)
    os.write(both, b"line\n")
    async with opened(face, place / "fifo", special=True) as file:
        assert await face.call(file.readline) == "line\n"
    os.close(both)
    async with opened(face, place / "regular", "w", special=True) as file:
        await face.call(file.write, "x")
    assert (place / "regular").read_text() == "x"
    (place / "link").symlink_to("/dev/zero")
    with pytest.raises(face.library.SymlinkInPathError):
        await face.safe_open(place / "link", special=True)


def test_a_fifo_that_takes_the_files_place_does_not_hang(place):
    """Between the look and the open, the worst moment there is."""
    path = written(place / "file")

    def swap(stop):
        stop.wait_reached()
        path.unlink()
        os.mkfifo(path)
        stop.go()

    fds = kernel.open_fds()
    with faults.stopped("openat2", skip=1) as stop:
        thread = threading.Thread(target=swap, args=(stop,))
        thread.start()
        with pytest.raises(OSError) as failed:
            blocking.safe_open(path)
        thread.join()
    assert failed.value.errno == errno.EOPNOTSUPP
    assert kernel.open_fds() == fds


HOLDER = """
import fcntl, os, signal, sys
fd = os.open(sys.argv[1], os.O_RDWR)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGIO])
fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
print("held", flush=True)
signal.sigwait([signal.SIGIO])
fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
print("given up", flush=True)
"""


@on_both_faces
async def test_a_file_on_which_somebody_has_a_lease_is_opened_when_he_gives_it_up(face, tmp_path):
    path = written(tmp_path / "file")
    command = [sys.executable, "-c", HOLDER, path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        async with opened(face, path, "rb") as file:
            assert await face.call(file.read) == b"content"
            assert not fcntl.fcntl(file.fileno(), fcntl.F_GETFL) & os.O_NONBLOCK
        assert holder.stdout.readline() == "given up\n"


@on_both_faces
async def test_paths_below_a_directory_cannot_leave_it(face, place):
    (place / "base" / "sub").mkdir(parents=True)
    written(place / "base" / "sub" / "file")
    written(place / "outside")
    (place / "link").symlink_to("base")
    fd = os.open(place, os.O_PATH)
    base_fd = os.open(place / "base", os.O_PATH)
    try:
        for arguments in (
            {"beneath": place / "base"},
            {"beneath": "base", "dir_fd": fd},
            {"beneath": base_fd},
        ):
            for path in ("sub/file", "sub/../sub/file", b"sub/file"):
                async with opened(face, path, "rb", **arguments) as file:
                    assert await face.call(file.read) == b"content"
            for path in ("../outside", "sub/../../outside", place / "base" / "sub" / "file"):
                for mode in ("r", "w", "x"):
                    with pytest.raises(OSError) as failed:
                        await face.safe_open(path, mode, **arguments)
                    assert failed.value.errno == errno.EXDEV
                    assert failed.value.filename == os.fspath(path)
        async with opened(face, "outside", dir_fd=fd) as file:
            assert await face.call(file.read) == "content"
        with pytest.raises(face.library.SymlinkInPathError):
            await face.safe_open("sub/file", beneath=place / "link")
        with pytest.raises(TypeError, match="bool"):
            await face.safe_open("sub/file", beneath=True)
    finally:
        os.close(fd)
        os.close(base_fd)


@on_both_faces
async def test_an_error_names_the_callers_own_descriptor(face, tmp_path):
    fd = os.open(tmp_path, os.O_PATH)
    try:
        for arguments in ({"dir_fd": fd}, {"beneath": fd}):
            with pytest.raises(FileNotFoundError) as failed:
                await face.safe_open("none", **arguments)
            assert failed.value.filename == "none"
            assert notes(failed.value) == f"openat2() began at descriptor {fd}, {tmp_path}"
    finally:
        os.close(fd)
    with pytest.raises(OSError) as failed:
        await face.safe_open("none", dir_fd=fd)
    assert failed.value.errno == errno.EBADF
    async with opened(face, written(tmp_path / "file"), dir_fd=fd) as file:
        assert await face.call(file.read) == "content"


@on_both_faces
async def test_bad_arguments_are_found_before_any_system_call(face, tmp_path):
    path = tmp_path / "file"
    with faults.count(None) as calls:
        for error, args, kwargs in (
            (ValueError, ("q",), {}),
            (ValueError, ("rw",), {}),
            (ValueError, ("wb",), {"encoding": "utf-8"}),
            (ValueError, ("wb",), {"newline": ""}),
            (ValueError, ("w",), {"newline": "x"}),
            (ValueError, ("w", 0), {}),
            (LookupError, ("w",), {"encoding": "nonexistent"}),
            (LookupError, ("w",), {"errors": "nonexistent"}),
            (TypeError, (None,), {}),
        ):
            with pytest.raises(error):
                await face.safe_open(path, *args, **kwargs)
        for wrong in (0, None, 1.5):
            with pytest.raises(TypeError):
                await face.safe_open(wrong)
        with pytest.raises(ValueError, match="null byte"):
            await face.safe_open("nul\0")
    assert calls.seen == 0
    assert not path.exists()


@pytest.mark.parametrize("call", ["openat2", "statx", "fcntl"])
@on_both_faces
async def test_whichever_system_call_fails_nothing_leaks(face, tmp_path, call):
    path = written(tmp_path / "file")
    fds = kernel.open_fds()
    for mode in ("r", "w", "a"):
        for nth in range(2 if call != "fcntl" else 1):
            with faults.failing(call, errno.EIO, skip=nth, times=1):
                with pytest.raises(OSError) as failed:
                    await face.safe_open(path, mode)
            assert (failed.value.errno, failed.value.filename) == (errno.EIO, str(path))
    assert kernel.open_fds() == fds


@pytest.mark.anyio
async def test_a_cancelled_open_closes_the_late_file(fifo):
    await truenas_os.statx(truenas_os.AT_FDCWD, "/")
    before = kernel.open_fds()
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: truenas_os.safe_open(fifo, special=True))
            await until(in_fifo_open)
            scope.cancel()
    assert scope.cancelled_caught
    with anyio.fail_after(AMPLE):
        os.close(open_writer(fifo))
        await fds_return_to(before)


@pytest.mark.anyio
@pytest.mark.parametrize("keyword", ["dir_fd", "beneath"])
@pytest.mark.parametrize("name", ["file", "new"])
async def test_an_abandoned_open_touches_nothing_in_the_directory_that_has_the_number_by_then(
    tmp_path, monkeypatch, keyword, name
):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for directory in (ours, theirs):
        directory.mkdir()
        written(directory / "file")

    async def open_to_write(fd):
        (ours / "new").unlink(missing_ok=True)
        return await truenas_os.safe_open(name, "w", **{keyword: fd})

    fds = kernel.open_fds()
    stops = await abandoned.at_each_system_call(open_to_write, ours, theirs, monkeypatch)
    assert stops > 2
    assert (ours / name).read_bytes() == b""
    assert (theirs / "file").read_bytes() == b"content"
    assert os.listdir(theirs) == ["file"]
    assert kernel.open_fds().keys() <= fds.keys()


# -- Names ---------------------------------------------------------------------------------------


@on_both_faces
async def test_exchange_swaps_two_names_whatever_they_stand_for(face, place):
    written(place / "a", b"1")
    written(place / "b", b"2")
    (place / "d").mkdir()
    (place / "l").symlink_to("nowhere")
    await face.exchange(place / "a", place / "b")
    assert ((place / "a").read_bytes(), (place / "b").read_bytes()) == (b"2", b"1")
    await face.exchange(place / "l", place / "d")
    assert (place / "l").is_dir()
    assert os.readlink(place / "d") == "nowhere"
    fd = os.open(place, os.O_PATH)
    await face.exchange("a", "b", a_dir_fd=fd, b_dir_fd=fd)
    os.close(fd)
    assert (place / "a").read_bytes() == b"1"
    with pytest.raises(FileNotFoundError) as failed:
        await face.exchange(place / "a", place / "none")
    assert (failed.value.filename, failed.value.filename2) == (
        str(place / "a"),
        str(place / "none"),
    )


@on_both_faces
async def test_rename_noreplace_replaces_nothing(face, place):
    written(place / "a", b"1")
    written(place / "b", b"2")
    with pytest.raises(FileExistsError) as failed:
        await face.rename_noreplace(place / "a", place / "b")
    assert (failed.value.filename, failed.value.filename2) == (str(place / "a"), str(place / "b"))
    assert (place / "b").read_bytes() == b"2"
    await face.rename_noreplace(place / "a", place / "c")
    assert (place / "c").read_bytes() == b"1"
    assert not (place / "a").exists()


@pytest.mark.anyio
async def test_an_abandoned_link_makes_no_name_in_the_directory_that_has_the_number_by_then(
    place, monkeypatch
):
    ours, theirs = place / "ours", place / "theirs"
    ours.mkdir()
    theirs.mkdir()

    async def link(fd):
        (ours / "name").unlink(missing_ok=True)
        files.append(os.open(place, os.O_TMPFILE | os.O_RDWR))
        await truenas_os.link_tmpfile(files[-1], "name", dir_fd=fd)

    files = []
    # What the kernel says to who has not CAP_DAC_READ_SEARCH: the second way is tried.
    assert await abandoned.at_each_system_call(
        link, ours, theirs, monkeypatch, "linkat", errno.ENOENT
    )
    for file in files:
        os.close(file)
    assert (ours / "name").exists()
    assert os.listdir(theirs) == []


@pytest.mark.parametrize("capable", [True, False])
@on_both_faces
async def test_link_tmpfile_gives_a_name(face, place, capable):
    fd = os.open(place, os.O_TMPFILE | os.O_RDWR, 0o640)
    os.write(fd, b"content")
    directory = os.open(place, os.O_PATH)
    try:
        # What the kernel says to who has not CAP_DAC_READ_SEARCH.
        with faults.failing("linkat", errno.ENOENT, times=0 if capable else 1):
            await face.link_tmpfile(fd, place / "named")
        assert (place / "named").read_bytes() == b"content"
        assert stat.S_IMODE(os.stat(place / "named").st_mode) == 0o640
        (place / "link").symlink_to("nowhere")
        for taken in ("named", "link"):
            with pytest.raises(FileExistsError) as failed:
                await face.link_tmpfile(fd, taken, dir_fd=directory)
            assert failed.value.filename == taken
        with pytest.raises(OSError) as failed:
            await face.link_tmpfile(fd, "/dev/shm/elsewhere")
        assert failed.value.errno in (errno.EXDEV, errno.ENOENT)
    finally:
        os.close(fd)
        os.close(directory)
