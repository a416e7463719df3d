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

Everything is unmounted at the end, however it ends; the exit status is the command's. This is about
mounts: what else keeps a container in (pivot_root, other namespaces, seccomp) is not here.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
from typing import NamedTuple

import anyio
import anyio.to_thread

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
        async with self.mounts:
            scratch = tempfile.mkdtemp()
            self.mounts.callback(os.rmdir, scratch)
            # The container's root gets through, and nobody else.
            os.chown(scratch, self.args.first_id, self.args.first_id)
            root = await self.assemble(scratch)
            async with await truenas_os.idmap_userns(self.ids, self.ids) as userns:
                return await anyio.to_thread.run_sync(self.command, root, userns)

    def command(self, root: str, userns: int) -> int:
        namespace = ["nsenter", f"--user=/proc/self/fd/{userns}", "--setuid=0", "--setgid=0"]
        # Its mount namespace belongs to that user namespace: what it mounts stays in there.
        inside = ["unshare", "--mount", "--propagation=slave", "chroot", root]
        command = [*namespace, *inside, *self.args.command]
        return subprocess.run(command, pass_fds=[userns], check=False).returncode


async def detach(target: str) -> None:
    """Unmount what is there, with all that has come up below it meanwhile."""
    with anyio.CancelScope(shield=True):
        await truenas_os.umount(target, lazy=True)


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
    try:
        return anyio.run(Container(parser.parse_args()).run)
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        print(
            f"{parser.prog}: {error}", *getattr(error, "__notes__", ()), sep="\n", file=sys.stderr
        )
        return 1


if __name__ == "__main__":
    sys.exit(main())
