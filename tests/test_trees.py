# SPDX-License-Identifier: LGPL-3.0-or-later
"""mount_tree and MountTree, against mountinfo, findmnt and what the kernel finds at a path."""

import contextlib
import errno
import itertools
import json
import os
import sys
import threading
import time
from pathlib import Path, PurePosixPath

import anyio
import faults
import kernel
import pytest
from command_line import findmnt, findmnt_rows
from faces import on_both_faces
from hypothesis import given
from hypothesis import strategies as st
from stuck import fds_return_to, until
from test_mount_namespaces import foreign, foreign_fd
from witness import (
    FIELDS,
    FS_TYPE,
    MNT_BASIC,
    MNT_POINT,
    STRANGE,
    UNKNOWN_ID,
    deep_mount,
    id_of,
    in_python,
    make,
    old_id_of,
)

import truenas_os
from truenas_os import blocking
from truenas_os.blocking import MountFilter, MountTree, mount_tree, trees

__all__ = ["foreign", "foreign_fd"]

NOTHING = dict.fromkeys(blocking.StatmountResult._fields)


def made(mnt_id, parent, point="/", **fields):
    """A mount that no kernel has told of."""
    fields |= {"mnt_id": mnt_id, "mnt_parent_id": parent, "mnt_point": point}
    return blocking.StatmountResult(**NOTHING | fields)


def ids(mounts):
    return [mount.mnt_id for mount in mounts]


def points(mounts):
    return [mount.mnt_point for mount in mounts]


def old(mounts):
    return [mount.mnt_id_old for mount in mounts]


def found_at(path):
    """The id of the mount whose root the kernel finds at *path*, None if it finds no root there."""
    try:
        found = id_of(path)
    except FileNotFoundError:
        return None
    return found if found != id_of(os.path.dirname(path)) else None


@pytest.fixture
def nested(mount_dir):
    """Mounts below mounts, stacked ones, and ones that the stack hides."""
    for path in ("a", "a/b", "a/b/c", "d", "stack", "stack/hidden", "stack/hidden/more"):
        make(mount_dir, path)
    make(mount_dir, "stack")
    make(mount_dir, "stack/hidden")
    make(mount_dir, "stack/new")
    return mount_dir


# The tree


def test_a_tree_has_the_mounts_of_mountinfo_in_mount_order(face, nested):
    tree = face.mount_tree()
    assert [(m.mnt_id_old, m.mnt_parent_id_old, m.mnt_point) for m in tree] == [
        (m.id, m.parent, m.mount_point) for m in kernel.mountinfo()
    ]
    assert ids(tree) == sorted(ids(tree)) == blocking.listmount()
    assert len(tree) == len(kernel.mountinfo())
    assert type(tree) is face.face.library.MountTree
    assert repr(tree) == f"<MountTree of {len(tree)} mounts>"


def test_every_field_is_there_or_those_that_were_asked_for(face, mount_dir):
    whole = next(iter(face.mount_tree()))
    assert whole == blocking.statmount(whole.mnt_id, trees.ALL_FIELDS)
    part = next(iter(face.mount_tree(mask=FS_TYPE)))
    filled = {name for name, value in part._asdict().items() if value is not None}
    named = {name for bit in (FS_TYPE, MNT_BASIC, MNT_POINT) for name in FIELDS[bit]}
    assert filled == {*named, "mask"}


def test_the_tree_is_that_of_findmnt(nested):
    def walked(rows):
        for row in rows:
            below = row.get("children", [])
            yield row["id"], {child["id"] for child in below}
            yield from walked(below)

    rows = json.loads(findmnt("-J", "-o", "ID,TARGET"))["filesystems"]
    tree = mount_tree()
    assert {m.mnt_id_old: set(old(tree.children(m.mnt_id))) for m in tree} == dict(walked(rows))
    assert set(old(tree)) == {int(number) for number in findmnt("-rno", "ID").split()}


def test_the_root_holds_the_root_directory(nested):
    tree = mount_tree()
    assert tree.root.mnt_id == id_of("/")
    assert tree.root.mnt_point == "/"


def test_children_are_those_directly_below_in_mount_order(nested):
    tree = mount_tree()
    below = tree.children(id_of(nested))
    assert points(below) == [f"{nested}/{name}" for name in ("a", "d", "stack")]
    assert points(tree.children(tree.at(nested / "a").mnt_id)) == [f"{nested}/a/b"]
    assert tree.children(id_of(nested / "d")) == ()
    assert tree.children(UNKNOWN_ID) == ()


