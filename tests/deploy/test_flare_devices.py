"""Sites without PyTorch in FLARE's own processes with mutual TLS: the benchmark's run, in few steps."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("nvflare", reason="the extra nvflare is not installed")
pytest.importorskip("onnx", reason="the extra package is not installed")

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("flare")]  # one federation, on FLARE's own ports

ROOT = Path(__file__).resolve().parents[2]


def test_two_sites_without_pytorch_and_one_with_it_whose_workers_are_killed_have_the_bits_of_an_unbroken_run() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "device_sites.py"), "--steps", "30"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert done.stdout.count(" killed behind record ") == 3
    assert "returned: site-1, site-2, site-3" in done.stdout
    assert done.stdout.splitlines()[-1] == "all bits are equal"
