# SPDX-License-Identifier: LGPL-3.0-or-later
"""watch_mounts: every change of mounts is told, once, and what is told makes the mount table."""

import contextlib
import functools
import itertools
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import anyio
import kernel
import pytest
import watched
from faces import Face, on_both_faces
from filesystems import IS_ROOT
from stuck import AMPLE
from watched import OFTEN, SOURCES, Replayed, caught_up, watching
from witness import bind, id_of, in_python, make

import truenas_os
from truenas_os import blocking
from truenas_os.blocking import MountEventKind, MountFilter, watcher

ATTACHED, DETACHED, MOVED, CHANGED = "attached", "detached", "moved", "changed"
PARENT = "mnt_parent_id mnt_parent_id_old"
BLOCKING = Face("blocking")
on_every_source = pytest.mark.parametrize("source", SOURCES)


# Every row of the table: what is there before, what is done, and what is told of it.


def fields(names):
    """In the order of the result."""
    return " ".join(n for n in blocking.StatmountResult._fields if n in names.split())


def row_mount(place):
    yield
    make(place, "new")
    yield [(ATTACHED, "new")]


def row_attach(place):
    (place / "new").mkdir()
    fd = watched.detached()
    yield
    watched.attach(fd, place / "new")
    yield [(ATTACHED, "new")]


def row_umount(place):
    make(place, "gone")
    yield
    kernel.umount(place / "gone")
    yield [(DETACHED, "gone")]


def row_expiry(place):
    make(place, "gone")
    with pytest.raises(BlockingIOError):
        kernel.umount(place / "gone", 4)  # MNT_EXPIRE
    yield
    kernel.umount(place / "gone", 4)
    yield [(DETACHED, "gone")]


def row_umount_then_mount_at_the_same_place(place):
    make(place, "same")
    before = id_of(place / "same")
    yield
    kernel.umount(place / "same")
    make(place, "same")
    assert id_of(place / "same") != before
    yield [(ATTACHED, "same"), (DETACHED, "same")]


def moved_tree(place):
    make(place / "a", "b")
    make(place / "a" / "b", "c")
    (place / "elsewhere").mkdir()


def row_move(place):
    make(place, "a")
    moved_tree(place)
    yield
    kernel.mount(place / "a" / "b", place / "elsewhere", None, kernel.MS_MOVE)
    yield [(MOVED, "elsewhere", f"{PARENT} mnt_point"), (MOVED, "c", "mnt_point")]


def row_move_mount(place):
    (place / "a").mkdir()
    moved_tree(place)
    yield
    watched.move_mount(place / "a" / "b", place / "elsewhere")
    yield [(MOVED, "elsewhere", "mnt_point"), (MOVED, "c", "mnt_point")]


def row_mount_setattr(place):
    make(place, "m")
    yield
    watched.setattr_(place / "m", attr_set=watched.RDONLY | watched.NOSUID)
    yield [(CHANGED, "m", "mnt_attr")]


def row_bind_remount(place):
    make(place, "m")
    yield
    kernel.mount(None, place / "m", None, kernel.MS_REMOUNT | kernel.MS_BIND | watched.NOSUID)
    yield [(CHANGED, "m", "mnt_attr")]


def row_remount(place):
    make(place, "m")
    yield
    kernel.mount(None, place / "m", None, kernel.MS_REMOUNT | kernel.MS_RDONLY, b"size=1m")
    yield [(CHANGED, "m", "mnt_attr mnt_opts sb_flags opt_array")]


def row_reconfigure(place):
    make(place, "m")
    bind(place / "m", make(place, "bound"))
    yield
    watched.reconfigure(place / "m", "ro")
    yield [(CHANGED, "m", "sb_flags"), (CHANGED, "bound", "sb_flags")]


def row_propagation_by_mount_setattr(place):
    make(place, "m")
    yield
    watched.setattr_(place / "m", propagation=kernel.MS_SHARED)
    yield [(CHANGED, "m", "mnt_propagation mnt_peer_group")]


def row_propagation_by_mount(place):
    make(place, "m")
    yield
    kernel.mount(None, place / "m", None, kernel.MS_SHARED)
    yield [(CHANGED, "m", "mnt_propagation mnt_peer_group")]


def row_slave(place):
    kernel.mount(None, make(place, "m"), None, kernel.MS_SHARED)
    bind(place / "m", make(place, "slave"))
    yield
    kernel.mount(None, place / "slave", None, kernel.MS_SLAVE)
    yield [(CHANGED, "slave", "mnt_propagation mnt_peer_group mnt_master propagate_from")]


