# SPDX-License-Identifier: LGPL-3.0-or-later
"""``mount``: a new mount of a filesystem."""

import argparse
import re
import stat
from functools import partial
from typing import Any, Final

from .. import blocking
from ..blocking import MountAttr
from ..blocking.mounting import ATTRIBUTES
from .targets import explained

_DESCRIPTION = """\
Mount a filesystem at TARGET, on top of what is mounted there. A symlink as
TARGET is not followed, and no helper program is run.

OPTIONS are separated by commas. nosuid, nodev, noexec, nosymfollow, noatime,
nodiratime, relatime, strictatime, and their opposites suid, dev, exec,
symfollow, atime, diratime, are attributes of the mount, of which the last word
counts. ro makes both the filesystem and the mount read-only, rw neither; loop
mounts the file SOURCE; defaults stands for nothing. All others are for the
filesystem, as NAME or NAME=VALUE, each once. A VALUE with commas goes into
double quotes.
"""
_EPILOG = """\
examples:
  truenas-os mount -t tmpfs -o size=16M,mode=700,nosuid scratch /mnt
  truenas-os mount -t ext4 -o loop,ro disk.img /mnt
  truenas-os mount -t overlay -o 'lowerdir="/a,b:/c"' --mkdir /mnt/merged
"""

# What of the attributes a word replaces, and what it sets.
_WORDS: Final = {
    word: (MountAttr.ATIME_MASK if attribute in MountAttr.ATIME_MASK else attribute, attribute)
    for word, attribute in ATTRIBUTES.items()
} | {
    word.removeprefix("no"): (attribute, MountAttr(0))
    for word, attribute in ATTRIBUTES.items()
    if word.startswith("no")
}


def register(commands: "argparse._SubParsersAction[Any]") -> None:
    parser = commands.add_parser(
        "mount",
        help="mount a filesystem",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="SOURCE", nargs="?", help="a device, or what TYPE takes")
    parser.add_argument("target", metavar="TARGET")
    parser.add_argument("-t", dest="fs_type", metavar="TYPE", required=True, help="filesystem")
    parser.add_argument(
        "-o",
        dest="options",
        metavar="OPTIONS",
        action="extend",
        type=_words,
        default=[],
        help="may be repeated",
    )
    parser.add_argument("--mkdir", action="store_true", help="make the directories that lack")
    parser.set_defaults(run=partial(_run, parser))


def _run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    try:
        attr, loop, options = _sorted(arguments.options)
        mounting = blocking.mounted(
            arguments.fs_type,
            arguments.target,
            source=arguments.source,
            attr=attr,
            mkdir=arguments.mkdir,
            loop=loop,
            keep=True,
            options=options,
        )
    except (TypeError, ValueError) as error:
        parser.error(str(error))
    with (
        explained(arguments.target, lambda found: stat.S_ISDIR(found.stx_mode), "no directory"),
        mounting,
    ):
        pass


def _words(text: str) -> list[str]:
    if text.count('"') % 2:
        raise argparse.ArgumentTypeError(f"{text!r} has a double quote that is not closed")
    return re.findall(r'(?:[^,"]|"[^"]*")+', text)


def _sorted(words: list[str]) -> tuple[MountAttr, bool, dict[str, str | bool]]:
    """The attributes of the mount, whether it is of a file, and what the filesystem gets."""
    attr, read_only, loop = MountAttr(0), False, False
    options: dict[str, str | bool] = {}
    for word in words:
        name, equals, value = word.replace('"', "").partition("=")
        if word in _WORDS:
            replaced, attribute = _WORDS[word]
            attr = attr & ~replaced | attribute
        elif word in ("ro", "rw"):
            read_only = word == "ro"
        elif word == "loop":
            loop = True
        elif name in options:
            raise ValueError(f"the option {name} is given twice")
        elif word != "defaults":
            options[name] = value if equals else True
    if read_only:
        attr |= MountAttr.RDONLY
        options["ro"] = True
    return attr, loop, options
