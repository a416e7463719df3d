# SPDX-License-Identifier: LGPL-3.0-or-later
"""File handles, with name_to_handle_at(2) through ctypes as the witness."""

import ctypes
import errno
import fcntl
import os
import pickle
import stat
import struct
from pathlib import Path

import anyio
import faults
import kernel
import pytest
from faces import every_face, on_both_faces
from faults import failing_counted
from filesystems import IS_ROOT, needs_root
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel import fdinfo_mnt_id, mnt_id_old

import truenas_os
from truenas_os import blocking
from truenas_os.blocking import (
    AT_FDCWD,
    AT_HANDLE_MNT_ID_UNIQUE,
    FH_AT_EMPTY_PATH,
    FH_AT_HANDLE_CONNECTABLE,
    FH_AT_HANDLE_FID,
    FH_AT_SYMLINK_FOLLOW,
)

# Bytes of a plain handle, of one made with FID, of one made with CONNECTABLE; None: EOPNOTSUPP.
SIZES = {
    "ext4": (8, 8, 16),
    "xfs": (12, 12, 24),
    "btrfs": (20, 20, 32),
    "tmpfs": (12, 12, None),
    # Embeds the handle that the upper filesystem, a tmpfs, gives; not so in a user namespace.
    "overlay": (None, 36 if IS_ROOT else 12, None),
    "proc": (None, 12, None),
}

EVERY_SORT = pytest.mark.parametrize(
    ("column", "flags"),
    [(0, 0), (1, FH_AT_HANDLE_FID), (2, FH_AT_HANDLE_CONNECTABLE)],
    ids=["plain", "FID", "CONNECTABLE"],
)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.name_to_handle_at.argtypes = (
    [ctypes.c_int, ctypes.c_char_p] + [ctypes.c_void_p] * 2 + [ctypes.c_int]
)


def raw_handle(path, flags=0, dirfd=AT_FDCWD):
    """What the C library's name_to_handle_at() gives, as bytes."""
    buffer = ctypes.create_string_buffer(struct.pack("=Ii", 128, 0), 8 + 128)
    mount_id = ctypes.c_int()
    if _libc.name_to_handle_at(
        dirfd, os.fsencode(path), buffer, ctypes.byref(mount_id), int(flags)
    ):
        raise OSError(ctypes.get_errno(), "name_to_handle_at")
    return buffer.raw[: 8 + struct.unpack_from("=I", buffer)[0]]


@pytest.fixture
def file(place):
    path = place / "file"
    path.write_text("content")
    return path


@pytest.fixture
def openable(file):
    """A file whose handle can be opened, and a descriptor of its filesystem."""
    if not IS_ROOT:
        pytest.skip("open_by_handle_at needs CAP_DAC_READ_SEARCH outside of any user namespace")
    mount_fd = os.open(file.parent.parent, os.O_RDONLY | os.O_DIRECTORY)
    yield file, mount_fd
    os.close(mount_fd)


async def open_handle(face, handle, mount_fd, flags=os.O_RDONLY):
    return await face.call(handle.open, mount_fd, flags)


# -- making --------------------------------------------------------------------------------------


@EVERY_SORT
@on_both_faces
async def test_each_filesystem_gives_the_handles_it_has(face, file, column, flags):
    await check_handle(face, file, file.parent.parent.name, column, flags)


@EVERY_SORT
@on_both_faces
async def test_proc_has_handles_for_comparing_only(face, column, flags):
    await check_handle(face, "/proc/version", "proc", column, flags)


async def check_handle(face, path, fs_type, column, flags):
    size = SIZES[fs_type][column]
    before = kernel.open_fds()
    if size is None:
        with pytest.raises(OSError) as failed:
            await face.fhandle(path=path, flags=flags)
        assert failed.value.errno == errno.EOPNOTSUPP
        assert os.fspath(failed.value.filename) == os.fspath(path)
        with pytest.raises(OSError) as failed:
            raw_handle(path, flags)
        assert failed.value.errno == errno.EOPNOTSUPP
    else:
        handle = await face.fhandle(path=path, flags=flags)
        assert bytes(handle) == raw_handle(path, flags)
        assert len(bytes(handle)) == 8 + size
        assert mnt_id_old(handle.mount_id) == fdinfo_mnt_id(path)
    assert kernel.open_fds() == before