def test_descendants_come_after_their_parents(nested):
    tree = mount_tree()
    below = tree.descendants(id_of(nested))
    names = "a a/b a/b/c d stack stack stack/hidden stack/new stack/hidden stack/hidden/more"
    assert sorted(points(below)) == sorted(f"{nested}/{name}" for name in names.split())
    assert set(ids(below)) == set(blocking.listmount(id_of(nested)))
    seen = {id_of(nested)}
    for mount in below:
        assert mount.mnt_parent_id in seen
        seen.add(mount.mnt_id)
    assert tree.descendants(UNKNOWN_ID) == ()


def test_depth_first_goes_down_before_it_goes_on(nested):
    tree = mount_tree()
    order = ids(tree.depth_first())
    assert sorted(order) == ids(tree)
    for mount in tree:
        position, below = order.index(mount.mnt_id), ids(tree.descendants(mount.mnt_id))
        assert order[position + 1 : position + 1 + len(below)] == below


def test_a_tree_is_asked_by_id(nested):
    tree = mount_tree()
    mnt_id = id_of(nested / "d")
    assert mnt_id in tree
    assert UNKNOWN_ID not in tree
    assert tree[mnt_id] is tree.get(mnt_id)
    assert tree[mnt_id].mnt_point == f"{nested}/d"
    assert tree.get(UNKNOWN_ID) is None
    with pytest.raises(KeyError):
        tree[UNKNOWN_ID]


def test_a_tree_stays_as_it_was(nested):
    tree = mount_tree()
    before = list(tree)
    kernel.umount(nested / "d")
    make(nested, "new")
    assert list(tree) == before


# Paths


@pytest.mark.parametrize("name", ["a", "a/", "a//", "./a", "a/.", "./a/./", "/a"])
def test_under_goes_by_components_and_includes_the_mount_there(mount_dir, name):
    for path in ("a", "a/b", "ab", "ab/c", "a.b"):
        make(mount_dir, path)
    found = mount_tree().under(f"{mount_dir}/{name}")
    assert points(found) == [f"{mount_dir}/a", f"{mount_dir}/a/b"]


@pytest.mark.parametrize("form", [str, os.fsencode, Path, PurePosixPath])
def test_a_path_may_have_any_type(nested, form):
    tree = mount_tree()
    path = form(f"{nested}/a")
    assert ids(tree.under(path)) == ids(tree.select(under=path))
    assert len(tree.under(path)) == 3
    assert tree.at(path).mnt_id == id_of(nested / "a")
    assert tree.containing(path).mnt_id == id_of(nested / "a")


def test_under_the_root_is_all_that_has_a_mount_point(nested):
    tree = mount_tree()
    for path in ("/", "//", "/."):
        assert tree.under(path) == tuple(tree)


def test_under_a_path_that_is_no_mount_point_is_what_is_below(mount_dir):
    (mount_dir / "plain").mkdir()
    make(mount_dir, "plain/mount")
    assert points(mount_tree().under(mount_dir / "plain")) == [f"{mount_dir}/plain/mount"]
    assert mount_tree().under("/nonexistent") == ()


def test_a_mount_without_a_mount_point_is_under_nothing():
    tree = MountTree([made(1, 0), made(2, 1, None)])
    assert ids(tree.under("/")) == [1]
    assert ids(tree) == [1, 2]


@pytest.mark.parametrize("path", ["", ".", "a", "a/b", "..", "/..", "/a/../b", "/a/..", b"a", b""])
@pytest.mark.parametrize("method", ["under", "at", "stack"])
def test_a_path_that_says_not_where_it_is_is_refused(path, method):
    tree = MountTree([made(1, 0)])
    with pytest.raises(ValueError, match=r"absolute and without '\.\.'"):
        getattr(tree, method)(path)
    with pytest.raises(ValueError, match="absolute"):
        tree.select(under=path)


@pytest.mark.parametrize("path", ["/a\0b", b"/a\0b"])
@pytest.mark.parametrize("method", ["under", "at", "stack"])
def test_a_path_with_a_NUL_is_refused(path, method):
    with pytest.raises(ValueError, match="null"):
        getattr(MountTree([made(1, 0)]), method)(path)
    with pytest.raises(ValueError, match="null"):
        MountFilter(path=path)


