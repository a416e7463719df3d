# SPDX-License-Identifier: LGPL-3.0-or-later
"""umount, and unmounting one mount by its id, against mountinfo."""

import contextlib
import errno
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anyio
import faults
import kernel
import pytest
from command_line import HOSTILE
from stuck import AMPLE, fds_return_to, until, wait_until
from witness import deep_mount, id_of, in_python, make, notes

import truenas_os
from truenas_os import blocking
from truenas_os.blocking import unmounting
from truenas_os.blocking.unmounting import unmount


def below(directory):
    """The mount points below a directory, relative to it, in the order of mountinfo."""
    prefix = f"{directory}/"
    points = [m.mount_point for m in kernel.mountinfo()]
    return [point.removeprefix(prefix) for point in points if point.startswith(prefix)]


def move(source, target):
    kernel.mount(source, target, None, kernel.MS_MOVE)


def busy(path):
    """What keeps the mount at *path* in use."""
    return open(Path(path, "file"), "w")


def errors_of(group):
    return {error.filename: error for error in group.value.exceptions}


@pytest.fixture
def tree(mount_dir):
    for path in ("a", "a/b", "a/b/c", "a/d", "e"):
        make(mount_dir, path)
    return mount_dir


# One mount


@pytest.mark.parametrize("form", [str, os.fsencode, Path])
def test_a_mount_is_unmounted(face, mount_dir, form):
    make(mount_dir)
    face.umount(form(f"{mount_dir}/m"))
    assert below(mount_dir) == []


def test_a_relative_path_is_enough(mount_dir, monkeypatch):
    make(mount_dir)
    monkeypatch.chdir(mount_dir)
    blocking.umount("m")
    assert below(mount_dir) == []


@pytest.mark.parametrize("recursive", [False, True])
def test_only_what_is_on_top_is_unmounted(face, mount_dir, recursive):
    for source in ("one", "two", "three"):
        make(mount_dir, source=source)
    face.umount(mount_dir / "m", recursive=recursive)
    assert [m.source for m in kernel.mountinfo()][-2:] == ["one", "two"]


@pytest.mark.parametrize(
    "options",
    [{}, {"recursive": True}, {"lazy": True}, {"lazy_fallback": True}, {"force": True}],
    ids=str,
)
class TestEachWay:
    def test_what_is_no_mount_point_is_EINVAL(self, face, mount_dir, options):
        (mount_dir / "plain").mkdir()
        with pytest.raises(OSError) as refused:
            face.umount(mount_dir / "plain", **options)
        assert refused.value.errno == errno.EINVAL
        assert refused.value.filename == str(mount_dir / "plain")

    def test_what_does_not_exist_is_ENOENT(self, face, mount_dir, options):
        with pytest.raises(FileNotFoundError) as missing:
            face.umount(mount_dir / "missing", **options)
        assert missing.value.filename == str(mount_dir / "missing")

    def test_a_symlink_is_not_followed(self, face, mount_dir, options):
        make(mount_dir)
        (mount_dir / "link").symlink_to("m")
        with pytest.raises(OSError) as refused:
            face.umount(mount_dir / "link", **options)
        assert refused.value.errno == errno.EINVAL
        assert below(mount_dir) == ["m"]

    def test_a_symlink_on_the_way_is_followed(self, face, mount_dir, options):
        (mount_dir / "directory").mkdir()
        make(mount_dir / "directory")
        (mount_dir / "link").symlink_to("directory")
        face.umount(mount_dir / "link" / "m", **options)
        assert below(mount_dir) == []

    def test_a_mount_on_a_file_is_unmounted(self, face, mount_dir, options):
        for name in ("source", "target"):
            (mount_dir / name).touch()
        kernel.mount(mount_dir / "source", mount_dir / "target", None, kernel.MS_BIND)
        face.umount(mount_dir / "target", **options)
        assert below(mount_dir) == []

    @pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
    def test_a_hostile_name_is_a_name(self, mount_dir, options, name):
        path = os.fsencode(mount_dir) + b"/" + name
        os.mkdir(path)
        kernel.mount("tmpfs", path, "tmpfs")
        blocking.umount(path, **options)
        assert below(mount_dir) == []


def test_lazy_and_lazy_fallback_exclude_each_other(face, mount_dir):
    make(mount_dir)
    with pytest.raises(ValueError, match="exclude"):
        face.umount(mount_dir / "m", lazy=True, lazy_fallback=True)
    assert below(mount_dir) == ["m"]


