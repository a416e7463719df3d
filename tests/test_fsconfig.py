# SPDX-License-Identifier: LGPL-3.0-or-later
"""Filesystem contexts: what fsconfig takes and refuses, and what the kernel writes to their log."""

import contextlib
import errno
import os
import socket
import tempfile
from pathlib import Path

import faults
import kernel
import pytest
from faces import on_both_faces
from faults import failing_counted
from filesystems import needs_root
from filesystems import require_kernel as require_kernel
from hypothesis import given
from hypothesis import strategies as st

from truenas_os import blocking
from truenas_os._native import ffi
from truenas_os.blocking import (
    AT_FDCWD,
    FSCONFIG_CMD_CREATE,
    FSCONFIG_CMD_CREATE_EXCL,
    FSCONFIG_CMD_RECONFIGURE,
    FSCONFIG_SET_BINARY,
    FSCONFIG_SET_FD,
    FSCONFIG_SET_FLAG,
    FSCONFIG_SET_PATH,
    FSCONFIG_SET_PATH_EMPTY,
    FSCONFIG_SET_STRING,
    MOVE_MOUNT_F_EMPTY_PATH,
    FsconfigCommand,
    mountapi,
)

COMMANDS = list(FsconfigCommand)
SETTING = COMMANDS[:6]
CARRYING_OUT = COMMANDS[6:]


@contextlib.asynccontextmanager
async def context(face, fs_name="tmpfs"):
    fd = await face.fsopen(fs_name=fs_name)
    try:
        yield fd
    finally:
        await face.close(fd)


async def configure(face, fd, command, key=None, value=None, aux=0):
    await face.fsconfig(fs_fd=fd, cmd=command, key=key, value=value, aux=aux)


async def attached(face, fd, target):
    """Create and mount what the context *fd* describes, and the line of mountinfo about it."""
    await face.fsconfig(fs_fd=fd, cmd=FSCONFIG_CMD_CREATE)
    mount = await face.fsmount(fs_fd=fd)
    await face.move_mount(mount, "", AT_FDCWD, target, MOVE_MOUNT_F_EMPTY_PATH)
    await face.close(mount)
    (line,) = [m for m in kernel.mountinfo() if m.mount_point == str(target)]
    return line


@pytest.fixture
def place(mount_dir):
    path = mount_dir / "place"
    path.mkdir()
    return path


# -- what each command takes ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "value", ["a name", b"a name", Path("a name")], ids=lambda value: type(value).__name__
)
@on_both_faces
async def test_strings_may_be_str_bytes_or_paths(face, place, value):
    async with context(face) as fd:
        await configure(face, fd, FSCONFIG_SET_STRING, "source", value)
        assert (await attached(face, fd, place)).source == "a name"


@on_both_faces
async def test_a_flag_is_set_by_its_key_alone(face, place):
    async with context(face) as fd:
        await configure(face, fd, FSCONFIG_SET_FLAG, "ro")
        assert (await attached(face, fd, place)).super_options.split(",")[0] == "ro"


@on_both_faces
async def test_a_command_may_be_given_as_a_plain_int(face, place):
    async with context(face) as fd:
        await face.fsconfig(fs_fd=fd, cmd=1, key="source", value="plain")
        assert (await attached(face, fd, place)).source == "plain"


@on_both_faces
async def test_a_filesystem_of_this_contexts_own_is_created_exclusively(face):
    async with context(face) as fd:
        await configure(face, fd, FSCONFIG_CMD_CREATE_EXCL)
        await face.close(await face.fsmount(fs_fd=fd))


@pytest.mark.parametrize(
    "given_as", ["value", "Fd as value", "file as value", "aux", "Fd in aux"], ids=str
)
@on_both_faces
async def test_a_descriptor_is_given_as_value_or_in_aux(face, mount_dir, place, given_as):
    require_kernel("overlay")
    for name in ("one", "two"):
        (mount_dir / name).mkdir()
        (mount_dir / name / name).touch()
    async with context(face, "overlay") as fd:
        for name in ("one", "two"):
            number = os.open(mount_dir / name, os.O_PATH)
            with Holder(number) as holder:
                arguments = {
                    "value": {"value": number},
                    "Fd as value": {"value": face.Fd(number)},
                    "file as value": {"value": holder},
                    "aux": {"aux": number},
                    "Fd in aux": {"aux": face.Fd(number)},
                }[given_as]
                await configure(face, fd, FSCONFIG_SET_FD, "lowerdir+", **arguments)
        line = await attached(face, fd, place)
    assert line.fs_type == "overlay"
    assert sorted(os.listdir(place)) == ["one", "two"]


