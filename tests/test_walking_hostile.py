# SPDX-License-Identifier: LGPL-3.0-or-later
"""Walking what is hostile: devices, FIFOs, mounts, long paths, and depth beyond all descriptors."""

import json
import os
import stat
import subprocess

import kernel
import pytest
from faces import on_both_faces
from filesystems import IS_ROOT, needs_root
from grown import O_PATH, deep, filled, grown, tree
from kernel import fdinfo_mnt_id
from stuck import AMPLE
from test_walking_marks import MARKS
from walked import OPENING, entry, old_descriptors, paths, walked, walking
from witness import bind, in_python, make

pytestmark = pytest.mark.usefixtures("ends")
each_opening = pytest.mark.parametrize("opening", OPENING, ids=["with fds", "without"])


def status_flags(fd):
    """The flags of an open descriptor, from /proc."""
    with open(f"/proc/self/fdinfo/{fd}") as lines:
        return next(int(line.split()[1], 8) for line in lines if line.startswith("flags:"))


def other_than_files(root):
    """One of each kind that is neither a file nor a directory."""
    os.mkfifo(root / "fifo")
    os.mknod(root / "socket", 0o600 | stat.S_IFSOCK)
    (root / "dangling").symlink_to("nothing")
    (root / "outside").symlink_to("/etc/passwd")
    (root / "directory").symlink_to("/etc")
    (root / "itself").symlink_to("itself")
    if IS_ROOT:
        os.mknod(root / "null", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
        os.mknod(root / "no driver", 0o600 | stat.S_IFCHR, os.makedev(300, 70_000))
        os.mknod(root / "disk", 0o600 | stat.S_IFBLK, os.makedev(7, 250))
    return root


# Kinds


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR, os.O_WRONLY])
@on_both_faces
async def test_neither_fifo_nor_socket_nor_device_nor_symlink_is_opened(face, place, flags):
    other_than_files(place)
    async with walking(face, place, file_open_flags=flags, include_symlinks=True) as walk:
        seen = []
        async for item in walk:
            assert status_flags(item.fd) & O_PATH
            status = os.lstat(item.path)
            assert os.path.samestat(os.fstat(item.fd), status)
            assert item.error is None
            assert not (item.isdir or item.isreg or item.ismount)
            assert item.islnk == stat.S_ISLNK(status.st_mode)
            if item.islnk:
                assert os.readlink("", dir_fd=item.fd) == os.readlink(item.path)
            seen.append(item.name)
    assert sorted(seen) == sorted(os.listdir(place))


@each_opening
@on_both_faces
async def test_a_symlink_of_whatever_target_leads_nowhere(face, mount_dir, opening):
    filled(mount_dir, "file")
    for number, target in enumerate(("/", "..", ".", "file", "/proc/self/fd/0", "x" * 4000)):
        (mount_dir / f"link {number}").symlink_to(target)
    options = {"file_open_flags": opening}
    assert await walked(face, mount_dir, **options) == tree(mount_dir)
    async with walking(face, mount_dir, include_symlinks=True, **options) as walk:
        found = await walk.rest_of(lambda item: (os.fsencode(item.path), item.islnk, item.isdir))
    assert [path for path, _, _ in found] == tree(mount_dir, symlinks=True)
    assert sum(islnk for _, islnk, _ in found) == 6
    assert not any(isdir for _, _, isdir in found)


# Mounts