def test_a_mount_in_use_stays_EBUSY(face, mount_dir):
    make(mount_dir)
    with busy(mount_dir / "m"):
        with pytest.raises(OSError) as refused:
            face.umount(mount_dir / "m")
    assert refused.value.errno == errno.EBUSY
    assert notes(refused.value) == ""
    assert below(mount_dir) == ["m"]


def test_the_mounts_that_make_it_busy_are_named(face, tree):
    with pytest.raises(OSError) as refused:
        face.umount(tree / "a")
    assert refused.value.errno == errno.EBUSY
    named = ", ".join(f"{tree}/a/{name}" for name in ("b", "b/c", "d"))
    assert notes(refused.value) == f"mounts are below it: {named}"


@pytest.mark.parametrize(("count", "more"), [(8, ""), (9, ", and 1 more"), (50, ", and 42 more")])
def test_of_many_mounts_below_a_few_are_named(mount_dir, count, more):
    make(mount_dir)
    for number in range(count):
        make(mount_dir / "m", str(number))
    with pytest.raises(OSError) as refused:
        blocking.umount(mount_dir / "m")
    named = ", ".join(f"{mount_dir}/m/{number}" for number in range(8))
    assert notes(refused.value) == f"mounts are below it: {named}{more}"


def test_lazy_detaches_what_is_in_use_with_all_below(face, tree):
    with busy(tree / "a" / "b"):
        face.umount(tree / "a", lazy=True)
        assert below(tree) == ["e"]


def test_lazy_fallback_detaches_what_is_in_use(face, mount_dir):
    make(mount_dir)
    with busy(mount_dir / "m") as file:
        face.umount(mount_dir / "m", lazy_fallback=True)
        assert below(mount_dir) == []
        file.write("still there")


def test_lazy_fallback_keeps_what_mounts_below_make_busy(face, tree):
    with busy(tree / "a"):
        with pytest.raises(OSError) as refused:
            face.umount(tree / "a", lazy_fallback=True)
    assert refused.value.errno == errno.EBUSY
    assert "mounts are below it" in notes(refused.value)
    assert below(tree) == ["a", "a/b", "a/b/c", "a/d", "e"]


@pytest.fixture
def unmounts(monkeypatch):
    """The flags of every umount2 that is made."""
    real, flags = unmounting.umount2, []

    def umount2(target, given=0):
        flags.append(given)
        return real(target, given)

    monkeypatch.setattr(unmounting, "umount2", umount2)
    return flags


FORCE, DETACH, EXPIRE, NOFOLLOW = 1, 2, 4, 8


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        ({}, {NOFOLLOW}),
        ({"force": True}, {NOFOLLOW | FORCE}),
        ({"lazy": True}, {NOFOLLOW | DETACH}),
        ({"lazy": True, "recursive": True}, {NOFOLLOW | DETACH}),
        ({"lazy": True, "force": True}, {NOFOLLOW | DETACH | FORCE}),
        ({"recursive": True}, {NOFOLLOW | EXPIRE}),
        ({"recursive": True, "force": True}, {NOFOLLOW | FORCE}),
    ],
    ids=str,
)
def test_the_kernel_gets_the_flags(mount_dir, unmounts, options, flags):
    make(mount_dir)
    blocking.umount(mount_dir / "m", **options)
    assert set(unmounts) == flags
    assert below(mount_dir) == []


# Whole trees


def test_a_tree_is_unmounted(face, tree):
    face.umount(tree / "a", recursive=True)
    assert below(tree) == ["e"]


def test_a_mount_without_mounts_below_is_a_tree(face, tree):
    face.umount(tree / "e", recursive=True)
    assert below(tree) == ["a", "a/b", "a/b/c", "a/d"]


def test_a_tree_goes_by_nesting_not_by_age(face, mount_dir):
    """The mount with the least id is the one deepest below, and goes first."""
    for name in ("oldest", "older", "young"):
        make(mount_dir, name)
    points = [mount_dir / name for name in ("young", "young/below", "young/below/below")]
    for source, target in zip(("older", "oldest"), points[1:], strict=True):
        target.mkdir()
        move(mount_dir / source, target)
    ids = [id_of(point) for point in points]
    assert ids == sorted(ids, reverse=True)
    face.umount(mount_dir / "young", recursive=True)
    assert below(mount_dir) == []


