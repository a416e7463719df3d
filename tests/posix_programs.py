# SPDX-License-Identifier: LGPL-3.0-or-later
"""What POSIX and Linux promise of any filesystem, as programs, and the process that runs them.

A program is a function without arguments that raises unless the promise is kept. Its working
directory is a new, empty one that everybody may enter, on the filesystem in question; its umask
is 0.

``posix_programs.py TOP ELSEWHERE``, where ELSEWHERE is a directory of another filesystem, reads the
names of functions from standard input. It runs each in a forked child, in a new directory in TOP,
and writes a line of JSON: what the child has to complain of, which is nothing if all is well.
"""

import array
import contextlib
import ctypes
import errno
import fcntl
import json
import mmap
import os
import select
import signal
import socket
import stat
import struct
import sys
import tempfile
import time
import traceback

PROGRAMS = {}
ALICE, BOB, STAFF = 10001, 10002, 10050
PAGE = 4096
MAX_NAME = 255

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
KEEP_SIZE, PUNCH_HOLE = 1, 2
NOREPLACE, EXCHANGE = 1, 2
AT_FDCWD = -100
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2


def program(function):
    """One that any user can run."""
    PROGRAMS[function.__name__] = function
    function.needs_root = False
    return function


def program_of_root(function):
    """One that takes on the ids of other users."""
    program(function).needs_root = True
    return function


# What the programs share.


def _check(ret):
    if ret < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def renameat2(old, new, flags):
    _check(_libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags))


def fallocate(fd, mode, off, length):
    _check(_libc.fallocate(fd, mode, off, length))


def utimensat(path, atime, mtime):
    times = (ctypes.c_long * 4)(*atime, *mtime)
    _check(_libc.utimensat(AT_FDCWD, os.fsencode(path), times, 0x100))


def link_opened(fd, name):
    """Give an open file a name, which os.link() cannot without a descriptor for a directory."""
    path = os.fsencode(f"/proc/self/fd/{fd}")
    _check(_libc.linkat(AT_FDCWD, path, AT_FDCWD, os.fsencode(name), 0x400))


