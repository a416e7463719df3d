# SPDX-License-Identifier: LGPL-3.0-or-later
"""What pyproject.toml cannot say: the cffi module, and abi3 wheels wherever there is a GIL."""

import sysconfig

from setuptools import setup

free_threaded = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))

setup(
    cffi_modules=["src/truenas_os/_native/build.py:ffibuilder"],
    options={} if free_threaded else {"bdist_wheel": {"py_limited_api": "cp311"}},
)
