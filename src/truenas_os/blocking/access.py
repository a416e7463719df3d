# SPDX-License-Identifier: LGPL-3.0-or-later
"""What other identities may do: asked of the kernel by a child process that has taken them on."""

import errno
import mmap
import os
import signal
import struct
from collections.abc import Iterable, Sequence

from .._native import ffi, lib
from .arguments import StrOrBytesPath, path_bytes
from .errors import check
from .results import Access, Credentials

_NEEDS_ROOT = (
    "taking on the identity of others needs root (CAP_SETUID and CAP_SETGID), and ids that the "
    "user namespace has"
)


def check_access(
    creds: Iterable[Credentials | tuple[int, int, Sequence[int]]],
    components: Iterable[StrOrBytesPath],
    mode: int = os.X_OK,
    must_exist: bool = False,
) -> list[Access]:
    """Ask the kernel which identities may access each component of a path.

    *creds* are identities: user, group and supplementary groups, by number. *components* are those
    of a path, as :attr:`pathlib.PurePath.parts` has them; each is joined to what comes before it,
    so absolute paths can be given one by one as well. *mode* is ``os.R_OK``, ``os.W_OK`` and
    ``os.X_OK`` (to traverse a directory, to execute a file), or ``os.F_OK``. The result has an
    entry for each identity and component, the first identity's first. What does not exist is left
    out, or with *must_exist* an error.

    For each identity a child process takes it on and asks :manpage:`access(2)`; the identity of
    this process and of its threads never changes. So ACLs, read-only mounts and security modules
    count, and so does everything on the way to a component, symlinks included.

    Raises :exc:`FileNotFoundError` (with *must_exist*); :exc:`PermissionError` (EPERM) without
    root; :exc:`OSError`: EAGAIN (no more processes), ECANCELED (the child was killed), and what
    :manpage:`stat(2)` of a component raises.
    """
    identities = [_checked(each) for each in creds]
    if mode & ~(os.R_OK | os.W_OK | os.X_OK):
        raise ValueError(f"mode must be made of R_OK, W_OK and X_OK, not {mode:#x}")
    paths = [os.fsdecode(path) for path in _existing(_joined(components), must_exist)]
    return [
        Access(identity, path, error)
        for identity in identities
        for path, error in zip(paths, _ask(identity, paths, mode), strict=True)
    ]


def _checked(creds: Credentials | tuple[int, int, Sequence[int]]) -> Credentials:
    uid, gid, groups = creds
    for number in (uid, gid, *groups):
        if not 0 <= number < 0xFFFFFFFF:
            raise ValueError(f"a user or group id is between 0 and 4294967294, not {number}")
    return Credentials(uid, gid, tuple(groups))


def _joined(components: Iterable[StrOrBytesPath]) -> list[bytes]:
    if isinstance(components, (str, bytes, os.PathLike)):
        raise TypeError("components must be the parts of a path, not the path itself")
    paths: list[bytes] = []
    for component in components:
        raw = path_bytes(component)
        paths.append(os.path.join(paths[-1], raw) if paths else raw)
    return paths


def _existing(paths: list[bytes], must_exist: bool) -> list[bytes]:
    existing = []
    for path in paths:
        try:
            os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            if must_exist:
                raise
        else:
            existing.append(path)
    return existing


def _ask(identity: Credentials, paths: list[str], mode: int) -> list[int]:
    """0 or an errno for each path."""
    layout = struct.Struct(f"={1 + len(paths)}i")
    with mmap.mmap(-1, layout.size) as shared:
        with ffi.from_buffer("int[]", shared) as errors:
            status = _run(identity, b"".join(os.fsencode(p) + b"\0" for p in paths), mode, errors)
        changed, *answers = layout.unpack(shared)
    if status:
        note = f"the helper process was killed by signal {os.WTERMSIG(status)}"
        check(-errno.ECANCELED, "access", notes=(note,))
    if changed:
        code = errno.EPERM if changed == errno.EINVAL else changed
        check(-code, "setresuid", notes=(_NEEDS_ROOT,))
    return answers


def _run(identity: Credentials, paths: bytes, mode: int, errors: "ffi.CData") -> int:
    """Run the child to its end: its wait status."""
    groups, count = ffi.new("unsigned[]", identity.groups), len(identity.groups)
    arguments = identity.uid, identity.gid, groups, count, paths, len(errors) - 1, mode, errors
    while (pid := lib.tos_access_as(*arguments)) < 0:
        check(pid, "clone")
    try:
        while (status := lib.tos_wait_for(pid)) < 0:
            check(status, "wait4")
    except BaseException:  # a signal's handler raised it
        os.kill(pid, signal.SIGKILL)
        while lib.tos_wait_for(pid) == -errno.EINTR:
            pass
        raise
    return int(status)