def fails(code, function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except OSError as error:
        assert error.errno == code, f"{errno.errorcode[error.errno]} is not {errno.errorcode[code]}"
    else:
        raise AssertionError(f"{function.__name__}{args} has not failed")


@contextlib.contextmanager
def user(uid, *gids):
    """Be somebody else, with the group *gids[0]* and the supplementary groups *gids[1:]*."""
    before = os.getgroups()
    os.setgroups(gids[1:])
    os.setegid(gids[0] if gids else uid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(before)


def write(path, content=b"content", mode=0o644):
    fd = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, mode)
    try:
        assert os.write(fd, content) == len(content)
    finally:
        os.close(fd)
    return path


def read(path):
    with open(path, "rb") as file:
        return file.read()


def mode_of(path):
    return stat.S_IMODE(os.lstat(path).st_mode)


def owner_of(path):
    found = os.lstat(path)
    return found.st_uid, found.st_gid


def links(path):
    return os.lstat(path).st_nlink


@contextlib.contextmanager
def opened(path, flags=os.O_RDWR, mode=0o644):
    fd = os.open(path, flags, mode)
    try:
        yield fd
    finally:
        os.close(fd)


def _times(path):
    found = os.lstat(path)
    return {"a": found.st_atime_ns, "m": found.st_mtime_ns, "c": found.st_ctime_ns}


@contextlib.contextmanager
def touches(**paths):
    """Of each path, by name, exactly those times change that it says: ``touches(file="mc")``.

    A name stands for itself; ``_`` for the working directory.
    """
    names = {name: "." if name == "_" else name for name in paths}
    before = {name: _times(path) for name, path in names.items()}
    time.sleep(0.012)  # a tick of the coarsest clock
    yield
    for name, path in names.items():
        after = _times(path)
        changed = "".join(kind for kind in "amc" if after[kind] != before[name][kind])
        assert changed == paths[name], f"of {path} {changed!r} have changed"
        assert after["c"] >= before[name]["c"]


# Names.


@program
def an_empty_directory_lists_nothing():
    assert os.listdir() == []


@program
def a_listing_begins_with_itself_and_its_parent():
    os.mkdir("d")
    entries = raw_listing("d")
    assert entries[b"."][0] == os.stat("d").st_ino
    assert entries.keys() == {b".", b".."}


@program
def a_listing_tells_types_and_inodes():
    write("file")
    os.mkdir("directory")
    os.symlink("x", "symlink")
    os.mkfifo("fifo")
    entries = raw_listing(".")
    kinds = {b"file": 8, b"directory": 4, b"symlink": 10, b"fifo": 1}
    for name, kind in kinds.items():
        assert entries[name] == (os.lstat(name).st_ino, kind)


def raw_listing(path):
    """The entries as getdents64 has them: inode and type by name."""
    entries = {}
    buffer = ctypes.create_string_buffer(65536)
    with opened(path, os.O_RDONLY | os.O_DIRECTORY) as fd:
        while True:
            size = _libc.syscall(217 if os.uname().machine == "x86_64" else 61, fd, buffer, 65536)
            _check(size)
            if size == 0:
                return entries
            at = 0
            while at < size:
                ino = int.from_bytes(buffer.raw[at : at + 8], sys.byteorder)
                length = int.from_bytes(buffer.raw[at + 16 : at + 18], sys.byteorder)
                name = buffer.raw[at + 19 : at + length].split(b"\0")[0]
                assert name not in entries, f"{name} twice"
                entries[name] = (ino, buffer.raw[at + 18])
                at += length


@program
def a_name_has_at_most_255_bytes():
    longest, too_long = "n" * MAX_NAME, "n" * (MAX_NAME + 1)
    write(longest)
    assert os.listdir() == [longest]
    for call in (write, os.mkdir, os.mkfifo, os.stat, os.unlink, os.rmdir):
        fails(errno.ENAMETOOLONG, call, too_long)
    fails(errno.ENAMETOOLONG, os.symlink, "x", too_long)
    fails(errno.ENAMETOOLONG, os.link, longest, too_long)
    fails(errno.ENAMETOOLONG, os.rename, longest, too_long)
    fails(errno.ENAMETOOLONG, os.rename, too_long, "x")
    assert os.pathconf(".", "PC_NAME_MAX") == MAX_NAME
    os.unlink(longest)


@program
def a_path_has_at_most_4095_bytes():
    fails(errno.ENAMETOOLONG, os.stat, "x/" * 2048)
    fails(errno.ENAMETOOLONG, write, "./" * 2048 + "x")
    write("./" * 2000 + "x")


@program
def any_bytes_are_a_name():
    names = [bytes([byte]) for byte in range(1, 256) if byte not in b"/."]
    names += ["ü€".encode(), b"\xff\xfe", b"a\nb", b"..."]
    for name in names:
        write(name)
    assert sorted(os.listdir(b".")) == sorted(names)
    for name in names:
        assert read(name) == b"content"


@program
def what_is_not_there_fails_with_ENOENT():
    for call in (os.stat, os.unlink, os.rmdir, os.readlink, os.listdir):
        fails(errno.ENOENT, call, "missing")
        fails(errno.ENOENT, call, "missing/x")
    for call in (os.mkdir, os.mkfifo, write):
        fails(errno.ENOENT, call, "missing/x")
    fails(errno.ENOENT, os.rename, "missing", "x")
    fails(errno.ENOENT, os.link, "missing", "x")


@program
def what_is_no_directory_fails_with_ENOTDIR():
    write("file")
    for call in (os.stat, os.unlink, os.rmdir, os.mkdir, os.mkfifo, write, os.readlink):
        fails(errno.ENOTDIR, call, "file/x")
    for call in (os.rmdir, os.listdir):
        fails(errno.ENOTDIR, call, "file")
    fails(errno.ENOTDIR, os.rename, "file/x", "y")
    fails(errno.ENOTDIR, os.stat, "file/")


@program
def what_exists_is_not_made_again():
    write("file")
    os.mkdir("directory")
    os.symlink("nowhere", "dangling")
    for name in ("file", "directory", "dangling"):
        for call in (os.mkdir, os.mkfifo):
            fails(errno.EEXIST, call, name)
        fails(errno.EEXIST, os.symlink, "x", name)
        fails(errno.EEXIST, os.link, "file", name)
        fails(errno.EEXIST, os.open, name, os.O_CREAT | os.O_EXCL)


@program
def creation_follows_a_dangling_symlink():
    os.symlink("target", "dangling")
    write("dangling")
    assert read("target") == b"content"


@program
def a_loop_of_symlinks_fails_with_ELOOP():
    os.symlink("b", "a")
    os.symlink("a", "b")
    for call in (os.stat, os.listdir, write):
        fails(errno.ELOOP, call, "a")
    fails(errno.ELOOP, os.mkdir, "a/x")
    write("file")
    os.symlink("file", "link")
    fails(errno.ELOOP, os.open, "link", os.O_RDONLY | os.O_NOFOLLOW)


@program
def a_symlink_has_any_target():
    for target in ("x", "/", "..", "a" * 4095, "./" * 2000 + "x", "ü"):
        os.symlink(target, "link")
        assert os.readlink("link") == target
        found = os.lstat("link")
        assert stat.S_ISLNK(found.st_mode) and found.st_size == len(os.fsencode(target))
        os.unlink("link")
    fails(errno.ENOENT, os.symlink, "", "link")
    fails(errno.ENAMETOOLONG, os.symlink, "a" * 4096, "link")
    write("file")
    fails(errno.EINVAL, os.readlink, "file")


@program
def a_symlink_is_followed_through_directories():
    os.makedirs("a/b")
    write("a/b/file")
    os.symlink("a/b", "short")
    os.symlink("../a", "a/up")
    assert read("short/file") == read("a/up/b/file") == b"content"
    assert sorted(os.listdir("short")) == ["file"]


@program
def every_type_of_file_is_made():
    kinds = {"regular": stat.S_IFREG, "fifo": stat.S_IFIFO, "socket": stat.S_IFSOCK}
    for name, kind in kinds.items():
        os.mknod(name, kind | 0o640)
        found = os.stat(name)
        assert (stat.S_IFMT(found.st_mode), mode_of(name), found.st_nlink) == (kind, 0o640, 1)
        assert found.st_size == 0


@program_of_root
def device_nodes_keep_their_numbers():
    for kind in (stat.S_IFCHR, stat.S_IFBLK):
        for number in (os.makedev(1, 3), os.makedev(259, 70000), 0):
            os.mknod("device", kind | 0o600, number)
            found = os.stat("device")
            assert (stat.S_IFMT(found.st_mode), found.st_rdev) == (kind, number)
            os.unlink("device")


@program
def a_fifo_connects_two_processes():
    os.mkfifo("fifo")
    if os.fork() == 0:
        write("fifo", b"through the fifo")
        os._exit(0)
    assert read("fifo") == b"through the fifo"
    os.wait()


@program
def a_socket_is_reached_by_its_name():
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind("socket")
        fails(errno.EADDRINUSE, socket.socket(socket.AF_UNIX).bind, "socket")
        server.listen()
        client.connect("socket")
    assert stat.S_ISSOCK(os.stat("socket").st_mode)
    os.unlink("socket")


# Links and their counts.


@program
def a_file_counts_its_links():
    write("a")
    assert links("a") == 1
    os.link("a", "b")
    os.mkdir("d")
    os.link("b", "d/c")
    assert links("a") == links("b") == links("d/c") == 3
    assert os.stat("a").st_ino == os.stat("d/c").st_ino
    write("d/c", b"changed")
    assert read("a") == b"changed"
    os.chmod("a", 0o600)
    assert mode_of("d/c") == 0o600
    os.unlink("a")
    assert links("b") == 2
    os.unlink("d/c")
    assert links("b") == 1 and read("b") == b"changed"


@program
def a_directory_counts_its_subdirectories():
    os.mkdir("d")
    assert links("d") == 2
    os.mkdir("d/a")
    os.mkdir("d/b")
    write("d/file")
    os.symlink("a", "d/symlink")
    assert links("d") == 4 and links(".") == 3
    os.mkdir("e")
    os.rename("d/a", "e/a")
    assert (links("d"), links("e")) == (3, 3)
    os.mkdir("e/b")
    os.rename("d/b", "e/b")
    assert (links("d"), links("e")) == (2, 4)
    renameat2("d/file", "e/a", EXCHANGE)
    assert (links("d"), links("e")) == (3, 3)
    os.rmdir("d/file")
    assert links("d") == 2


@program
def a_directory_has_no_second_link():
    os.mkdir("d")
    fails(errno.EPERM, os.link, "d", "e")
    fails(errno.EISDIR, os.unlink, "d")


@program
def a_symlink_has_links_too():
    os.symlink("target", "a")
    os.link("a", "b", follow_symlinks=False)
    assert links("a") == 2 and os.readlink("b") == "target"


@program
def any_type_of_file_has_links():
    os.mkfifo("fifo")
    os.link("fifo", "second")
    assert links("fifo") == 2 and stat.S_ISFIFO(os.stat("second").st_mode)


@program
def links_and_renames_stay_within_a_filesystem():
    with tempfile.TemporaryDirectory(dir=ELSEWHERE[0]) as other:
        write("file")
        fails(errno.EXDEV, os.link, "file", other + "/file")
        fails(errno.EXDEV, os.rename, "file", other + "/file")
        write(other + "/file")
        fails(errno.EXDEV, os.rename, other + "/file", "file")


ELSEWHERE = ["/tmp"]


# Removal.


@program
def an_open_file_outlives_its_name():
    write("file", b"0123456789")
    with opened("file") as fd:
        os.unlink("file")
        assert os.listdir() == []
        assert os.fstat(fd).st_nlink == 0
        assert os.pread(fd, 4, 3) == b"3456"
        os.pwrite(fd, b"x" * 100000, 5)
        os.fchmod(fd, 0o600)
        os.ftruncate(fd, 50000)
        found = os.fstat(fd)
        assert (found.st_size, stat.S_IMODE(found.st_mode)) == (50000, 0o600)
        write("file", b"another")
        assert os.pread(fd, 6, 0) == b"01234x"
        assert os.fstat(fd).st_ino != os.stat("file").st_ino
        os.fsync(fd)
    assert read("file") == b"another"


@program
def an_open_file_outlives_being_replaced():
    write("old", b"old")
    write("new", b"new")
    with opened("old") as fd:
        os.rename("new", "old")
        assert os.fstat(fd).st_nlink == 0
        assert os.read(fd, 10) == b"old"
    assert read("old") == b"new"


@program
def an_open_directory_outlives_its_name():
    os.mkdir("d")
    with opened("d", os.O_RDONLY) as fd:
        os.rmdir("d")
        assert os.listdir(fd) == []
        assert os.fstat(fd).st_nlink == 0
        fails(errno.ENOENT, os.open, "x", os.O_CREAT | os.O_WRONLY, dir_fd=fd)
        fails(errno.ENOENT, os.mkdir, "x", dir_fd=fd)
        os.mkdir("d")
        fails(errno.ENOENT, os.stat, "x", dir_fd=fd)


@program
def the_working_directory_can_be_removed():
    os.mkdir("d")
    os.chdir("d")
    os.rmdir("../d")
    fails(errno.ENOENT, write, "x")
    fails(errno.ENOENT, os.getcwd)


@program
def only_an_empty_directory_is_removed():
    os.makedirs("d/sub")
    fails(errno.ENOTEMPTY, os.rmdir, "d")
    write("d/sub/x")
    fails(errno.ENOTEMPTY, os.rmdir, "d/sub")
    os.unlink("d/sub/x")
    os.rmdir("d/sub")
    os.rmdir("d")
    assert os.listdir() == []
    os.mkdir("d")
    fails(errno.EINVAL, os.rmdir, "d/.")
    fails(errno.ENOTEMPTY, os.rmdir, "d/..")
    os.symlink("d", "link")
    fails(errno.ENOTDIR, os.rmdir, "link")


@program
def an_unlinked_file_gives_back_its_space():
    with opened(".", os.O_RDONLY) as top:
        before = os.fstatvfs(top).f_bfree
        write("file", bytes(1 << 20))
        with opened("file") as fd:
            os.fsync(fd)
            assert os.fstatvfs(top).f_bfree <= before - 256
            os.unlink("file")
        deadline = time.monotonic() + 10
        while os.fstatvfs(top).f_bfree < before - 100:
            assert time.monotonic() < deadline
            time.sleep(0.01)


# Renaming.


@program
def a_rename_replaces_a_file():
    write("a", b"a")
    write("b", b"b")
    inode = os.stat("a").st_ino
    os.rename("a", "b")
    assert os.listdir() == ["b"]
    assert read("b") == b"a" and os.stat("b").st_ino == inode


@program
def a_rename_replaces_an_empty_directory_only():
    os.mkdir("a")
    write("a/x")
    os.makedirs("full/sub")
    os.mkdir("empty")
    fails(errno.ENOTEMPTY, os.rename, "a", "full")
    os.rename("a", "empty")
    assert sorted(os.listdir()) == ["empty", "full"] and os.listdir("empty") == ["x"]


@program
def a_rename_does_not_mix_directories_and_files():
    os.mkdir("d")
    write("file")
    os.symlink("d", "link")
    fails(errno.EISDIR, os.rename, "file", "d")
    fails(errno.ENOTDIR, os.rename, "d", "file")
    fails(errno.ENOTDIR, os.rename, "d", "link")
    os.rename("link", "file")
    assert os.readlink("file") == "d"


@program
def a_rename_to_itself_or_to_another_link_does_nothing():
    write("a")
    os.link("a", "b")
    with touches(a=""):
        os.rename("a", "a")
        os.rename("a", "b")
    assert sorted(os.listdir()) == ["a", "b"] and links("a") == 2


@program
def a_directory_is_not_moved_into_itself():
    os.makedirs("a/b/c")
    fails(errno.EINVAL, os.rename, "a", "a/b/c/d")
    fails(errno.EINVAL, os.rename, "a", "a/x")
    fails(errno.ENOTEMPTY, os.rename, "a/b/c", "a")
    fails(errno.EBUSY, os.rename, "a/.", "x")
    fails(errno.EBUSY, os.rename, "a/..", "x")


@program
def a_moved_directory_has_a_new_parent():
    os.makedirs("a/sub")
    os.mkdir("b")
    write("b/marker")
    write("a/sub/file")
    with opened("a/sub", os.O_RDONLY) as fd:
        os.rename("a/sub", "b/renamed")
        assert os.stat("..", dir_fd=fd).st_ino == os.stat("b").st_ino
        assert os.open("../marker", os.O_RDONLY, dir_fd=fd)
        assert read("b/renamed/file") == b"content"


@program
def a_rename_with_NOREPLACE_replaces_nothing():
    write("a", b"a")
    write("b", b"b")
    fails(errno.EEXIST, renameat2, "a", "b", NOREPLACE)
    os.symlink("nowhere", "dangling")
    fails(errno.EEXIST, renameat2, "a", "dangling", NOREPLACE)
    renameat2("a", "c", NOREPLACE)
    assert sorted(os.listdir()) == ["b", "c", "dangling"] and read("c") == b"a"


@program
def a_rename_with_EXCHANGE_swaps_anything():
    write("file", b"a")
    os.makedirs("d/sub")
    renameat2("file", "d", EXCHANGE)
    assert read("d") == b"a" and os.listdir("file") == ["sub"]
    fails(errno.ENOENT, renameat2, "d", "missing", EXCHANGE)
    fails(errno.EINVAL, renameat2, "file", "file/sub", EXCHANGE)
    fails(errno.EINVAL, renameat2, "d", "e", EXCHANGE | NOREPLACE)
    fails(errno.EINVAL, renameat2, "d", "e", 1 << 10)
    os.symlink("x", "link")
    renameat2("link", "file/sub", EXCHANGE)
    assert os.readlink("file/sub") == "x" and os.listdir("link") == []


@program
def a_rename_is_atomic_for_who_looks():
    write("target", b"0")
    child = os.fork()
    if child == 0:
        for n in range(300):
            write("new", str(n % 10).encode())
            os.rename("new", "target")
        os._exit(0)
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        assert len(read("target")) == 1


@program
def an_open_file_can_be_renamed():
    write("a")
    os.mkdir("d")
    with opened("a") as fd:
        os.rename("a", "d/b")
        os.write(fd, b"through the descriptor")
        assert read("d/b") == b"through the descriptor"
        assert os.fstat(fd).st_nlink == 1


# Listing.


@program
def a_large_directory_is_listed_once_and_whole():
    names = {f"file-{n:04}" for n in range(1500)}
    for name in names:
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY))
    assert sorted(os.listdir()) == sorted(names)
    assert sum(entry.is_file() for entry in os.scandir()) == 1500
    for name in names:
        os.unlink(name)
    assert os.listdir() == []


