# SPDX-License-Identifier: LGPL-3.0-or-later
"""What a callback may return, in which form, and what it may not."""

import errno
import os
import stat
from functools import partial

import pytest

from truenas_os.fuse import EntryAttributes, FUSEError, StatvfsData, pathforms

MODE = stat.S_IFREG | 0o644
STATUS = os.stat(__file__)
STATE = os.statvfs(__file__)
THIRTEEN = (1, 2, MODE, 3, 4, 5, 6, 7, 8.5, 9, (10, 11), 512, 13)
HANDLE = object()

data = partial(pathforms.data, size=4)
content = partial(pathforms.content, size=4)
number = partial(pathforms.number, most=99)
count = partial(pathforms.count, size=4)
value = partial(pathforms.value, size=4)

# By form: what it is given, and what that stands for; a negative number stands for an errno.
FITTING = [
    (pathforms.done, None, None),
    (pathforms.done, 0, None),
    (pathforms.text, "a\udcff", b"a\xff"),
    (pathforms.text, b"a", b"a"),
    (content, b"abcd", b"abcd"),
    (content, bytearray(b"ab"), b"ab"),
    (content, memoryview(b"ab"), b"ab"),
    (content, 0, b""),
    (count, None, 4),
    (count, 3, 3),
    (count, 0, 0),
    (value, b"", b""),
    (value, b"x", b"x"),
    (value, 0, -errno.ENODATA),
    (value, None, -errno.ENODATA),
    (number, 7, 7),
    (number, 0, 0),
    (number, (0, 7), 7),
    (number, [0, 0], 0),
    (number, (-errno.EIO, 7), -errno.EIO),
    (data, b"abcd", b"abcd"),
    (data, None, b""),
    (data, 0, b""),
    (data, (0, b"ab"), b"ab"),
    (data, (0, None), b""),
    (data, (-errno.EIO, b""), -errno.EIO),
    (pathforms.handle, None, None),
    (pathforms.handle, 0, None),
    (pathforms.handle, 5, 5),
    (pathforms.handle, HANDLE, HANDLE),
    (pathforms.handle, (0, HANDLE), HANDLE),
    (pathforms.handle, [0, 0], 0),
    (pathforms.handle, (0, "text"), "text"),
    (pathforms.handle, (-errno.EIO, 5), -errno.EIO),
    (pathforms.names, [], []),
    (pathforms.names, ["a", b"b", 0], [b"a", b"b"]),
    (pathforms.names, {"a": 1}, [b"a"]),
    (pathforms.names, ["a", -errno.EIO], -errno.EIO),
    (pathforms.entries, [], []),
    (pathforms.entries, (0,), []),
    (pathforms.entries, ["a", b"\xff"], [(0, "a", None), (0, "\udcff", None)]),
    (pathforms.entries, [(0, "a"), "b", 0], [(0, "a", None), (0, "b", None)]),
    (pathforms.entries, [(3, "a"), (7, "b", None)], [(3, "a", None), (7, "b", None)]),
    (pathforms.entries, ["a", -errno.EIO], -errno.EIO),
    (pathforms.state, StatvfsData(f_blocks=9), StatvfsData(f_blocks=9)),
]
FORMS = [pathforms.done, pathforms.text, content, count, value, number, data, pathforms.handle]
FORMS += [pathforms.names, pathforms.entries, pathforms.state, pathforms.attributes]
UNFIT = [
    *[(form, wrong) for form in FORMS for wrong in (True, 1.5, -1.0, -512, (0, 0, 0))],
    *[(form, object()) for form in FORMS if form is not pathforms.handle],
    *[(form, "text") for form in FORMS if form is not pathforms.text],
    *[(form, [1]) for form in FORMS],
    *[(form, None) for form in (pathforms.text, content, number, pathforms.names)],
    *[(form, None) for form in (pathforms.entries, pathforms.state, pathforms.attributes)],
    *[(form, 1 << 40) for form in FORMS if form is not pathforms.handle],
    *[(form, b"abcde") for form in (content, value, data)],
    (count, 5),
    (number, (0, -errno.EIO)),
    (number, (0, True)),
    (number, (1, 0)),
    (data, (0, "text")),
    (pathforms.handle, (5, 5)),
    (pathforms.handle, b"bytes"),
    (pathforms.handle, {}),
    (pathforms.names, ["a", 1.5]),
    (pathforms.names, [0, "a"]),
    *[(form, ["\ud800"]) for form in (pathforms.names, pathforms.entries)],
    (pathforms.text, "\ud800"),
    (pathforms.entries, ["a" * 1025]),
    (pathforms.plain_entries, [(1, "a")]),
    (pathforms.plain_entries, ["a/b"]),
    (pathforms.entries, ["a/b"]),
    (pathforms.entries, [""]),
    (pathforms.entries, ["a\0"]),
    (pathforms.entries, [(1, "a"), "b"]),
    (pathforms.entries, [("a", 1)]),
    (pathforms.entries, [(-1, "a")]),
    (pathforms.entries, [(1 << 63, "a")]),
    (pathforms.entries, [(0, "a", THIRTEEN[:12])]),
    (pathforms.state, (1, 2, 3, 4, 5)),
    (pathforms.state, (1, 2, 3, 4, 5, 6, 7)),
    (pathforms.state, (1, 2, 3, 4, 5, -6)),
    *[
        (pathforms.attributes, (*THIRTEEN[:index], wrong, *THIRTEEN[index + 1 :]))
        for index in range(13)
        for wrong in ("1", None, float("nan"), (1, 2, 3), (1, 10**9))
    ],
    (pathforms.attributes, (*THIRTEEN[:2], 0o644, *THIRTEEN[3:])),
    *[(pathforms.attributes, (*THIRTEEN[:4], wrong, *THIRTEEN[5:])) for wrong in (-1, 1 << 32)],
    (pathforms.attributes, EntryAttributes(st_mode=0o644)),
    (pathforms.attributes, EntryAttributes(st_mode=MODE, st_size=1 << 63)),
    (pathforms.attributes, EntryAttributes(st_mode=MODE, st_size=-1)),
]


