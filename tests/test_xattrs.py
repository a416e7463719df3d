# SPDX-License-Identifier: LGPL-3.0-or-later
"""Extended attributes, with the standard library as the witness."""

import errno
import os

import faults
import kernel
import pytest
from faces import on_both_faces
from filesystems import needs_root, written
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from witness import notes

from truenas_os import blocking
from truenas_os.blocking import XATTR_CREATE, XATTR_REPLACE

CALLS = ("getxattrat", "listxattrat", "setxattrat", "removexattrat")


class old_kernel:
    """A kernel that lacks the calls of Linux 6.13; the hook fails one number, so all in Python."""

    def __enter__(self):
        from truenas_os.blocking import xattrs

        self._module, self._lib = xattrs, xattrs.lib
        real = self._lib

        class Old:
            def __getattr__(self, name):
                if name.removeprefix("tos_") in CALLS:
                    return lambda *_: -errno.ENOSYS
                return getattr(real, name)

        xattrs.lib = Old()

    def __exit__(self, *exc):
        self._module.lib = self._lib


KERNELS = {"6.13": faults.contextlib.nullcontext, "before 6.13": old_kernel}
both_kernels = pytest.mark.parametrize("age", list(KERNELS))


def forms(path):
    """The ways to say which file is meant, and what is to be closed."""
    fds = [
        os.open(path, os.O_RDONLY),
        os.open(path, os.O_PATH),
        os.open(path.parent, os.O_PATH),
        os.open(path.parent, os.O_RDONLY),
    ]
    return [
        ((path,), {}),
        ((os.fsencode(path),), {}),
        ((fds[0],), {}),
        ((blocking.Fd(fds[1]),), {}),
        ((path.name,), {"dir_fd": fds[2]}),
        ((path.name,), {"dir_fd": fds[3]}),
    ], fds


@both_kernels
@on_both_faces
async def test_every_call_agrees_with_the_standard_library_however_the_file_is_given(
    face, place, age
):
    path = written(place / "file")
    given_as, fds = forms(path)
    try:
        with KERNELS[age]():
            for number, (file, where) in enumerate(given_as):
                name, value = f"user.n{number}", b"\0value" * number
                await face.setxattr(*file, name, value, **where)
                assert os.getxattr(path, name) == value
                assert await face.getxattr(*file, name, **where) == value
                assert sorted(await face.listxattr(*file, **where)) == sorted(os.listxattr(path))
                await face.removexattr(*file, os.fsencode(name), **where)
                assert name not in os.listxattr(path)
                with pytest.raises(OSError) as failed:
                    await face.getxattr(*file, name, **where)
                assert failed.value.errno == errno.ENODATA
                named = file[0] if not isinstance(file[0], int) else int(file[0])
                assert failed.value.filename == (
                    os.fspath(named) if not isinstance(named, int) else named
                )
    finally:
        for fd in fds:
            os.close(fd)


@both_kernels
@on_both_faces
async def test_create_and_replace(face, place, age):
    path = written(place / "file")
    with KERNELS[age]():
        with pytest.raises(OSError) as failed:
            await face.setxattr(path, "user.a", b"1", XATTR_REPLACE)
        assert failed.value.errno == errno.ENODATA
        await face.setxattr(path, "user.a", bytearray(b"1"), XATTR_CREATE)
        with pytest.raises(FileExistsError):
            await face.setxattr(path, "user.a", b"2", XATTR_CREATE)
        await face.setxattr(path, "user.a", memoryview(b"33"), XATTR_REPLACE)
    assert os.getxattr(path, "user.a") == b"33"


@needs_root
@both_kernels
@on_both_faces
async def test_a_symlink_at_the_end_is_not_followed(face, place, age):
    path = written(place / "file")
    link = place / "link"
    link.symlink_to("file")
    os.setxattr(path, "trusted.t", b"file")
    with KERNELS[age]():
        await face.setxattr(link, "trusted.t", b"link")
        assert await face.getxattr(link, "trusted.t") == b"link"
        assert os.getxattr(link, "trusted.t", follow_symlinks=False) == b"link"
        assert "trusted.t" in await face.listxattr(link)
        await face.removexattr(link, "trusted.t")
        assert "trusted.t" not in await face.listxattr(link)
        with pytest.raises(PermissionError):
            await face.setxattr(link, "user.u", b"")
    assert os.getxattr(path, "trusted.t") == b"file"


@both_kernels
@on_both_faces
async def test_values_of_every_size_that_the_filesystem_takes(face, place, age):
    path = written(place / "file")
    taken = 0
    with KERNELS[age]():
        for size in (0, 1, 255, 256, 257, 500, 4000, 16_000, 65_535, 65_536):
            value = os.urandom(size)
            try:
                os.setxattr(path, "user.value", value)
            except OSError:
                continue  # the filesystem's limit
            taken = size
            assert await face.getxattr(path, "user.value") == value
            await face.setxattr(path, "user.value", value[::-1])
            assert os.getxattr(path, "user.value") == value[::-1]
        assert taken >= (65_536 if "xfs" in str(place) else 500)
        with pytest.raises(OSError) as failed:
            await face.setxattr(path, "user.value", bytes(65_537))
        assert failed.value.errno == errno.E2BIG