@program
def a_listing_is_stable_while_entries_are_removed():
    names = {f"file-{n:03}" for n in range(600)}
    for name in names:
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY))
    seen = []
    for entry in os.scandir():
        seen.append(entry.name)
        os.unlink(entry.name)
    assert sorted(seen) == sorted(names) and os.listdir() == []


@program
def a_listing_misses_nothing_that_stays_while_others_come_and_go():
    stay = {f"stay-{n:03}" for n in range(400)}
    go = [f"go-{n:03}" for n in range(400)]
    for name in sorted(stay | set(go)):
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY))
    seen = []
    for number, entry in enumerate(os.scandir()):
        seen.append(entry.name)
        if go:
            os.unlink(go.pop())
        if number < 100:
            os.close(os.open(f"new-{number}", os.O_CREAT | os.O_WRONLY))
        if entry.name == "stay-200":
            os.rename("stay-200", "renamed")
    assert len(seen) == len(set(seen))
    assert stay - set(seen) <= {"stay-200"}


@program
def a_listing_begins_again():
    for name in "abc":
        write(name)
    with opened(".", os.O_RDONLY) as fd:
        assert sorted(os.listdir(fd)) == ["a", "b", "c"]
        write("d")
        os.unlink("a")
        assert sorted(os.listdir(fd)) == ["b", "c", "d"]


@program
def a_listing_goes_on_from_any_place():
    for n in range(300):
        write(f"file-{n:03}")
    libc = ctypes.CDLL(None)
    libc.fdopendir.restype = libc.readdir.restype = ctypes.c_void_p
    libc.telldir.restype = ctypes.c_long
    libc.seekdir.argtypes = (ctypes.c_void_p, ctypes.c_long)
    libc.readdir.argtypes = libc.telldir.argtypes = (ctypes.c_void_p,)
    directory = libc.fdopendir(os.open(".", os.O_RDONLY))

    def following():
        entry = libc.readdir(directory)
        return ctypes.string_at(entry + 19) if entry else None

    places = []
    while True:
        place = libc.telldir(directory)
        name = following()
        if name is None:
            break
        places.append((place, name))
    assert len(places) == 302
    for place, name in reversed(places[::7]):
        libc.seekdir(directory, place)
        assert following() == name


# Modes and owners.


@program
def the_umask_applies_to_what_is_made():
    os.umask(0o027)
    write("file", mode=0o666)
    os.mkdir("d", 0o777)
    os.mkfifo("fifo", 0o666)
    os.mknod("node", stat.S_IFREG | 0o777)
    assert [mode_of(name) for name in ("file", "d", "fifo", "node")] == [0o640, 0o750, 0o640, 0o750]


@program
def a_mode_has_twelve_bits():
    write("file")
    os.mkdir("d")
    for path in ("file", "d"):
        for mode in (0, 0o7777, 0o4000, 0o2000, 0o1000, 0o644, 0o111):
            os.chmod(path, mode)
            assert mode_of(path) == mode
        with opened(path, os.O_RDONLY) as fd:
            os.fchmod(fd, 0o1750)
        assert mode_of(path) == 0o1750


