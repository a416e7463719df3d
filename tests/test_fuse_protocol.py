# SPDX-License-Identifier: LGPL-3.0-or-later
"""The protocol without a kernel: layouts, requests from any bytes, replies, negotiation."""

import copy
import errno
import os
import pickle
import stat
import struct
from importlib import metadata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from truenas_os import fuse
from truenas_os.fuse import datatypes, handlers, negotiation, options, protocol, wire
from truenas_os.fuse.protocol import ProtocolError, Readdir, Request
from truenas_os.fuse.wire import InitFlag, Opcode


def message(opcode, body=b"", *, unique=2, nodeid=1, length=None):
    size = 40 + len(body) if length is None else length
    return wire.IN_HEADER.pack(size, opcode, unique, nodeid, 10, 20, 30, 0, 0) + body


def made(**fields):
    return fuse.EntryAttributes(**{"st_ino": 2, "st_mode": stat.S_IFREG | 0o644} | fields)


@pytest.mark.parametrize(
    ("layout", "size"),
    [
        # As the kernel's header has them.
        ("IN_HEADER", 40),
        ("OUT_HEADER", 16),
        ("INIT_IN", 64),
        ("INIT_OUT", 64),
        ("ENTRY_OUT", 128),
        ("ATTR_OUT", 104),
        ("GETATTR_IN", 16),
        ("MKNOD_IN", 16),
        ("MKDIR_IN", 8),
        ("RENAME2_IN", 16),
        ("SETATTR_IN", 88),
        ("OPEN_IN", 8),
        ("CREATE_IN", 16),
        ("OPEN_OUT", 16),
        ("RELEASE_IN", 24),
        ("FLUSH_IN", 24),
        ("READ_IN", 40),
        ("WRITE_IN", 40),
        ("WRITE_OUT", 8),
        ("STATFS_OUT", 80),
        ("FSYNC_IN", 16),
        ("SETXATTR_IN", 8),
        ("SETXATTR_EXT", 8),
        ("GETXATTR_IN", 8),
        ("GETXATTR_OUT", 8),
        ("LK_IN", 48),
        ("FILE_LOCK", 24),
        ("ACCESS_IN", 8),
        ("BMAP_IN", 16),
        ("IOCTL_IN", 32),
        ("IOCTL_OUT", 16),
        ("POLL_IN", 24),
        ("POLL_OUT", 8),
        ("FALLOCATE_IN", 32),
        ("LSEEK_IN", 24),
        ("COPY_FILE_RANGE_IN", 56),
        ("BATCH_FORGET_IN", 8),
        ("FORGET_ONE", 16),
        ("STATX_IN", 24),
        ("STATX_OUT", 288),
        ("DIRENT", 24),
        ("DIRENTPLUS", 152),
        ("NOTIFY_REPLY_IN", 40),
        ("INVAL_INODE_OUT", 24),
        ("INVAL_ENTRY_OUT", 16),
        ("DELETE_OUT", 24),
        ("STORE_OUT", 24),
        ("PRUNE_OUT", 16),
        ("RETRIEVE_OUT", 32),
    ],
)
def test_a_layout_is_as_long_as_the_kernel_has_it(layout, size):
    assert getattr(wire, layout).size == size


def test_a_request_is_read_in_order():
    request = Request(message(Opcode.RENAME2, wire.RENAME2_IN.pack(7, 1) + b"old\0new\0", nodeid=5))
    assert (request.opcode, request.unique, request.nodeid, request.len) == (45, 2, 5, 64)
    assert (request.uid, request.gid, request.pid) == (10, 20, 30)
    assert request.read(wire.RENAME2_IN) == request.pop(wire.RENAME2_IN) == (7, 1)
    assert (request.name(), request.parse_s()) == (b"old", b"new")
    with pytest.raises(ProtocolError):
        request.parse_s()
    with pytest.raises(ProtocolError):
        request.pop(wire.RENAME2_IN)


@pytest.mark.parametrize("name", [b"", b"a/b"])
def test_a_name_that_no_directory_has_is_refused(name):
    with pytest.raises(ProtocolError):
        Request(message(Opcode.LOOKUP, name + b"\0")).name()


