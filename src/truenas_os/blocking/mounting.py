# SPDX-License-Identifier: LGPL-3.0-or-later
"""Mounts that clean up after themselves, and changes to what is mounted."""

import errno
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from types import TracebackType
from typing import Any, Final, Generic, NamedTuple, TypeAlias, TypeVar

from .._native import ffi
from .arguments import (
    FileDescriptorLike,
    HasFileno,
    StrOrBytesPath,
    fileno,
    path_bytes,
    unfollowed,
)
from .fds import Fd
from .files import openat2, statx
from .flags import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_RECURSIVE,
    AT_SYMLINK_NOFOLLOW,
    FSCONFIG_CMD_CREATE,
    FSCONFIG_CMD_RECONFIGURE,
    FSCONFIG_SET_FD,
    FSCONFIG_SET_FLAG,
    FSCONFIG_SET_PATH,
    FSCONFIG_SET_STRING,
    FSPICK_NO_AUTOMOUNT,
    FSPICK_SYMLINK_NOFOLLOW,
    MNT_DETACH,
    MOUNT_ATTR__ATIME,
    MOUNT_ATTR_IDMAP,
    MOUNT_ATTR_RDONLY,
    MS_PRIVATE,
    MS_SHARED,
    MS_SLAVE,
    MS_UNBINDABLE,
    OPEN_TREE_CLONE,
    STATX_MNT_ID_UNIQUE,
    FsconfigCommand,
    MountAttr,
)
from .loop import loop_device
from .mountapi import (
    LONGEST_STRING,
    attach,
    fsconfig,
    fsconfig_arguments,
    fsmount,
    fsopen,
    fspick,
    mount_setattr,
    open_tree,
    text_bytes,
    umount2,
)
from .mounts import listmount
from .unmounting import unmount_patiently
from .userns import IdMap, checked_map, idmap_userns

AnyFd = TypeVar("AnyFd", bound=Fd)
Option: TypeAlias = bool | int | StrOrBytesPath | HasFileno
Idmap: TypeAlias = FileDescriptorLike | tuple[IdMap, IdMap]
_Setting: TypeAlias = tuple[FsconfigCommand, str, Any]

# What mount(8) takes among the options of the filesystem, though it belongs to the mount.
ATTRIBUTES: Final = {
    "nosuid": MountAttr.NOSUID,
    "nodev": MountAttr.NODEV,
    "noexec": MountAttr.NOEXEC,
    "nosymfollow": MountAttr.NOSYMFOLLOW,
    "noatime": MountAttr.NOATIME,
    "strictatime": MountAttr.STRICTATIME,
    "relatime": MountAttr.RELATIME,
    "nodiratime": MountAttr.NODIRATIME,
}
_PROPAGATIONS: Final = (0, MS_SHARED, MS_SLAVE, MS_PRIVATE, MS_UNBINDABLE)


class Mount(NamedTuple, Generic[AnyFd]):
    """A mount that a block holds."""

    mnt_id: int
    """The unique id."""
    target: str
    """Where it was mounted."""
    fd: AnyFd
    """The root of the mount, as opened with ``O_PATH``; closed before the block unmounts it.

    To close it earlier, use its own ``close`` or ``aclose``, or the block closes the number again.
    """