@pytest.mark.parametrize(
    "flags",
    [FH_AT_HANDLE_FID | FH_AT_HANDLE_CONNECTABLE, 0x100, 0x800, 0x8000, 1 << 20, 0x100 | 0x200],
    ids=["FID|CONNECTABLE", "SYMLINK_NOFOLLOW", "NO_AUTOMOUNT", "0x8000", "1<<20", "FID|0x100"],
)
@on_both_faces
async def test_flags_that_the_kernel_refuses_are_einval(face, tmp_path, flags):
    with pytest.raises(OSError) as witness:
        raw_handle(tmp_path, flags)
    assert witness.value.errno == errno.EINVAL
    with pytest.raises(OSError) as failed:
        await face.fhandle(path=tmp_path, flags=flags)
    assert failed.value.errno == errno.EINVAL
    assert os.fspath(failed.value.filename) == str(tmp_path)


@on_both_faces
async def test_the_unique_id_may_be_asked_for_by_its_flag_too(face, mount_dir):
    asked = await face.fhandle(path=mount_dir, flags=AT_HANDLE_MNT_ID_UNIQUE)
    assert asked == await face.fhandle(path=mount_dir)


@on_both_faces
async def test_a_symlink_has_its_own_handle_unless_it_is_followed(face, mount_dir):
    (mount_dir / "file").touch()
    (mount_dir / "link").symlink_to("file")
    link = await face.fhandle(path=mount_dir / "link")
    followed = await face.fhandle(path=mount_dir / "link", flags=FH_AT_SYMLINK_FOLLOW)
    assert bytes(link) == raw_handle(mount_dir / "link") != raw_handle(mount_dir / "file")
    assert bytes(followed) == raw_handle(mount_dir / "file")


@on_both_faces
async def test_a_descriptor_has_a_handle_by_the_empty_path(face, mount_dir):
    path = mount_dir / "file"
    with path.open("w") as file:
        for fd in (file.fileno(), file, face.Fd(file.fileno())):
            handle = await face.fhandle(path="", dir_fd=fd, flags=FH_AT_EMPTY_PATH)
            assert bytes(handle) == raw_handle(path)
            with pytest.raises(FileNotFoundError):
                await face.fhandle(path="", dir_fd=fd)


@pytest.mark.parametrize("name", ["file", b"file", Path("file"), "\udcff", b"\xff\xfe"], ids=ascii)
@on_both_faces
async def test_a_path_is_relative_to_the_directory_descriptor(face, mount_dir, name):
    fd = os.open(mount_dir, os.O_PATH)
    os.close(os.open(name, os.O_CREAT, dir_fd=fd))
    assert bytes(await face.fhandle(name, fd)) == raw_handle(name, dirfd=fd)
    assert bytes(await face.fhandle(path=name, dir_fd=face.Fd(fd))) == raw_handle(name, dirfd=fd)
    os.close(fd)


@on_both_faces
async def test_hard_links_have_one_handle_and_other_files_another(face, mount_dir):
    (mount_dir / "file").touch()
    os.link(mount_dir / "file", mount_dir / "link")
    (mount_dir / "other").touch()
    file, link, other = [
        await face.fhandle(path=mount_dir / name) for name in ("file", "link", "other")
    ]
    assert file == link
    assert file != other


@on_both_faces
async def test_the_same_file_on_two_mounts_has_two_handles_of_equal_bytes(face, mount_dir):
    (mount_dir / "a").mkdir()
    (mount_dir / "b").mkdir()
    (mount_dir / "a/file").touch()
    kernel.mount(mount_dir / "a", mount_dir / "b", flags=kernel.MS_BIND)
    a = await face.fhandle(path=mount_dir / "a/file")
    b = await face.fhandle(path=mount_dir / "b/file")
    assert bytes(a) == bytes(b)
    assert a.mount_id != b.mount_id
    assert a != b
    assert mnt_id_old(b.mount_id) == fdinfo_mnt_id(mount_dir / "b/file")


# -- kernels without AT_HANDLE_MNT_ID_UNIQUE -----------------------------------------------------