def test_what_a_request_says_about_its_file():
    release = Request(message(Opcode.RELEASE, wire.RELEASE_IN.pack(3, os.O_RDWR, 1, 99)))
    assert (release.fh, release.flags, release.lock_owner) == (3, os.O_RDWR, 99)
    xattr = Request(message(Opcode.SETXATTR, wire.SETXATTR_IN.pack(1, 2) + b"user.x\0v"))
    assert (xattr.fh, xattr.flags, xattr.lock_owner) == (None, 2, None)
    asked = [Request(message(Opcode.GETATTR, wire.GETATTR_IN.pack(has, 3))).fh for has in (0, 1)]
    assert asked == [None, 3]
    asked = [Request(message(Opcode.STATX, wire.STATX_IN.pack(has, 3, 0, 0))).fh for has in (0, 1)]
    assert asked == [None, 3]
    for flags, owner in ((0, None), (wire.READ_LOCKOWNER, 99)):
        read = Request(message(Opcode.READ, wire.READ_IN.pack(3, 0, 10, flags, 99, os.O_RDWR)))
        assert (read.fh, read.flags, read.lock_owner) == (3, os.O_RDWR, owner)
    values = [wire.FATTR_FH | wire.FATTR_LOCKOWNER, 3, 0, 99, *[0] * 9]
    change = Request(message(Opcode.SETATTR, wire.SETATTR_IN.pack(*values)))
    assert (change.fh, change.lock_owner) == (3, 99)


class Everything(fuse.Operations):
    """Has every handler, and returns of each what is harmless."""

    enable_acl = True


def _returning(value):
    async def handler(self, *args):
        return value

    return handler


RESULTS = {
    **dict.fromkeys("lookup mknod link getattr setattr statx".split(), made()),
    "mkdir": made(st_mode=stat.S_IFDIR),
    "symlink": made(st_mode=stat.S_IFLNK),
    **dict.fromkeys("create tmpfile".split(), (fuse.FileInfo(fh=1), made())),
    "open": fuse.FileInfo(fh=1),
    "statfs": fuse.StatvfsData(),
    "getlk": fuse.FileLock(0, 1, 2, 3),
    **dict.fromkeys("read readlink getxattr ioctl".split(), b""),
    "listxattr": [],
    "access": True,
    **dict.fromkeys("write opendir lseek bmap poll copy_file_range".split(), 0),
    **dict.fromkeys(
        "forget unlink rmdir rename setxattr removexattr flush release fsync fallocate setlk flock "
        "readdir readdirplus releasedir fsyncdir".split()
    ),
}
for _name, _value in RESULTS.items():
    setattr(Everything, _name, _returning(_value))


def handled(data):
    """What the handlers make of a message; None for one that is refused."""
    table = handlers.Handlers(Everything(), lambda kh: None, stat.S_IFREG).table
    try:
        request = Request(data)
        handler = table.get(request.opcode)
        if handler is not None:
            handler(request).send(None)
    except StopIteration as end:
        return end.value if end.value is not None else b""
    except ProtocolError:
        pass
    except fuse.FUSEError as error:
        assert error.errno == errno.ERANGE or error.errno == errno.EEXIST
    except RuntimeError as error:
        assert "async" in str(error) or "event loop" in str(error)  # a lock wants a cancel scope
    return None


@pytest.mark.parametrize(
    ("opcode", "reply"),
    [(Opcode.COPY_FILE_RANGE, wire.WRITE_OUT), (Opcode.COPY_FILE_RANGE_64, wire.COPIED_OUT)],
)
def test_no_more_is_to_be_copied_than_the_reply_can_tell_of(opcode, reply):
    class Copying(fuse.Operations):
        async def copy_file_range(self, fh_in, off_in, fh_out, off_out, length, flags, ctx):
            lengths.append(length)
            return length

    lengths = []
    handler = handlers.Handlers(Copying(), lambda kh: None).table[opcode]
    body = wire.COPY_FILE_RANGE_IN.pack(3, 0, 2, 4, 0, 5 << 30, 0)
    with pytest.raises(StopIteration) as end:
        handler(Request(message(opcode, body))).send(None)
    assert list(reply.unpack(end.value.value)) == lengths
    assert lengths[0] >= 1 << 31


@given(st.binary(max_size=200))
def test_no_bytes_crash_the_server(data):
    handled(data)


