# SPDX-License-Identifier: LGPL-3.0-or-later
"""Starting the programs in examples/."""

import contextlib
import subprocess
import sys
import threading
from pathlib import Path

from command_line import environment
from stuck import AMPLE

EXAMPLES = Path(__file__).parents[1] / "examples"


def command(name, *arguments):
    # Ctrl-C may be ignored here, as in a job in the background.
    return ["env", "--default-signal=INT", sys.executable, EXAMPLES / f"{name}.py", *arguments]


def started(name, *arguments, **options):
    """The program; who waits for it for too long finds it killed."""
    return limited(command(name, *arguments), env=environment(), **options)


@contextlib.contextmanager
def limited(arguments, **options):
    """A process that is killed after a while, and ended at the end."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True} | options
    with subprocess.Popen(arguments, **options) as process:
        limit = threading.Timer(AMPLE, process.kill)
        limit.start()
        try:
            yield process
        finally:
            limit.cancel()
            process.terminate()  # what it has started, it ends
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(AMPLE)
            process.kill()


def succeeded(name, *arguments):
    done = subprocess.run(command(name, *arguments), env=environment(), capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()