def row_set_group(place):
    make(place, "m")
    bind(place / "m", make(place, "bound"))
    kernel.mount(None, place / "m", None, kernel.MS_SHARED)
    yield
    watched.move_mount(place / "m", place / "bound", watched.SET_GROUP)
    yield [(CHANGED, "bound", "mnt_propagation mnt_peer_group")]


def row_bind(place):
    make(place, "m")
    (place / "bound").mkdir()
    yield
    bind(place / "m", place / "bound")
    yield [(ATTACHED, "bound")]


def row_rbind(place):
    make(make(place, "m"), "inner")
    (place / "bound").mkdir()
    yield
    kernel.mount(place / "m", place / "bound", None, kernel.MS_BIND | kernel.MS_REC)
    yield [(ATTACHED, "bound"), (ATTACHED, "inner")]


def row_overmount(place):
    make(place, "m")
    yield
    make(place, "m")
    yield [(ATTACHED, "m")]


def row_beneath(place):
    make(place, "m")
    fd = watched.detached()
    yield
    watched.attach(fd, place / "m", watched.BENEATH)
    yield [(ATTACHED, "m"), (MOVED, "m", PARENT)]


def row_rename_above(place):
    (place / "above").mkdir()
    make(make(place / "above", "m"), "inner")
    yield
    (place / "above").rename(place / "renamed")
    yield [(MOVED, "m", "mnt_point"), (MOVED, "inner", "mnt_point")]


def row_unlink_of_a_source(place):
    (place / "source").mkdir()
    bind(place / "source", make(place, "bound"))
    yield
    (place / "source").rmdir()
    yield [(CHANGED, "bound", "mnt_root")]


def row_rename_of_a_source(place):
    (place / "source").mkdir()
    bind(place / "source", make(place, "bound"))
    yield
    (place / "source").rename(place / "renamed")
    yield [(CHANGED, "bound", "mnt_root")]


def row_lazy_umount_of_a_tree(place):
    make(make(make(place, "a"), "b"), "c")
    yield
    kernel.umount(place / "a", kernel.MNT_DETACH)
    yield [(DETACHED, "a"), (DETACHED, "b"), (DETACHED, "c")]


def peers(place):
    kernel.mount(None, make(place, "m"), None, kernel.MS_SHARED)
    (place / "peer").mkdir()
    bind(place / "m", place / "peer")


def row_propagated_mount(place):
    peers(place)
    yield
    make(place / "m", "inner")
    yield [(ATTACHED, "inner"), (ATTACHED, "inner")]


def row_propagated_umount(place):
    peers(place)
    make(place / "m", "inner")
    yield
    kernel.umount(place / "peer" / "inner")
    yield [(DETACHED, "inner"), (DETACHED, "inner")]


ROWS = {name[4:]: row for name, row in list(globals().items()) if name.startswith("row_")}
each_row = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)


async def check_row(face, place, row, **options):
    steps = row(place)
    next(steps)
    async with watching(face, interval=OFTEN, **options) as watch:
        expected = next(steps)
        await watch.catch_up()
        make(place, "last")
        await watch.catch_up()
    told = [(kind, point, fields("".join(rest))) for kind, point, *rest in expected]
    assert watch.seen() == sorted([*told, (ATTACHED, "last", "")])


@on_every_source
@each_row
def test_a_change_is_told_once_with_what_differs_whatever_wakes(mount_dir, row, source):
    BLOCKING.run(functools.partial(check_row, BLOCKING, mount_dir, row, wakeups=source))


@each_row
@on_both_faces
async def test_a_change_is_told_once_with_what_differs_on_every_face(face, mount_dir, row):
    await check_row(face, mount_dir, row)


# What needs more than one call to show


def telling(place, **options):
    """A watch of the blocking face that waits for its batches, but not without end."""
    return blocking.watch_mounts(**{"interval": OFTEN, "timeout": AMPLE} | options)


@on_every_source
def test_a_mount_that_is_attached_nowhere_is_not_told(mount_dir, source):
    with telling(mount_dir, wakeups=source) as changes:
        replayed = Replayed(changes.snapshot)
        os.close(watched.detached())
        make(mount_dir, "last")
        caught_up(changes, replayed)
    assert replayed.seen() == [(ATTACHED, "last", "")]