@each_opening
@on_both_faces
async def test_a_walk_enters_no_mount(face, mount_dir, opening):
    """Neither another filesystem, nor the same one once more, which has the same device number."""
    for name in ("beside", "same", "nested/deep"):
        (mount_dir / name).mkdir(parents=True)
    filled(mount_dir / "beside", "beside one", "beside two")
    filled(mount_dir, "covered", "file", "target")
    expected = sorted(tree(mount_dir))
    filled(make(mount_dir, "other"), "inside")
    bind(mount_dir / "beside", mount_dir / "same")
    filled(make(mount_dir / "nested", "deep"), "inside")
    bind(mount_dir / "target", mount_dir / "covered")
    mounts = {b"other", b"same", b"nested/deep", b"covered"}
    mounts = {os.path.join(os.fsencode(mount_dir), name) for name in mounts}

    options = {"file_open_flags": opening}
    found = await walked(face, mount_dir, **options)
    assert sorted(found) == [path for path in expected if path not in mounts]

    async with walking(face, mount_dir, include_mountpoints=True, **options) as walk:
        seen = {}
        async for item in walk:
            seen[os.fsencode(item.path)] = item.ismount
            if opening is not None and item.ismount:
                assert status_flags(item.fd) & O_PATH
                assert stat.S_IFMT(os.fstat(item.fd).st_mode) == stat.S_IFMT(
                    os.stat(item.path).st_mode
                )
        stats = walk.get_stats()
    assert {path for path, ismount in seen.items() if ismount} == mounts
    assert sorted(seen) == sorted({*expected, *mounts})
    assert stats[3:] == (0, 0, 0)


@on_both_faces
async def test_a_mount_point_is_no_directory_to_skip_or_to_follow(face, mount_dir):
    filled(make(mount_dir, "other"), "inside")
    async with walking(face, mount_dir, include_mountpoints=True) as walk:
        item = await anext(walk)
        assert (item.name, item.ismount, type(item.ismount)) == ("other", True, bool)
        assert await walk.rest() == []


@on_both_faces
async def test_what_is_walked_is_the_mount_on_top(face, mount_dir):
    filled(make(mount_dir, "stack", source="below"), "hidden")
    top = make(mount_dir, "stack", source="on top")
    filled(top, "seen")
    assert await walked(face, top, "on top") == [os.fsencode(top / "seen")]
    assert await walked(face, top) == [os.fsencode(top / "seen")]
    async with walking(face, top) as walk:
        item = await anext(walk)
        assert item.fd >= 0
        with open(f"/proc/self/fdinfo/{item.fd}") as lines:
            assert f"mnt_id:\t{fdinfo_mnt_id(top)}\n" in list(lines)


@on_both_faces
async def test_a_mount_over_the_walk_changes_nothing_for_it(face, mount_dir):
    root = mount_dir / "root"
    root.mkdir()
    grown(root)
    expected = tree(root)
    async with walking(face, root, read_ahead=1) as walk:
        found = []
        async for item in walk:
            found.append(os.fsencode(item.path))
            if item.name == "b":
                filled(make(mount_dir, "root"), "inside the new mount")
    assert found == expected


@on_both_faces
async def test_a_mount_that_appears_ahead_of_the_walk_is_not_entered(face, mount_dir):
    for name in ("one", "two", "three"):
        (mount_dir / name).mkdir()
        filled(mount_dir / name, f"inside {name}")
    async with walking(face, mount_dir, read_ahead=1) as walk:
        first = await anext(walk)
        for name in {"one", "two", "three"} - {first.name}:
            filled(make(mount_dir, name), "in the mount")
        rest = await walk.rest()
    assert "in the mount" not in [item.name for item in rest]
    assert f"inside {first.name}" in [item.name for item in rest]


# Length and depth


@each_opening
@on_both_faces
async def test_paths_may_be_longer_than_any_system_call_takes(face, place, opening):
    deep(place, b"\xe9" * 240, 25)
    found = subprocess.run(
        ["find", place, "-mindepth", "1", "-printf", r"%p\0"], check=True, stdout=subprocess.PIPE
    ).stdout.split(b"\0")[:-1]
    assert max(map(len, found)) > 6000
    async with walking(face, place, file_open_flags=opening) as walk:
        seen = []
        async for item in walk:
            assert os.path.join(item.parent, item.name) == item.path
            seen.append(os.fsencode(item.path))
        assert len(walk.dir_stack()) >= 1
    assert sorted(seen) == sorted(found)


