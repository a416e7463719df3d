# SPDX-License-Identifier: LGPL-3.0-or-later
"""A server whose kernel is the test: whatever it is sent, it answers once and lives on."""

import errno
import random
import select
import socket
import stat
import struct

import anyio
import pytest
from test_fuse_protocol import Everything, init, message

from truenas_os import fuse
from truenas_os.fuse import loops, wire
from truenas_os.fuse.server import Server, SessionEnd
from truenas_os.fuse.wire import Opcode

pytestmark = pytest.mark.anyio

UNANSWERED = {Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT, Opcode.NOTIFY_REPLY}
# A body of each kind that is as it should be.
CORPUS = {
    Opcode.LOOKUP: b"name\0",
    Opcode.FORGET: wire.FORGET_IN.pack(1),
    Opcode.GETATTR: wire.GETATTR_IN.pack(0, 0),
    Opcode.SETATTR: wire.SETATTR_IN.pack(*[0] * 13),
    Opcode.READLINK: b"",
    Opcode.SYMLINK: b"name\0target\0",
    Opcode.MKNOD: wire.MKNOD_IN.pack(0o100644, 0, 0) + b"name\0",
    Opcode.MKDIR: wire.MKDIR_IN.pack(0o755, 0) + b"name\0",
    Opcode.UNLINK: b"name\0",
    Opcode.RMDIR: b"name\0",
    Opcode.RENAME: wire.RENAME_IN.pack(1) + b"old\0new\0",
    Opcode.RENAME2: wire.RENAME2_IN.pack(1, 1) + b"old\0new\0",
    Opcode.LINK: wire.LINK_IN.pack(2) + b"name\0",
    Opcode.OPEN: wire.OPEN_IN.pack(0, 0),
    Opcode.READ: wire.READ_IN.pack(1, 0, 10, 0, 0, 0),
    Opcode.WRITE: wire.WRITE_IN.pack(1, 0, 4, 0, 0, 0) + b"data",
    Opcode.STATFS: b"",
    Opcode.RELEASE: wire.RELEASE_IN.pack(1, 0, 0, 0),
    Opcode.FSYNC: wire.FSYNC_IN.pack(1, 0),
    Opcode.SETXATTR: wire.SETXATTR_IN.pack(1, 0) + b"user.a\0v",
    Opcode.GETXATTR: wire.GETXATTR_IN.pack(10) + b"user.a\0",
    Opcode.LISTXATTR: wire.GETXATTR_IN.pack(10),
    Opcode.REMOVEXATTR: b"user.a\0",
    Opcode.FLUSH: wire.FLUSH_IN.pack(1, 0),
    Opcode.OPENDIR: wire.OPEN_IN.pack(0, 0),
    Opcode.READDIR: wire.READ_IN.pack(1, 0, 4096, 0, 0, 0),
    Opcode.READDIRPLUS: wire.READ_IN.pack(1, 0, 4096, 0, 0, 0),
    Opcode.RELEASEDIR: wire.RELEASE_IN.pack(1, 0, 0, 0),
    Opcode.FSYNCDIR: wire.FSYNC_IN.pack(1, 0),
    Opcode.GETLK: wire.LK_IN.pack(1, 2, 0, 9, 0, 3, 0),
    Opcode.SETLK: wire.LK_IN.pack(1, 2, 0, 9, 0, 3, 0),
    Opcode.SETLKW: wire.LK_IN.pack(1, 2, 0, 9, 0, 3, 1),
    Opcode.ACCESS: wire.ACCESS_IN.pack(4),
    Opcode.CREATE: wire.CREATE_IN.pack(0, 0o644, 0, 0) + b"name\0",
    Opcode.INTERRUPT: wire.INTERRUPT_IN.pack(7),
    Opcode.BMAP: wire.BMAP_IN.pack(1, 512),
    Opcode.DESTROY: b"",
    Opcode.IOCTL: wire.IOCTL_IN.pack(1, 0, 0, 0, 4, 4) + b"data",
    Opcode.POLL: wire.POLL_IN.pack(1, 2, 1, 1),
    Opcode.NOTIFY_REPLY: wire.NOTIFY_REPLY_IN.pack(0, 4) + b"data",
    Opcode.BATCH_FORGET: wire.BATCH_FORGET_IN.pack(1) + wire.FORGET_ONE.pack(1, 1),
    Opcode.FALLOCATE: wire.FALLOCATE_IN.pack(1, 0, 10, 0),
    Opcode.LSEEK: wire.LSEEK_IN.pack(1, 0, 3),
    Opcode.COPY_FILE_RANGE: wire.COPY_FILE_RANGE_IN.pack(1, 0, 1, 1, 0, 10, 0),
    Opcode.COPY_FILE_RANGE_64: wire.COPY_FILE_RANGE_IN.pack(1, 0, 1, 1, 0, 10, 0),
    Opcode.TMPFILE: wire.CREATE_IN.pack(0, 0o644, 0, 0) + b"\0",
    Opcode.STATX: wire.STATX_IN.pack(0, 0, 0, 0),
}


