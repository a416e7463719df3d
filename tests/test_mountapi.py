# SPDX-License-Identifier: LGPL-3.0-or-later
"""The mount API call by call, with mountinfo and the C library as witnesses."""

import contextlib
import ctypes
import errno
import fcntl
import os
import select
import struct
import subprocess
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import faults
import kernel
import pytest
import witness
from faces import Face, on_both_faces
from faults import failing_counted
from filesystems import needs_root
from stuck import AMPLE, fds_return_to, until

import truenas_os
from truenas_os import _threads, blocking
from truenas_os.blocking import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_RECURSIVE,
    AT_SYMLINK_NOFOLLOW,
    FSCONFIG_CMD_CREATE,
    FSCONFIG_CMD_RECONFIGURE,
    FSCONFIG_SET_FLAG,
    FSCONFIG_SET_STRING,
    FSMOUNT_CLOEXEC,
    FSOPEN_CLOEXEC,
    FSPICK_CLOEXEC,
    FSPICK_EMPTY_PATH,
    FSPICK_SYMLINK_NOFOLLOW,
    MNT_DETACH,
    MNT_EXPIRE,
    MOUNT_ATTR__ATIME,
    MOUNT_ATTR_IDMAP,
    MOUNT_ATTR_NOATIME,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NODIRATIME,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_NOSYMFOLLOW,
    MOUNT_ATTR_RDONLY,
    MOUNT_ATTR_STRICTATIME,
    MOVE_MOUNT_BENEATH,
    MOVE_MOUNT_F_EMPTY_PATH,
    MOVE_MOUNT_F_SYMLINKS,
    MOVE_MOUNT_SET_GROUP,
    MOVE_MOUNT_T_EMPTY_PATH,
    MOVE_MOUNT_T_SYMLINKS,
    MS_PRIVATE,
    MS_SHARED,
    MS_SLAVE,
    MS_UNBINDABLE,
    OPEN_TREE_CLOEXEC,
    OPEN_TREE_CLONE,
    UMOUNT_NOFOLLOW,
    IdmapMapping,
)

# -- witnesses -----------------------------------------------------------------------------------


def mounts_at(path):
    """The lines of mountinfo for *path*, the topmost last."""
    return [m for m in kernel.mountinfo() if m.mount_point == os.fspath(path)]


def options(path):
    return set(mounts_at(path)[-1].options.split(","))


def children(mnt_id):
    return [m for m in kernel.mountinfo() if m.parent == mnt_id]


@contextlib.asynccontextmanager
async def detached(face, name="content", attr_flags=0):
    """A tmpfs of its own that is attached nowhere, with a file of that name in it."""
    context = await face.fsopen(fs_name="tmpfs")
    try:
        await face.fsconfig(fs_fd=context, cmd=FSCONFIG_CMD_CREATE)
        mount = await face.fsmount(fs_fd=context, attr_flags=attr_flags)
    finally:
        await face.close(context)
    try:
        if not attr_flags & MOUNT_ATTR_RDONLY:
            os.mknod(name, dir_fd=mount)
        yield mount
    finally:
        await face.close(mount)


class Filesystem:
    """Tells when the superblock that *path* is on ceases to exist. It does not keep it alive."""

    _IN_CREATE, _IN_UNMOUNT = 0x100, 0x2000

    def __init__(self, path: str | os.PathLike[str]) -> None:
        libc = ctypes.CDLL(None)
        self.fd = libc.inotify_init1(os.O_CLOEXEC)
        assert self.fd >= 0
        assert libc.inotify_add_watch(self.fd, os.fsencode(path), self._IN_CREATE) >= 0

    def gone(self, seconds: float = 0) -> bool:
        if not select.select([self.fd], [], [], seconds)[0]:
            return False
        return bool(struct.unpack_from("=iI", os.read(self.fd, 4096))[1] & self._IN_UNMOUNT)

    def __enter__(self) -> "Filesystem":
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self.fd)


@pytest.fixture
def place(mount_dir):
    """A directory to attach mounts to."""
    path = mount_dir / "place"
    path.mkdir()
    return path


# -- making a mount ------------------------------------------------------------------------------


@on_both_faces
async def test_a_filesystem_is_configured_created_mounted_and_attached(face, place):
    context = await face.fsopen(fs_name="tmpfs")
    for key, value in {"size": "1M", "source": "a name"}.items():
        await face.fsconfig(fs_fd=context, cmd=FSCONFIG_SET_STRING, key=key, value=value)
    await face.fsconfig(fs_fd=context, cmd=FSCONFIG_CMD_CREATE)
    mount = await face.fsmount(fs_fd=context, attr_flags=MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV)
    assert mounts_at(place) == []
    await face.move_mount(
        from_dirfd=mount, from_path="", to_path=place, flags=MOVE_MOUNT_F_EMPTY_PATH
    )
    (line,) = mounts_at(place)
    assert (line.fs_type, line.source) == ("tmpfs", "a name")
    assert {"rw", "nosuid", "nodev"} <= set(line.options.split(","))
    assert "size=1024k" in line.super_options.split(",")
    assert witness.fd_mount(mount) == line.id
    await face.close(mount)
    await face.close(context)
    assert mounts_at(place) == [line]


@on_both_faces
async def test_every_descriptor_is_close_on_exec_though_the_flags_do_not_say_so(face, mount_dir):
    context = await face.fsopen(fs_name="tmpfs")
    await face.fsconfig(fs_fd=context, cmd=FSCONFIG_CMD_CREATE)
    fds = [
        context,
        await face.fsmount(fs_fd=context),
        await face.fspick(AT_FDCWD, mount_dir),
        await face.open_tree(AT_FDCWD, mount_dir),
        await face.open_tree(AT_FDCWD, mount_dir, OPEN_TREE_CLONE),
        await face.open_tree_attr(AT_FDCWD, mount_dir, OPEN_TREE_CLONE, attr_set=MOUNT_ATTR_RDONLY),
        # What names the flag is the same.
        await face.fsopen(fs_name="tmpfs", flags=FSOPEN_CLOEXEC),
        await face.fspick(AT_FDCWD, mount_dir, FSPICK_CLOEXEC),
        await face.open_tree(AT_FDCWD, mount_dir, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC),
    ]
    await face.fsconfig(fs_fd=fds[6], cmd=FSCONFIG_CMD_CREATE)
    fds.append(await face.fsmount(fs_fd=fds[6], flags=FSMOUNT_CLOEXEC))
    for fd in fds:
        assert type(fd) is face.Fd
        assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        await face.close(fd)
    assert len(set(map(int, fds))) == len(fds)


