# SPDX-License-Identifier: LGPL-3.0-or-later
"""The example filesystems do what POSIX and Linux promise, as a native tmpfs does."""

import hashlib
import os
import re
import stat
import tarfile
import textwrap
import zipfile
from pathlib import Path

import kernel
import posix_programs
import pytest
from filesystems import IS_ROOT, require_fuse
from served import SYSTEMS, mounted_example, serving
from stuck import wait_until

# What cannot be had where the kernel gathers writes: it reads the rest of a page that is written in
# part, keeps the times itself, by another clock, and what it has written it does not ask about.
_WITH_WRITEBACK = {
    "writing_touches_a_file",
    "reading_after_a_change_touches_the_access_time",
    "a_file_has_holes",
}
# What cannot be had where callbacks are given paths, of which there are none for these.
_NOT_BY_PATH = {
    "exchanging two names": {
        "a_directory_counts_its_subdirectories",
        "a_rename_with_EXCHANGE_swaps_anything",
    },
    "files without names": {
        "a_temporary_file_has_no_name_until_it_is_linked",
        "what_is_made_belongs_to_its_maker",
    },
    "allocating and punching": {
        "a_hole_is_punched",
        "a_limit_of_the_size_is_heeded",
        "more_space_than_there_is_is_not_allocated",
        "space_is_allocated",
        "what_is_mapped_is_punched_and_truncated_too",
    },
    "seeking data and holes": {"a_file_has_holes"},
    "the time of birth": {"the_time_of_birth_is_known_and_does_not_change"},
    # Where there is a default ACL, the caller's umask does not apply. But the mirror's threads have
    # one umask in common, so the kernel has to apply the caller's in any case.
    "ACLs that are enforced and inherited": {
        "a_default_acl_takes_the_place_of_the_umask",
        "an_acl_lets_others_in",
        "an_acl_set_by_who_is_not_in_the_group_clears_setgid",
    },
}


@pytest.fixture(scope="module", params=SYSTEMS)
def served(request, tmp_path_factory):
    require_fuse()
    with serving(request.param, tmp_path_factory.mktemp("served")) as served:
        yield served


@pytest.mark.parametrize("name", posix_programs.PROGRAMS)
def test_posix(served, name):
    if posix_programs.PROGRAMS[name].needs_root and not IS_ROOT:
        pytest.skip("needs the ids of other users")
    if served.name == "writeback" and name in _WITH_WRITEBACK:
        pytest.skip("the kernel's cache of writes is in the way")
    if served.name == "mirror":
        for what, names in _NOT_BY_PATH.items():
            if name in names:
                pytest.skip(f"no callback that is given a path is for {what}")
    try:
        served.run_posix(name)
    except AssertionError as error:
        # Who opens what is replaced meanwhile is sent back by the kernel, but once only: no path
        # leads to the file that was found any more.
        is_this = (served.name, name) == ("mirror", "a_rename_is_atomic_for_who_looks")
        if not is_this or "Stale file handle: 'target'" not in str(error):
            raise
        served.run_posix(name)


# Without rules, the filesystem with faults is the passthrough one.
at_random = pytest.mark.parametrize("served", [n for n in SYSTEMS if n != "faulty"], indirect=True)


def _operations(served):
    return 1000 if served.name == "mirror" else 2500  # each has to go to a thread


@at_random
@pytest.mark.parametrize("seed", [1, 2])
def test_random_operations_on_a_file(served, seed):
    count = _operations(served)
    out = served.run("fsx.py", served.top, "--seed", seed, "--operations", count)
    assert out.startswith(f"{count} operations")


@at_random
@pytest.mark.parametrize("seed", [1, 2])
def test_random_operations_on_names(served, seed):
    command = ["random_trees.py", served.elsewhere, served.top]
    if served.name == "mirror":
        command.append("--no-exchange")
    count = _operations(served)
    out = served.run(*command, "--seed", seed, "--operations", count)
    assert out.startswith(f"{count} operations")


# The filesystem in memory.


def client(served, program, *args):
    program = f"import errno, os, sys, time\ntop = sys.argv[1]\n{textwrap.dedent(program)}"
    return served.run("-c", program, served.top, *args).strip()


