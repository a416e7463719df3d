# SPDX-License-Identifier: LGPL-3.0-or-later
"""Builds ``truenas_os._native._lib`` (cffi, API mode): each topic is one ``.c`` and one ``.cdef.h``."""

from pathlib import Path

from cffi import FFI

TOPICS = ("sys", "files", "filehandle", "mounts")

here = Path(__file__).parent
# setuptools wants the sources relative to the project's root, which is where it runs.
sources = Path("src", "truenas_os", "_native")

ffibuilder = FFI()
for topic in TOPICS:
    ffibuilder.cdef((here / f"{topic}.cdef.h").read_text())
ffibuilder.set_source(
    "truenas_os._native._lib",
    "\n".join(f'#include "{topic}.cdef.h"' for topic in TOPICS),
    sources=[str(sources / f"{topic}.c") for topic in TOPICS],
    depends=[str(path) for path in sources.glob("*.h")],
    include_dirs=[str(sources)],
    extra_compile_args=["-std=gnu11", "-Wall", "-Wextra", "-pthread"],
)