class Mounting(AbstractContextManager[Mount[Fd]]):
    """A mount for the time of a block."""

    def __init__(
        self,
        make: Callable[[], Fd],
        target: StrOrBytesPath,
        *,
        about: str,
        mkdir: bool = False,
        keep: bool = False,
        propagation: int = 0,
        recursive: bool = False,
    ) -> None:
        path_bytes(target)
        if propagation not in _PROPAGATIONS:
            raise ValueError(
                "propagation must be MS_SHARED, MS_SLAVE, MS_PRIVATE or MS_UNBINDABLE, "
                f"not {propagation!r}"
            )
        self._make = make
        self._target = os.fsdecode(target)
        self._about = about
        self._mkdir = mkdir
        self._keep = keep
        self._propagation = propagation
        self._recursive = recursive
        self._undo: ExitStack | None = None
        self._pid = 0
        self.fd: Fd | None = None

    def __enter__(self) -> Mount[Fd]:
        if self._undo is not None:
            raise RuntimeError("this block has begun already")
        self._pid = os.getpid()
        undo = self._undo = ExitStack()
        mnt_ids: list[int] = []
        try:
            with self._telling():
                if self._mkdir:
                    _make_directories(self._target, undo)
                undo.callback(self._unmount, mnt_ids)
                self.fd = fd = self._make()
                mnt_ids.append(statx(fd, "", AT_EMPTY_PATH, STATX_MNT_ID_UNIQUE).stx_mnt_id)
                self._attach(fd, mnt_ids)
            return Mount(mnt_ids[0], self._target, fd)
        except BaseException:
            self.undo()
            raise

    def _attach(self, fd: Fd, mnt_ids: list[int]) -> None:
        try:
            attach(fd, unfollowed(self._target))
            if self._recursive:
                mnt_ids += listmount(mnt_ids[0])
        except BaseException:
            if self._recursive:
                with suppress(OSError):  # it was not attached; else, nobody uses any of them yet
                    umount2(f"/proc/self/fd/{fd}", MNT_DETACH)
            raise
        # Not earlier: below a shared mount, what is attached becomes shared.
        _set_propagation(fd, self._propagation, self._recursive)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            _complete(error, self._target)
            error.add_note(f"{self._about} at {self._target!r}")
            raise

    def _unmount(self, mnt_ids: list[int]) -> None:
        try:
            self._close()
        finally:
            unmount_patiently(mnt_ids)

    def _close(self) -> None:
        fd, self.fd = self.fd, None
        if fd is not None:
            fd.close()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        undo, self._undo = self._undo, None
        # In a forked child the mount is the parent's.
        if self._keep or os.getpid() != self._pid or undo is None:
            self._close()
        else:
            undo.__exit__(exc_type, exc, traceback)

    def undo(self) -> None:
        undo, self._undo = self._undo, None
        if undo is not None:
            undo.close()


def mounted(
    fs_type: str,
    target: StrOrBytesPath,
    *,
    source: StrOrBytesPath | None = None,
    attr: int = 0,
    mkdir: bool = False,
    loop: bool = False,
    keep: bool = False,
    options: Mapping[str, Option] | None = None,
    **fs_options: Option,
) -> Mounting:
    """A new mount of a filesystem at *target*, for the time of a ``with`` block.

    *source*: the device or whatever the filesystem wants; with *loop*, a file that holds a
    filesystem. *attr*: ``MOUNT_ATTR_*``. *mkdir*: make the directories that lack, and remove them
    afterwards. *keep*: stay mounted after the block. The filesystem's options are keywords, or in
    *options* if their names are no Python names: True sets a flag, str, bytes and paths are texts
    of 255 bytes at most (a longer path is passed as a path, which few options take), ints are
    numbers, and what has a ``fileno()`` is passed as a descriptor.

    The block gets a :class:`Mount`. At its end, the mount with this id is unmounted wherever it now
    is, and nothing that was put on top of it or in its place; if that fails for half a second, say
    with EBUSY because the block has left a file open, the block raises the error.

    Beginning the block raises :exc:`OSError` with the kernel's own words, if there are any, as
    notes and in ``messages``: what :func:`fsopen`, :func:`fsconfig`, :func:`fsmount` and
    :func:`move_mount` raise. A symlink as *target* is not followed (EINVAL). Linux 6.8.
    """
    text_bytes("mounted()", "fs_type", fs_type)
    settings = _settings(options, fs_options)
    origin = None if source is None else os.fsdecode(source)
    if origin is not None and "source" in (options or {}):
        raise TypeError("given twice, as a keyword and in options: source")
    if origin is not None and not loop:
        settings.insert(0, _setting("source", source))
    elif loop and origin is None:
        raise ValueError("loop needs a source")
    _check_fits("unsigned", attr)
    if attr & MOUNT_ATTR_IDMAP:
        raise ValueError("a new mount cannot be idmapped: bind() makes one that is")
    ro = _setting("ro", True)
    wants_ro = bool(attr & MOUNT_ATTR_RDONLY) or ro in settings

    def make() -> Fd:
        if not loop or origin is None:
            return _new_mount(fs_type, settings, attr)
        # As mount(8) does: what cannot be written to is mounted read-only.
        read_only = wants_ro or not os.access(origin, os.W_OK, effective_ids=True)
        with loop_device(origin, read_only=read_only) as device:
            own = [_setting("source", device.path), *([ro] if read_only else ())]
            # The mount holds the device from then on.
            return _new_mount(fs_type, own + [each for each in settings if each != ro], attr)

    about = f"mounting {fs_type}" + (f" from {origin}" if origin else "")
    return Mounting(make, target, about=about, mkdir=mkdir, keep=keep)


