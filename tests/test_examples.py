# SPDX-License-Identifier: LGPL-3.0-or-later
"""The programs in examples/, each from beginning to end."""

import base64
import contextlib
import errno
import json
import os
import pty
import random
import re
import select
import shutil
import signal
import subprocess
import termios
from collections import Counter
from pathlib import Path

import kernel
import pytest
from command_line import HOSTILE
from example_programs import EXAMPLES, started, succeeded
from filesystems import needs_root
from stuck import AMPLE, wait_until
from witness import make

from truenas_os import blocking

PROGRAMS = sorted(path.stem for path in EXAMPLES.glob("*.py"))


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_has_a_help(name):
    shown = succeeded(name, "--help")
    assert shown.startswith(f"usage: {name}.py")
    assert max(map(len, shown.splitlines())) <= 80


# scan_service.py


@pytest.fixture
def tree(mount_dir):
    """A thousand small files, names that hurt, and large ones that take a while to read."""
    for number in range(40):
        directory = mount_dir / "tree" / f"{number}"
        directory.mkdir(parents=True)
        for file in range(25):
            (directory / f"{file}").write_text(f"{number} {file}")
        if number % 8 == 0:
            with (directory / "large").open("wb") as large:
                large.truncate(32 << 20)
    for name in HOSTILE.values():
        with open(os.fsencode(mount_dir / "tree") + b"/" + name, "wb") as file:
            file.write(name)
    (mount_dir / "tree" / "link").symlink_to("0")
    return mount_dir / "tree"


def sums(top):
    """What sha256sum says of all files that find finds."""
    command = ["find", top, "-type", "f", "-exec", "sha256sum", "-z", "{}", "+"]
    found = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    lines = (line.split(b"  ", 1) for line in found.split(b"\0")[:-1])
    return Counter((path, digest.decode()) for digest, path in lines)


def lines_of(catalogue):
    return [json.loads(line) for line in catalogue.read_text().splitlines()]


def catalogued(catalogue):
    lines = lines_of(catalogue)
    for line in lines:
        assert line["size"] == os.stat(line["path"]).st_size
    return Counter((os.fsencode(line["path"]), line["sha256"]) for line in lines)


def stopped(tree, catalogue, number, after):
    """Start the service, send it a signal after so many more bytes; how it has ended."""
    size = catalogue.stat().st_size if catalogue.exists() else 0
    with started("scan_service", tree, catalogue, "--save-every", "0.01") as process:
        wait_until(
            lambda: (
                process.poll() is not None
                or (catalogue.exists() and catalogue.stat().st_size >= size + after)
            ),
            "the catalogue",
        )
        process.send_signal(number)
        told = process.communicate()[0]
    assert "Traceback" not in told
    return process.returncode, told


def test_the_scan_is_stopped_and_killed_until_it_is_complete(tree, tmp_path):
    chance = random.Random(1)
    catalogue = tmp_path / "catalogue"
    ends = Counter()
    while not ends[0]:
        number = (signal.SIGTERM, signal.SIGKILL, signal.SIGINT)[sum(ends.values()) % 3]
        status, told = stopped(tree, catalogue, number, chance.randrange(1, 40_000))
        if status:
            assert status == (-number if number == signal.SIGKILL else 128 + number), told
            assert catalogue.with_suffix(".state").exists()
        ends[status] += 1
        assert sum(ends.values()) < 50, "no progress"
    assert ends[143] and ends[-9], ends
    assert "goes on" in told and "complete" in told
    assert catalogued(catalogue) == sums(tree)
    assert os.listdir(tmp_path) == ["catalogue"] or {*os.listdir(tmp_path)} == {
        "catalogue",
        "mounts",
    }


def test_the_scan_of_what_is_not_there_is_a_line_and_status_1(tmp_path):
    with started("scan_service", tmp_path / "missing", tmp_path / "catalogue") as process:
        told = process.communicate()[0]
    assert process.returncode == 1
    assert "No such file or directory" in told and "Traceback" not in told
    assert os.listdir(tmp_path) == []