# Locks need an event loop, and are of one layout.
LOOPLESS = sorted(set(negotiation.NEEDED) | {2, 17, 21, 42, 44})


@given(st.sampled_from(LOOPLESS), st.binary(max_size=120))
@example(Opcode.WRITE, wire.WRITE_IN.pack(1, 0, 100, 0, 0, 0))
@example(Opcode.SETXATTR, wire.SETXATTR_IN.pack(1 << 31, 0) + b"user.x\0")
@example(Opcode.BATCH_FORGET, wire.BATCH_FORGET_IN.pack(1 << 31))
@example(Opcode.IOCTL, wire.IOCTL_IN.pack(1, 0, 0, 0, 1 << 31, 0))
@example(Opcode.LOOKUP, b"no end")
def test_no_body_crashes_the_server(opcode, body):
    handled(message(opcode, body))


@given(st.sampled_from(LOOPLESS), st.integers(0, 200))
def test_a_message_of_another_length_than_it_says_is_refused(opcode, length):
    if length != 60:
        with pytest.raises(ProtocolError):
            Request(message(opcode, b"\0" * 20, length=length))


def test_an_entry_is_as_the_kernel_reads_it():
    attr = made(
        st_ino=7,
        generation=3,
        entry_timeout=1.5,
        attr_timeout=0.25,
        st_size=100,
        st_blocks=1,
        st_nlink=2,
        st_uid=3,
        st_gid=4,
        st_rdev=5,
        st_atime_ns=1_000_000_002,
        st_mtime_ns=-1,
        st_ctime_ns=5,
    )
    ino, generation, valid, attr_valid, valid_ns, attr_valid_ns, *rest = wire.ENTRY_OUT.unpack(
        protocol.entry(attr)
    )
    assert (ino, generation) == (7, 3)
    assert (valid, valid_ns, attr_valid, attr_valid_ns) == (1, 500_000_000, 0, 250_000_000)
    assert rest[:3] == [7, 100, 1]
    # Before the epoch: whole seconds downwards, nanoseconds upwards.
    assert rest[3:9] == [1, -1, 0, 2, 999_999_999, 5]
    assert rest[9:] == [stat.S_IFREG | 0o644, 2, 3, 4, 5, 4096, 0]
    assert wire.ATTR_OUT.unpack(protocol.attributes(attr))[2:] == tuple(rest)


def test_computed_sizes_and_times_are_truncated():
    times = {"st_atime_ns": 1.5e9, "st_mtime_ns": 2e9, "st_ctime_ns": -0.5e9}
    attr = made(st_ino=7, st_size=100 / 3, st_blocks=100 / 512, **times)
    rest = wire.ENTRY_OUT.unpack(protocol.entry(attr))[6:]
    assert rest[:9] == (7, 33, 0, 1, 2, -1, 500_000_000, 0, 500_000_000)
    assert wire.ATTR_OUT.unpack(protocol.attributes(attr))[2:] == rest
    found = fuse.StatvfsData(f_bsize=512, f_frsize=512, f_blocks=1000 / 512, f_bavail=7 / 2)
    assert wire.STATFS_OUT.unpack(protocol.statfs(found))[:3] == (1, 0, 3)


@pytest.mark.parametrize("timeout", [float("inf"), 1e30, -1, float("nan")])
def test_any_timeout_can_be_sent(timeout):
    protocol.entry(made(entry_timeout=timeout, attr_timeout=timeout))


@pytest.mark.parametrize(
    "fields",
    [
        {"st_mode": 0o644},
        {"st_mode": 0o170000},
        {"st_size": -1},
        {"st_size": 1 << 63},
        {"st_uid": -1},
        {"st_ino": 1 << 64},
        {"st_atime_ns": 1 << 100},
        {"st_nlink": "1"},
        {"st_size": float("nan")},
        {"st_blocks": float("nan")},
        {"st_uid": -1.0},
        {"st_nlink": "1", "st_blocks": 1.5},
    ],
    ids=repr,
)
def test_attributes_that_the_kernel_would_refuse_are_refused(fields):
    for build in (protocol.attributes, protocol.entry):
        with pytest.raises(ValueError):
            build(made(**fields))


