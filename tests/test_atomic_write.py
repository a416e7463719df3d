# SPDX-License-Identifier: LGPL-3.0-or-later
"""atomic_write and atomic_replace: what the new file is like, and what is refused."""

import errno
import functools
import os
import stat
import struct
import threading

import faults
import kernel
import pytest
from faces import block, on_both_faces
from filesystems import needs_root, written
from replacing import NEW, OLD, without_tmpfile
from witness import in_python, notes

import truenas_os
from truenas_os import blocking

WAYS = {"with O_TMPFILE": faults.contextlib.nullcontext, "without O_TMPFILE": without_tmpfile}
either_way = pytest.mark.parametrize("way", list(WAYS))


def writing(face, *args, **kwargs):
    return block(face.library.atomic_write(*args, **kwargs))


def names(directory):
    return sorted(os.listdir(directory))


def acl(*entries):
    """The bytes of a POSIX ACL of (tag, permissions, id)."""
    return struct.pack("=I", 2) + b"".join(struct.pack("=HHI", *entry) for entry in entries)


NOBODY_IN_PARTICULAR = 0xFFFFFFFF
ACL = acl(
    (1, 6, NOBODY_IN_PARTICULAR),
    (2, 4, 0),
    (4, 4, NOBODY_IN_PARTICULAR),
    (16, 4, NOBODY_IN_PARTICULAR),
    (32, 0, NOBODY_IN_PARTICULAR),
)


# -- Content -------------------------------------------------------------------------------------


@either_way
@on_both_faces
async def test_the_content_changes_when_the_block_ends_and_not_before(face, place, way):
    path = place / "file"
    with WAYS[way]():
        for before, now in ((None, b"one"), (b"one", b"two, longer"), (b"two, longer", b"")):
            async with writing(face, path, "wb") as file:
                await face.call(file.write, now)
                await face.call(file.flush)
                assert (path.read_bytes() if path.exists() else None) == before
            assert path.read_bytes() == now
            assert names(place) == ["file"]


@on_both_faces
async def test_text_is_encoded_as_open_does(face, tmp_path):
    text = "grün\nß\n"
    for arguments in ({}, {"encoding": "latin-1"}, {"encoding": "utf-16", "newline": "\r\n"}):
        async with writing(face, tmp_path / "ours", **arguments) as file:
            await face.call(file.write, text)
        with open(tmp_path / "theirs", "w", **arguments) as file:
            file.write(text)
        assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    await face.atomic_replace(tmp_path / "ours", text, encoding="utf-16")
    assert (tmp_path / "ours").read_text("utf-16") == text