def test_the_scan_of_what_is_not_there_leaves_an_older_catalogue(tmp_path):
    (tmp_path / "catalogue").write_text("of another day")
    with started("scan_service", tmp_path / "missing", tmp_path / "catalogue") as process:
        process.communicate()
    assert (tmp_path / "catalogue").read_text() == "of another day"
    assert os.listdir(tmp_path) == ["catalogue"]


def scanned(top, catalogue):
    with started("scan_service", top, catalogue) as process:
        told = process.communicate()[0]
    assert "Traceback" not in told
    return process.returncode, told


def state_after_one(top, length):
    """What the service notes at the first item, with a catalogue of that length."""
    with blocking.walk(top, file_open_flags=None) as items:
        next(items)
        token = base64.b64encode(items.resume_token()).decode()
    return json.dumps({"token": token, "length": length})


@pytest.mark.parametrize("left", [None, "", "less than there was"])
def test_a_catalogue_that_is_shorter_than_it_was_is_begun_anew(tree, tmp_path, left):
    catalogue = tmp_path / "catalogue"
    if left is not None:
        catalogue.write_text(left)
    (tmp_path / "catalogue.state").write_text(state_after_one(tree, 100))
    status, told = scanned(tree, catalogue)
    assert (status, "shorter than it was" in told) == (0, True), told
    assert catalogued(catalogue) == sums(tree)


def test_the_scan_goes_on_after_a_file_that_cannot_be_read(tmp_path):
    top = Path("/sys/devices/virtual/net/lo")
    expected = {}
    for path in (path for path in top.rglob("*") if path.is_file() and not path.is_symlink()):
        with contextlib.suppress(PermissionError), path.open("rb", buffering=0) as file:
            expected[str(path)] = None
            try:
                file.read()
            except OSError as error:
                expected[str(path)] = error.strerror
    assert any(expected.values())
    status, told = scanned(top, tmp_path / "catalogue")
    assert status == 0, told
    lines = lines_of(tmp_path / "catalogue")
    assert {line["path"]: line.get("error") for line in lines} == expected
    assert all(f"cannot be read: '{path}'" in told for path, error in expected.items() if error)


@pytest.mark.parametrize("state", ["garbage", "{}", "[]", '{"token": "", "length": 0}', "foreign"])
def test_a_state_that_cannot_be_used_is_a_line_and_status_1(tree, tmp_path, state):
    catalogue = tmp_path / "catalogue"
    catalogue.write_text("of another day")
    state = state_after_one(tmp_path, 1) if state == "foreign" else state
    (tmp_path / "catalogue.state").write_text(state)
    status, told = scanned(tree, catalogue)
    assert status == 1
    assert f"{catalogue}.state: " in told.splitlines()[-1]
    assert catalogue.read_text() == "of another day"


# mount_dashboard.py


