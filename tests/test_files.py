# SPDX-License-Identifier: LGPL-3.0-or-later
"""statx and renameat2, with the standard library and the shell as witnesses."""

import errno
import os
import socket
import stat
import subprocess
from pathlib import Path

import faults
import pytest
from faces import every_face, on_both_faces, opened
from filesystems import IS_ROOT, needs_root, written
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel import fdinfo_mnt_id, mnt_id_old

import truenas_os
from truenas_os import blocking
from truenas_os.blocking import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_SYMLINK_NOFOLLOW,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    RENAME_WHITEOUT,
    STATX_ATTR_APPEND,
    STATX_ATTR_IMMUTABLE,
    STATX_ATTR_MOUNT_ROOT,
    STATX_BASIC_STATS,
    STATX_BTIME,
    STATX_MNT_ID,
    STATX_MNT_ID_UNIQUE,
)

# -- statx ---------------------------------------------------------------------------------------


def make_regular(path):
    written(path, b"x" * 70_001)
    os.link(path, path.with_name("second name"))
    os.chmod(path, 0o6751)


def make_socket(path):
    # Bound by a short name: sockaddr_un holds 108 bytes.
    directory = os.open(path.parent, os.O_PATH)
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(f"/proc/self/fd/{directory}/{path.name}")
    os.close(directory)


def make_device(path):
    if not IS_ROOT:
        pytest.skip("needs root outside of any user namespace, to make a device node")
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(300, 70_000))


KINDS = {
    "regular": make_regular,
    "directory": lambda path: (path / "below").mkdir(parents=True),
    "symlink": lambda path: path.symlink_to("nowhere/at all"),
    "FIFO": os.mkfifo,
    "socket": make_socket,
    "device": make_device,
}


def assert_agrees(result, witness):
    for field in "mode nlink uid gid ino size blocks blksize dev rdev".split():
        assert getattr(result, "stx_" + field) == getattr(witness, "st_" + field), field
    for time in "atime mtime ctime".split():
        assert getattr(result, f"stx_{time}_ns") == getattr(witness, f"st_{time}_ns"), time
        assert getattr(result, f"stx_{time}") == getattr(witness, f"st_{time}"), time
        seconds, nanoseconds = divmod(getattr(witness, f"st_{time}_ns"), 10**9)
        assert getattr(result, f"stx_{time}_sec") == seconds
        assert getattr(result, f"stx_{time}_nsec") == nanoseconds


@pytest.mark.parametrize("kind", KINDS)
@on_both_faces
async def test_statx_agrees_with_stat_on_every_kind_of_file(face, place, kind):
    path = place / "file"
    KINDS[kind](path)
    if IS_ROOT:
        os.chown(path, 12_345, 67_890, follow_symlinks=False)
    os.utime(path, ns=(1_111_111_111_123_456_789, 999_999_999), follow_symlinks=False)
    result = await face.statx(AT_FDCWD, path, AT_SYMLINK_NOFOLLOW)
    assert_agrees(result, os.stat(path, follow_symlinks=False))
    assert result.stx_mask & STATX_BASIC_STATS == STATX_BASIC_STATS


@on_both_faces
async def test_statx_follows_symlinks_unless_told_otherwise(face, place):
    written(place / "target")
    (place / "link").symlink_to("target")
    assert (await face.statx(AT_FDCWD, place / "link")).stx_ino == os.stat(place / "target").st_ino
    result = await face.statx(AT_FDCWD, place / "link", AT_SYMLINK_NOFOLLOW)
    assert result.stx_ino == os.lstat(place / "link").st_ino


@on_both_faces
async def test_statx_tells_the_device_numbers_of_dev_null(face):
    result = await face.statx(AT_FDCWD, "/dev/null")
    witness = os.stat("/dev/null")
    assert (result.stx_rdev_major, result.stx_rdev_minor) == (1, 3)
    assert (result.stx_rdev, result.stx_dev) == (witness.st_rdev, witness.st_dev)


