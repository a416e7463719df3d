# SPDX-License-Identifier: LGPL-3.0-or-later
"""open_mount_by_id and mount_of, in both faces."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import faults
import kernel
import pytest
from witness import (
    ALL,
    MNT_POINT,
    STRANGE,
    UNKNOWN_ID,
    bind,
    deep_mount,
    fd_mount,
    id_of,
    make,
    notes,
    old_id_of,
)

from truenas_os.blocking import mounts

# open_mount_by_id


@pytest.mark.parametrize("flags", [None, os.O_RDONLY, os.O_PATH, os.O_PATH | os.O_DIRECTORY])
def test_the_root_of_a_mount_is_opened_and_closed_on_exec(face, mount_dir, flags):
    target = make(mount_dir)
    (target / "inside").touch()
    arguments = () if flags is None else (flags,)
    with face.open_mount_by_id(id_of(target), *arguments) as fd:
        assert fd_mount(fd) == old_id_of(target)
        assert os.path.samestat(os.stat(fd), target.stat())
        assert not os.get_inheritable(fd)
        if not (flags or 0) & os.O_PATH:
            assert os.listdir(fd) == ["inside"]
        else:
            with pytest.raises(OSError):
                os.listdir(fd)


FILE_FLAGS = [
    *(os.O_RDONLY, os.O_RDWR, os.O_RDONLY | os.O_NOFOLLOW),
    *(os.O_PATH, os.O_PATH | os.O_NOFOLLOW),
]


@pytest.mark.parametrize("flags", FILE_FLAGS, ids=oct)
def test_a_mount_of_a_single_file_is_opened(face, mount_dir, flags):
    source, target = mount_dir / "source", mount_dir / "target"
    source.write_text("content")
    target.touch()
    mnt_id = id_of(bind(source, target))
    with face.open_mount_by_id(mnt_id, flags) as fd:
        assert fd_mount(fd) == old_id_of(target)
        assert os.path.samestat(os.stat(fd), source.stat())
        assert not os.get_inheritable(fd)
        if not flags & os.O_PATH:
            assert os.read(fd, 100) == b"content"


@pytest.mark.parametrize("flags", [os.O_DIRECTORY, os.O_DIRECTORY | os.O_PATH], ids=oct)
def test_a_mounted_file_is_no_directory(face, mount_dir, flags):
    (target := mount_dir / "target").touch()
    mnt_id = id_of(bind(target, target))
    with pytest.raises(NotADirectoryError) as failed:
        face.open_mount_by_id(mnt_id, flags)
    assert failed.value.filename == str(target)


def test_a_mount_that_cannot_be_opened_so_is_named_by_its_mount_point(face, mount_dir):
    target = make(mount_dir)
    before = kernel.open_fds()
    with pytest.raises(IsADirectoryError) as failed:
        face.open_mount_by_id(id_of(target), os.O_RDWR)
    assert failed.value.filename == str(target)
    assert kernel.open_fds() == before


def test_a_mount_deeper_than_PATH_MAX_is_opened(face, mount_dir, monkeypatch):
    mnt_id, line = deep_mount(mount_dir, monkeypatch)
    before = kernel.open_fds()
    with face.open_mount_by_id(mnt_id, os.O_RDONLY) as fd:
        assert fd_mount(fd) == line.id
        assert os.listdir(fd) == []
    assert kernel.open_fds() == before


def test_a_mount_at_a_strange_name_is_opened(face, mount_dir):
    target = make(mount_dir, os.fsdecode(STRANGE))
    with face.open_mount_by_id(id_of(target)) as fd:
        assert fd_mount(fd) == old_id_of(target)


def test_a_covered_mount_is_ESTALE_and_the_note_names_both(face, mount_dir):
    covered = id_of(make(mount_dir))
    top = id_of(make(mount_dir))
    before = kernel.open_fds()
    with pytest.raises(OSError) as failed:
        face.open_mount_by_id(covered)
    assert failed.value.errno == errno.ESTALE
    assert failed.value.filename == str(mount_dir / "m")
    assert str(covered) in notes(failed.value)
    assert str(top) in notes(failed.value)
    assert kernel.open_fds() == before


def test_a_mount_whose_server_does_not_answer_is_opened_by_its_path(face, faulty):
    mnt_id = face.mount_of(faulty.top).mnt_id
    with faulty.rules("* hang"):
        fd = face.open_mount_by_id(mnt_id, os.O_PATH)
        fd.close()
        assert not faulty.is_hanging()


def test_opening_an_unknown_mount_is_ENOENT(face, mount_dir):
    target = make(mount_dir)
    gone = id_of(target)
    kernel.umount(target)
    for mnt_id in (UNKNOWN_ID, gone):
        with pytest.raises(FileNotFoundError) as failed:
            face.open_mount_by_id(mnt_id)
        assert f"mount id {mnt_id}" in notes(failed.value)


def _unmount(target):
    kernel.umount(target, kernel.MNT_DETACH)


def _replace(target):
    _unmount(target)
    make(target.parent, target.name)


def _cover(target):
    make(target.parent, target.name)


def _move_away(target):
    kernel.mount(target, target.parent.with_name("elsewhere"), None, kernel.MS_MOVE)


def _move_up(target):
    # Then the old mount point is a directory of the same name within the mount.
    kernel.mount(target, target.parent, None, kernel.MS_MOVE)


def _remove(target):
    _unmount(target)
    target.rmdir()


def _link(target):
    _remove(target)
    target.symlink_to("../elsewhere")


def _link_to_it(target):
    # What is found there is the right mount, but behind a symlink.
    _move_away(target)
    target.rmdir()
    target.symlink_to("../elsewhere")


def _put_file(target):
    _remove(target)
    target.parent.rmdir()
    target.parent.touch()


@pytest.mark.parametrize(
    "disturb",
    [
        *(_unmount, _replace, _cover, _move_away, _move_up),
        *(_remove, _link, _link_to_it, _put_file),
    ],
)
@pytest.mark.parametrize("is_long", [False, True], ids=["at once", "by components"])
def test_whatever_happens_meanwhile_no_other_mount_is_opened(
    face, mount_dir, disturb, is_long, monkeypatch
):
    """Stopped before each component: ESTALE. Stopped after the last: the mount itself."""
    components = 0
    if is_long:
        monkeypatch.setattr(mounts, "_PATH_MAX", 0)
        components = len(mount_dir.parts[1:]) + 2
    for steps in range(components + 2):
        (mount_dir / "elsewhere").mkdir()
        (mount_dir / "up").mkdir()
        target = make(mount_dir / "up")
        (target / "m").mkdir()
        mnt_id, old_id = id_of(target), old_id_of(target)
        before = kernel.open_fds()
        with ThreadPoolExecutor(1) as thread, faults.stopped("openat2", skip=steps) as stop:
            opening = thread.submit(face.open_mount_by_id, mnt_id)
            stop.wait_reached()
            disturb(target)
            stop.go()
            if steps <= components:
                assert opening.exception().errno == errno.ESTALE, opening.exception()
                assert opening.exception().filename == str(target)
                assert str(mnt_id) in notes(opening.exception())
            else:
                with opening.result() as fd:
                    assert fd_mount(fd) == old_id
                    assert os.listdir(fd) == ["m"]
        assert kernel.open_fds() == before
        kernel.umount(mount_dir, kernel.MNT_DETACH)
        kernel.mount("tmpfs", mount_dir, "tmpfs")


def test_a_mount_point_that_became_a_path_with_a_symlink_is_ESTALE(face, mount_dir):
    (mount_dir / "up").mkdir()
    mnt_id = id_of(make(mount_dir / "up"))
    with ThreadPoolExecutor(1) as thread, faults.stopped("openat2") as stop:
        opening = thread.submit(face.open_mount_by_id, mnt_id)
        stop.wait_reached()
        (mount_dir / "up").rename(mount_dir / "renamed")
        (mount_dir / "up").symlink_to("renamed")
        stop.go()
    assert opening.exception().errno == errno.ESTALE


def test_a_mount_that_was_moved_above_its_old_mount_point_is_ESTALE(face, mount_dir):
    (mount_dir / "up").mkdir()
    target = make(mount_dir / "up")
    (target / "m").mkdir()
    mnt_id = id_of(target)
    with ThreadPoolExecutor(1) as thread, faults.stopped("openat2") as stop:
        opening = thread.submit(face.open_mount_by_id, mnt_id)
        stop.wait_reached()
        _move_up(target)
        stop.go()
    assert opening.exception().errno == errno.ESTALE
    # What is found there is on the right mount, but is not its root.
    assert "moved elsewhere" in notes(opening.exception())


@pytest.mark.parametrize("syscall", ["openat2", "statx"])
def test_no_descriptor_is_left_behind_wherever_opening_fails(face, mount_dir, syscall):
    mnt_id = id_of(make(mount_dir))
    with faults.count(syscall) as calls, face.open_mount_by_id(mnt_id):
        pass
    assert calls.seen
    before = kernel.open_fds()
    for skip in range(calls.seen):
        with faults.failing(syscall, errno.EIO, skip=skip), pytest.raises(OSError) as failed:
            face.open_mount_by_id(mnt_id)
        assert failed.value.errno == errno.EIO
        assert kernel.open_fds() == before


# mount_of


def test_the_mount_of_a_path_or_descriptor_is_found(face, mount_dir):
    for number in range(3):
        target = make(mount_dir, str(number))
        (path := target / "file").write_text("")
        with path.open() as file:
            forms = [str(path), os.fsencode(path), path, os.fspath(target), file, file.fileno()]
            forms += [SimpleNamespace(fileno=file.fileno)]
            for form in forms:
                found = face.mount_of(form)
                assert found.mnt_id == id_of(target)
                assert found.mnt_point == str(target)
    assert len({face.mount_of(mount_dir / str(n)).mnt_id for n in range(3)}) == 3


def test_mount_of_reports_what_is_asked_for_by_default_everything(face, mount_dir):
    mnt_id = id_of(mount_dir)
    assert face.mount_of(mount_dir) == face.statmount(mnt_id, ALL)
    assert face.mount_of(mount_dir, mask=MNT_POINT) == face.statmount(mnt_id, MNT_POINT)


def test_mount_of_a_relative_path_begins_at_the_working_directory(face, mount_dir, monkeypatch):
    monkeypatch.chdir(make(mount_dir))
    assert face.mount_of(".").mnt_id == id_of(mount_dir / "m")
    assert face.mount_of("..").mnt_id == id_of(mount_dir)


def test_mount_of_refuses_symlinks_unless_told_otherwise(face, mount_dir):
    (make(mount_dir) / "file").touch()
    (mount_dir / "link").symlink_to("m")
    for path in (mount_dir / "link", mount_dir / "link" / "file"):
        with pytest.raises(OSError) as failed:
            face.mount_of(path)
        assert failed.value.errno == errno.ELOOP
        assert os.fspath(failed.value.filename) == str(path)
        assert face.mount_of(path, resolve=0).mnt_id == id_of(mount_dir / "m")


def test_mount_of_what_is_on_no_mount_of_the_namespace_says_so(face, mount_dir):
    reading, writing = os.pipe()
    target = make(mount_dir)
    detached = os.open(target, os.O_RDONLY)
    kernel.umount(target, kernel.MNT_DETACH)
    for fd in (reading, detached):
        with pytest.raises(FileNotFoundError) as failed:
            face.mount_of(fd)
        assert failed.value.filename == fd
        assert "not visible in this mount namespace" in notes(failed.value)
    for fd in (reading, writing, detached):
        os.close(fd)


@pytest.mark.parametrize("fd", [-1, 1 << 20])
def test_mount_of_a_number_that_is_no_descriptor_is_EBADF(face, fd):
    with pytest.raises(OSError) as failed:
        face.mount_of(fd)
    assert failed.value.errno == errno.EBADF
    assert failed.value.filename == fd


def test_mount_of_a_path_keeps_no_descriptor(face, mount_dir):
    before = kernel.open_fds()
    face.mount_of(mount_dir)
    for syscall in ("openat2", "statx", "statmount"):
        with faults.failing(syscall, errno.EIO), pytest.raises(OSError) as failed:
            face.mount_of(mount_dir)
        assert failed.value.errno == errno.EIO
    with pytest.raises(FileNotFoundError):
        face.mount_of(mount_dir / "missing")
    assert kernel.open_fds() == before


def test_an_error_below_the_mount_point_names_the_mount_point(face, mount_dir):
    """Whether the mount point cannot be opened or what is opened there not opened again."""
    target = make(mount_dir)
    mnt_id = id_of(target)
    for skip in range(2):
        with faults.failing("openat2", errno.EACCES, skip=skip, times=1):
            with pytest.raises(PermissionError) as failed:
                face.open_mount_by_id(mnt_id)
        assert failed.value.filename == str(target)
