# SPDX-License-Identifier: LGPL-3.0-or-later
"""Watching when system calls fail: another source, an error that is passed on, and no loss."""

import contextlib
import errno

import faults
import kernel
import pytest
from faces import on_both_faces
from stuck import AMPLE
from watched import OFTEN, SOURCES, Replayed, caught_up, watching
from witness import make, notes

from truenas_os import blocking

REFUSED = [errno.EPERM, errno.EINVAL, errno.ENOSYS]
CALLS = ["fanotify_init", "fanotify_mark", "listmount", "openat2", "statmount"]


@pytest.mark.parametrize("error", REFUSED)
@pytest.mark.parametrize("syscall", ["fanotify_init", "fanotify_mark"])
@on_both_faces
async def test_where_fanotify_is_refused_mountinfo_wakes(face, mount_dir, syscall, error):
    with faults.failing(syscall, error):
        async with watching(face) as watch:
            assert watch.watch.wakeup_source == "mountinfo"
            make(mount_dir)
            await watch.catch_up()


@pytest.mark.parametrize("error", [*REFUSED, errno.EMFILE])
@pytest.mark.parametrize("syscall", ["fanotify_init", "fanotify_mark"])
def test_where_fanotify_was_asked_for_its_refusal_is_told(syscall, error):
    before = kernel.open_fds()
    with faults.failing(syscall, error), pytest.raises(OSError) as failed:
        blocking.watch_mounts(wakeups="fanotify").__enter__()
    assert failed.value.errno == error
    assert "Linux 6.15" in notes(failed.value)
    assert kernel.open_fds() == before


@pytest.mark.parametrize("syscall", ["fanotify_init", "fanotify_mark"])
def test_want_of_resources_is_no_refusal(syscall):
    with faults.failing(syscall, errno.EMFILE), pytest.raises(OSError) as failed:
        blocking.watch_mounts().__enter__()
    assert failed.value.errno == errno.EMFILE


@pytest.mark.parametrize("syscall", CALLS)
def test_an_interrupted_call_is_made_again(mount_dir, syscall):
    with faults.failing(syscall, errno.EINTR, times=1):
        with blocking.watch_mounts() as changes:
            assert changes.wakeup_source == "fanotify"
            make(mount_dir)
            assert len(next(changes)) == 1


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("syscall", CALLS)
def test_whichever_call_fails_when_a_watch_begins_nothing_is_left(syscall, source):
    def begin():
        with blocking.watch_mounts(wakeups=source):
            pass

    with faults.count(syscall) as calls:
        begin()
    before = kernel.open_fds()
    for nth in range(calls.seen):
        for error in (errno.EIO, errno.ENOMEM, errno.EMFILE):
            with faults.failing(syscall, error, skip=nth, times=1):
                # A listing asks again about a mount whose description failed.
                expected = contextlib.suppress if syscall == "statmount" else pytest.raises
                with expected(OSError):
                    begin()
            assert kernel.open_fds() == before


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("syscall", ["listmount", "openat2", "statmount"])
@on_both_faces
async def test_a_look_that_fails_is_told_and_loses_nothing(face, mount_dir, syscall, source):
    """Not even without an interval, when no later look would come by itself."""
    interval = OFTEN if source == "poll" else None
    async with watching(face, wakeups=source, interval=interval) as watch:
        target = make(mount_dir, "target")
        await watch.catch_up()
        for nth in range(3):
            make(mount_dir, str(nth))
            kernel.mount(None, target, None, kernel.MS_REMOUNT, b"size=%dm" % (1 + nth))
            with faults.failing(syscall, errno.EIO, skip=nth, times=1):
                with contextlib.suppress(OSError):
                    await watch.catch_up()
            before = kernel.open_fds()
            await watch.catch_up()
            assert kernel.open_fds().keys() == before.keys()


@pytest.mark.parametrize("source", SOURCES)
def test_a_mount_that_vanishes_before_it_is_described_is_never_told_half(mount_dir, source):
    options = {"wakeups": source, "interval": OFTEN, "timeout": AMPLE}
    with blocking.watch_mounts(**options) as changes:
        replayed = Replayed(changes.snapshot)
        make(mount_dir, "vanishes")
        with faults.failing("statmount", errno.ENOENT, times=1):
            make(mount_dir, "stays")
            replayed.apply(next(changes))
        kernel.umount(mount_dir / "vanishes")
        make(mount_dir, "last")
        caught_up(changes, replayed)


@pytest.mark.parametrize("source", SOURCES)
def test_a_mount_that_is_gone_when_the_table_was_read_is_told_as_gone_once(mount_dir, source):
    """The kernel's own word that it is gone then comes after the look that found it so."""
    with blocking.watch_mounts(interval=OFTEN, wakeups=source, timeout=AMPLE) as changes:
        replayed = Replayed(changes.snapshot)
        for number in range(20):
            make(mount_dir, str(number))
            caught_up(changes, replayed)
        for number in range(20):
            kernel.mount(None, mount_dir / str(number), None, kernel.MS_SHARED)
            kernel.umount(mount_dir / str(number))
            make(mount_dir, "last")
            caught_up(changes, replayed)


def test_without_mountinfo_the_source_that_was_asked_for_is_told_as_missing(monkeypatch):
    before = kernel.open_fds()
    with faults.failing("openat2", errno.ENOENT), pytest.raises(FileNotFoundError) as failed:
        blocking.watch_mounts(wakeups="mountinfo").__enter__()
    assert failed.value.filename == "/proc/self/mountinfo"
    with faults.failing("openat2", errno.ENOENT), pytest.raises(ValueError, match="no interval"):
        blocking.watch_mounts(interval=None).__enter__()
    assert kernel.open_fds() == before
