# SPDX-License-Identifier: LGPL-3.0-or-later
"""The mount API, call by call: filesystem contexts, detached mounts, attaching, attributes."""

import errno
import os
from typing import Any, NoReturn

from typing_extensions import Buffer

from .._native import ffi, lib
from .arguments import FileDescriptorLike, StrOrBytesPath, fileno, path_bytes
from .errors import check
from .fds import Fd
from .flags import (
    AT_FDCWD,
    FSCONFIG_SET_BINARY,
    FSCONFIG_SET_FD,
    FSCONFIG_SET_FLAG,
    FSCONFIG_SET_PATH,
    FSCONFIG_SET_PATH_EMPTY,
    FSCONFIG_SET_STRING,
    MOUNT_ATTR_IDMAP,
    MOVE_MOUNT_F_EMPTY_PATH,
    FsconfigCommand,
)

# The kernel's limits for what fsconfig(2) takes, in bytes.
LONGEST_STRING = 255
_LARGEST_BLOB = 1 << 20

_SETTING = (
    FSCONFIG_SET_FLAG,
    FSCONFIG_SET_STRING,
    FSCONFIG_SET_BINARY,
    FSCONFIG_SET_PATH,
    FSCONFIG_SET_PATH_EMPTY,
    FSCONFIG_SET_FD,
)


def fsopen(*, fs_name: str, flags: int = 0) -> Fd:
    """Open a context in which a new filesystem of the type *fs_name* is configured.

    *flags*: ``FSOPEN_CLOEXEC``, which is always set.

    Raises :exc:`OSError` with the name: ENODEV (the kernel has no such filesystem), EPERM.
    :manpage:`fsopen(2)`. Linux 5.2.
    """
    name = text_bytes("fsopen()", "fs_name", fs_name)
    while (ret := lib.tos_fsopen(name, flags)) < 0:
        _check(ret, "fsopen", None, filename=fs_name)
    return Fd(ret)


def fsconfig(
    *,
    fs_fd: FileDescriptorLike,
    cmd: int,
    key: str | None = None,
    value: str | Buffer | os.PathLike[str] | os.PathLike[bytes] | FileDescriptorLike | None = None,
    aux: int = 0,
) -> None:
    """Set an option of the filesystem context *fs_fd*, or carry it out.

    What *cmd* takes; anything else is a :exc:`TypeError` or a :exc:`ValueError`:

    - ``FSCONFIG_SET_FLAG``: *key*.
    - ``FSCONFIG_SET_STRING``: *key*, and a *value* that is a str, a path or bytes, of 255 bytes at
      most, as has every key.
    - ``FSCONFIG_SET_BINARY``: *key*, and a *value* of 1 byte to 1 MiB; *aux* is its length.
    - ``FSCONFIG_SET_PATH``, ``FSCONFIG_SET_PATH_EMPTY``: *key*, and a *value* that is a path,
      relative to the directory *aux* (0 stands for the current one).
    - ``FSCONFIG_SET_FD``: *key*, and a descriptor, as *value* or in *aux*.
    - ``FSCONFIG_CMD_CREATE``, ``FSCONFIG_CMD_CREATE_EXCL``, ``FSCONFIG_CMD_RECONFIGURE``: nothing.

    Raises :exc:`OSError`, which has as notes and in ``messages`` what the kernel wrote to the
    context's log: EINVAL (an unknown option or a bad value, or *fs_fd* is no context), EBUSY (the
    context is used up, or the filesystem is mounted), EPERM, EOPNOTSUPP, and what the filesystem
    reports. A context in which creating the filesystem has failed takes no further command, nor
    does one in which a signal has interrupted it (EINTR).
    :manpage:`fsconfig(2)`. Linux 5.2; ``FSCONFIG_CMD_CREATE_EXCL`` 6.6.
    """
    try:
        command = FsconfigCommand(cmd)
    except ValueError:
        raise ValueError(f"cmd must be one of FSCONFIG_*, not {cmd!r}") from None
    arguments = fsconfig_arguments(command, key, value, aux)
    fd = fileno(fs_fd)
    about = f"FSCONFIG_{command.name}" if key is None else f"FSCONFIG_{command.name} {key!r}"
    interrupted = False
    while (ret := lib.tos_fsconfig(fd, command, *arguments)) < 0:
        if interrupted and ret == -errno.EBUSY:
            _fail_interrupted(fd, about)
        interrupted = ret == -errno.EINTR and command not in _SETTING
        _check(ret, "fsconfig", fd, notes=(about,))


