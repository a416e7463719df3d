# SPDX-License-Identifier: LGPL-3.0-or-later
"""iter_mount, in both faces: complete, and undisturbed by what comes and goes."""

import errno
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import anyio
import faults
import kernel
import pytest
from witness import ALL, MNT_BASIC, MNT_POINT, OPT_ARRAY, UNKNOWN_ID, id_of, make, notes

import truenas_os
from truenas_os import _threads, blocking


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("mask", [0, MNT_BASIC, MNT_POINT | OPT_ARRAY, ALL])
def test_iter_mount_describes_each_mount_as_statmount_does(face, mount_dir, mask, reverse):
    for number in range(20):
        make(mount_dir, str(number))
    ids = face.listmount(reverse=reverse)
    expected = [face.statmount(mnt_id, mask) for mnt_id in ids]
    assert face.iter_mount(reverse=reverse, statmount_flags=mask) == expected
    after = face.iter_mount(last_mnt_id=ids[9], reverse=reverse, statmount_flags=mask)
    assert after == expected[10:]


def test_iter_mount_reports_the_basic_fields_of_the_descendants_by_default(face, mount_dir):
    below = make(mount_dir)
    assert face.iter_mount(id_of(mount_dir)) == [face.statmount(id_of(below))]
    assert face.iter_mount(id_of(below)) == []


@pytest.mark.parametrize("gone", [{2}, {0}, {5}, {1, 3, 4}, {0, 1, 2, 3, 4, 5}], ids=repr)
def test_a_mount_that_vanishes_is_skipped_by_iter_mount(face, mount_dir, gone):
    ids = [id_of(make(mount_dir, str(number))) for number in range(6)]
    with ThreadPoolExecutor(1) as thread, faults.stopped("statmount") as stop:
        listing = thread.submit(face.iter_mount, id_of(mount_dir))
        stop.wait_reached()
        for number in gone:
            kernel.umount(mount_dir / str(number))
        stop.go()
        left = [mnt_id for number, mnt_id in enumerate(ids) if number not in gone]
        assert [m.mnt_id for m in listing.result()] == left


@pytest.mark.parametrize(("skip", "times"), [(0, 1), (3, 1), (255, 2), (10, 1000), (0, 4200)])
def test_mounts_that_vanish_in_rows_end_no_listing(face, many, skip, times):
    ids = face.listmount(id_of(many))
    with faults.failing("statmount", errno.ENOENT, skip=skip, times=times):
        found = [m.mnt_id for m in face.iter_mount(id_of(many))]
    assert found == ids[:skip] + ids[skip + times :]


@pytest.mark.parametrize("skip", [0, 1, 5, 255, 256, 257, 1000])
@pytest.mark.parametrize("error", [errno.EPERM, errno.ENOMEM])
def test_an_error_amid_a_listing_comes_after_the_mounts_before_it(face, mount_dir, error, skip):
    for number in range(1001):
        make(mount_dir, str(number))
    ids = face.listmount(id_of(mount_dir))
    found = []
    # Beyond the first failure too: a batch that ended early asks about the failed one again.
    with faults.failing("statmount", error, skip=skip), pytest.raises(OSError) as failed:
        face.iter_mount(id_of(mount_dir), statmount_flags=ALL, into=found)
    assert failed.value.errno == error
    assert f"mount id {ids[len(found)]}" in notes(failed.value)
    # A listing asks more often than once for each mount, so how far it comes is not exact.
    assert [m.mnt_id for m in found] == ids[: len(found)]
    assert len(found) in range(skip - skip // 16 - 1, skip + 1)
    assert bool(found) == bool(skip)


def test_a_listing_never_fails_and_never_misses_while_others_mount_and_unmount(face, mount_dir):
    stable = {id_of(make(mount_dir, str(number))) for number in range(30)}
    finished, rounds = threading.Event(), itertools.count()

    def churn():
        while not finished.is_set():
            targets = [make(mount_dir, f"churn{number}") for number in range(8)]
            for target in targets:
                kernel.umount(target, kernel.MNT_DETACH)
            next(rounds)

    with ThreadPoolExecutor(1) as thread:
        churned = thread.submit(churn)
        try:
            seen = face.listings(1000, id_of(mount_dir), statmount_flags=ALL)
        finally:
            finished.set()
        churned.result()
    assert next(rounds) > 1
    for ids in seen:
        assert stable <= set(ids)
        assert ids == sorted(set(ids))
    assert any(set(ids) - stable for ids in seen)


def test_nothing_is_asked_before_the_first_item_is_wanted():
    with faults.count(None) as calls:
        blocking.iter_mount(UNKNOWN_ID)
        truenas_os.iter_mount(UNKNOWN_ID)
    assert calls.seen == 0


@pytest.mark.anyio
async def test_a_listing_asks_a_worker_once_for_every_few_hundred_mounts(many, monkeypatch):
    hops = []
    submit = _threads._Portal.submit
    monkeypatch.setattr(_threads._Portal, "submit", lambda *args: hops.append(1) or submit(*args))
    mounts = [m async for m in truenas_os.iter_mount(id_of(many), statmount_flags=MNT_POINT)]
    assert len(mounts) == 4200
    assert 4 <= len(hops) <= 4200 / 200 + 2


@pytest.mark.anyio
async def test_a_listing_that_was_left_goes_on_where_it_was_left(many):
    listing = truenas_os.iter_mount(id_of(many))
    first = await anext(listing)
    rest = [m.mnt_id async for m in listing]
    assert [first.mnt_id, *rest] == sorted(id_of(many / str(number)) for number in range(4200))
    assert [m async for m in listing] == []


@pytest.mark.anyio
async def test_a_listing_that_was_cancelled_is_over_and_has_no_gap(many):
    listing = truenas_os.iter_mount(id_of(many))
    with faults.stopped("statmount") as stop:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anext, listing)
            await anyio.to_thread.run_sync(stop.wait_reached)
            tasks.cancel_scope.cancel()
        # The abandoned call is still under way, with a batch that nobody will get.
        assert [m async for m in listing] == []
        stop.go()


@pytest.mark.anyio
async def test_a_second_task_may_not_ask_while_the_first_waits(many):
    iterator = truenas_os.iter_mount()
    seen, refused = [], []

    async def consume():
        try:
            async for mount in iterator:
                seen.append(mount.mnt_id)
        except RuntimeError as error:
            refused.append(error)

    async with anyio.create_task_group() as group:
        for _ in range(2):
            group.start_soon(consume)
    assert len(refused) == 1
    assert seen == await truenas_os.listmount()
