# SPDX-License-Identifier: LGPL-3.0-or-later
"""``python -m truenas_os mount``, ``bind`` and ``umount``, against mountinfo."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import kernel
import pytest
from command_line import hostile, run, succeeded, tmpfs, unescaped
from filesystems import needs_root

from truenas_os import blocking
from truenas_os.cli import main
from truenas_os.cli.mount import _sorted, _words

# No capability survives the exec.
POWERLESS = ("setpriv", "--bounding-set", "-all", "--inh-caps", "-all")


def at(path):
    """What mountinfo has at a mount point, the uppermost last."""
    return [m for m in kernel.mountinfo() if m.mount_point == os.fsdecode(path)]


def failed(*arguments, status=1, **options):
    done = run(*arguments, **options)
    assert (done.returncode, done.stdout) == (status, b"")
    return done.stderr.decode()


@pytest.fixture
def target(mount_dir):
    (mount_dir / "target").mkdir()
    return mount_dir / "target"


# mount


def test_mount_makes_a_mount_that_stays(target):
    assert succeeded("mount", "-t", "tmpfs", "-o", "size=16M,mode=700", "scratch", target) == b""
    (mount,) = at(target)
    assert (mount.fs_type, mount.source, mount.root) == ("tmpfs", "scratch", "/")
    assert {"rw", "size=16384k", "mode=700"} <= set(mount.super_options.split(","))
    assert mount.options == "rw,relatime"


def test_mount_needs_no_source(target):
    succeeded("mount", "-t", "tmpfs", target)
    assert [(m.fs_type, m.source) for m in at(target)] == [("tmpfs", "none")]


def test_mount_stacks_on_what_is_mounted(target):
    for source in ("one", "two"):
        succeeded("mount", "-t", "tmpfs", source, target)
    assert [m.source for m in at(target)] == ["one", "two"]


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ("nosuid,nodev,noexec,nosymfollow", "rw,nosuid,nodev,noexec,relatime,nosymfollow"),
        ("nosuid,nodev,suid", "rw,nodev,relatime"),
        ("noatime", "rw,noatime"),
        ("strictatime,nodiratime", "rw,nodiratime"),
        ("noatime,strictatime", "rw"),
        ("strictatime,relatime", "rw,relatime"),
        ("noatime,relatime", "rw,relatime"),
        ("noatime,atime", "rw,relatime"),
        ("ro", "ro,relatime"),
        ("ro,nodev,rw", "rw,nodev,relatime"),
        ("defaults", "rw,relatime"),
        (",,", "rw,relatime"),
    ],
)
def test_words_for_the_mount_become_its_attributes(target, options, shown):
    succeeded("mount", "-t", "tmpfs", "-o", options, target)
    assert [m.options for m in at(target)] == [shown]


def test_words_mean_what_they_mean_to_mount(mount_dir):
    words = "ro rw suid nosuid dev nodev exec noexec symfollow nosymfollow atime noatime".split()
    words += "relatime strictatime diratime nodiratime sync dirsync lazytime defaults".split()
    for word in words:
        ours, theirs = mount_dir / f"our-{word}", mount_dir / f"their-{word}"
        ours.mkdir()
        theirs.mkdir()
        succeeded("mount", "-t", "tmpfs", "-o", word, "none", ours)
        subprocess.run(["mount", "-t", "tmpfs", "-o", word, "none", theirs], check=True)
        assert [m[6:] for m in at(ours)] == [m[6:] for m in at(theirs)]


def test_ro_makes_the_filesystem_read_only_too(target):
    succeeded("mount", "-t", "tmpfs", "-o", "size=1M,ro", target)
    (mount,) = at(target)
    assert (mount.options, mount.super_options.split(",")[0]) == ("ro,relatime", "ro")


def test_options_can_be_given_in_parts(target):
    succeeded("mount", "-t", "tmpfs", "-o", "size=1M", "-o", "nosuid,mode=711", target)
    (mount,) = at(target)
    assert mount.options == "rw,nosuid,relatime"
    assert {"size=1024k", "mode=711"} <= set(mount.super_options.split(","))


def test_a_value_with_commas_is_quoted():
    assert _words('a="1,2",b,"c=3,4",d=5="6",') == ['a="1,2"', "b", '"c=3,4"', 'd=5="6"']
    words = _words('a="1,2",b,"c=3,4",d=5="6"')
    assert _sorted(words)[2] == {"a": "1,2", "b": True, "c": "3,4", "d": "5=6"}


def test_a_quoted_value_reaches_the_filesystem(mount_dir):
    for name in ("a,b", "c", "merged"):
        (mount_dir / name).mkdir()
    (mount_dir / "a,b" / "file").touch()
    lower = f'lowerdir="{mount_dir}/a,b:{mount_dir}/c"'
    succeeded("mount", "-t", "overlay", "-o", lower, mount_dir / "merged")
    assert os.listdir(mount_dir / "merged") == ["file"]


def test_an_empty_value_is_a_value():
    assert _sorted(["a=", "b"])[2] == {"a": "", "b": True}


def test_mkdir_makes_the_directories_that_lack(mount_dir):
    succeeded("mount", "-t", "tmpfs", "--mkdir", mount_dir / "a" / "b" / "c")
    assert len(at(mount_dir / "a" / "b" / "c")) == 1


def test_mkdir_takes_back_the_directories_of_a_mount_that_failed(mount_dir):
    failed("mount", "-t", "tmpfs", "-o", "bogus", "--mkdir", mount_dir / "a" / "b")
    assert not (mount_dir / "a").exists()


@needs_root
@pytest.mark.parametrize("options", ["loop", "loop,ro"])
def test_loop_mounts_a_file(target, tmp_path, options):
    program = shutil.which("mkfs.ext4", path=os.environ["PATH"] + ":/usr/sbin:/sbin")
    if program is None:
        pytest.skip("mkfs.ext4 is missing: install the Debian package e2fsprogs")
    image = tmp_path / "disk image"
    with image.open("wb") as file:
        file.truncate(16 << 20)
    subprocess.run([program, "-q", image], check=True)
    succeeded("mount", "-t", "ext4", "-o", options, image, target)
    try:
        (mount,) = at(target)
        assert mount.fs_type == "ext4"
        assert mount.options.split(",")[0] == ("ro" if "ro" in options else "rw")
        assert (target / "lost+found").is_dir()
        device = Path(mount.source)
        backing = Path("/sys/block", device.name, "loop/backing_file").read_text()
        assert backing.strip() == str(image)
    finally:
        succeeded("umount", target)
    assert not Path("/sys/block", device.name, "loop/backing_file").exists()


@hostile
def test_mount_takes_hostile_names(mount_dir, name):
    target = os.fsencode(mount_dir) + b"/" + name
    os.mkdir(target)
    succeeded("mount", "-t", "tmpfs", b"from " + name, target)
    assert [os.fsencode(m.source) for m in at(target)] == [b"from " + name]
    succeeded("umount", target)
    assert at(target) == []


def test_a_name_may_begin_with_a_dash(mount_dir):
    (mount_dir / "-R").mkdir()
    succeeded("mount", "-t", "tmpfs", "--", "-o", "-R", cwd=mount_dir)
    assert [m.source for m in at(mount_dir / "-R")] == ["-o"]
    succeeded("umount", "--", "-R", cwd=mount_dir)
    assert at(mount_dir / "-R") == []


@pytest.mark.parametrize(
    ("arguments", "reason", "words"),
    [
        (("-t", "tmpfs", "-o", "size=bogus"), "Invalid argument", "tmpfs: Bad value for 'size'"),
        (("-t", "tmpfs", "-o", "bogus"), "Invalid argument", "tmpfs: Unknown parameter 'bogus'"),
        (("-t", "tmpfs", "-o", "=x"), "Invalid argument", "tmpfs: Unknown parameter ''"),
        (("-t", "tmpfs", "-o", "bind"), "Invalid argument", "tmpfs: Unknown parameter 'bind'"),
        (("-t", "tmpfs", "-o", "mode=999"), "Invalid argument", "tmpfs: Bad value for 'mode'"),
        (("-t", "overlay", "-o", "index=maybe"), "Invalid argument", "Bad value for 'index'"),
    ],
    ids=lambda value: value[-1] if isinstance(value, tuple) else "_",
)
def test_the_words_of_the_kernel_are_shown(target, arguments, reason, words):
    line = failed("mount", *arguments, target)
    assert line.startswith(f"truenas-os: {target}: {reason} (")
    assert words in line
    assert line.count("\n") == 1
    assert at(target) == []


@needs_root
def test_the_words_of_the_kernel_about_a_source_are_shown(target):
    line = failed("mount", "-t", "ext4", "/nonexistent", target)
    assert line.startswith(f"truenas-os: {target}: No such file or directory (")
    assert "/nonexistent: Can't lookup blockdev" in line


def test_a_filesystem_that_does_not_exist_is_named(target):
    line = failed("mount", "-t", "nonsense", target)
    assert re.fullmatch(r"truenas-os: nonsense: No such device \(.*\)\n", line)
    assert str(target) in line


@hostile
def test_mount_shows_no_hostile_name_in_errors(mount_dir, name, capsys):
    name, target = os.fsdecode(name), f"{mount_dir}/{os.fsdecode(name)}"
    for arguments in (
        ("mount", "-t", "tmpfs", name, target),
        ("mount", "-t", "tmpfs", "-o", f"size={name}", str(mount_dir)),
        ("bind", target, target),
        ("umount", target),
        ("umount", "-R", target),
    ):
        assert main(arguments) == 1
        line = capsys.readouterr().err
        assert [char for char in line[:-1] if not char.isprintable()] == []
        assert line.startswith("truenas-os: ")
    assert unescaped(line.encode()) == (
        b"truenas-os: " + os.fsencode(target) + b": No such file or directory\n"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("mount", "-t", "tmpfs"),
        ("bind", "."),
        ("umount",),
        ("umount", "-l"),
        ("umount", "-R"),
    ],
    ids=shlex.join,
)
def test_a_symlink_as_target_is_not_followed(target, arguments):
    tmpfs(target)
    link = target.with_name("link")
    link.symlink_to(target)
    line = failed(*arguments, link)
    assert line.startswith(f"truenas-os: {link}: Invalid argument (")
    assert "symlink" in line
    assert len(at(target)) == 1


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("mount", "-t", "tmpfs", "FILE"), "no directory"),
        (("bind", "DIRECTORY", "FILE"), "not of the kind of SOURCE"),
        (("bind", "FILE", "DIRECTORY"), "not of the kind of SOURCE"),
        (("umount", "FILE"), "no mount point"),
        (("umount", "-l", "DIRECTORY"), "no mount point"),
    ],
    ids=lambda value: shlex.join(value) if isinstance(value, tuple) else "_",
)
def test_a_target_that_does_not_fit_is_explained(target, arguments, what):
    (target / "file").touch()
    paths = {"FILE": target / "file", "DIRECTORY": target}
    given = [paths.get(word, word) for word in arguments]
    line = failed(*given)
    assert line.startswith(f"truenas-os: {given[-1]}: Invalid argument (")
    assert line.endswith(f"TARGET is {what})\n")


@pytest.mark.parametrize(
    "arguments",
    [("mount", "-t", "tmpfs"), ("bind", "."), ("umount",), ("umount", "-l"), ("umount", "-R")],
    ids=shlex.join,
)
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing", "No such file or directory"),
        ("", "No such file or directory"),
        ("file/below", "Not a directory"),
        ("x" * 256, "File name too long"),
    ],
)
def test_a_bad_target_is_one_line_and_status_1(tmp_path, arguments, name, reason):
    (tmp_path / "file").touch()
    line = failed(*arguments, name, cwd=tmp_path)
    shown = re.escape(name or "''")
    assert re.fullmatch(rf"truenas-os: {shown}: {reason}( \(.*\))?\n", line)


@pytest.mark.parametrize(
    "arguments",
    [
        ("mount", "-t", "tmpfs", "TARGET"),
        ("bind", "/", "TARGET"),
        ("umount", "TARGET"),
        ("umount", "-l", "TARGET"),
        ("umount", "-R", "TARGET"),
    ],
    ids=shlex.join,
)
def test_who_may_not_mount_is_told_so_in_one_line(target, arguments):
    tmpfs(target)
    given = [str(target) if word == "TARGET" else word for word in arguments]
    line = failed(*given, command=POWERLESS)
    assert re.fullmatch(r"truenas-os: .*: Operation not permitted( \(.*\))?\n", line)
    assert str(target) in line
    assert len(at(target)) == 1


# bind


def test_bind_shows_a_directory_in_another_place(target):
    source = target.with_name("source")
    (source / "below").mkdir(parents=True)
    succeeded("bind", source / "below", target)
    (mount,) = at(target)
    assert (mount.root, mount.options) == ("/source/below", "rw,relatime")
    (target / "file").touch()
    assert (source / "below" / "file").exists()


def test_bind_takes_a_file(mount_dir):
    (mount_dir / "source").write_text("content")
    (mount_dir / "file").touch()
    succeeded("bind", mount_dir / "source", mount_dir / "file")
    assert (mount_dir / "file").read_text() == "content"


def test_a_symlink_as_source_is_followed(target):
    (target.parent / "real").mkdir()
    (target.parent / "link").symlink_to("real")
    succeeded("bind", target.parent / "link", target)
    assert [m.root for m in at(target)] == ["/real"]


def test_bind_leaves_out_the_mounts_below_unless_recursive(target):
    tmpfs(target.with_name("source"))
    tmpfs(target.with_name("source") / "below")
    succeeded("bind", target.with_name("source"), target)
    assert at(target / "below") == []
    succeeded("bind", "-R", target.with_name("source"), target)
    assert len(at(target / "below")) == 1


def test_bind_can_be_read_only(target):
    tmpfs(target.with_name("source"))
    tmpfs(target.with_name("source") / "below")
    succeeded("bind", "--ro", "--recursive", target.with_name("source"), target)
    for path in (target, target / "below"):
        assert [m.options for m in at(path)] == ["ro,relatime"]
    (target.with_name("source") / "below" / "file").touch()


@hostile
def test_bind_takes_hostile_names(mount_dir, name):
    paths = [os.fsencode(mount_dir / kind) + name for kind in ("source", "target")]
    for path in paths:
        os.mkdir(path)
    succeeded("bind", *paths)
    assert [os.fsencode(m.root) for m in at(paths[1])] == [b"/source" + name]


def owners(path):
    found = path.stat()
    return found.st_uid, found.st_gid


@needs_root
@pytest.mark.parametrize(
    ("mappings", "seen"),
    [
        (["u:0:100000:65536"], {(0, 0): (100000, 0), (5, 7): (100005, 7)}),
        (["g:0:100000:65536"], {(0, 0): (0, 100000), (5, 7): (5, 100007)}),
        (["b:0:100000:65536"], {(0, 0): (100000, 100000), (5, 7): (100005, 100007)}),
        (["u:5:50:1", "g:7:70:1"], {(5, 7): (50, 70), (0, 0): (65534, 65534)}),
        (["u:0:10:1", "u:5:50:1", "b:6:60:2"], {(0, 7): (10, 61), (5, 6): (50, 60)}),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, list) else "_",
)
def test_bind_maps_ids(target, mappings, seen):
    tmpfs(target.with_name("source"))
    for number, (uid, gid) in enumerate(seen):
        file = target.with_name("source") / str(number)
        file.touch()
        os.chown(file, uid, gid)
    options = [word for mapping in mappings for word in ("--idmap", mapping)]
    succeeded("bind", *options, target.with_name("source"), target)
    assert [owners(target / str(n)) for n in range(len(seen))] == list(seen.values())
    assert "idmapped" in at(target)[0].options.split(",")


def test_a_filesystem_that_cannot_be_mapped_is_explained(target):
    line = failed("bind", "--idmap", "b:0:0:1", "/proc", target)
    assert re.fullmatch(
        r"truenas-os: .*: (Invalid argument|Operation not permitted) \(.*\)\n", line
    )
    assert str(target) in line
    assert at(target) == []


# umount


def test_umount_unmounts_what_is_on_top(target):
    for source in ("one", "two"):
        tmpfs(target, source=source)
    succeeded("umount", target)
    assert [m.source for m in at(target)] == ["one"]


def test_umount_takes_a_relative_path(target):
    tmpfs(target)
    succeeded("umount", "target", cwd=target.parent)
    assert at(target) == []


def test_umount_of_no_mount_point_is_one_line(target):
    line = f"truenas-os: {target}: Invalid argument (TARGET is no mount point)\n"
    assert failed("umount", target) == line


def test_a_mount_in_use_is_one_line_and_stays(target):
    tmpfs(target)
    with open(target / "file", "w"):
        line = failed("umount", target)
    assert line == f"truenas-os: {target}: Device or resource busy\n"
    assert len(at(target)) == 1


def test_the_mounts_below_are_named(target):
    tmpfs(target)
    tmpfs(target / "below")
    line = failed("umount", target)
    notes = f"(mounts are below it: {target}/below)"
    assert line == f"truenas-os: {target}: Device or resource busy {notes}\n"


def nested(target):
    for path in (target, target / "a", target / "a" / "b", target / "c"):
        tmpfs(path)


@pytest.mark.parametrize("options", [("-R",), ("--recursive",), ("-l",), ("--lazy",), ("-Rl",)])
def test_umount_takes_whole_trees(target, options):
    nested(target)
    succeeded("umount", *options, target)
    assert [m for m in kernel.mountinfo() if m.mount_point.startswith(f"{target}")] == []


def test_a_lazy_umount_detaches_what_is_in_use(target):
    tmpfs(target)
    with open(target / "file", "w"):
        succeeded("umount", "-l", target)
        assert at(target) == []


def test_what_a_recursive_umount_leaves_is_a_line_for_each(target):
    nested(target)
    with open(target / "a" / "b" / "file", "w"):
        lines = failed("umount", "-R", target).splitlines()
    busy = "Device or resource busy"
    assert lines == [
        f"truenas-os: {target}/a/b: {busy}",
        f"truenas-os: {target}/a: {busy} (mounts are below it: {target}/a/b)",
        f"truenas-os: {target}: {busy} (mounts are below it: {target}/a, {target}/a/b)",
    ]
    assert at(target / "c") == []


@hostile
def test_hostile_names_of_what_is_left_keep_their_line(target, name):
    tmpfs(target)
    below = os.fsencode(target) + b"/" + name
    tmpfs(below)
    with open(below + b"/file", "w"):
        done = run("umount", "-R", target)
    lines = done.stderr.splitlines()
    assert (done.returncode, len(lines)) == (1, 2)
    assert unescaped(lines[0]) == b"truenas-os: " + below + b": Device or resource busy"
    assert [char for char in done.stderr.decode() if not char.isprintable() and char != "\n"] == []


# All of them


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("mount", "/mnt"), "required: -t"),
        (("mount", "-t", "tmpfs"), "required: TARGET"),
        (("mount", "-t", "tmpfs", "a", "b", "c"), "unrecognized arguments: c"),
        (("mount", "-t", "tmpfs", "-o", 'x="', "b"), "double quote"),
        (("mount", "-t", "tmpfs", "-o", "a=1,b,a=2", "b"), "option a is given twice"),
        (("mount", "-t", "tmpfs", "-o", "loop", "b"), "loop needs a source"),
        (("mount", "-t", "tmpfs", "-o", "x=" + "y" * 256, "b"), "256 bytes long"),
        (("mount", "-t", "t" * 256, "b"), "256 bytes long"),
        (("bind", "a"), "required: TARGET"),
        (("bind", "a", "b", "--idmap", "u:0:1"), "argument --idmap: 'u:0:1' is not"),
        (("bind", "a", "b", "--idmap", "x:0:1:1"), "argument --idmap"),
        (("bind", "a", "b", "--idmap", "u:-1:1:1"), "argument --idmap"),
        (("bind", "a", "b", "--idmap", "u:0:1:1:1"), "argument --idmap"),
        (("bind", "a", "b", "--idmap", "u:0:1: 1"), "argument --idmap"),
        (("bind", "a", "b", "--idmap", "u:0:1:" + "9" * 5000), "argument --idmap"),
        (("bind", "a", "b", "--idmap", "u:0:1:0"), "uid_map: 0:1:0 is not a range"),
        (("bind", "a", "b", "--idmap", "g:0:1:4294967295"), "gid_map: 0:1:4294967295 is not"),
        (("bind", "a", "b", "--idmap", "u:0:1:5", "--idmap", "b:4:9:1"), "mapped twice"),
        (("umount",), "required: TARGET"),
        (("umount", "a", "b"), "unrecognized arguments: b"),
    ],
    ids=lambda value: shlex.join(value)[:40] if isinstance(value, tuple) else "_",
)
def test_wrong_usage_is_explained(arguments, reason):
    errors = failed(*arguments, status=2)
    assert errors.startswith("usage: truenas-os")
    assert reason in errors


@hostile
def test_wrong_usage_repeats_no_hostile_value(name, capsys):
    name = os.fsdecode(name)
    for arguments in (
        ("mount", "-t", "tmpfs", "-o", f'"{name}', "/nonexistent"),
        ("mount", "-t", "tmpfs", "-o", f"x{name},x{name}", "/nonexistent"),
        ("bind", "a", "b", "--idmap", name),
    ):
        with pytest.raises(SystemExit) as left:
            main(arguments)
        assert left.value.code == 2
        errors = capsys.readouterr().err
        assert [char for char in errors if not char.isprintable() and char != "\n"] == []


def interrupted_at(call):
    return (
        f"from truenas_os.blocking import mounting, unmounting\n"
        f"real = {call}\n"
        f"def interrupted(*args, **kwargs):\n"
        f"    real(*args, **kwargs)\n"
        f"    raise KeyboardInterrupt\n"
        f"{call} = interrupted"
    )


@pytest.mark.parametrize("call", ["fsopen", "fsconfig", "fsmount", "attach"])
def test_ctrl_c_takes_back_what_mount_has_begun(target, call):
    arguments = ("mount", "-t", "tmpfs", "-o", "size=1M", "--mkdir", target / "a" / "b")
    done = run(*arguments, prepared=interrupted_at(f"mounting.{call}"), cwd=target)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")
    assert [m for m in kernel.mountinfo() if str(target) in m.mount_point] == []
    assert os.listdir(target) == []


@pytest.mark.parametrize("call", ["open_tree", "mount_setattr", "attach"])
def test_ctrl_c_takes_back_what_bind_has_begun(target, call):
    prepared = interrupted_at(f"mounting.{call}")
    done = run("bind", "--ro", target.parent, target, prepared=prepared)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")
    assert at(target) == []


def test_ctrl_c_ends_a_recursive_umount(target):
    nested(target)
    done = run("umount", "-R", target, prepared=interrupted_at("unmounting.umount2"))
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")
    assert len(at(target)) == 1


def test_errors_that_are_none_of_the_kernel_are_no_failure_of_the_user(monkeypatch):
    def broken(*_, **__):
        raise ExceptionGroup("both", [OSError(16, "busy"), ExceptionGroup("x", [KeyError("k")])])

    monkeypatch.setattr(blocking, "umount", broken)
    with pytest.raises(ExceptionGroup):
        main(["umount", "/nonexistent"])


def test_mount_and_umount_leave_no_descriptor_in_this_process(target, capsys):
    fds = kernel.open_fds()
    for _ in range(3):
        assert main(["mount", "-t", "tmpfs", str(target)]) == 0
        assert main(["bind", str(target.parent), str(target)]) == 0
        assert main(["umount", "-R", str(target)]) == 0
        assert main(["umount", str(target)]) == 0
        assert main(["umount", str(target)]) == 1
        assert main(["mount", "-t", "tmpfs", "-o", "bogus", str(target)]) == 1
    assert kernel.open_fds() == fds
    assert at(target) == []
    assert capsys.readouterr().out == ""