def test_a_name_that_begins_with_two_dots_is_a_name(mount_dir):
    make(mount_dir, "..a")
    assert mount_tree().at(mount_dir / "..a").mnt_id == id_of(mount_dir / "..a")


def test_at_finds_what_the_kernel_finds(nested):
    tree = mount_tree()
    for path in set(points(tree)) - {"/"} | {f"{nested}/{n}" for n in ("nothing", "a/nothing")}:
        assert (mount := tree.at(path)) is None or mount.mnt_point == path
        assert (mount and mount.mnt_id) == found_at(path), path
    assert tree.at("/").mnt_id == id_of("/")


def test_a_hidden_mount_is_not_found(nested):
    tree = mount_tree()
    hidden = f"{nested}/stack/hidden"
    assert len([m for m in tree if m.mnt_point == hidden]) == 2
    assert ids(tree.stack(hidden)) == [id_of(hidden)]
    assert tree.at(f"{hidden}/more") is None
    assert tree.stack(f"{hidden}/more") == ()
    assert f"{hidden}/more" in points(tree.under(nested))


def test_a_stack_ends_with_what_is_on_top(mount_dir):
    for source in ("one", "two", "three"):
        make(mount_dir, source=source)
    tree = mount_tree()
    assert [m.sb_source for m in tree.stack(mount_dir / "m")] == ["one", "two", "three"]
    assert tree.at(mount_dir / "m").sb_source == "three"
    assert tree.at(mount_dir / "m").mnt_id == id_of(mount_dir / "m")


def test_a_stack_of_moved_mounts_is_in_the_order_of_lookup_not_of_ids(mount_dir):
    for name in ("first", "second"):
        make(mount_dir, name, source=name)
    kernel.mount(mount_dir / "first", mount_dir / "second", None, kernel.MS_MOVE)
    stack = mount_tree().stack(mount_dir / "second")
    assert [m.sb_source for m in stack] == ["second", "first"]
    assert ids(stack) == sorted(ids(stack), reverse=True)


def test_a_mount_on_the_root_is_not_passed_on_the_way_to_other_paths(tmp_path):
    (tmp_path / "m").mkdir()
    make(tmp_path, "before")
    # The process keeps its root: only the root's own path meets what is on top of it.
    kernel.mount("over", "/", "tmpfs")
    try:
        make(tmp_path, "after")
        tree = mount_tree()
        for name in ("before", "after"):
            assert tree.at(tmp_path / name).mnt_id == id_of(tmp_path / name)
        assert [m.sb_source for m in tree.stack("/")][1:] == ["over"]
        assert tree.root.mnt_id == id_of("/")
    finally:
        for path in (tmp_path / "before", tmp_path / "after", "/"):
            with contextlib.suppress(OSError):
                kernel.umount(path)


def test_a_hostile_name_is_a_path_as_any_other(mount_dir):
    kernel_path = os.fsencode(mount_dir) + b"/" + STRANGE
    os.mkdir(kernel_path)
    kernel.mount("tmpfs", kernel_path, "tmpfs")
    tree = mount_tree()
    assert os.fsencode(tree.at(kernel_path).mnt_point) == kernel_path
    assert ids(tree.under(kernel_path)) == [tree.containing(kernel_path).mnt_id]


def test_a_mount_point_longer_than_any_path_is_found(mount_dir, monkeypatch):
    mnt_id, line = deep_mount(mount_dir, monkeypatch)
    tree = mount_tree()
    assert tree.at(line.mount_point).mnt_id == mnt_id
    assert ids(tree.under(mount_dir))[-1] == mnt_id


# The mount that holds a file


@on_both_faces
async def test_a_path_and_a_descriptor_are_on_a_mount(face, nested):
    tree = await face.mount_tree()
    (nested / "a" / "b" / "directory").mkdir()
    path = nested / "a" / "b" / "directory"
    assert (await face.call(tree.containing, path)).mnt_point == f"{nested}/a/b"
    with open(nested / "d" / "file", "w") as file:
        assert (await face.call(tree.containing, file)).mnt_point == f"{nested}/d"
        assert (await face.call(tree.containing, file.fileno())).mnt_point == f"{nested}/d"