def _fail_interrupted(context: int, about: str) -> NoReturn:
    error = InterruptedError(errno.EINTR, os.strerror(errno.EINTR))
    error.add_note(about)
    error.add_note("it was interrupted, and the context is used up: it takes no other try")
    _add_log(error, context)
    raise error


def fscontext_messages(fs_fd: FileDescriptorLike) -> tuple[str, ...]:
    """Take the lines that the kernel wrote to the log of the filesystem context *fs_fd*.

    A line begins with its level: ``e`` (error), ``w`` (warning) or ``i`` (information). The kernel
    keeps the last 8.

    Raises :exc:`OSError`: EBADF, EINVAL (*fs_fd* is no filesystem context). Linux 5.2.
    """
    fd = fileno(fs_fd)
    if (ret := lib.tos_fscontext_check(fd)) < 0:
        check(ret, "read", fd, notes=("this is no filesystem context",))
    lines: list[str] = []
    if (ret := _read_messages(fd, lines)) < 0:
        check(ret, "read", fd)
    return tuple(lines)


def fsmount(*, fs_fd: FileDescriptorLike, flags: int = 0, attr_flags: int = 0) -> Fd:
    """Mount the filesystem that was created in the context *fs_fd*, attached nowhere yet.

    *flags*: ``FSMOUNT_CLOEXEC``, which is always set. *attr_flags*: ``MOUNT_ATTR_*``. The result
    can be used as an ``O_PATH`` descriptor of the root; the mount vanishes when it is closed,
    unless :func:`move_mount` has attached it.

    Raises :exc:`OSError`, with the context's log as :func:`fsconfig` does: EINVAL (no filesystem
    was created), EBUSY, EPERM. :manpage:`fsmount(2)`. Linux 5.2.
    """
    fd = fileno(fs_fd)
    while (ret := lib.tos_fsmount(fd, flags, attr_flags)) < 0:
        _check(ret, "fsmount", fd)
    return Fd(ret)


def fspick(dirfd: FileDescriptorLike, path: StrOrBytesPath, flags: int = 0) -> Fd:
    """Open a context in which the filesystem mounted at *path*, relative to *dirfd*, is configured.

    *flags*: ``FSPICK_SYMLINK_NOFOLLOW``, ``FSPICK_NO_AUTOMOUNT``, ``FSPICK_EMPTY_PATH``;
    ``FSPICK_CLOEXEC`` is always set.

    Raises :exc:`OSError`: EINVAL (*path* is not the root of a mount), EOPNOTSUPP (the filesystem
    cannot be reconfigured so), EPERM, ENOENT. :manpage:`fspick(2)`. Linux 5.2.
    """
    raw = path_bytes(path)
    fd = fileno(dirfd)
    while (ret := lib.tos_fspick(fd, raw, flags)) < 0:
        _check(ret, "fspick", None, filename=path, dirfds=(fd,))
    return Fd(ret)


def open_tree(dirfd: FileDescriptorLike, path: StrOrBytesPath, flags: int = 0) -> Fd:
    """Open *path*, relative to *dirfd*, or with ``OPEN_TREE_CLONE`` a copy of the mount there.

    *flags*: ``OPEN_TREE_CLONE`` (a bind mount, attached nowhere yet, that vanishes when the
    descriptor is closed unless :func:`move_mount` has attached it), with it ``AT_RECURSIVE`` (and
    of all mounts below); ``AT_EMPTY_PATH``, ``AT_NO_AUTOMOUNT``, ``AT_SYMLINK_NOFOLLOW``. The
    descriptor is as one opened with ``O_PATH``, and close-on-exec whatever the flags.

    Raises :exc:`OSError`: EINVAL (unknown flags, or an unbindable mount), EPERM, ENOENT, and all
    that :manpage:`open(2)` lists. :manpage:`open_tree(2)`. Linux 5.2.
    """
    raw = path_bytes(path)
    fd = fileno(dirfd)
    while (ret := lib.tos_open_tree(fd, raw, flags)) < 0:
        check(ret, "open_tree", path, dirfds=(fd,))
    return Fd(ret)