class Holder:
    """Anything with a descriptor."""

    def __init__(self, fd):
        self.fileno = lambda: fd

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        os.close(self.fileno())


@needs_root
@on_both_faces
async def test_a_path_is_relative_to_the_directory_in_aux(face, mount_dir, monkeypatch):
    """ext4 looks up the device of its journal."""
    (mount_dir / "null").touch()
    (mount_dir / "device").symlink_to("/dev/loop0")
    directory = os.open(mount_dir, os.O_RDONLY)

    async def set_path(value, aux=0, command=FSCONFIG_SET_PATH):
        async with context(face, "ext4") as fd:
            try:
                await configure(face, fd, command, "journal_path", value, aux)
            except OSError as error:
                return error.messages
        return None

    monkeypatch.chdir("/dev")
    for form in (str, bytes, Path):
        assert await set_path(os.fsencode("loop0") if form is bytes else form("loop0")) is None
    assert await set_path("device") == ("e journal_path: Lookup failure for 'device'",)
    assert await set_path("device", directory) is None
    assert await set_path("loop0", directory) == ("e journal_path: Lookup failure for 'loop0'",)
    assert await set_path("null", directory) == ("e journal_path: Non-blockdev passed as 'null'",)
    device = os.open("/dev/loop0", os.O_PATH)
    assert await set_path("", device, FSCONFIG_SET_PATH_EMPTY) is None
    assert await set_path("", device) == ()
    os.close(device)
    os.close(directory)


class Recorder:
    """Stands in for the native layer, and keeps what it was to make a system call with."""

    def __init__(self):
        self.made = []

    def tos_fsconfig(self, fd, command, key, value, aux):
        raw = value if isinstance(value, bytes) else None
        if raw is None and value != ffi.NULL:
            raw = bytes(ffi.buffer(value))
        self.made.append((fd, command, None if key == ffi.NULL else key, raw, aux))
        return 0


@pytest.mark.parametrize(
    ("arguments", "made"),
    [
        ((FSCONFIG_SET_FLAG, "k"), (0, b"k", None, 0)),
        ((FSCONFIG_SET_STRING, "k", "v"), (1, b"k", b"v", 0)),
        ((FSCONFIG_SET_STRING, "k", ""), (1, b"k", b"", 0)),
        ((FSCONFIG_SET_BINARY, "k", b"\0\xff\0"), (2, b"k", b"\0\xff\0", 3)),
        ((FSCONFIG_SET_BINARY, "k", bytearray(b"ab"), 2), (2, b"k", b"ab", 2)),
        ((FSCONFIG_SET_BINARY, "k", memoryview(b"abcdef")[::2]), (2, b"k", b"ace", 3)),
        ((FSCONFIG_SET_BINARY, "k", b"x" * (1 << 20)), (2, b"k", b"x" * (1 << 20), 1 << 20)),
        ((FSCONFIG_SET_PATH, "k", "p"), (3, b"k", b"p", AT_FDCWD)),
        ((FSCONFIG_SET_PATH, "k", "p" * 300, 7), (3, b"k", b"p" * 300, 7)),
        ((FSCONFIG_SET_PATH, "k", Path("p"), AT_FDCWD), (3, b"k", b"p", AT_FDCWD)),
        ((FSCONFIG_SET_PATH_EMPTY, "k", b"", 7), (4, b"k", b"", 7)),
        ((FSCONFIG_SET_FD, "k", None, 7), (5, b"k", None, 7)),
        ((FSCONFIG_SET_FD, "k", 7), (5, b"k", None, 7)),
        ((FSCONFIG_SET_FD, "k", 0), (5, b"k", None, 0)),
        ((FSCONFIG_CMD_CREATE,), (6, None, None, 0)),
        ((FSCONFIG_CMD_RECONFIGURE,), (7, None, None, 0)),
        ((FSCONFIG_CMD_CREATE_EXCL,), (8, None, None, 0)),
    ],
    ids=lambda value: repr(value)[:40],
)
@on_both_faces
async def test_the_system_call_gets_what_the_command_takes(face, monkeypatch, arguments, made):
    recorder = Recorder()
    monkeypatch.setattr(mountapi, "lib", recorder)
    await configure(face, 5, *arguments)
    assert recorder.made == [(5, *made)]