@on_both_faces
async def test_a_symlink_is_followed_only_on_request(face, nested):
    (nested / "link").symlink_to("a")
    tree = await face.mount_tree()
    for name in ("link", "link/b"):
        with pytest.raises(OSError) as refused:
            await face.call(tree.containing, nested / name)
        assert refused.value.errno == errno.ELOOP
    found = await face.call(tree.containing, nested / "link" / "b", resolve=0)
    assert found.mnt_point == f"{nested}/a/b"


@on_both_faces
async def test_what_is_on_no_mount_of_the_tree_is_on_none(face, nested):
    tree = await face.mount_tree()
    make(nested, "newer")
    assert await face.call(tree.containing, nested / "newer") is None
    reader, writer = os.pipe()
    try:
        assert await face.call(tree.containing, reader) is None
    finally:
        os.close(reader)
        os.close(writer)


@on_both_faces
async def test_a_path_that_is_not_there_is_an_error(face, mount_dir):
    tree = await face.mount_tree()
    with pytest.raises(FileNotFoundError) as missing:
        await face.call(tree.containing, mount_dir / "missing")
    assert missing.value.filename == str(mount_dir / "missing")


# Selections


ZFS = [
    made(1, 0, "/", fs_type="ext4", sb_source="/dev/sda1"),
    made(2, 1, "/mnt/tank", fs_type="zfs", sb_source="tank"),
    made(3, 2, "/mnt/tank/a", fs_type="zfs", sb_source="tank/a"),
    made(4, 3, "/mnt/tank/a/.zfs/snapshot/x", fs_type="zfs", sb_source="tank/a@x"),
    made(5, 1, "/mnt/at", fs_type="tmpfs", sb_source="user@host"),
    made(6, 1, "/mnt/none", fs_type="tmpfs"),
]


@pytest.mark.parametrize(
    ("conditions", "selected"),
    [
        ({}, [1, 2, 3, 4, 5, 6]),
        ({"zfs_snapshots": False}, [1, 2, 3, 5, 6]),
        ({"fs_type": "zfs"}, [2, 3, 4]),
        ({"fs_type": "zfs", "zfs_snapshots": False}, [2, 3]),
        ({"fs_type": "zf"}, []),
        ({"source": "tank*"}, [2, 3, 4]),
        ({"source": "tank/?"}, [3]),
        ({"source": "TANK"}, []),
        ({"source": "/dev/sd[a-c]1"}, [1]),
        ({"source": "*@*", "fs_type": "tmpfs"}, [5]),
        ({"under": "/mnt/tank/a"}, [3, 4]),
        ({"under": b"/mnt/tank", "zfs_snapshots": False, "source": "*/a*"}, [3]),
        ({"source": ""}, [6]),
    ],
)
def test_a_selection_matches_all_its_conditions(conditions, selected):
    assert ids(MountTree(ZFS).select(**conditions)) == selected


@on_both_faces
async def test_a_selection_of_real_mounts(face, mount_dir):
    make(mount_dir, "one", source="some/source")
    make(mount_dir, "two", source="other")
    tree = await face.mount_tree()
    assert points(tree.select(source="some/*")) == [f"{mount_dir}/one"]
    assert points(tree.select(under=mount_dir, source="o*", fs_type="tmpfs")) == [
        f"{mount_dir}/two"
    ]
    assert {m.fs_type for m in tree.select(fs_type="proc")} == {"proc"}


# Text


def test_the_text_has_the_columns_of_findmnt(various_mounts):
    rows = [row for row in findmnt_rows() if row["target"].startswith(str(various_mounts))]
    lines = str(mount_tree()).splitlines()
    assert lines[0].split() == ["TARGET", "SOURCE", "FSTYPE", "OPTIONS"]
    shown = [line[line.index("/") :].split() for line in lines[1:]]
    for row in rows:
        assert [row[name] for name in ("target", "source", "fstype", "options")] in shown


def test_the_text_is_drawn_as_findmnt_draws_it():
    mounts = [
        made(1, 0, "/", sb_source="a", fs_type="x"),
        made(2, 1, "/b", sb_source="longer", mnt_root="/sub", fs_type="fuse", fs_subtype="s"),
        made(3, 2, "/b/c", mnt_attr=1, fs_type="x", opt_array=("size=1k",)),
        made(4, 1, "/d"),
    ]
    assert str(MountTree(mounts)).splitlines() == [
        "TARGET   SOURCE       FSTYPE OPTIONS",
        "/        a            x      rw,relatime",
        "├─/b     longer[/sub] fuse.s rw,relatime",
        "│ └─/b/c -            x      ro,relatime,size=1k",
        "└─/d     -            -      rw,relatime",
    ]