def open_tree_attr(
    dirfd: FileDescriptorLike,
    path: StrOrBytesPath,
    flags: int = 0,
    *,
    attr_set: int = 0,
    attr_clr: int = 0,
    propagation: int = 0,
    userns_fd: FileDescriptorLike = -1,
) -> Fd:
    """Do what :func:`open_tree` and then :func:`mount_setattr` do, as one call.

    Without ``OPEN_TREE_CLONE`` in *flags* the mount at *path* itself is changed.

    Raises :exc:`OSError`: what those two raise. Linux 6.15.
    """
    raw = path_bytes(path)
    fd = fileno(dirfd)
    attributes = _attributes(attr_set, attr_clr, propagation, userns_fd)
    while (ret := lib.tos_open_tree_attr(fd, raw, flags, *attributes)) < 0:
        check(ret, "open_tree_attr", path, dirfds=(fd,))
    return Fd(ret)


def move_mount(
    from_dirfd: FileDescriptorLike = AT_FDCWD,
    from_path: StrOrBytesPath | None = None,
    to_dirfd: FileDescriptorLike = AT_FDCWD,
    to_path: StrOrBytesPath | None = None,
    flags: int = 0,
    *,
    from_pathname: StrOrBytesPath | None = None,
    to_pathname: StrOrBytesPath | None = None,
) -> None:
    """Attach a detached mount, or move one from place to place.

    Each path is relative to the descriptor before it; ``from_pathname`` and ``to_pathname`` are
    other names for them. *flags*: ``MOVE_MOUNT_F_EMPTY_PATH`` (*from_dirfd* is the mount, as
    :func:`fsmount` and :func:`open_tree` return it), ``MOVE_MOUNT_T_EMPTY_PATH``,
    ``MOVE_MOUNT_F_SYMLINKS`` and ``MOVE_MOUNT_T_SYMLINKS`` (follow a symlink, which is not the
    default), ``MOVE_MOUNT_BENEATH`` (below the mount that is on top), ``MOVE_MOUNT_SET_GROUP``
    (share the peer group instead of moving), and so on.

    Raises :exc:`TypeError` if the source or the destination is missing or given twice;
    :exc:`OSError` with both names: EINVAL (the source is no mount, or is below a shared one; or
    the destination is not in this mount namespace), ELOOP (the destination is inside the source),
    EBUSY, ENOENT, ENOTDIR, EPERM. :manpage:`move_mount(2)`. Linux 5.2; ``MOVE_MOUNT_SET_GROUP``
    5.15, ``MOVE_MOUNT_BENEATH`` 6.5.
    """
    source = _one_of("from_path", from_path, from_pathname)
    target = _one_of("to_path", to_path, to_pathname)
    from_raw, to_raw = path_bytes(source), path_bytes(target)
    from_fd, to_fd = fileno(from_dirfd), fileno(to_dirfd)
    while (ret := lib.tos_move_mount(from_fd, from_raw, to_fd, to_raw, flags)) < 0:
        check(ret, "move_mount", source, filename2=target, dirfds=(from_fd, to_fd))


def attach(mnt_fd: Fd, target: StrOrBytesPath) -> None:
    """Attach a detached mount as :func:`move_mount` does, and name only the target in an error."""
    raw = path_bytes(target)
    flags = MOVE_MOUNT_F_EMPTY_PATH
    while (ret := lib.tos_move_mount(mnt_fd, b"", AT_FDCWD, raw, flags)) < 0:
        check(ret, "move_mount", target)