@on_both_faces
async def test_a_blob_reaches_the_kernel_with_its_length(face):
    async with context(face) as fd:
        # With no length, the kernel does not even ask the filesystem.
        with pytest.raises(OSError):
            kernel.syscall(431, int(fd), FSCONFIG_SET_BINARY, b"size", b"blob", 0)
        assert log_of(fd) == ()
        with pytest.raises(OSError) as failed:
            await configure(face, fd, FSCONFIG_SET_BINARY, "size", b"blob")
        assert failed.value.messages == ("e tmpfs: Bad value for 'size'",)


# -- what each command refuses -------------------------------------------------------------------

NO_KEY = {"key": None}
NO_VALUE = {"value": None}
GOOD = {
    FSCONFIG_SET_FLAG: {"key": "ro"},
    FSCONFIG_SET_STRING: {"key": "source", "value": "x"},
    FSCONFIG_SET_BINARY: {"key": "source", "value": b"x"},
    FSCONFIG_SET_PATH: {"key": "source", "value": "x"},
    FSCONFIG_SET_PATH_EMPTY: {"key": "source", "value": "x"},
    FSCONFIG_SET_FD: {"key": "source", "value": 0},
    FSCONFIG_CMD_CREATE: {},
    FSCONFIG_CMD_RECONFIGURE: {},
    FSCONFIG_CMD_CREATE_EXCL: {},
}
# The argument at fault, what it is instead of what is good, and the kind of error.
WRONG = {
    FSCONFIG_SET_FLAG: [
        *(("value", value, TypeError) for value in ("x", b"", 0, 1, False)),
        *(("aux", aux, TypeError) for aux in (1, -1, AT_FDCWD)),
    ],
    FSCONFIG_SET_STRING: [
        *(("value", value, TypeError) for value in (None, 1, 1.5, True, bytearray(b"x"), ["x"])),
        ("value", "x" * 256, ValueError),
        ("value", "é" * 128, ValueError),
        ("value", "a\0b", ValueError),
        ("value", b"\0", ValueError),
        ("aux", 1, TypeError),
    ],
    FSCONFIG_SET_BINARY: [
        *(("value", value, TypeError) for value in (None, "x", 1, Path("x"), ["x"])),
        ("value", b"", ValueError),
        ("value", bytes((1 << 20) + 1), ValueError),
        *(("aux", aux, ValueError) for aux in (2, -1, 1 << 40)),
    ],
    **{
        command: [
            *(("value", value, TypeError) for value in (None, 1, 1.5, bytearray(b"x"), ["x"])),
            ("value", "a\0b", ValueError),
        ]
        for command in (FSCONFIG_SET_PATH, FSCONFIG_SET_PATH_EMPTY)
    },
    FSCONFIG_SET_FD: [
        *(("value", value, TypeError) for value in ("0", b"0", 1.5, Path("x"), ["x"])),
        ("aux", 1, TypeError),  # and a value
        ("value", None, TypeError),  # and nothing in aux: the descriptor was forgotten
    ],
    **{
        command: [
            *(("key", key, TypeError) for key in ("", "x")),
            *(("value", value, TypeError) for value in ("", "x", b"x", 0, False)),
            *(("aux", aux, TypeError) for aux in (1, -1)),
        ]
        for command in CARRYING_OUT
    },
}
for _command in COMMANDS:
    WRONG[_command] += [("aux", aux, TypeError) for aux in (None, "1", 1.5, b"1")]
for _command in SETTING:
    WRONG[_command] += [("key", key, TypeError) for key in (None, 1, bytearray(b"x"), ["x"])]
    WRONG[_command] += [("key", key, ValueError) for key in ("x" * 256, "a\0b", b"\0")]