@on_both_faces
async def test_a_mount_that_was_never_attached_vanishes_with_its_descriptor(face, mount_dir):
    before = kernel.mountinfo()
    async with detached(face) as mount:
        assert os.listdir(f"/proc/self/fd/{mount}") == ["content"]
        filesystem = Filesystem(f"/proc/self/fd/{mount}")
        assert kernel.mountinfo() == before
        assert not filesystem.gone()
    with filesystem:
        assert filesystem.gone(AMPLE)


@on_both_faces
async def test_a_context_makes_one_mount(face):
    context = await face.fsopen(fs_name="tmpfs")
    with pytest.raises(OSError) as failed:
        await face.fsmount(fs_fd=context)
    assert (failed.value.errno, failed.value.messages) == (errno.EINVAL, ())
    await face.fsconfig(fs_fd=context, cmd=FSCONFIG_CMD_CREATE)
    await face.close(await face.fsmount(fs_fd=context))
    with pytest.raises(OSError) as failed:
        await face.fsmount(fs_fd=context)
    assert failed.value.errno == errno.EBUSY
    await face.close(context)


@on_both_faces
async def test_arguments_that_the_specification_has_as_keywords_are_keywords_only(face, place):
    for call, arguments in [
        (face.library.fsopen, ("tmpfs",)),
        (face.library.fsconfig, (0, FSCONFIG_CMD_CREATE)),
        (face.library.fsmount, (0,)),
        (face.library.mount_setattr, (place,)),
    ]:
        with pytest.raises(TypeError), faults.count(None) as calls:
            await face.call(call, *arguments)
        assert calls.seen == 0


# -- fspick --------------------------------------------------------------------------------------


async def reconfigure(face, context, option):
    await face.fsconfig(fs_fd=context, cmd=FSCONFIG_SET_FLAG, key=option)
    await face.fsconfig(fs_fd=context, cmd=FSCONFIG_CMD_RECONFIGURE)
    await face.close(context)


@on_both_faces
async def test_fspick_reconfigures_the_filesystem_at_a_path(face, mount_dir):
    target = witness.make(mount_dir)
    directory = os.open(mount_dir, os.O_RDONLY)
    root = os.open(target, os.O_PATH)
    for arguments in [
        (AT_FDCWD, target),
        (AT_FDCWD, os.fsencode(target)),
        (directory, "m"),
        (root, "", FSPICK_EMPTY_PATH),
    ]:
        for option in ("ro", "rw"):
            await reconfigure(face, await face.fspick(*arguments), option)
            assert mounts_at(target)[0].super_options.split(",")[0] == option
    assert "ro" not in options(mount_dir)
    os.close(directory)
    os.close(root)


@on_both_faces
async def test_fspick_follows_a_symlink_unless_told_not_to(face, mount_dir):
    target = witness.make(mount_dir)
    (mount_dir / "link").symlink_to("m")
    await reconfigure(face, await face.fspick(AT_FDCWD, mount_dir / "link"), "ro")
    assert mounts_at(target)[0].super_options.split(",")[0] == "ro"
    with pytest.raises(OSError) as failed:
        await face.fspick(AT_FDCWD, mount_dir / "link", FSPICK_SYMLINK_NOFOLLOW)
    assert failed.value.errno == errno.EINVAL  # it is the root of no mount


@on_both_faces
async def test_fspick_wants_the_root_of_a_mount(face, place):
    with pytest.raises(OSError) as failed:
        await face.fspick(AT_FDCWD, place)
    assert (failed.value.errno, failed.value.filename) == (errno.EINVAL, str(place))
    assert failed.value.messages == ()


# -- open_tree, open_tree_attr -------------------------------------------------------------------


@on_both_faces
async def test_open_tree_without_clone_opens_the_place_itself(face, mount_dir):
    fd = await face.open_tree(AT_FDCWD, mount_dir)
    assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_PATH
    assert os.path.samestat(os.fstat(fd), os.stat(mount_dir))
    assert witness.fd_mount(fd) == mounts_at(mount_dir)[0].id
    await face.close(fd)


@on_both_faces
async def test_a_clone_is_a_mount_of_its_own_until_its_descriptor_is_closed(face, mount_dir):
    target = witness.make(mount_dir)
    before = kernel.mountinfo()
    clone = await face.open_tree(AT_FDCWD, target, OPEN_TREE_CLONE)
    assert os.path.samestat(os.fstat(clone), os.stat(target))
    assert witness.fd_mount(clone) not in [mount.id for mount in before]
    assert kernel.mountinfo() == before
    with Filesystem(target) as filesystem:
        kernel.umount(target)
        assert not filesystem.gone()
        await face.close(clone)
        assert filesystem.gone(AMPLE)


@pytest.mark.parametrize("recursive", [False, True], ids=["alone", "recursive"])
@on_both_faces
async def test_a_clone_has_the_mounts_below_only_if_recursive(face, mount_dir, place, recursive):
    outer = witness.make(mount_dir, "outer")
    for name in ("inner", "inner/innermost"):
        witness.make(outer, name)
    flags = OPEN_TREE_CLONE | (AT_RECURSIVE if recursive else 0)
    clone = await face.open_tree(AT_FDCWD, outer, flags)
    await face.move_mount(clone, "", AT_FDCWD, place, MOVE_MOUNT_F_EMPTY_PATH)
    await face.close(clone)
    below = [m.mount_point for m in kernel.mountinfo() if Path(m.mount_point).is_relative_to(place)]
    inner = [place / "inner", place / "inner/innermost"] if recursive else []
    assert below == [str(path) for path in [place, *inner]]


