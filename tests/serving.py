# SPDX-License-Identifier: LGPL-3.0-or-later
"""What tests of the FUSE server share: a small filesystem, and clients in processes of their own.

A thread of the serving process that touches its own mount may hang for ever, and so may a client
whose request is never answered: every client has a timeout, after which the connection is aborted.
"""

import errno
import functools
import os
import signal
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import anyio

import truenas_os.blocking
from truenas_os import fuse

AMPLE = 20


class Files(fuse.Operations):
    """A directory of regular files, kept in memory; it counts its lookups as the kernel must."""

    def __init__(self, **files):
        self.inodes = {}
        self.names = {}
        self.lookups = {}
        self.destroyed = 0
        for name, content in files.items():
            self.add(os.fsencode(name), content)

    def add(self, name, content=b"", mode=stat.S_IFREG | 0o644):
        inode = max(self.inodes, default=1) + 1
        self.inodes[inode] = [bytearray(content), mode]
        self.names[name] = inode
        return inode

    def attributes(self, inode):
        attr = fuse.EntryAttributes(st_ino=inode, entry_timeout=0, attr_timeout=0)
        if inode == fuse.ROOT_INODE:
            attr.st_mode = stat.S_IFDIR | 0o777
            return attr
        try:
            content, attr.st_mode = self.inodes[inode]
        except KeyError:
            raise fuse.FUSEError(errno.ENOENT) from None
        attr.st_size = len(content)
        return attr

    def entry(self, inode):
        attr = self.attributes(inode)
        self.lookups[inode] = self.lookups.get(inode, 0) + 1
        return attr

    async def lookup(self, parent_inode, name, ctx):
        try:
            return self.entry(self.names[name])
        except KeyError:
            raise fuse.FUSEError(errno.ENOENT) from None

    async def forget(self, inode_list):
        for inode, count in inode_list:
            self.lookups[inode] -= count

    async def getattr(self, inode, ctx):
        return self.attributes(inode)

    async def setattr(self, inode, attr, fields, fh, ctx):
        content, mode = self.inodes[inode]
        if fields.update_size:
            content[attr.st_size :] = bytes(max(0, attr.st_size - len(content)))
        if fields.update_mode:
            self.inodes[inode][1] = stat.S_IFMT(mode) | stat.S_IMODE(attr.st_mode)
        return self.attributes(inode)

    async def create(self, parent_inode, name, mode, flags, ctx):
        inode = self.add(name, mode=mode)
        return fuse.FileInfo(fh=inode), self.entry(inode)

    async def open(self, inode, flags, ctx):
        return fuse.FileInfo(fh=inode)

    async def read(self, fh, off, size):
        return bytes(self.inodes[fh][0][off : off + size])

    async def write(self, fh, off, buf):
        content = self.inodes[fh][0]
        content[off : off + len(buf)] = bytes(max(0, off - len(content))) + buf
        return len(buf)

    async def unlink(self, parent_inode, name, ctx):
        del self.names[name]

    async def opendir(self, inode, ctx):
        return fuse.ROOT_INODE

    async def readdir(self, fh, start_id, token):
        for number, (name, inode) in enumerate(sorted(self.names.items()), 1):
            if number > start_id:
                if not fuse.readdir_reply(token, name, self.attributes(inode), number):
                    break
                self.lookups[inode] = self.lookups.get(inode, 0) + 1

    async def destroy(self):
        self.destroyed += 1


class Client:
    """A Python program in a process of its own, whose variable ``top`` is the mount point."""

    def __init__(self, session, program, *args, stdin=None):
        self.session = session
        program = f"import errno, os, sys\ntop = sys.argv[1]\n{textwrap.dedent(program)}"
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, session.mountpoint, *map(str, args)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            stdin=stdin,
        )

    async def end(self):
        """Wait for it, and return what it has printed."""
        try:
            return await anyio.to_thread.run_sync(
                functools.partial(self.process.communicate, timeout=AMPLE)
            )
        except subprocess.TimeoutExpired:
            # Not even SIGKILL ends a wait for a reply.
            await anyio.to_thread.run_sync(self.session._mount.abort)
            self.process.kill()
            raise

    def interrupt(self):
        self.process.send_signal(signal.SIGINT)


async def client(session, program, *args):
    """Run a program to its end; what it has printed. Fails if it does."""
    running = Client(session, program, *args)
    out, err = await running.end()
    assert running.process.returncode == 0, err
    return out.strip()


async def error_of(session, expression):
    """The name of the errno with which an expression fails in another process."""
    return await client(
        session,
        f"""
        try:
            {expression}
        except OSError as error:
            print(errno.errorcode[error.errno])
        """,
    )


def is_mounted(path):
    return any(
        line.split()[4] == os.fspath(path)
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
    )


def mount_id(path):
    (mount,) = (m for m in truenas_os.blocking.mount_tree() if m.mnt_point == str(path))
    return mount.mnt_id


def guards():
    """The processes that guard a mount of this namespace, and the arguments of each."""
    found, here = {}, os.readlink("/proc/self/ns/mnt")
    for each in Path("/proc").iterdir():
        if each.name.isdigit():
            try:
                arguments = (each / "cmdline").read_bytes().split(b"\0")
                is_here = os.readlink(each / "ns/mnt") == here
            except OSError:
                continue
            if is_here and len(arguments) > 5 and arguments[3].endswith(b"/fuse/guard.py"):
                found[int(each.name)] = arguments[4:]
    return found


def guards_of(path):
    number = str(mount_id(path)).encode()
    return [pid for pid, arguments in guards().items() if arguments[0] == number]
