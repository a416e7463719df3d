# SPDX-License-Identifier: LGPL-3.0-or-later
"""Both faces of the library behind one interface, for tests that hold for either."""

import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

import truenas_os
from truenas_os import blocking

NAMES = ("blocking", "asyncio", "uvloop", "trio")


class Face:
    """One face of the library. Its calls are awaited, whichever it is."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.library = blocking if name == "blocking" else truenas_os
        self.Fd = self.library.Fd

    def __repr__(self) -> str:
        return self.name

    @staticmethod
    async def call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        return await result if inspect.isawaitable(result) else result

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        return functools.partial(self.call, getattr(self.library, name))

    async def close(self, fd: blocking.Fd) -> None:
        await self.call(fd.close if self.name == "blocking" else fd.aclose)

    def run(self, body: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        """Run a coroutine function on the face's event loop; the blocking face has none."""
        if self.name == "blocking":
            try:
                body(*args).send(None)
            except StopIteration as end:
                return end.value
            raise RuntimeError("a call of the blocking face gave way to an event loop")
        if self.name == "trio":
            return anyio.run(body, *args, backend="trio")
        options = {"use_uvloop": self.name == "uvloop"}
        return anyio.run(body, *args, backend="asyncio", backend_options=options)


every_face = pytest.mark.parametrize("face", [Face(name) for name in NAMES], ids=repr)


def on_both_faces(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Make of ``async def test(face, ...)`` four tests: blocking, asyncio, uvloop and trio."""

    @every_face
    @functools.wraps(test)
    def run(face: Face, **fixtures: Any) -> None:
        face.run(functools.partial(test, face, **fixtures))

    return run


class opened:
    """``async with opened(face, ...) as fd``: what openat2 opens, closed at the end."""

    def __init__(self, face, *args, **kwargs):
        self.face, self.args, self.kwargs = face, args, kwargs

    async def __aenter__(self):
        self.fd = await self.face.openat2(*self.args, **self.kwargs)
        return self.fd

    async def __aexit__(self, *exc):
        await self.face.close(self.fd)


class block:
    """``async with block(face.library.mounted(...))``: with the block of either face."""

    def __init__(self, made):
        self.made = made

    async def __aenter__(self):
        if hasattr(self.made, "__aenter__"):
            return await self.made.__aenter__()
        return self.made.__enter__()

    async def __aexit__(self, *exc):
        if hasattr(self.made, "__aexit__"):
            return await self.made.__aexit__(*exc)
        return self.made.__exit__(*exc)


class Driven:
    """A face for tests that are no coroutines: every call runs an event loop of its own."""

    def __init__(self, face):
        self.face = face

    def __getattr__(self, name):
        return functools.partial(self._run, getattr(self.face, name))

    def iter_mount(self, *args, into=None, **kwargs):
        """The whole listing, also in *into*, where what came before an error can be found."""
        into = [] if into is None else into
        if self.face.name == "blocking":
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
        if self.face.name == "blocking":
            return [[m.mnt_id for m in blocking.iter_mount(*args, **kwargs)] for _ in range(times)]

        async def collect():
            return [
                [m.mnt_id async for m in truenas_os.iter_mount(*args, **kwargs)]
                for _ in range(times)
            ]

        return self._run(collect)

    def _run(self, function, *args, **kwargs):
        return self.face.run(functools.partial(function, *args, **kwargs))