def mount_setattr(
    *,
    path: StrOrBytesPath,
    attr_set: int = 0,
    attr_clr: int = 0,
    propagation: int = 0,
    userns_fd: FileDescriptorLike = 0,
    dirfd: FileDescriptorLike = AT_FDCWD,
    flags: int = 0,
) -> None:
    """Change the attributes of the mount whose root is *path*, relative to *dirfd*.

    First *attr_clr* is cleared, then *attr_set* set (``MOUNT_ATTR_*``). The access time settings
    are one value, which must be cleared whole (``MOUNT_ATTR__ATIME``) when it is set.
    ``MOUNT_ATTR_IDMAP``, for a detached mount that is not idmapped yet, takes the user namespace
    *userns_fd*. *propagation*: one of ``MS_SHARED``, ``MS_SLAVE``, ``MS_PRIVATE``,
    ``MS_UNBINDABLE``. *flags*: ``AT_RECURSIVE`` (all mounts below as well, or none if one cannot be
    changed), ``AT_EMPTY_PATH``, ``AT_NO_AUTOMOUNT``, ``AT_SYMLINK_NOFOLLOW``.

    Raises :exc:`OSError`: EBUSY (read-only, while a file is open for writing), EINVAL (attributes
    that exclude each other, *path* is not the root of a mount, or the filesystem cannot be
    idmapped), EPERM (idmapped already, or locked), ENOENT. :manpage:`mount_setattr(2)`.
    Linux 5.12.
    """
    raw = path_bytes(path)
    fd = fileno(dirfd)
    attributes = _attributes(attr_set, attr_clr, propagation, userns_fd)
    while (ret := lib.tos_mount_setattr(fd, raw, flags, *attributes)) < 0:
        check(ret, "mount_setattr", path, dirfds=(fd,))


def umount2(target: StrOrBytesPath, flags: int = 0) -> None:
    """Unmount what is on top at *target*.

    *flags*: ``MNT_DETACH`` (out of sight at once, with all mounts below; unmounted when nothing
    uses it any more), ``MNT_FORCE`` (let a network filesystem give up its requests),
    ``MNT_EXPIRE`` (EAGAIN, and unmount it the next time if nothing has used it since),
    ``UMOUNT_NOFOLLOW`` (no symlink as the last component).

    Raises :exc:`OSError`: EBUSY (in use, or mounts are below it), EINVAL (no mount point, or a
    mount that its user namespace has locked), EAGAIN, ENOENT, EPERM. :manpage:`umount2(2)`.
    """
    raw = path_bytes(target)
    while (ret := lib.tos_umount2(raw, flags)) < 0:
        check(ret, "umount2", target)


def fsconfig_arguments(
    command: FsconfigCommand, key: Any, value: Any, aux: Any = 0
) -> tuple[Any, Any, int]:
    """What fsconfig(2) gets as key, value and aux. TypeError or ValueError for what it refuses."""
    name = f"FSCONFIG_{command.name}"
    if not isinstance(aux, int):
        raise TypeError(f"{name}: aux must be an int, not {type(aux).__name__}")
    aux = fileno(aux)
    if command not in _SETTING:
        _refuse(name, key=key, value=value, aux=aux)
        return ffi.NULL, ffi.NULL, 0
    if key is None:
        raise TypeError(f"{name} needs a key")
    raw_key = text_bytes(name, "key", key)
    if command == FSCONFIG_SET_FLAG:
        _refuse(name, value=value, aux=aux)
        return raw_key, ffi.NULL, 0
    if command == FSCONFIG_SET_FD:
        return raw_key, ffi.NULL, _descriptor(name, value, aux)
    if value is None:
        raise TypeError(f"{name} needs a value")
    if command == FSCONFIG_SET_BINARY:
        return raw_key, *_blob(name, value, aux)
    if command == FSCONFIG_SET_STRING:
        _refuse(name, aux=aux)
        return raw_key, text_bytes(name, "value", value), 0
    if not isinstance(value, (str, bytes, os.PathLike)):
        raise TypeError(f"{name}: value must be a path, not {type(value).__name__}")
    if b"\0" in (path := os.fsencode(value)):
        raise ValueError(f"{name}: embedded null byte in value")
    return raw_key, path, aux or AT_FDCWD


