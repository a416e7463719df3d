# SPDX-License-Identifier: LGPL-3.0-or-later
"""Both faces of the library behind one interface, for tests that hold for either."""

from functools import partial

import anyio

import truenas_os
from truenas_os import blocking


class Face:
    """One of the two faces: the async one runs a loop of its own for every call."""

    def __init__(self, *backend):
        self.backend = backend

    def __getattr__(self, name):
        if not self.backend:
            return getattr(blocking, name)
        return lambda *args, **kwargs: self._run(getattr(truenas_os, name), *args, **kwargs)

    def iter_mount(self, *args, into=None, **kwargs):
        """The whole listing, also in *into*, where what came before an error can be found."""
        into = [] if into is None else into
        if not self.backend:
            for mount in blocking.iter_mount(*args, **kwargs):
                into.append(mount)
            return into

        async def collect():
            async for mount in truenas_os.iter_mount(*args, **kwargs):
                into.append(mount)
            return into

        return self._run(collect)

    def listings(self, times, *args, **kwargs):
        """The ids of so many listings, one after the other in one event loop."""
        if not self.backend:
            return [[m.mnt_id for m in blocking.iter_mount(*args, **kwargs)] for _ in range(times)]

        async def collect():
            return [
                [m.mnt_id async for m in truenas_os.iter_mount(*args, **kwargs)]
                for _ in range(times)
            ]

        return self._run(collect)

    def _run(self, function, *args, **kwargs):
        name, options = self.backend
        return anyio.run(partial(function, *args, **kwargs), backend=name, backend_options=options)