@on_both_faces
async def test_what_came_and_went_is_told_by_fanotify_alone(face, mount_dir):
    for source in SOURCES:
        async with watching(face, interval=OFTEN, wakeups=source) as watch:
            make(mount_dir, "short")
            gone = id_of(mount_dir / "short")
            kernel.umount(mount_dir / "short")
            make(mount_dir, source)
            await watch.catch_up()
        seen = [event for event in watch.events if event.new is None]
        if source == "fanotify":
            (event,) = seen
            assert event[:5] == (MountEventKind.TRANSIENT, gone, None, None, ())
        else:
            assert seen == []


def test_fanotify_tells_who_attached_moved_and_detached(mount_dir):
    (mount_dir / "a").mkdir()
    (mount_dir / "b").mkdir()
    with telling(mount_dir, wakeups="fanotify") as changes:
        for command in (
            ["mount", "-t", "tmpfs", "tmpfs", mount_dir / "a"],
            ["mount", "--move", mount_dir / "a", mount_dir / "b"],
            ["umount", mount_dir / "b"],
        ):
            with subprocess.Popen(command) as process:
                pass
            (event,) = next(changes)
            # An ordinary user's listener is told of no other process.
            assert event.pid == (process.pid if IS_ROOT else None)
        kernel.mount("tmpfs", mount_dir / "a", "tmpfs")
        assert [event.pid for event in next(changes)] == [os.getpid()]
        watched.setattr_(mount_dir / "a", attr_set=watched.RDONLY)
        assert [event.pid for event in next(changes)] == [None]


@on_every_source
def test_pivot_root_tells_every_mount_with_its_new_place(mount_dir, source):
    number = 155 if os.uname().machine == "x86_64" else 41
    script = f"""if True:
        import os, kernel
        from pathlib import Path
        from truenas_os import blocking
        from watched import Replayed, caught_up

        root = Path("{mount_dir}", "root")
        root.mkdir()
        kernel.mount("/", root, None, kernel.MS_BIND | kernel.MS_REC)
        old = Path(str(root) + "{mount_dir}", "old")
        old.mkdir()
        with blocking.watch_mounts(wakeups={source!r}, interval=0.1, timeout={AMPLE}) as changes:
            replayed = Replayed(changes.snapshot)
            assert kernel._libc.syscall({number}, os.fsencode(root), os.fsencode(old)) == 0
            os.chdir("/")
            caught_up(changes, replayed)
            told = [event.mnt_id for event in replayed.events]
            assert sorted(told) == sorted(replayed.mounts)
            print(*{{event.kind.value for event in replayed.events}})
            kernel.umount("{mount_dir}/old", kernel.MNT_DETACH)
            caught_up(changes, replayed)
            print(*{{event.kind.value for event in replayed.batches[-1]}})
    """
    assert in_python(unshared(script)).split() == [MOVED, DETACHED]


def unshared(script):
    """A script that runs in a mount namespace of its own, which the parent's mounts do not join."""
    begin = "import kernel; kernel._call(kernel._libc.unshare, kernel.CLONE_NEWNS); "
    return begin + f"exec({script!r})"


def test_events_of_one_change_come_in_an_order_that_can_be_followed(mount_dir):
    make(make(make(mount_dir, "a"), "b"), "c")
    with telling(mount_dir) as changes:
        kernel.umount(mount_dir / "a", kernel.MNT_DETACH)
        make(make(mount_dir, "d"), "e")
        events = next(changes)
    names = [os.path.basename((event.new or event.old).mnt_point) for event in events]
    assert names == ["c", "b", "a", "d", "e"]


# What is told makes the mount table


