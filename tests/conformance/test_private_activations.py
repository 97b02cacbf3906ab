"""Activations with noise in whole runs: what is counted, what no kill takes back, and what a record says of it."""

import json
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from command import halfback, process

from halfback.assembly import build
from halfback.codecs.private import Private
from halfback.codecs.releases import RELEASED, Releases
from halfback.config import RunConfig
from halfback.privacy.account import epsilon
from halfback.runs import run
from halfback.testing import small
from halfback.testing.remote import run_over_sockets
from halfback.wire.messages import Activations, Message, parts_of
from halfback.wire.packing import Direction, unpack

NOISY: dict[str, Any] = {"name": "private", "clip": 5.0, "epsilon": 8.0}


def private(algorithm: str, *before: Any, **changes: Any) -> RunConfig:
    return small.images(algorithm, codecs__activations_up=[*before, NOISY, "int8"], **changes)


def counted(folder: Path) -> Counter[tuple[int, int]]:
    found: Counter[tuple[int, int]] = Counter()
    for line in (folder / RELEASED).read_text().splitlines():
        client, *samples = map(int, line.split())
        found.update((client, sample) for sample in samples)
    return found


@pytest.mark.parametrize(("algorithm", "uploads"), [("ho_sfl", 1), ("zo_sfl", 3), ("split_lora", 1), ("heron_sfl", 1)])
def test_every_upload_of_a_sample_is_counted(algorithm: str, uploads: int, tmp_path: Path) -> None:
    """zo_sfl sends a batch again for each probe, without saying again which samples it has."""
    options = {"algorithm__directions": 2} if algorithm == "zo_sfl" else {}
    built = build(private(algorithm, clients=2, sampled_clients=1, batch_size=20, **options), scratch=tmp_path)
    sent: Counter[tuple[int, int]] = Counter()
    last: dict[int, list[int]] = {}

    def tap(client: int, direction: Direction, data: bytes) -> None:
        message: Message = unpack(data)
        for part in parts_of(message):
            if direction == "up" and isinstance(part, Activations):
                last[client] = last[client] if part.sample_ids is None else part.sample_ids.tolist()
                sent.update((client, sample) for sample in last[client])

    built.federation.tap = tap
    small.run(built.federation, 9)
    assert counted(tmp_path) == sent
    assert len(set(sent.values())) > 1 or uploads > 1
    assert min(sent.values()) >= uploads
    assert built.federation.server.meters.releases == max(sent.values())
    spent = built.federation.server.private_activations()
    assert spent is not None
    assert spent.epsilon == Private(clip=5.0, epsilon=8.0).spent(max(sent.values()))


def test_going_back_to_a_checkpoint_takes_no_release_back(tmp_path: Path) -> None:
    config = private("ho_sfl", clients=1, sampled_clients=1)
    simulation = build(config, scratch=tmp_path).federation
    state = simulation.state()
    small.run(simulation, 2)
    before = counted(tmp_path)
    simulation.load_state(*state)
    small.run(simulation, 2)  # the same batches again
    assert counted(tmp_path) == before + before
    assert simulation.server.meters.releases == 2
    anew = build(config, scratch=tmp_path).federation  # a process that was killed is begun again
    anew.load_state(*state)
    assert anew.server.meters.releases == 2


def test_with_every_a_sample_that_comes_again_is_sent_once(tmp_path: Path) -> None:
    config = private("ho_sfl", {"name": "temporal", "every": 100}, clients=1, sampled_clients=1, batch_size=40)
    built = build(config, scratch=tmp_path)
    small.run(built.federation, 9)  # three epochs
    assert set(counted(tmp_path).values()) == {1}
    assert len(counted(tmp_path)) == 120


def test_looking_for_memory_releases_nothing(tmp_path: Path) -> None:
    built = build(private("ho_sfl", client__memory=50), scratch=tmp_path)
    built.clients.settle()
    assert not (tmp_path / RELEASED).exists()


def test_over_sockets_the_server_hears_of_the_worst_sample(tmp_path: Path) -> None:
    config = private("ho_sfl", clients=2, sampled_clients=2, batch_size=60)
    here = small.built(config).federation

    def client(number: int) -> Any:
        (tmp_path / str(number)).mkdir(exist_ok=True)
        return build(config, scratch=tmp_path / str(number)).federation.client(number)

    run_over_sockets(here, client, rounds=3, steps=1, folder=tmp_path / "states")
    assert {max(counted(tmp_path / str(number)).values()) for number in (0, 1)} == {3}
    assert here.server.meters.releases == 3


@pytest.mark.slow
def test_a_run_that_is_killed_counts_what_it_does_again(tmp_path: Path) -> None:
    out = tmp_path / "run"
    noisy = "[{name: temporal, every: 2}, {name: private, clip: 5, epsilon: 8, budget: 22}]"
    settings = ["steps=40", "eval_every=20", "checkpoint_every=7", f"codecs.activations_up={noisy}", "clients=2"]
    digits = ["task={name: digits, train_rows: 64, validation_rows: 32}", "model={name: resnet8, cut: 1}", "threads=1"]
    settings += [*digits, "algorithm.name=ho_sfl", "batch_size=16", "sampled_clients=2", "device=cpu"]
    (tmp_path / "own.yaml").write_text("{}")
    with process("train", tmp_path / "own.yaml", *settings, "--out", out) as running:
        limit = time.monotonic() + 120
        while not (out / RELEASED).exists() and running.poll() is None and time.monotonic() < limit:
            time.sleep(0.002)
        time.sleep(random.uniform(0, 0.3))
        running.send_signal(signal.SIGKILL)
        assert running.wait() == -signal.SIGKILL, running.stderr and running.stderr.read()
    before = (out / RELEASED).read_bytes()
    kept = Releases(out / RELEASED).most
    assert kept > 0
    assert halfback("resume", out).status == 0
    after = (out / RELEASED).read_bytes()
    assert after.startswith(before[: before.rfind(b"\n") + 1])
    assert len(after) > len(before)
    summary = json.loads((out / "summary.json").read_text())["private_activations"]
    most = max(counted(out).values())
    private = Private(clip=5.0, epsilon=8.0, budget=22.0)
    assert summary == {"epsilon": private.spent(most), "delta": 1e-5, "noise": private.multiplier, "clip": 5.0} | {
        "releases": most
    }
    assert kept <= most == private.limit
    last = json.loads((out / "records.jsonl").read_text().splitlines()[-1])
    assert last["activations_epsilon"] == summary["epsilon"]
    assert "ε" in (out / "report.html").read_text()


def test_noise_on_slopes_and_on_activations_has_one_account_of_both(tmp_path: Path) -> None:
    noise = {"privacy__unit": "sample", "privacy__noise": 2.0, "algorithm__clip_samples": 1.0}
    config = private("ho_sfl", steps=2, eval_every=2, **noise)
    summary = run.train(config, tmp_path / "run").summary
    slopes, activations = summary.privacy, summary.private_activations
    assert slopes is not None
    assert activations is not None
    # One Gaussian release of this noise multiplier tells as much as all of both (Dong et al., corollary 3.3).
    alike = (slopes.releases / 2.0**2 + activations.releases / activations.noise**2) ** -0.5
    assert f"ε = {epsilon(1, alike, slopes.delta):.3g};" in slopes.covers
    assert epsilon(1, alike, slopes.delta) > max(slopes.epsilon, activations.epsilon)