@program
def a_file_may_be_created_without_write_permission():
    with opened("file", os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o400) as fd:
        os.write(fd, b"content")
    assert (read("file"), mode_of("file")) == (b"content", 0o400)


@program_of_root
def what_is_made_belongs_to_its_maker():
    with user(ALICE, STAFF):
        write("file")
        os.mkdir("d")
        os.symlink("x", "link")
        os.mkfifo("fifo")
        os.mknod("node", stat.S_IFREG | 0o600)
        fd = os.open(".", os.O_TMPFILE | os.O_RDWR, 0o600)
    for name in ("file", "d", "link", "fifo", "node"):
        assert owner_of(name) == (ALICE, STAFF), name
    assert os.fstat(fd).st_uid == ALICE and os.fstat(fd).st_gid == STAFF
    os.close(fd)
    write("of-root")
    assert owner_of("of-root") == (0, 0)


@program_of_root
def a_setgid_directory_hands_down_its_group():
    os.mkdir("d")
    os.chown("d", 0, BOB)
    os.chmod("d", 0o2777)
    with user(ALICE, STAFF):
        write("d/file")
        os.mkdir("d/sub")
        os.mkdir("d/sub/sub")
        os.symlink("x", "d/link")
        os.mkfifo("d/fifo")
        write("d/executable", mode=0o2775)
    for name in ("file", "sub", "sub/sub", "link", "fifo", "executable"):
        assert owner_of("d/" + name) == (ALICE, BOB), name
    assert mode_of("d/sub") == 0o2777
    assert mode_of("d/sub/sub") & stat.S_ISGID
    assert mode_of("d/file") == 0o644
    assert mode_of("d/executable") == 0o775


@program_of_root
def a_group_member_makes_files_where_only_the_group_may():
    os.mkdir("d")
    os.chown("d", 0, STAFF)
    os.chmod("d", 0o770)
    with user(ALICE, ALICE, STAFF):
        write("d/file")
        os.mkdir("d/sub")
        os.rename("d/file", "d/renamed")
        os.unlink("d/renamed")
    with user(BOB):
        fails(errno.EACCES, write, "d/x")
        fails(errno.EACCES, os.listdir, "d")
    assert owner_of("d/sub") == (ALICE, ALICE)


@program_of_root
def permissions_are_those_of_the_mode():
    with user(ALICE):
        write("file", mode=0o640)
        os.mkdir("d", 0o711)
        write("d/x", mode=0o644)
    with user(BOB):
        fails(errno.EACCES, read, "file")
        fails(errno.EACCES, os.open, "file", os.O_WRONLY)
        fails(errno.EACCES, os.listdir, "d")
        fails(errno.EACCES, write, "d/y")
        fails(errno.EACCES, os.unlink, "d/x")
        assert read("d/x") == b"content"
        fails(errno.EACCES, os.truncate, "file", 0)
        assert not os.access("file", os.R_OK, effective_ids=True)
        assert os.access("d", os.X_OK, effective_ids=True)
    with user(BOB, BOB, ALICE):
        assert read("file") == b"content"
        fails(errno.EACCES, os.open, "file", os.O_WRONLY)
    os.chmod("d", 0)
    with user(ALICE):
        fails(errno.EACCES, os.stat, "d/x")


@program_of_root
def a_sticky_directory_protects_what_others_have_in_it():
    os.mkdir("d")
    os.chmod("d", 0o1777)
    with user(ALICE):
        write("d/hers")
        os.mkdir("d/dir")
    with user(BOB):
        write("d/his")
        fails(errno.EPERM, os.unlink, "d/hers")
        fails(errno.EPERM, os.rmdir, "d/dir")
        fails(errno.EPERM, os.rename, "d/hers", "d/x")
        fails(errno.EPERM, os.rename, "d/his", "d/hers")
        fails(errno.EPERM, renameat2, "d/his", "d/hers", EXCHANGE)
        os.unlink("d/his")
    with user(ALICE):
        os.rename("d/hers", "d/renamed")
        os.unlink("d/renamed")


@program_of_root
def only_the_owner_changes_the_mode():
    with user(ALICE):
        write("file")
    with user(BOB):
        fails(errno.EPERM, os.chmod, "file", 0o777)
        fails(errno.EPERM, os.utime, "file", (1, 1))
        fails(errno.EACCES, os.utime, "file")
        fails(errno.EPERM, os.chown, "file", BOB, -1)
    os.chmod("file", 0o666)
    with user(BOB):
        os.utime("file")
        fails(errno.EPERM, os.utime, "file", (1, 1))


@program_of_root
def only_root_gives_files_away():
    with user(ALICE, ALICE, STAFF):
        write("file")
        fails(errno.EPERM, os.chown, "file", BOB, -1)
        fails(errno.EPERM, os.chown, "file", -1, BOB)
        os.chown("file", -1, STAFF)
        os.chown("file", ALICE, -1)
    assert owner_of("file") == (ALICE, STAFF)
    os.chown("file", BOB, -1)
    assert owner_of("file") == (BOB, STAFF)
    os.symlink("file", "link")
    os.lchown("link", ALICE, BOB)
    assert owner_of("link") == (ALICE, BOB) and owner_of("file") == (BOB, STAFF)
    os.chown("link", -1, BOB)
    assert owner_of("file") == (BOB, BOB)


@program_of_root
def a_change_of_the_owner_clears_setuid_and_setgid():
    for by_root in (False, True):
        for mode, left in ((0o6755, 0o755), (0o4711, 0o711), (0o2755, 0o755)):
            with user(ALICE, ALICE, STAFF):
                write("file")
                os.chmod("file", mode)
                assert mode_of("file") == mode
                if not by_root:
                    os.chown("file", -1, STAFF)
                    assert mode_of("file") == left
            if by_root:
                os.chown("file", BOB, -1)
                assert mode_of("file") == left
            os.unlink("file")
    os.mkdir("d")
    os.chmod("d", 0o6777)
    os.chown("d", ALICE, STAFF)
    assert mode_of("d") == 0o6777


@program_of_root
def setgid_without_group_execution_survives_a_change_of_the_owner_by_root():
    write("file")
    os.chmod("file", 0o2745)
    os.chown("file", 0, 0)
    assert mode_of("file") == 0o2745


@program_of_root
def writing_clears_setuid_and_setgid():
    def by_writing(fd):
        os.write(fd, b"x")

    def by_truncation(fd):
        os.ftruncate(fd, 3)

    def by_allocation(fd):
        os.posix_fallocate(fd, 0, 10000)

    def by_direct_copy(fd):
        write("source")
        os.chmod("source", 0o644)
        with opened("source", os.O_RDONLY) as source:
            os.copy_file_range(source, fd, 3)

    def by_mapping(fd):
        os.write(fd, b"x")
        with mmap.mmap(fd, PAGE) as mapped:
            mapped[0] = 1

    for change in (by_writing, by_truncation, by_allocation, by_direct_copy, by_mapping):
        for mode, left in ((0o6777, 0o777), (0o4755, 0o755), (0o2775, 0o775)):
            with user(ALICE):
                write("file", bytes(PAGE))
                os.chmod("file", mode)
                with opened("file") as fd:
                    assert mode_of("file") == mode
                    change(fd)
                assert mode_of("file") == left, (change.__name__, oct(mode_of("file")))
                os.unlink("file")
    write("file")
    os.chmod("file", 0o6777)
    write("file")
    assert mode_of("file") == 0o6777, "root has CAP_FSETID"


@program_of_root
def truncation_by_path_clears_setuid():
    with user(ALICE):
        write("file")
        os.chmod("file", 0o4755)
        os.truncate("file", 2)
        assert mode_of("file") == 0o755
        os.chmod("file", 0o4755)
        write("file", b"")
        assert mode_of("file") == 0o755


@program_of_root
def setgid_is_not_for_groups_that_one_is_not_in():
    with user(ALICE):
        write("file")
    os.chown("file", ALICE, STAFF)
    with user(ALICE):
        os.chmod("file", 0o2755)
    assert mode_of("file") == 0o755
    with user(ALICE, ALICE, STAFF):
        os.chmod("file", 0o2755)
    assert mode_of("file") == 0o2755