class Mess:
    """Random changes below a directory."""

    def __init__(self, place, seed):
        self.place, self.random = place, random.Random(seed)
        self.names = itertools.count()

    def directory(self):
        """A new one, on any of the mounts."""
        path = self.random.choice(self.points()) / f"d{next(self.names)}"
        path.mkdir()
        return path

    def points(self):
        points = {line.mount_point for line in kernel.mountinfo()}
        inside = [p for p in sorted(points) if p.startswith(f"{self.place}/")]
        return [self.place] + [type(self.place)(p) for p in inside if os.access(p, os.W_OK)]

    def any(self):
        return self.random.choice(self.points()[1:] or [self.make()])

    def make(self):
        path = self.directory()
        kernel.mount("tmpfs", path, "tmpfs")
        return path

    def bind(self):
        kernel.mount(self.any(), self.directory(), None, kernel.MS_BIND)

    def rbind(self):
        if len(self.points()) < 40:
            kernel.mount(self.any(), self.directory(), None, kernel.MS_BIND | kernel.MS_REC)

    def overmount(self):
        kernel.mount("tmpfs", self.any(), "tmpfs")

    def beneath(self):
        watched.attach(watched.detached(), self.any(), watched.BENEATH)

    def umount(self):
        kernel.umount(self.any(), self.random.choice([0, kernel.MNT_DETACH]))

    def move(self):
        kernel.mount(self.any(), self.directory(), None, kernel.MS_MOVE)

    def propagation(self):
        kind = self.random.choice([kernel.MS_SHARED, kernel.MS_PRIVATE, kernel.MS_SLAVE])
        kernel.mount(None, self.any(), None, kind | self.random.choice([0, kernel.MS_REC]))

    def propagation_by_setattr(self):
        kinds = [kernel.MS_SHARED, kernel.MS_SLAVE, kernel.MS_UNBINDABLE, kernel.MS_PRIVATE]
        watched.setattr_(self.any(), propagation=self.random.choice(kinds))

    def set_group(self):
        watched.move_mount(self.any(), self.any(), watched.SET_GROUP)

    def attributes(self):
        bits = self.random.choice([{"attr_set": watched.NOSUID}, {"attr_clr": watched.NOSUID}])
        watched.setattr_(self.any(), **bits)

    def remount(self):
        kernel.mount(None, self.any(), None, kernel.MS_REMOUNT, b"size=%dm" % next(self.names))

    def rename(self):
        directories = [d for d in self.any().parent.glob("d*") if d.is_dir()]
        if directories:
            path = self.random.choice(directories)
            path.rename(path.with_name(f"d{next(self.names)}"))

    def change(self):
        """Change something; what the kernel refuses is no change."""
        with contextlib.suppress(OSError):
            self.random.choice(CHANGES)(self)


CHANGES = [
    *(Mess.make, Mess.bind, Mess.rbind, Mess.overmount, Mess.beneath, Mess.umount, Mess.move),
    *(Mess.propagation, Mess.propagation_by_setattr, Mess.set_group),
    *(Mess.attributes, Mess.remount, Mess.rename),
]


@on_every_source
@pytest.mark.parametrize("seed", range(4))
def test_batches_applied_to_the_snapshot_make_the_mount_table(mount_dir, source, seed):
    mess = Mess(mount_dir, seed)
    with telling(mount_dir, wakeups=source) as changes:
        replayed = Replayed(changes.snapshot)
        for _ in range(40):
            for _ in range(mess.random.choice([1, 1, 1, 2, 5])):
                mess.change()
            caught_up(changes, replayed)
        make(mount_dir, "last")
        caught_up(changes, replayed)
        fresh = {mount.mnt_id: mount for mount in blocking.mount_tree()}
        assert replayed.mounts == fresh
    assert len(replayed.batches) > 15


@on_both_faces
async def test_batches_applied_to_the_snapshot_make_the_mount_table_on_every_face(face, mount_dir):
    mess = Mess(mount_dir, repr(face))
    async with watching(face, interval=OFTEN) as watch:
        for _ in range(30):
            mess.change()
            await watch.catch_up()


@on_every_source
def test_nothing_is_missed_or_told_twice_while_a_watch_begins(mount_dir, source):
    finished = threading.Event()

    def churn():
        for number in itertools.count():
            if finished.is_set():
                return
            make(mount_dir, str(number % 7))
            if number % 3:
                kernel.umount(mount_dir / str(number % 7))
            if number % 40 == 39:
                kernel.umount(mount_dir, kernel.MNT_DETACH)
                kernel.mount("tmpfs", mount_dir, "tmpfs")

    thread = threading.Thread(target=churn)
    for _ in range(30):
        finished.clear()
        thread = threading.Thread(target=churn)
        thread.start()
        try:
            with telling(mount_dir, wakeups=source) as changes:
                replayed = Replayed(changes.snapshot)
                replayed.apply(next(changes))
                finished.set()
                thread.join()
                make(mount_dir, "last")
                caught_up(changes, replayed)
        finally:
            finished.set()
            thread.join()


# Storms

STORM = 5000


@contextlib.contextmanager
def storm(place, count=STORM):
    """A process that mounts and unmounts so often as soon as it can, and then makes a last mount.

    Every hundredth mount stays.
    """
    script = f"""if True:
        import ctypes
        mount, umount = ctypes.CDLL(None).mount, ctypes.CDLL(None).umount2
        target = {os.fsencode(place / "target")!r}
        for number in range({count}):
            assert mount(b"storm", target, b"tmpfs", 0, None) == 0
            if number % 100:
                assert umount(target, 0) == 0
        assert mount(b"last", target, b"tmpfs", 0, None) == 0
    """
    (place / "target").mkdir()
    with subprocess.Popen([sys.executable, "-c", script]) as process:
        try:
            yield process
        finally:
            process.wait()
    assert process.returncode == 0