@on_both_faces
async def test_a_long_list(face, place):
    path = written(place / "file")
    names = []
    for number in range(200):
        name = f"user.{number:0>40}"
        try:
            os.setxattr(path, name, b"")
        except OSError:
            break  # the filesystem's limit
        names.append(name)
    assert sum(map(len, names)) > 500
    assert sorted(n for n in await face.listxattr(path) if n.startswith("user.")) == names


@on_both_faces
async def test_names_that_are_no_utf8_come_back_as_they_went(face, place):
    path = written(place / "file")
    await face.setxattr(path, b"user.\xff\xe9", b"x")
    (name,) = (n for n in await face.listxattr(path) if n.startswith("user."))
    assert os.fsencode(name) == b"user.\xff\xe9"
    assert await face.getxattr(path, name) == b"x"


@on_both_faces
async def test_a_value_that_grows_while_it_is_read_is_read_again(face, place):
    path = written(place / "file")
    os.setxattr(path, "user.value", b"x" * 300)
    # As if it had grown each time between the size and the value.
    with faults.failing("getxattrat", errno.ERANGE, skip=0, times=1):
        assert await face.getxattr(path, "user.value") == b"x" * 300
    with faults.failing("listxattrat", errno.ERANGE, skip=0, times=1):
        assert "user.value" in await face.listxattr(path)


@pytest.mark.parametrize("call", ["getxattr", "listxattr"])
def test_a_value_that_grows_for_ever_ends_in_erange(tmp_path, monkeypatch, call):
    from truenas_os.blocking import xattrs

    sizes = []

    def growing(target, call, *args):
        size = args[-1]
        sizes.append(size)
        return sizes[-2] + 1 if size == 0 else -errno.ERANGE

    monkeypatch.setattr(xattrs, "_call", growing)
    with pytest.raises(OSError) as failed:
        getattr(blocking, call)(tmp_path, *(["user.x"] if call == "getxattr" else []))
    assert (failed.value.errno, failed.value.filename) == (errno.ERANGE, str(tmp_path))
    assert 10 < len(sizes) < 100


@both_kernels
@on_both_faces
async def test_errors_name_the_file(face, place, age):
    with KERNELS[age]():
        with pytest.raises(FileNotFoundError) as failed:
            await face.getxattr(place / "none", "user.x")
        assert failed.value.filename == str(place / "none")
        closed = os.open(place, os.O_RDONLY)
        os.close(closed)
        for call, args in (
            ("getxattr", ("user.x",)),
            ("listxattr", ()),
            ("setxattr", ("user.x", b"")),
            ("removexattr", ("user.x",)),
        ):
            with pytest.raises(OSError) as failed:
                await getattr(face, call)(closed, *args)
            assert (failed.value.errno, failed.value.filename) == (errno.EBADF, closed)
        with pytest.raises(OSError) as failed:
            await face.getxattr(place, "nonsense")
        assert failed.value.errno == errno.EOPNOTSUPP


@on_both_faces
async def test_bad_arguments_are_found_before_any_system_call(face, tmp_path):
    with faults.count(None) as calls:
        for name in ("", "x" * 256, "nul\0"):
            with pytest.raises(ValueError):
                await face.getxattr(tmp_path, name)
            with pytest.raises(ValueError):
                await face.setxattr(tmp_path, name, b"")
            with pytest.raises(ValueError):
                await face.removexattr(tmp_path, name)
        with pytest.raises(TypeError):
            await face.getxattr(tmp_path, 5)
        with pytest.raises(TypeError):
            await face.setxattr(tmp_path, "user.x", "text")
        with pytest.raises(TypeError):
            await face.listxattr(1.5)
    assert calls.seen == 0


@pytest.mark.parametrize("call", CALLS)
def test_without_proc_an_old_kernel_says_enosys(place, call):
    """The fallback's own system call says ENOENT when there is no /proc."""
    path = written(place / "file")
    args = {"getxattrat": ("user.x",), "removexattrat": ("user.x",), "setxattrat": ("user.x", b"")}
    real = getattr(blocking, call.removesuffix("at"))
    from truenas_os.blocking import xattrs

    original = xattrs.link_of
    xattrs.link_of = lambda fd: b"/nonexistent"
    try:
        with faults.failing(call, errno.ENOSYS), pytest.raises(OSError) as failed:
            real(path, *args.get(call, ()))
    finally:
        xattrs.link_of = original
    assert failed.value.errno == errno.ENOSYS
    assert f"{call}() needs Linux 6.13" in notes(failed.value)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.binary(max_size=3000))
def test_any_value_survives(mount_dir, value):
    blocking.setxattr(mount_dir, "user.any", value)
    assert os.getxattr(mount_dir, "user.any") == blocking.getxattr(mount_dir, "user.any") == value


@both_kernels
def test_no_call_leaves_a_descriptor(place, age):
    path = written(place / "file")
    fds = kernel.open_fds()
    with KERNELS[age]():
        blocking.setxattr(path, "user.x", b"y")
        blocking.getxattr(path, "user.x")
        blocking.listxattr(path)
        blocking.removexattr(path, "user.x")
    assert kernel.open_fds() == fds
