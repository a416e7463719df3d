# SPDX-License-Identifier: LGPL-3.0-or-later
"""``python -m truenas_os mounts``, against findmnt and mountinfo."""

import json
import os
import sys

import kernel
import pytest
from command_line import (
    ASCII,
    NO_RICH,
    findmnt,
    findmnt_rows,
    on_terminal,
    succeeded,
    tmpfs,
    unescaped,
    without_styles,
)

from truenas_os import blocking
from truenas_os.blocking.trees import TreeOfMounts
from truenas_os.cli import main, tree
from truenas_os.cli.mounts import json_object


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
        f"{NO_RICH}\nimport os, importlib, truenas_os.cli as cli\n"
        "for name in cli._COMMANDS: importlib.import_module('truenas_os.cli.' + name)\n"
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
    shown = TreeOfMounts(mounts).branches(tree.characters("ascii").branches)
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
    assert json_object(mount, ("mnt_uidmap", "mnt_gidmap")) == {
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