def _refuse(name: str, **arguments: Any) -> None:
    for argument, given in arguments.items():
        if given is not None and (argument != "aux" or given != 0):
            raise TypeError(f"{name} takes no {argument}")


def text_bytes(name: str, argument: str, value: Any) -> bytes:
    """A text that the kernel takes. TypeError, or ValueError for one that it does not take."""
    if not isinstance(value, (str, bytes, os.PathLike)):
        raise TypeError(
            f"{name}: {argument} must be str, bytes or a path, not {type(value).__name__}"
        )
    raw = os.fsencode(value)
    if b"\0" in raw:
        raise ValueError(f"{name}: embedded null byte in {argument}")
    if len(raw) > LONGEST_STRING:
        raise ValueError(
            f"{name}: {argument} is {len(raw)} bytes long, the kernel takes {LONGEST_STRING}"
        )
    return raw


def _blob(name: str, value: Any, aux: int) -> tuple[Any, int]:
    if isinstance(value, str):
        raise TypeError(f"{name}: value must be bytes, not str")
    try:
        raw = bytes(memoryview(value))
    except TypeError:
        kind = type(value).__name__
        raise TypeError(f"{name}: value must be bytes, not {kind}") from None
    if not 0 < len(raw) <= _LARGEST_BLOB:
        raise ValueError(f"{name}: value must have 1 to {_LARGEST_BLOB} bytes, not {len(raw)}")
    if aux not in (0, len(raw)):
        raise ValueError(f"{name}: aux is {aux}, but value has {len(raw)} bytes")
    return ffi.from_buffer(raw), len(raw)


def _descriptor(name: str, value: Any, aux: int) -> int:
    if value is None:
        if not aux:
            raise TypeError(f"{name} needs a descriptor as value, or one other than 0 in aux")
        return aux
    if aux:
        raise TypeError(f"{name} takes a descriptor as value or in aux, not both")
    if not isinstance(value, int) and not hasattr(value, "fileno"):
        raise TypeError(f"{name}: value must be a descriptor, not {type(value).__name__}")
    return fileno(value)


def _attributes(
    attr_set: int, attr_clr: int, propagation: int, userns_fd: FileDescriptorLike
) -> tuple[int, int, int, int]:
    namespace = 0
    if (attr_set | attr_clr) & MOUNT_ATTR_IDMAP:
        namespace = fileno(userns_fd)
        if namespace < 0:
            raise ValueError("MOUNT_ATTR_IDMAP needs a userns_fd")
    return attr_set, attr_clr, propagation, namespace


def _one_of(
    name: str, path: StrOrBytesPath | None, pathname: StrOrBytesPath | None
) -> StrOrBytesPath:
    if path is not None and pathname is not None:
        raise TypeError(f"move_mount() takes {name} or {name}name, not both")
    given = pathname if path is None else path
    if given is None:
        raise TypeError(f"move_mount() needs {name}")
    return given


def _check(ret: int, call: str, context: int | None, **about: Any) -> None:
    """As :func:`check`, and the error takes the log of the filesystem context with it."""
    try:
        check(ret, call, **about)
    except OSError as error:
        _add_log(error, context)
        raise


def _add_log(error: OSError, context: int | None) -> None:
    lines: list[str] = []
    # Only a context's log is read: anything else that was passed by mistake is left alone.
    if context is not None and lib.tos_fscontext_check(context) == 0:
        _read_messages(context, lines)  # if that fails, so be it: there is an error to be told
    error.messages = tuple(lines)  # type: ignore[attr-defined]
    for line in lines:
        error.add_note(line[2:])


def _read_messages(fs_fd: int, lines: list[str]) -> int:
    """Take the lines of the log: 0, or -errno, and *lines* has those before."""
    size = 4096
    line = ffi.new("char[]", size)
    while (ret := lib.tos_fscontext_read(fs_fd, line, size)) != -errno.ENODATA:
        if ret >= 0:
            lines.append(os.fsdecode(ffi.unpack(line, ret)).rstrip("\n"))
        elif ret == -errno.EMSGSIZE:
            size *= 2
            line = ffi.new("char[]", size)
        elif ret != -errno.EINTR:
            return int(ret)
    return 0
