# SPDX-License-Identifier: LGPL-3.0-or-later
"""What CI does, by name: ``nox`` runs lint and test, ``nox -s NAME`` one of them.

The scripts make the environments that they need, and use the ``python3`` that is first in PATH, or
what PYTHON names.
"""

from pathlib import Path

import nox

nox.options.sessions = ["lint", "test"]


@nox.session(python=False)
def lint(session: nox.Session) -> None:
    """Style and types."""
    session.run("scripts/lint", *session.posargs)


@nox.session(python=False)
def test(session: nox.Session) -> None:
    """The tests, against a wheel made of the source distribution; arguments go to pytest."""
    session.run("scripts/test", *session.posargs)


@nox.session(python=False)
def docs(session: nox.Session) -> None:
    """The site, into build/docs or the directory given."""
    session.run("scripts/docs", *session.posargs)


@nox.session(python=False)
def sanitize(session: nox.Session) -> None:
    """ThreadSanitizer and AddressSanitizer; arguments go to pytest."""
    session.run("scripts/sanitize", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """The benchmarks, or those that are named: ``nox -s bench -- calls walking``."""
    session.install("--group", "benchmark", ".")
    every = [path.stem for path in Path("benchmarks").glob("*.py")]
    for name in session.posargs or sorted({*every} - {"ratios", "plots"}):
        session.run("python", f"benchmarks/{name}.py")