REFUSED = [
    pytest.param(command, argument, value, kind, id=f"{command.name}-{argument}={value!r}"[:60])
    for command, faulty in WRONG.items()
    for argument, value, kind in faulty
]


@pytest.mark.parametrize(("command", "argument", "value", "kind"), REFUSED)
@on_both_faces
async def test_an_argument_that_a_command_does_not_take_is_refused_by_name(
    face, command, argument, value, kind
):
    async with context(face) as fd:
        with faults.count(None) as calls, pytest.raises(kind) as refused:
            await face.fsconfig(fs_fd=fd, cmd=command, **GOOD[command] | {argument: value})
        assert calls.seen == 0
        assert f"FSCONFIG_{command.name}" in str(refused.value)
        assert argument in str(refused.value)


@pytest.mark.parametrize("command", [9, -1, 255, 1 << 40, "SET_FLAG", None, 1.5, []], ids=repr)
@on_both_faces
async def test_an_unknown_command_is_a_value_error(face, command):
    with faults.count(None) as calls, pytest.raises(ValueError, match="cmd must be one of"):
        await face.fsconfig(fs_fd=0, cmd=command)
    assert calls.seen == 0


@on_both_faces
async def test_a_descriptor_that_is_closed_is_refused_before_the_call(face):
    closed = face.Fd(os.open("/", os.O_PATH))
    await face.close(closed)
    with faults.count(None) as calls, pytest.raises(ValueError, match="closed"):
        await face.fsconfig(fs_fd=closed, cmd=FSCONFIG_CMD_CREATE)
    assert calls.seen == 0
    for call in (face.fscontext_messages, lambda fs_fd: face.fsmount(fs_fd=fs_fd)):
        with faults.count(None) as calls, pytest.raises(ValueError, match="closed"):
            await call(closed)
        assert calls.seen == 0


@pytest.mark.parametrize("text", ["x" * 255, "é" * 127 + "x", b"\xff" * 255], ids=ascii)
@on_both_faces
async def test_a_string_of_255_bytes_is_the_longest(face, place, text):
    longer = text + (b"x" if isinstance(text, bytes) else "x")
    async with context(face) as fd:
        with pytest.raises(ValueError, match=r"value is 256 bytes long, the kernel takes 255"):
            await configure(face, fd, FSCONFIG_SET_STRING, "source", longer)
        # Which is the kernel's limit.
        with pytest.raises(OSError):
            kernel.syscall(431, int(fd), 1, b"source", os.fsencode(longer), 0)
        await configure(face, fd, FSCONFIG_SET_STRING, "source", text)
        assert (await attached(face, fd, place)).source == os.fsdecode(text)


@on_both_faces
async def test_a_key_of_255_bytes_is_the_longest(face):
    async with context(face) as fd:
        with pytest.raises(ValueError, match=r"key is 256 bytes long, the kernel takes 255"):
            await configure(face, fd, FSCONFIG_SET_FLAG, "k" * 256)
        with pytest.raises(OSError) as failed:
            await configure(face, fd, FSCONFIG_SET_FLAG, "k" * 255)
        assert failed.value.messages == (f"e tmpfs: Unknown parameter '{'k' * 255}'",)


anything = st.none() | st.booleans() | st.integers() | st.text() | st.binary() | st.floats()


@given(
    command=st.sampled_from(COMMANDS) | st.integers(-2, 12),
    key=anything,
    value=anything | st.builds(Path, st.text()) | st.builds(bytearray, st.binary()),
    aux=st.just(0) | anything,
)
def test_whatever_is_passed_makes_one_system_call_or_is_refused(command, key, value, aux):
    if command == FSCONFIG_SET_FD and 0 <= (value if type(value) is int else 0) < 1000:
        value = None if value is None else 10**6  # no descriptor of ours is to be used
    with blocking.fsopen(fs_name="tmpfs") as fd:
        expected = 1
        with faults.count("fsconfig") as calls:
            try:
                blocking.fsconfig(fs_fd=fd, cmd=command, key=key, value=value, aux=aux)
            except OSError as error:
                assert isinstance(error.messages, tuple)
                expected = 2  # the second one asks whether there is a log
            except (TypeError, ValueError, OverflowError):
                expected = 0
        assert calls.seen == expected


