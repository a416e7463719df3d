# SPDX-License-Identifier: LGPL-3.0-or-later
"""What other identities may do: asked of the kernel by a child process that has taken them on."""

import errno
import mmap
import os
import struct
from collections.abc import Iterable, Sequence

from .._native import ffi, lib
from .arguments import StrOrBytesPath, path_bytes
from .children import end_child
from .errors import check
from .results import Access, Credentials

_NGROUPS_MAX = 65536
# What the child replaces by 0 or an errno.
_UNANSWERED = -1
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

    For each identity a child process takes it on and asks :manpage:`faccessat2(2)`; the identity of
    this process and of its threads never changes. So ACLs, read-only mounts and security modules
    count, and so does everything on the way to a component, symlinks included.

    Raises :exc:`FileNotFoundError` (with *must_exist*); :exc:`PermissionError` (EPERM) without
    root; :exc:`OSError`: EAGAIN (no more processes), ECANCELED (the child was killed), and what
    :manpage:`stat(2)` of a component raises. Linux 5.8.
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
    if len(groups) > _NGROUPS_MAX:
        raise ValueError(f"at most {_NGROUPS_MAX} groups, not {len(groups)}")
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
        layout.pack_into(shared, 0, _UNANSWERED, *[0] * len(paths))
        with ffi.from_buffer("int[]", shared) as errors:
            _run(identity, b"".join(os.fsencode(p) + b"\0" for p in paths), mode, errors)
        failed, *answers = layout.unpack(shared)
    if failed == _UNANSWERED:
        check(-errno.ECANCELED, "faccessat2", notes=("the helper process was killed",))
    if failed == errno.ENOSYS:
        check(-failed, "faccessat2")
    if failed:
        code = errno.EPERM if failed == errno.EINVAL else failed
        check(-code, "setresuid", notes=(_NEEDS_ROOT,))
    return answers


def _run(identity: Credentials, paths: bytes, mode: int, errors: "ffi.CData") -> None:
    """Run the child to its end."""
    groups, count = ffi.new("unsigned[]", identity.groups), len(identity.groups)
    pidfd = ffi.new("int *", -1)
    arguments = identity.uid, identity.gid, groups, count, paths, len(errors) - 1, mode, errors
    try:
        while (ret := lib.tos_access_as(*arguments, pidfd)) < 0:
            check(ret, "clone3")
        while (ret := lib.tos_wait_child(pidfd[0])) < 0:
            check(ret, "waitid")
    finally:
        end_child(pidfd[0])
