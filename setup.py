"""The kernel of `halfback.zeroth.native`; all else stands in pyproject.toml.

It is optional: where it can't be compiled (no compiler, or Windows') the package is built all the same, and tensor
operations do its work. It uses nothing of Python's C interface, so one file serves every version.
"""

import sysconfig

from setuptools import Extension, setup

KERNEL = Extension(
    "halfback.zeroth._philox",
    ["halfback/zeroth/_philox.c"],
    # No fused multiply-add: it rounds once instead of twice.
    extra_compile_args=["-std=c11", "-O3", "-ffp-contract=off", "-fvisibility=hidden"],
    py_limited_api=True,
    optional=True,
)
# A Python without a global lock has no limited interface, and refuses to name a wheel by it.
WHEEL = {} if sysconfig.get_config_var("Py_GIL_DISABLED") else {"py_limited_api": "cp311"}

setup(ext_modules=[KERNEL], options={"bdist_wheel": WHEEL})