@on_both_faces
async def test_open_tree_begins_at_a_descriptor_and_knows_symlinks(face, mount_dir):
    witness.make(mount_dir)
    (mount_dir / "link").symlink_to("m")
    directory = os.open(mount_dir, os.O_RDONLY)
    for arguments, there in [
        ((directory, "m"), "m"),
        ((directory, b"m"), "m"),
        ((directory, "link"), "m"),
        ((directory, "", AT_EMPTY_PATH), "."),
    ]:
        fd = await face.open_tree(*arguments)
        assert os.path.samestat(os.fstat(fd), os.stat(mount_dir / there))
        await face.close(fd)
    fd = await face.open_tree(directory, "link", AT_SYMLINK_NOFOLLOW)
    assert os.path.samestat(os.fstat(fd), os.lstat(mount_dir / "link"))
    await face.close(fd)
    os.close(directory)


@on_both_faces
async def test_open_tree_attr_changes_the_clone_and_not_what_was_cloned(face, mount_dir, place):
    target = witness.make(mount_dir)
    before = kernel.mountinfo()
    clone = await face.open_tree_attr(
        AT_FDCWD,
        target,
        OPEN_TREE_CLONE,
        attr_set=MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOEXEC | MOUNT_ATTR_NOATIME,
        attr_clr=MOUNT_ATTR__ATIME,
        propagation=MS_SHARED,
    )
    assert kernel.mountinfo() == before
    await face.move_mount(clone, "", AT_FDCWD, place, MOVE_MOUNT_F_EMPTY_PATH)
    await face.close(clone)
    assert {"ro", "noexec", "noatime"} <= options(place)
    assert mounts_at(place)[0].tags[0].startswith("shared:")


@on_both_faces
async def test_open_tree_attr_without_clone_changes_the_mount_itself(face, mount_dir):
    target = witness.make(mount_dir)
    fd = await face.open_tree_attr(AT_FDCWD, target, attr_set=MOUNT_ATTR_RDONLY)
    await face.close(fd)
    assert "ro" in options(target)
    fd = await face.open_tree_attr(AT_FDCWD, target, attr_clr=MOUNT_ATTR_RDONLY)
    await face.close(fd)
    assert "rw" in options(target)


@on_both_faces
async def test_an_idmapping_without_a_user_namespace_is_refused_before_the_call(face, mount_dir):
    for userns in ({}, {"userns_fd": -1}):
        with pytest.raises(ValueError, match="userns_fd"), faults.count(None) as calls:
            await face.open_tree_attr(
                AT_FDCWD, mount_dir, OPEN_TREE_CLONE, attr_set=MOUNT_ATTR_IDMAP, **userns
            )
        assert calls.seen == 0


# -- move_mount ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        lambda old, new: ((AT_FDCWD, old, AT_FDCWD, new), {}),
        lambda old, new: ((AT_FDCWD, bytes(old), AT_FDCWD, str(new), 0), {}),
        lambda old, new: ((), {"from_path": old, "to_path": new}),
        lambda old, new: ((), {"from_pathname": old, "to_pathname": new}),
        lambda old, new: ((), {"from_path": old, "to_pathname": new, "to_dirfd": AT_FDCWD}),
        lambda old, new: ((AT_FDCWD, old), {"to_path": new}),
    ],
    ids=["positional", "bytes", "path", "pathname", "mixed", "both ways"],
)
@on_both_faces
async def test_a_mount_is_moved_however_the_arguments_are_given(face, mount_dir, place, given):
    old = witness.make(mount_dir, "old")
    (line,) = mounts_at(old)
    args, kwargs = given(old, place)
    assert await face.move_mount(*args, **kwargs) is None
    assert mounts_at(old) == []
    assert mounts_at(place) == [line._replace(mount_point=str(place))]


@on_both_faces
async def test_a_moved_mount_takes_the_mounts_below_it_along(face, mount_dir, place):
    old = witness.make(mount_dir, "old")
    (inner,) = mounts_at(witness.make(old, "inner"))
    await face.move_mount(AT_FDCWD, old, AT_FDCWD, place)
    assert mounts_at(place / "inner") == [inner._replace(mount_point=str(place / "inner"))]


@on_both_faces
async def test_both_paths_are_relative_to_their_descriptors(face, mount_dir):
    source, target = witness.make(mount_dir, "a"), witness.make(mount_dir, "b")
    (line,) = mounts_at(witness.make(source, "mount"))
    (target / "place").mkdir()
    with open_path(source) as one, open_path(target) as two:
        await face.move_mount(one, "mount", two, "place")
    assert mounts_at(target / "place")[0].id == line.id


@on_both_faces
async def test_with_an_empty_path_the_descriptor_is_the_place(face, place):
    async with detached(face) as mount:
        with open_path(place) as there:
            await face.move_mount(
                mount, "", there, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
            )
    assert os.listdir(place) == ["content"]


@contextlib.contextmanager
def open_path(path):
    fd = os.open(path, os.O_PATH)
    try:
        yield fd
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"from_path": "a"}, "to_path"),
        ({"from_pathname": "a"}, "to_path"),
        ({"to_path": "b"}, "from_path"),
        ({"to_pathname": "b"}, "from_path"),
        ({}, "from_path"),
        ({"from_path": "a", "from_pathname": "a", "to_path": "b"}, "from_pathname"),
        ({"from_path": "a", "to_path": "b", "to_pathname": "b"}, "to_pathname"),
        ({"from_path": "", "from_pathname": "", "to_path": "b"}, "from_pathname"),
        ({"from_path": 3, "to_path": "b"}, "int"),
        ({"from_path": "a", "to_path": 3}, "int"),
        ({"from_path": "a", "to_path": "b", "to_dirfd": "c"}, "str"),
    ],
    ids=str,
)
@on_both_faces
async def test_a_path_that_is_missing_or_given_twice_is_a_type_error(face, arguments, named):
    with pytest.raises(TypeError, match=named), faults.count(None) as calls:
        await face.move_mount(**arguments)
    assert calls.seen == 0


