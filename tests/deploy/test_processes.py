"""Real processes and real sockets, and kills that kill; FLARE alone is missing (see test_flare.py)."""

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
from halfback.config import RunConfig
from halfback.runs import run
from halfback.testing import small
from tests.deploy.local import Relays, assert_same, serve_here

PATIENCE = 240.0  # seconds; a worker needs ten to import everything on a busy machine
ROUNDS = 16


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
    """The run in one process."""
    run.train(config(), tmp_path / "expected")
    return tmp_path / "expected"


class Killing(Relays):
    """Kills the worker of client 0 in the middle of round 2, and that of client 1 in round 10."""

    def __init__(self, folder: Path, clients: list[int]) -> None:
        super().__init__(folder, clients)
        self.killed: list[int] = []

    def ask(self, questions: Any, *bounds: Any) -> Any:
        asked = json.loads(next(iter(questions.values())).header)
        for client, at in ((0, 2), (1, 10)):
            if asked["kind"] == "say" and asked["round"] == at and client not in self.killed:
                self.killed.append(client)
                os.kill(self.by_client[client].pid, signal.SIGKILL)
        return super().ask(questions, *bounds)


def test_a_worker_that_is_killed_comes_back_with_the_same_bits(tmp_path: Path, expected: Path) -> None:
    """Both ends of every link remember samples, so a state that came back wrong would show in the bits."""
    relays = Killing(tmp_path, [0, 1])
    tree = configuration.to_tree(config())
    try:
        assert serve_here(tmp_path, tree, relays) == {"how": "finished", "why": ""}
    finally:
        relays.close()
    assert relays.killed == [0, 1]
    assert_same(tmp_path / "job" / "run", expected, rounds=ROUNDS)
    events = [json.loads(line) for line in (tmp_path / "job" / "run" / "events.jsonl").read_text().splitlines()]
    assert [event["client"] for event in events if event["event"] == "returned"] == [0, 1]
    assert [event["round"] for event in events if event["event"] == "went back"] == [0, 8]


def server_process(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.deploy.local", str(folder)]
    root = Path(__file__).resolve().parents[2]
    return subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True)


def records(folder: Path) -> int:
    path = folder / "server" / "runs" / "run" / "records.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_a_server_that_is_killed_goes_on_from_its_checkpoint_with_the_same_bits(tmp_path: Path, expected: Path) -> None:
    """Its workers die with it: they see that the other end of their socket is gone."""
    (tmp_path / "config.json").write_text(json.dumps(configuration.to_tree(config())))
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
    chance = random.Random(seed)
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