@pytest.mark.parametrize("mode", ["w+", "wb+", "w+b", "wt", "tw+"])
@on_both_faces
async def test_what_was_written_can_be_read_again_in_the_block(face, tmp_path, mode):
    data = b"abc" if "b" in mode else "abc"
    async with writing(face, tmp_path / "file", mode) as file:
        await face.call(file.write, data)
        if "+" in mode:
            await face.call(file.seek, 0)
            assert await face.call(file.read) == data
        assert file.name == str(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"abc"


@pytest.mark.parametrize("data", [b"bytes", bytearray(b"bytes"), memoryview(b"bytes"), "bytes"])
@on_both_faces
async def test_atomic_replace_takes_text_and_whatever_holds_bytes(face, tmp_path, data):
    await face.atomic_replace(tmp_path / "file", data, durable=False)
    assert (tmp_path / "file").read_bytes() == b"bytes"


@on_both_faces
async def test_a_file_that_the_block_has_closed_is_put_in_place(face, tmp_path):
    async with writing(face, tmp_path / "file") as file:
        await face.call(file.write, "whole")
        await face.call(file.close if face.name == "blocking" else file.aclose)
    assert (tmp_path / "file").read_text() == "whole"


@either_way
@on_both_faces
async def test_an_exception_in_the_block_leaves_everything_as_it_was(face, place, way):
    path = written(place / "file", OLD)
    before, fds = os.stat(path), kernel.open_fds()
    with WAYS[way]():
        for target in (path, place / "new"):
            with pytest.raises(KeyError):
                async with writing(face, target, "wb") as file:
                    await face.call(file.write, NEW)
                    raise KeyError
    assert os.stat(path) == before
    assert path.read_bytes() == OLD
    assert names(place) == ["file"]
    assert kernel.open_fds() == fds


def test_a_process_forked_in_the_block_neither_commits_nor_removes(tmp_path):
    path = written(tmp_path / "file", OLD)
    script = f"""
import contextlib, os, replacing, sys
from truenas_os import blocking
for way in (contextlib.nullcontext, replacing.without_tmpfile):
    try:
        with way(), blocking.atomic_write({str(path)!r}, "wb", durable=False) as file:
            file.write(b"whole ")
            file.flush()
            pid = os.fork()
            if not pid:
                file.write(b"from the child")
            else:
                assert os.waitpid(pid, 0)[1] == 0
                print(open({str(path)!r}, "rb").read()[:8])
    except RuntimeError:
        os._exit(bool(pid))
    print(open({str(path)!r}, "rb").read())
"""
    assert in_python(script).splitlines() == ["b'old old '", "b'whole '", "b'whole '", "b'whole '"]
    assert names(tmp_path) == ["file"]


def test_a_block_begins_once(tmp_path):
    manager = blocking.atomic_write(tmp_path / "file")
    with manager:
        pass
    with pytest.raises(RuntimeError, match="begun already"):
        manager.__enter__()


# -- Attributes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o022, 0o077, 0])
@either_way
@on_both_faces
async def test_a_new_file_is_as_open_creates_it(face, place, way, umask):
    old = os.umask(umask)
    try:
        with WAYS[way]():
            await face.atomic_replace(place / "ours", b"x")
        (place / "theirs").touch()
    finally:
        os.umask(old)
    ours, theirs = os.stat(place / "ours"), os.stat(place / "theirs")
    assert ours.st_mode == theirs.st_mode == stat.S_IFREG | 0o666 & ~umask
    assert (ours.st_uid, ours.st_gid) == (theirs.st_uid, theirs.st_gid)


@either_way
@on_both_faces
async def test_a_new_file_has_the_default_acl_of_its_directory(face, place, way):
    os.setxattr(place, "system.posix_acl_default", ACL)
    with WAYS[way]():
        await face.atomic_replace(place / "ours", b"x")
    (place / "theirs").touch()
    name = "system.posix_acl_access"
    assert os.getxattr(place / "ours", name) == os.getxattr(place / "theirs", name)
    assert os.stat(place / "ours").st_mode == os.stat(place / "theirs").st_mode


@either_way
@on_both_faces
async def test_an_old_file_without_an_acl_gets_none_from_its_directory(face, place, way):
    path = written(place / "file", OLD)
    os.chmod(path, 0o640)
    os.setxattr(place, "system.posix_acl_default", ACL)
    with WAYS[way]():
        await face.atomic_replace(path, NEW)
    assert "system.posix_acl_access" not in os.listxattr(path)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o640


@pytest.mark.parametrize("mode", [0o600, 0o444, 0o6751, 0, 0o1777])
@either_way
@on_both_faces
async def test_mode_xattrs_and_acl_of_the_old_file_are_kept(face, place, way, mode):
    path = written(place / "file", OLD)
    os.setxattr(path, "user.small", b"value")
    os.setxattr(path, "user.large", b"v" * 600)
    os.setxattr(path, "user.empty", b"")
    if mode != 0o6751:
        os.setxattr(path, "system.posix_acl_access", ACL)
    os.chmod(path, mode)
    before = {name: os.getxattr(path, name) for name in os.listxattr(path)}
    inode = os.stat(path).st_ino
    with WAYS[way]():
        await face.atomic_replace(path, NEW)
    assert os.stat(path).st_ino != inode
    assert stat.S_IMODE(os.stat(path).st_mode) == mode
    assert {name: os.getxattr(path, name) for name in os.listxattr(path)} == before
    os.chmod(path, 0o600)
    assert path.read_bytes() == NEW


@needs_root
@either_way
@on_both_faces
async def test_owner_and_privileged_xattrs_of_the_old_file_are_kept(face, place, way):
    path = written(place / "file", OLD)
    os.chown(path, 12_345, 54_321)
    os.chmod(path, 0o6755)
    os.setxattr(path, "trusted.note", b"secret")
    capability = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0)
    os.setxattr(path, "security.capability", capability)
    with WAYS[way]():
        await face.atomic_replace(path, NEW)
    found = os.stat(path)
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (12_345, 54_321, 0o6755)
    assert os.getxattr(path, "trusted.note") == b"secret"
    assert os.getxattr(path, "security.capability") == capability


@needs_root
@pytest.mark.parametrize("exists", [True, False])
@on_both_faces
async def test_what_is_given_is_taken_instead(face, place, exists):
    path = place / "file"
    if exists:
        written(path, OLD)
        os.chown(path, 1, 2)
    await face.atomic_replace(path, NEW, perms=0o4711, uid=77)
    found = os.stat(path)
    assert (found.st_uid, found.st_gid) == (77, 2 if exists else os.getegid())
    assert stat.S_IMODE(found.st_mode) == 0o4711
    await face.atomic_replace(path, NEW, gid=88)
    found = os.stat(path)
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (77, 88, 0o4711)