def test_hostile_names_keep_one_line_for_each_mount(hostile_mounts):
    lines = str(mount_tree()).splitlines()
    assert len(lines) == 1 + len(kernel.mountinfo())
    assert [char for char in "".join(lines) if not char.isprintable()] == []
    json.dumps(lines).encode("ascii")
    "\n".join(lines).encode()


# Trees that no kernel has told of: mounts have moved while they were read


def test_an_empty_tree_is_a_tree():
    tree = MountTree([])
    assert (len(tree), tree.root, list(tree.depth_first())) == (0, None, [])
    assert (tree.at("/"), tree.under("/"), tree.stack("/a")) == (None, (), ())
    assert str(tree).split() == ["TARGET", "SOURCE", "FSTYPE", "OPTIONS"]


def test_a_mount_whose_parent_is_missing_stands_for_itself():
    tree = MountTree([made(1, 0), made(2, 77, "/lost"), made(3, 2, "/lost/x"), made(4, 1, "/a")])
    assert ids(tree.depth_first()) == [1, 4, 2, 3]
    assert tree.root.mnt_id == 1
    assert ids(tree.under("/lost")) == [2, 3]
    assert tree.at("/lost") is None


@given(st.dictionaries(st.integers(1, 12), st.none() | st.integers(0, 12)))
def test_whatever_the_parents_every_mount_is_in_the_tree_once(parents):
    tree = MountTree(made(mnt_id, parent) for mnt_id, parent in parents.items())
    assert sorted(ids(tree.depth_first())) == sorted(parents)
    assert len(str(tree).splitlines()) == 1 + len(parents)
    for mnt_id in parents:
        below = ids(tree.descendants(mnt_id))
        assert len(set(below)) == len(below)
        assert mnt_id not in below
        assert all(tree[child].mnt_parent_id == mnt_id for child in ids(tree.children(mnt_id)))


# Many mounts, deep ones


def test_thousands_of_mounts_are_a_tree(face, many):
    tree = face.mount_tree()
    assert ids(tree) == blocking.listmount()
    assert len(tree.children(id_of(many))) == len(tree.under(many)) - 1 == 4200
    assert tree.at(many / "4199").mnt_id == id_of(many / "4199")


def test_mounts_may_be_nested_deeper_than_python_calls():
    depth = sys.getrecursionlimit() + 100
    tree = MountTree(made(n, n - 1, "/" + "a/" * (n - 2) + "a" * (n > 1)) for n in range(1, depth))
    assert ids(tree.depth_first()) == list(range(1, depth))
    assert len(tree.descendants(1)) == depth - 2
    assert tree.at("/" + "a/" * (depth - 2)).mnt_id == depth - 1
    assert len(str(tree).splitlines()) == depth


def test_mounts_may_be_stacked_deeper_than_python_calls():
    depth = sys.getrecursionlimit() + 100
    tree = MountTree([made(1, 0), *(made(n, n - 1, "/a") for n in range(2, depth))])
    assert ids(tree.stack("/a")) == list(range(2, depth))


# Other roots, other namespaces


CHROOTED = """
import os, sys
from truenas_os.blocking import mount_tree
os.chroot(sys.stdin.readline().rstrip("\\n"))
os.chdir("/")
tree = mount_tree()
def shown(mount):
    return mount and mount.mnt_point
print(repr(({})))
"""


def in_chroot(root, expression):
    # The path comes by way of stdin, that the script may be the same for all of them.
    script = CHROOTED.format(expression)
    return eval(in_python(script, input=f"{root}\n".encode()))


@pytest.fixture
def chroot_dir(mount_dir):
    (mount_dir / "root").mkdir()
    for path in ("root/a", "root/a/b", "root/c", "root/c"):
        make(mount_dir, path)
    return mount_dir / "root"


def test_in_a_root_that_is_no_mounts_root_there_is_no_root(chroot_dir):
    assert in_chroot(chroot_dir, "tree.root") is None
    assert in_chroot(chroot_dir, "[m.mnt_point for m in tree]") == ["/a", "/a/b", "/c", "/c"]
    assert in_chroot(chroot_dir, "[m.mnt_point for m in tree.under('/a')]") == ["/a", "/a/b"]
    assert in_chroot(chroot_dir, "tree.containing('/')") is None
    assert in_chroot(chroot_dir, "shown(tree.containing('/a'))") == "/a"


