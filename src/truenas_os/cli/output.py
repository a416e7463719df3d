# SPDX-License-Identifier: LGPL-3.0-or-later
"""What reaches stdout and stderr: names made harmless, JSON, writes that fail."""

import argparse
import contextlib
import errno
import io
import json
import os
import stat
import sys
from enum import IntFlag
from typing import NoReturn, TextIO


def gather() -> None:
    """Have what is written to stdout gather in a buffer, as it does unless Python is told not to.

    Without one, who writes a part of it does not hear of the rest that found no place.
    """
    if isinstance(getattr(sys.stdout, "buffer", None), io.RawIOBase):
        sys.stdout = open(  # noqa: SIM115
            sys.stdout.fileno(),
            "w",
            encoding=sys.stdout.encoding,
            errors=sys.stdout.errors,
            newline="\n",
            closefd=False,
        )


def encoding_of(stream: TextIO | None) -> str:
    """The encoding of sys.stdout or sys.stderr, which are None when the descriptor was closed."""
    return (stream.encoding if stream else None) or "ascii"


def can_encode(text: str, encoding: str) -> bool:
    """Whether *encoding* has every character of *text*."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def escaped(text: str, encoding: str, also: str = "") -> str:
    r"""*text* with every byte written ``\xNN`` that a terminal must not get, or cannot show.

    These are the bytes of control and format characters, of what is not text at all, of characters
    that *encoding* lacks, and of the characters in *also*. A backslash before an ``x`` is escaped
    too, so that the original can be told from the result.
    """

    def shown(index: int, char: str) -> str:
        harmless = char.isprintable() and char not in also and can_encode(char, encoding)
        if harmless and text[index : index + 2] != r"\x":
            return char
        return "".join(f"\\x{byte:02x}" for byte in os.fsencode(char))

    plain = text.isascii() and text.isprintable() and r"\x" not in text
    if plain and not any(char in text for char in also):
        return text  # as nearly always
    return "".join(shown(index, char) for index, char in enumerate(text))


def flag_names(flags: type[IntFlag], value: int) -> str:
    """The names of the bits of *value*, and a number for those that have none."""
    known = [flag for flag in flags if flag & value]
    names = [flag.name or "" for flag in known]
    if rest := value & ~sum(known):
        names.append(f"{rest:#x}")
    return ",".join(names)


def is_terminal() -> bool:
    """Whether stdout is one."""
    return sys.stdout is not None and sys.stdout.isatty()


def write(text: str) -> None:
    """Write to stdout."""
    if sys.stdout is None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF), "standard output")
    sys.stdout.write(text)


def write_bytes(content: bytes) -> None:
    """Write to stdout what is in no encoding."""
    write("")
    sys.stdout.buffer.write(content)


def end_line(terminator: bytes) -> None:
    """Write the *terminator* that stdout lacks, if it is a file that ends with a part of a line.

    One that may not be read is left as it is.
    """
    write("")
    last = terminator
    with contextlib.suppress(OSError):
        fd = sys.stdout.fileno()
        if stat.S_ISREG(os.fstat(fd).st_mode):
            with open(f"/proc/self/fd/{fd}", "rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
                last = file.read() or terminator
    if last != terminator:
        write_bytes(terminator)


def write_json(value: object) -> None:
    r"""Write *value* as JSON, in printable ASCII, valid whatever bytes its texts hold.

    A byte that is not UTF-8 becomes the escape of a lone surrogate (``\udc80`` to ``\udcff``), from
    which :func:`os.fsencode` makes that byte again.
    """
    write(json.dumps(value, indent=2) + "\n")


def explained(error: OSError) -> str:
    """The path, what is wrong with it, and the notes that the library left."""
    text = error.strerror or str(error)
    if isinstance(error.filename, (str, bytes)):
        name = os.fsdecode(error.filename) or "''"
        text = f"{name}: {text}"
    if notes := getattr(error, "__notes__", ()):
        text += f" ({'; '.join(notes)})"
    return text


_error = argparse.ArgumentParser.error


class Parser(argparse.ArgumentParser):
    """The messages of argparse repeat arguments as they came, control characters included."""

    def error(self, message: str) -> NoReturn:
        _error(self, escaped(message, encoding_of(sys.stderr)))


def write_error(message: str) -> None:
    """Write one line to stderr, if there is anybody to read it."""
    with contextlib.suppress(OSError):
        if sys.stderr is not None:
            print(f"truenas-os: {escaped(message, encoding_of(sys.stderr))}", file=sys.stderr)


def flush() -> None:
    """Write out what is buffered for stdout, or forget it."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BaseException:
        discard()
        raise


def sync() -> None:
    """Write out what is buffered for stdout, and if it is a file, have it reach the disk."""
    flush()
    try:
        if sys.stdout is not None:
            os.fsync(sys.stdout.fileno())
    except OSError as error:
        # A pipe or a terminal, say, or what has no descriptor.
        if error.errno not in (None, errno.EINVAL, errno.EROFS, errno.ENOTSUP):
            raise


def discard() -> None:
    """Send what is buffered for stdout nowhere: the interpreter would try again when it exits."""
    # A stdout that somebody put in place of the real one may have no descriptor.
    with contextlib.suppress(io.UnsupportedOperation), open(os.devnull, "wb") as nowhere:
        if sys.stdout is not None:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
