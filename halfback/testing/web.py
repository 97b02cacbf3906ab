"""Programs of web/test/device: a page's modules, made to run under Node."""

import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

WEB = Path(__file__).parents[2] / "web"


@cache
def built(program: str) -> Path:
    """A program, made where its modules are; skips the test where Node or they are not installed."""
    if shutil.which("node") is None or not (WEB / "node_modules" / ".bin" / "vite").exists():
        pytest.skip("needs Node and the modules of web/: cd web && npm ci")
    out = WEB / "node_modules" / ".halfback" / program
    command = ["npx", "vite", "build", "--ssr", f"test/device/{program}.ts", "--outDir", str(out), "--logLevel", "warn"]
    subprocess.run(command, cwd=WEB, check=True)
    return out / f"{program}.js"
