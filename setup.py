"""The kernel of `halfback.zeroth.native`, and the page for browsers; all else stands in pyproject.toml.

Both are optional: where the kernel can't be compiled (no compiler, or Windows') the package is built all the same, and
tensor operations do its work; where the page was not built (`web/dist`) a gateway hands out none. The kernel uses
nothing of Python's C interface, so one file serves every version.
"""

import shutil
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_py import build_py

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


class WithPage(build_py):
    """The modules, and beside the gateway the page that it hands out."""

    def run(self) -> None:
        super().run()
        page, built = (
            Path(self.build_lib, "halfback", "deploy", "page"),
            Path(__file__).resolve().parent / "web" / "dist",
        )
        if built.is_dir() and not self.editable_mode:
            shutil.rmtree(page, ignore_errors=True)
            shutil.copytree(built, page)


setup(cmdclass={"build_py": WithPage}, ext_modules=[KERNEL], options={"bdist_wheel": WHEEL})
