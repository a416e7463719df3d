# SPDX-License-Identifier: LGPL-3.0-or-later
"""Random operations on one file, each compared with what a file is to be like.

``fsx.py DIRECTORY [--seed N] [--operations N] [--size BYTES]``. After a failure it tells the seed
and the last operations; the same seed makes the same ones.
"""

import argparse
import collections
import ctypes
import errno
import mmap
import os
import random
import sys

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 1, 2, 16


class Differs(Exception):
    """The file is not as it should be."""


class File:
    """A file, open several times over, and the bytes that it should have."""

    def __init__(self, directory, seed, size):
        self.random = random.Random(seed)
        self.limit = size
        self.path = os.path.join(directory, f"fsx-{seed}")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        self.fd = os.open(self.path, flags, 0o600)
        self.second = os.open(self.path, os.O_RDWR)
        self.appending = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        self.expected = bytearray()
        self.without = set()
        self.done = collections.Counter()

    # What is chosen.

    def range(self, end):
        """Where to begin before *end*, and how many bytes; small, aligned and large ones."""
        choose = self.random
        off = choose.randrange(max(1, end))
        if choose.random() < 0.3:
            off -= off % mmap.PAGESIZE
        most = choose.choice((1, 100, 5000, 70_000, self.limit // 2))
        return off, choose.randint(1, min(most, max(1, end - off)))

    def data(self, size):
        return self.random.randbytes(size)

    def some_fd(self):
        return self.random.choice((self.fd, self.second))

    # What is done.

    def write(self):
        off, size = self.range(self.limit)
        data = self.data(size)
        assert os.pwrite(self.some_fd(), data, off) == size
        self.put(off, data)
        return off, size

    def append(self):
        size = min(self.random.randint(1, 10_000), self.limit - len(self.expected))
        if size > 0:
            data = self.data(size)
            assert os.write(self.appending, data) == size
            self.expected += data
        return size

    def read(self):
        off, size = self.range(self.limit)
        self.compare(off, os.pread(self.some_fd(), size, off), self.expected[off : off + size])
        return off, size

    def truncate(self):
        size = self.random.randrange(self.limit)
        if self.random.random() < 0.5:
            os.truncate(self.path, size)
        else:
            os.ftruncate(self.some_fd(), size)
        del self.expected[size:]
        self.extend(size)
        return size

    def mapped_write(self):
        off, size = self.range(self.limit)
        if off + size > len(self.expected):
            os.ftruncate(self.fd, off + size)
            self.extend(off + size)
        data = self.data(size)
        with mmap.mmap(self.some_fd(), off + size) as mapped:
            mapped[off : off + size] = data
            if self.random.random() < 0.5:
                mapped.flush()
        self.put(off, data)
        return off, size

    def mapped_read(self):
        if self.expected:
            off, size = self.range(len(self.expected))
            with mmap.mmap(self.some_fd(), off + size, prot=mmap.PROT_READ) as mapped:
                self.compare(off, mapped[off : off + size], self.expected[off : off + size])
            return off, size
        return None

    def allocate(self):
        off, size = self.range(self.limit)
        keep = self.random.random() < 0.5
        if self.fallocate(_KEEP_SIZE if keep else 0, off, size) and not keep:
            self.extend(off + size)
        return off, size, keep

    def punch(self):
        off, size = self.range(self.limit)
        if self.fallocate(_KEEP_SIZE | _PUNCH_HOLE, off, size):
            self.zero(off, size)
        return off, size

    def zero_range(self):
        off, size = self.range(self.limit)
        if self.fallocate(_ZERO_RANGE, off, size):
            self.extend(off + size)
            self.zero(off, size)
        return off, size

    def copy(self):
        off, size = self.range(max(1, len(self.expected)))
        to = self.random.randrange(self.limit - size)
        if abs(to - off) < size:
            return None
        copied = os.copy_file_range(self.fd, self.second, size, off, to)
        data = self.expected[off : off + copied]
        assert len(data) == copied
        if copied:
            self.put(to, data)
        return off, to, size, copied

    def seek(self):
        """Where there is said to be a hole, there are zeros."""
        if not self.expected:
            return None
        off = self.random.randrange(len(self.expected))
        try:
            data = os.lseek(self.fd, off, os.SEEK_DATA)
        except OSError as error:
            assert error.errno == errno.ENXIO
            data = len(self.expected)
        self.compare(off, bytes(data - off), self.expected[off:data])
        hole = os.lseek(self.fd, off, os.SEEK_HOLE)
        assert off <= data <= len(self.expected) and off <= hole <= len(self.expected)
        assert (data == off) != (hole == off)
        return off, data, hole

    def sync(self):
        self.random.choice((os.fsync, os.fdatasync))(self.some_fd())

    def reopen(self):
        os.close(self.second)
        if self.random.random() < 0.2:
            os.close(self.fd)
            os.close(self.appending)
            self.fd = os.open(self.path, os.O_RDWR)
            self.appending = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        self.second = os.open(self.path, os.O_RDWR)

    def check(self):
        """The whole file, and its size by name."""
        for size in (os.fstat(self.fd).st_size, os.stat(self.path).st_size):
            if size != len(self.expected):
                raise Differs(f"its size is {size}, not {len(self.expected)}")
        self.compare(0, os.pread(self.fd, self.limit + 1, 0), self.expected)

    # How.

    def fallocate(self, mode, off, size):
        if mode in self.without:
            return False
        if _libc.fallocate(self.fd, mode, off, size) == 0:
            return True
        if ctypes.get_errno() != errno.EOPNOTSUPP:
            raise OSError(ctypes.get_errno(), "fallocate", mode)
        self.without.add(mode)
        return False

    def extend(self, size):
        self.expected += bytes(max(0, size - len(self.expected)))

    def put(self, off, data):
        self.extend(off)
        self.expected[off : off + len(data)] = data

    def zero(self, off, size):
        size = min(size, len(self.expected) - off)
        if size > 0:
            self.expected[off : off + size] = bytes(size)

    def compare(self, off, found, expected):
        if found == expected:
            return
        if len(found) != len(expected):
            raise Differs(f"{len(found)} bytes at {off}, not {len(expected)}")
        wrong = [n for n, (a, b) in enumerate(zip(found, expected, strict=True)) if a != b]
        first, last = off + wrong[0], off + wrong[-1]
        raise Differs(f"{len(wrong)} wrong bytes from {first} to {last}")


OPERATIONS = {
    File.write: 10,
    File.append: 3,
    File.read: 10,
    File.truncate: 3,
    File.mapped_write: 6,
    File.mapped_read: 6,
    File.allocate: 2,
    File.punch: 3,
    File.zero_range: 1,
    File.copy: 4,
    File.seek: 2,
    File.sync: 1,
    File.reopen: 2,
    File.check: 2,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("directory")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--operations", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=256 * 1024)
    args = parser.parse_args()
    file = File(args.directory, args.seed, args.size)
    last = collections.deque(maxlen=20)
    choices = file.random.choices(list(OPERATIONS), OPERATIONS.values(), k=args.operations)
    for number, operation in enumerate(choices):
        last.append(f"{number} {operation.__name__}")
        try:
            last[-1] += f" {operation(file) or ''}"
        except Exception as error:
            error.add_note(f"seed {args.seed}, size {args.size}; " + ", ".join(last))
            raise
        file.done[operation.__name__] += 1
    file.check()
    os.unlink(file.path)
    file.compare(0, os.pread(file.fd, args.size + 1, 0), file.expected)
    print(f"{args.operations} operations, seed {args.seed}: {dict(file.done)}", file=sys.stdout)


if __name__ == "__main__":
    main()