@on_both_faces
async def test_in_a_storm_no_mount_is_missed_and_batches_gather(face, mount_dir):
    async with watching(face, wakeups="fanotify") as watch:
        with storm(mount_dir) as process:
            while "last" not in {mount.sb_source for mount in watch.mounts.values()}:
                await watch.next()
            process.wait()
        await watch.catch_up()
    kinds = Counter(event.kind for event in watch.events)
    short = {event.mnt_id for event in watch.events if event.new is None}
    if not kinds[MountEventKind.RESYNC]:
        assert len(short) == STORM - STORM // 100
        assert kinds[MountEventKind.ATTACHED] == STORM // 100 + 1 + kinds[MountEventKind.DETACHED]
        # A look at the whole table may have come before the kernel's word.
        assert {event.pid for event in watch.events} <= {process.pid, None}
    assert len(watch.batches) < STORM / 10


@on_every_source
def test_after_a_storm_the_mounts_are_right_whatever_wakes(mount_dir, source):
    with telling(mount_dir, wakeups=source) as changes:
        replayed = Replayed(changes.snapshot)
        with storm(mount_dir):
            while "last" not in {mount.sb_source for mount in replayed.mounts.values()}:
                replayed.apply(next(changes))
        caught_up(changes, replayed)
    stay = [m for m in replayed.mounts.values() if m.sb_source in ("storm", "last")]
    assert len(stay) == STORM // 100 + 1


@pytest.mark.anyio
async def test_the_loop_goes_on_in_a_storm(mount_dir):
    """The consumer is slow in no other way than by what it does itself."""
    beats = 0

    async def beat():
        nonlocal beats
        while True:
            await anyio.sleep(0)
            beats += 1

    between = []
    async with truenas_os.watch_mounts() as changes, anyio.create_task_group() as group:
        replayed = Replayed(changes.snapshot)
        group.start_soon(beat)
        with storm(mount_dir):
            with anyio.fail_after(AMPLE):
                while "last" not in {mount.sb_source for mount in replayed.mounts.values()}:
                    before = beats
                    replayed.apply(await anext(changes))
                    between.append(beats - before)
        group.cancel_scope.cancel()
    # It beats more than once for each batch: nothing waited on the loop for the next one.
    assert sum(count > 1 for count in between) > len(between) / 2


@on_both_faces
async def test_a_slow_consumer_gets_one_batch_with_the_net_effect(face, mount_dir):
    make(mount_dir, "gone")
    make(mount_dir, "changed")
    async with watching(face, wakeups="fanotify") as watch:
        for _ in range(50):
            make(mount_dir, "short")
            kernel.umount(mount_dir / "short")
        for number in range(100):
            make(mount_dir, str(number))
        for flag in (watched.NOSUID, watched.RDONLY):
            watched.setattr_(mount_dir / "changed", attr_set=flag)
        kernel.umount(mount_dir / "gone")
        await watch.catch_up()
    kinds = Counter(event.kind.value for event in watch.events)
    assert kinds == {"transient": 50, ATTACHED: 100, CHANGED: 1, DETACHED: 1}
    assert len(watch.batches) <= 2


def queue_limit():
    return int(Path("/proc/sys/fs/fanotify/max_queued_events").read_text())