@on_both_faces
async def test_birth_time_is_what_stat_1_prints(face, place):
    path = written(place / "file")
    result = await face.statx(AT_FDCWD, path)
    assert result.stx_mask & STATX_BTIME
    printed = subprocess.check_output(["stat", "-c", "%.9W", path], text=True)
    seconds, nanoseconds = (int(part) for part in printed.split("."))
    assert seconds > 0
    assert (result.stx_btime_sec, result.stx_btime_nsec) == (seconds, nanoseconds)
    assert result.stx_btime_ns == seconds * 10**9 + nanoseconds
    assert result.stx_btime == seconds + nanoseconds * 1e-9


@on_both_faces
async def test_a_filesystem_without_birth_times_leaves_it_out_of_the_mask(face):
    assert subprocess.check_output(["stat", "-c", "%w", "/proc/version"]) == b"-\n"
    result = await face.statx(AT_FDCWD, "/proc/version")
    assert not result.stx_mask & STATX_BTIME
    assert result.stx_btime_ns == 0


@pytest.mark.parametrize(
    "nanoseconds",
    [-1, -1_000_000_000_000_000_001, -2_000_000_000_123_456_789, 5_000_000_000_987_654_321],
    ids=["a nanosecond before 1970", "1938", "1906", "2128"],
)
@on_both_faces
async def test_times_far_from_now_agree_with_stat(face, place, nanoseconds):
    path = written(place / "file")
    os.utime(path, ns=(nanoseconds + 7, nanoseconds))
    result = await face.statx(AT_FDCWD, path)
    assert os.stat(path).st_mtime_ns == nanoseconds, "the filesystem does not keep it"
    assert (result.stx_mtime_ns, result.stx_atime_ns) == (nanoseconds, nanoseconds + 7)
    assert_agrees(result, os.stat(path))


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(-3, 3) | st.integers(-(2**33), 2**34), st.integers(0, 10**9 - 1))
def test_times_as_floats_are_rounded_as_those_of_stat(mount_dir, seconds, nanoseconds):
    time = seconds * 10**9 + nanoseconds
    os.utime(mount_dir, ns=(time, time))
    assert_agrees(blocking.statx(AT_FDCWD, mount_dir), os.stat(mount_dir))


@pytest.mark.parametrize("form", ["int", "object with fileno()", "file object", "Fd"])
@on_both_faces
async def test_a_descriptor_is_asked_with_an_empty_path(face, place, form):
    with written(place / "file").open("rb") as file:
        fd = file.fileno()

        class Holder:
            def fileno(self):
                return fd

        forms = {
            "int": fd,
            "object with fileno()": Holder(),
            "file object": file,
            "Fd": face.Fd(fd),
        }
        assert_agrees(await face.statx(forms[form], "", AT_EMPTY_PATH), os.fstat(fd))
        with pytest.raises(FileNotFoundError):
            await face.statx(forms[form], "")


@pytest.mark.parametrize("form", ["int", "object with fileno()", "Fd", "the other face's Fd"])
@on_both_faces
async def test_paths_are_relative_to_the_directory_descriptor(face, tmp_path, form):
    written(tmp_path / "file")
    fd = os.open(tmp_path, os.O_PATH)

    class Holder:
        def fileno(self):
            return fd

    other_fd = truenas_os.Fd if face.library is blocking else blocking.Fd
    forms = {
        "int": fd,
        "object with fileno()": Holder(),
        "Fd": face.Fd(fd),
        "the other face's Fd": other_fd(fd),
    }
    witness = os.stat("file", dir_fd=fd)
    assert_agrees(await face.statx(forms[form], "file"), witness)
    async with opened(face, forms[form], "file", os.O_RDONLY) as file:
        assert os.fstat(file).st_ino == witness.st_ino
    os.close(fd)


@needs_root
@pytest.mark.parametrize(
    ("letter", "bit"), [("i", STATX_ATTR_IMMUTABLE), ("a", STATX_ATTR_APPEND)], ids=["i", "a"]
)
@on_both_faces
async def test_attributes_are_those_that_lsattr_prints(face, place, letter, bit):
    path = written(place / "file")
    before = await face.statx(AT_FDCWD, path)
    assert not before.stx_attributes & bit
    assert before.stx_attributes_mask & bit
    subprocess.run(["chattr", "+" + letter, path], check=True)
    try:
        assert letter in subprocess.check_output(["lsattr", path], text=True).split()[0]
        changed = before.stx_attributes ^ (await face.statx(AT_FDCWD, path)).stx_attributes
        assert changed == bit
    finally:
        subprocess.run(["chattr", "-" + letter, path], check=True)