def bind(
    source: StrOrBytesPath | FileDescriptorLike,
    target: StrOrBytesPath,
    *,
    recursive: bool = False,
    attr: int = 0,
    propagation: int = 0,
    idmap: Idmap | None = None,
    keep: bool = False,
) -> Mounting:
    """A bind mount of *source*, a path or a descriptor, at *target*, for a ``with`` block.

    *recursive*: with the mounts below it; *attr* (``MOUNT_ATTR_*``, set in addition to those of the
    source), *propagation* (``MS_PRIVATE``, ``MS_SLAVE``, ``MS_SHARED``, ``MS_UNBINDABLE``) and
    *idmap* are then for all of them. *idmap*: the descriptor of a user namespace, or a pair of maps
    as :func:`idmap_userns` takes them. *keep*: stay mounted after the block.

    What is mounted below a shared *source* meanwhile comes up here as well, and keeps this mount
    busy at the end; with ``MS_PRIVATE`` it does not. The reverse is true only without *recursive*:
    else the end would unmount what is below the source, too.

    The block gets a :class:`Mount`, which it unmounts as :func:`mounted` does. Those that a user
    namespace has locked are detached together; what comes on top in that very moment goes in their
    place, which is EBUSY. Raises what :func:`open_tree`, :func:`idmap_userns`,
    :func:`mount_setattr` and :func:`move_mount` raise. Linux 6.8.
    """
    _check_fits("uint64_t", attr)
    if attr & MOUNT_ATTR_IDMAP:
        raise ValueError("MOUNT_ATTR_IDMAP is set by idmap")
    if isinstance(idmap, tuple):
        for side, mappings in zip(("uid_map", "gid_map"), idmap, strict=True):
            checked_map(side, mappings)
    elif idmap is not None:
        fileno(idmap)
    name = os.fsdecode(source) if isinstance(source, (str, bytes, os.PathLike)) else fileno(source)

    def make() -> Fd:
        tree = _clone(source, recursive)
        try:
            if isinstance(idmap, tuple):
                with idmap_userns(*idmap) as userns:
                    _set_attributes(tree, attr, userns, recursive)
            else:
                _set_attributes(tree, attr, idmap, recursive)
            if recursive:
                # Were they peers, to unmount what is below this would unmount what is below that.
                _set_propagation(tree, MS_SLAVE, recursive)
        except BaseException:
            tree.close()
            raise
        return tree

    about = f"binding {name!r}"
    return Mounting(
        make, target, about=about, keep=keep, propagation=propagation, recursive=recursive
    )


def overlay(
    target: StrOrBytesPath,
    lower: Sequence[StrOrBytesPath | FileDescriptorLike],
    *,
    upper: StrOrBytesPath | FileDescriptorLike | None = None,
    work: StrOrBytesPath | FileDescriptorLike | None = None,
    attr: int = 0,
    keep: bool = False,
    options: Mapping[str, Option] | None = None,
    **fs_options: Option,
) -> Mounting:
    """An overlay of directories at *target*, for the time of a ``with`` block.

    *lower*: the read-only layers, the uppermost first; *upper*: the layer that is written to, with
    *work*, an empty directory on the same filesystem. Each is a path, of any length and with any
    characters in it, or a descriptor. The rest is as for :func:`mounted`.

    The kernel takes descriptors for layers from Linux 6.13 on; before that, paths of 255 bytes at
    most.
    """
    if isinstance(lower, (str, bytes, os.PathLike)):
        raise TypeError("lower must be a sequence of layers, not a path")
    if (upper is None) != (work is None):
        raise ValueError("upper and work need each other")
    if len(lower) < (2 if upper is None else 1):
        raise ValueError("an overlay needs an upper and a lower layer, or two lower ones")
    _check_fits("unsigned", attr)
    settings = _settings(options, fs_options)
    layers = [("lowerdir+", layer) for layer in lower]
    if upper is not None and work is not None:
        layers += [("upperdir", upper), ("workdir", work)]
    for _, layer in layers:
        if not isinstance(layer, (str, bytes, os.PathLike)):
            fileno(layer)

    def make() -> Fd:
        return _new_mount("overlay", settings, attr, layers)

    return Mounting(make, target, about="mounting an overlay", keep=keep)