@on_both_faces
async def test_an_overflow_is_told_and_what_follows_is_right(face, mount_dir):
    kept = make(mount_dir, "kept")
    make(mount_dir, "gone")
    target = os.fsencode(make(mount_dir, "target"))
    async with watching(face, wakeups="fanotify", interval=None) as watch:
        for _ in range(queue_limit() // 2 + 10):
            kernel._libc.mount(b"short", target, b"tmpfs", 0, None)
            kernel._libc.umount2(target, 0)
        # Of these nothing is in the queue.
        kernel.umount(mount_dir / "gone")
        watched.setattr_(kept, attr_set=watched.RDONLY)
        make(mount_dir, "new")
        first, *rest = await watch.next()
        assert first.kind is MountEventKind.RESYNC
        told = [(e.kind.value, e.mnt_id) for e in rest if e.kind is not MountEventKind.TRANSIENT]
        assert [kind for kind, _ in told] == [DETACHED, CHANGED, ATTACHED]
        assert watch.is_true()
        make(mount_dir, "last")
        await watch.catch_up()
    assert [event.kind.value for event in watch.batches[-1]] == [ATTACHED]
    assert sum(event.kind is MountEventKind.RESYNC for event in watch.events) == 1


# Options


@on_both_faces
async def test_a_filter_passes_what_moves_in_and_out(face, mount_dir):
    for name in ("in", "in/a", "in/b", "out", "out/a"):
        (mount_dir / name).mkdir()
    async with watching(
        face, interval=OFTEN, mount_filter=MountFilter(under=mount_dir / "in")
    ) as watch:
        make(mount_dir / "out", "a")
        watched.move_mount(mount_dir / "out" / "a", mount_dir / "in" / "a")
        (event,) = await watch.next_raw()
        assert event.kind is MountEventKind.ATTACHED
        watched.move_mount(mount_dir / "in" / "a", mount_dir / "in" / "b")
        (event,) = await watch.next_raw()
        assert event.kind is MountEventKind.MOVED
        watched.move_mount(mount_dir / "in" / "b", mount_dir / "out" / "a")
        (event,) = await watch.next_raw()
        assert (event.kind, event.new.mnt_point) == (
            MountEventKind.MOVED,
            f"{mount_dir}/out/a",
        )
        kernel.umount(mount_dir / "out" / "a")
        make(mount_dir / "in", "b")
        (event,) = await watch.next_raw()
        assert (event.kind, event.new.mnt_point) == (
            MountEventKind.ATTACHED,
            f"{mount_dir}/in/b",
        )


@on_both_faces
async def test_a_filter_may_be_any_function(face, mount_dir):
    def wanted(mount):
        return mount.sb_source == "wanted"

    async with watching(face, mount_filter=wanted) as watch:
        make(mount_dir, "other")
        make(mount_dir, "one", source="wanted")
        (event,) = await watch.next_raw()
    assert event.new.sb_source == "wanted"


@on_both_faces
async def test_a_filter_that_raises_ends_no_watch(face, mount_dir):
    answers = iter([0])

    def wanted(mount):
        return 1 // next(answers, 1)

    async with watching(face, mount_filter=wanted, interval=None) as watch:
        make(mount_dir, "one")
        with pytest.raises(ZeroDivisionError):
            await watch.next_raw()
        (event,) = await watch.next_raw()
    assert event.new.mnt_point == f"{mount_dir}/one"


@on_both_faces
async def test_the_first_batch_has_the_existing_mounts_if_that_is_wanted(face, mount_dir):
    make(mount_dir, "a")
    make(mount_dir, "b")
    wanted = MountFilter(under=mount_dir)
    async with watching(face, initial=True, mount_filter=wanted) as watch:
        batch = await watch.next_raw()
        assert {event.kind for event in batch} == {MountEventKind.ATTACHED}
        assert [event.new for event in batch] == list(watch.watch.snapshot.under(mount_dir))
        make(mount_dir, "c")
        (event,) = await watch.next_raw()
        assert event.new.mnt_point == f"{mount_dir}/c"


@on_both_faces
async def test_a_mount_made_while_a_watch_begins_is_told_once(face, mount_dir, monkeypatch):
    look = watcher.MountWatcher._first_look

    def look_and_mount(self):
        found = look(self)
        make(mount_dir, "meanwhile")
        return found

    monkeypatch.setattr(watcher.MountWatcher, "_first_look", look_and_mount)
    async with watching(face, initial=True) as watch:
        before = {mount.mnt_id: mount for mount in watch.watch.snapshot}
        assert {event.mnt_id: event.new for event in await watch.next_raw()} == before
        await watch.catch_up()
    assert watch.seen() == [(ATTACHED, "meanwhile", "")]


@on_both_faces
async def test_debounce_gathers_what_comes_in_a_row(face, mount_dir):
    rows = threading.Thread(target=lambda: [make(mount_dir, str(n)) for n in range(20)])
    async with watching(face, debounce=0.5) as watch:
        rows.start()
        await watch.catch_up()
        while not watch.batches or len(watch.events) < 20:
            await watch.next()
    rows.join()
    assert len(watch.batches) == 1


def test_while_changes_gather_there_is_little_to_do(mount_dir, monkeypatch):
    polls = []
    poll = watcher.MountWatcher.poll
    monkeypatch.setattr(watcher.MountWatcher, "poll", lambda self: polls.append(1) or poll(self))
    with telling(mount_dir, debounce=0.5, interval=None) as changes:
        make(mount_dir)
        next(changes)
    assert len(polls) < 10


@on_both_faces
async def test_a_mask_leaves_out_what_is_not_wanted(face, mount_dir):
    target = make(mount_dir)
    async with watching(face, interval=OFTEN, mask=0) as watch:
        watched.reconfigure(target, "ro")  # of the superblock, which is not asked for
        make(mount_dir, "new")
        (event,) = await watch.next()
    assert event.new.fs_type is None
    assert event.new.mnt_point == f"{mount_dir}/new"


@pytest.mark.parametrize("source", ["fanotify", "mountinfo"])
def test_without_an_interval_the_silent_changes_wait_for_the_next_wakeup(mount_dir, source):
    target = make(mount_dir)
    with telling(mount_dir, interval=None, wakeups=source, timeout=0.3) as changes:
        replayed = Replayed(changes.snapshot)
        assert next(changes) == ()
        watched.reconfigure(target, "ro")
        assert next(changes) == ()
        make(mount_dir, "new")
        while not replayed.is_true():
            replayed.apply(next(changes))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"wakeups": "inotify"}, "wakeups"),
        ({"wakeups": ""}, "wakeups"),
        ({"wakeups": "poll", "interval": None}, "nothing would be seen"),
        ({"interval": 0}, "interval"),
        ({"interval": -1}, "interval"),
        ({"interval": float("nan")}, "interval"),
        ({"debounce": -0.1}, "debounce"),
        ({"mask": -1}, "mask"),
        ({"mask": 1 << 64}, "mask"),
        ({"debounce": float("nan")}, "debounce"),
        ({"wakeups": "mountinfo", "mnt_ns": 0}, "namespace"),
    ],
    ids=str,
)
def test_arguments_that_make_no_sense_are_refused_at_once(options, message):
    for face in (truenas_os, blocking):
        with pytest.raises(ValueError, match=message):
            face.watch_mounts(**options)


