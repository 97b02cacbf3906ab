"""The device's package stands alone: importing all of it brings in nothing that a device has not."""

import subprocess
import sys
from pathlib import Path

import halfback_device

PACKAGE = Path(halfback_device.__file__).parent
HEAVY = (
    "torch",
    "transformers",
    "pydantic",
    "nvflare",
    "halfback",
    "datasets",
    "peft",
    "scipy",
    "pandas",
    "matplotlib",
)
SCRIPT = """
import importlib, sys
for name in {modules}:
    importlib.import_module(name)
print(*sorted({heavy} & {{name.partition(".")[0] for name in sys.modules}}))
"""


def modules() -> list[str]:
    # `__main__` is the command itself, of which all else is imported by others.
    files = sorted(file.relative_to(PACKAGE.parent) for file in PACKAGE.rglob("*.py") if file.stem != "__main__")
    return [".".join(file.with_suffix("").parts).removesuffix(".__init__") for file in files]


def brought_in(names: list[str]) -> list[str]:
    script = SCRIPT.format(modules=names, heavy=set(HEAVY))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_no_module_brings_in_what_a_device_has_not() -> None:
    assert "halfback_device.codecs.temporal" in modules()
    assert brought_in(modules()) == []


def test_the_test_sees_what_is_brought_in() -> None:
    assert "torch" in brought_in(["torch"])
