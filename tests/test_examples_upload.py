# SPDX-License-Identifier: LGPL-3.0-or-later
"""examples/safe_upload.py, attacked: by paths, by symlinks, by races, by clients that leave."""

import http.client
import os
import re
import socket
import stat
import threading
from pathlib import Path

import pytest
from example_programs import started
from stuck import wait_until

from truenas_os import blocking

LIMIT = 1 << 20


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The port of a server, the directory it writes to, and one beside it that is not its own."""
    base = tmp_path_factory.mktemp("uploads")
    for name in ("root", "outside"):
        (base / name).mkdir()
    arguments = (base / "root", "--port", "0", "--limit", str(LIMIT))
    with started("safe_upload", *arguments) as process:
        lines = []
        while not (found := re.search(r"http://127\.0\.0\.1:(\d+)", "".join(lines[-1:]))):
            lines.append(process.stdout.readline())
            assert lines[-1], f"it has ended: {lines}"
        # Nobody reads what it logs, so that must not fill the pipe.
        threading.Thread(target=process.stdout.read, daemon=True).start()
        yield int(found[1]), base / "root", base / "outside"
        process.terminate()
        assert process.wait() in (0, -15)


@pytest.fixture
def root(server):
    """The server's directory, which must be as it was when the test ends, but for what is in it."""
    _, root, outside = server
    (outside / "precious").write_text("precious")
    yield root
    assert {path.name: path.read_text() for path in outside.iterdir()} == {"precious": "precious"}
    for path in sorted(root.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


def put(server, path, body=b"content"):
    """The status that an upload gets; *path* goes over the wire as it is."""
    connection = http.client.HTTPConnection("127.0.0.1", server[0], timeout=30)
    try:
        connection.request("PUT", path, body)
        return connection.getresponse().status
    finally:
        connection.close()


def test_an_upload_is_there_when_it_is_complete(server, root):
    (root / "some" / "directory").mkdir(parents=True)
    body = os.urandom(LIMIT)
    for path in ("/file", "/some/directory/file", "/some/./directory/%61%20b", "/%ff%fe"):
        assert put(server, path, body) == 204
    names = (b"file", b"some/directory/file", b"some/directory/a b", b"\xff\xfe")
    for name in names:
        path = Path(os.fsdecode(os.fsencode(root) + b"/" + name))
        assert path.read_bytes() == body
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert put(server, "/file", b"other") == 204
    assert (root / "file").read_bytes() == b"other"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/../outside/new", 403),
        ("/%2e%2e/outside/new", 403),
        ("/inner/../../outside/new", 403),
        ("/..%2foutside%2fnew", 403),
        ("//etc/new", 403),
        ("//new", 403),
        ("/%2fetc/new", 403),
        ("/to-outside/new", 403),
        ("/to-outside/precious", 403),
        ("/precious", 403),
        ("/absolute/new", 403),
        ("/loop/new", 403),
        ("/dangling", 403),
        ("/to-inner/new", 403),
        ("/inner/to-proc/1/new", 403),
        ("/..", 400),
        ("/inner/..", 400),
        ("/.", 400),
        ("/inner/", 400),
        ("/", 400),
        ("/a%00b", 400),
        ("/missing/new", 404),
        ("/file/new", 404),
        ("/inner", 409),
        ("/fifo", 409),
        ("/" + "x" * 256, 414),
        ("/" + "inner/../" * 500 + "new", 414),
    ],
)
def test_an_attack_writes_nothing(server, root, path, status):
    outside = server[2]
    (root / "inner").mkdir()
    (root / "file").write_text("old")
    os.mkfifo(root / "fifo")
    for name, target in {
        "to-outside": "../outside",
        "absolute": outside,
        "precious": "../outside/precious",
        "loop": "loop",
        "dangling": "../outside/new",
        "to-inner": "inner",
        "inner/to-proc": "/proc",
    }.items():
        (root / name).symlink_to(target)
    before = {found: found.lstat().st_mtime_ns for found in root.rglob("*")}
    assert put(server, path) == status
    assert {found: found.lstat().st_mtime_ns for found in root.rglob("*")} == before


def test_what_is_too_large_leaves_the_old_content(server, root):
    (root / "file").write_text("old")
    assert put(server, "/file", bytes(LIMIT + 1)) == 413
    assert put(server, "/new", bytes(LIMIT + 1)) == 413
    assert [path.read_text() for path in root.iterdir()] == ["old"]


def test_an_upload_that_breaks_off_leaves_nothing(server, root):
    (root / "file").write_text("old")
    for name in ("file", "new") * 5:
        with socket.create_connection(("127.0.0.1", server[0])) as client:
            head = f"PUT /{name} HTTP/1.1\r\nHost: h\r\nContent-Length: 900000\r\n\r\n"
            client.sendall(head.encode() + bytes(400_000))
    assert put(server, "/last") == 204
    assert {path.name: path.read_text() for path in root.iterdir()} == {
        "file": "old",
        "last": "content",
    }


def test_a_directory_that_is_swapped_for_a_symlink_meanwhile_leads_nothing_out(server, root):
    (root / "directory").mkdir()
    (root / "link").symlink_to("../outside")
    done = threading.Event()

    def swap():
        while not done.is_set():
            blocking.exchange(root / "directory", root / "link")

    swapping = threading.Thread(target=swap)
    swapping.start()
    try:
        statuses = [put(server, f"/directory/{number}") for number in range(150)]
        wait_until(
            lambda: statuses.append(put(server, "/directory/x")) or {*statuses} == {204, 403}
        )
    finally:
        done.set()
        swapping.join()
    assert {*statuses} == {204, 403}
    directory = next(path for path in root.iterdir() if not path.is_symlink())
    assert len(list(directory.iterdir())) >= statuses.count(204) - statuses[150:].count(204)