@given(st.text() | st.text(max_size=300, alphabet="xé\ud800\udcff\0") | st.binary(max_size=300))
def test_exactly_the_strings_that_the_kernel_takes_are_passed_on(text):
    try:
        raw = os.fsencode(text)
    except UnicodeEncodeError:
        raw = b"\0"
    with blocking.fsopen(fs_name="tmpfs") as fd:
        try:
            blocking.fsconfig(fs_fd=fd, cmd=FSCONFIG_SET_STRING, key="source", value=text)
        except ValueError:
            assert b"\0" in raw or len(raw) > 255
        else:
            assert b"\0" not in raw
            assert len(raw) <= 255


# -- the error log -------------------------------------------------------------------------------


def log_of(fd):
    """What read(2) finds in the log of a context."""
    lines = []
    while True:
        try:
            lines.append(os.fsdecode(os.read(fd, 8192)).rstrip("\n"))
        except OSError as error:
            assert error.errno == errno.ENODATA
            return tuple(lines)


def write_to_log(fd, *keys):
    """Have the kernel complain, to nobody but the log."""
    for key in keys:
        with pytest.raises(OSError):
            kernel.syscall(431, int(fd), FSCONFIG_SET_FLAG, os.fsencode(key), None, 0)


def unknown(*keys):
    return tuple(f"e tmpfs: Unknown parameter '{key}'" for key in keys)


def string(key, value):
    return FSCONFIG_SET_STRING, key, value


def flag(key):
    return FSCONFIG_SET_FLAG, key, None


CREATE = (FSCONFIG_CMD_CREATE, None, None)


def bad(fs_type, *steps, code=errno.EINVAL, log=()):
    marks = () if fs_type in ("tmpfs", "overlay", "proc", "fuse", "devpts") else needs_root
    name = " ".join(f"{key or command.name}={value}" for command, key, value in steps)
    return pytest.param(fs_type, steps, code, log, marks=marks, id=f"{fs_type} {name}")


BAD = [
    bad("tmpfs", flag("bogus"), log=["e tmpfs: Unknown parameter 'bogus'"]),
    bad("tmpfs", string("bogus", "1"), log=["e tmpfs: Unknown parameter 'bogus'"]),
    bad("tmpfs", flag("noatime"), log=["e tmpfs: Unknown parameter 'noatime'"]),
    bad("tmpfs", string("size", "lots"), log=["e tmpfs: Bad value for 'size'"]),
    bad("tmpfs", flag("size"), log=["e tmpfs: Bad value for 'size'"]),
    bad("tmpfs", string("mode", "9"), log=["e tmpfs: Bad value for 'mode'"]),
    bad("tmpfs", string("huge", "maybe"), log=["e tmpfs: Bad value for 'huge'"]),
    # The kernel says it twice.
    bad("tmpfs", string("uid", "x"), log=["e tmpfs: Bad value for 'uid'"] * 2),
    bad("tmpfs", string("source", "a"), string("source", "b"), log=["e Multiple sources"]),
    bad("tmpfs", (FSCONFIG_SET_BINARY, "size", b"1"), log=["e tmpfs: Bad value for 'size'"]),
    bad("tmpfs", (FSCONFIG_SET_PATH, "size", "/"), log=["e tmpfs: Bad value for 'size'"]),
    bad("tmpfs", flag("new\nline\udcff"), log=["e tmpfs: Unknown parameter 'new\nline\udcff'"]),
    bad("tmpfs", string("mode", "0700"), CREATE, CREATE, code=errno.EBUSY),
    bad("proc", string("hidepid", "7"), log=["e proc: unknown value of hidepid - 7"]),
    bad("proc", string("subset", "x"), log=["e proc: unsupported subset option - x"]),
    bad("devpts", string("max", "x"), log=["e devpts: Bad value for 'max'"]),
    bad("fuse", string("rootmode", "999"), log=["e fuse: Bad value for 'rootmode'"]),
    bad("overlay", string("xino", "maybe"), log=["e overlay: Bad value for 'xino'"]),
    bad(
        "overlay",
        string("upperdir", "/proc/self/maps"),
        log=["e overlay: /proc/self/maps is not a directory"],
    ),
    bad("overlay", string("lowerdir", "/nonexistent"), code=errno.ENOENT),
    bad("overlay", CREATE),
    bad("ext4", string("data", "nonsense"), log=["e ext4: Bad value for 'data'"]),
    bad("ext4", string("i_version", ""), log=["e ext4: Unexpected value for 'i_version'"]),
    bad("ext4", CREATE, log=["e No source specified"]),
    bad(
        "ext4",
        string("source", "/nonexistent"),
        CREATE,
        code=errno.ENOENT,
        log=["e /nonexistent: Can't lookup blockdev"],
    ),
    bad(
        "ext4",
        string("source", "/dev"),
        CREATE,
        code=errno.ENOTBLK,
        log=["e /dev: Can't lookup blockdev"],
    ),
    bad("xfs", flag("noatime"), log=["e xfs: Unknown parameter 'noatime'"]),
    bad("xfs", string("logbsize", "x")),
    bad("btrfs", string("subvolid", "x"), log=["e btrfs: Bad value for 'subvolid'"]),
    bad("btrfs", string("compress", "rot13")),
    bad("btrfs", string("source", "/nonexistent"), CREATE, code=errno.ENOENT),
    bad("squashfs", string("errors", "x"), log=["e squashfs: Bad value for 'errors'"]),
    bad("squashfs", CREATE, log=["e No source specified"]),
]


