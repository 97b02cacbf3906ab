"""Real processes and real sockets, and kills that kill; FLARE alone is missing (see test_flare.py)."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from halfback import config as configuration
from halfback.config import RunConfig
from halfback.engine.remote.frames import Frame
from halfback.runs import run
from halfback.testing import small
from tests.deploy.local import Relays, assert_same, serve_here

PATIENCE = 240.0  # seconds; a worker needs ten to import everything on a busy machine
ROUNDS = 10


def config(**changes: Any) -> RunConfig:
    settings: dict[str, Any] = {
        "clients": 2,
        "sampled_clients": 2,
        "steps": ROUNDS,
        "eval_every": 4,
        "checkpoint_every": 4,
        "algorithm__directions": 3,
        "bottom__optimizer": "adamw",
        "codecs__activations_up": ["temporal"],
        "batch_size": 30,  # so that samples come again
    }
    return small.images("ho_sfl", **settings | changes)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The workers inherit it: bits are the same where as many threads add up."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def expected(tmp_path: Path, one_thread: None) -> Path:
    """The run of two clients in one process."""
    run.train(config(), tmp_path / "expected")
    return tmp_path / "expected"


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        pytest.param("say", {"round": 6}, id="in a round"),
        pytest.param("open", {"round": 6}, id="before a round"),
        pytest.param("save", {"rounds": 8}, id="before it has written its state"),
    ],
)
def test_a_worker_that_is_killed_comes_back_with_the_same_bits(
    tmp_path: Path, expected: Path, kind: str, number: dict[str, int]
) -> None:
    """Both ends of every link remember samples, so a state that came back wrong would show in the bits."""
    tree = configuration.to_tree(config())
    killed: list[int] = []

    def kill(questions: Mapping[int, Frame]) -> None:
        asked = json.loads(next(iter(questions.values())).header)
        if asked["kind"] == kind and number.items() <= asked.items() and not killed:
            killed.append(1)
            os.kill(relays.by_client[1].pid, signal.SIGKILL)

    relays = Relays(tmp_path, [0, 1], before=kill)
    try:
        assert serve_here(tmp_path, tree, relays) == {"how": "finished", "why": ""}
    finally:
        relays.close()
    assert killed == [1]
    assert_same(tmp_path / "job" / "run", expected, rounds=ROUNDS)
    events = [json.loads(line) for line in (tmp_path / "job" / "run" / "events.jsonl").read_text().splitlines()]
    assert [event["client"] for event in events if event["event"] == "returned"] == [1]
    assert [event["round"] for event in events if event["event"] == "went back"] == [4]


@pytest.mark.slow
def test_a_worker_that_is_killed_in_the_middle_of_a_secure_sum_comes_back_with_the_same_bits(tmp_path: Path) -> None:
    """Its keys are gone with it, and nobody misses them: the round is void, and the next try has new ones."""
    secure = config(clients=3, sampled_clients=3, secure__sum=True, codecs__activations_up=[])
    run.train(secure, tmp_path / "expected")
    killed: list[int] = []

    def kill(questions: Mapping[int, Frame]) -> None:
        asked = json.loads(next(iter(questions.values())).header)
        # Exchanges of a step: 0 joins, 1 activations, 2 keys, 3 shares, 4 masked values, to which this is the answer.
        if asked["kind"] == "say" and (asked["round"], asked["exchange"]) == (6, 4) and not killed:
            killed.append(1)
            os.kill(relays.by_client[1].pid, signal.SIGKILL)

    relays = Relays(tmp_path, [0, 1, 2], before=kill)
    try:
        assert serve_here(tmp_path, configuration.to_tree(secure), relays) == {"how": "finished", "why": ""}
    finally:
        relays.close()
    assert killed == [1]
    assert_same(tmp_path / "job" / "run", tmp_path / "expected", rounds=ROUNDS)
    events = [json.loads(line) for line in (tmp_path / "job" / "run" / "events.jsonl").read_text().splitlines()]
    assert [event["round"] for event in events if event["event"] == "went back"] == [4]


def server_process(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.deploy.local", str(folder)]
    root = Path(__file__).resolve().parents[2]
    return subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True)


def records(folder: Path) -> int:
    path = folder / "server" / "runs" / "run" / "records.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_a_server_that_is_killed_goes_on_from_its_checkpoint_with_the_same_bits(tmp_path: Path) -> None:
    """Its worker dies with it: it sees that the other end of its socket is gone."""
    alone = config(clients=1, sampled_clients=1)
    expected = tmp_path / "expected"
    run.train(alone, expected)
    (tmp_path / "config.json").write_text(json.dumps(configuration.to_tree(alone)))
    first = server_process(tmp_path)
    until = time.monotonic() + PATIENCE
    while records(tmp_path) < 2:  # the first of what is trained, behind that of the beginning
        assert time.monotonic() < until
        assert first.poll() is None
        time.sleep(0.02)
    first.kill()
    first.wait()
    for pid in json.loads((tmp_path / "pids.json").read_text()).values():
        wait_for_end(pid, until)
    assert not (tmp_path / "job").exists()
    second = server_process(tmp_path)
    out, _ = second.communicate(timeout=PATIENCE)
    assert json.loads(out.splitlines()[-1]) == {"how": "finished", "why": ""}
    assert_same(tmp_path / "job" / "run", expected, rounds=ROUNDS)


def wait_for_end(pid: int, until: float) -> None:
    while time.monotonic() < until:
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
                return
        except (ProcessLookupError, FileNotFoundError):
            return
        time.sleep(0.05)
    raise AssertionError(f"worker {pid} outlives its server")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_whoever_is_killed_whenever_the_bits_are_those_of_one_process(
    tmp_path: Path, expected: Path, seed: int
) -> None:
    """The server or a worker, at a random moment of a run; a server is started again by whoever looks after it."""
    chance = random.Random(seed)  # the seed is the name of the test
    (tmp_path / "config.json").write_text(json.dumps(configuration.to_tree(config())))
    until = time.monotonic() + PATIENCE
    for attempt in range(20):
        assert time.monotonic() < until
        process = server_process(tmp_path)
        if attempt < 2:
            while not (tmp_path / "pids.json").exists():
                time.sleep(0.05)
            time.sleep(chance.uniform(0.0, 20.0))
            pids = list(json.loads((tmp_path / "pids.json").read_text()).values())
            victim = chance.choice([process.pid, *pids])
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
        out, _ = process.communicate(timeout=PATIENCE)
        if process.returncode == 0:
            assert json.loads(out.splitlines()[-1]) == {"how": "finished", "why": ""}
            break
    assert_same(tmp_path / "job" / "run", expected, rounds=ROUNDS)