@pytest.mark.parametrize("error", [errno.EINVAL, errno.EOPNOTSUPP], ids=["EINVAL", "EOPNOTSUPP"])
@pytest.mark.parametrize("form", ["path", "link", "followed link", "descriptor", "FID", "FID only"])
@on_both_faces
async def test_older_kernels_give_the_same_handle_and_mount_id(face, mount_dir, form, error):
    (mount_dir / "file").touch()
    (mount_dir / "link").symlink_to("file")
    with (mount_dir / "file").open() as file:
        arguments = {
            "path": {"path": mount_dir / "file"},
            "link": {"path": mount_dir / "link"},
            "followed link": {"path": mount_dir / "link", "flags": FH_AT_SYMLINK_FOLLOW},
            "descriptor": {"path": "", "dir_fd": file, "flags": FH_AT_EMPTY_PATH},
            "FID": {"path": mount_dir / "file", "flags": FH_AT_HANDLE_FID},
            "FID only": {"path": "/proc/version", "flags": FH_AT_HANDLE_FID},
        }[form]
        expected = await face.fhandle(**arguments)
        before = kernel.open_fds()
        with failing_counted("name_to_handle_at", error, times=1) as calls:
            handle = await face.fhandle(**arguments)
        assert calls.seen == 2
        assert handle == expected
        assert kernel.open_fds() == before


@pytest.mark.parametrize("code", [errno.EACCES, errno.EOVERFLOW, errno.EINVAL, errno.ENOMEM])
@on_both_faces
async def test_the_second_try_of_older_kernels_leaks_nothing_when_it_fails(face, mount_dir, code):
    (mount_dir / "file").touch()
    await face.fhandle(path=mount_dir / "file")
    before = kernel.open_fds()
    # EINVAL all the way says that the arguments are wrong, not that the kernel is old.
    skip = 0 if code == errno.EINVAL else 1
    with faults.failing("name_to_handle_at", code, skip=skip):
        if skip:
            await face.fhandle(path=mount_dir / "file")
        with pytest.raises(OSError) as failed:
            await face.fhandle(path=mount_dir / "file")
    assert failed.value.errno == code
    assert os.fspath(failed.value.filename) == str(mount_dir / "file")
    assert kernel.open_fds() == before


@pytest.mark.parametrize("syscall", ["openat2", "statx", "close"])
@on_both_faces
async def test_a_failing_step_of_the_second_try_leaks_nothing(face, syscall):
    # proc has no plain handles, so the second try happens without an injected first failure; tmpfs
    # has them, but lets the first try succeed.
    await face.statx(AT_FDCWD, "/proc/version")
    before = kernel.open_fds()
    with failing_counted(syscall, errno.EIO) as calls, pytest.raises(OSError):
        await face.fhandle(path="/proc/version")
    left = kernel.open_fds().keys() - before.keys()
    if syscall == "close":  # the injected failure kept it from being closed
        assert len(left) == 1
        os.close(left.pop())
    assert not left
    assert calls.seen == {"openat2": 1, "statx": 0, "close": 1}[syscall]


# -- opening -------------------------------------------------------------------------------------


WITH_PLAIN_HANDLES = pytest.mark.parametrize(
    "filesystem", ["ext4", "xfs", "btrfs", "tmpfs"], indirect=True, scope="session"
)


@WITH_PLAIN_HANDLES
@on_both_faces
async def test_bytes_lead_back_to_the_same_file(face, openable):
    file, mount_fd = openable
    handle = await face.fhandle(path=file)
    restored = face.library.fhandle(handle_bytes=bytes(handle), mount_id=handle.mount_id)
    fd = await open_handle(face, restored, mount_fd)
    assert type(fd) is face.Fd
    assert os.path.samestat(os.fstat(fd), os.stat(file))
    assert os.read(fd, 100) == b"content"
    assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    await face.close(fd)