def without_the_library(fs_type, steps):
    """The errno and the log of the same steps."""
    fd = kernel.syscall(430, fs_type.encode(), 1)
    try:
        for command, key, value in steps:
            raw = [None if each is None else os.fsencode(each) for each in (key, value)]
            aux = len(value) if command == FSCONFIG_SET_BINARY else AT_FDCWD
            aux = aux if command in (FSCONFIG_SET_BINARY, FSCONFIG_SET_PATH) else 0
            kernel.syscall(431, fd, command, *raw, aux)
    except OSError as error:
        return error.errno, log_of(fd)
    finally:
        os.close(fd)
    pytest.fail("nothing was bad")


@pytest.mark.parametrize(("fs_type", "steps", "code", "log"), BAD)
@on_both_faces
async def test_an_error_has_the_errno_and_the_kernels_own_words(face, fs_type, steps, code, log):
    require_kernel(fs_type)
    async with context(face, fs_type) as fd:
        for step in steps[:-1]:
            await configure(face, fd, *step)
        with pytest.raises(OSError) as failed:
            await configure(face, fd, *steps[-1])
        assert log_of(fd) == ()
    error = failed.value
    assert (error.errno, error.strerror) == (code, os.strerror(code))
    assert type(error) is type(OSError(code, ""))
    assert error.messages == tuple(log)
    assert (error.errno, error.messages) == without_the_library(fs_type, steps)
    command, key, _ = steps[-1]
    about = f"FSCONFIG_{command.name}" + (f" {key!r}" if key else "")
    assert error.__notes__ == [about, *(line[2:] for line in log)]


@pytest.fixture
def zeros(tmp_path):
    """A block device with nothing on it."""
    with open(tmp_path / "zeros", "wb") as file:
        file.truncate(1 << 20)
    with blocking.loop_device(tmp_path / "zeros") as device:
        yield device.path


@needs_root
@pytest.mark.parametrize("fs_type", ["squashfs", "ext4", "xfs", "btrfs"])
@on_both_faces
async def test_a_device_that_holds_no_filesystem_is_reported_as_the_filesystem_does(
    face, zeros, fs_type
):
    require_kernel(fs_type)
    async with context(face, fs_type) as fd:
        await configure(face, fd, *string("source", zeros))
        with pytest.raises(OSError) as failed:
            await configure(face, fd, *CREATE)
    name = Path(zeros).name
    assert failed.value.errno == errno.EINVAL
    assert failed.value.messages == (
        (f"e Can't find a SQUASHFS superblock on {name}",) if fs_type == "squashfs" else ()
    )