@on_both_faces
async def test_a_null_byte_in_a_path_is_a_value_error(face, place):
    for call in (
        lambda: face.move_mount(AT_FDCWD, "a\0", AT_FDCWD, place),
        lambda: face.move_mount(AT_FDCWD, place, AT_FDCWD, "a\0"),
        lambda: face.open_tree(AT_FDCWD, b"a\0"),
        lambda: face.open_tree_attr(AT_FDCWD, "a\0"),
        lambda: face.fspick(AT_FDCWD, "a\0"),
        lambda: face.mount_setattr(path="a\0"),
        lambda: face.umount2("a\0"),
        lambda: face.fsopen(fs_name="tmpfs\0"),
    ):
        with pytest.raises(ValueError, match="null"), faults.count(None) as calls:
            await call()
        assert calls.seen == 0


@on_both_faces
async def test_a_symlink_as_source_is_followed_only_on_request(face, mount_dir, place):
    old = witness.make(mount_dir, "old")
    (line,) = mounts_at(old)
    (mount_dir / "link").symlink_to("old")
    with pytest.raises(OSError) as failed:
        await face.move_mount(AT_FDCWD, mount_dir / "link", AT_FDCWD, place)
    assert failed.value.errno == errno.EINVAL
    assert mounts_at(old) == [line]
    await face.move_mount(AT_FDCWD, mount_dir / "link", AT_FDCWD, place, MOVE_MOUNT_F_SYMLINKS)
    assert mounts_at(place)[0].id == line.id


@on_both_faces
async def test_a_symlink_as_destination_is_followed_only_on_request(face, mount_dir, place):
    old = witness.make(mount_dir, "old")
    (line,) = mounts_at(old)
    (mount_dir / "link").symlink_to("place")
    with pytest.raises(OSError) as failed:
        await face.move_mount(AT_FDCWD, old, AT_FDCWD, mount_dir / "link")
    assert failed.value.errno == errno.EINVAL
    assert mounts_at(old) == [line]
    await face.move_mount(AT_FDCWD, old, AT_FDCWD, mount_dir / "link", MOVE_MOUNT_T_SYMLINKS)
    assert mounts_at(place)[0].id == line.id


@on_both_faces
async def test_a_mount_can_be_attached_beneath_the_one_on_top(face, mount_dir):
    target = witness.make(mount_dir)
    (top,) = mounts_at(target)
    async with detached(face) as mount:
        flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_BENEATH
        await face.move_mount(mount, "", AT_FDCWD, target, flags)
        beneath = witness.fd_mount(mount)
    assert {m.id: m.parent for m in mounts_at(target)} == {top.id: beneath, beneath: top.parent}
    assert os.listdir(target) == []
    kernel.umount(target)
    assert os.listdir(target) == ["content"]


@on_both_faces
async def test_set_group_shares_the_peer_group_and_moves_nothing(face, mount_dir, place):
    source = witness.make(mount_dir, "source")
    kernel.mount(None, source, None, kernel.MS_SHARED)
    kernel.mount(source, place, None, kernel.MS_BIND)
    kernel.mount(None, place, None, kernel.MS_PRIVATE)
    assert mounts_at(place)[0].tags == ()
    await face.move_mount(AT_FDCWD, source, AT_FDCWD, place, MOVE_MOUNT_SET_GROUP)
    (there,), (here,) = mounts_at(source), mounts_at(place)
    assert there.tags == here.tags
    assert there.tags[0].startswith("shared:")
    (source / "new").mkdir()
    kernel.mount("tmpfs", source / "new", "tmpfs")
    assert len(mounts_at(place / "new")) == 1


@on_both_faces
async def test_the_kernels_refusals_to_move_name_both_paths(face, mount_dir, place):
    mount = witness.make(mount_dir)
    (mount / "inside").mkdir()
    (mount_dir / "file").touch()
    for source, target, code in [
        (place, mount, errno.EINVAL),  # no mount
        (mount, mount / "inside", errno.ELOOP),
        (mount, mount_dir / "missing", errno.ENOENT),
        (mount_dir / "missing", place, errno.ENOENT),
        (mount, mount_dir / "file", errno.EINVAL),  # a directory on a file
        (mount, mount_dir / "file" / "below", errno.ENOTDIR),
    ]:
        for form in (str, bytes):
            before = kernel.mountinfo()
            with pytest.raises(OSError) as failed:
                await face.move_mount(AT_FDCWD, form(source), AT_FDCWD, form(target))
            expected = OSError(code, os.strerror(code), form(source), None, form(target))
            assert type(failed.value) is type(expected)
            assert str(failed.value) == str(expected)
            assert kernel.mountinfo() == before


@pytest.fixture
def elsewhere():
    """The root directory of another mount namespace."""
    wait = ["unshare", "--mount", "sh", "-c", "echo there; read line"]
    with subprocess.Popen(wait, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"there\n"
        with open_path(f"/proc/{process.pid}/root") as root:
            yield root
        process.stdin.close()


@on_both_faces
async def test_a_move_to_another_mount_namespace_is_einval(face, elsewhere):
    async with detached(face) as mount:
        with pytest.raises(OSError) as failed:
            await face.move_mount(mount, "", elsewhere, "proc", MOVE_MOUNT_F_EMPTY_PATH)
    assert failed.value.errno == errno.EINVAL
    assert f"descriptor {elsewhere}" in witness.notes(failed.value)


# -- mount_setattr -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attribute", "option"),
    [
        (MOUNT_ATTR_RDONLY, "ro"),
        (MOUNT_ATTR_NOSUID, "nosuid"),
        (MOUNT_ATTR_NODEV, "nodev"),
        (MOUNT_ATTR_NOEXEC, "noexec"),
        (MOUNT_ATTR_NODIRATIME, "nodiratime"),
        (MOUNT_ATTR_NOSYMFOLLOW, "nosymfollow"),
    ],
    ids=str,
)
@on_both_faces
async def test_an_attribute_is_set_and_cleared(face, mount_dir, attribute, option):
    target = witness.make(mount_dir)
    before = options(target)
    await face.mount_setattr(path=target, attr_set=attribute)
    assert options(target) == (before | {option}) - ({"rw"} if option == "ro" else set())
    await face.mount_setattr(path=target, attr_clr=attribute)
    assert options(target) == before


