# SPDX-License-Identifier: LGPL-3.0-or-later
"""The difference between two looks at the mounts, filters, and what is read from fanotify."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_trees import made
from watched import Replayed

from truenas_os import blocking
from truenas_os.blocking import MountEventKind, MountFilter, events
from truenas_os.blocking.events import MountChanges, parsed

ATTACH, DETACH, OVERFLOW = 0x1000000, 0x2000000, 0x4000
Kind = MountEventKind


def mount(mnt_id, parent=1, point="/", **fields):
    return made(mnt_id, parent, point, mnt_parent_id_old=parent, **fields)


def kinds(batch):
    return [(event.kind, event.mnt_id) for event in batch]


# What has changed

somehow = st.builds(
    mount,
    st.integers(1, 6),
    st.integers(1, 3),
    st.sampled_from(["/", "/a", "/a/b"]),
    mnt_attr=st.integers(0, 1),
)
looks = st.lists(st.lists(somehow, unique_by=lambda m: m.mnt_id), min_size=1)


@given(looks, st.data())
def test_events_applied_to_what_was_there_make_what_is_there(looks, data):
    changes, replayed = MountChanges(looks[0]), Replayed(looks[0])
    for look in looks[1:]:
        there = {m.mnt_id: m for m in look}
        for mnt_id in changes.mounts.keys() - there.keys():
            changes.is_gone(mnt_id)
        for each in look:
            changes.is_there(each)
        if data.draw(st.booleans()):
            replayed.apply(tuple(e for e in changes.take() if e.kind is not Kind.TRANSIENT))
    replayed.apply(tuple(e for e in changes.take() if e.kind is not Kind.TRANSIENT))

    assert replayed.mounts == {m.mnt_id: m for m in looks[-1]}
    assert not changes
    assert changes.take() == ()


def test_what_is_as_it_was_is_not_told():
    one = mount(1)
    changes = MountChanges([one])
    changes.is_there(one._replace(mnt_attr=1))
    changes.is_there(one)
    assert changes
    assert changes.take() == ()
    assert not changes


def test_a_mount_that_was_seen_while_it_came_and_went_is_told_with_what_was_seen():
    changes = MountChanges([])
    changes.is_there(mount(1))
    changes.is_gone(1)
    (event,) = changes.take()
    assert event == (Kind.TRANSIENT, 1, mount(1), None, (), None)


def test_a_mount_that_nobody_saw_is_told_by_its_id_once():
    changes = MountChanges([])
    changes.came_and_went(1)
    changes.came_and_went(1)
    changes.acted(1, 42)
    assert changes.take() == ((Kind.TRANSIENT, 1, None, None, (), 42),)


def test_what_is_gone_is_told_first_and_what_is_new_last():
    changes = MountChanges([mount(1), mount(2), mount(3)])
    changes.is_there(mount(5))
    changes.is_there(mount(4))
    changes.is_there(mount(3, point="/elsewhere"))
    changes.is_gone(1)
    changes.is_gone(2)
    assert kinds(changes.take()) == [
        *((Kind.DETACHED, 2), (Kind.DETACHED, 1)),
        *((Kind.MOVED, 3), (Kind.ATTACHED, 4), (Kind.ATTACHED, 5)),
    ]


def test_a_mount_that_moved_and_changed_is_told_once_with_all_that_differs():
    changes = MountChanges([mount(1)])
    changes.is_there(mount(1, point="/a", mnt_attr=1))
    (event,) = changes.take()
    assert event.kind is Kind.MOVED
    assert event.fields == ("mnt_point", "mnt_attr")
    assert (event.old, event.new) == (mount(1), mount(1, point="/a", mnt_attr=1))


def test_an_overflow_is_told_first_and_whatever_the_filter():
    changes = MountChanges([])
    changes.came_and_went(9)
    changes.lost()
    changes.is_there(mount(1))
    assert kinds(changes.take()) == [(Kind.RESYNC, None), (Kind.ATTACHED, 1)]
    changes.lost()
    changes.is_there(mount(2))
    assert kinds(changes.take(lambda mount: False)) == [(Kind.RESYNC, None)]


def test_no_more_than_so_many_unseen_mounts_are_kept(monkeypatch):
    monkeypatch.setattr(events, "MOST_TRANSIENTS", 3)
    changes = MountChanges([])
    for number in range(1, 5):
        changes.came_and_went(number)
    assert kinds(changes.take()) == [(Kind.RESYNC, None)]
    assert changes.take() == ()


def test_the_process_is_told_of_attached_detached_and_moved_mounts_alone():
    changes = MountChanges([mount(1), mount(2), mount(3)])
    changes.is_gone(1)
    changes.is_there(mount(2, point="/a"))
    changes.is_there(mount(3, mnt_attr=1))
    changes.is_there(mount(4))
    for number in range(1, 5):
        changes.acted(number, 40 + number)
    told = {event.mnt_id: event.pid for event in changes.take()}
    assert told == {1: 41, 2: 42, 3: None, 4: 44}


def test_what_a_process_did_long_ago_is_not_told_with_later_changes():
    changes = MountChanges([mount(1)])
    changes.acted(1, 42)
    changes.forget_actors()
    changes.is_gone(1)
    assert [event.pid for event in changes.take()] == [None]


def test_a_filter_that_raises_loses_nothing():
    changes = MountChanges([])
    changes.is_there(mount(1))
    with pytest.raises(ZeroDivisionError):
        changes.take(lambda mount: 1 // 0)
    assert kinds(changes.take()) == [(Kind.ATTACHED, 1)]


def test_an_event_passes_if_the_mount_is_wanted_as_it_was_or_as_it_is():
    def wanted(mount):
        return mount.mnt_point == "/in"

    changes = MountChanges([mount(1, point="/in"), mount(2), mount(3)])
    changes.is_there(mount(1, point="/out"))
    changes.is_there(mount(2, point="/in"))
    changes.is_there(mount(3, point="/out"))
    changes.came_and_went(4)
    assert kinds(changes.take(wanted)) == [(Kind.MOVED, 1), (Kind.MOVED, 2)]
    assert kinds(changes.initial(wanted)) == [(Kind.ATTACHED, 2)]


def test_another_mount_in_the_same_place_is_noticed():
    changes = MountChanges([mount(1, point="/a")])
    assert changes.has_in_place_of(mount(2, point="/a"))
    assert not changes.has_in_place_of(mount(1, point="/a"))
    assert not changes.has_in_place_of(mount(2, point="/b"))
    changes.is_gone(1)
    assert not changes.has_in_place_of(mount(2, point="/a"))


# Filters

SHOWN = {"point": "/mnt/a", "fs_type": "ext4", "sb_source": "/dev/sda1"}


@pytest.mark.parametrize(
    ("wanted", "passes"),
    [
        ({}, True),
        ({"path": "/mnt/a"}, True),
        ({"path": b"//mnt/./a/"}, True),
        ({"path": "/mnt"}, False),
        ({"path": "/mnt/a/b"}, False),
        ({"under": "/mnt"}, True),
        ({"under": "/mnt/a"}, True),
        ({"under": "/"}, True),
        ({"under": "/mn"}, False),
        ({"fs_type": "ext4"}, True),
        ({"fs_type": "ext"}, False),
        ({"source": "/dev/sda1"}, True),
        ({"source": "/dev/sd*"}, True),
        ({"source": "/dev/sdb*"}, False),
        ({"under": "/mnt", "fs_type": "ext4", "source": "*"}, True),
        ({"under": "/mnt", "fs_type": "xfs", "source": "*"}, False),
    ],
    ids=repr,
)
def test_a_filter_wants_what_matches_all_of_it(wanted, passes):
    assert MountFilter(**wanted)(mount(1, **SHOWN)) is passes


@pytest.mark.parametrize("name", ["path", "under"])
@pytest.mark.parametrize("path", ["", "a", "./a", "/a/..", b"a"])
def test_a_filter_takes_absolute_paths_alone(name, path):
    with pytest.raises(ValueError, match="absolute"):
        MountFilter(**{name: path})


def test_a_filter_takes_hostile_names_as_they_are():
    wanted = MountFilter(path=b"/a\n\xff")
    assert wanted(mount(1, point="/a\n\udcff"))
    assert not wanted(mount(1, point="/a\n"))


def test_a_filter_can_be_compared_and_not_changed():
    assert MountFilter(path="/a/") == MountFilter(path=b"/a")
    assert hash(MountFilter(under="/a")) == hash(MountFilter(under="/a"))
    with pytest.raises(AttributeError):
        MountFilter().path = "/"
    with pytest.raises(TypeError):
        MountFilter("/")


# What is read from fanotify


def record(mnt_id=9, pid=4, mask=ATTACH, *, length=40, kind=7, start=24):
    metadata = struct.pack("=IBBHQii", length, 3, 0, start, mask, -1, pid)
    return metadata + struct.pack("=BBHIQ", kind, 0, 16, 0, mnt_id)


OVERFLOWN = struct.pack("=IBBHQii", 24, 3, 0, 24, OVERFLOW, -1, 0)


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2**64 - 1),
            st.integers(0, 2**31 - 1),
            st.sampled_from([ATTACH, DETACH, ATTACH | DETACH]),
        )
    )
)
def test_each_event_is_its_mount_its_process_and_whether_the_mount_is_gone(told):
    read = b"".join(record(*each) for each in told)
    assert parsed(read) == ([(i, pid, mask == DETACH) for i, pid, mask in told], False)


def test_an_overflow_has_no_information_and_hides_nothing_else():
    assert parsed(OVERFLOWN) == ([], True)
    assert parsed(record(1) + OVERFLOWN + record(2)) == ([(1, 4, False), (2, 4, False)], True)


@pytest.mark.parametrize(
    "read",
    [
        *(record()[:end] for end in (1, 23, 24, 39)),
        *(record(length=length) for length in (0, 1, 23, 24, 39, 41, 2**32 - 1)),
        *(record(start=start) for start in (25, 40, 65535)),
        record(kind=1),
        OVERFLOWN[:23],
        struct.pack("=IBBHQii", 4, 3, 0, 24, OVERFLOW, -1, 0),
        record() + b"\0",
    ],
)
def test_what_is_no_such_event_is_refused(read):
    with pytest.raises(ValueError):
        parsed(read)


@given(st.one_of(st.binary(), st.lists(st.sampled_from([record(), OVERFLOWN])).map(b"".join)))
def test_hostile_bytes_end_in_events_or_a_ValueError(read):
    try:
        found, overflow = parsed(read)
    except ValueError:
        return
    assert len(found) * 40 + overflow * 24 <= len(read)


@given(st.integers(0, 79), st.integers(0, 255))
def test_a_changed_byte_ends_in_events_or_a_ValueError(at, byte):
    read = bytearray(record(1) + record(2))
    read[at] = byte
    try:
        parsed(bytes(read))
    except ValueError:
        pass


def test_the_kinds_are_named_as_they_are_written():
    assert [kind.value for kind in Kind] == [kind.name.lower() for kind in Kind]
    assert blocking.MountEvent._field_defaults == {"fields": (), "pid": None}