class Served(Everything):
    """With what the kernel asks for in the plain form, and with all of it."""

    enable_acl = False
    enable_writeback_cache = False


class Kernel:
    """The other end of a server's connection."""

    def __init__(self, operations):
        self.ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.setblocking(False)
        self.theirs = theirs
        self.unique = 2
        self.server = Server(
            operations,
            theirs.fileno(),
            loops.running_loop(),
            max_tasks=9,
            grace=0.1,
            root_mode=stat.S_IFREG,
        )

    async def __aenter__(self):
        async def run():
            await self.server.run()
            self.server.finished.set()

        self.server._loop.spawn(run)
        body = init().body
        assert (await self.ask(Opcode.INIT, body))[1] == 0
        return self

    async def __aexit__(self, *exc):
        self.server.stop(SessionEnd.CLOSED)
        await self.server.finished.wait()
        self.ours.close()
        self.theirs.close()

    async def ask(self, opcode, body):
        """The parts of the reply; None where there is none by the time of the next one."""
        self.unique += 2
        self.ours.send(message(opcode, body, unique=self.unique))
        if opcode in UNANSWERED:
            return None
        with anyio.fail_after(10):
            while not select.select([self.ours], [], [], 0)[0]:
                await anyio.sleep(0)
        reply = self.ours.recv(1 << 21)
        size, code, unique = struct.unpack_from("=IiQ", reply)
        assert (size, unique) == (len(reply), self.unique)
        assert -512 < code <= 0
        assert code == 0 or size == 16
        return size, code


async def test_the_corpus_is_served():
    async with Kernel(Served()) as kernel:
        for opcode, body in CORPUS.items():
            reply = await kernel.ask(opcode, body)
            assert reply is None or reply[1] == 0, opcode
        assert (
            not set(Opcode)
            - set(CORPUS)
            - {
                *(Opcode.INIT, Opcode.SETUPMAPPING, Opcode.REMOVEMAPPING, Opcode.SYNCFS),
                *(Opcode.SETVOLNAME, Opcode.GETXTIMES, Opcode.EXCHANGE),
            }
        )


async def test_what_is_truncated_is_refused(caplog):
    async with Kernel(Served()) as kernel:
        for opcode, body in CORPUS.items():
            for length in range(len(body)):
                reply = await kernel.ask(opcode, body[:length])
                if reply is not None and not (
                    opcode in (Opcode.OPENDIR, Opcode.GETATTR, Opcode.POLL)
                    or length >= len(body) - 8
                ):
                    assert reply[1] == -errno.EINVAL, (opcode, length)
        reply = await kernel.ask(Opcode.LOOKUP, b"name\0")
        assert reply[1] == 0


@pytest.mark.parametrize("operations", [Served, Everything, fuse.Operations])
async def test_any_operation_code_with_any_body_is_answered(operations, caplog):
    source = random.Random(5)
    async with Kernel(operations()) as kernel:
        for opcode in [*range(64), 4096, 1 << 31]:
            if opcode == Opcode.INIT:
                continue  # the kernel asks once
            known = {int(each) for each in CORPUS}
            for _ in range(20):
                reply = await kernel.ask(opcode, source.randbytes(source.randrange(100)))
                if opcode not in known:
                    assert reply == (16, -errno.ENOSYS)


async def test_messages_that_are_none_are_passed_over(caplog):
    source = random.Random(6)
    async with Kernel(Served()) as kernel:
        for length in range(1, 120):
            kernel.ours.send(source.randbytes(length))
        reply = await kernel.ask(Opcode.LOOKUP, b"name\0")
        assert reply == (144, 0)
    assert len(caplog.records) == 119