@WITH_PLAIN_HANDLES
@on_both_faces
async def test_a_directory_and_a_writable_descriptor_can_be_opened(face, openable):
    file, mount_fd = openable
    handle = await face.fhandle(path=file.parent)
    fd = await open_handle(face, handle, face.Fd(mount_fd), os.O_RDONLY | os.O_DIRECTORY)
    assert os.listdir(fd) == ["file"]
    os.close(fd)
    fd = await open_handle(face, await face.fhandle(path=file), mount_fd, os.O_WRONLY | os.O_TRUNC)
    assert os.fstat(fd).st_size == 0
    os.close(fd)


@WITH_PLAIN_HANDLES
@on_both_faces
async def test_a_symlink_can_be_opened_with_o_path_only(face, openable):
    file, mount_fd = openable
    link = file.with_name("link")
    link.symlink_to("file")
    handle = await face.fhandle(path=link)
    fd = await open_handle(face, handle, mount_fd, os.O_PATH)
    assert stat.S_ISLNK(os.fstat(fd).st_mode)
    os.close(fd)
    with pytest.raises(OSError) as failed:
        await open_handle(face, handle, mount_fd)
    assert failed.value.errno == errno.ELOOP


@WITH_PLAIN_HANDLES
@on_both_faces
async def test_a_handle_survives_a_rename_of_its_file(face, openable):
    file, mount_fd = openable
    handle = await face.fhandle(path=file)
    inode = os.stat(file).st_ino
    (file.parent / "sub").mkdir()
    os.rename(file, file.parent / "sub/renamed")
    fd = await open_handle(face, handle, mount_fd)
    assert os.fstat(fd).st_ino == inode
    os.close(fd)
    assert await face.fhandle(path=file.parent / "sub/renamed") == handle


@WITH_PLAIN_HANDLES
@on_both_faces
async def test_a_handle_is_stale_once_its_file_is_gone(face, openable):
    file, mount_fd = openable
    handle = await face.fhandle(path=file)
    before = kernel.open_fds()
    file.unlink()
    file.write_text("another file")
    with pytest.raises(OSError) as failed:
        await open_handle(face, handle, mount_fd)
    assert failed.value.errno == errno.ESTALE
    assert bytes(handle).hex() in " ".join(failed.value.__notes__)
    assert kernel.open_fds() == before


@pytest.mark.parametrize("filesystem", ["ext4", "xfs", "btrfs"], indirect=True, scope="session")
@on_both_faces
async def test_a_connectable_handle_leads_to_the_path_as_well(face, openable):
    file, mount_fd = openable
    handle = await face.fhandle(path=file, flags=FH_AT_HANDLE_CONNECTABLE)
    fd = await open_handle(face, handle, mount_fd)
    assert os.readlink(f"/proc/self/fd/{fd}") == str(file)
    os.close(fd)


@needs_root
@pytest.mark.parametrize("filesystem", ["overlay"], indirect=True, scope="session")
@on_both_faces
async def test_a_handle_for_comparing_only_cannot_be_opened(face, file):
    handle = await face.fhandle(path=file, flags=FH_AT_HANDLE_FID)
    mount_fd = os.open(file, os.O_RDONLY)
    with pytest.raises(OSError) as failed:
        await open_handle(face, handle, mount_fd)
    assert failed.value.errno in (errno.EOPNOTSUPP, errno.ESTALE)
    os.close(mount_fd)


@on_both_faces
async def test_opening_needs_a_capability(face, tmp_path):
    # Outside of a user namespace the thread gives the capability up; in one it never counts for a
    # filesystem mounted outside.
    handle = await face.fhandle(path=tmp_path)
    mount_fd = os.open(tmp_path, os.O_RDONLY)
    if IS_ROOT:
        os.seteuid(65534)
    try:
        with pytest.raises(PermissionError) as failed:
            await open_handle(face, handle, mount_fd)
        assert failed.value.errno == errno.EPERM
    finally:
        if IS_ROOT:
            os.seteuid(0)
        os.close(mount_fd)


# -- comparing -----------------------------------------------------------------------------------