def remount(
    target: StrOrBytesPath,
    /,
    *,
    options: Mapping[str, Option] | None = None,
    **fs_options: Option,
) -> None:
    """Change the options of the filesystem that is mounted at *target*.

    They are given as for :func:`mounted`: ``ro=True``, ``size="2G"``. What belongs to the mount and
    not to the filesystem, :func:`set_attr` changes. A symlink at *target* is not followed.

    Raises :exc:`OSError` with ``messages``, as :func:`fspick` and :func:`fsconfig` do. Linux 5.2.
    """
    settings = _settings(options, fs_options)
    try:
        flags = FSPICK_SYMLINK_NOFOLLOW | FSPICK_NO_AUTOMOUNT
        with fspick(AT_FDCWD, unfollowed(target), flags) as context:
            for setting in settings:
                _configure(context, setting)
            fsconfig(fs_fd=context, cmd=FSCONFIG_CMD_RECONFIGURE)
    except OSError as error:
        _complete(error, os.fspath(target))
        raise


def set_attr(
    target: StrOrBytesPath | FileDescriptorLike,
    attr: int = 0,
    *,
    clear: int = 0,
    propagation: int = 0,
    recursive: bool = False,
) -> None:
    """Set the attributes *attr* (``MOUNT_ATTR_*``) of the mount at *target* and clear others.

    *target* is a path, of which no symlink at the end is followed, or a descriptor of the mount's
    root. An access time setting replaces the one before it; ``MOUNT_ATTR_RELATIME``, which is 0, is
    what ``clear=MOUNT_ATTR__ATIME`` leaves. *propagation*: one of ``MS_SHARED``, ``MS_SLAVE``,
    ``MS_PRIVATE``, ``MS_UNBINDABLE``. *recursive*: of all mounts below as well, or none.

    Raises :exc:`OSError` as :func:`mount_setattr` does. Linux 5.12.
    """
    if (attr | clear) & MOUNT_ATTR_IDMAP:
        raise ValueError("an attached mount cannot be idmapped: bind() makes one that is")
    dirfd: FileDescriptorLike
    path: StrOrBytesPath
    if isinstance(target, (str, bytes, os.PathLike)):
        dirfd, path, flags = AT_FDCWD, unfollowed(target), AT_SYMLINK_NOFOLLOW
    else:
        dirfd, path, flags = target, "", AT_EMPTY_PATH
    mount_setattr(
        dirfd=dirfd,
        path=path,
        attr_set=attr,
        attr_clr=clear | _replaced(attr | clear),
        propagation=propagation,
        flags=flags | (AT_RECURSIVE if recursive else 0),
    )


def _check_fits(kind: str, attr: int) -> None:
    """Raise :exc:`OverflowError` or :exc:`TypeError` as the system call would."""
    ffi.new(f"{kind} *", attr)


def _replaced(attr: int) -> int:
    """What must be cleared for *attr* to be set."""
    return MOUNT_ATTR__ATIME if attr & MOUNT_ATTR__ATIME else 0


def _complete(error: OSError, target: str | bytes) -> None:
    """Give an error what all errors of mounting have: a file's name, and the kernel's messages."""
    # A descriptor that the caller has not seen names nothing.
    if not isinstance(error.filename, (str, bytes)):
        error.filename = target
    if not hasattr(error, "messages"):
        error.messages = ()  # type: ignore[attr-defined]


def _settings(
    options: Mapping[str, Option] | None, fs_options: Mapping[str, Option]
) -> list[_Setting]:
    given = dict(options or {})
    if twice := given.keys() & fs_options.keys():
        raise TypeError(f"given twice, as a keyword and in options: {', '.join(sorted(twice))}")
    return [_setting(key, value) for key, value in (given | dict(fs_options)).items()]


def _setting(key: str, value: Any) -> _Setting:
    """The command that sets an option. TypeError or ValueError for what none does."""
    setting: _Setting
    if value is True:
        setting = FSCONFIG_SET_FLAG, key, None
    elif value is False:
        raise ValueError(f"{key}: leave out an option that is not to be set, or name its opposite")
    elif hasattr(value, "fileno"):
        setting = FSCONFIG_SET_FD, key, fileno(value)
    elif isinstance(value, int):
        setting = FSCONFIG_SET_STRING, key, str(int(value))
    elif isinstance(value, os.PathLike) and len(path_bytes(value)) > LONGEST_STRING:
        setting = FSCONFIG_SET_PATH, key, value
    else:
        setting = FSCONFIG_SET_STRING, key, value
    fsconfig_arguments(*setting)
    return setting