@on_both_faces
async def test_a_rejected_option_leaves_the_context_usable(face, place):
    async with context(face) as fd:
        for key in ("bogus", "mode"):
            with pytest.raises(OSError):
                await configure(face, fd, FSCONFIG_SET_FLAG, key)
        await configure(face, fd, *string("source", "after all"))
        assert (await attached(face, fd, place)).source == "after all"


@on_both_faces
async def test_a_creation_that_failed_uses_the_context_up(face):
    require_kernel("overlay")
    async with context(face, "overlay") as fd:
        with pytest.raises(OSError) as failed:
            await configure(face, fd, *CREATE)
        assert failed.value.errno == errno.EINVAL
        for step in (string("xino", "on"), CREATE):
            with pytest.raises(OSError) as failed:
                await configure(face, fd, *step)
            assert failed.value.errno == errno.EBUSY


@on_both_faces
async def test_an_interrupted_creation_that_used_the_context_up_is_EINTR(face):
    require_kernel("overlay")
    async with context(face, "overlay") as fd:
        with pytest.raises(OSError):
            await configure(face, fd, *CREATE)
        with faults.failing("fsconfig", errno.EINTR, times=1):
            with pytest.raises(InterruptedError) as failed:
                await configure(face, fd, *CREATE)
        assert failed.value.errno == errno.EINTR
        assert failed.value.__notes__[0] == "FSCONFIG_CMD_CREATE"
        assert "used up" in failed.value.__notes__[1]
        assert failed.value.messages == ()
        # Nothing was carried out there: that is what it was before.
        with faults.failing("fsconfig", errno.EINTR, times=1), pytest.raises(OSError) as failed:
            await configure(face, fd, *string("xino", "on"))
        assert failed.value.errno == errno.EBUSY


@on_both_faces
async def test_warnings_of_a_call_that_succeeded_can_be_read(face):
    async with context(face) as fd:
        assert await face.fscontext_messages(fd) == ()
        write_to_log(fd, "one", "two")
        assert await face.fscontext_messages(fd) == unknown("one", "two")
        assert await face.fscontext_messages(fd) == ()


@needs_root
@on_both_faces
async def test_xfs_warns_of_an_option_that_is_deprecated(face):
    require_kernel("xfs")
    async with context(face, "xfs") as fd:
        await configure(face, fd, *flag("ikeep"))
        assert await face.fscontext_messages(fd) == ("w xfs: Deprecated parameter 'ikeep'",)


@on_both_faces
async def test_the_log_has_the_last_8_lines(face):
    keys = [f"number{n}" for n in range(13)]
    async with context(face) as fd:
        write_to_log(fd, *keys)
        assert await face.fscontext_messages(fd) == unknown(*keys[-8:])
        write_to_log(fd, *keys[:8])
        with pytest.raises(OSError) as failed:
            await configure(face, fd, *flag("last"))
        assert failed.value.messages == unknown(*keys[1:8], "last")


@on_both_faces
async def test_what_was_in_the_log_goes_with_the_next_error_of_any_call(face):
    async with context(face) as fd:
        write_to_log(fd, "before")
        with pytest.raises(OSError) as failed:
            await face.fsmount(fs_fd=fd)
        assert (failed.value.errno, failed.value.messages) == (errno.EINVAL, unknown("before"))
        assert failed.value.__notes__ == ["tmpfs: Unknown parameter 'before'"]
        write_to_log(fd, "again")
        failing = faults.failing("fsconfig", errno.EPERM, times=1)
        with failing, pytest.raises(PermissionError) as failed:
            await configure(face, fd, *CREATE)
        assert failed.value.messages == unknown("again")


@on_both_faces
async def test_a_context_that_was_not_opened_has_no_messages(face, place):
    with pytest.raises(OSError) as failed:
        await face.fsopen(fs_name="no such filesystem")
    assert (failed.value.errno, failed.value.filename) == (errno.ENODEV, "no such filesystem")
    assert failed.value.messages == ()
    with pytest.raises(FileNotFoundError) as failed:
        await face.fspick(AT_FDCWD, place / "missing")
    assert failed.value.messages == ()