def test_what_does_not_fit_is_refused_and_what_is_removed_makes_room(tmp_path):
    with serving("memory", tmp_path, "--size", "1") as served:
        out = client(
            served,
            """
            for _ in range(5):
                with open(top + "/a", "wb", 0) as file:
                    file.write(bytes(900_000))
                    try:
                        while file.write(bytes(100_000)):
                            pass
                    except OSError as error:
                        print(errno.errorcode[error.errno])
                    os.unlink(top + "/a")
                while os.statvfs(top).f_bfree < 250:
                    time.sleep(0.01)
            """,
        )
    assert out.split() == ["ENOSPC"] * 5


# The directory at another place.


@pytest.fixture(scope="module")
def mirror(tmp_path_factory):
    require_fuse()
    with serving("passthrough", tmp_path_factory.mktemp("mirror"), "--timeout", "0") as served:
        yield served


def test_what_happens_in_the_source_is_seen(mirror):
    file = mirror.source / "file"
    file.write_text("one")
    show = "print(open(top + '/file').read(), os.stat(top + '/file').st_size, *os.listdir(top))"
    assert client(mirror, show) == "one 3 file"
    file.write_text("three")
    assert client(mirror, show) == "three 5 file"
    file.rename(mirror.source / "other")
    (mirror.source / "file").write_text("two")
    assert sorted(client(mirror, show).split()) == ["3", "file", "other", "two"]
    client(mirror, "os.unlink(top + '/file'); os.rename(top + '/other', top + '/file')")
    assert os.listdir(mirror.source) == ["file"]
    file.unlink()


def test_what_has_an_inode_number_on_several_filesystems_is_not_confused(mirror):
    (mirror.source / "sub").mkdir()
    (mirror.source / "file").write_text("outer")
    kernel.mount("tmpfs", mirror.source / "sub", "tmpfs")
    try:
        inode = (mirror.source / "file").stat().st_ino
        for number in range(inode + 1):
            file = mirror.source / "sub" / f"file{number}"
            file.write_text("inner")
            if file.stat().st_ino == inode:
                break
        else:
            pytest.fail("no inode has the number")
        out = client(
            mirror,
            """
            inner = [top + "/sub/" + name for name in os.listdir(top + "/sub")]
            print(open(top + "/file").read(), *{open(path).read() for path in inner})
            inodes = {os.stat(path).st_ino for path in [top, top + "/sub", top + "/file", *inner]}
            print(len(inodes) == len(inner) + 3)
            try:
                os.rename(top + "/file", top + "/sub/x")
            except OSError as error:
                print(errno.errorcode[error.errno])
            """,
        )
        assert out.split() == ["outer", "inner", "True", "EXDEV"]
    finally:
        kernel.umount(mirror.source / "sub", kernel.MNT_DETACH)
        (mirror.source / "file").unlink()


def test_nobody_is_led_astray_by_what_is_put_in_place_of_a_directory(mirror):
    (mirror.source / "d" / "sub").mkdir(parents=True)
    (mirror.elsewhere / "sub").mkdir()
    out = client(
        mirror,
        """
        fd = os.open(top + "/d", os.O_RDONLY)
        source, elsewhere = sys.argv[2:]
        os.rename(source + "/d", source + "/moved")
        os.symlink(elsewhere, source + "/d")
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        os.mkdir("sub/made", dir_fd=fd)
        print(os.readlink(top + "/d") == elsewhere, sorted(os.listdir(fd)))
        """,
        mirror.source,
        mirror.elsewhere,
    )
    assert out == "True ['file', 'sub']"
    assert sorted(os.listdir(mirror.source / "moved")) == ["file", "sub"]
    assert os.listdir(mirror.source / "moved" / "sub") == ["made"]
    assert os.listdir(mirror.elsewhere) == ["sub"] and not os.listdir(mirror.elsewhere / "sub")
    client(mirror, "import shutil; shutil.rmtree(top + '/moved'); os.unlink(top + '/d')")


def test_what_the_kernel_has_forgotten_is_not_held_open(mirror):
    fds = Path(f"/proc/{mirror.process.pid}/fd")
    client(mirror, kernel.FORGETTING)
    before = len(os.listdir(fds))
    out = client(
        mirror,
        """
        for n in range(1000):
            open(f"{top}/file-{n}", "w").close()
        assert len([os.stat(entry) for entry in os.scandir(top)]) >= 1000
        print(len(os.listdir(sys.argv[2])))
        for n in range(1000):
            os.unlink(f"{top}/file-{n}")
        """,
        fds,
    )
    assert int(out) >= 1000  # of those before, the last may have been forgotten since
    client(mirror, kernel.FORGETTING)
    wait_until(lambda: len(os.listdir(fds)) <= before, "the old number of descriptors")


