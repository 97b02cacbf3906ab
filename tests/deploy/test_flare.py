"""The whole of it: FLARE's own processes with mutual TLS on this machine, and `halfback deploy` as a user gives it."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from halfback import config as configuration
from halfback.conformance import small

pytest.importorskip("nvflare", reason="the extra nvflare is not installed")

from halfback.deploy.environments import poc
from halfback.deploy.site import FILE
from tests.deploy.local import assert_same

pytestmark = pytest.mark.xdist_group("flare")  # one federation, on FLARE's own ports

PATIENCE = 500.0  # seconds for one run, however often it is begun again on a busy machine
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
ROUNDS = 40
KINDS = {  # of process: what its command line has
    "server": "server.server_train",
    "server's job": "server.runner_process",
    "client": "client.client_train",
    "client's job": "client.worker_process",
    "worker": "halfback.deploy.worker",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("flare")


@pytest.fixture(scope="module")
def federation(place: Path) -> Iterator[tuple[Path, str]]:
    """A server and two sites, provisioned, ready and started; an admin's kit and name."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("OMP_NUM_THREADS", "PYTHONPATH"):
            patch.setenv(name, ENVIRONMENT[name])
        with poc(2, place / "federation") as (kit, user):
            for site in ("server", "site-1", "site-2"):
                (kit.parent / site / "local" / FILE).write_text("")
            yield kit, user


@pytest.fixture(scope="module")
def recipe(place: Path) -> Path:
    config = small.images(
        "ho_sfl",
        clients=2,
        sampled_clients=2,
        steps=ROUNDS,
        eval_every=10,
        checkpoint_every=5,
        batch_size=30,
        algorithm__directions=3,
        bottom__optimizer="adamw",
        codecs__activations_up=["temporal"],
    )
    path = place / "recipe.yaml"
    path.write_text(configuration.dump(config))
    return path


def halfback(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "halfback", *arguments]


@pytest.fixture(scope="module")
def expected(place: Path, recipe: Path) -> Path:
    """The run in one process."""
    command = halfback("train", str(recipe), "--out", str(place / "expected"))
    subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True, timeout=PATIENCE)
    return place / "expected"


def deploying(recipe: Path, federation: tuple[Path, str], out: Path) -> list[str]:
    kit, user = federation
    words = ["deploy", str(recipe), "--env", "prod", "--kit", str(kit), "--user", user]
    return halfback(*words, "--name", out.name, "--out", str(out))


def test_a_run_over_mutual_tls_has_the_bits_of_one_process(
    federation: tuple[Path, str], recipe: Path, expected: Path, place: Path
) -> None:
    out = place / "calm"
    done = subprocess.run(
        deploying(recipe, federation, out), env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert_same(out, expected, rounds=ROUNDS)
    summaries: list[dict[str, Any]] = [json.loads((f / "summary.json").read_text()) for f in (out, expected)]
    mine, theirs = summaries
    for key in ("up_bytes", "down_bytes", "bytes_by_kind", "forward_passes", "metric", "client_peak_bytes"):
        assert mine[key] == theirs[key]
    assert "client 0 (site-1) joined" in done.stdout
    assert f"step {ROUNDS}/{ROUNDS}" in done.stdout


def processes(place: Path, kind: str) -> list[int]:
    """Those of a kind that belong to this federation."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if (
                entry.name.isdigit()
                and KINDS[kind] in (words := (entry / "cmdline").read_text())
                and str(place) in words
            ):
                found.append(int(entry.name))
    return sorted(found)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(20))
def test_whatever_is_killed_whenever_the_bits_are_those_of_one_process(
    federation: tuple[Path, str], recipe: Path, expected: Path, place: Path, number: int
) -> None:
    """Each kind of process in turn, at a random moment from the first round on; or the run stops with a reason."""
    kind, chance = list(KINDS)[number % len(KINDS)], random.Random(number)
    out = place / f"killed-{number}"
    run = subprocess.Popen(
        deploying(recipe, federation, out), env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    until = time.monotonic() + PATIENCE
    records = federation[0].parent / "server" / "halfback" / "runs" / out.name / "records.jsonl"
    while not (records.exists() and processes(place, kind)):
        assert time.monotonic() < until
        assert run.poll() is None
        time.sleep(0.1)
    time.sleep(chance.uniform(0.0, 12.0))
    victim = chance.choice(processes(place, kind) or [0])
    if victim:
        os.kill(victim, signal.SIGKILL)
    said, _ = run.communicate(timeout=max(until - time.monotonic(), 1))
    print(f"killed a {kind} ({victim}); {said}")
    assert run.returncode == 0, said
    assert_same(out, expected, rounds=ROUNDS)