# Times.


@program
def what_is_made_has_the_present_time():
    before = time.time_ns() - 10_000_000
    write("file")
    os.mkdir("d")
    os.symlink("x", "link")
    after = time.time_ns()
    for path in ("file", "d", "link"):
        for moment in _times(path).values():
            assert before <= moment <= after


@program
def making_and_removing_touch_the_directory():
    with touches(_="mc"):
        write("file")
    with touches(_="mc"):
        os.mkdir("d")
    with touches(_="mc"):
        os.symlink("x", "link")
    with touches(_="mc"):
        os.mkfifo("fifo")
    with touches(_="mc", file="c"):
        os.link("file", "second")
    with touches(_="mc", file="c"):
        os.unlink("second")
    with touches(_="mc"):
        os.rmdir("d")
    with touches(_="mc", file="c"):
        os.rename("link", "renamed")
        os.chmod("file", 0o600)


@program
def renaming_touches_both_directories_and_what_is_renamed():
    os.mkdir("a")
    os.mkdir("b")
    write("a/file")
    with touches(a="mc", b="mc"):
        before = os.stat("a/file")
        os.rename("a/file", "b/file")
        after = os.stat("b/file")
    assert after.st_ctime_ns > before.st_ctime_ns and after.st_mtime_ns == before.st_mtime_ns


@program
def changes_of_the_inode_touch_its_change_time():
    write("file")
    with touches(file="c"):
        os.chmod("file", 0o600)
    with touches(file="c"):
        os.chown("file", os.getuid(), -1)
    with touches(file="c"):
        os.chown("file", -1, -1)
    with touches(file="c"):
        os.setxattr("file", "user.x", b"1")
    with touches(file="c"):
        os.removexattr("file", "user.x")
    with touches(file="amc"):
        os.utime("file", ns=(1, 2))
    with touches(file=""):
        os.stat("file")
        os.access("file", os.W_OK)
        os.listxattr("file")


@program
def writing_touches_a_file():
    write("file", bytes(100))
    with touches(file="mc"), opened("file") as fd:
        os.write(fd, b"x")
    with touches(file="mc"), opened("file") as fd:
        os.ftruncate(fd, 50)
    with touches(file="mc"), opened("file") as fd:
        os.ftruncate(fd, 50)
    with touches(file="mc"):
        os.truncate("file", 20)
    with touches(file="mc"):
        os.truncate("file", 200)
    with touches(file="mc"):
        os.close(os.open("file", os.O_TRUNC | os.O_WRONLY))
    with touches(file="mc"):
        os.close(os.open("file", os.O_TRUNC | os.O_WRONLY))
    with touches(file=""), opened("file") as fd:
        os.write(fd, b"")
        os.fsync(fd)


@program
def a_time_that_was_set_stays_when_the_file_is_closed():
    with opened("file", os.O_CREAT | os.O_RDWR) as fd:
        os.write(fd, b"content")
        os.utime(fd, ns=(10**18, 2 * 10**18 + 5))
        assert os.fstat(fd).st_mtime_ns == 2 * 10**18 + 5
    found = os.stat("file")
    assert (found.st_atime_ns, found.st_mtime_ns) == (10**18, 2 * 10**18 + 5)


@program
def reading_after_a_change_touches_the_access_time():
    write("file", b"content")
    with touches(file="a"):
        read("file")
    with touches(file=""):
        read("file")
    with opened("file") as fd:
        os.write(fd, b"x")
    with touches(file="a"):
        read("file")
    os.mkdir("d")
    write("d/x")
    with touches(d="a"):
        os.listdir("d")
    os.symlink("file", "link")
    time.sleep(0.012)
    with touches(link="a"):
        os.readlink("link")


@program
def times_are_set_one_at_a_time():
    write("file")
    os.utime("file", ns=(1_500_000_001, 2_500_000_002))
    utimensat("file", (7, 8), (0, UTIME_OMIT))
    assert os.stat("file").st_atime_ns == 7_000_000_008
    assert os.stat("file").st_mtime_ns == 2_500_000_002
    utimensat("file", (0, UTIME_OMIT), (9, 10))
    assert os.stat("file").st_atime_ns == 7_000_000_008
    assert os.stat("file").st_mtime_ns == 9_000_000_010
    before = time.time_ns() - 10_000_000
    utimensat("file", (0, UTIME_NOW), (0, UTIME_OMIT))
    assert os.stat("file").st_atime_ns >= before
    assert os.stat("file").st_mtime_ns == 9_000_000_010
    with touches(file=""):
        utimensat("file", (0, UTIME_OMIT), (0, UTIME_OMIT))
    os.symlink("file", "link")
    os.utime("link", ns=(5, 6), follow_symlinks=False)
    assert os.lstat("link").st_mtime_ns == 6 and os.stat("file").st_mtime_ns == 9_000_000_010


@program
def times_before_1970_and_after_2038():
    write("file")
    for moment in (-1, -1_000_000_001, 0, 2**32 * 10**9 + 1, 2**33 * 10**9 + 999_999_999):
        os.utime("file", ns=(moment, moment))
        assert os.stat("file").st_mtime_ns == os.stat("file").st_atime_ns == moment


@program
def the_time_of_birth_is_known_and_does_not_change():
    write("file")
    first = birth("file")
    assert abs(first - time.time()) < 60
    write("file")
    os.chmod("file", 0o600)
    os.utime("file", (1, 1))
    assert birth("file") == first


def birth(path):
    buffer = ctypes.create_string_buffer(256)
    _check(_libc.statx(AT_FDCWD, os.fsencode(path), 0, 0xFFF, buffer))
    assert int.from_bytes(buffer.raw[:4], sys.byteorder) & 0x800
    return int.from_bytes(buffer.raw[80:88], sys.byteorder)


# Content.


@program
def a_file_keeps_what_is_written():
    content = os.urandom(3_000_000)
    write("file", content)
    assert read("file") == content
    with opened("file") as fd:
        for off, size in ((0, 1), (4095, 2), (4096, 4096), (2_999_999, 100), (3_000_000, 1)):
            assert os.pread(fd, size, off) == content[off : off + size]
        os.pwrite(fd, b"x" * 10000, 1_234_567)
    assert read("file") == content[:1_234_567] + b"x" * 10000 + content[1_244_567:]


@program
def a_write_behind_the_end_leaves_zeros():
    write("file", b"x" * 100)
    with opened("file") as fd:
        os.pwrite(fd, b"y", 10_000)
    assert read("file") == b"x" * 100 + bytes(9900) + b"y"


@program
def truncation_shortens_and_extends_with_zeros():
    write("file", b"x" * 10_000)
    os.truncate("file", 5000)
    assert os.stat("file").st_size == 5000
    os.truncate("file", 12_000)
    assert read("file") == b"x" * 5000 + bytes(7000)
    with opened("file") as fd:
        os.ftruncate(fd, 0)
        os.ftruncate(fd, 3)
    assert read("file") == bytes(3)
    os.mkdir("d")
    fails(errno.EISDIR, os.truncate, "d", 0)
    fails(errno.EINVAL, os.truncate, "file", -1)
    with opened("file", os.O_RDONLY) as fd:
        fails(errno.EINVAL, os.ftruncate, fd, 1)


@program
def a_file_has_holes():
    with opened("file", os.O_CREAT | os.O_RDWR) as fd:
        os.ftruncate(fd, 1 << 40)
        assert os.fstat(fd).st_size == 1 << 40
        assert os.fstat(fd).st_blocks == 0
        os.pwrite(fd, b"data", 1 << 39)
        os.fsync(fd)
        assert os.fstat(fd).st_blocks == 8
        assert os.lseek(fd, 0, os.SEEK_DATA) == 1 << 39
        assert os.lseek(fd, 1 << 39, os.SEEK_HOLE) == (1 << 39) + PAGE
        assert os.lseek(fd, 5, os.SEEK_HOLE) == 5
        fails(errno.ENXIO, os.lseek, fd, (1 << 39) + PAGE, os.SEEK_DATA)
        fails(errno.ENXIO, os.lseek, fd, 1 << 40, os.SEEK_HOLE)
        assert os.pread(fd, 10, (1 << 39) - 3) == b"\0\0\0data\0\0\0"