def test_privileged_attributes_that_cannot_be_set_are_left_out_and_others_are_not(
    tmp_path, monkeypatch
):
    from truenas_os.blocking import replacement

    path = written(tmp_path / "file", OLD)
    kinds = {"security.x": errno.EPERM, "trusted.y": errno.EOPNOTSUPP, "user.z": 0}

    def setxattr(fd, name, value):
        if kinds[name]:
            raise OSError(kinds[name], os.strerror(kinds[name]))

    monkeypatch.setattr(replacement, "listxattr", lambda fd: [*kinds, "security.ima"])
    monkeypatch.setattr(replacement, "getxattr", lambda fd, name: b"")
    monkeypatch.setattr(replacement, "setxattr", setxattr)
    blocking.atomic_replace(path, NEW)
    assert path.read_bytes() == NEW
    kinds["user.z"] = errno.EPERM
    with pytest.raises(PermissionError) as failed:
        blocking.atomic_replace(path, OLD)
    assert failed.value.filename == str(path)
    assert "'user.z'" in notes(failed.value)
    assert path.read_bytes() == NEW


# -- What stands in the way ----------------------------------------------------------------------


@on_both_faces
async def test_a_symlink_anywhere_in_the_path_is_refused(face, place):
    (place / "real").mkdir()
    written(place / "real" / "file", OLD)
    (place / "directory").symlink_to("real")
    (place / "real" / "link").symlink_to("file")
    (place / "real" / "dangling").symlink_to("nowhere")
    for path in ("directory/file", "directory/new", "real/link", "real/dangling"):
        for arguments in ({}, {"noclobber": True}):
            with pytest.raises((face.library.SymlinkInPathError, FileExistsError)) as failed:
                await face.atomic_replace(place / path, NEW, **arguments)
            assert failed.value.filename == str(place / path)
            if not (arguments and path in ("real/link", "real/dangling")):
                assert failed.type is face.library.SymlinkInPathError
                assert failed.value.errno == errno.ELOOP
    assert names(place / "real") == ["dangling", "file", "link"]
    assert (place / "real" / "file").read_bytes() == OLD


@on_both_faces
async def test_a_symlink_put_there_in_the_block_is_replaced_and_not_followed(face, place):
    victim = written(place / "victim", OLD)
    path = written(place / "file", OLD)
    async with writing(face, path, "wb") as file:
        await face.call(file.write, NEW)
        path.unlink()
        path.symlink_to("victim")
    assert not path.is_symlink()
    assert (path.read_bytes(), victim.read_bytes()) == (NEW, OLD)


@on_both_faces
async def test_only_regular_files_are_replaced(face, place):
    (place / "directory").mkdir()
    os.mkfifo(place / "fifo")
    for path, code in (
        (place / "directory", errno.EISDIR),
        (f"{place}/directory/", errno.EISDIR),
        (place / "directory" / "..", errno.EISDIR),
        (place / "fifo", errno.EOPNOTSUPP),
        (f"{place}/missing/file", errno.ENOENT),
        (f"{place}/fifo/file", errno.ENOTDIR),
        ("", errno.ENOENT),
    ):
        with pytest.raises(OSError) as failed:
            await face.atomic_replace(path, NEW)
        assert (failed.value.errno, failed.value.filename) == (code, os.fspath(path))
    assert names(place) == ["directory", "fifo"]


@on_both_faces
async def test_a_directory_put_there_in_the_block_stays(face, place):
    path = place / "file"
    with pytest.raises(IsADirectoryError):
        async with writing(face, path, "wb") as file:
            await face.call(file.write, NEW)
            path.mkdir()
    assert names(place) == ["file"]
    assert path.is_dir()


@either_way
@on_both_faces
async def test_noclobber_never_replaces_what_exists_before_or_appears_meanwhile(face, place, way):
    path = written(place / "file", OLD)
    with WAYS[way]():
        with pytest.raises(FileExistsError) as failed:
            async with writing(face, path, "wb", noclobber=True):
                raise AssertionError("begun")
        assert failed.value.filename == str(path)
        with pytest.raises(FileExistsError):
            async with writing(face, place / "new", "wb", noclobber=True) as file:
                await face.call(file.write, NEW)
                written(place / "new", OLD)
    assert (path.read_bytes(), (place / "new").read_bytes()) == (OLD, OLD)
    assert names(place) == ["file", "new"]


@on_both_faces
async def test_noclobber_where_the_filesystem_cannot_rename_so(face, place):
    with without_tmpfile(), faults.failing("renameat2", errno.EINVAL):
        await face.atomic_replace(place / "file", NEW, noclobber=True)
        with pytest.raises(FileExistsError):
            async with writing(face, place / "new", "wb", noclobber=True):
                written(place / "new", OLD)
    assert (place / "file").read_bytes() == NEW
    assert names(place) == ["file", "new"]