@on_both_faces
async def test_an_access_time_setting_needs_the_whole_field_cleared(face, mount_dir):
    target = witness.make(mount_dir)
    assert "relatime" in options(target)
    for attribute in (MOUNT_ATTR_NOATIME, MOUNT_ATTR_STRICTATIME):
        with pytest.raises(OSError) as failed:
            await face.mount_setattr(path=target, attr_set=attribute)
        assert (failed.value.errno, failed.value.filename) == (errno.EINVAL, str(target))
    await face.mount_setattr(path=target, attr_set=MOUNT_ATTR_NOATIME, attr_clr=MOUNT_ATTR__ATIME)
    assert options(target) & {"noatime", "relatime"} == {"noatime"}
    await face.mount_setattr(
        path=target, attr_set=MOUNT_ATTR_STRICTATIME, attr_clr=MOUNT_ATTR__ATIME
    )
    assert options(target) & {"noatime", "relatime"} == set()
    await face.mount_setattr(path=target, attr_clr=MOUNT_ATTR__ATIME)
    assert options(target) & {"noatime", "relatime"} == {"relatime"}


@on_both_faces
async def test_a_mount_is_named_by_path_by_descriptor_or_by_both(face, mount_dir):
    target = witness.make(mount_dir)
    (mount_dir / "link").symlink_to("m")
    with open_path(mount_dir) as directory, open_path(target) as root:
        for arguments in (
            {"path": os.fsencode(target)},
            {"path": "m", "dirfd": directory},
            {"path": "", "dirfd": root, "flags": AT_EMPTY_PATH},
            {"path": mount_dir / "link"},
        ):
            await face.mount_setattr(attr_set=MOUNT_ATTR_RDONLY, **arguments)
            assert "ro" in options(target)
            await face.mount_setattr(attr_clr=MOUNT_ATTR_RDONLY, **arguments)
            assert "rw" in options(target)
    with pytest.raises(OSError) as failed:
        await face.mount_setattr(
            path=mount_dir / "link", attr_set=MOUNT_ATTR_RDONLY, flags=AT_SYMLINK_NOFOLLOW
        )
    assert failed.value.errno == errno.EINVAL
    assert "rw" in options(target)


@pytest.fixture
def branching(mount_dir):
    """Mounts below mounts: the top one, and the points of all, the top one first."""
    top = witness.make(mount_dir, "top")
    names = ["a", "b", "a/inner", "a/inner/innermost", "b/other"]
    return top, [top, *(witness.make(top, name) for name in names)]


@on_both_faces
async def test_a_whole_tree_becomes_read_only(face, branching):
    top, points = branching
    await face.mount_setattr(path=top, attr_set=MOUNT_ATTR_RDONLY)
    assert ["ro" in options(point) for point in points] == [True] + [False] * 5
    await face.mount_setattr(path=top, attr_set=MOUNT_ATTR_RDONLY, flags=AT_RECURSIVE)
    for point in points:
        assert "ro" in options(point)
        with pytest.raises(OSError) as failed:
            (point / "file").touch()
        assert failed.value.errno == errno.EROFS


@on_both_faces
async def test_one_busy_writer_keeps_the_whole_tree_writable(face, branching):
    top, points = branching
    before = kernel.mountinfo()
    with open(points[-2] / "busy", "w"):
        with pytest.raises(OSError) as failed:
            await face.mount_setattr(
                path=top, attr_set=MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID, flags=AT_RECURSIVE
            )
    assert (failed.value.errno, failed.value.filename) == (errno.EBUSY, str(top))
    assert kernel.mountinfo() == before
    for point in points:
        (point / "file").touch()


@on_both_faces
async def test_propagation_shows_in_the_tags_of_mountinfo(face, mount_dir, place):
    target = witness.make(mount_dir)

    async def tags_after(propagation, path=target, flags=0):
        await face.mount_setattr(path=path, propagation=propagation, flags=flags)
        return mounts_at(path)[-1].tags

    (shared,) = await tags_after(MS_SHARED)
    assert shared.startswith("shared:")
    kernel.mount(target, place, None, kernel.MS_BIND)
    assert mounts_at(place)[0].tags == (shared,)
    assert await tags_after(MS_SLAVE, place) == (shared.replace("shared", "master"),)
    assert await tags_after(MS_PRIVATE, place) == ()
    assert await tags_after(MS_UNBINDABLE) == ("unbindable",)
    with pytest.raises(OSError) as failed:
        await face.open_tree(AT_FDCWD, target, OPEN_TREE_CLONE)
    assert failed.value.errno == errno.EINVAL
    assert await tags_after(MS_PRIVATE) == ()


@on_both_faces
async def test_propagation_can_be_changed_in_a_whole_tree(face, branching):
    top, points = branching
    await face.mount_setattr(path=top, propagation=MS_SHARED, flags=AT_RECURSIVE)
    assert all(mounts_at(point)[0].tags[0].startswith("shared:") for point in points)


@on_both_faces
async def test_what_mount_setattr_does_not_know_is_einval(face, mount_dir, place):
    target = witness.make(mount_dir)
    before = kernel.mountinfo()
    for arguments in (
        {"path": place, "attr_set": MOUNT_ATTR_RDONLY},  # no mount's root
        {"path": target, "attr_set": 1 << 40},
        {"path": target, "attr_clr": 1 << 40},
        {"path": target, "propagation": MS_SHARED | MS_PRIVATE},
        {"path": target, "propagation": 1},
        {"path": target, "attr_set": MOUNT_ATTR_RDONLY, "flags": 1 << 20},
    ):
        with pytest.raises(OSError) as failed:
            await face.mount_setattr(**arguments)
        assert failed.value.errno == errno.EINVAL
        assert failed.value.filename == str(arguments["path"])
    assert kernel.mountinfo() == before


# -- idmapped mounts -----------------------------------------------------------------------------