@on_both_faces
async def test_reconfiguring_reports_as_configuring_does(face, mount_dir):
    for name in ("one", "two"):
        (mount_dir / name).touch()
    fd = await face.fspick(AT_FDCWD, mount_dir)
    with pytest.raises(OSError) as failed:
        await configure(face, fd, *flag("bogus"))
    assert failed.value.messages == unknown("bogus")
    await configure(face, fd, *string("nr_inodes", "1"))
    with pytest.raises(OSError) as failed:
        await configure(face, fd, FSCONFIG_CMD_RECONFIGURE)
    assert failed.value.messages == ("e tmpfs: Too few inodes for current use",)
    await face.close(fd)


# -- what is no context --------------------------------------------------------------------------


@contextlib.contextmanager
def pipe_with_data():
    read, write = os.pipe()
    os.write(write, b"e secret")
    try:
        yield read, lambda: os.read(read, 100)
    finally:
        os.close(read)
        os.close(write)


@contextlib.contextmanager
def socket_with_data():
    one, other = socket.socketpair()
    other.send(b"e secret")
    with one, other:
        yield one, lambda: one.recv(100)


@contextlib.contextmanager
def file_with_data():
    with tempfile.TemporaryFile() as file:
        file.write(b"e secret")
        file.seek(0)
        yield file, file.read


@pytest.mark.parametrize("make", [pipe_with_data, socket_with_data, file_with_data])
@on_both_faces
async def test_what_is_no_context_is_never_read_from(face, make):
    with make() as (fd, content):
        for call in (
            lambda: face.fsconfig(fs_fd=fd, cmd=FSCONFIG_CMD_CREATE),
            lambda: face.fsconfig(fs_fd=fd, cmd=FSCONFIG_SET_FLAG, key="ro"),
            lambda: face.fsmount(fs_fd=fd),
            lambda: face.fscontext_messages(fd),
        ):
            with faults.count("read") as reads, pytest.raises(OSError) as failed:
                await call()
            assert reads.seen == 0
            assert failed.value.errno == errno.EINVAL
            assert getattr(failed.value, "messages", ()) == ()
        assert content() == b"e secret"


@on_both_faces
async def test_a_number_that_is_not_open_is_ebadf(face):
    number = os.open("/", os.O_PATH)
    os.close(number)
    for call in (
        lambda: face.fsconfig(fs_fd=number, cmd=FSCONFIG_CMD_CREATE),
        lambda: face.fsmount(fs_fd=number),
        lambda: face.fscontext_messages(number),
    ):
        with faults.count("read") as reads, pytest.raises(OSError) as failed:
            await call()
        assert reads.seen == 0
        assert failed.value.errno == errno.EBADF
        assert getattr(failed.value, "messages", ()) == ()


# -- reading the log goes wrong ------------------------------------------------------------------


@pytest.mark.parametrize(("code", "again"), [(errno.EINTR, 3), (errno.EMSGSIZE, 3)])
@on_both_faces
async def test_reading_the_log_is_tried_again(face, code, again):
    async with context(face) as fd:
        with failing_counted("read", code, times=again) as reads, pytest.raises(OSError) as failed:
            await configure(face, fd, *flag("bogus"))
        assert failed.value.messages == unknown("bogus")
        assert reads.seen == again + 2
        write_to_log(fd, "another")
        with faults.failing("read", code, times=again):
            assert await face.fscontext_messages(fd) == unknown("another")


@on_both_faces
async def test_an_error_survives_a_log_that_cannot_be_read(face):
    async with context(face) as fd:
        with faults.failing("read", errno.EIO), pytest.raises(OSError) as failed:
            await configure(face, fd, *flag("bogus"))
    assert (failed.value.errno, failed.value.messages) == (errno.EINVAL, ())


@needs_root
@on_both_faces
async def test_a_line_of_any_length_is_read_whole(face):
    path = "/nonexistent" + "/x" * 2041
    async with context(face, "ext4") as fd:
        with pytest.raises(OSError) as failed:
            await configure(face, fd, FSCONFIG_SET_PATH, "journal_path", path)
    assert failed.value.messages == (f"e journal_path: Lookup failure for '{path}'",)
    assert len(failed.value.messages[0]) > 4096
