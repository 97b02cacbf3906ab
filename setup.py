"""The kernel of `halfback.zeroth.native`; all else stands in pyproject.toml.

It is optional: without a compiler the package is built all the same, and tensor operations do its work. It uses nothing
of Python's C interface, so that one file serves every version.
"""

import sys
import sysconfig

from setuptools import Extension, setup

KERNEL = Extension(
    "halfback.zeroth._philox",
    ["halfback/zeroth/_philox.c"],
    # No fused multiply-add: it rounds once instead of twice. `errno` after a square root is of no use, and in the way.
    extra_compile_args=[]
    if sys.platform == "win32"
    else ["-std=c11", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden"],
    export_symbols=["halfback_add", "halfback_replay"],
    py_limited_api=True,
    optional=True,
)
# A Python without a global lock has no limited interface, and a wheel for it can't be named so.
ABI = {} if sysconfig.get_config_var("Py_GIL_DISABLED") else {"bdist_wheel": {"py_limited_api": "cp311"}}

setup(ext_modules=[KERNEL], options=ABI)