@program
def data_goes_on_to_the_end_of_the_file():
    write("file", b"x" * 5000)
    with opened("file") as fd:
        os.fsync(fd)
        assert os.lseek(fd, 0, os.SEEK_HOLE) == 5000
        assert os.lseek(fd, 4999, os.SEEK_DATA) == 4999
        assert os.lseek(fd, -1, os.SEEK_END) == 4999
        fails(errno.EINVAL, os.lseek, fd, -1, os.SEEK_SET)


@program
def a_hole_is_punched():
    write("file", b"x" * (4 * PAGE))
    with opened("file") as fd:
        os.fsync(fd)
        blocks = os.fstat(fd).st_blocks
        fallocate(fd, KEEP_SIZE | PUNCH_HOLE, PAGE // 2, 2 * PAGE)
        assert os.fstat(fd).st_blocks < blocks
        assert os.fstat(fd).st_size == 4 * PAGE
        fails(errno.EOPNOTSUPP, fallocate, fd, PUNCH_HOLE, 0, PAGE)
    half = PAGE // 2
    assert read("file") == b"x" * half + bytes(2 * PAGE) + b"x" * (PAGE + half)


@program
def space_is_allocated():
    with opened("file", os.O_CREAT | os.O_RDWR) as fd:
        os.posix_fallocate(fd, 0, 10 * PAGE)
        found = os.fstat(fd)
        assert (found.st_size, found.st_blocks) == (10 * PAGE, 80)
        fallocate(fd, KEEP_SIZE, 0, 20 * PAGE)
        found = os.fstat(fd)
        assert (found.st_size, found.st_blocks) == (10 * PAGE, 160)
        assert os.pread(fd, 20 * PAGE, 0) == bytes(10 * PAGE)
        os.pwrite(fd, b"x", 5 * PAGE)
        os.posix_fallocate(fd, 0, 12 * PAGE)
        assert os.pread(fd, 1, 5 * PAGE) == b"x" and os.fstat(fd).st_size == 12 * PAGE
        fails(errno.EINVAL, fallocate, fd, 0, 0, 0)
        fails(errno.EINVAL, fallocate, fd, 0, -1, 1)
        fails(errno.EFBIG, fallocate, fd, 0, (1 << 63) - PAGE, PAGE * 2)
    with opened("file", os.O_RDONLY) as fd:
        fails(errno.EBADF, fallocate, fd, 0, 0, PAGE)


@program
def more_space_than_there_is_is_not_allocated():
    with opened("file", os.O_CREAT | os.O_RDWR) as fd:
        fails(errno.ENOSPC, fallocate, fd, 0, 0, 1 << 45)
        os.write(fd, b"still works")
    assert read("file").startswith(b"still works")


@program
def blocks_are_counted():
    write("file", bytes(3 * PAGE + 1))
    with opened("file") as fd:
        os.fsync(fd)
    assert os.stat("file").st_blocks == 32
    os.truncate("file", PAGE)
    assert os.stat("file").st_blocks == 8
    os.truncate("file", 0)
    assert os.stat("file").st_blocks == 0


@program
def appended_data_goes_to_the_end():
    write("file", b"begin ")
    with opened("file", os.O_WRONLY | os.O_APPEND) as one, opened("file") as two:
        os.write(one, b"one ")
        os.lseek(one, 0, os.SEEK_SET)
        os.write(one, b"two ")
        os.pwrite(two, b"BEGIN", 0)
        os.pwrite(one, b"three", 0)  # on Linux the offset does not count here either
        os.ftruncate(two, 100)
        os.write(one, b"end")
    assert read("file") == b"BEGIN one two three".ljust(100, b"\0") + b"end"


@program
def what_several_processes_append_is_not_mixed():
    write("file", b"")
    for number in range(4):
        if os.fork() == 0:
            with opened("file", os.O_WRONLY | os.O_APPEND) as fd:
                for _ in range(50):
                    os.write(fd, bytes([65 + number]) * 1000)
            os._exit(0)
    for _ in range(4):
        assert os.wait()[1] == 0
    content = read("file")
    assert len(content) == 200_000
    pieces = [content[at : at + 1000] for at in range(0, 200_000, 1000)]
    assert all(len(set(piece)) == 1 for piece in pieces)
    assert sorted({piece: pieces.count(piece) for piece in pieces}.values()) == [50] * 4


@program
def append_is_switched_on_and_off():
    write("file", b"0123")
    with opened("file") as fd:
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
        os.write(fd, b"45")
        fcntl.fcntl(fd, fcntl.F_SETFL, 0)
        os.pwrite(fd, b"x", 0)
    assert read("file") == b"x12345"


@program
def appending_and_mapping_one_file_do_not_get_in_each_others_way():
    write("file", b"m" * PAGE)
    with opened("file", os.O_RDWR | os.O_APPEND) as fd, mmap.mmap(fd, PAGE) as mapped:
        mapped[:4] = b"MMAP"
        os.write(fd, b"appended")
        mapped.flush()
    assert read("file") == b"MMAP" + b"m" * (PAGE - 4) + b"appended"


@program
def scattered_reads_and_writes():
    with opened("file", os.O_CREAT | os.O_RDWR) as fd:
        assert os.writev(fd, [b"a" * 1000, b"b" * 5000, b"c"]) == 6001
        parts = [bytearray(1000), bytearray(5000), bytearray(10)]
        assert os.preadv(fd, parts, 0) == 6001
        assert parts[0] == b"a" * 1000 and parts[1] == b"b" * 5000 and parts[2][:1] == b"c"


@program
def a_file_that_is_open_for_reading_is_not_written():
    write("file")
    with opened("file", os.O_RDONLY) as fd:
        fails(errno.EBADF, os.write, fd, b"x")
    with opened("file", os.O_WRONLY) as fd:
        fails(errno.EBADF, os.read, fd, 1)
    os.mkdir("d")
    fails(errno.EISDIR, os.open, "d", os.O_WRONLY)
    with opened("d", os.O_RDONLY) as fd:
        fails(errno.EISDIR, os.read, fd, 1)


@program
def O_TRUNC_empties_a_file():
    write("file", b"long content")
    with opened("file", os.O_RDWR | os.O_TRUNC) as fd:
        assert os.fstat(fd).st_size == 0
        os.write(fd, b"new")
    assert read("file") == b"new"


@program
def a_program_on_it_runs_and_is_not_written_meanwhile():
    with open("/bin/sleep", "rb") as sleep:
        write("program", sleep.read(), 0o755)
    child = os.posix_spawn("./program", ["sleep", "30"], {})
    try:
        time.sleep(0.05)
        fails(errno.ETXTBSY, os.open, "program", os.O_WRONLY)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    with opened("program", os.O_WRONLY):
        fails(errno.ETXTBSY, os.execv, "./program", ["sleep", "0"])


@program
def a_limit_of_the_size_is_heeded():
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
    with opened("file", os.O_CREAT | os.O_RDWR) as fd:
        assert os.write(fd, bytes(20_000)) == 10_000
        fails(errno.EFBIG, os.write, fd, b"x")
        fails(errno.EFBIG, os.ftruncate, fd, 10_001)
        fails(errno.EFBIG, fallocate, fd, 0, 0, 10_001)


@program
def content_is_copied_between_files():
    content = os.urandom(200_000)
    write("source", content)
    with opened("source") as source, opened("copy", os.O_CREAT | os.O_RDWR) as copy:
        done = 0
        while done < 150_000:
            done += os.copy_file_range(source, copy, 150_000 - done, 1000 + done, 10 + done)
        assert os.copy_file_range(source, copy, 10, 200_000) == 0
        fails(errno.EINVAL, os.copy_file_range, source, source, 100, 0, 50)
        assert os.copy_file_range(source, source, 100, 0, 1000) == 100
    assert read("copy") == bytes(10) + content[1000:151_000]
    assert read("source")[1000:1100] == content[:100]


@program
def content_is_sent():
    content = os.urandom(300_000)
    write("source", content)
    with opened("source") as source, opened("copy", os.O_CREAT | os.O_RDWR) as copy:
        done = 0
        while done < len(content):
            done += os.sendfile(copy, source, done, len(content) - done)
    assert read("copy") == content


@program
def a_pipe_is_spliced_into_a_file():
    content = os.urandom(50_000)
    write("source", content)
    reader, writer = os.pipe()
    with opened("source") as source, opened("copy", os.O_CREAT | os.O_RDWR) as copy:
        while moved := os.splice(source, writer, 16_384):
            while moved:
                moved -= os.splice(reader, copy, moved)
    assert read("copy") == content


# Mappings.


@program
def a_mapping_shows_what_is_written_and_writes_what_it_shows():
    write("file", b"a" * (3 * PAGE))
    with opened("file") as fd, mmap.mmap(fd, 3 * PAGE) as mapped:
        os.pwrite(fd, b"written", PAGE - 3)
        assert mapped[PAGE - 3 : PAGE + 4] == b"written"
        mapped[2 * PAGE : 2 * PAGE + 6] = b"mapped"
        assert os.pread(fd, 6, 2 * PAGE) == b"mapped"
        mapped.flush()
        assert read("file")[2 * PAGE :].startswith(b"mapped")
    assert read("file")[2 * PAGE :].startswith(b"mapped")


@program
def two_processes_share_a_mapping():
    write("file", bytes(PAGE))
    ready, begin = os.pipe()
    child = os.fork()
    if child == 0:
        with opened("file") as fd, mmap.mmap(fd, PAGE) as mapped:
            mapped[:5] = b"child"
            os.write(begin, b"x")
            while mapped[100] == 0:
                time.sleep(0.001)
        os._exit(0)
    with opened("file") as fd, mmap.mmap(fd, PAGE) as mapped:
        os.read(ready, 1)
        assert mapped[:5] == b"child"
        mapped[100] = 1
        assert os.waitpid(child, 0)[1] == 0


@program
def a_private_mapping_changes_nothing():
    write("file", b"a" * PAGE)
    with opened("file") as fd, mmap.mmap(fd, PAGE, access=mmap.ACCESS_COPY) as mapped:
        mapped[:3] = b"xyz"
        assert os.pread(fd, 3, 0) == b"aaa"
    assert read("file") == b"a" * PAGE


@program
def a_mapping_outlives_its_descriptor_and_its_name():
    write("file", b"a" * PAGE)
    fd = os.open("file", os.O_RDWR)
    os.link("file", "second")
    mapped = mmap.mmap(fd, PAGE)
    os.close(fd)
    os.unlink("file")
    mapped[:5] = b"still"
    mapped.flush()
    assert read("second")[:5] == b"still"
    os.unlink("second")
    mapped[:5] = b"there"
    assert mapped[:5] == b"there"
    mapped.close()


@program
def behind_the_end_a_mapping_has_zeros_that_stay_there():
    write("file", b"x" * 100)
    with opened("file") as fd, mmap.mmap(fd, 100) as mapped:
        view = memoryview(mapped)
        assert bytes(view[90:]) == b"x" * 10
        view.release()
    with opened("file") as fd:
        os.ftruncate(fd, PAGE)
        with mmap.mmap(fd, PAGE) as mapped:
            assert mapped[100:] == bytes(PAGE - 100)
            mapped[200:203] = b"abc"
            os.ftruncate(fd, 150)
            os.ftruncate(fd, PAGE)
            assert mapped[150:] == bytes(PAGE - 150)
    assert read("file") == b"x" * 100 + bytes(PAGE - 100)


@program
def a_mapping_is_cut_off_with_the_file():
    write("file", b"x" * (2 * PAGE))
    child = os.fork()
    if child == 0:
        with opened("file") as fd:
            mapped = mmap.mmap(fd, 2 * PAGE)
            mapped[PAGE] = 1
            os.ftruncate(fd, PAGE)
            signal.signal(signal.SIGBUS, signal.SIG_DFL)
            mapped[PAGE]
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGBUS


@program
def what_is_mapped_is_punched_and_truncated_too():
    write("file", b"x" * (3 * PAGE))
    with opened("file") as fd, mmap.mmap(fd, 3 * PAGE) as mapped:
        mapped[PAGE] = 7
        fallocate(fd, KEEP_SIZE | PUNCH_HOLE, PAGE, PAGE)
        assert mapped[PAGE : 2 * PAGE] == bytes(PAGE)
        mapped[PAGE] = 9
        mapped.flush()
    assert read("file")[PAGE : PAGE + 2] == b"\x09\x00"


@program
def a_mapping_is_the_target_and_the_source_of_io():
    write("file", b"x" * (4 * PAGE))
    write("other", b"y" * (4 * PAGE))
    with opened("file") as fd, mmap.mmap(fd, 4 * PAGE) as mapped:
        with opened("other") as other:
            assert os.preadv(other, [memoryview(mapped)[PAGE : 2 * PAGE]], 0) == PAGE
            assert os.pwrite(other, memoryview(mapped)[: 2 * PAGE], PAGE) == 2 * PAGE
        mapped.flush()
    assert read("file") == b"x" * PAGE + b"y" * PAGE + b"x" * (2 * PAGE)
    assert read("other") == b"y" * PAGE + b"x" * PAGE + b"y" * (2 * PAGE)


# Files without names.


@program
def a_temporary_file_has_no_name_until_it_is_linked():
    with opened(".", os.O_TMPFILE | os.O_RDWR, 0o640) as fd:
        os.write(fd, b"content")
        assert os.fstat(fd).st_nlink == 0
        assert os.listdir() == []
        link_opened(fd, "file")
        assert os.fstat(fd).st_nlink == 1
    assert (read("file"), mode_of("file"), os.listdir()) == (b"content", 0o640, ["file"])
    with opened(".", os.O_TMPFILE | os.O_RDWR | os.O_EXCL, 0o640) as fd:
        fails(errno.ENOENT, link_opened, fd, "second")


@program
def an_unlinked_file_is_not_linked_again():
    write("file")
    with opened("file") as fd:
        os.unlink("file")
        fails(errno.ENOENT, link_opened, fd, "again")


# Extended attributes.


@program
def extended_attributes_are_set_listed_and_removed():
    write("file")
    os.mkdir("d")
    for path in ("file", "d"):
        assert os.listxattr(path) == []
        os.setxattr(path, "user.a", b"1")
        os.setxattr(path, "user.b", b"")
        os.setxattr(path, "user.a", bytes(range(256)) * 4)
        assert sorted(os.listxattr(path)) == ["user.a", "user.b"]
        assert os.getxattr(path, "user.a") == bytes(range(256)) * 4
        assert os.getxattr(path, "user.b") == b""
        fails(errno.EEXIST, os.setxattr, path, "user.a", b"", os.XATTR_CREATE)
        fails(errno.ENODATA, os.setxattr, path, "user.c", b"", os.XATTR_REPLACE)
        os.removexattr(path, "user.a")
        fails(errno.ENODATA, os.getxattr, path, "user.a")
        fails(errno.ENODATA, os.removexattr, path, "user.a")
        fails(errno.EOPNOTSUPP, os.setxattr, path, "unknown.x", b"")
    fails(errno.ERANGE, os.setxattr, "file", "user." + "x" * 251, b"")
    os.symlink("file", "link")
    fails(errno.EPERM, os.setxattr, "link", "user.x", b"", follow_symlinks=False)


@program
def extended_attributes_belong_to_the_inode():
    write("file")
    os.setxattr("file", "user.x", b"1")
    os.link("file", "second")
    os.rename("file", "third")
    assert os.getxattr("second", "user.x") == os.getxattr("third", "user.x") == b"1"
    with opened("second") as fd:
        os.setxattr(fd, "user.y", b"2")
    assert sorted(os.listxattr("third")) == ["user.x", "user.y"]


@program_of_root
def extended_attributes_need_permission():
    with user(ALICE):
        write("file")
        os.setxattr("file", "user.x", b"1")
        fails(errno.EPERM, os.setxattr, "file", "trusted.x", b"1")
    os.setxattr("file", "trusted.x", b"2")
    with user(BOB):
        assert os.getxattr("file", "user.x") == b"1"
        fails(errno.EACCES, os.setxattr, "file", "user.x", b"2")
        assert os.listxattr("file") == ["user.x"]
    assert sorted(os.listxattr("file")) == ["trusted.x", "user.x"]


@program_of_root
def writing_removes_capabilities():
    write("file")
    capability = bytes.fromhex("0100000200200000000000000000000000000000")
    os.setxattr("file", "security.capability", capability)
    assert os.getxattr("file", "security.capability") == capability
    with opened("file") as fd:
        os.write(fd, b"x")
    fails(errno.ENODATA, os.getxattr, "file", "security.capability")


# Access control lists.


def acl(*entries):
    """The extended attribute for entries of a tag, the permissions, and an id."""
    packed = (struct.pack("<HHI", tag, perm, number) for tag, perm, number in entries)
    return struct.pack("<I", 2) + b"".join(packed)


USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 1, 2, 4, 8, 16, 32
NOBODY = 0xFFFFFFFF


@program_of_root
def an_acl_lets_others_in():
    write("file", mode=0o600)
    entries = [(USER_OBJ, 6, NOBODY), (USER, 4, ALICE), (GROUP_OBJ, 0, NOBODY)]
    entries += [(MASK, 4, NOBODY), (OTHER, 0, NOBODY)]
    os.setxattr("file", "system.posix_acl_access", acl(*entries))
    assert mode_of("file") == 0o640
    with user(ALICE):
        assert read("file") == b"content"
        fails(errno.EACCES, os.open, "file", os.O_WRONLY)
    with user(BOB):
        fails(errno.EACCES, read, "file")
    os.chmod("file", 0o600)
    with user(ALICE):
        fails(errno.EACCES, read, "file")
    assert os.getxattr("file", "system.posix_acl_access")[4 * 7 + 2] == 0  # the mask's


@program_of_root
def a_default_acl_takes_the_place_of_the_umask():
    os.umask(0o077)
    os.mkdir("d")
    os.chmod("d", 0o777)
    entries = [(USER_OBJ, 7, NOBODY), (USER, 7, ALICE), (GROUP_OBJ, 5, NOBODY)]
    entries += [(MASK, 7, NOBODY), (OTHER, 1, NOBODY)]
    os.setxattr("d", "system.posix_acl_default", acl(*entries))
    with user(BOB):
        write("d/file", mode=0o666)
        os.mkdir("d/sub", 0o777)
        os.mkfifo("d/fifo", 0o666)
        write("outside", mode=0o666)
        fd = os.open("d", os.O_TMPFILE | os.O_RDWR, 0o666)
    assert (mode_of("d/file"), mode_of("d/sub"), mode_of("d/fifo")) == (0o660, 0o771, 0o660)
    assert mode_of("outside") == 0o600
    assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o660
    assert os.getxattr("d/sub", "system.posix_acl_default") == acl(*entries)
    with user(ALICE):
        assert read("d/file") == b"content"
        write("d/sub/x")
    os.close(fd)


@program_of_root
def an_acl_set_by_who_is_not_in_the_group_clears_setgid():
    with user(ALICE):
        write("file")
    os.chown("file", ALICE, STAFF)
    os.chmod("file", 0o2755)
    entries = [(USER_OBJ, 7, NOBODY), (USER, 4, BOB), (GROUP_OBJ, 5, NOBODY)]
    entries += [(MASK, 7, NOBODY), (OTHER, 0, NOBODY)]
    with user(ALICE):
        os.setxattr("file", "system.posix_acl_access", acl(*entries))
    assert mode_of("file") == 0o770


# Locks.


@program
def locks_exclude_other_processes():
    write("file", bytes(100))
    lock = array.array("h", [fcntl.F_WRLCK, 0]).tobytes()
    with opened("file") as fd:
        fcntl.flock(fd, fcntl.LOCK_EX)
        fcntl.lockf(fd, fcntl.LOCK_EX, 10, 5)
        child = os.fork()
        if child == 0:
            with opened("file") as other:
                fails(errno.EAGAIN, fcntl.flock, other, fcntl.LOCK_EX | fcntl.LOCK_NB)
                fails(errno.EAGAIN, fcntl.lockf, other, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 14)
                fcntl.lockf(other, fcntl.LOCK_EX | fcntl.LOCK_NB, 5, 0)
                found = fcntl.fcntl(other, fcntl.F_GETLK, lock + bytes(28))
                assert found[:2] == array.array("h", [fcntl.F_WRLCK]).tobytes()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    with opened("file") as fd:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


@program
def a_lock_is_waited_for():
    write("file")
    ready, begin = os.pipe()
    with opened("file") as fd:
        fcntl.lockf(fd, fcntl.LOCK_EX)
        child = os.fork()
        if child == 0:
            with opened("file") as other:
                os.write(begin, b"x")
                fcntl.lockf(other, fcntl.LOCK_EX)
                os.write(begin, b"y")
            os._exit(0)
        os.read(ready, 1)
        assert not select.select([ready], [], [], 0.05)[0]
        fcntl.lockf(fd, fcntl.LOCK_UN)
        assert os.read(ready, 1) == b"y"
        os.waitpid(child, 0)


# The filesystem as a whole.


@program
def the_state_of_the_filesystem_is_known():
    found = os.statvfs(".")
    assert found.f_blocks >= found.f_bfree >= found.f_bavail > 0
    assert found.f_files >= found.f_ffree
    assert (found.f_namemax, found.f_bsize) == (MAX_NAME, PAGE)


@program
def what_is_synchronized_succeeds():
    write("file")
    with opened("file") as fd:
        os.fsync(fd)
        os.fdatasync(fd)
    with opened(".", os.O_RDONLY) as fd:
        os.fsync(fd)
        _check(_libc.syncfs(fd))
    with opened("sync", os.O_CREAT | os.O_RDWR | os.O_SYNC) as fd:
        assert os.write(fd, b"x" * 10000) == 10000


@program
def many_processes_make_and_remove_files_in_one_directory():
    for number in range(4):
        if os.fork() == 0:
            for n in range(60):
                name = f"{number}-{n}"
                write(name, name.encode())
                os.rename(name, name + "-renamed")
                assert read(name + "-renamed") == name.encode()
                if n % 3:
                    os.unlink(name + "-renamed")
            os._exit(0)
    for _ in range(4):
        assert os.wait()[1] == 0
    assert len(os.listdir()) == 80


@program
def one_of_many_processes_makes_a_file():
    reader, writer = os.pipe()
    for _ in range(8):
        if os.fork() == 0:
            for n in range(10):
                try:
                    os.close(os.open(f"file-{n}", os.O_CREAT | os.O_EXCL))
                    os.write(writer, b"x")
                except FileExistsError:
                    pass
                with contextlib.suppress(FileExistsError):
                    os.mkdir(f"d-{n}")
            os._exit(0)
    for _ in range(8):
        assert os.wait()[1] == 0
    assert len(os.read(reader, 1000)) == 10


@program
def a_deep_tree_is_made_and_removed():
    for _ in range(120):
        os.mkdir("d")
        os.chdir("d")
    assert len(os.getcwd()) > 240
    for _ in range(120):
        os.chdir("..")
        os.rmdir("d")


def _run(name, top):
    os.chdir(tempfile.mkdtemp(prefix=f"{name[:100]}-", dir=top))
    os.chmod(".", 0o777)
    os.umask(0)
    PROGRAMS[name]()


def main():
    top, ELSEWHERE[0] = sys.argv[1:]
    for line in sys.stdin:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            complaint = ""
            try:
                _run(line.strip(), top)
            except BaseException:
                complaint = traceback.format_exc()
            os.write(writer, complaint.encode())
            os._exit(0)
        os.close(writer)
        with open(reader) as pipe:
            complaint = pipe.read()
        if status := os.waitpid(child, 0)[1]:
            complaint += f"it has ended with status {status}"
        print(json.dumps(complaint), flush=True)


if __name__ == "__main__":
    main()