@either_way
@on_both_faces
async def test_what_appears_meanwhile_is_replaced_without_noclobber(face, place, way):
    with WAYS[way]():
        async with writing(face, place / "file", "wb") as file:
            await face.call(file.write, NEW)
            written(place / "file", OLD)
    assert (place / "file").read_bytes() == NEW
    assert names(place) == ["file"]


@on_both_faces
async def test_the_path_is_relative_to_the_directory_descriptor(face, place):
    (place / "below").mkdir()
    fd = os.open(place, os.O_PATH)
    try:
        await face.atomic_replace("below/file", NEW, dir_fd=fd)
        async with writing(face, b"file", "wb", dir_fd=fd) as file:
            await face.call(file.write, OLD)
    finally:
        os.close(fd)
    assert ((place / "below/file").read_bytes(), (place / "file").read_bytes()) == (NEW, OLD)


@on_both_faces
async def test_names_as_long_as_they_can_be(face, place):
    path = place / ("n" * 255)
    for content in (NEW, OLD):
        await face.atomic_replace(path, content)
        with without_tmpfile():
            await face.atomic_replace(path, content)
    assert path.read_bytes() == OLD
    with pytest.raises(OSError) as failed:
        await face.atomic_replace(place / ("n" * 256), NEW)
    assert failed.value.errno == errno.ENAMETOOLONG


@on_both_faces
async def test_bad_arguments_are_found_before_any_system_call(face, tmp_path):
    path = tmp_path / "file"
    with faults.count(None) as calls:
        for error, arguments in (
            (ValueError, {"mode": "r"}),
            (ValueError, {"mode": "a"}),
            (ValueError, {"mode": "x"}),
            (ValueError, {"mode": "wbt"}),
            (ValueError, {"mode": "ww"}),
            (ValueError, {"perms": -1}),
            (ValueError, {"perms": 0o10000}),
            (ValueError, {"uid": -2}),
            (ValueError, {"gid": 0xFFFFFFFF}),
            (ValueError, {"mode": "wb", "encoding": "utf-8"}),
            (ValueError, {"newline": "x"}),
            (LookupError, {"encoding": "nonexistent"}),
            (LookupError, {"errors": "nonexistent"}),
        ):
            with pytest.raises(error):
                async with writing(face, path, **arguments):
                    raise AssertionError("begun")
        with pytest.raises(ValueError, match="null byte"):
            await face.atomic_replace("nul\0", b"")
        with pytest.raises(TypeError):
            await face.atomic_replace(3, b"")
    assert calls.seen == 0
    with pytest.raises(TypeError):
        await face.atomic_replace(path, 5)
    assert names(tmp_path) == []


# -- Durability ----------------------------------------------------------------------------------


@pytest.mark.parametrize("durable", [True, False])
@on_both_faces
async def test_file_and_directory_are_synced_if_durable(face, place, durable):
    for _ in range(2):
        with faults.count("fsync") as calls:
            await face.atomic_replace(place / "file", NEW, durable=durable)
        assert calls.seen == (2 if durable else 0)


@on_both_faces
async def test_a_filesystem_that_cannot_sync_directories_is_no_error(face, place):
    with faults.failing("fsync", errno.EINVAL, skip=1):
        await face.atomic_replace(place / "file", NEW)
    assert (place / "file").read_bytes() == NEW


@on_both_faces
async def test_an_error_of_the_last_sync_says_that_the_new_content_is_in_place(face, place):
    path = written(place / "file", OLD)
    with faults.failing("fsync", errno.EIO, skip=1), pytest.raises(OSError) as failed:
        await face.atomic_replace(path, NEW)
    assert failed.value.filename == str(path)
    assert "in place" in notes(failed.value)
    assert path.read_bytes() == NEW


@on_both_faces
async def test_an_error_at_close_is_heard_while_the_old_file_stands(face, place):
    path = written(place / "file", OLD)
    manager = functools.partial(writing, face, path, "wb", durable=False)
    fds = kernel.open_fds()
    with pytest.raises(OSError) as failed:
        async with manager() as file:
            await face.call(file.write, NEW)
            await face.call(file.flush)
            faults.lib.tos_fault_arm(faults.number("close"), 0, 1, errno.EDQUOT, -1, -1)
    faults.lib.tos_fault_disarm()
    assert (failed.value.errno, failed.value.filename) == (errno.EDQUOT, str(path))
    assert path.read_bytes() == OLD
    for leaked in kernel.open_fds().keys() - fds.keys():
        os.close(leaked)  # which only the injected failure kept open


# -- The async face ------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_the_async_face_writes_on_worker_threads(tmp_path):
    threads = []

    def lines():
        threads.append(threading.get_ident())
        yield "line\n"

    async with truenas_os.atomic_write(tmp_path / "file") as file:
        assert type(file) is truenas_os.AsyncFile
        await file.writelines(lines())
    assert (tmp_path / "file").read_text() == "line\n"
    assert threads != [threading.get_ident()]