@pytest.fixture
def owned(mount_dir):
    """A tmpfs with a file for each of these owners and groups."""
    target = witness.make(mount_dir, "owned")
    for number in (0, 5, 9, 10, 1000, 1004, 1005, 70000):
        (target / str(number)).touch()
        os.chown(target / str(number), number, number)
    return target


def owners(directory):
    with_ids = {path.name: (path.stat().st_uid, path.stat().st_gid) for path in directory.iterdir()}
    return {int(name): ids for name, ids in with_ids.items()}


NOBODY = 65534


@needs_root
@pytest.mark.parametrize("way", ["mount_setattr", "open_tree_attr"])
@on_both_faces
async def test_a_file_owned_by_5_shows_as_100005_in_an_idmapped_clone(face, owned, place, way):
    mapping = [IdmapMapping(0, 100000, 10)]
    idmap = {"attr_set": MOUNT_ATTR_IDMAP, "userns_fd": await face.idmap_userns(mapping, mapping)}
    if way == "open_tree_attr":
        clone = await face.open_tree_attr(AT_FDCWD, owned, OPEN_TREE_CLONE, **idmap)
    else:
        clone = await face.open_tree(AT_FDCWD, owned, OPEN_TREE_CLONE)
        await face.mount_setattr(path="", dirfd=clone, flags=AT_EMPTY_PATH, **idmap)
    await face.move_mount(clone, "", AT_FDCWD, place, MOVE_MOUNT_F_EMPTY_PATH)
    seen = owners(place)
    assert seen[5] == (100005, 100005)
    assert seen[9] == (100009, 100009)
    assert seen[10] == (NOBODY, NOBODY)
    os.chown(place / "0", 100007, 100008)
    assert owners(owned)[0] == (7, 8)
    assert owners(owned)[5] == (5, 5)
    assert "idmapped" in options(place)
    # Once it is idmapped, it stays as it is.
    with pytest.raises(PermissionError):
        await face.mount_setattr(path="", dirfd=clone, flags=AT_EMPTY_PATH, **idmap)
    await face.close(clone)
    await face.close(idmap["userns_fd"])


@needs_root
@on_both_faces
async def test_an_idmapping_has_several_ranges_and_groups_of_their_own(face, owned, place):
    uids = [(0, 100000, 10), (1000, 200000, 5), (70000, 300000, 1)]
    gids = [(0, 400000, 10), (10, 500000, 1), (1000, 600000, 5)]
    userns = await face.idmap_userns(uids, gids)
    clone = await face.open_tree_attr(
        AT_FDCWD, owned, OPEN_TREE_CLONE, attr_set=MOUNT_ATTR_IDMAP, userns_fd=userns
    )
    await face.close(userns)
    await face.move_mount(clone, "", AT_FDCWD, place, MOVE_MOUNT_F_EMPTY_PATH)
    await face.close(clone)
    assert owners(place) == {
        0: (100000, 400000),
        5: (100005, 400005),
        9: (100009, 400009),
        10: (NOBODY, 500000),
        1000: (200000, 600000),
        1004: (200004, 600004),
        1005: (NOBODY, NOBODY),
        70000: (300000, NOBODY),
    }


@on_both_faces
async def test_root_of_a_user_namespace_may_idmap_its_own_filesystems(face, mount_dir):
    target = witness.make(mount_dir)
    async with detached(face) as mount:
        userns = await face.idmap_userns([(0, 0, 1)], [(0, 0, 1)])
        await face.mount_setattr(
            path="",
            dirfd=mount,
            flags=AT_EMPTY_PATH,
            attr_set=MOUNT_ATTR_IDMAP,
            userns_fd=userns,
        )
        await face.close(userns)
        await face.move_mount(mount, "", AT_FDCWD, target, MOVE_MOUNT_F_EMPTY_PATH)
    assert "idmapped" in options(target)
    assert (target / "content").stat().st_uid == os.geteuid()


@needs_root
@on_both_faces
async def test_what_is_attached_or_not_a_user_namespace_is_not_idmapped(face, mount_dir):
    target = witness.make(mount_dir)
    userns = await face.idmap_userns([(0, 100000, 10)], [(0, 100000, 10)])
    own = os.open("/proc/self/ns/user", os.O_RDONLY)
    namespace_of_mounts = os.open("/proc/self/ns/mnt", os.O_RDONLY)
    clone = await face.open_tree(AT_FDCWD, target, OPEN_TREE_CLONE)
    here = {"path": target}
    there = {"path": "", "dirfd": clone, "flags": AT_EMPTY_PATH}
    for arguments, code in [
        ({**here, "userns_fd": userns}, errno.EINVAL),
        ({**there, "userns_fd": own}, errno.EPERM),
        ({**there, "userns_fd": namespace_of_mounts}, errno.EINVAL),
        ({**there, "userns_fd": 10**6}, errno.EBADF),
    ]:
        with pytest.raises(OSError) as failed:
            await face.mount_setattr(attr_set=MOUNT_ATTR_IDMAP, **arguments)
        assert failed.value.errno == code
    os.close(own)
    os.close(namespace_of_mounts)
    await face.close(clone)
    await face.close(userns)


# -- umount2 -------------------------------------------------------------------------------------


@on_both_faces
async def test_umount2_takes_the_topmost_of_a_stack(face, mount_dir):
    target = witness.make(mount_dir)
    (lower,) = mounts_at(target)
    for form in (str, bytes, Path):
        kernel.mount("tmpfs", target, "tmpfs")
        await face.umount2(form(target) if form is not Path else target)
        assert mounts_at(target) == [lower]


@on_both_faces
async def test_a_mount_in_use_is_busy_but_can_be_detached(face, mount_dir):
    target = witness.make(mount_dir)
    inner = witness.make(target, "inner")
    with open(inner / "file", "w"):
        for path in (target, inner):
            with pytest.raises(OSError) as failed:
                await face.umount2(path)
            assert (failed.value.errno, failed.value.filename) == (errno.EBUSY, str(path))
        await face.umount2(target, MNT_DETACH)
    assert mounts_at(target) == mounts_at(inner) == []


