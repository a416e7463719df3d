# SPDX-License-Identifier: LGPL-3.0-or-later
"""The options that a filesystem can be mounted with, as texts or as keywords."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from ..blocking.flags import MountAttr

default_options: Final[frozenset[str]] = frozenset({"default_permissions"})

# What the filesystem is told.
_FLAGS: Final = ("default_permissions", "allow_other")
_NUMBERS: Final = ("max_read", "blksize")
# What the session sees to.
_SESSION: Final = ("read_ahead_kb", "request_timeout")
_LARGEST: Final = {"request_timeout": (1 << 16) - 1}
# What is so in any case.
_ALWAYS: Final = ("auto_unmount",)
# What the superblock has.
_SUPERBLOCK: Final = ("ro", "sync", "dirsync", "lazytime")
# What the mount has, and what takes it away again.
_ATTRIBUTES: Final = {
    "nosuid": MountAttr.NOSUID,
    "nodev": MountAttr.NODEV,
    "noexec": MountAttr.NOEXEC,
    "nosymfollow": MountAttr.NOSYMFOLLOW,
    "noatime": MountAttr.NOATIME,
    "strictatime": MountAttr.STRICTATIME,
    "nodiratime": MountAttr.NODIRATIME,
}
_OPPOSITES: Final = {
    "suid": "nosuid",
    "dev": "nodev",
    "exec": "noexec",
    "symfollow": "nosymfollow",
    "atime": "noatime",
    "diratime": "nodiratime",
    "rw": "ro",
    "async": "sync",
    "relatime": "strictatime",
}
_TEXTS: Final = ("fsname", "subtype")
KNOWN: Final = tuple(
    sorted(
        (
            *_FLAGS,
            *_NUMBERS,
            *_SESSION,
            *_ALWAYS,
            *_SUPERBLOCK,
            *_ATTRIBUTES,
            *_OPPOSITES,
            *_TEXTS,
            "blkdev",
            "debug",
        )
    )
)


@dataclass
class MountOptions:
    """Options, sorted by who is told them."""

    fsname: str = ""
    """The source that the mount shows."""
    subtype: str = ""
    """What follows ``fuse.`` in its type."""
    settings: dict[str, str | bool] = field(default_factory=dict)
    """What the filesystem and its superblock are configured with."""
    attributes: MountAttr = MountAttr.NOSUID | MountAttr.NODEV
    blkdev: bool = False
    """Whether ``fsname`` is a block device that the filesystem is on."""
    read_ahead_kb: int | None = None
    """How much the kernel reads ahead, in KiB; None for what it does by itself."""
    request_timeout: int = 0
    """Seconds after which a request without a reply ends the connection; 0 for never."""
    debug: bool = False
    """Whether every request is logged."""

    def texts(self) -> list[str]:
        """All of them, as fusermount3 takes them."""
        texts = [key if value is True else f"{key}={value}" for key, value in self.settings.items()]
        texts += [name for name, attr in _ATTRIBUTES.items() if attr in self.attributes]
        texts += ["blkdev"] if self.blkdev else []
        texts += ["suid"] if MountAttr.NOSUID not in self.attributes else []
        texts += ["dev"] if MountAttr.NODEV not in self.attributes else []
        if self.fsname:
            texts.append("fsname=" + _escaped(self.fsname))
        if self.subtype:
            texts.append("subtype=" + _escaped(self.subtype))
        return texts


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace(",", "\\,")


def parse_options(options: Iterable[str] | Mapping[str, object]) -> MountOptions:
    """Sort options: texts such as ``"fsname=hello"``, or keywords and their values.

    A keyword's value is True or False for what is set or not. Raises :exc:`ValueError` for one that
    is not known, and lists those that are; :exc:`TypeError` for a str in place of several.
    """
    parsed = MountOptions()
    for name, value in _pairs(options):
        _set(parsed, name, value)
    return parsed


def _pairs(options: Iterable[str] | Mapping[str, object]) -> Iterable[tuple[str, object]]:
    if isinstance(options, str):
        raise TypeError("options must be a collection of str, not a str")
    if isinstance(options, Mapping):
        yield from options.items()
        return
    for text in options:
        name, equals, value = text.partition("=")
        yield name, value if equals else True


def _set(parsed: MountOptions, name: str, value: object) -> None:
    if name not in KNOWN:
        raise ValueError(f"unknown option {name!r}; those known are: {', '.join(KNOWN)}")
    if name in _TEXTS:
        if not isinstance(value, str) or not value:
            raise ValueError(f"the option {name} needs a text")
        setattr(parsed, name, value)
    elif name in _NUMBERS:
        parsed.settings[name] = str(_number(name, value))
    elif name in _SESSION:
        setattr(parsed, name, _number(name, value))
    elif not isinstance(value, bool):
        raise ValueError(f"the option {name} takes no value but True or False, not {value!r}")
    elif name in _OPPOSITES:
        _switch(parsed, _OPPOSITES[name], not value)
    else:
        _switch(parsed, name, value)


def _number(name: str, value: object) -> int:
    most = _LARGEST.get(name, (1 << 32) - 1)
    try:
        number = -1 if isinstance(value, bool) else int(str(value))
    except ValueError:
        number = -1
    if not 0 <= number <= most:
        raise ValueError(f"the option {name} needs a number of at most {most}, not {value!r}")
    return number


def _switch(parsed: MountOptions, name: str, on: bool) -> None:
    if name in ("blkdev", "debug"):
        setattr(parsed, name, on)
    elif name in _ALWAYS:
        if not on:
            raise ValueError(f"the option {name} cannot be turned off")
    elif name in _ATTRIBUTES:
        parsed.attributes &= ~_ATTRIBUTES[name]
        if on:
            parsed.attributes |= _ATTRIBUTES[name]
    elif on:
        parsed.settings[name] = True
    else:
        parsed.settings.pop(name, None)