@pytest.mark.skipif(
    tuple(map(int, re.findall(r"\d+", os.uname().release)[:2])) < (6, 18), reason="Linux 6.18"
)
def test_there_may_be_more_files_than_descriptors(tmp_path):
    with serving("passthrough", tmp_path, files=1024) as served:
        out = client(
            served,
            """
            paths = [f"{top}/{n // 50}/file-{n}" for n in range(3000)]
            for n, path in enumerate(paths):
                if n % 50 == 0:
                    os.mkdir(os.path.dirname(path))
                with open(path, "w") as file:
                    file.write(path)
            assert len([name for n in range(60) for name in os.listdir(f"{top}/{n}")]) == 3000
            assert all(open(path).read() == path for path in paths)
            print("read")
            """,
        )
        assert out == "read"
        assert len(os.listdir(f"/proc/{served.process.pid}/fd")) < 1024


@pytest.mark.parametrize("name", ["mirror.py", "passthrough.py"])
def test_an_option_that_is_given_takes_the_place_of_a_default(tmp_path, name):
    (tmp_path / "source").mkdir()
    for number in range(4):  # the order of a set would be a matter of chance
        base = tmp_path / str(number)
        base.mkdir()
        options = ("-o", "ro,fsname=theirs,rw")
        with mounted_example(name, tmp_path / "source", base, *options) as run:
            assert run("print(os.listdir(top))") == "[]\n"
            (mount,) = (m for m in kernel.mountinfo() if m.mount_point == f"{base}/top")
            assert (mount.source, mount.options.split(",")[0]) == ("theirs", "rw")


