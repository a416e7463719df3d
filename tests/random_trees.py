# SPDX-License-Identifier: LGPL-3.0-or-later
"""Random operations on names, done in two directories at once, which have to stay alike.

``random_trees.py WITNESS DIRECTORY [--seed N] [--operations N] [--no-exchange]``. After a
difference it tells the seed and the last operations; the same seed makes the same ones.
"""

import argparse
import collections
import ctypes
import errno
import os
import random
import stat
import tempfile
import zlib

_libc = ctypes.CDLL(None, use_errno=True)
_NAMES = ("a", "b", "c", "d", "e", "f")
_OPEN = 4  # files and directories that are held open


class Tree:
    """A directory, and what is held open in it."""

    def __init__(self, top):
        # In a directory of its own: symlinks may lead one level up.
        path = os.path.join(tempfile.mkdtemp(dir=top), "tree")
        os.mkdir(path)
        self.top = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        self.held = [-1] * _OPEN

    def mkdir(self, path, mode):
        os.mkdir(path, mode, dir_fd=self.top)

    def rmdir(self, path):
        os.rmdir(path, dir_fd=self.top)

    def create(self, path, mode, flags, data):
        fd = os.open(path, os.O_CREAT | os.O_RDWR | flags, mode, dir_fd=self.top)
        try:
            return os.write(fd, data)
        finally:
            os.close(fd)

    def mknod(self, path, mode):
        os.mknod(path, mode, dir_fd=self.top)

    def unlink(self, path):
        os.unlink(path, dir_fd=self.top)

    def symlink(self, target, path):
        os.symlink(target, path, dir_fd=self.top)

    def readlink(self, path):
        return os.readlink(path, dir_fd=self.top)

    def link(self, old, new):
        os.link(old, new, src_dir_fd=self.top, dst_dir_fd=self.top, follow_symlinks=False)

    def rename(self, old, new, flags):
        if _libc.renameat2(self.top, old.encode(), self.top, new.encode(), flags) < 0:
            raise OSError(ctypes.get_errno(), "renameat2")

    def chmod(self, path, mode):
        os.chmod(path, mode, dir_fd=self.top)

    def utime(self, path, moment):
        os.utime(path, ns=(moment, moment), dir_fd=self.top)

    def setxattr(self, path, name, value):
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK, dir_fd=self.top)
        try:
            os.setxattr(fd, name, value)
        finally:
            os.close(fd)

    def truncate(self, path, size):
        fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK, dir_fd=self.top)
        try:
            os.ftruncate(fd, size)
        finally:
            os.close(fd)

    def hold(self, number, path):
        self.let_go(number)
        self.held[number] = os.open(path, os.O_RDONLY | os.O_NONBLOCK, dir_fd=self.top)

    def let_go(self, number):
        if self.held[number] >= 0:
            os.close(self.held[number])
            self.held[number] = -1

    def look_at_held(self, number):
        if (fd := self.held[number]) < 0:
            return None
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            return self.attributes(os.fstat(fd)), sorted(os.listdir(fd))
        return self.attributes(os.fstat(fd)), zlib.crc32(os.pread(fd, 10_000, 0))

    def make_in_held(self, number, name):
        if self.held[number] >= 0:
            os.mkdir(name, dir_fd=self.held[number])

    def stat(self, path):
        return self.attributes(os.stat(path, dir_fd=self.top, follow_symlinks=False))

    def list(self, path):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY, dir_fd=self.top)
        try:
            return sorted(os.listdir(fd))
        finally:
            os.close(fd)

    def attributes(self, found):
        is_directory = stat.S_ISDIR(found.st_mode)
        size = None if is_directory else found.st_size  # each filesystem has its own idea
        return oct(found.st_mode), found.st_nlink, size, found.st_uid, found.st_gid

    def everything(self):
        """All there is: attributes, content, extended attributes and times that were set."""
        found = {}
        inodes = {}
        os.lseek(self.top, 0, os.SEEK_SET)
        for path, directories, files, fd in os.fwalk(".", dir_fd=self.top):
            directories.sort()
            found[path] = self.attributes(os.fstat(fd)), sorted(os.listxattr(fd))
            for name in sorted(files):
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                first = inodes.setdefault(status.st_ino, path + "/" + name)
                content = None
                if stat.S_ISREG(status.st_mode):
                    file = os.open(name, os.O_RDONLY, dir_fd=fd)
                    content = zlib.crc32(os.pread(file, 100_000, 0)), sorted(os.listxattr(file))
                    os.close(file)
                elif stat.S_ISLNK(status.st_mode):
                    content = os.readlink(name, dir_fd=fd)
                found[path + "/" + name] = self.attributes(status), first, content
        return found