def test_in_a_root_that_is_no_mounts_root_mount_points_are_found(chroot_dir):
    assert in_chroot(chroot_dir, "shown(tree.at('/a'))") == "/a"
    assert in_chroot(chroot_dir, "shown(tree.at('/a/b'))") == "/a/b"
    assert in_chroot(chroot_dir, "len(tree.stack('/c'))") == 2


def test_in_a_root_that_is_a_mounts_root_that_mount_is_the_root(chroot_dir):
    shown = "shown(tree.root), shown(tree.at('/b')), shown(tree.containing('/'))"
    assert in_chroot(chroot_dir / "a", shown) == ("/", "/b", "/")


@on_both_faces
async def test_the_mounts_of_another_namespace_are_a_tree(face, foreign, foreign_fd, mount_dir):
    tree = await face.mount_tree(mnt_ns=foreign_fd)
    rows = json.loads(findmnt("--task", str(foreign), "-J", "-l", "-o", "ID,PARENT,TARGET"))
    assert {(m.mnt_id_old, m.mnt_parent_id_old, m.mnt_point) for m in tree} == {
        (row["id"], row["parent"], row["target"]) for row in rows["filesystems"]
    }
    only_there = tree.at(mount_dir / "only there")
    assert only_there.sb_source == "there"
    assert only_there.mnt_id not in await face.mount_tree()
    assert tree.root.mnt_point == "/"


@on_both_faces
async def test_what_is_no_mount_namespace_is_refused(face):
    with open("/proc/self/ns/net") as namespace:
        with pytest.raises(OSError) as refused:
            await face.mount_tree(mnt_ns=namespace)
    assert refused.value.errno == errno.EINVAL


# One moment


@pytest.fixture
def changing_reads(monkeypatch):
    """Arranges that so many reads of the table are each followed by a change; counts all reads."""
    real, reads = trees.iter_mount, []

    def arrange(times, change):
        def iter_mount(**kwargs):
            mounts = list(real(**kwargs))
            reads.append(len(mounts))
            if len(reads) <= times:
                change(len(reads))
            return iter(mounts)

        monkeypatch.setattr(trees, "iter_mount", iter_mount)
        return reads

    return arrange