@on_both_faces
async def test_handles_are_equal_and_hash_by_content_and_mount(face, mount_dir):
    made = await face.fhandle(path=mount_dir)
    content = bytes(made)
    fhandle = face.library.fhandle
    same = fhandle(handle_bytes=content, mount_id=made.mount_id)
    other_face = (truenas_os if face.library is blocking else blocking).fhandle
    across = other_face(handle_bytes=content, mount_id=made.mount_id)
    assert made == same == across
    assert hash(made) == hash(same) == hash(across)
    assert {made, same, across} == {made}
    assert across in {made: 1}
    differing = [
        fhandle(handle_bytes=content),
        fhandle(handle_bytes=content, mount_id=made.mount_id + 1),
        fhandle(handle_bytes=content[:-1] + bytes([content[-1] ^ 1]), mount_id=made.mount_id),
        content,
        None,
    ]
    for other in differing:
        assert made != other
        assert not made == other  # noqa: SIM201
    assert len({made, *differing[:3]}) == 4


@on_both_faces
async def test_the_type_is_the_public_name_and_the_repr_tells_the_content(face, mount_dir):
    handle = await face.fhandle(path=mount_dir)
    assert isinstance(handle, face.library.fhandle)
    _, kind = struct.unpack_from("=Ii", bytes(handle))
    for part in (hex(kind), bytes(handle)[8:].hex(), str(handle.mount_id)):
        assert part in repr(handle)


@on_both_faces
async def test_bytes_and_mount_id_may_be_kept_in_a_pickle(face, mount_dir):
    handle = await face.fhandle(path=mount_dir)
    kept = pickle.loads(pickle.dumps((bytes(handle), handle.mount_id)))
    assert type(kept[0]) is bytes
    assert type(kept[1]) is int
    assert face.library.fhandle(handle_bytes=kept[0], mount_id=kept[1]) == handle


# -- arguments -----------------------------------------------------------------------------------


def handle_bytes(announced, following):
    return struct.pack("=Ii", announced, 1) + b"x" * following


@pytest.mark.parametrize(
    "malformed",
    [
        b"",
        b"1234567",
        handle_bytes(8, 0),
        handle_bytes(8, 7),
        handle_bytes(8, 9),
        handle_bytes(0, 0),
        handle_bytes(0, 8),
        handle_bytes(129, 129),
        handle_bytes(0xFFFFFFFF, 128),
        handle_bytes(0x80000008, 8),
    ],
    ids=repr,
)
@pytest.mark.parametrize("library", [blocking, truenas_os], ids=["blocking", "async"])
def test_malformed_handle_bytes_are_refused(library, malformed):
    with pytest.raises(ValueError, match="handle"):
        library.fhandle(handle_bytes=malformed)


@pytest.mark.parametrize("library", [blocking, truenas_os], ids=["blocking", "async"])
def test_what_is_no_source_of_a_handle_is_a_type_error(library):
    good = handle_bytes(8, 8)
    for arguments in (
        {},
        {"path": None, "handle_bytes": None},
        {"path": "/", "handle_bytes": good},
        {"path": "/", "mount_id": 7},
        {"mount_id": 7},
        {"handle_bytes": "text"},
        {"handle_bytes": 16},
        {"handle_bytes": [1] * 16},
    ):
        with faults.count(None) as calls, pytest.raises(TypeError):
            library.fhandle(**arguments)
        assert calls.seen == 0


@pytest.mark.parametrize("library", [blocking, truenas_os], ids=["blocking", "async"])
@pytest.mark.parametrize("mount_id", [-5, 1 << 64])
def test_a_number_that_is_no_mount_id_is_a_value_error(library, mount_id):
    with pytest.raises(ValueError, match="a mount id is"):
        library.fhandle(handle_bytes=handle_bytes(8, 8), mount_id=mount_id)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"path": "em\0bedded"}, ValueError),
        ({"path": 7}, TypeError),
        ({"path": "/", "dir_fd": "3"}, TypeError),
        ({"path": "/", "dir_fd": None}, TypeError),
        ({"path": "/", "flags": 0.5}, TypeError),
    ],
    ids=str,
)
@on_both_faces
async def test_bad_arguments_are_refused_before_any_system_call(face, arguments, error):
    with faults.count(None) as calls, pytest.raises(error):
        await face.fhandle(**arguments)
    assert calls.seen == 0