@pytest.mark.parametrize("interval", [1e9, float("inf"), None])
def test_an_interval_may_be_very_long(mount_dir, interval):
    with telling(mount_dir, interval=interval, timeout=1e9) as changes:
        threading.Timer(0.1, make, [mount_dir]).start()
        assert [event.kind.value for event in next(changes)] == [ATTACHED]


@on_both_faces
async def test_polling_can_be_forced_from_outside(face, mount_dir, monkeypatch):
    monkeypatch.setenv("TRUENAS_OS_FORCE_POLLING", "1")
    async with watching(face, interval=OFTEN) as watch:
        assert watch.watch.wakeup_source == "poll"
        make(mount_dir)
        await watch.catch_up()
    async with watching(face, wakeups="mountinfo") as watch:
        assert watch.watch.wakeup_source == "mountinfo"


@on_both_faces
async def test_the_best_source_is_taken_and_told(face):
    async with watching(face) as watch:
        assert watch.watch.wakeup_source == "fanotify"
    for source in SOURCES:
        async with watching(face, wakeups=source) as watch:
            assert watch.watch.wakeup_source == source


def test_a_timeout_without_a_change_gives_an_empty_batch(mount_dir):
    with blocking.watch_mounts(timeout=0.05) as changes:
        assert next(changes) == ()
        make(mount_dir)
        assert len(next(changes)) == 1


@pytest.mark.parametrize("timeout", [0, -1])
def test_without_time_to_wait_what_has_happened_is_told_all_the_same(mount_dir, timeout):
    with blocking.watch_mounts(timeout=timeout) as changes:
        make(mount_dir)
        assert len(next(changes)) == 1
        assert next(changes) == ()


# Elsewhere


@pytest.mark.parametrize("wakeups", [None, "fanotify", "poll"])
def test_another_namespace_is_watched_by_its_descriptor(mount_dir, wakeups):
    script = "while read line; do eval $line; echo; done"
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", f"echo; {script}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:

        def do(line):
            child.stdin.write(f"{line}\n".encode())
            child.stdin.flush()
            assert child.stdout.readline() == b"\n"

        assert child.stdout.readline() == b"\n"
        (mount_dir / "there").mkdir()
        namespace = open(f"/proc/{child.pid}/ns/mnt")
        with namespace, telling(mount_dir, mnt_ns=namespace, wakeups=wakeups) as changes:
            namespace.close()
            make(mount_dir, "here")
            do(f"mount -t tmpfs theirs {mount_dir}/there")
            (event,) = next(changes)
            assert event.kind is MountEventKind.ATTACHED
            assert event.new.sb_source == "theirs"
            do(f"mount -o remount,bind,ro {mount_dir}/there")
            (event,) = next(changes)
            assert (event.kind, event.fields) == (MountEventKind.CHANGED, ("mnt_attr",))
            do(f"umount {mount_dir}/there")
            (event,) = next(changes)
            assert event.kind is MountEventKind.DETACHED
            assert len(changes.snapshot) > 1
        child.stdin.close()