def test_an_inode_of_0_stands_for_no_entry():
    attr = fuse.EntryAttributes(st_ino=0, entry_timeout=2)
    assert wire.ENTRY_OUT.unpack(protocol.entry(attr))[:3] == (0, 0, 2)


def test_a_reply_header():
    assert protocol.reply_header(7, 4) == struct.pack("=IiQ", 20, 0, 7)
    assert protocol.reply_header(7, error=errno.EIO) == struct.pack("=IiQ", 16, -errno.EIO, 7)
    for code in (-1, 512):
        with pytest.raises(ValueError):
            protocol.reply_header(7, error=code)


def test_xattr_replies():
    assert protocol.xattr(b"12345", 0) == wire.GETXATTR_OUT.pack(5)
    assert protocol.xattr(b"12345", 4) is None
    assert protocol.xattr(b"12345", 5) == b"12345"
    assert protocol.xattr_names([b"a", b"bc"]) == b"a\0bc\0"
    with pytest.raises(ValueError):
        protocol.xattr_names([b"a\0"])


def test_reads_and_writes_of_too_much_are_refused():
    assert protocol.data(memoryview(b"1234").cast("I"), 4) == b"1234"
    with pytest.raises(ValueError):
        protocol.data(b"12345", 4)
    for count in (-1, 5):
        with pytest.raises(ValueError):
            protocol.written(count, 4)


def entries(content):
    found = []
    while content:
        ino, off, length, kind = wire.DIRENT.unpack_from(content)
        found.append((ino, off, kind, bytes(content[24 : 24 + length])))
        content = content[(24 + length + 7) & ~7 :]
    return found


@given(
    st.integers(0, 300),
    st.lists(st.binary(min_size=1, max_size=30).filter(lambda n: not {0, 47} & set(n))),
)
def test_entries_are_added_while_there_is_room(size, names):
    reply = Readdir(size)
    taken = [reply.try_add(i, i + 1, stat.S_IFDIR, name) for i, name in enumerate(names)]
    assert len(reply.content) <= size
    assert len(reply.content) % 8 == 0
    assert entries(reply.content) == [
        (i, i + 1, 4, name) for i, (name, took) in enumerate(zip(names, taken, strict=True)) if took
    ]


@pytest.mark.parametrize("name", [b"", b"a/b", b"a\0", b"x" * 1025])
@pytest.mark.parametrize("plus", [False, True])
def test_a_name_that_the_kernel_would_refuse_is_not_listed(name, plus):
    token = fuse.ReaddirToken(4096, {} if plus else None)
    with pytest.raises(ValueError):
        fuse.readdir_reply(token, name, made(), 1)
    assert (token.granted, bytes(token.reply.content)) == ([], b"")


def test_a_token_counts_what_it_has_taken():
    token = fuse.ReaddirToken(400, {})
    assert fuse.readdir_reply(token, b".", made(st_ino=1, st_mode=stat.S_IFDIR), 1)
    assert fuse.readdir_reply(token, b"a", made(), 2)
    assert not fuse.readdir_reply(token, b"b", made(), 3)
    assert token.granted == [(2, 1)]
    for next_id in (0, -1, 1 << 63):
        with pytest.raises(ValueError):
            fuse.readdir_reply(token, b"c", made(), next_id)
    token.close()
    with pytest.raises(ValueError, match="returned"):
        fuse.readdir_reply(token, b"c", made(), 3)


def test_a_handler_that_does_not_stop_in_time_loses_nothing():
    token = fuse.ReaddirToken(100)
    assert fuse.readdir_reply(token, b"a" * 50, made(), 1)
    assert not fuse.readdir_reply(token, b"b" * 50, made(), 2)
    assert not fuse.readdir_reply(token, b"c", made(), 3)
    assert [name for _, _, _, name in entries(token.reply.content)] == [b"a" * 50]


# Negotiation


def init(minor=45, major=7, flags=(1 << 43) - 1, size=64):
    body = wire.INIT_IN.pack(major, minor, 131072, flags & 0xFFFFFFFF, flags >> 32)
    return Request(message(Opcode.INIT, body[:size]))