def shown(argument):
    return getattr(argument, "__name__", None) or getattr(
        getattr(argument, "func", None), "__name__", repr(argument)[:40]
    )


@pytest.mark.parametrize(("form", "given", "expected"), FITTING, ids=shown)
def test_what_fits(form, given, expected):
    if type(expected) is int and expected < 0:
        with pytest.raises(FUSEError) as caught:
            form(given)
        assert caught.value.errno == -expected
    else:
        assert form(given) == expected


@pytest.mark.parametrize("form", FORMS, ids=shown)
def test_a_negative_errno_is_that_error(form):
    for code in (errno.ENOENT, errno.ENOSYS, 511):
        with pytest.raises(FUSEError) as caught:
            form(-code)
        assert caught.value.errno == code


@pytest.mark.parametrize(("form", "given"), UNFIT, ids=shown)
def test_what_does_not_fit(form, given):
    with pytest.raises(pathforms.UnfitError):
        form(given)


def test_thirteen_values_are_attributes():
    assert pathforms.attributes(list(THIRTEEN)) == (
        1,
        EntryAttributes(
            st_ino=2,
            entry_timeout=1,
            attr_timeout=1,
            st_mode=MODE,
            st_nlink=3,
            st_uid=4,
            st_gid=5,
            st_rdev=6,
            st_size=7,
            st_atime_ns=8_500_000_000,
            st_mtime_ns=9_000_000_000,
            st_ctime_ns=10_000_000_011,
            st_blksize=512,
            st_blocks=13,
        ),
    )
    before = (*THIRTEEN[:8], -1.5, (-2, 500), -3, *THIRTEEN[11:])
    attr = pathforms.attributes(before)[1]
    times = (attr.st_atime_ns, attr.st_mtime_ns, attr.st_ctime_ns)
    assert times == (-1_500_000_000, -1_999_999_500, -3_000_000_000)


def test_a_stat_result_keeps_what_it_says():
    device, attr = pathforms.attributes(STATUS)
    assert device == STATUS.st_dev
    for name in ("ino", "mode", "nlink", "uid", "gid", "rdev", "size", "blksize", "blocks"):
        assert getattr(attr, f"st_{name}") == getattr(STATUS, f"st_{name}")
    for name in ("atime", "mtime", "ctime"):
        assert getattr(attr, f"st_{name}_ns") == getattr(STATUS, f"st_{name}_ns")


def test_a_stat_result_of_ten_values_is_enough():
    device, attr = pathforms.attributes(os.stat_result((MODE, 2, 1, 3, 4, 5, 7, 8, 9, 10)))
    assert device == 1
    expected = EntryAttributes(
        st_ino=2,
        st_mode=MODE,
        st_nlink=3,
        st_uid=4,
        st_gid=5,
        st_size=7,
        st_atime_ns=8_000_000_000,
        st_mtime_ns=9_000_000_000,
        st_ctime_ns=10_000_000_000,
        entry_timeout=1,
        attr_timeout=1,
    )
    assert attr == expected


def test_attributes_stay_the_callbacks_own():
    given = EntryAttributes(st_mode=MODE, entry_timeout=7)
    attr = pathforms.attributes(given)[1]
    assert attr == given and attr is not given


def test_six_numbers_are_the_state_of_a_filesystem():
    expected = StatvfsData(
        f_namemax=100,
        f_files=90,
        f_ffree=80,
        f_favail=80,
        f_blocks=70,
        f_bfree=60,
        f_bavail=60,
        f_bsize=1024,
        f_frsize=1024,
    )
    assert pathforms.state((100, 90, 80, 70, 60, 1024)) == expected
    assert pathforms.state([0, 100, 90, 80, 70, 60, 1024]) == expected
    with pytest.raises(FUSEError) as caught:
        pathforms.state((-errno.EIO, 100, 90, 80, 70, 60, 1024))
    assert caught.value.errno == errno.EIO


def test_the_systems_own_state_is_taken_as_it_is():
    state = pathforms.state(STATE)
    assert (state.f_blocks, state.f_frsize, state.f_files) == (
        STATE.f_blocks,
        STATE.f_frsize,
        STATE.f_files,
    )


def test_entries_may_have_attributes():
    device, attr = pathforms.attributes(THIRTEEN)
    assert pathforms.entries([(1, "a", THIRTEEN)]) == [(1, "a", (device, attr))]