ELSEWHERE = """if True:
    import os, kernel, watched
    from pathlib import Path
    from witness import make
    from truenas_os import blocking

    {}
    with blocking.watch_mounts(interval=0.1, timeout=30) as changes:
        print(changes.wakeup_source)
        make(place, "new")
        (event,) = next(changes)
        print(event.kind.value, event.new.mnt_point)
        kernel.mount(None, place / "new", None, kernel.MS_SHARED)
        (event,) = next(changes)
        print(event.kind.value, *event.fields)
        kernel.umount(place / "new")
        (event,) = next(changes)
        print(event.kind.value)
"""
TOLD_ELSEWHERE = [ATTACHED, "{}/new", CHANGED, "mnt_propagation", "mnt_peer_group", DETACHED]


def test_without_proc_every_mount_is_asked_about(mount_dir):
    place = f"place = Path({str(mount_dir)!r})\n    kernel.mount('none', '/proc', 'tmpfs')"
    source, *told = in_python(unshared(ELSEWHERE.format(place))).split()
    assert source == "poll"
    assert told == [text.format(mount_dir) for text in TOLD_ELSEWHERE]


def test_in_a_chroot_what_is_below_its_root_is_told(mount_dir):
    root = make(mount_dir, "root")
    (root / "proc").mkdir()
    enter = f"""place = Path("/")
    kernel.mount("/proc", "{root}/proc", None, kernel.MS_BIND | kernel.MS_REC)
    os.chroot({str(root)!r})
    os.chdir("/")
    """
    source, *told = in_python(unshared(ELSEWHERE.format(enter))).split()
    assert source == "fanotify"
    assert told == [text.format("") for text in TOLD_ELSEWHERE]


def test_the_root_of_a_user_namespace_is_woken_by_fanotify(mount_dir):
    place = f"place = Path({str(mount_dir)!r})"
    command = ["unshare", "--user", "--map-root-user", "--mount", sys.executable, "-c"]
    paths = {"PYTHONPATH": os.path.dirname(__file__)}
    done = subprocess.run(
        [*command, ELSEWHERE.format(place)], env=os.environ | paths, stdout=subprocess.PIPE
    )
    source, *told = done.stdout.decode().split()
    assert source == "fanotify"
    assert told == [text.format(mount_dir) for text in TOLD_ELSEWHERE]


def test_who_has_no_privileges_is_woken_by_mountinfo():
    # The interpreter may be where only root can read: it gives up its privileges once it has begun.
    script = "import ctypes\nfrom truenas_os import blocking\n"
    script += "libc, none = ctypes.CDLL(None), (ctypes.c_uint32 * 6)()\n"
    script += "header = (ctypes.c_uint32 * 2)(0x20080522, 0)\n"
    script += "assert libc.capset(header, none) == 0\n"
    script += "with blocking.watch_mounts() as c: print(c.wakeup_source, len(c.snapshot))\n"
    script += "try: blocking.watch_mounts(wakeups='fanotify').__enter__()\n"
    script += "except OSError as error: print(error.errno, error.__notes__)\n"
    first, second = in_python(script).splitlines()
    assert first == f"mountinfo {len(kernel.mountinfo())}"
    assert second.startswith("1 ['mount events need Linux 6.15")


@pytest.mark.parametrize("source", ["fanotify", "mountinfo", "poll"])
def test_a_carriage_return_in_a_name_is_no_end_of_a_line(mount_dir, source):
    names = ["a\rb", "\r", "1 2\r3"]
    with blocking.watch_mounts(wakeups=source, interval=0.05, timeout=AMPLE) as changes:
        for name in names:
            make(mount_dir, name, source="with\rreturn")
            (event,) = next(changes)
            assert event.new.mnt_point == f"{mount_dir}/{name}"
            time.sleep(0.06)  # until the whole table has been looked at
            kernel.mount(None, mount_dir / name, None, kernel.MS_REMOUNT | kernel.MS_BIND | 1)
            (event,) = next(changes)
            assert (event.fields, event.new.mnt_id) == (("mnt_attr",), id_of(mount_dir / name))