def test_stacks_and_what_they_hide_are_unmounted(face, mount_dir):
    for path in ("m", "m/s", "m/s/hidden", "m/s/hidden/more", "m/s", "m/s/new", "m/s/new"):
        make(mount_dir, path)
    face.umount(mount_dir / "m", recursive=True)
    assert below(mount_dir) == []


def test_a_hidden_mount_younger_than_what_hides_it_is_unmounted(face, mount_dir):
    make(mount_dir)
    inner = make(mount_dir / "m", "inner")
    (inner / "hidden").mkdir()
    directory = os.open(inner, os.O_PATH)
    make(mount_dir / "m", "inner")
    kernel.mount("tmpfs", f"/proc/self/fd/{directory}/hidden", "tmpfs")
    os.close(directory)
    assert below(mount_dir) == ["m", "m/inner", "m/inner", "m/inner/hidden"]
    face.umount(mount_dir / "m", recursive=True)
    assert below(mount_dir) == []


def test_what_is_beside_or_above_is_left(face, mount_dir):
    for path in ("a", "ab", "ab/c"):
        make(mount_dir, path)
    face.umount(mount_dir / "a", recursive=True)
    assert below(mount_dir) == ["ab", "ab/c"]


def test_what_is_busy_is_reported_and_the_rest_is_gone(face, tree):
    with busy(tree / "a" / "b" / "c"):
        with pytest.raises(ExceptionGroup) as group:
            face.umount(tree / "a", recursive=True)
    assert below(tree) == ["a", "a/b", "a/b/c", "e"]
    errors = errors_of(group)
    assert list(errors) == [f"{tree}/a/b/c", f"{tree}/a/b", f"{tree}/a"]
    assert {error.errno for error in errors.values()} == {errno.EBUSY}
    assert notes(errors[f"{tree}/a/b/c"]) == ""
    assert notes(errors[f"{tree}/a/b"]) == f"mounts are below it: {tree}/a/b/c"
    assert group.value.message == f"{tree}/a: 3 of 3 mounts are still there"


def test_lazy_fallback_detaches_of_a_tree_only_what_is_in_use(face, tree, unmounts):
    with busy(tree / "a" / "b" / "c"), busy(tree / "a" / "d"):
        face.umount(tree / "a", recursive=True, lazy_fallback=True)
        assert below(tree) == ["e"]
    assert unmounts.count(DETACH) == 2


@pytest.mark.parametrize("recursive", [False, True])
def test_lazy_fallback_detaches_nothing_that_is_not_in_use(face, mount_dir, unmounts, recursive):
    make(mount_dir)
    face.umount(mount_dir / "m", lazy_fallback=True, recursive=recursive)
    assert [flags for flags in unmounts if flags & DETACH] == []


def test_mounts_that_appear_meanwhile_are_unmounted_too(mount_dir, monkeypatch):
    make(mount_dir)
    make(mount_dir / "m", "a")
    real, rounds = unmounting.umount2, iter(range(5))

    def umount2(target, flags=0):
        for number in rounds:
            make(mount_dir / "m", f"new{number}")
            break
        return real(target, flags)

    monkeypatch.setattr(unmounting, "umount2", umount2)
    blocking.umount(mount_dir / "m", recursive=True)
    assert below(mount_dir) == []
    assert next(rounds, None) is None


def test_mounts_that_appear_all_the_time_do_not_keep_it_for_ever(mount_dir, monkeypatch):
    make(mount_dir)
    real = unmounting.unmount

    def unmount_one(mnt_id, **options):
        if mnt_id == top:
            make(mount_dir / "m", "new")
        return real(mnt_id, **options)

    top = id_of(mount_dir / "m")
    monkeypatch.setattr(unmounting, "unmount", unmount_one)
    with pytest.raises(ExceptionGroup) as group:
        blocking.umount(mount_dir / "m", recursive=True)
    assert set(errors_of(group)) == {f"{mount_dir}/m"}