def test_versions():
    for minor, agreed in ((31, 31), (45, 45), (99, 45)):
        features, reply = negotiation.negotiate(init(minor), fuse.Operations())
        assert features.protocol == (7, agreed)
        assert wire.INIT_OUT.unpack(reply)[:2] == (7, agreed)
    features, reply = negotiation.negotiate(init(major=8), fuse.Operations())
    assert features is None
    assert wire.INIT_OUT.unpack(reply)[0] == 7
    with pytest.raises(ProtocolError, match=r"7\.30"):
        negotiation.negotiate(init(30), fuse.Operations())


def test_a_short_init_has_no_more_flags_than_32():
    features, reply = negotiation.negotiate(init(31, size=16), fuse.Operations())
    assert features.flags < 1 << 32
    assert len(reply) == 64
    with pytest.raises(ProtocolError):
        negotiation.negotiate(init(size=15), fuse.Operations())


def test_only_what_is_offered_is_agreed_on():
    features, reply = negotiation.negotiate(init(flags=InitFlag.ASYNC_READ), Everything())
    assert features.flags == InitFlag.ASYNC_READ
    assert features.max_write == 131072
    assert wire.INIT_OUT.unpack(reply)[3] == InitFlag.ASYNC_READ


def test_a_handler_is_implemented_by_a_class_or_an_object():
    class Some(fuse.Operations):
        async def readdir(self, fh, start_id, token): ...

    some = Some()
    assert negotiation.implemented(some, "readdir")
    assert not negotiation.implemented(some, "lookup")
    some.lookup = some.readdir
    assert negotiation.implemented(some, "lookup")


# Data types


@pytest.mark.parametrize(
    "value",
    [
        made(st_size=5),
        fuse.StatvfsData(f_blocks=3),
        fuse.FileInfo(fh=2, direct_io=True),
        fuse.RequestContext(1, 2, 3, 4),
        fuse.SetattrFields(update_atime=True),
        fuse.FileLock(0, 1, 2, 3),
    ],
    ids=lambda value: type(value).__name__,
)
def test_data_can_be_copied_and_pickled(value):
    for twin in (copy.copy(value), copy.deepcopy(value), pickle.loads(pickle.dumps(value))):
        assert twin == value
        assert type(twin) is type(value)


def test_the_defaults_are_those_that_programs_rely_on():
    attr = fuse.EntryAttributes()
    assert (attr.generation, attr.entry_timeout, attr.attr_timeout) == (0, 300, 300)
    assert (attr.st_nlink, attr.st_blksize, attr.st_mode) == (1, 4096, stat.S_IFREG)
    info = fuse.FileInfo()
    assert (info.fh, info.direct_io, info.keep_cache, info.nonseekable) == (0, False, True, False)
    assert fuse.default_options == frozenset({"default_permissions"})
    error = fuse.FUSEError(errno.ENOENT)
    assert (error.errno, error.errno_, str(error)) == (2, 2, os.strerror(2))
    assert (fuse.ROOT_INODE, fuse.ENOATTR) == (1, errno.ENODATA)
    assert (fuse.RENAME_NOREPLACE, fuse.RENAME_EXCHANGE) == (1, 2)
    assert datatypes.InodeT(5) == 5
    assert fuse.RequestContext() == (0, 0, 0, 0)
    assert fuse.__version__ == metadata.version("truenas-os")


def test_options():
    parsed = options.parse_options({"fsname=a=b,c", "allow_other", "ro", "noexec", "suid", "debug"})
    assert (parsed.fsname, parsed.debug) == ("a=b,c", True)
    assert parsed.settings == {"allow_other": True, "ro": True}
    assert parsed.attributes == options.MountAttr.NODEV | options.MountAttr.NOEXEC
    assert "fsname=a=b\\,c" in parsed.texts()
    parsed = options.parse_options({"default_permissions": False, "max_read": 4096, "dev": True})
    assert parsed.settings == {"max_read": "4096"}
    assert parsed.attributes == options.MountAttr.NOSUID
    # A mount whose server has gone is unmounted in any case.
    assert options.parse_options({"auto_unmount"}) == options.parse_options({})
    off = {"auto_unmount": False}
    for bad in ({"fsname"}, {"ro=1"}, {"max_read"}, {"max_read=x"}, {"nonsense"}, off):
        with pytest.raises(ValueError):
            options.parse_options(bad)
    with pytest.raises(TypeError):
        options.parse_options("ro")