class Choice:
    """What comes next."""

    def __init__(self, seed, renames):
        self.random = random.Random(seed)
        self.renames = renames

    def path(self):
        depth = self.random.choice((1, 1, 1, 2, 2, 3))
        return "/".join(self.random.choices(_NAMES, k=depth))

    def __call__(self):
        choose = self.random
        name, path = choose.choice(_CHOICES), self.path()
        arguments = {
            "mkdir": lambda: (path, choose.choice((0o777, 0o700, 0o2775))),
            "rmdir": lambda: (path,),
            "create": lambda: (
                path,
                choose.choice((0o644, 0o600)),
                choose.choice((0, os.O_EXCL, os.O_TRUNC, os.O_APPEND, os.O_NOFOLLOW)),
                choose.randbytes(choose.randrange(6000)),
            ),
            "mknod": lambda: (path, choose.choice((stat.S_IFIFO, stat.S_IFSOCK)) | 0o640),
            "unlink": lambda: (path,),
            "symlink": lambda: (choose.choice(("", "../", "./")) + self.path(), path),
            "readlink": lambda: (path,),
            "link": lambda: (path, self.path()),
            "rename": lambda: (path, self.path(), choose.choice(self.renames)),
            "chmod": lambda: (path, choose.choice((0o755, 0o4711, 0o1777, 0o600))),
            "utime": lambda: (path, choose.randrange(1 << 62)),
            "setxattr": lambda: (path, "user." + choose.choice(_NAMES), choose.randbytes(10)),
            "truncate": lambda: (path, choose.randrange(10_000)),
            "hold": lambda: (choose.randrange(_OPEN), path),
            "look_at_held": lambda: (choose.randrange(_OPEN),),
            "make_in_held": lambda: (choose.randrange(_OPEN), choose.choice(_NAMES)),
            "stat": lambda: (path,),
            "list": lambda: (path,),
        }
        return name, arguments[name]()


_WEIGHTS = {"mkdir": 5, "create": 5, "rename": 8, "link": 3, "rmdir": 2, "unlink": 2}
_OTHERS = "mknod symlink readlink chmod utime setxattr truncate hold look_at_held make_in_held stat"
_CHOICES = [name for name, weight in _WEIGHTS.items() for _ in range(weight)]
_CHOICES += [*_OTHERS.split(), "list"]


def outcome(tree, name, arguments):
    try:
        return getattr(tree, name)(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("witness")
    parser.add_argument("directory")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--operations", type=int, default=10_000)
    parser.add_argument("--no-exchange", action="store_true", help="never exchange two names")
    args = parser.parse_args()
    trees = Tree(args.witness), Tree(args.directory)
    choose = Choice(args.seed, (0, 0, 0, 1, 3) if args.no_exchange else (0, 0, 0, 1, 2, 2, 3))
    last = collections.deque(maxlen=30)
    outcomes = collections.Counter()
    for number in range(args.operations):
        name, arguments = choose()
        expected, found = (outcome(tree, name, arguments) for tree in trees)
        shown = [value if not isinstance(value, bytes) else len(value) for value in arguments]
        last.append(f"{number} {name}{shown}: {expected!r:.100}")
        outcomes[name, isinstance(expected, str) and expected.startswith("E")] += 1
        if number % 50 == 49 and expected == found:
            name, (expected, found) = "everything", [tree.everything() for tree in trees]
        if expected != found:
            if isinstance(expected, dict):
                pairs = {path: (expected.get(path), found.get(path)) for path in expected | found}
                pairs = {path: pair for path, pair in pairs.items() if pair[0] != pair[1]}
                expected, found = ({path: pair[n] for path, pair in pairs.items()} for n in (0, 1))
            history = "\n".join(last)
            raise SystemExit(f"seed {args.seed}\n{history}\n{name}: {expected!r} but {found!r}")
    failed = sum(count for (_, has_failed), count in outcomes.items() if has_failed)
    print(f"{args.operations} operations, seed {args.seed}, {failed} of which fail as they should")


if __name__ == "__main__":
    main()