def test_a_tree_in_which_others_unmount_as_well_goes_away(tree):
    """Two threads do the same at once: neither is told of what the other was quicker to do."""
    for _ in range(30):
        for path in ("m", "m/a", "m/a/b", "m/c"):
            make(tree, path)
        ids = [id_of(tree / path) for path in ("m/a/b", "m/a", "m/c", "m")]
        failures = []

        def others():
            for mnt_id in ids:
                try:
                    unmount(mnt_id)
                except OSError as error:
                    failures.append(error)

        thread = threading.Thread(target=others)
        thread.start()
        # The other may hold it for a moment, or have been quicker altogether.
        with contextlib.suppress(OSError, ExceptionGroup):
            blocking.umount(tree / "m", recursive=True)
        thread.join()
        assert {error.errno for error in failures} <= {errno.EBUSY}
        if "m" in below(tree):
            blocking.umount(tree / "m", recursive=True)
    assert below(tree) == ["a", "a/b", "a/b/c", "a/d", "e"]


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
def test_hostile_names_in_a_tree_are_reported_whole(mount_dir, name):
    make(mount_dir)
    path = os.fsencode(mount_dir / "m") + b"/" + name
    os.mkdir(path)
    kernel.mount("tmpfs", path, "tmpfs")
    with open(path + b"/file", "w"):
        with pytest.raises(ExceptionGroup) as group:
            blocking.umount(mount_dir / "m", recursive=True)
    assert [os.fsencode(name) for name in errors_of(group)] == [path, os.fsencode(mount_dir / "m")]
    blocking.umount(mount_dir / "m", recursive=True)
    assert below(mount_dir) == []


def test_a_mount_point_longer_than_any_path_is_unmounted(face, mount_dir, monkeypatch):
    make(mount_dir)
    _, line = deep_mount(mount_dir / "m", monkeypatch)
    os.chdir("/")
    assert len(line.mount_point) > 4096
    face.umount(mount_dir / "m", recursive=True)
    assert below(mount_dir) == []


def test_a_mount_point_longer_than_any_path_is_detached_when_busy(mount_dir, monkeypatch):
    make(mount_dir)
    mnt_id, _ = deep_mount(mount_dir / "m", monkeypatch)
    os.chdir("/")
    with blocking.open_mount_by_id(mnt_id):
        blocking.umount(mount_dir / "m", recursive=True, lazy_fallback=True)
        assert below(mount_dir) == []


def test_thousands_of_mounts_are_unmounted(many):
    make(many.parent, "beside")
    (many.parent / "beside" / "all").mkdir()
    kernel.mount(many, many.parent / "beside" / "all", None, kernel.MS_BIND | kernel.MS_REC)
    blocking.umount(many.parent / "beside", recursive=True)
    assert len(below(many)) == 4200
    assert below(many.parent) == ["mounts", *(f"mounts/{number}" for number in range(4200))]


# Propagation


@pytest.fixture
def peers(mount_dir):
    """Two places that share what is mounted in either."""
    shared = make(mount_dir, "one")
    kernel.mount(None, shared, None, kernel.MS_SHARED)
    (mount_dir / "two").mkdir()
    kernel.mount(shared, mount_dir / "two", None, kernel.MS_BIND)
    make(shared, "a")
    make(mount_dir / "two", "a/b")
    return mount_dir


def test_mounts_that_were_made_by_propagation_are_unmounted(face, peers):
    assert sorted(below(peers)) == ["one", "one/a", "one/a/b", "two", "two/a", "two/a/b"]
    face.umount(peers / "two" / "a", recursive=True)
    assert below(peers) == ["one", "two"]


def test_a_tree_that_holds_both_peers_is_unmounted(face, mount_dir):
    make(mount_dir, "all")
    shared = make(mount_dir / "all", "one")
    kernel.mount(None, shared, None, kernel.MS_SHARED)
    for name in ("two", "three"):
        (mount_dir / "all" / name).mkdir()
        kernel.mount(shared, mount_dir / "all" / name, None, kernel.MS_BIND)
    make(shared, "a")
    make(shared, "a/b")
    assert len(below(mount_dir)) == 10
    face.umount(mount_dir / "all", recursive=True)
    assert below(mount_dir) == []


def test_a_slave_is_unmounted_without_its_master(face, peers):
    kernel.mount(None, peers / "two", None, kernel.MS_SLAVE | kernel.MS_REC)
    face.umount(peers / "two", recursive=True)
    assert below(peers) == ["one", "one/a", "one/a/b"]


# Elsewhere


WITHOUT_PROC = """
import errno, json, os
from truenas_os import blocking
os.chroot(os.environ["JAIL"])
os.chdir("/")
assert not os.path.exists("/proc/self")
def points():
    return [m.mnt_point for m in blocking.mount_tree()]
def failures(*args, **kwargs):
    try:
        blocking.umount(*args, **kwargs)
    except ExceptionGroup as group:
        return {e.filename: errno.errorcode[e.errno] for e in group.exceptions}
"""


