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
import torch

from halfback import config as configuration
from halfback.runs import run as training
from halfback.testing import small

pytest.importorskip("nvflare", reason="the extra nvflare is not installed")

from nvflare.fuel.flare_api.flare_api import new_secure_session

from halfback.deploy.environments import poc
from halfback.deploy.job import write_job
from halfback.deploy.site import FILE
from tests.deploy.local import assert_same

pytestmark = pytest.mark.xdist_group("flare")  # one federation, on FLARE's own ports

LOOPBACK = "0100007F"  # 127.0.0.1 in /proc/net/tcp
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
    """The run in one process, with as many threads as the workers have."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    training.train(configuration.load(recipe), place / "expected")
    torch.set_num_threads(threads)
    return place / "expected"


def deploying(recipe: Path, federation: tuple[Path, str], out: Path) -> list[str]:
    kit, user = federation
    words = ["deploy", str(recipe), "--env", "prod", "--kit", str(kit), "--user", user]
    return halfback(*words, "--name", out.name, "--out", str(out))


def test_a_run_over_mutual_tls_has_the_bits_of_one_process(
    federation: tuple[Path, str], recipe: Path, expected: Path, place: Path
) -> None:
    """And while it goes, its server, sites, jobs and workers listen on loopback alone."""
    out, listening, until = place / "calm", set(), time.monotonic() + PATIENCE
    with (place / "calm.log").open("w+") as log:
        run = subprocess.Popen(
            deploying(recipe, federation, out), env=ENVIRONMENT, stdout=log, stderr=subprocess.STDOUT, text=True
        )
        while run.poll() is None:
            assert time.monotonic() < until
            listening |= {(kind, address) for kind in KINDS for address in addresses(processes(place, kind))}
            time.sleep(0.5)
        log.seek(0)
        said = log.read()
    assert run.returncode == 0, said
    assert {kind for kind, _ in listening} >= {"server", "client"}
    assert {address for _, address in listening} <= {LOOPBACK}, listening
    assert_same(out, expected, rounds=ROUNDS)
    summaries: list[dict[str, Any]] = [json.loads((f / "summary.json").read_text()) for f in (out, expected)]
    mine, theirs = summaries
    for key in ("up_bytes", "down_bytes", "bytes_by_kind", "forward_passes", "metric", "client_peak_bytes"):
        assert mine[key] == theirs[key]
    assert "client 0 (site-1) joined" in said
    assert f"step {ROUNDS}/{ROUNDS}" in said


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


def addresses(numbers: list[int]) -> set[str]:
    """Where these processes listen, as the kernel writes it."""
    sockets: set[str] = set()
    for number in numbers:
        with contextlib.suppress(OSError):
            sockets |= {os.readlink(entry) for entry in Path(f"/proc/{number}/fd").iterdir()}
    lines = [line.split() for table in ("tcp", "tcp6") for line in Path(f"/proc/net/{table}").read_text().splitlines()]
    return {line[1].partition(":")[0] for line in lines if line[3] == "0A" and f"socket:[{line[9]}]" in sockets}


@pytest.mark.slow
def test_a_job_that_calls_itself_a_trial_gets_past_no_sites_file(
    federation: tuple[Path, str], recipe: Path, place: Path
) -> None:
    """Both sites keep their labels, and the job asks for them; test_attacks.py asks the component alone."""
    kit, user = federation
    files = [kit.parent / site / "local" / FILE for site in ("site-1", "site-2")]
    for file in files:
        file.write_text("keep_labels: true\n")
    job = write_job(place, "smuggled", configuration.load(recipe))
    path = job / "app" / "config" / "config_fed_client.json"
    tree = json.loads(path.read_text())
    tree["components"][0]["args"] = {"trial": True}
    path.write_text(json.dumps(tree))
    for folder in (job / "app", job / "app" / "config"):
        (folder / FILE).write_text("trial: true\n")
    session = new_secure_session(user, str(kit), timeout=60)
    try:
        number = session.submit_job(str(job))
        session.monitor_job(number, timeout=PATIENCE, poll_interval=1.0)
        status = session.get_job_meta(number)["status"]
    finally:
        session.close()
        for file in files:
            file.write_text("")
    assert "COMPLETED" not in status
    run = kit.parent / "server" / "halfback-site" / "runs" / "smuggled"
    assert not (run / "summary.json").exists()
    assert all('"event": "joined"' not in file.read_text() for file in run.glob("events.jsonl"))


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
    records = federation[0].parent / "server" / "halfback-site" / "runs" / out.name / "records.jsonl"
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
