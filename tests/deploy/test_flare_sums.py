"""Secure sums in FLARE's own processes with mutual TLS, one of whose workers is killed in the middle of a sum."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("nvflare", reason="the extra nvflare is not installed")

from halfback import config as configuration
from halfback.deploy.folder import EVENTS
from halfback.deploy.keeper import KITS
from halfback.runs.folder import COHORTS
from halfback.testing import small

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("flare")]  # one federation, on FLARE's own ports

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
PATIENCE = 900.0  # seconds, on a busy machine
# The exchanges of a round of one step: 0 joins, 1 activations, 2 keys, then those that are the middle of a sum.
MIDDLE = {3: "shares", 4: "masked values", 5: "opened shares"}


def left(cohorts: Path) -> list[int]:
    """The exchanges to which those who left in some round said nothing any more."""
    lines = cohorts.read_text().split("\n")[:-1] if cohorts.exists() else []
    return [exchange for line in lines for exchange in json.loads(line)["left"].values()]


def returned(events: Path) -> int:
    """How often a client has come back."""
    lines = events.read_text().split("\n")[:-1] if events.exists() else []
    return sum(json.loads(line)["event"] == "returned" for line in lines)


def workers(place: Path) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            words = (entry / "cmdline").read_text() if entry.name.isdigit() else ""
            if "halfback.deploy.worker" in words and str(place) in words:
                yield int(entry.name)


def test_a_worker_is_killed_in_the_middle_of_a_sum_and_the_bits_are_those_of_one_process(
    tmp_path: Path, chance: random.Random
) -> None:
    """Workers are killed at random moments until one was in a sum; three of the four that are left finish it.

    θ then has the bits of the run in one process in which the same clients leave at the same exchanges, and that run's
    means are those of the plain whole numbers (tests/conformance/test_secure_sums.py).
    """
    few: dict[str, Any] = {"clients": 4, "sampled_clients": 4, "deployment__min_cohort": 3, "secure__sum": True}
    cadence = {"steps": 240, "eval_every": 80, "checkpoint_every": 20, "batch_size": 8, "threads": 1}
    config = small.images("ho_sfl", **few, **cadence, algorithm__directions=2, algorithm__exact_blocks=1)
    (tmp_path / "recipe.yaml").write_text(configuration.dump(config))
    out, begun, killed = tmp_path / "out", time.monotonic(), 0
    found = tmp_path / "out.flare" / KITS / "server" / "halfback-site" / "runs" / "run" / COHORTS
    command = ["deploy", str(tmp_path / "recipe.yaml"), "--env", "poc", "--name", "run", "--out", str(out)]
    with (tmp_path / "log").open("w") as log:
        run = subprocess.Popen(
            [sys.executable, "-m", "halfback", *command], env=ENVIRONMENT, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            while run.poll() is None:
                assert time.monotonic() < begun + PATIENCE, (tmp_path / "log").read_text()[-3000:]
                time.sleep(0.2)
                if not found.exists() or not MIDDLE.keys().isdisjoint(left(found)):
                    continue
                if returned(found.with_name(EVENTS)) < killed or len(there := sorted(workers(tmp_path))) < 4:
                    continue  # where two were away there would be no sum
                time.sleep(chance.uniform(0.0, 0.5))
                os.kill(chance.choice(there), signal.SIGKILL)
                killed += 1
        finally:
            run.terminate()
            run.wait()
    said = (tmp_path / "log").read_text()
    assert run.returncode == 0, said
    sums = [MIDDLE[exchange] for exchange in left(out / COHORTS) if exchange in MIDDLE]
    assert sums, f"of {killed} killed none was in a sum: {left(out / COHORTS)}"
    print(f"{killed} killed, in a sum before its {', '.join(sums)}: {time.monotonic() - begun:.0f} s")
    again = subprocess.run(
        [sys.executable, "-m", "halfback", "replay", str(out), "--out", str(tmp_path / "again")],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    print(again.stdout)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "have the bits of" in again.stdout
