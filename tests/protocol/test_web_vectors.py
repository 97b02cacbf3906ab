"""The page's client in TypeScript (web/): its types, and its tests, which read the protocol's vectors."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

WEB = Path(__file__).resolve().parents[2] / "web"
LOCK, INSTALLED = WEB / "package-lock.json", WEB / "node_modules" / ".package-lock.json"
OLDEST = (20, 19)  # that the build tool works with
_NO_NETWORK = re.compile(r"ENOTFOUND|ECONNREFUSED|ECONNRESET|ETIMEDOUT|EAI_AGAIN|ENETUNREACH|ENOTCACHED|network")


def ran(*command: str, seconds: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=WEB, capture_output=True, text=True, timeout=seconds)


@pytest.fixture(scope="module")
def npm() -> str:
    """npm, with what `web/` needs installed as its lock has it."""
    found = shutil.which("npm")
    if found is None or shutil.which("node") is None:
        pytest.skip("no Node.js here, so the page's client is not tested")
    version = tuple(int(part) for part in re.findall(r"\d+", ran("node", "--version", seconds=20).stdout)[:2])
    if version < OLDEST:
        pytest.skip(f"Node.js {version[0]}.{version[1]} is too old for the page's tools")
    if not INSTALLED.exists() or INSTALLED.stat().st_mtime < LOCK.stat().st_mtime:
        done = ran(found, "ci", "--prefer-offline", seconds=300)
        if done.returncode and _NO_NETWORK.search(done.stderr):
            pytest.skip("npm can't reach a registry, so the page's client is not tested")
        assert done.returncode == 0, done.stderr
    return found


def test_the_pages_client_has_types_and_comes_to_the_vectors(npm: str) -> None:
    done = ran(npm, "run", "check", seconds=300)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