@pytest.fixture
def without_proc(mount_dir, monkeypatch):
    """Runs a script in a root without /proc."""
    jail = make(mount_dir, "jail")
    for path in ("a", "a/b", "a/b/c", "d"):
        make(jail, path)
    monkeypatch.setenv("JAIL", str(jail))
    return lambda script: json.loads(in_python(f"{WITHOUT_PROC}\nprint(json.dumps({script}))"))


def test_without_proc_a_tree_is_unmounted(without_proc):
    script = "[failures('/a', recursive=True), failures('/d'), points()]"
    assert without_proc(script) == [None, None, ["/"]]


def test_without_proc_what_is_busy_is_reported(without_proc):
    script = "[open('/a/b/c/file', 'w') and failures('/a', recursive=True), points()]"
    (_, left) = without_proc(script)
    assert left == ["/", "/d"]  # nothing held the file while it was tried
    script = "[f := open('/d/file', 'w'), failures('/d', recursive=True), points(), f.name][1:3]"
    assert without_proc(script) == [{"/d": "EBUSY"}, ["/", "/d"]]


def test_without_proc_what_is_busy_is_detached(without_proc):
    script = "[f := open('/a/b/file', 'w'), failures('/a', {}), points(), f.name][1:3]"
    options = "recursive=True, lazy_fallback=True"
    assert without_proc(script.format(options)) == [None, ["/", "/d"]]


def test_in_a_root_below_a_mount_a_tree_is_unmounted(mount_dir, monkeypatch):
    (mount_dir / "jail").mkdir()
    for path in ("a", "a/b", "c"):
        make(mount_dir / "jail", path)
    monkeypatch.setenv("JAIL", str(mount_dir / "jail"))
    script = "failures('/a', recursive=True), points()"
    assert json.loads(in_python(f"{WITHOUT_PROC}\nprint(json.dumps([{script}]))")) == [None, ["/c"]]


UNPRIVILEGED = """
import errno, json, os, sys
from truenas_os import blocking
target = sys.stdin.readline().rstrip("\\n")
def failures(**kwargs):
    try:
        blocking.umount(target, **kwargs)
    except ExceptionGroup as group:
        return {e.filename: errno.errorcode[e.errno] for e in group.exceptions}
    except OSError as e:
        return {e.filename: errno.errorcode[e.errno]}
print(json.dumps([failures(), failures(lazy=True), failures(recursive=True)]))
"""


def unprivileged(command, target):
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [*command, sys.executable, "-c", UNPRIVILEGED],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
        input=f"{target}\n".encode(),
        stdout=subprocess.PIPE,
        check=True,
    )
    return json.loads(done.stdout)


def test_who_may_not_unmount_is_told_so_for_each_mount(tree):
    command = ("setpriv", "--bounding-set", "-all", "--inh-caps", "-all")
    plain, lazy, recursive = unprivileged(command, tree / "a")
    assert plain == lazy == {f"{tree}/a": "EPERM"}
    assert recursive == {f"{tree}/a{name}": "EPERM" for name in ("", "/b", "/b/c", "/d")}
    assert len(below(tree)) == 5


def test_locked_mounts_stay(tree):
    """Those that a user namespace has inherited together can be uncovered by nobody in it."""
    command = ("unshare", "--user", "--map-root-user", "--mount")
    plain, lazy, recursive = unprivileged(command, tree / "a")
    assert plain == lazy == {f"{tree}/a": "EINVAL"}
    assert recursive == {f"{tree}/a{name}": "EINVAL" for name in ("", "/b", "/b/c", "/d")}


# By id


def test_a_mount_is_unmounted_by_its_id_wherever_it_is(mount_dir):
    mnt_id = id_of(make(mount_dir))
    (mount_dir / "elsewhere").mkdir()
    move(mount_dir / "m", mount_dir / "elsewhere")
    make(mount_dir)
    unmount(mnt_id)
    assert below(mount_dir) == ["m"]


def test_a_mount_that_is_gone_is_fine(mount_dir):
    mnt_id = id_of(make(mount_dir))
    unmount(mnt_id)
    unmount(mnt_id)
    make(mount_dir)
    unmount(mnt_id)
    assert below(mount_dir) == ["m"]