@pytest.mark.parametrize("times", [0, 1, 2, 7, 30])
def test_the_table_is_read_until_it_does_not_change(mount_dir, changing_reads, times):
    reads = changing_reads(times, lambda n: make(mount_dir, str(n)))
    assert old(mount_tree()) == [m.id for m in kernel.mountinfo()]
    # In twos, until two agree.
    assert len(reads) == 2 * (1 + (times + 1) // 2)


@pytest.mark.parametrize("kind", ["moved", "gone and come", "renamed"])
def test_every_kind_of_change_is_noticed(mount_dir, changing_reads, kind):
    make(mount_dir, "here")
    (mount_dir / "there").mkdir()

    def change(_):
        if kind == "moved":
            kernel.mount(mount_dir / "here", mount_dir / "there", None, kernel.MS_MOVE)
        elif kind == "renamed":
            (mount_dir / "outer").rename(mount_dir / "renamed")
        else:
            kernel.umount(mount_dir / "here")
            make(mount_dir, "here")

    if kind == "renamed":
        make(mount_dir, "inner")
        (mount_dir / "outer").mkdir()
        make(mount_dir / "outer", "below")
    reads = changing_reads(1, change)
    tree = mount_tree()
    assert len(reads) == 4
    assert points(tree) == [m.mount_point for m in kernel.mountinfo()]


def test_a_table_that_changes_all_the_time_is_returned_all_the_same(mount_dir, changing_reads):
    reads = changing_reads(1000, lambda n: make(mount_dir, str(n)))
    tree = mount_tree()
    assert len(reads) == 32
    assert sorted(ids(tree.depth_first())) == ids(tree)


@contextlib.contextmanager
def in_background(step):
    """Take one step after the other in a thread, with a pause after each."""
    over, errors = threading.Event(), []

    def run():
        try:
            for number in itertools.count():
                if over.is_set():
                    return
                step(number)
                time.sleep(0.001)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert errors == []


def settled_tree(reads):
    """A tree, and whether it has been seen twice in the same shape."""
    reads.clear()
    tree = mount_tree()
    return tree, len(reads) < 2 * trees._TRIES


def test_a_tree_of_mounts_that_move_was_so_at_one_moment(mount_dir, changing_reads):
    for number in range(50):
        (mount_dir / str(number)).mkdir()
    for path in ("0", "0/b", "0/b/c"):
        make(mount_dir, path)

    def move(number):
        one, other = (mount_dir / str((number + more) % 50) for more in (0, 1))
        kernel.mount(one, other, None, kernel.MS_MOVE)

    reads, checked, places = changing_reads(0, None), 0, set()
    with in_background(move):
        while checked < 200:
            tree, settled = settled_tree(reads)
            if not settled:
                continue
            top, *below = sorted(points(tree.under(mount_dir)), key=len)[1:]
            assert below == [f"{top}/b", f"{top}/b/c"]
            assert points(tree.descendants(id_of(mount_dir))) == [top, *below]
            checked += 1
            places.add(top)
    assert len(places) > 1


def test_a_tree_of_mounts_that_come_and_go_has_every_parent(mount_dir, changing_reads):
    def come_and_go(number):
        if number % 2:
            kernel.umount(mount_dir / "m", kernel.MNT_DETACH)
        else:
            for path in ("m", "m/a", "m/a/b", "m/c"):
                make(mount_dir, path)

    reads, checked = changing_reads(0, None), 0
    roots = len(MountTree(mount_tree())._roots)
    with in_background(come_and_go):
        while checked < 200:
            tree, settled = settled_tree(reads)
            assert sorted(ids(tree.depth_first())) == ids(tree)
            if settled:
                orphans = [m for m in tree if m.mnt_parent_id not in tree]
                assert len(orphans) == roots
                for mount in tree.under(mount_dir)[1:]:
                    assert mount.mnt_point.startswith(tree[mount.mnt_parent_id].mnt_point + "/")
                checked += 1


# Nothing is left


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOMEM, errno.EIO])
@pytest.mark.parametrize("syscall", ["listmount", "statmount"])
def test_an_error_of_the_kernel_is_reported(mount_dir, syscall, code):
    with faults.failing(syscall, code):
        with pytest.raises(OSError) as failed:
            mount_tree()
    assert failed.value.errno == code


def test_mounts_that_have_vanished_are_left_out():
    """Between the list and each mount's description, one of them goes after the other."""
    expected = ids(mount_tree())
    with faults.count("statmount") as calls:
        mount_tree()
    for nth in range(calls.seen // 2):
        with faults.failing("statmount", errno.ENOENT, skip=nth, times=1):
            assert ids(mount_tree()) == expected  # the second look sees it: it had not gone
    with faults.failing("statmount", errno.ENOENT):
        assert len(mount_tree()) == 0


@pytest.mark.anyio
async def test_a_cancelled_tree_leaves_nothing(foreign_fd):
    with faults.count(None) as calls:
        await truenas_os.mount_tree(mnt_ns=foreign_fd)
    before = kernel.open_fds()
    for nth in range(calls.seen):
        with faults.stopped(None, skip=nth) as stop:
            async with anyio.create_task_group() as group:
                group.start_soon(lambda: truenas_os.mount_tree(mnt_ns=foreign_fd))
                await until(stop.reached)
                group.cancel_scope.cancel()
                stop.go()
        await fds_return_to(before)


def test_trees_leave_no_descriptor(nested):
    tree = mount_tree()
    before = kernel.open_fds()
    for _ in range(50):
        mount_tree()
        tree.containing(nested)
        tree.containing(0)
    assert kernel.open_fds() == before
    assert old_id_of(nested) == tree.containing(nested).mnt_id_old


def test_a_root_that_is_its_own_parent_is_found_and_no_more():
    nothing = dict.fromkeys(blocking.StatmountResult._fields)
    mounts = [
        blocking.StatmountResult(**nothing | {"mnt_id": i, "mnt_parent_id": p, "mnt_point": point})
        for i, p, point in ((1, 1, "/"), (2, 1, "/a"), (3, 4, "/b"), (4, 3, "/b"))
    ]
    tree = blocking.MountTree(mounts)
    assert tree.stack("/") == (mounts[0],)
    assert tree.stack("/a") == (mounts[1],)
    assert tree.stack("/b") == ()
