# SPDX-License-Identifier: LGPL-3.0-or-later
"""The example filesystems do what POSIX and Linux promise, as a native tmpfs does."""

import posix_programs
import pytest
from filesystems import IS_ROOT
from served import SYSTEMS, serving

# What cannot be had where the kernel gathers writes: it reads the rest of a page that is written in
# part, keeps the times itself, by another clock, and what it has written it does not ask about.
_WITH_WRITEBACK = {
    "writing_touches_a_file",
    "reading_after_a_change_touches_the_access_time",
    "a_file_has_holes",
}


@pytest.fixture(scope="module", params=SYSTEMS)
def served(request, tmp_path_factory):
    with serving(request.param, tmp_path_factory.mktemp("served")) as served:
        yield served


@pytest.mark.parametrize("name", posix_programs.PROGRAMS)
def test_posix(served, name):
    if posix_programs.PROGRAMS[name].needs_root and not IS_ROOT:
        pytest.skip("needs the ids of other users")
    if served.name == "writeback" and name in _WITH_WRITEBACK:
        pytest.skip("the kernel's cache of writes is in the way")
    served.run_posix(name)