def test_a_mount_of_which_the_directory_was_renamed_is_unmounted(mount_dir):
    (mount_dir / "directory").mkdir()
    mnt_id = id_of(make(mount_dir / "directory"))
    (mount_dir / "directory").rename(mount_dir / "renamed")
    unmount(mnt_id)
    assert below(mount_dir) == []


@pytest.mark.parametrize("force", [False, True])
def test_what_is_on_top_is_not_unmounted(mount_dir, force):
    mnt_id = id_of(make(mount_dir))
    foreign = id_of(make(mount_dir))
    with pytest.raises(OSError) as refused:
        unmount(mnt_id, force=force)
    assert (refused.value.errno, refused.value.filename) == (errno.EBUSY, f"{mount_dir}/m")
    assert f"mount {foreign} covers it" in notes(refused.value)
    assert below(mount_dir) == ["m", "m"]


def test_what_hides_the_way_is_not_unmounted(mount_dir):
    make(mount_dir)
    mnt_id = id_of(make(mount_dir / "m", "inner"))
    make(mount_dir)
    make(mount_dir / "m", "inner")
    with pytest.raises(OSError) as refused:
        unmount(mnt_id)
    assert refused.value.errno == errno.EBUSY
    assert below(mount_dir) == ["m", "m/inner", "m", "m/inner"]


def test_a_mount_that_cannot_be_reached_is_ENOENT(mount_dir, monkeypatch):
    mnt_id = id_of(make(mount_dir))
    real = unmounting.statmount
    monkeypatch.setattr(unmounting, "statmount", lambda *args: real(*args)._replace(mnt_point=None))
    with pytest.raises(FileNotFoundError) as lost:
        unmount(mnt_id)
    assert "cannot be reached" in notes(lost.value)


def test_a_mount_in_use_is_EBUSY_at_its_mount_point(mount_dir):
    mnt_id = id_of(make(mount_dir))
    with busy(mount_dir / "m"):
        with pytest.raises(OSError) as refused:
            unmount(mnt_id)
    assert (refused.value.errno, refused.value.filename) == (errno.EBUSY, f"{mount_dir}/m")


@contextlib.contextmanager
def racing(syscall, nth, change):
    """Make a change in front of the nth such call, 0 being the first."""
    with faults.stopped(syscall, skip=nth) as stop:

        def interfere():
            stop.wait_reached()
            try:
                change()
            finally:
                stop.go()

        thread = threading.Thread(target=interfere)
        thread.start()
        try:
            yield
        finally:
            thread.join()


@pytest.mark.parametrize("nth", [0, 1])
def test_what_comes_on_top_at_the_last_moment_survives(mount_dir, nth):
    mnt_id = id_of(make(mount_dir))
    with racing("umount2", nth, lambda: make(mount_dir)):
        with pytest.raises(OSError) as refused:
            unmount(mnt_id)
    assert refused.value.errno == errno.EBUSY
    assert below(mount_dir) == ["m", "m"]


@pytest.mark.parametrize(
    ("syscall", "nth"), [("openat2", 0), ("statx", 0), ("umount2", 0), ("umount2", 1)]
)
def test_what_comes_in_its_place_at_the_last_moment_survives(mount_dir, syscall, nth):
    mnt_id = id_of(make(mount_dir))
    (mount_dir / "elsewhere").mkdir()

    def replace():
        move(mount_dir / "m", mount_dir / "elsewhere")
        make(mount_dir, source="foreign")

    with racing(syscall, nth, replace):
        unmount(mnt_id)
    assert below(mount_dir) == ["m"]
    assert kernel.mountinfo()[-1].source == "foreign"


def test_what_comes_in_its_place_as_it_is_detached_survives(mount_dir):
    mnt_id = id_of(make(mount_dir))
    (mount_dir / "elsewhere").mkdir()

    def replace():
        move(mount_dir / "m", mount_dir / "elsewhere")
        make(mount_dir, source="foreign")

    with busy(mount_dir / "m"), racing("umount2", 1, replace):
        blocking.umount(mount_dir / "m", lazy_fallback=True)
    assert mnt_id not in blocking.listmount()
    assert below(mount_dir) == ["m"]
    assert kernel.mountinfo()[-1].source == "foreign"


