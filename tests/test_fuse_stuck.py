# SPDX-License-Identifier: LGPL-3.0-or-later
"""A filesystem that does not answer: the kernel gives it up. It looks every 15 seconds."""

import os
import re
import subprocess
import sys

import anyio
import pytest
from serving import Files, is_mounted

from truenas_os import fuse
from truenas_os.fuse.wire import InitFlag

pytestmark = pytest.mark.skipif(
    tuple(map(int, re.findall(r"\d+", os.uname().release)[:2])) < (6, 15), reason="Linux 6.15"
)


class Hanging(Files):
    async def getattr(self, inode, ctx):
        if inode == 2:
            await anyio.sleep_forever()
        return await super().getattr(inode, ctx)


def test_a_request_that_takes_too_long_ends_the_session(mount_dir):
    point = mount_dir / "fuse"
    point.mkdir()

    async def main():
        options = {"request_timeout": 1}
        async with fuse.mount(Hanging(a=b""), point, unmount_timeout=0.1, **options) as session:
            assert session.features.flags & InitFlag.REQUEST_TIMEOUT
            look = "import os, sys; os.stat(sys.argv[1] + '/a')"
            process = subprocess.Popen(
                [sys.executable, "-c", look, point], stderr=subprocess.PIPE, text=True
            )
            end = await session.wait()
        return end, await anyio.to_thread.run_sync(process.communicate)

    end, (_, err) = anyio.run(main)
    assert end is fuse.SessionEnd.ABORTED
    assert "ConnectionAbortedError" in err
    assert not is_mounted(point)