@on_both_faces
async def test_a_mount_expires_when_nothing_has_used_it_since_it_was_marked(face, mount_dir):
    target = witness.make(mount_dir)
    for _ in range(2):
        with pytest.raises(BlockingIOError):
            await face.umount2(target, MNT_EXPIRE)
        (target / "used").touch()
    with pytest.raises(BlockingIOError):
        await face.umount2(target, MNT_EXPIRE)
    await face.umount2(target, MNT_EXPIRE)
    assert mounts_at(target) == []


@on_both_faces
async def test_nofollow_leaves_alone_what_a_symlink_leads_to(face, mount_dir):
    target = witness.make(mount_dir)
    link = mount_dir / "link"
    link.symlink_to("m")
    with pytest.raises(OSError) as failed:
        await face.umount2(link, UMOUNT_NOFOLLOW)
    assert (failed.value.errno, failed.value.filename) == (errno.EINVAL, str(link))
    assert len(mounts_at(target)) == 1
    await face.umount2(link)
    assert mounts_at(target) == []


@on_both_faces
async def test_what_is_no_mount_point_cannot_be_unmounted(face, place):
    for path, code in [(place, errno.EINVAL), (place / "missing", errno.ENOENT)]:
        with pytest.raises(OSError) as failed:
            await face.umount2(path)
        assert (failed.value.errno, failed.value.filename) == (code, str(path))
    with pytest.raises(OSError) as failed:
        await face.umount2(place, 1 << 20)
    assert failed.value.errno == errno.EINVAL


# -- errors, interruptions -----------------------------------------------------------------------


class Case(NamedTuple):
    """A call, what its errors must say, and the Linux that brought it."""

    make: Callable[[Face, int], Awaitable[Any]]
    filenames: tuple[object, object] = (None, None)
    since: str | None = "5.2"
    has_log: bool = False


CASES = {
    "fsopen": Case(lambda face, d: face.fsopen(fs_name="tmpfs"), ("tmpfs", None), has_log=True),
    "fsconfig": Case(lambda face, d: face.fsconfig(fs_fd=d, cmd=FSCONFIG_CMD_CREATE), has_log=True),
    "fsmount": Case(lambda face, d: face.fsmount(fs_fd=d), has_log=True),
    "fspick": Case(lambda face, d: face.fspick(d, "name"), ("name", None), has_log=True),
    "open_tree": Case(lambda face, d: face.open_tree(d, b"name"), (b"name", None)),
    "open_tree_attr": Case(lambda face, d: face.open_tree_attr(d, "name"), ("name", None), "6.15"),
    "move_mount": Case(lambda face, d: face.move_mount(d, "old", d, "new"), ("old", "new")),
    "mount_setattr": Case(
        lambda face, d: face.mount_setattr(path="name", dirfd=d), ("name", None), "5.12"
    ),
    "umount2": Case(lambda face, d: face.umount2(Path("name")), ("name", None), None),
}
ERRNOS = """EACCES EAGAIN EBADF EBUSY EEXIST EFAULT EINVAL EIO ELOOP EMFILE ENAMETOOLONG ENODEV
ENOENT ENOMEM ENOSPC ENOSYS ENOTBLK ENOTDIR ENXIO EOPNOTSUPP EPERM EROFS ETIMEDOUT EUCLEAN"""


@pytest.mark.parametrize("syscall", CASES)
@on_both_faces
async def test_every_error_arrives_whole_and_leaks_no_descriptor(face, tmp_path, syscall):
    case = CASES[syscall]
    await face.statx(AT_FDCWD, "/")  # opens what an event loop opens late
    with open_path(tmp_path) as directory:
        before = kernel.open_fds()
        for code in (getattr(errno, name) for name in ERRNOS.split()):
            with faults.failing(syscall, code), pytest.raises(OSError) as failed:
                await case.make(face, directory)
            error = failed.value
            names = case.filenames[0], None, case.filenames[1]
            expected = OSError(code, os.strerror(code), *(names if names[0] else ()))
            assert type(error) is type(expected)
            assert (error.errno, str(error)) == (code, str(expected))
            assert getattr(error, "messages", None) == (() if case.has_log else None)
            assert kernel.open_fds() == before
            new = code == errno.ENOSYS and case.since is not None
            assert (f"{syscall}() needs Linux {case.since};" in witness.notes(error)) == new
            assert (os.uname().release in witness.notes(error)) == new
            relative = "began at" in witness.notes(error)
            assert relative == (syscall not in ("fsopen", "fsconfig", "fsmount", "umount2"))
            assert (str(tmp_path) in witness.notes(error)) == relative


@pytest.mark.parametrize("syscall", CASES)
@on_both_faces
async def test_an_interrupted_call_is_made_again(face, tmp_path, syscall):
    with open_path(tmp_path) as directory, failing_counted(syscall, errno.EINTR, times=3) as calls:
        try:
            result = await CASES[syscall].make(face, directory)
        except OSError as error:  # what the kernel says of these names and descriptors
            assert error.errno in (errno.ENOENT, errno.EINVAL, errno.EBADF)
        else:
            assert (result is None) == (syscall == "mount_setattr")  # which had nothing to change
            if result is not None:
                await face.close(result)
    # To find out that a descriptor is no context takes a call of its own.
    assert calls.seen == (5 if syscall == "fsconfig" else 4)


@on_both_faces
async def test_a_number_that_no_argument_of_the_kernel_holds_is_an_overflow_error(face, mount_dir):
    for call in (
        lambda: face.fsopen(fs_name="tmpfs", flags=1 << 32),
        lambda: face.fsmount(fs_fd=1 << 40),
        lambda: face.fsmount(fs_fd=0, attr_flags=-1),
        lambda: face.fspick(1 << 31, mount_dir),
        lambda: face.open_tree(AT_FDCWD, mount_dir, 1 << 32),
        lambda: face.open_tree_attr(AT_FDCWD, mount_dir, attr_set=1 << 64),
        lambda: face.move_mount(1 << 40, mount_dir, AT_FDCWD, mount_dir),
        lambda: face.mount_setattr(path=mount_dir, propagation=-1),
        lambda: face.umount2(mount_dir, 1 << 31),
    ):
        with pytest.raises(OverflowError), faults.count(None) as calls:
            await call()
        assert calls.seen == 0


