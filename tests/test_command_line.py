# SPDX-License-Identifier: LGPL-3.0-or-later
"""``python -m truenas_os``: as a program, on pipes and on terminals.

The witnesses are findmnt(8), stat(1) and /proc/self/mountinfo.
"""

import errno
import fcntl
import json
import os
import pty
import re
import shlex
import signal
import socket
import struct
import subprocess
import sys
import termios
from importlib import metadata
from pathlib import Path

import kernel
import pytest

from truenas_os import blocking
from truenas_os.cli import main, tree
from truenas_os.cli.mounts import _json_object

COMMAND = (sys.executable, "-m", "truenas_os")
# Code in front of the program, for what only the inside can arrange.
PREPARED = "import sys\n{}\nfrom truenas_os.cli import main\nraise SystemExit(main(sys.argv[1:]))"
NO_RICH = "sys.modules['rich'] = None"

# The C locale, as Python had it before it mended that by itself.
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
ENCODINGS = {
    "UTF-8": {},
    "LANG=C": {"LC_ALL": "", "LANG": "C"},
    "true ASCII": ASCII,
    "PYTHONIOENCODING=ascii": {"PYTHONIOENCODING": "ascii"},
    "latin-1 output": {"PYTHONIOENCODING": "latin-1"},
}

# What can be in a name, and what ought to hurt nobody who sees it.
HOSTILE = {
    "newline": b"two\nlines",
    "escape sequence": b"\x1b]0;title\x07\x1b[31mred",
    "control characters": b"\x01\r\t\x08\x7f",
    "C1 control characters": "\x9b31m\x85".encode(),
    "not UTF-8": b"\xff\xfe\xc3(\x80",
    "encoded surrogate": b"\xed\xa0\x80\xed\xb0\x80",
    "right to left override": "\u202etxt.exe".encode(),
    "letters of many scripts": "é漢字e\u0301😀".encode(),
    "backslashes": rb"\x41\\x0a\y\101",
    "spaces": b" a  b ",
    "line separators": "\u2028\u2029\xa0".encode(),
    "markup": b"[bold]red:smile:",
}
hostile = pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
encodings = pytest.mark.parametrize("env", ENCODINGS.values(), ids=ENCODINGS)


def environment(**changes):
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("LC_", "LANG", "PYTHON"))
        and name not in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TZ")
    }
    # A warning, of a descriptor left open for one, is then an error with a text on stderr.
    return kept | {"LC_ALL": "C.UTF-8", "TERM": "xterm", "PYTHONWARNINGS": "error"} | changes


def run(*arguments, prepared=None, env=None, command=(), **options):
    program = COMMAND if prepared is None else (sys.executable, "-c", PREPARED.format(prepared))
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    env = environment(**(env or {}))
    return subprocess.run([*command, *program, *arguments], env=env, **options)


def succeeded(*arguments, **options):
    done = run(*arguments, **options)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout


def on_terminal(*arguments, columns=200, prepared=NO_RICH, env=None):
    """What a terminal so wide gets."""
    program = COMMAND if prepared is None else (sys.executable, "-c", PREPARED.format(prepared))
    ours, theirs = pty.openpty()
    try:
        termios.tcsetwinsize(theirs, (24, columns))
        attributes = termios.tcgetattr(theirs)
        attributes[1] &= ~termios.OPOST  # no carriage returns that the program did not write
        termios.tcsetattr(theirs, termios.TCSANOW, attributes)
        process = subprocess.Popen(
            [*program, *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=subprocess.PIPE,
            env=environment(**(env or {})),
        )
        os.close(theirs)
        written = b""
        while True:
            try:
                chunk = os.read(ours, 1 << 16)
            except OSError as error:
                assert error.errno == errno.EIO  # the other side is closed
                break
            if not chunk:
                break
            written += chunk
        errors = process.communicate()[1]
    finally:
        os.close(ours)
    assert (process.returncode, errors) == (0, b"")
    return written


def without_styles(written):
    return re.sub(rb"\x1b\[[0-9;]*m", b"", written)


def unescaped(written):
    return re.sub(rb"\\x([0-9a-f]{2})", lambda found: bytes([int(found[1], 16)]), written)


def tmpfs(path, flags=0, data=None, source="tmpfs"):
    Path(os.fsdecode(path)).mkdir(exist_ok=True)
    kernel.mount(source, path, "tmpfs", flags, data)


def findmnt(*arguments, locale="C.UTF-8"):
    done = subprocess.run(
        ["findmnt", *arguments], env=environment(LC_ALL=locale), stdout=subprocess.PIPE, check=True
    )
    return done.stdout


def findmnt_rows():
    return json.loads(findmnt("-J", "-l", "-o", "ID,TARGET,SOURCE,FSTYPE,OPTIONS"))["filesystems"]


@pytest.fixture
def various_mounts(mount_dir):
    """Nested, stacked and bind mounts with options of all kinds."""
    nosuid, nodev, noexec, sync, dirsync, noatime, nodiratime = 2, 4, 8, 16, 128, 1 << 10, 1 << 11
    strictatime, lazytime, nosymfollow = 1 << 24, 1 << 25, 1 << 8
    for name, flags in {
        "plain": 0,
        "ro": kernel.MS_RDONLY,
        "careful": nosuid | nodev | noexec,
        "noatime": noatime,
        "nodiratime": nodiratime,
        "strictatime": strictatime,
        "superblock": sync | dirsync | lazytime,
        "nosymfollow": nosymfollow,
        "stacked": 0,
    }.items():
        tmpfs(mount_dir / name, flags, b"size=1m,mode=700", source=f"from-{name}")
    tmpfs(mount_dir / "stacked")
    tmpfs(mount_dir / "plain" / "deep")
    tmpfs(mount_dir / "plain" / "deep" / "deeper")
    (mount_dir / "plain" / "subdirectory").mkdir()
    (mount_dir / "bind").mkdir()
    kernel.mount(mount_dir / "plain" / "subdirectory", mount_dir / "bind", None, kernel.MS_BIND)
    kernel.mount(
        None,
        mount_dir / "bind",
        None,
        kernel.MS_BIND | kernel.MS_REMOUNT | kernel.MS_RDONLY | noexec,
    )
    return mount_dir


@pytest.fixture
def many_mounts(mount_dir):
    for number in range(500):
        tmpfs(mount_dir / f"{number:03}")
    return mount_dir


# mounts: the table


def test_a_pipe_gets_one_line_a_mount_in_the_order_of_mountinfo(various_mounts):
    lines = succeeded("mounts").decode().splitlines()
    shown = [line.split(" ")[:3] for line in lines]
    assert shown == [
        [m.mount_point, m.source + (f"[{m.root}]" if m.root != "/" else ""), m.fs_type]
        for m in kernel.mountinfo()
    ]


def test_the_columns_are_those_of_findmnt(various_mounts):
    # With a source of its own, as findmnt takes its SOURCE from elsewhere for the device /dev/root.
    rows = [row for row in findmnt_rows() if row["target"].startswith(str(various_mounts))]
    assert len(rows) == 14
    lines = succeeded("mounts").decode().splitlines()
    for row in rows:
        line = " ".join(row[column] for column in ("target", "source", "fstype", "options"))
        assert line in lines


def drawn(row, guides, before="", below=""):
    """The lines of a tree that findmnt -J describes."""
    child, last_child, past, past_last = guides
    yield before + row["target"]
    *others, last = row.get("children") or [None]
    for other in others:
        yield from drawn(other, guides, below + child, below + past)
    if last:
        yield from drawn(last, guides, below + last_child, below + past_last)


def in_order_of_mountinfo(rows):
    order = {m.id: number for number, m in enumerate(kernel.mountinfo())}
    for row in rows:
        if "children" in row:
            row["children"] = in_order_of_mountinfo(row["children"])
    return sorted(rows, key=lambda row: order[row["id"]])


@pytest.mark.parametrize(
    ("env", "guides"),
    [
        ({}, ("├─", "└─", "│ ", "  ")),
        (ASCII, ("|-", "`-", "| ", "  ")),
        ({"PYTHONIOENCODING": "ascii"}, ("|-", "`-", "| ", "  ")),
    ],
    ids=["UTF-8", "C locale", "ASCII output"],
)
def test_the_tree_is_drawn_as_findmnt_draws_it(various_mounts, env, guides):
    rows = json.loads(findmnt("-J", "-o", "ID,TARGET"))["filesystems"]
    locale = "C.UTF-8" if not env else "C"
    theirs = findmnt("-o", "TARGET", locale=locale).decode().splitlines()
    assert theirs[1:] == [line for row in rows for line in drawn(row, guides)]
    # It puts siblings in the order of the ids of old, which are reused and so say nothing.
    expected = [line for row in in_order_of_mountinfo(rows) for line in drawn(row, guides)]

    lines = on_terminal("mounts", env=env).decode().splitlines()
    assert lines[0].split() == ["TARGET", "SOURCE", "FSTYPE", "OPTIONS"]
    assert [line[: line.index(" ", line.index("/"))] for line in lines[1:]] == expected


def test_a_terminal_and_a_pipe_get_the_same_columns(various_mounts):
    tree_lines = on_terminal("mounts", columns=5000).decode().splitlines()[1:]
    flat = [line.split(" ") for line in succeeded("mounts").decode().splitlines()]
    assert sorted(line[line.index("/") :].split() for line in tree_lines) == sorted(flat)


def test_a_mount_whose_parent_is_not_visible_is_a_root(mount_dir):
    (mount_dir / "root").mkdir()
    for path in ("a", "a/b", "c"):
        tmpfs(mount_dir / "root" / path)
    # The mount that holds a changed root is not listed, if the root is another directory of it.
    prepared = (
        f"{NO_RICH}\nimport os, truenas_os.cli.mounts, truenas_os.cli.stat\n"
        f"os.chroot({str(mount_dir / 'root')!r})\nos.chdir('/')"
    )
    lines = on_terminal("mounts", prepared=prepared).decode().splitlines()[1:]
    assert [line.split(" ")[0] for line in lines] == ["/a", "└─/a/b", "/c"]


def ordered(parents):
    """The tree of mounts that are given by their ids and those of their parents."""
    nothing = dict.fromkeys(blocking.StatmountResult._fields)
    mounts = [
        blocking.StatmountResult(**nothing | {"mnt_id": mnt_id, "mnt_parent_id": parent})
        for mnt_id, parent in parents.items()
    ]
    shown = tree.ordered(mounts, tree.characters("ascii"))
    return [(before, mount.mnt_id) for before, mount in shown]


def test_a_mount_that_is_older_than_its_parent_still_stands_below_it():
    assert ordered({1: 2, 2: 100, 3: 2}) == [("", 2), ("|-", 1), ("`-", 3)]


def test_mounts_that_name_each_other_as_parents_are_still_shown():
    assert ordered({1: 1, 2: 3, 3: 2, 4: 1}) == [("", 1), ("`-", 4), ("", 2), ("`-", 3)]


def test_mounts_may_be_nested_deeper_than_python_calls():
    depth = sys.getrecursionlimit() + 100
    shown = ordered({n: n - 1 for n in range(1, depth)})
    assert [mnt_id for _, mnt_id in shown] == list(range(1, depth))
    assert shown[-1][0] == "  " * (depth - 3) + "`-"


def test_five_hundred_mounts_are_all_shown(many_mounts):
    points = [m.mount_point for m in kernel.mountinfo()]
    assert len(points) > 500
    assert [line.split(" ")[0] for line in succeeded("mounts").decode().splitlines()] == points
    assert [m["mnt_point"] for m in json.loads(succeeded("mounts", "--json"))] == points
    assert len(on_terminal("mounts").splitlines()) == 1 + len(points)


def test_a_path_selects_the_mount_that_holds_it(various_mounts):
    (various_mounts / "plain" / "subdirectory" / "file").touch()
    path = str(various_mounts / "bind" / "file")
    expected = f"{various_mounts}/bind from-plain[/subdirectory] tmpfs ro,noexec,relatime,"
    assert succeeded("mounts", path).decode().startswith(expected)
    assert len(succeeded("mounts", path).splitlines()) == 1
    _, line = on_terminal("mounts", path).decode().splitlines()
    assert line.split()[0] == f"{various_mounts}/bind"


def test_symlinks_in_the_path_are_followed(various_mounts, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(various_mounts / "plain" / "deep")
    assert succeeded("mounts", str(link)).decode().split()[0] == f"{various_mounts}/plain/deep"


def test_a_relative_path_is_taken_from_the_current_directory(various_mounts):
    line = succeeded("mounts", "deep", cwd=various_mounts / "plain").decode()
    assert line.split()[0] == f"{various_mounts}/plain/deep"


def test_an_empty_source_is_a_dash(mount_dir):
    tmpfs(mount_dir / "nameless", source="")
    path = str(mount_dir / "nameless")
    assert succeeded("mounts", path).decode().split()[:3] == [path, "-", "tmpfs"]
    assert json.loads(succeeded("mounts", "--json", path))[0]["sb_source"] in (None, "")


def test_a_comma_inside_an_option_is_no_separator(mount_dir):
    for name in ("a,b", "c", "merged"):
        (mount_dir / name).mkdir()
    lower = f"lowerdir={mount_dir}/a\\,b:{mount_dir}/c"
    kernel.mount("over", mount_dir / "merged", "overlay", 0, lower.encode())
    path = str(mount_dir / "merged")
    options = succeeded("mounts", path).split()[3].split(b",")
    assert options[0] == b"ro"  # the superblock is, the mount is not
    assert lower.encode() in [unescaped(option) for option in options]
    assert lower in json.loads(succeeded("mounts", "--json", path))[0]["opt_array"]


def test_a_kernel_without_the_option_list_shows_the_option_string(monkeypatch, capsys):
    real = blocking.mount_of

    def mount_of(*args, **kwargs):
        return real(*args, **kwargs)._replace(opt_array=None, mnt_opts=r"size=1k,x=\040")

    monkeypatch.setattr(blocking, "mount_of", mount_of)
    assert main(["mounts", "/proc"]) == 0
    assert capsys.readouterr().out.endswith(r",size=1k,x=\040" + "\n")


# mounts: the terminal


@pytest.mark.parametrize("columns", [60, 100, 160])
@pytest.mark.parametrize("prepared", [NO_RICH, None], ids=["plain", "rich"])
def test_options_are_cut_to_the_width_of_the_terminal(mount_dir, columns, prepared):
    tmpfs(mount_dir / "careful", 2 | 4 | 8, b"size=1m,mode=700,nr_inodes=100,huge=never")
    whole = on_terminal("mounts", columns=5000, prepared=prepared)
    cut = on_terminal("mounts", columns=columns, prepared=prepared)
    for line, uncut in zip(
        without_styles(cut).decode().splitlines(),
        without_styles(whole).decode().splitlines(),
        strict=True,
    ):
        assert line == uncut or (line.endswith("…") and uncut.startswith(line[:-1]))
        left = uncut[: -len(uncut.split()[-1])]
        assert len(line) <= max(columns, len(left) + 16)
    assert "…" in cut.decode()
    assert "…" not in whole.decode()


@pytest.mark.parametrize("prepared", [NO_RICH, None], ids=["plain", "rich"])
def test_a_target_longer_than_the_terminal_is_neither_cut_nor_wrapped(mount_dir, prepared):
    long = mount_dir / ("long" * 50)
    tmpfs(long)
    lines = without_styles(on_terminal("mounts", str(long), columns=40, prepared=prepared))
    assert len(lines.splitlines()) == 2
    assert os.fsencode(long) in lines


def test_columns_are_aligned_whatever_the_width_of_the_letters(mount_dir):
    wide = mount_dir / "漢字e\u0301😀"  # 2 + 2 + 1 + 2 columns
    tmpfs(wide)
    header, line = on_terminal("mounts", str(wide)).decode().splitlines()
    assert line.replace("漢字e\u0301😀", "7777777").index("tmpfs") == header.index("SOURCE")


def test_rich_adds_styles_and_nothing_else(various_mounts):
    tmpfs(various_mounts / "[bold]:smile:")
    styled, plain = on_terminal("mounts", prepared=None), on_terminal("mounts")
    assert b"\x1b" in styled
    assert b"\x1b" not in plain
    assert without_styles(styled) == plain


def test_a_dumb_terminal_gets_no_styles():
    assert b"\x1b" in on_terminal("mounts", prepared=None)
    assert b"\x1b" not in on_terminal("mounts", prepared=None, env={"TERM": "dumb"})


# mounts: JSON and all fields

TABLE_FIELDS = (
    "mnt_id mnt_parent_id mnt_root mnt_point mnt_attr fs_type mnt_opts sb_flags fs_subtype "
    "sb_source opt_array opt_sec_array"
).split()


def test_json_has_the_fields_of_the_table(various_mounts):
    found = json.loads(succeeded("mounts", "--json"))
    assert all(list(mount) == TABLE_FIELDS for mount in found)
    assert [(m["mnt_point"], m["mnt_root"], m["sb_source"]) for m in found] == [
        (m.mount_point, m.root, m.source) for m in kernel.mountinfo()
    ]


def test_json_with_all_fields_has_every_field_of_the_kernel(various_mounts):
    found = json.loads(succeeded("mounts", "--json", "--all-fields"))
    assert all(tuple(mount) == blocking.StatmountResult._fields for mount in found)
    assert [
        (m["mnt_id_old"], m["mnt_parent_id_old"], m["sb_dev_major"], m["sb_dev_minor"])
        for m in found
    ] == [(m.id, m.parent, m.major, m.minor) for m in kernel.mountinfo()]


@pytest.mark.parametrize("options", [(), ("--all-fields",)])
def test_json_of_a_path_is_an_array_too(various_mounts, options):
    path = str(various_mounts / "careful")
    (mount,) = json.loads(succeeded("mounts", "--json", *options, path))
    assert mount["mnt_point"] == path
    assert mount["mnt_attr"] == 2 | 4 | 8


def test_json_does_not_depend_on_the_terminal(various_mounts):
    assert on_terminal("mounts", "--json") == succeeded("mounts", "--json")


def test_json_names_the_parts_of_an_id_map():
    values = dict.fromkeys(blocking.StatmountResult._fields)
    mount = blocking.StatmountResult(**values)._replace(
        mnt_uidmap=(blocking.IdmapMapping(0, 1000, 5),), mnt_gidmap=()
    )
    assert _json_object(mount, ("mnt_uidmap", "mnt_gidmap")) == {
        "mnt_uidmap": [{"inside": 0, "outside": 1000, "length": 5}],
        "mnt_gidmap": [],
    }


def test_all_fields_are_a_block_of_lines_for_each_mount(various_mounts):
    blocks = succeeded("mounts", "--all-fields").decode().split("\n\n")
    mounts = [dict(line.split(": ", 1) for line in block.splitlines()) for block in blocks]
    assert all(tuple(mount) == blocking.StatmountResult._fields for mount in mounts)
    assert [(m["mnt_id_old"], m["mnt_point"], m["mnt_root"]) for m in mounts] == [
        (str(m.id), m.mount_point, m.root) for m in kernel.mountinfo()
    ]
    careful = next(m for m in mounts if m["mnt_point"].endswith("/careful"))
    assert careful["mnt_attr"] == "0xe (NOSUID,NODEV,NOEXEC)"
    assert careful["mnt_propagation"] == "0x40000 (PRIVATE)"
    assert careful["sb_magic"] == "0x1021994"
    assert careful["fs_subtype"] == "-"
    assert "size=1024k,mode=700" in careful["opt_array"]


# Names that nobody should see as they are


@pytest.fixture
def hostile_mounts(mount_dir):
    """The paths of mounts whose targets and sources have all those names."""
    paths = {os.fsencode(mount_dir) + b"/" + name: name for name in HOSTILE.values()}
    for path, name in paths.items():
        tmpfs(path, source=name)
    return paths


def told_text(written, env):
    """What a terminal shows, decoded as it would, with nothing in it that moves its cursor."""
    text = written.decode(env.get("PYTHONIOENCODING") or ("ascii" if env == ASCII else "utf-8"))
    assert [char for char in text if not char.isprintable() and char != "\n"] == []
    return text


@encodings
def test_hostile_names_are_escaped_and_can_be_told_again(hostile_mounts, env):
    lines = told_text(succeeded("mounts", env=env), env).splitlines()
    shown = [line.split(" ") for line in lines[-len(hostile_mounts) :]]
    # As the terminal's text is not in the encoding of names when it is in latin-1.
    told = [tuple(unescaped(name.encode()) for name in columns[:2]) for columns in shown]
    if env != ENCODINGS["latin-1 output"]:
        assert told == list(hostile_mounts.items())
    else:
        assert shown[list(HOSTILE).index("letters of many scripts")][1].startswith("é\\xe6")
    assert {len(columns) for columns in shown} == {4}


@encodings
def test_no_hostile_name_reaches_a_terminal(hostile_mounts, env):
    mounts = Path("/proc/self/mountinfo").read_bytes().count(b"\n")
    table = told_text(on_terminal("mounts", env=env, columns=1000), env)
    assert len(table.splitlines()) == 1 + mounts
    fields = told_text(on_terminal("mounts", "--all-fields", env=env), env)
    names = len(blocking.StatmountResult._fields)
    assert len(fields.splitlines()) == mounts * names + mounts - 1


@hostile
def test_stat_shows_no_hostile_name_to_a_terminal(hostile_mounts, name):
    path = next(path for path, its_name in hostile_mounts.items() if its_name == name)
    for env in ({}, ASCII):
        first, *rest = told_text(on_terminal("stat", path, env=env), env).splitlines()
        assert unescaped(first.encode()) == b"name:          " + path
        (mount,) = (line for line in rest if line.startswith("mount id:"))
        assert unescaped(mount.encode()).endswith(b" (" + path + b")")


def test_rich_gets_hostile_names_escaped(hostile_mounts):
    styled = on_terminal("mounts", prepared=None, columns=1000)
    assert without_styles(styled) == on_terminal("mounts", columns=1000)


@encodings
@pytest.mark.parametrize("options", [(), ("--all-fields",)])
def test_json_is_ascii_and_tells_every_byte(hostile_mounts, env, options):
    shown = succeeded("mounts", "--json", *options, env=env)
    assert re.fullmatch(rb"[\n -~]+", shown)
    mounts = json.loads(shown)[-len(hostile_mounts) :]
    assert [
        (os.fsencode(mount["mnt_point"]), os.fsencode(mount["sb_source"])) for mount in mounts
    ] == list(hostile_mounts.items())


@hostile
@pytest.mark.parametrize("command", ["mounts", "stat"])
def test_hostile_names_are_escaped_in_errors(mount_dir, name, command):
    path = os.fsencode(mount_dir) + b"/" + name
    for env in ({}, ASCII):
        done = run(command, path, env=env)
        assert (done.returncode, done.stdout) == (1, b"")
        line = told_text(done.stderr, env)
        told = b"truenas_os: " + path + b": No such file or directory\n"
        assert line.count("\n") == 1
        assert unescaped(line.encode()) == told


# stat


def stat_lines(*arguments, **options):
    written = succeeded("stat", *arguments, **options).decode()
    pairs = (line.split(":", 1) for line in written.splitlines())
    return {key: value.strip() for key, value in pairs}


def iso(stat_time):
    """A time of stat(1) in ISO 8601."""
    return re.sub(r"(\S+) (\S+) ([+-]\d\d)(\d\d)", r"\1T\2\3:\4", stat_time)


@pytest.fixture
def files(mount_dir):
    (mount_dir / "regular").write_bytes(b"x" * 5000)
    (mount_dir / "regular").chmod(0o4751)
    os.link(mount_dir / "regular", mount_dir / "second name")
    (mount_dir / "directory").mkdir(0o1777)
    (mount_dir / "symlink").symlink_to("regular")
    (mount_dir / "dangling").symlink_to("nowhere")
    os.mkfifo(mount_dir / "fifo")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(mount_dir / "socket"))
    (mount_dir / "device").symlink_to("/dev/null")
    (mount_dir / "old").touch()
    os.utime(mount_dir / "old", ns=(-1, -1_500_000_001))
    (mount_dir / "late").touch()
    os.utime(mount_dir / "late", (10**14, 10**11))
    return mount_dir


@pytest.mark.parametrize("zone", ["UTC", "East-5:30", "West3:30"])
@pytest.mark.parametrize(
    "name",
    ["regular", "directory", "symlink", "dangling", "fifo", "socket", "old", "late", ".", "/"]
    + ["/dev/null", "/proc/self/mountinfo"],
)
def test_stat_agrees_with_stat(files, name, zone):
    path = files / name
    shown = stat_lines(path, env={"TZ": zone})
    formats = "%s %b %o %Hd:%Ld %i %h %04a|%A|%u|%U|%g|%G|%y|%z|%w|%F"
    theirs = subprocess.run(
        ["stat", "-c", formats.replace("|", "\n").replace(" ", "\n"), path],
        env=environment(TZ=zone),
        stdout=subprocess.PIPE,
        check=True,
    )
    size, blocks, blksize, device, inode, links, mode, rwx, uid, user, gid, group, *rest = (
        theirs.stdout.decode().splitlines()
    )
    modification, change, birth, kind = rest
    assert shown["size"] == f"{size} bytes"
    assert shown["blocks"] == f"{blocks} of 512 bytes"
    assert shown["block size"] == f"{blksize} bytes"
    assert shown["device"] == device
    assert shown["links"] == links
    assert shown["mode"] == f"{mode} {rwx}"
    assert shown["uid"] == (f"{uid} ({user})" if user != "UNKNOWN" else uid)
    assert shown["gid"] == (f"{gid} ({group})" if group != "UNKNOWN" else gid)
    assert shown["type"] == {
        "regular empty file": "regular file",
        "character special file": "character device",
    }.get(kind, kind)
    if not name.startswith("/proc"):  # where each look is at another inode
        assert shown["inode"] == inode
        assert shown["modification"] == iso(modification)
        assert shown["change"] == iso(change)
        assert shown["birth"] == iso(birth)


def test_stat_shows_the_link_and_where_it_leads(files):
    assert stat_lines(files / "dangling")["name"] == f"{files}/dangling -> nowhere"
    assert stat_lines(files / "dangling")["type"] == "symbolic link"
    assert stat_lines(files / "regular")["name"] == f"{files}/regular"


def test_stat_escapes_where_a_link_leads(mount_dir):
    os.symlink(b"to\n\x1b[31m\xff", os.fsencode(mount_dir) + b"/link")
    assert stat_lines(mount_dir / "link")["name"].endswith(r" -> to\x0a\x1b[31m\xff")


def test_stat_shows_the_numbers_of_a_device():
    shown = stat_lines("/dev/null")
    assert (shown["type"], shown["device type"]) == ("character device", "1:3")


def test_stat_shows_the_time_of_access(files):
    shown = stat_lines(files / "old", env={"TZ": "UTC"})
    assert shown["access"] == "1969-12-31T23:59:59.999999999+00:00"


def test_a_year_that_cannot_be_counted_is_shown_as_seconds(mount_dir, monkeypatch, capsys):
    real = blocking.statx
    monkeypatch.setattr(
        blocking, "statx", lambda *args: real(*args)._replace(stx_atime_sec=2**62, stx_atime_nsec=5)
    )
    assert main(["stat", str(mount_dir)]) == 0
    assert f"access:        @{2**62}.000000005\n" in capsys.readouterr().out


def test_what_the_file_system_does_not_tell_is_a_dash(mount_dir, monkeypatch, capsys):
    real = blocking.statx
    monkeypatch.setattr(blocking, "statx", lambda *args: real(*args)._replace(stx_mask=0))
    assert main(["stat", str(mount_dir)]) == 0
    shown = dict(re.findall(r"(.+?): +(.*)", capsys.readouterr().out))
    assert {key for key, value in shown.items() if value == "-"} == {
        "type", "size", "blocks", "inode", "links", "mode", "uid", "gid",
        "access", "modification", "change", "birth", "mount id",
    }  # fmt: skip


def test_stat_shows_an_owner_without_a_name_by_number(mount_dir, monkeypatch, capsys):
    real = blocking.statx
    nobody = 4_000_000_000
    monkeypatch.setattr(
        blocking, "statx", lambda *args: real(*args)._replace(stx_uid=nobody, stx_gid=nobody)
    )
    assert main(["stat", str(mount_dir)]) == 0
    shown = capsys.readouterr().out
    assert f"uid:           {nobody}\ngid:           {nobody}\n" in shown


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ((0x2000, 512, 4096, 0), "memory 512, offset 4096 bytes"),
        ((0x22000, 4, 4096, 512), "memory 4, offset 4096, read offset 512 bytes"),
        ((0x22000, 0, 0, 0), "not supported"),
        ((0, 512, 512, 512), None),
    ],
)
def test_stat_shows_the_alignment_of_direct_io(mount_dir, monkeypatch, capsys, values, shown):
    fields = ("stx_mask", "stx_dio_mem_align", "stx_dio_offset_align", "stx_dio_read_offset_align")
    real = blocking.statx
    changes = dict(zip(fields, values, strict=True))
    monkeypatch.setattr(blocking, "statx", lambda *args: real(*args)._replace(**changes))
    assert main(["stat", str(mount_dir)]) == 0
    found = re.findall("direct I/O: +(.*)", capsys.readouterr().out)
    assert found == ([] if shown is None else [shown])


