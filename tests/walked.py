# SPDX-License-Identifier: LGPL-3.0-or-later
"""Walks of either face of the library."""

import gc
import os

import kernel
from faces import block
from grown import Entry, kind
from stuck import until, wait_until

# With descriptors and without.
OPENING = (os.O_RDONLY, None)


def entry(item) -> Entry:
    """What a walk says of an entry."""
    seen = item.statxinfo
    path = os.fsencode(item.path)
    return Entry(kind(seen.stx_mode), item.depth, seen.stx_ino, seen.stx_size, path)


def paths(items) -> list[bytes]:
    return [os.fsencode(item.path) for item in items]


class walking:
    """``async with walking(face, path) as walk: async for item in walk``, on either face.

    With a mount point and a source instead of a path, what `iter_filesystem_contents` makes.
    """

    def __init__(self, face, *where, **options):
        library = face.library
        begin = library.walk if len(where) == 1 else library.iter_filesystem_contents
        self.face = face
        self.walk = begin(*where, **options)

    async def __aenter__(self):
        await block(self.walk).__aenter__()
        return self

    async def __aexit__(self, *exc):
        await block(self.walk).__aexit__(*exc)

    def __aiter__(self):
        return self

    async def __anext__(self):
        return await following(self.face, self.walk)

    def __getattr__(self, name):
        return getattr(self.walk, name)

    async def close(self):
        await self.face.call(self.walk.close if self.face.name == "blocking" else self.walk.aclose)

    async def take(self, count):
        """The next items, and no more."""
        return [await anext(self) for _ in range(count)]

    async def rest(self, errors=None):
        """All other items; OSErrors end it, or go to *errors*."""
        items = []
        while True:
            try:
                items.append(await anext(self))
            except StopAsyncIteration:
                return items
            except OSError as error:
                if errors is None:
                    raise
                assert len(errors) < 10_000, "the same error again and again"
                errors.append(error)

    async def rest_of(self, function):
        """What *function* makes of each other item while its descriptor is open."""
        return [function(item) async for item in self]


async def following(face, iterator):
    """The next one of an iterator of either face."""
    if face.name != "blocking":
        return await anext(iterator)
    try:
        return next(iterator)
    except StopIteration:
        raise StopAsyncIteration from None


async def walked(face, *where, errors=None, **options):
    """The paths of a whole walk."""
    async with walking(face, *where, **options) as walk:
        return paths(await walk.rest(errors))


# The last thread of a walk that has ended may still be on its way out when the next one begins: its
# descriptor is among those before, and not among those after.


async def fds_return_to(before):
    gc.collect()
    await until(lambda: kernel.open_fds().keys() <= before.keys(), "the end of new descriptors")


def fds_return_without_a_loop_to(before):
    gc.collect()
    wait_until(lambda: kernel.open_fds().keys() <= before.keys(), "the end of new descriptors")


async def old_descriptors(face, before):
    if face.name == "blocking":
        fds_return_without_a_loop_to(before)
    else:
        await fds_return_to(before)


def source_of(mount_point) -> str:
    """The source of the mount that is on top there."""
    at = [m for m in kernel.mountinfo() if m.mount_point == os.fspath(mount_point)]
    return at[-1].source
