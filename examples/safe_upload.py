#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-3.0-or-later
"""Take uploads into a directory in which others may put what they like, symlinks included.

Usage: safe_upload.py ROOT [--port N], then ``curl -T file http://127.0.0.1:8000/some/directory/``.
It needs starlette and uvicorn.

- The directory is opened with RESOLVE_BENEATH, in one system call: neither ``..`` nor an absolute
  path nor a symlink leads out of ROOT, also if one is put in place at this very moment.
- From then on the directory is a descriptor. Who renames it, or puts a symlink where it was, leads
  nobody astray.
- The file gets its name when it is complete, in one step. Who reads it meanwhile has the old
  content or the new; an upload that breaks off leaves nothing behind.
"""

import argparse
import errno
import os
from urllib.parse import unquote_to_bytes

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

import truenas_os
from truenas_os import RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS

RESOLVE = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
STATUSES = {
    errno.ENOENT: 404,
    errno.ENOTDIR: 404,
    errno.EXDEV: 403,  # it would leave the directory
    errno.ELOOP: 403,  # a symlink
    errno.EACCES: 403,
    errno.EOPNOTSUPP: 409,  # a FIFO, socket or device has the name
    errno.EISDIR: 409,
    errno.EEXIST: 409,
    errno.ENAMETOOLONG: 414,
    errno.ENOSPC: 507,
    errno.EDQUOT: 507,
}


class Uploads:
    """The handler of ``PUT /PATH``."""

    def __init__(self, root: str, limit: int) -> None:
        self.root = os.open(root, os.O_PATH | os.O_DIRECTORY)
        self.limit = limit

    async def put(self, request: Request) -> Response:
        # The bytes of the path as they were sent, of which one slash is HTTP's.
        path = unquote_to_bytes(request.scope["raw_path"])[1:]
        directory, _, name = path.rpartition(b"/")
        if path.startswith(b"/") and not directory:
            directory = b"/"
        if name in (b"", b".", b"..") or b"\0" in path:
            raise HTTPException(400, "the path names no file")
        try:
            await self.store(request, directory or b".", name)
        except OSError as error:
            if (status := STATUSES.get(error.errno or 0)) is None:
                raise
            raise HTTPException(status, error.strerror) from error
        return Response(status_code=204)

    async def store(self, request: Request, directory: bytes, name: bytes) -> None:
        flags = os.O_RDONLY | os.O_DIRECTORY
        async with await truenas_os.openat2(
            self.root, directory, flags, resolve=RESOLVE
        ) as directory_fd:
            async with truenas_os.atomic_write(
                name, "wb", dir_fd=directory_fd, perms=0o640
            ) as file:
                size = 0
                async for chunk in request.stream():
                    size += len(chunk)
                    if size > self.limit:
                        raise HTTPException(413, f"more than {self.limit} bytes")
                    await file.write(chunk)


async def nobody_listens(request: Request, error: Exception) -> Response:
    """A client that has gone away is no error of ours."""
    return Response(status_code=499)


def application(root: str, limit: int) -> Starlette:
    uploads = Uploads(root, limit)
    return Starlette(
        routes=[Route("/{path:path}", uploads.put, methods=["PUT"])],
        exception_handlers={ClientDisconnect: nobody_listens},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Take uploads into an untrusted directory.")
    parser.add_argument("root", help="the directory")
    parser.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
    parser.add_argument("--port", type=int, default=8000, help="default: %(default)s")
    parser.add_argument(
        "--limit", type=int, default=1 << 30, metavar="BYTES", help="default: %(default)s"
    )
    args = parser.parse_args()
    uvicorn.run(application(args.root, args.limit), host=args.host, port=args.port)


if __name__ == "__main__":
    main()