def test_stat_names_the_attributes(files):
    assert stat_lines(files)["attributes"] == "MOUNT_ROOT"
    assert stat_lines(files / "regular")["attributes"] == "-"
    set_flags, nodump = 0x40086602, 0x40  # FS_IOC_SETFLAGS, FS_NODUMP_FL
    with (files / "regular").open() as file:
        fcntl.ioctl(file, set_flags, struct.pack("l", nodump))
    assert stat_lines(files / "regular")["attributes"] == "NODUMP"


def test_stat_tells_the_mount_by_unique_id_and_mount_point(various_mounts):
    path = various_mounts / "bind"
    (mount,) = json.loads(succeeded("mounts", "--json", "--all-fields", str(path)))
    old = [m.id for m in kernel.mountinfo() if m.mount_point == str(path)]
    assert old == [mount["mnt_id_old"]]
    assert stat_lines(path)["mount id"] == f"{mount['mnt_id']} ({path})"


def test_stat_of_what_is_on_no_visible_mount_says_so(mount_dir):
    tmpfs(mount_dir / "gone")
    directory = os.open(mount_dir / "gone", os.O_RDONLY)
    try:
        kernel.umount(mount_dir / "gone", kernel.MNT_DETACH)
        shown = stat_lines(f"/proc/self/fd/{directory}/", pass_fds=[directory])
    finally:
        os.close(directory)
    assert re.fullmatch(r"\d+ \(not visible here\)", shown["mount id"])
    assert shown["type"] == "directory"