# -- cancellation --------------------------------------------------------------------------------


async def cancelled_in(syscall, call, *, go=True):
    """Cancel *call* while it is about to make *syscall*; with *go*, it is soon made."""
    with faults.stopped(syscall) as stop:
        # Longer than a call is waited for that only asks.
        timer = threading.Timer(2 * _threads.GRACE_FD, stop.go)
        async with anyio.create_task_group() as group:
            with anyio.CancelScope() as scope:

                async def cancel():
                    await until(stop.reached, "the system call")
                    if go:
                        timer.start()
                    scope.cancel()

                group.start_soon(cancel)
                await call()
            assert scope.cancelled_caught
        if not go:
            stop.go()
        await until(lambda: not timer.is_alive() and not _threads._portal().workers, "the call")


class Change(NamedTuple):
    """A call that changes something, and how to see that it has."""

    make: Callable[[], Awaitable[Any]]
    made: Callable[[], bool]


@pytest.fixture
def changes(mount_dir, place):
    target = witness.make(mount_dir)
    context = blocking.fsopen(fs_name="tmpfs")

    def configured():
        try:  # twice is once too often
            kernel.syscall(431, int(context), FSCONFIG_SET_STRING, b"source", b"again", 0)
        except OSError:
            return True
        return False

    def new_tree():
        return truenas_os.open_tree_attr(AT_FDCWD, target, attr_set=MOUNT_ATTR_NOSUID)

    yield {
        "fsconfig": Change(
            lambda: truenas_os.fsconfig(
                fs_fd=context, cmd=FSCONFIG_SET_STRING, key="source", value="once"
            ),
            configured,
        ),
        "open_tree_attr": Change(new_tree, lambda: "nosuid" in options(target)),
        "move_mount": Change(
            lambda: truenas_os.move_mount(AT_FDCWD, target, AT_FDCWD, place),
            lambda: bool(mounts_at(place)),
        ),
        "mount_setattr": Change(
            lambda: truenas_os.mount_setattr(path=target, attr_set=MOUNT_ATTR_RDONLY),
            lambda: "ro" in options(target),
        ),
        "umount2": Change(lambda: truenas_os.umount2(target), lambda: not mounts_at(target)),
    }
    context.close()


CHANGING = ["fsconfig", "open_tree_attr", "move_mount", "mount_setattr", "umount2"]


@pytest.mark.anyio
@pytest.mark.parametrize("syscall", CHANGING)
async def test_a_cancelled_change_is_waited_for(changes, syscall):
    await truenas_os.statx(AT_FDCWD, "/")
    before = kernel.open_fds()
    change = changes[syscall]
    seen = []

    async def call():
        try:
            await change.make()
        finally:
            seen.append(change.made())

    await cancelled_in(syscall, call)
    assert seen == [True]
    await fds_return_to(before)


@pytest.mark.anyio
@pytest.mark.parametrize("syscall", CHANGING)
async def test_a_cancelled_change_is_waited_for_no_longer_than_its_grace(
    changes, syscall, monkeypatch
):
    monkeypatch.setattr(_threads, "GRACE_CHANGE", 0.05)
    await truenas_os.statx(AT_FDCWD, "/")
    before = kernel.open_fds()
    change = changes[syscall]
    await cancelled_in(syscall, change.make, go=False)
    assert change.made()
    await fds_return_to(before)


@pytest.mark.anyio
@pytest.mark.parametrize("syscall", CHANGING)
async def test_a_change_is_not_made_in_a_scope_that_is_cancelled_already(changes, syscall):
    with anyio.CancelScope() as scope, faults.count(syscall) as calls:
        scope.cancel()
        await changes[syscall].make()
    assert scope.cancelled_caught
    assert calls.seen == 0
    assert not changes[syscall].made()


@pytest.fixture
def openings(mount_dir):
    """The calls that open a descriptor, with the system call of each."""
    context = blocking.fsopen(fs_name="tmpfs")
    blocking.fsconfig(fs_fd=context, cmd=FSCONFIG_CMD_CREATE)
    yield {
        "fsopen": lambda: truenas_os.fsopen(fs_name="tmpfs"),
        "fsmount": lambda: truenas_os.fsmount(fs_fd=context),
        "fspick": lambda: truenas_os.fspick(AT_FDCWD, mount_dir),
        "open_tree": lambda: truenas_os.open_tree(AT_FDCWD, mount_dir, OPEN_TREE_CLONE),
        "open_tree_attr": lambda: truenas_os.open_tree_attr(
            AT_FDCWD, mount_dir, OPEN_TREE_CLONE, attr_set=MOUNT_ATTR_RDONLY
        ),
    }
    context.close()


@pytest.mark.anyio
@pytest.mark.parametrize("late", [False, True], ids=["in time", "late"])
@pytest.mark.parametrize("syscall", ["fsopen", "fsmount", "fspick", "open_tree", "open_tree_attr"])
async def test_a_descriptor_that_nobody_receives_is_closed(openings, syscall, late, monkeypatch):
    if late:
        monkeypatch.setattr(_threads, "GRACE_CHANGE", 0.05)
    await truenas_os.statx(AT_FDCWD, "/")
    before, mounts = kernel.open_fds(), kernel.mountinfo()
    await cancelled_in(syscall, openings[syscall], go=not late)
    await fds_return_to(before)
    assert kernel.mountinfo() == mounts


@pytest.mark.anyio
@pytest.mark.parametrize("syscall", ["open_tree", "open_tree_attr"])
async def test_a_detached_mount_that_nobody_receives_dissolves(mount_dir, syscall):
    await truenas_os.statx(AT_FDCWD, "/")
    target = witness.make(mount_dir)
    before = kernel.open_fds()
    clone = getattr(truenas_os, syscall)
    await cancelled_in(syscall, lambda: clone(AT_FDCWD, target, OPEN_TREE_CLONE))
    await fds_return_to(before)
    with Filesystem(target) as filesystem:
        kernel.umount(target)
        assert filesystem.gone(AMPLE)
