#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-3.0-or-later
"""Run a command in a root filesystem of its own, as a root who is nobody outside. Needs root.

Usage: container_rootfs.py --layer IMAGE --state DIR [--volume SOURCE:PATH] -- COMMAND [ARG...]

What it is made of:
- the layers are shown under other ids (idmapped mounts), so that what belongs to user 0 on the disk
  belongs to user 100000 here, who is user 0 in the container's user namespace;
- an overlay has the layers below, read-only, and DIR/upper on top, which takes all changes, as
  files of user 100000 and so on;
- each volume is bound into it, idmapped, so that root in there is root on its disk; and as a slave:
  what is mounted below SOURCE meanwhile comes up in the container (not idmapped), and nothing that
  is mounted there ever comes out.

Everything is unmounted at the end, unless this program is killed: SIGTERM and Ctrl-C terminate the
command, which is waited for. The exit status is the command's, 128 and the signal's number if one
has ended it. This is about mounts: what else keeps a container in (pivot_root, other namespaces,
seccomp) is not here.
"""

import argparse
import contextlib
import os
import signal
import sys
import tempfile
from typing import NamedTuple

import anyio

import truenas_os
from truenas_os import (
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    MS_PRIVATE,
    MS_SLAVE,
    RESOLVE_IN_ROOT,
    IdmapMapping,
)

ATTR = MOUNT_ATTR_NODEV | MOUNT_ATTR_NOSUID


class Volume(NamedTuple):
    source: str
    path: str


def volume(text: str) -> Volume:
    source, colon, path = text.rpartition(":")
    if not (colon and source and path.startswith("/")):
        raise argparse.ArgumentTypeError(f"{text!r} is not SOURCE:/PATH")
    return Volume(source, path)


class Container:
    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.ids = [IdmapMapping(0, args.first_id, args.ids)]
        # In reverse order, this is what takes everything down again.
        self.mounts = contextlib.AsyncExitStack()

    async def shifted(self, source: str, target: str, attr: int, propagation: int) -> None:
        """Show *source* at *target*, its owners shifted."""
        idmap = self.ids, self.ids
        await self.mounts.enter_async_context(
            truenas_os.bind(source, target, attr=attr, propagation=propagation, idmap=idmap)
        )

    async def assemble(self, scratch: str) -> str:
        """Mount everything below the directory *scratch*; the path of the root filesystem."""
        lower = []
        for number, layer in enumerate(self.args.layer):
            lower.append(self.made(f"{scratch}/layer{number}"))
            await self.shifted(layer, lower[-1], ATTR | MOUNT_ATTR_RDONLY, MS_PRIVATE)
        root, upper, work = self.made(f"{scratch}/root"), self.at("upper"), self.at("work")
        await self.mounts.enter_async_context(
            truenas_os.overlay(root, lower, upper=upper, work=work, attr=ATTR)
        )
        self.mounts.push_async_callback(detach, root)
        for each in self.args.volume:
            # The layers are not trusted: a symlink in them must not lead out of the root.
            async with await self.within(root, each.path) as target:
                where = os.readlink(f"/proc/self/fd/{target}")
                await self.shifted(each.source, where, ATTR, MS_SLAVE)
            self.mounts.push_async_callback(detach, where)
        return root

    def made(self, path: str) -> str:
        """A directory until the end; only if it is empty: never remove what is mounted there."""
        os.mkdir(path)
        self.mounts.callback(os.rmdir, path)
        return path

    def at(self, name: str) -> str:
        """A directory that belongs to the container's root."""
        path = f"{self.args.state}/{name}"
        os.makedirs(path, exist_ok=True)
        os.chown(path, self.args.first_id, self.args.first_id)
        return path

    async def within(self, root: str, path: str) -> truenas_os.Fd:
        flags = os.O_PATH | os.O_DIRECTORY
        async with await truenas_os.openat2(truenas_os.AT_FDCWD, root, flags) as fd:
            return await truenas_os.openat2(fd, path, flags, resolve=RESOLVE_IN_ROOT)

    async def run(self) -> int:
        async with await truenas_os.idmap_userns(self.ids, self.ids) as userns, self.mounts:
            scratch = tempfile.mkdtemp()
            self.mounts.callback(os.rmdir, scratch)
            # The container's root gets through, and nobody else.
            os.chown(scratch, self.args.first_id, self.args.first_id)
            return await self.command(await self.assemble(scratch), userns)

    async def command(self, root: str, userns: int) -> int:
        namespace = ["nsenter", f"--user=/proc/self/fd/{userns}", "--setuid=0", "--setgid=0"]
        # Its mount namespace belongs to that user namespace: what it mounts stays in there.
        inside = ["unshare", "--mount", "--propagation=slave", "chroot", root]
        command = [*namespace, *inside, *self.args.command]
        process = await anyio.open_process(
            command, stdin=None, stdout=None, stderr=None, pass_fds=[userns]
        )
        try:
            status = await process.wait()
        except anyio.get_cancelled_exc_class():
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            with anyio.CancelScope(shield=True):
                await process.wait()
            raise
        return status if status >= 0 else 128 - status


async def detach(target: str) -> None:
    """Unmount what is there, with all that has come up below it meanwhile."""
    with anyio.CancelScope(shield=True):
        await truenas_os.umount(target, lazy=True)


async def run(container: Container) -> int:
    """Run it until the command ends or a signal comes; the exit status."""
    status = 0

    async def stop_on_signal() -> None:
        nonlocal status
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for number in signals:
                status = 128 + number
                tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stop_on_signal)
        status = await container.run()
        tasks.cancel_scope.cancel()
    return status


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Run a command in a root filesystem and a user namespace of its own."
    )
    parser.add_argument(
        "--layer", action="append", required=True, help="a directory; may be repeated, upmost first"
    )
    parser.add_argument("--state", required=True, help="the directory that takes all changes")
    parser.add_argument("--volume", action="append", type=volume, default=[], metavar="SOURCE:PATH")
    parser.add_argument("--first-id", type=int, default=100000, help="default: %(default)s")
    parser.add_argument("--ids", type=int, default=65536, help="how many; default: %(default)s")
    parser.add_argument("command", nargs="+")
    container = Container(parser.parse_args())
    status = 1
    try:
        status = anyio.run(run, container)
    except* (OSError, ValueError) as group:
        for error in group.exceptions:
            notes = getattr(error, "__notes__", ())
            print(f"{parser.prog}: {error}", *notes, sep="\n", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