@on_both_faces
async def test_a_descriptor_may_be_of_a_directory_deeper_than_any_path(face, place):
    """Its path cannot be told; what leads to it is told instead."""
    deep(place, b"x" * 240, 20)
    before = kernel.open_fds()
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for _ in range(18):
            above, fd = fd, os.open(b"x" * 240, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
            os.close(above)
        path = f"/proc/self/fd/{fd}"
        async with walking(face, fd) as walk:
            assert walk.get_stats().current_directory == path
            assert paths(await walk.rest()) == tree(path)
    finally:
        os.close(fd)
    await old_descriptors(face, before)


DEPTH = 5000
DEEP = """
import json, os, resource, sys
import anyio, truenas_os
from truenas_os import blocking

where, opening, nobody, library = json.loads(sys.argv[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
if nobody:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)

def depths(item):
    return item.depth, item.name

if library == "blocking":
    found = [depths(item) for item in blocking.walk(where, file_open_flags=opening)]
else:
    async def main():
        return [depths(item) async for item in truenas_os.walk(where, file_open_flags=opening)]

    found = anyio.run(main, backend=library)
print(json.dumps([len(found), len(set(found)), max(found)[0], found[-1][0], found[-2:]]))
"""


def in_the_deep(where, opening, *, nobody=False, library="blocking"):
    import sys
    from pathlib import Path

    argument = json.dumps([os.fspath(where), opening, nobody, library])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", DEEP, argument],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
        timeout=10 * AMPLE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_5_000_directories_one_in_the_other_need_few_descriptors(place):
    """Each has a file before the next directory and one after it."""
    deep(place, b"d", DEPTH)
    for opening in OPENING:
        assert in_the_deep(place, opening)[:3] == [3 * DEPTH, 3 * DEPTH, DEPTH]


@needs_root
@each_opening
def test_without_privileges_the_way_back_up_is_found_as_well(public, opening):
    deep(public, b"d", DEPTH)
    assert in_the_deep(public, opening, nobody=True)[:3] == [3 * DEPTH, 3 * DEPTH, DEPTH]


@pytest.mark.parametrize("library", ["asyncio", "trio"])
def test_the_async_face_is_as_deep(mount_dir, library):
    deep(mount_dir, b"d", DEPTH)
    found = in_the_deep(mount_dir, os.O_RDONLY, library=library)
    assert found[:3] == [3 * DEPTH, 3 * DEPTH, DEPTH]


LOW = """
import os, resource
from truenas_os import blocking

os.chdir({directory!r})
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
before = len(os.listdir("/proc/self/fd"))
most = 0
for item in blocking.walk(".", **{options!r}):
    most = max(most, len(os.listdir("/proc/self/fd")) - before)
print(most)
"""


@pytest.mark.parametrize("opening", OPENING)
@pytest.mark.parametrize("marks", [{}, MARKS], ids=["", "with marks"])
def test_a_walk_uses_no_more_than_a_tenth_of_all_descriptors(mount_dir, opening, marks):
    (mount_dir / "wide").mkdir()
    filled(mount_dir / "wide", *map(str, range(1000)))
    for number in range(500):
        (mount_dir / f"empty {number}").mkdir()
    deep(mount_dir, b"d", 100)
    options = {"file_open_flags": opening, **marks}
    script = LOW.format(directory=str(mount_dir), options=options)
    assert 0 < int(in_python(script)) <= 25


@on_both_faces
async def test_items_outlive_the_walk(face, place):
    """What is decoded late is decoded from what was seen then."""
    grown(place)
    async with walking(face, place, include_symlinks=True) as walk:
        items = await walk.rest()
    async with walking(face, place, include_symlinks=True) as walk:
        at_once = await walk.rest_of(entry)
    assert paths(items) == tree(place, symlinks=True)
    assert [entry(item) for item in items] == at_once