@on_both_faces
async def test_closed_descriptors_are_refused_before_any_system_call(face):
    closed = face.Fd(os.open("/", os.O_PATH))
    await face.close(closed)
    handle = face.library.fhandle(handle_bytes=handle_bytes(8, 8))
    with faults.count(None) as calls:
        with pytest.raises(ValueError, match="closed"):
            await face.fhandle(path="etc", dir_fd=closed)
        with pytest.raises(ValueError, match="closed"):
            await open_handle(face, handle, closed)
    assert calls.seen == 0


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=160)
    | st.builds(
        lambda size, kind, rest: struct.pack("=Ii", size, kind) + rest,
        st.integers(0, 140),
        st.integers(-(2**31), 2**31 - 1),
        st.binary(max_size=140),
    )
    | st.builds(
        lambda kind, rest: struct.pack("=Ii", len(rest), kind) + rest,
        st.integers(-(2**31), 2**31 - 1),
        st.binary(max_size=140),
    )
)
def test_random_bytes_are_refused_or_kept_as_they_are(raw):
    well_formed = 9 <= len(raw) <= 8 + 128 and struct.unpack_from("=I", raw)[0] == len(raw) - 8
    for library in (blocking, truenas_os):
        for form in (raw, bytearray(raw), memoryview(raw)):
            if well_formed:
                handle = library.fhandle(handle_bytes=form)
                assert bytes(handle) == raw
                assert type(bytes(handle)) is bytes
                assert handle.mount_id is None
                assert repr(handle)
            else:
                with pytest.raises(ValueError, match="handle"):
                    library.fhandle(handle_bytes=form)


@needs_root
@every_face
@settings(
    max_examples=50,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.integers(-(2**31), 2**31 - 1), st.binary(min_size=1, max_size=128))
def test_opening_a_random_handle_is_an_oserror(face, mount_dir, kind, content):
    raw = struct.pack("=Ii", len(content), kind) + content

    async def body():
        fd = os.open(mount_dir, os.O_PATH)
        before = kernel.open_fds()
        try:
            with pytest.raises(OSError) as failed:
                handle = face.library.fhandle(handle_bytes=raw)
                await open_handle(face, handle, fd)
            assert failed.value.errno
            assert kernel.open_fds() == before
        finally:
            os.close(fd)

    face.run(body)


# -- awaiting ------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_handle_of_a_path_cannot_be_used_before_it_is_awaited(mount_dir):
    handle = truenas_os.fhandle(path=mount_dir)
    with faults.count(None) as calls:
        for use in (bytes, hash, lambda h: h.mount_id, lambda h: h == h, lambda h: {h}):
            with pytest.raises(RuntimeError, match="awaited"):
                use(handle)
        with pytest.raises(RuntimeError, match="awaited"):
            await handle.open(0)
        assert "not awaited" in repr(handle)
    assert calls.seen == 0
    assert await handle is handle
    assert bytes(handle) == raw_handle(mount_dir)


@pytest.mark.anyio
async def test_a_second_await_makes_no_second_call(mount_dir):
    handle = truenas_os.fhandle(path=mount_dir)
    with faults.count("name_to_handle_at") as calls:
        assert await handle is await handle is handle
    assert calls.seen == 1


@pytest.mark.anyio
async def test_two_tasks_may_await_one_handle(mount_dir):
    handle = truenas_os.fhandle(path=mount_dir)
    found = []

    async def wait():
        found.append(bytes(await handle))

    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(wait)
    assert found == [raw_handle(mount_dir)] * 10


@pytest.mark.anyio
async def test_a_failed_await_may_be_repeated(mount_dir):
    handle = truenas_os.fhandle(path=mount_dir / "late")
    with pytest.raises(FileNotFoundError):
        await handle
    with pytest.raises(RuntimeError, match="awaited"):
        bytes(handle)
    (mount_dir / "late").touch()
    assert bytes(await handle) == raw_handle(mount_dir / "late")


@pytest.mark.anyio
async def test_restored_bytes_can_be_used_at_once_and_awaited():
    raw = handle_bytes(8, 8)
    handle = truenas_os.fhandle(handle_bytes=raw, mount_id=7)
    assert (bytes(handle), handle.mount_id) == (raw, 7)
    with faults.count(None) as calls:
        assert await handle is handle
    assert calls.seen == 0