def _configure(context: Fd, setting: _Setting) -> None:
    command, key, value = setting
    try:
        fsconfig(fs_fd=context, cmd=command, key=key, value=value)
    except OSError as error:
        if key in ATTRIBUTES:
            attribute = f"MOUNT_ATTR_{ATTRIBUTES[key].name}"
            error.add_note(f"{key} is no option of the filesystem: see {attribute}")
        raise


def _new_mount(
    fs_type: str,
    settings: Sequence[_Setting],
    attr: int,
    layers: Sequence[tuple[str, StrOrBytesPath | FileDescriptorLike]] = (),
) -> Fd:
    with fsopen(fs_name=fs_type) as context:
        for key, layer in layers:
            _add_layer(context, key, layer)
        for setting in settings:
            _configure(context, setting)
        fsconfig(fs_fd=context, cmd=FSCONFIG_CMD_CREATE)
        return fsmount(fs_fd=context, attr_flags=attr)


def _add_layer(context: Fd, key: str, layer: StrOrBytesPath | FileDescriptorLike) -> None:
    if not isinstance(layer, (str, bytes, os.PathLike)):
        return fsconfig(fs_fd=context, cmd=FSCONFIG_SET_FD, key=key, value=layer)
    with openat2(AT_FDCWD, layer, os.O_PATH | os.O_DIRECTORY) as fd:
        try:
            return fsconfig(fs_fd=context, cmd=FSCONFIG_SET_FD, key=key, value=fd)
        except OSError as error:
            text = os.fsencode(layer)
            if key != "lowerdir+":
                text = text.replace(b"\\", b"\\\\")  # the kernel takes one of two away
            if error.errno != errno.EINVAL or len(text) > LONGEST_STRING:
                raise
    # Before Linux 6.13.
    return fsconfig(fs_fd=context, cmd=FSCONFIG_SET_STRING, key=key, value=text)


def _clone(source: StrOrBytesPath | FileDescriptorLike, recursive: bool) -> Fd:
    flags = OPEN_TREE_CLONE | (AT_RECURSIVE if recursive else 0)
    if isinstance(source, (str, bytes, os.PathLike)):
        return open_tree(AT_FDCWD, source, flags)
    return open_tree(source, "", flags | AT_EMPTY_PATH)


def _set_attributes(
    tree: Fd, attr: int, userns: FileDescriptorLike | None, recursive: bool
) -> None:
    if userns is None:
        if attr:
            set_attr(tree, attr, recursive=recursive)
        return
    try:
        mount_setattr(
            dirfd=tree,
            path="",
            attr_set=attr | MOUNT_ATTR_IDMAP,
            attr_clr=_replaced(attr),
            userns_fd=userns,
            flags=AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0),
        )
    except OSError as error:
        if error.errno == errno.EINVAL:
            error.add_note("some filesystems, as overlay and proc, cannot be idmapped")
        raise


def _set_propagation(tree: Fd, propagation: int, recursive: bool) -> None:
    if propagation:
        set_attr(tree, propagation=propagation, recursive=recursive)


def _make_directories(path: str, undo: ExitStack) -> None:
    """Make the directories that lack, and have *undo* remove them if they are empty."""
    if not os.path.isabs(path):
        path = os.path.join(os.getcwd(), path)
    missing = []
    while not os.path.lexists(path):
        missing.append(path)
        path = os.path.dirname(path)
    for each in reversed(missing):
        try:
            os.mkdir(each)
        except FileExistsError:
            continue  # somebody else was quicker
        parent, name = os.path.split(each)
        made = os.lstat(each)
        undo.callback(_remove_directory, parent, name, os.stat(parent), made)


def _remove_directory(
    parent: str, name: str, its_parent: os.stat_result, made: os.stat_result
) -> None:
    """Remove a directory that was made, and no other that has come in its place."""
    with suppress(OSError), Fd(os.open(parent, os.O_PATH | os.O_DIRECTORY)) as directory:
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
        same_parent = os.path.samestat(os.stat(directory), its_parent)
        if same_parent and os.path.samestat(found, made):
            os.rmdir(name, dir_fd=directory)  # which fails if others use it by now