# What is in an archive.


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A directory with files of several kinds, and it in two archives."""
    base = tmp_path_factory.mktemp("packed")
    top = base / "content"
    (top / "d" / "empty").mkdir(parents=True)
    (top / "d" / "large").write_bytes(os.urandom(300_000))
    (top / "file").write_text("content")
    (top / "file").chmod(0o640)
    os.utime(top / "file", (10**9, 10**9))
    (top / "link").symlink_to("d/large")
    os.link(top / "file", top / "d" / "second")
    with tarfile.open(base / "content.tar.gz", "w:gz") as archive:
        for name in sorted(os.listdir(top)):
            archive.add(top / name, name)
        # Wherever it says that it is to go, it stays in the mount.
        archive.add(top / "file", "../../outside")
    with zipfile.ZipFile(base / "content.zip", "w") as archive:
        for path in sorted(top.rglob("*")):
            archive.write(path, path.relative_to(top))
    return base


@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
def test_an_archive_is_browsed(packed, tmp_path, kind):
    with mounted_example("archive.py", packed / f"content.{kind}", tmp_path) as run:
        out = run(
            """
            import hashlib, random
            os.chdir(top)
            print(sorted(os.listdir()), os.listdir("d/empty"))
            found = os.stat("file")
            print(oct(found.st_mode), found.st_size, found.st_mtime, open("file").read())
            print(os.stat("d/second").st_ino == found.st_ino, found.st_nlink)
            print(os.path.islink("link") and os.readlink("link"))
            print(hashlib.sha256(open("d/large", "rb").read()).hexdigest())
            fd = os.open("d/large", os.O_RDONLY)
            parts = {off: os.pread(fd, 1000, off) for off in random.sample(range(300_000), 50)}
            whole = open("d/large", "rb").read()
            print(all(whole[off : off + 1000] == part for off, part in parts.items()))
            try:
                open("new", "w")
            except OSError as error:
                print(errno.errorcode[error.errno])
            """
        )
    is_tar = kind == "tar.gz"
    digest = hashlib.sha256((packed / "content" / "d" / "large").read_bytes()).hexdigest()
    names = ["d", "file", "link", *(["outside"] if is_tar else [])]
    assert out.splitlines() == [
        f"{names} []",
        "0o100640 7 1000000000.0 content",
        "True 3" if is_tar else "False 1",
        "d/large" if is_tar else "False",  # zipfile follows them
        digest,
        "True",
        "EROFS",
    ]


def test_an_archive_of_somebody_who_means_harm_is_browsed(tmp_path):
    path = tmp_path / "content\\"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, kind, fields in (
            ("d", tarfile.DIRTYPE, {"mode": 0o755}),
            ("d/d", tarfile.LNKTYPE, {"linkname": "d"}),
            ("large", tarfile.REGTYPE, {"uid": 1 << 33, "gid": 7}),
            (".", tarfile.REGTYPE, {}),
            ("./", tarfile.SYMTYPE, {"linkname": "/etc"}),
            ("n" * 1025, tarfile.REGTYPE, {}),
            ("d/" + "n" * 1025 + "/file", tarfile.REGTYPE, {}),
            ("nul", tarfile.REGTYPE, {"pax_headers": {"path": "n\0l"}}),
            ("long", tarfile.SYMTYPE, {"linkname": "t" * 4096}),
            ("empty", tarfile.SYMTYPE, {"linkname": ""}),
            ("infinite", tarfile.REGTYPE, {"pax_headers": {"mtime": "inf"}}),
            ("none", tarfile.REGTYPE, {"pax_headers": {"mtime": "nan"}}),
            ("far", tarfile.REGTYPE, {"pax_headers": {"mtime": "-1e30"}}),
        ):
            add(archive, name, kind, fields)
        numbers = {"devmajor": -5, "devminor": 3}, {"devmajor": 1 << 40, "devminor": 3}
        archive.format = tarfile.GNU_FORMAT
        for name, fields in zip(("device", "devices"), numbers, strict=True):
            add(archive, name, tarfile.CHRTYPE, fields)
        # What is in the archive is no archive.
        with zipfile.ZipFile(tmp_path / "inner.zip", "w") as inner:
            inner.writestr("file", "content")
        archive.add(tmp_path / "inner.zip", "inner.zip")
    with mounted_example("archive.py", path, tmp_path) as run:
        (source,) = (m.source for m in kernel.mountinfo() if m.mount_point == f"{tmp_path}/top")
        out = run(
            """
            os.chdir(top)
            print(sorted(os.listdir()), os.path.isdir("d/d"), os.listdir("d"))
            found = os.stat("large")
            print(found.st_uid, found.st_gid)
            print([os.stat(name).st_mtime_ns for name in ("infinite", "none", "far")])
            print([os.stat(name).st_rdev for name in ("device", "devices")])
            """
        )
    assert source == str(path)
    names = ["d", "device", "devices", "far", "infinite", "inner.zip", "large", "none"]
    assert out.splitlines() == [
        f"{names} False ['d']",
        "65534 7" if IS_ROOT else "65534 65534",
        "[0, 0, 0]",
        "[0, 0]",
    ]


def add(archive, name, kind, fields):
    info = tarfile.TarInfo(name)
    info.type = kind
    for field, value in fields.items():
        setattr(info, field, value)
    archive.addfile(info)


def test_a_zip_of_somebody_who_means_harm_is_browsed(tmp_path):
    path = tmp_path / "content.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("file", "content")
        archive.writestr("n" * 1025, "")
        for name, target in (("link", "file"), ("secret", "file"), ("long", "t" * 4096)):
            info = zipfile.ZipInfo(name)
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(info, target)
        archive.writestr("huge", "x")
        archive.filelist[-1].file_size = 1 << 63
    content = bytearray(path.read_bytes())
    # In its header and in the list at the end, one says that it is encrypted.
    name = content.index(b"secret")
    content[name - 24] |= 1
    content[content.index(b"secret", name + 1) - 38] |= 1
    path.write_bytes(content)
    with mounted_example("archive.py", path, tmp_path) as run:
        out = run(
            """
            os.chdir(top)
            print({name: os.lstat(name).st_size for name in sorted(os.listdir())})
            print([name for name in os.listdir() if os.path.islink(name)], os.readlink("link"))
            """
        )
    sizes = {"file": 7, "huge": (1 << 63) - 1, "link": 4, "long": 4096, "secret": 4}
    assert out.splitlines() == [str(sizes), "['link'] file"]


def test_an_archive_says_what_it_is_asked(packed, tmp_path):
    complaints = tmp_path / "complaints"
    with complaints.open("wb") as file:
        archive = packed / "content.zip"
        with mounted_example("archive.py", archive, tmp_path, "--debug", stderr=file) as run:
            run("open(top + '/file').read()")
    lines = complaints.read_text().splitlines()
    assert any(re.match(r"read\('/file', \d+, 0, <.*\) = b'content' in ", line) for line in lines)