@on_both_faces
async def test_the_root_of_a_mount_is_marked_and_nothing_else_is(face, filesystem, place):
    root = await face.statx(AT_FDCWD, filesystem)
    below = await face.statx(AT_FDCWD, place)
    assert root.stx_attributes & STATX_ATTR_MOUNT_ROOT
    assert below.stx_attributes_mask & STATX_ATTR_MOUNT_ROOT
    assert not below.stx_attributes & STATX_ATTR_MOUNT_ROOT


@on_both_faces
async def test_mount_ids_are_those_of_fdinfo_and_statmount(face, place):
    old = await face.statx(AT_FDCWD, place, 0, STATX_MNT_ID)
    assert old.stx_mask & STATX_MNT_ID
    assert old.stx_mnt_id == fdinfo_mnt_id(place)
    unique = await face.statx(AT_FDCWD, place, 0, STATX_MNT_ID_UNIQUE)
    assert unique.stx_mask & STATX_MNT_ID_UNIQUE
    assert unique.stx_mnt_id > 2**31
    assert mnt_id_old(unique.stx_mnt_id) == fdinfo_mnt_id(place)


# -- arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [b"plain", "grün ☃".encode(), b"latin \xfc \xff\xfe", b"\xed\xa0\x80", b"line\nfeed\t"]
)
@on_both_faces
async def test_a_path_may_be_str_bytes_or_path_like(face, place, name):
    raw = os.path.join(os.fsencode(place), name)
    os.close(os.open(raw, os.O_CREAT | os.O_WRONLY, 0o600))

    class BytesPath:
        def __fspath__(self):
            return raw

    for path in (raw, os.fsdecode(raw), Path(os.fsdecode(raw)), BytesPath()):
        witness = os.stat(raw)
        assert_agrees(await face.statx(AT_FDCWD, path), witness)
        async with opened(face, AT_FDCWD, path, os.O_RDONLY) as fd:
            assert os.fstat(fd).st_ino == witness.st_ino
        await face.renameat2(AT_FDCWD, path, AT_FDCWD, raw + b"2")
        os.rename(raw + b"2", raw)


BAD_PATHS = [
    ("em\0bedded", ValueError),
    (b"em\0bedded", ValueError),
    ("\0", ValueError),
    (Path("em\0bedded"), ValueError),
    ("\ud800 is no byte", ValueError),
    (3, TypeError),
    (None, TypeError),
    (bytearray(b"path"), TypeError),
    (["path"], TypeError),
]


def path_calls(face, path):
    return [
        lambda: face.statx(AT_FDCWD, path),
        lambda: face.openat2(AT_FDCWD, path, os.O_RDONLY),
        lambda: face.renameat2(AT_FDCWD, path, AT_FDCWD, "new"),
        lambda: face.renameat2(AT_FDCWD, "old", AT_FDCWD, path),
    ]


@pytest.mark.parametrize(("path", "error"), BAD_PATHS, ids=lambda value: ascii(value))
@on_both_faces
async def test_a_bad_path_is_refused_before_any_system_call(face, path, error):
    for call in path_calls(face, path):
        with faults.count(None) as calls, pytest.raises(error):
            await call()
        assert calls.seen == 0


@on_both_faces
async def test_a_bad_descriptor_is_refused_before_any_system_call(face):
    closed = face.Fd(os.open("/", os.O_PATH))
    await face.close(closed)
    with (
        pytest.raises(ValueError, match="closed"),
        faults.count(None) as calls,
    ):
        await face.statx(closed, "etc")
    assert calls.seen == 0
    for bad, error in [(closed, ValueError), ("3", TypeError), (3.0, TypeError), (None, TypeError)]:
        for call in (
            lambda: face.statx(bad, "etc"),
            lambda: face.openat2(bad, "etc", os.O_RDONLY),
            lambda: face.renameat2(bad, "no such name", AT_FDCWD, "nor this"),
            lambda: face.renameat2(AT_FDCWD, "no such name", bad, "nor this"),
        ):
            with faults.count(None) as calls, pytest.raises(error):
                await call()
            assert calls.seen == 0


