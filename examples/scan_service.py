#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-3.0-or-later
"""Make a catalogue of all files below a directory: path, size and SHA-256, as lines of JSON.

Usage: scan_service.py ROOT CATALOGUE. It may be stopped and killed at any time, as services are:
started again it goes on, and the catalogue has every file exactly once. The exit status is 0 when
the catalogue is complete, and 143 or 130 when SIGTERM or Ctrl-C came first.

Beside the catalogue is CATALOGUE.state. It has the walk's resume token, and how long the catalogue
was at that point: what was written after it is cut off when the work goes on. A catalogue that is
shorter than that, or gone, is begun anew. A file that cannot be read has an "error" instead.
"""

import argparse
import base64
import hashlib
import json
import logging
import os
import signal
import sys
import time
from typing import Literal

import anyio
import anyio.from_thread
import anyio.to_thread

import truenas_os

log = logging.getLogger("scan")
CHUNK = 1 << 20


class Catalogue:
    """Lines, and the place in the walk that they have come to."""

    def __init__(self, path: str, save_every: float) -> None:
        self.path = os.path.realpath(path)
        self.save_every = save_every
        self.saved_at = 0.0

    async def state(self) -> tuple[bytes | None, int]:
        """The token to go on from, if there is one, and how long the catalogue was."""
        try:
            async with await truenas_os.safe_open(self.path + ".state") as file:
                state = json.loads(await file.read())
            token, length = base64.b64decode(state["token"]), int(state["length"])
        except FileNotFoundError:
            return None, 0
        except (LookupError, TypeError) as error:
            raise ValueError("it has no token and length") from error
        if await self.length() < length:
            log.warning("%s is shorter than it was", self.path)
            return None, 0
        return token, length

    async def length(self) -> int:
        try:
            return (await truenas_os.statx(truenas_os.AT_FDCWD, self.path)).stx_size
        except FileNotFoundError:
            return 0

    async def open(self, length: int, token: bytes) -> None:
        """Open it to go on from *token*, or to begin."""
        self.file = await truenas_os.safe_open(self.path, "ab")
        try:
            await self.file.truncate(length)
            self.token = token
            await self.save()
        except BaseException:
            await self.close()
            raise

    async def add(self, lines: list[str], token: bytes) -> None:
        """Append what was found up to *token*."""
        with anyio.CancelScope(shield=True):  # all of them or none
            await self.file.write("".join(lines).encode())
            self.token = token
            if time.monotonic() - self.saved_at > self.save_every:
                await self.save()

    async def save(self) -> None:
        """Make sure that the work goes on from here, also after a crash of the machine."""
        await self.file.fsync()
        token = base64.b64encode(self.token).decode()
        state = {"token": token, "length": os.fstat(self.file.fileno()).st_size}
        await truenas_os.atomic_replace(self.path + ".state", json.dumps(state))
        self.saved_at = time.monotonic()

    async def finish(self) -> None:
        await self.file.fsync()
        os.unlink(self.path + ".state")

    async def close(self) -> None:
        with anyio.CancelScope(shield=True):
            await self.file.aclose()


def describe(items: list[truenas_os.IterInstance]) -> list[str]:
    """The lines of the regular files; in a thread, since reading them takes its time."""
    return [line_of(item) for item in items if item.isreg]


def line_of(item: truenas_os.IterInstance) -> str:
    digest, size = hashlib.sha256(), 0
    line: dict[str, object] = {"path": item.path}
    try:
        while chunk := os.pread(item.fd, CHUNK, size):
            anyio.from_thread.check_cancelled()  # a large file does not delay the end
            digest.update(chunk)
            size += len(chunk)
        line |= {"size": size, "sha256": digest.hexdigest()}
    except OSError as error:
        log.warning("cannot be read: %r: %s", item.path, error.strerror)
        line["error"] = error.strerror
    return json.dumps(line) + "\n"


def skip(error: OSError) -> Literal["skip"]:
    log.warning("left out: %s", error)
    return "skip"


def report(progress: truenas_os.WalkProgress) -> None:
    state = progress.state
    of_all = f" of at most {progress.total:,}" if progress.total else ""
    log.info(f"{state.cnt:,}{of_all}, {state.cnt_bytes:,} bytes, {progress.elapsed:.0f} s")


async def scan(root: str, catalogue: Catalogue) -> None:
    token, length = await catalogue.state()
    log.info("begins" if token is None else "goes on")
    async with truenas_os.walk(
        root, resume_from=token, on_error=skip, progress=report, progress_interval=1
    ) as items:
        # Only now: what cannot be scanned leaves the catalogue of another day as it was.
        await catalogue.open(length, items.resume_token())
        try:
            async for batch in items.batches(64):
                lines = await anyio.to_thread.run_sync(describe, batch)
                await catalogue.add(lines, items.resume_token())
            await catalogue.finish()
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await catalogue.save()
            raise
        finally:
            await catalogue.close()
    log.info("complete")


async def serve(root: str, catalogue: Catalogue) -> int:
    """Scan until all is done or a signal comes; the exit status."""
    status = 0

    async def stop_on_signal() -> None:
        nonlocal status
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for number in signals:
                log.info("stops because of %s", signal.Signals(number).name)
                status = 128 + number
                tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stop_on_signal)
        await scan(root, catalogue)
        status = 0  # even if a signal came in the last moment
        tasks.cancel_scope.cancel()
    return status


def main() -> int:
    parser = argparse.ArgumentParser(description="Make a catalogue of all files in a directory.")
    parser.add_argument("root", help="a directory, without symlinks in its path")
    parser.add_argument("catalogue", help="the file to write, outside of it")
    parser.add_argument(
        "--save-every", type=float, default=5, metavar="SECONDS", help="default: %(default)s"
    )
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    status = 1
    try:
        status = anyio.run(serve, args.root, Catalogue(args.catalogue, args.save_every))
    except* OSError as group:
        for error in group.exceptions:
            log.error("%s", error)
    except* ValueError as bad:  # no JSON, or a token of another filesystem
        for each in bad.exceptions:
            log.error("%s.state: %s", args.catalogue, each)
    return status


if __name__ == "__main__":
    sys.exit(main())