@contextlib.contextmanager
def on_terminal(name, *arguments, lines=40):
    """A program that has a terminal, and a function that waits for what it shows."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (lines, 250))
    with started(name, *arguments, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        written = ""

        def wait_for(pattern):
            nonlocal written
            while not (found := re.search(pattern, written)):
                assert select.select([ours], [], [], AMPLE)[0], f"{pattern} has not come: {written}"
                try:
                    read = os.read(ours, 1 << 16)
                except OSError as error:
                    assert error.errno == errno.EIO
                    pytest.fail(f"it has ended: {written}")
                shown = read.decode(errors="replace")
                # Colours and moves are left out, the cursor's coming back is not.
                written += re.sub(r"\x1b\[(?!\?25h)[0-9;?]*[a-zA-Z]", "", shown)
            written = written[found.end() :]

        try:
            yield process, wait_for
        finally:
            process.kill()
            os.close(ours)


def test_the_dashboard_shows_mounts_that_come_and_go(mount_dir):
    make(mount_dir, "before")
    with on_terminal("mount_dashboard", mount_dir) as (_, wait_for):
        wait_for(r"2 mounts")
        wait_for(f"{mount_dir}/before")
        make(mount_dir, "new", source="[red]source\x1b[31m")
        wait_for(rf"attached +{mount_dir}/new")
        wait_for(r"3 mounts")
        wait_for(rf"{mount_dir}/new +│ \[red\]source\?\[31m")
        kernel.umount(mount_dir / "new")
        wait_for(rf"detached +{mount_dir}/new")
        wait_for(r"2 mounts")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_dashboard_ends_with_the_cursor_shown(mount_dir, number):
    with on_terminal("mount_dashboard", mount_dir) as (process, wait_for):
        wait_for(r"1 mounts")
        process.send_signal(number)
        wait_for(r"\x1b\[\?25h")
        assert process.wait(AMPLE) == 0


def test_the_dashboard_shows_what_happens_where_mounts_fill_the_terminal(mount_dir):
    for number in range(30):
        make(mount_dir, f"{number}")
    with on_terminal("mount_dashboard", mount_dir, lines=24) as (_, wait_for):
        wait_for(r"31 mounts")
        make(mount_dir, "new")
        wait_for(rf"attached +{mount_dir}/new")


def test_the_dashboard_of_a_symlink_is_that_of_what_it_leads_to(mount_dir, tmp_path):
    (tmp_path / "link").symlink_to(mount_dir)
    with on_terminal("mount_dashboard", tmp_path / "link") as (_, wait_for):
        wait_for(r"1 mounts")
        wait_for(f"{mount_dir}")


def test_the_dashboard_of_a_path_does_not_keep_what_is_moved_away(mount_dir):
    make(mount_dir, "shown")
    make(mount_dir / "shown", "moving")
    (mount_dir / "away").mkdir()
    with on_terminal("mount_dashboard", mount_dir / "shown") as (_, wait_for):
        wait_for(r"2 mounts")
        kernel.mount(mount_dir / "shown" / "moving", mount_dir / "away", None, kernel.MS_MOVE)
        wait_for(rf"moved +{mount_dir}/away")
        wait_for(r"1 mounts")


# container_rootfs.py


@pytest.fixture
def image(mount_dir):
    """A root filesystem with a shell and a few programs, and the libraries that they need."""
    image = mount_dir / "image"
    for name in ("sh", "stat", "touch", "sleep", "id", "mkdir", "mount", "cat"):
        program = shutil.which(name)
        listed = subprocess.run(["ldd", program], stdout=subprocess.PIPE, text=True, check=True)
        for path in [program, *re.findall(r"(/\S+) \(0x", listed.stdout)]:
            copy = image / path.lstrip("/")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, copy)
    (image / "volume").mkdir()
    (image / "etc").mkdir()
    (image / "etc" / "owned").write_text("by 5:6")
    os.chown(image / "etc" / "owned", 5, 6)
    (image / "escape").symlink_to("/../../../../etc")
    for name in ("state", "volume"):
        (mount_dir / name).mkdir()
    kernel.mount("tmpfs", mount_dir / "volume", "tmpfs")
    kernel.mount(None, mount_dir / "volume", None, kernel.MS_SHARED)
    return mount_dir


def contained(image, *command, **options):
    return started(
        "container_rootfs",
        *("--layer", image / "image", "--state", image / "state"),
        *("--volume", f"{image}/volume:/volume", "--", *command),
        **options,
    )


def mounts():
    return Path("/proc/self/mountinfo").read_text().splitlines()


@needs_root
def test_root_in_the_container_owns_what_root_owns_on_the_disk(image):
    before = mounts()
    script = """
        id -u
        touch /new /volume/new
        stat -c '%n %u:%g' / /etc/owned /new /volume/new
        exit 7
    """
    with contained(image, "sh", "-c", script) as process:
        told = process.communicate()[0].splitlines()
    assert process.returncode == 7, told
    assert told[:5] == ["0", "/ 0:0", "/etc/owned 5:6", "/new 0:0", "/volume/new 0:0"]
    for path, owner in ((image / "state/upper/new", 100000), (image / "volume/new", 0)):
        assert (path.stat().st_uid, path.stat().st_gid) == (owner, owner)
    assert not (image / "image" / "new").exists()
    assert mounts() == before


@needs_root
def test_mounts_reach_the_volume_from_outside_and_never_come_out(image):
    before = mounts()
    script = """
        mkdir /volume/inside && mount -t tmpfs none /volume/inside && touch /volume/inside/secret
        echo ready
        while [ ! -e /volume/outside/there ]; do sleep 0.02; done
        stat -c '%n %u:%g' /volume/outside/there
    """
    with contained(image, "sh", "-c", script) as process:
        assert process.stdout.readline() == "ready\n"
        new = [line for line in mounts() if line not in before]
        points = {line: Path(line.split()[4]) for line in new}
        lines = [line for line, point in points.items() if point.parts[-2:] == ("root", "volume")]
        assert [" master:" in line and " shared:" not in line for line in lines] == [True]
        root = lines[0].split()[4].removesuffix("/volume")
        # From outside, without its user namespace, all is shifted.
        seen = (Path(root) / "etc" / "owned").stat()
        assert (seen.st_uid, seen.st_gid) == (100005, 100006)
        assert os.listdir(image / "volume" / "inside") == []
        make(image / "volume", "outside")
        (image / "volume" / "outside" / "there").touch()
        told = process.communicate()[0]
    # What came up is not idmapped: its root is nobody in there.
    assert (process.returncode, told) == (0, "/volume/outside/there 65534:65534\n")
    kernel.umount(image / "volume" / "outside")
    assert mounts() == before


@needs_root
def test_a_symlink_in_a_layer_leads_no_volume_out(image):
    before = mounts()
    with started(
        "container_rootfs",
        *("--layer", image / "image", "--state", image / "state"),
        *("--volume", f"{image}/volume:/escape", "--", "stat", "-c", "%n %d", "/etc"),
    ) as process:
        told = process.communicate()[0]
    assert told == f"/etc {(image / 'volume').stat().st_dev}\n"
    assert mounts() == before


@needs_root
def test_what_cannot_be_assembled_leaves_nothing_mounted(image):
    before = mounts()
    for wrong in (("--volume", f"{image}/volume:/missing"), ("--layer", image / "missing")):
        with started(
            "container_rootfs", "--layer", image / "image", "--state", image / "state", *wrong, "sh"
        ) as process:
            told = process.communicate()[0]
        assert process.returncode == 1
        assert "missing" in told and "Traceback" not in told
        assert mounts() == before


@needs_root
@pytest.mark.parametrize(
    ("send", "number"),
    [
        (os.killpg, signal.SIGINT),  # as a terminal sends it, to the command as well
        (os.kill, signal.SIGINT),
        (os.kill, signal.SIGTERM),
    ],
)
def test_the_container_is_taken_down_when_it_is_stopped(image, send, number):
    before = mounts()
    command = ("sh", "-c", "echo ready; exec sleep 60")
    with contained(image, *command, start_new_session=True) as process:
        assert process.stdout.readline() == "ready\n"
        send(process.pid, number)
        assert process.communicate()[0] == ""
    assert process.returncode == 128 + number
    assert mounts() == before


@needs_root
def test_a_command_that_a_signal_ends_gives_128_and_its_number(image):
    with contained(image, "sh", "-c", "kill -KILL $$") as process:
        assert process.communicate()[0] == ""
    assert process.returncode == 137


@needs_root
@pytest.mark.parametrize("wrong", [("--first-id", "-1"), ("--ids", "0"), ("--ids", str(1 << 40))])
def test_ids_that_are_none_are_a_line_and_status_1(image, wrong):
    before = mounts()
    layer = ("--layer", image / "image", "--state", image / "state")
    with started("container_rootfs", *layer, *wrong, "sh") as process:
        told = process.communicate()[0]
    assert process.returncode == 1
    assert "is not a range of ids" in told and len(told.splitlines()) == 1
    assert mounts() == before


@needs_root
def test_what_is_in_use_at_the_end_is_detached_and_stays_on_the_disk(image):
    before = mounts()
    script = "echo kept > /new; echo ready; cat"
    with contained(image, "sh", "-c", script, stdin=subprocess.PIPE) as process:
        assert process.stdout.readline() == "ready\n"
        new = [line.split()[4] for line in mounts() if line not in before]
        (root,) = [point for point in new if point.endswith("/root")]
        # As somebody has it who looks around in there.
        with open(f"{root}/new"):
            told = process.communicate()[0]
    assert (process.returncode, told) == (0, "")
    assert mounts() == before
    assert not Path(root).parent.exists()
    assert (image / "state" / "upper" / "new").read_text() == "kept\n"
    assert os.listdir(image / "state" / "upper") == ["new"]