@every_face
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    name=st.binary(min_size=1, max_size=255)
    .map(lambda name: name.replace(b"/", b"\x80").replace(b"\0", b"\x81"))
    .filter(lambda name: name not in (b".", b".."))
)
def test_any_name_of_up_to_255_bytes_comes_back_as_it_was(face, filesystem, name):
    directory = os.fsencode(filesystem) + b"/names"
    os.makedirs(directory, exist_ok=True)

    async def body():
        path = os.path.join(directory, name)
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
        fd = await face.openat2(AT_FDCWD, path, flags, 0o600)
        try:
            assert os.listdir(directory) == [name]
            text = os.fsdecode(path)
            assert (await face.statx(AT_FDCWD, text)).stx_ino == os.fstat(fd).st_ino
            await face.renameat2(AT_FDCWD, text, AT_FDCWD, os.fsencode(filesystem) + b"/moved")
            assert os.listdir(directory) == []
        finally:
            os.close(fd)

    face.run(body)


# -- renameat2 -----------------------------------------------------------------------------------


@pytest.fixture
def pair(place):
    """Two directories, as paths and descriptors; ``old/a`` says a, ``new/b`` says b."""
    fds = []
    for directory, name in (("old", "a"), ("new", "b")):
        (place / directory).mkdir()
        written(place / directory / name, name.encode())
        fds.append(os.open(place / directory, os.O_PATH))
    yield place, *fds
    for fd in fds:
        os.close(fd)


def listing(place):
    files = (path for path in place.rglob("*") if path.is_file())
    return {str(path.relative_to(place)): path.read_text() for path in files}


@on_both_faces
async def test_a_plain_rename_replaces_the_target(face, pair):
    place, old, new = pair
    assert await face.renameat2(old, "a", new, "b") is None
    assert listing(place) == {"new/b": "a"}


@on_both_faces
async def test_noreplace_keeps_the_target_and_names_both(face, pair):
    place, old, new = pair
    with pytest.raises(FileExistsError) as failed:
        await face.renameat2(old, "a", new, b"b", RENAME_NOREPLACE)
    assert (failed.value.filename, failed.value.filename2) == ("a", b"b")
    assert listing(place) == {"old/a": "a", "new/b": "b"}
    await face.renameat2(face.Fd(old), "a", face.Fd(new), "c", RENAME_NOREPLACE)
    assert listing(place) == {"new/c": "a", "new/b": "b"}


@on_both_faces
async def test_exchange_swaps_the_two(face, pair):
    place, old, new = pair
    await face.renameat2(AT_FDCWD, place / "old/a", new, "b", RENAME_EXCHANGE)
    assert listing(place) == {"old/a": "b", "new/b": "a"}
    with pytest.raises(FileNotFoundError):
        await face.renameat2(old, "a", new, "missing", RENAME_EXCHANGE)


@on_both_faces
async def test_whiteout_leaves_a_device_0_0_behind(face, pair):
    place, old, new = pair
    if place.parent.name == "overlay":
        # An overlay uses whiteouts itself, and lets nobody else make one.
        with pytest.raises(OSError) as failed:
            await face.renameat2(old, "a", new, "c", RENAME_WHITEOUT)
        assert failed.value.errno == errno.EINVAL
        return
    await face.renameat2(old, "a", new, "c", RENAME_WHITEOUT)
    assert listing(place) == {"new/c": "a", "new/b": "b"}
    left = os.lstat(place / "old/a")
    assert stat.S_ISCHR(left.st_mode)
    assert left.st_rdev == 0


@on_both_faces
async def test_unknown_or_contradicting_rename_flags_are_einval(face, pair):
    place, old, new = pair
    for flags in (1 << 5, RENAME_NOREPLACE | RENAME_EXCHANGE):
        with pytest.raises(OSError) as failed:
            await face.renameat2(old, "a", new, "c", flags)
        assert failed.value.errno == errno.EINVAL
    assert listing(place) == {"old/a": "a", "new/b": "b"}
