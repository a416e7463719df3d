# SPDX-License-Identifier: LGPL-3.0-or-later
"""atomic_write and safe_open beside what one would use instead.

Run as ``python benchmarks/safefiles.py [DIRECTORY]``; the files are written in a new directory in
DIRECTORY, which is that of temporary files unless it is given.
"""

import asyncio
import os
import sys
import tempfile
from collections.abc import Callable

from ratios import compare, compare_async

import truenas_os
from truenas_os import blocking

DATA = b"x" * 4096


def recipe(path: str, *, durable: bool, directory_too: bool = False) -> None:
    """What programs do: a temporary file in the directory, fsync, os.replace."""
    directory = os.path.dirname(path)
    with tempfile.NamedTemporaryFile(dir=directory, delete=False) as file:
        file.write(DATA)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    os.replace(file.name, path)
    if directory_too:
        fd = os.open(directory, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)


def read_all(opening: Callable[[str], object], path: str) -> None:
    with opening(path) as file:  # type: ignore[attr-defined]
        file.read()


def blocking_face(path: str) -> None:
    def write(durable: bool) -> None:
        with blocking.atomic_write(path, "wb", durable=durable) as file:
            file.write(DATA)

    compare(
        "4 KiB replace a file, not durable (target: at most 1)",
        {
            "tempfile, os.replace": lambda: recipe(path, durable=False),
            "blocking.atomic_write": lambda: write(False),
            "blocking.atomic_replace": lambda: blocking.atomic_replace(path, DATA, durable=False),
        },
        300,
    )
    compare(
        "4 KiB replace a file, durable (target: at most 1)",
        {
            "tempfile, fsync, os.replace, fsync of the directory": lambda: recipe(
                path, durable=True, directory_too=True
            ),
            "the same without the directory, a weaker promise": lambda: recipe(path, durable=True),
            "blocking.atomic_write": lambda: write(True),
            "blocking.atomic_replace": lambda: blocking.atomic_replace(path, DATA),
        },
        100,
    )
    compare(
        "open, read and close 4 KiB, blocking face (target: at most 1.5)",
        {
            "open": lambda: read_all(open, path),
            "blocking.safe_open": lambda: read_all(blocking.safe_open, path),
        },
        5000,
    )


async def async_face(path: str) -> None:
    async def safe_read() -> None:
        async with await truenas_os.safe_open(path, "rb") as file:
            await file.read()

    await compare_async(
        "open, read and close 4 KiB, asyncio (target: none)",
        {
            "to_thread(open, read and close)": lambda: asyncio.to_thread(read_all, open, path),
            "safe_open, read, aclose": safe_read,
        },
        1,
        300,
    )
    await compare_async(
        "4 KiB replace a file, durable, asyncio (target: none)",
        {
            "to_thread(the recipe)": lambda: asyncio.to_thread(
                recipe, path, durable=True, directory_too=True
            ),
            "await atomic_replace(path, data)": lambda: truenas_os.atomic_replace(path, DATA),
        },
        1,
        50,
    )


def main() -> None:
    print(f"Python {sys.version.split()[0]}, Linux {os.uname().release}, {os.cpu_count()} CPUs")
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if sys.argv[1:] else None) as directory:
        mount = blocking.mount_of(directory)
        path = os.path.join(directory, "file")
        blocking.atomic_replace(path, DATA)
        print(f"on {mount.mnt_point}")
        blocking_face(path)
        asyncio.run(async_face(path))


if __name__ == "__main__":
    main()