@pytest.mark.parametrize("proc", [True, False], ids=["with /proc", "without /proc"])
def test_that_another_was_detached_which_came_on_top_is_EBUSY(mount_dir, monkeypatch, proc):
    if not proc:
        monkeypatch.setattr(unmounting, "_path_of", lambda *_: None)
    mnt_id = id_of(make(mount_dir))
    with busy(mount_dir / "m"), racing("umount2", 1, lambda: make(mount_dir)):
        with pytest.raises(OSError) as failed:
            blocking.umount(mount_dir / "m", lazy_fallback=True)
    assert id_of(mount_dir / "m") == mnt_id
    assert (failed.value.errno, failed.value.filename) == (errno.EBUSY, f"{mount_dir}/m")
    assert "another came on top" in notes(failed.value)


@pytest.mark.parametrize("syscall", ["statmount", "openat2", "statx", "umount2"])
def test_a_mount_that_goes_while_it_is_unmounted_is_fine(mount_dir, syscall):
    with faults.count(syscall) as calls:
        unmount(id_of(make(mount_dir)))
    assert calls.seen
    for nth in range(calls.seen):
        mnt_id = id_of(make(mount_dir))
        with racing(syscall, nth, lambda: kernel.umount(mount_dir / "m")):
            unmount(mnt_id)
    assert below(mount_dir) == []


class Mover(threading.Thread):
    """Puts a foreign mount where others are, and takes it away again, all the time."""

    def __init__(self, mount_dir):
        super().__init__()
        self.safe, self.point = make(mount_dir, "safe", source="foreign"), mount_dir / "m"
        self.point.mkdir()
        self.on = False
        self.over = False
        self.moves = 0
        self.error = None
        self.lock = threading.Lock()

    def run(self):
        try:
            while not self.over:
                for on in (True, False):
                    with self.lock:
                        move(*((self.safe, self.point) if on else (self.point, self.safe)))
                        self.on = on
                        self.moves += 1
        except BaseException as error:
            self.error = error

    def make_below(self):
        """A mount at the point, while the foreign one is away."""
        while True:
            with self.lock:
                if self.error is not None:
                    raise self.error
                if not self.on:
                    kernel.mount("ours", self.point, "tmpfs")
                    return id_of(self.point)


def gone(mnt_id):
    try:
        unmount(mnt_id)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


def test_a_foreign_mount_survives_hundreds_of_races(mount_dir):
    mover = Mover(mount_dir)
    foreign = id_of(mover.safe)
    mover.start()
    try:
        for _ in range(300):
            mnt_id = mover.make_below()
            wait_until(lambda: gone(mnt_id), "the end of the mount")
            assert mnt_id not in blocking.listmount()
    finally:
        mover.over = True
        mover.join()
    assert mover.error is None
    assert mover.moves > 100
    assert id_of(mover.safe) == foreign
    assert below(mount_dir) == ["safe"]


def test_many_who_unmount_the_same_mount_leave_what_is_below_it(mount_dir):
    foreign = id_of(make(mount_dir))
    with ThreadPoolExecutor(4) as threads:
        for _ in range(200):
            mnt_id = id_of(make(mount_dir))
            together = threading.Barrier(4)

            def run():
                together.wait(AMPLE)
                wait_until(lambda: gone(mnt_id), "the end of the mount")

            for done in [threads.submit(run) for _ in range(4)]:
                done.result()
            assert id_of(mount_dir / "m") == foreign
    assert below(mount_dir) == ["m"]


# Failures and cancellation


CODES = (errno.EIO, errno.ENOENT, errno.ENOMEM, errno.EMFILE, errno.EINVAL, errno.EBUSY)
WAYS = {
    "plain": {},
    "lazy": {"lazy": True},
    "fallback": {"lazy_fallback": True},
    "recursive": {"recursive": True},
    "recursive fallback": {"recursive": True, "lazy_fallback": True},
    "force": {"recursive": True, "force": True},
}


def prepared(mount_dir, recursive):
    make(mount_dir)
    if recursive:
        make(mount_dir / "m", "a")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("held", [False, True], ids=["idle", "busy"])
def test_whichever_system_call_fails_no_descriptor_leaks(mount_dir, way, held):
    options = WAYS[way]
    failed = 0

    def attempt():
        prepared(mount_dir, options.get("recursive", False))
        with busy(mount_dir / "m") if held else contextlib.nullcontext():
            with contextlib.suppress(OSError, ExceptionGroup):
                blocking.umount(mount_dir / "m", **options)

    for syscall in ("listmount", "openat2", "statmount", "statx", "umount2"):
        with faults.count(syscall) as calls:
            attempt()
        with contextlib.suppress(OSError):
            kernel.umount(mount_dir / "m", kernel.MNT_DETACH)
        for nth in range(calls.seen):
            for code in CODES:
                fds = kernel.open_fds()
                with faults.failing(syscall, code, skip=nth, times=1):
                    attempt()
                failed += 1
                assert kernel.open_fds() == fds
                with contextlib.suppress(OSError):
                    kernel.umount(mount_dir / "m", kernel.MNT_DETACH)
                assert below(mount_dir) == []
    assert failed