def test_stat_as_json_has_every_field(files):
    found = json.loads(succeeded("stat", "--json", files / "regular"))
    derived = [f"stx_{kind}time_ns" for kind in "abcm"] + ["stx_dev", "stx_rdev"]
    assert list(found) == [*blocking.StatxResult._fields, *derived]
    theirs = (files / "regular").stat()
    assert (found["stx_mode"], found["stx_ino"], found["stx_dev"], found["stx_size"]) == (
        theirs.st_mode,
        theirs.st_ino,
        theirs.st_dev,
        5000,
    )
    assert (found["stx_atime_ns"], found["stx_mtime_ns"], found["stx_ctime_ns"]) == (
        theirs.st_atime_ns,
        theirs.st_mtime_ns,
        theirs.st_ctime_ns,
    )
    assert json.loads(succeeded("stat", "--json", "/dev/null"))["stx_rdev"] == os.makedev(1, 3)


# Errors


@pytest.mark.parametrize("command", ["mounts", "stat"])
@pytest.mark.parametrize("options", [(), ("--json",)])
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing", "No such file or directory"),
        ("file/below", "Not a directory"),
        ("loop/below", "Too many levels of symbolic links"),
        ("x" * 256, "File name too long"),
        ("x/" * 2100, "File name too long"),
    ],
)
def test_a_bad_path_is_one_line_and_status_1(tmp_path, command, options, name, reason):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    done = run(command, *options, name, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode() == f"truenas_os: {name}: {reason}\n"


@pytest.mark.parametrize("command", ["mounts", "stat"])
def test_an_empty_path_is_one_line_and_status_1(command):
    done = run(command, "")
    assert (done.returncode, done.stdout) == (1, b"")
    assert re.fullmatch(rb"truenas_os: '': No such file or directory\n", done.stderr)


@pytest.mark.parametrize("command", ["mounts", "stat"])
def test_a_path_without_permission_is_one_line_and_status_1(tmp_path, command):
    closed = tmp_path / "closed"
    closed.mkdir(0)
    # No capability survives the exec, so the mode counts for root too.
    powerless = ("setpriv", "--bounding-set", "-all", "--inh-caps", "-all")
    done = run(command, closed / "below", command=powerless)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode() == f"truenas_os: {closed}/below: Permission denied\n"


def test_a_mount_that_is_not_visible_is_explained_in_one_line():
    done = run("mounts", "/proc/self/fd/0", stdin=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (1, b"")
    assert re.fullmatch(
        rb"truenas_os: /proc/self/fd/0: No such file or directory \(.*is not visible in this mount "
        rb"namespace\)\n",
        done.stderr,
    )


@pytest.mark.parametrize(
    "arguments",
    [(), ("nonsense",), ("--nonsense",), ("stat",), ("stat", "a", "b"), ("mounts", "a", "b")],
    ids=shlex.join,
)
def test_wrong_usage_is_status_2(arguments):
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"usage: python -m truenas_os")


@hostile
def test_wrong_usage_repeats_no_hostile_argument(name):
    for arguments in (("stat", "a", name), (name,)):
        done = run(*arguments)
        assert done.returncode == 2
        assert re.findall(rb"[\x00-\x09\x0b-\x1f\x7f]", done.stderr) == []
        assert b"\nlines" not in done.stderr


@pytest.mark.parametrize("arguments", [(), ("mounts",), ("stat",)], ids=shlex.join)
def test_help_has_an_example(arguments):
    shown = succeeded(*arguments, "-h").decode("ascii")
    assert re.search(r"examples?:\s+python -m truenas_os \w+", shown)
    assert max(map(len, shown.splitlines())) <= 100


def test_the_version_is_that_of_the_package():
    assert succeeded("--version").decode() == f"truenas_os {metadata.version('truenas-os')}\n"


# Pipes and signals


@pytest.mark.parametrize(
    "arguments",
    [("mounts",), ("mounts", "--json"), ("mounts", "--all-fields"), ("stat", "/"), ("-h",)]
    + [("--version",)],
    ids=shlex.join,
)
def test_a_closed_pipe_is_quiet(arguments):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = run(*arguments, stdout=writer)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


def test_a_reader_that_leaves_early_is_quiet(many_mounts):
    script = f"{shlex.join(COMMAND)} mounts --json --all-fields | head -1"
    done = subprocess.run(["sh", "-c", script], env=environment(), capture_output=True)
    assert (done.stdout, done.stderr) == (b"[\n", b"")


@pytest.mark.parametrize("arguments", [("mounts",), ("stat", "/"), ("mounts", "--json")])
def test_a_full_device_is_one_line_and_status_1(arguments):
    with open("/dev/full", "wb") as full:
        done = run(*arguments, stdout=full)
    assert done.returncode == 1
    assert done.stderr == b"truenas_os: No space left on device\n"


def test_a_stdout_that_is_closed_is_one_line_and_status_1():
    for arguments in (("mounts",), ("stat", "/")):
        done = run(*arguments, command=("sh", "-c", 'exec "$@" >&-', "sh"))
        assert done.returncode == 1
        assert done.stderr == b"truenas_os: standard output: Bad file descriptor\n"


def test_ctrl_c_is_quiet_and_status_130(many_mounts):
    # More than a pipe holds, and nobody reads it: once the first byte is there, the rest waits.
    # The signal may be ignored here, as in a job in the background.
    prepared = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    process = subprocess.Popen(
        [sys.executable, "-c", PREPARED.format(prepared), "mounts", "--json", "--all-fields"],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
    )
    with process:
        assert process.stdout.read(1) == b"["
        process.send_signal(signal.SIGINT)
        assert process.wait() == 128 + signal.SIGINT
        assert process.stderr.read() == b""


def test_ctrl_c_does_not_wait_for_a_reader_of_what_was_buffered():
    prepared = """if True:
        from truenas_os import blocking

        def iter_mount(**_):
            sys.stdout.write("some")
            raise KeyboardInterrupt

        blocking.iter_mount = iter_mount
    """
    reader, writer = os.pipe()
    try:
        os.set_blocking(writer, False)
        while True:
            try:
                os.write(writer, bytes(1 << 12))
            except BlockingIOError:
                break
        os.set_blocking(writer, True)
        # It would wait for ever; how long it takes to do so is not what is tested.
        done = run("mounts", prepared=prepared, stdout=writer, timeout=300)
    finally:
        os.close(reader)
        os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGINT, b"")