@pytest.mark.anyio
@pytest.mark.parametrize("way", WAYS)
async def test_a_cancelled_umount_leaves_no_descriptor(mount_dir, way):
    """At each of its system calls; what was begun is done, and then the await is cancelled."""
    options = WAYS[way]
    recursive = options.get("recursive", False)
    prepared(mount_dir, recursive)
    with faults.count(None) as calls:
        await truenas_os.umount(mount_dir / "m", **options)
    assert calls.seen
    before = kernel.open_fds()
    for nth in range(calls.seen):
        prepared(mount_dir, recursive)
        with faults.stopped(None, skip=nth) as stop:
            async with anyio.create_task_group() as group:
                group.start_soon(lambda: truenas_os.umount(mount_dir / "m", **options))
                await until(stop.reached)
                group.cancel_scope.cancel()
                stop.go()
        await fds_return_to(before)
        assert below(mount_dir) == []


def test_umount_leaves_no_descriptor(face, tree):
    face.umount(tree / "e")
    fds = kernel.open_fds()
    for _ in range(20):
        make(tree, "e")
        make(tree, "e/f")
        with pytest.raises(OSError):
            face.umount(tree / "e")
        face.umount(tree / "e", recursive=True)
        with pytest.raises(OSError):
            face.umount(tree / "e", recursive=True)
    assert kernel.open_fds() == fds


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(blocking.umount, id="umount"),
        pytest.param(lambda link: blocking.umount(link, recursive=True), id="recursive"),
        pytest.param(lambda link: blocking.umount(link, lazy=True), id="lazy"),
        pytest.param(lambda link: blocking.set_attr(link, blocking.MOUNT_ATTR_NOEXEC), id="attr"),
        pytest.param(lambda link: blocking.remount(link, size="1M"), id="remount"),
        pytest.param(lambda link: blocking.mounted("tmpfs", link).__enter__(), id="mounted"),
        pytest.param(lambda link: blocking.bind("/", link).__enter__(), id="bind"),
    ],
)
@pytest.mark.parametrize("form", [str, os.fsencode])
def test_a_slash_at_the_end_makes_no_symlink_followed(mount_dir, change, form):
    make(mount_dir, "victim")
    (mount_dir / "link").symlink_to("victim")
    before = kernel.mountinfo()
    with pytest.raises(OSError) as failed:
        change(form(f"{mount_dir}/link//"))
    assert failed.value.errno in (errno.EINVAL, errno.ENOTDIR)
    assert kernel.mountinfo() == before


def test_a_slash_at_the_end_of_a_mount_point_does_no_harm(mount_dir):
    make(mount_dir)
    blocking.umount(f"{mount_dir}/m/")
    assert below(mount_dir) == []


def test_a_mount_of_another_namespace_is_not_called_unmounted(mount_dir):
    make(mount_dir)
    other = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    try:
        ours = os.stat("/proc/self/ns/mnt").st_ino
        wait_until(lambda: os.stat(f"/proc/{other.pid}/ns/mnt").st_ino != ours)
        theirs = f"/proc/{other.pid}/root{mount_dir}/m"
        with pytest.raises(OSError) as failed:
            blocking.umount(theirs, recursive=True)
        assert failed.value.errno == errno.EINVAL
        assert "not in this mount namespace" in notes(failed.value)
    finally:
        other.communicate(b"")
    assert below(mount_dir) == ["m"]


def test_a_child_that_goes_at_that_moment_does_not_let_another_be_detached(mount_dir):
    for path in ("m", "m/goes", "m/stays"):
        make(mount_dir, path)
    with ThreadPoolExecutor(1) as thread, faults.stopped("statmount") as stop:
        unmounting_it = thread.submit(blocking.umount, mount_dir / "m", lazy_fallback=True)
        stop.wait_reached()
        kernel.umount(mount_dir / "m" / "goes")
        stop.go()
        assert unmounting_it.exception().errno == errno.EBUSY
    assert below(mount_dir) == ["m", "m/stays"]
