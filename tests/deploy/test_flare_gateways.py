"""Devices below two gateways, and a plain site, in FLARE's own processes with mutual TLS, which are killed."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

pytest.importorskip("nvflare", reason="the extra nvflare is not installed")
pytest.importorskip("onnx", reason="the extra package is not installed")

from halfback import config as configuration
from halfback.config import RunConfig
from halfback.deploy.certificate import write_certificate
from halfback.deploy.folder import EVENTS, SEATS
from halfback.deploy.job import allow
from halfback.deploy.serving import RUN, Surroundings, serve
from halfback.deploy.site import FILE, SiteConfig
from halfback.deploy.tokens import add
from halfback.deploy.worker import Worker
from halfback.engine.remote.frames import Frame, Longest
from halfback.engine.remote.presence import Came
from halfback.runs.package import package
from halfback.telemetry.records import RECORDS
from halfback.testing import small
from halfback_device.client import Device
from halfback_device.data import Rows
from tests.deploy.federation import ADMIN, SERVER, Federation, free_port
from tests.deploy.local import assert_same

pytestmark = pytest.mark.slow

GATEWAYS, PLAIN, SEATS_EACH = ("gateway-1", "gateway-2"), "plain", 5
STEPS = 200
PATIENCE = 1500.0  # seconds for the run, however often it is begun again on a busy machine
ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "device")])}


@pytest.fixture
def recipe(tiny_bert: Path, sentences: Path) -> RunConfig:
    """Eleven clients, of which four take part in a step; links remember, so a state that came back wrong shows."""
    changes = {"algorithm__directions": 24, "bottom__optimizer": "adamw", "model__cut": 2, "steps": STEPS}
    cadence = {"eval_every": 4, "checkpoint_every": 5, "batch_size": 4, "deployment__deadline": 20.0, "threads": 1}
    few = {"clients": 11, "sampled_clients": 4, "codecs__activations_up": ["temporal", "int8"]}
    return small.texts("ho_sfl", tiny_bert, sentences, **changes, **cadence, **few)


class Together:
    """All clients of the run in this process: the plain site's with PyTorch, the others on the package."""

    def __init__(self, folder: Path, package: Path, rows: Rows, plain: int) -> None:
        self._folder, self._package, self._rows, self._plain = folder, package, rows, plain
        self._worker, self._devices = Worker(SiteConfig(trial=True), folder / "plain"), dict[int, Device]()

    def reachable(self) -> set[int]:
        return set(range(2 * SEATS_EACH + 1))

    def is_there(self, client: int) -> bool:
        return True

    def silent(self) -> set[str]:
        return set()

    def ask(self, questions: Mapping[int, Frame], seconds: float, longest: Longest) -> Mapping[int, Came]:
        return {number: self._one(number, asked) for number, asked in questions.items()}

    def _one(self, number: int, asked: Frame) -> Frame:
        if number == self._plain:
            return self._worker.reply(asked)
        if number not in self._devices:
            self._devices[number] = Device(self._package, self._rows, self._folder / str(number))
        return Frame(*self._devices[number].reply(*asked))


def in_one_process(folder: Path, config: RunConfig, package: Path, rows: Rows, seats: Mapping[str, list[int]]) -> Path:
    """The run with all its clients in this process, each at the seat that it has there; its folder."""
    server = folder / "server" / "runs" / "run"
    server.mkdir(parents=True)
    (server / SEATS).write_text(json.dumps(seats))
    carrier = Together(folder, package, rows, seats[PLAIN][0])
    serve(
        "run",
        configuration.to_tree(config),
        Surroundings(
            site=lambda: SiteConfig(trial=True),
            folder=lambda _: folder / "server",
            sites=lambda: {name: len(numbers) for name, numbers in seats.items()},
            carrier=lambda _: carrier,
            job=folder / "job",
            listen=lambda _: None,
        ),
    )
    return folder / "job" / RUN


class Farm:
    """The processes of devices, by the name of each."""

    def __init__(self, rows: Path) -> None:
        self._also = ["--data", str(rows), "--text", "text", "--label", "label", "--shared"]
        self._commands: dict[str, tuple[list[str], Path]] = {}
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def names(self) -> list[str]:
        return list(self._commands)

    def add(self, name: str, url: str, token: str, authority: Path, folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "token").write_text(token)
        own = [url, "--token-file", str(folder / "token"), "--ca", str(authority), "--folder", str(folder / "kept")]
        command = [sys.executable, "-m", "halfback_device", "join", *own, *self._also]
        self._commands[name] = (command, folder / "log")
        self._start(name)

    def _start(self, name: str) -> None:
        command, path = self._commands[name]
        with path.open("a") as log:
            self._running[name] = subprocess.Popen(command, env=ENVIRONMENT, stdout=log, stderr=subprocess.STDOUT)

    def kill(self, name: str) -> None:
        """Kills a device; it is then started again."""
        self._end(name)
        self._start(name)

    def _end(self, name: str) -> None:
        process = self._running.pop(name)
        process.kill()
        process.wait()

    def close(self) -> None:
        for name in list(self._running):
            self._end(name)


def job_processes(kit: Path) -> list[int]:
    """The processes of a site's jobs."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_text() if entry.name.isdigit() else ""
            if "client.worker_process" in words and str(kit) in words:
                found.append(int(entry.name))
    return found


def kill_site(federation: Federation, name: str) -> None:
    """Kills both processes that FLARE has on a site; it is then started again."""
    jobs = job_processes(federation.kits / name)
    federation.stop(name)
    for number in jobs:
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
    federation.start(name)


@contextlib.contextmanager
def standing(folder: Path, made: Path, rows: Path) -> Iterator[tuple[Federation, Farm]]:
    """The federation and the devices of its gateways, all started; `made`: the package."""
    federation, farm = Federation(folder, [*GATEWAYS, PLAIN]), Farm(rows)
    try:
        for name in (SERVER, PLAIN, *GATEWAYS):
            allow(federation.kits / name)
            (federation.kits / name / "local" / FILE).write_text("trial: true\n")
        for name in GATEWAYS:
            own, port = folder / name, free_port()
            own.mkdir()
            tokens, certificate, key = own / "tokens.json", own / "certificate.pem", own / "key.pem"
            write_certificate(certificate, key)
            devices = {"listen": f"127.0.0.1:{port}", "certificate": str(certificate), "key": str(key)}
            devices |= {"seats": SEATS_EACH, "tokens": str(tokens)}
            site = {"runtime": "device", "package": str(made), "devices": devices}
            (federation.kits / name / "local" / FILE).write_text(json.dumps(site))
            for place in range(SEATS_EACH):
                url, who = f"wss://localhost:{port}", f"{name}:{place}"
                farm.add(who, url, add(tokens, SEATS_EACH), certificate, own / str(place))
        for name in (SERVER, *GATEWAYS, PLAIN):
            federation.start(name)
        federation.wait_for(sorted([*GATEWAYS, PLAIN]))
        yield federation, farm
    finally:
        farm.close()
        federation.close()


def step_of(records: Path) -> int:
    """The last step that a run has recorded, which it does as often as it evaluates."""
    lines = records.read_text().split("\n")[:-1] if records.exists() else []
    return int(json.loads(lines[-1])["step"]) if lines else 0


def test_each_device_and_each_gateway_is_killed_once_and_the_bits_are_those_of_one_process(
    recipe: RunConfig, sentences: Path, tmp_path: Path, chance: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP_NUM_THREADS", "PYTHONPATH"):
        monkeypatch.setenv(name, ENVIRONMENT[name])
    (tmp_path / "recipe.yaml").write_text(configuration.dump(recipe))
    made, out, begun = tmp_path / "package", tmp_path / "out", time.monotonic()
    package(recipe, made)
    (tmp_path / "federation").mkdir()
    with standing(tmp_path / "federation", made, sentences) as (federation, farm):
        ends: dict[str, Callable[[str], None]] = dict.fromkeys(farm.names, farm.kill)
        ends |= dict.fromkeys(GATEWAYS, lambda name: kill_site(federation, name))
        due = sorted((chance.randint(2, STEPS - 10), name) for name in ends)
        words = ["deploy", str(tmp_path / "recipe.yaml"), "--env", "prod", "--sites", "3", "--name", "run"]
        words += ["--kit", str(federation.kits / ADMIN), "--user", ADMIN, "--out", str(out)]
        records = federation.kits / SERVER / "halfback" / "runs" / "run" / RECORDS
        started = time.monotonic()
        with (tmp_path / "log").open("w+") as log:
            run = subprocess.Popen(
                [sys.executable, "-m", "halfback", *words], env=ENVIRONMENT, stdout=log, stderr=subprocess.STDOUT
            )
            try:
                while run.poll() is None:
                    assert time.monotonic() - begun < PATIENCE, (tmp_path / "log").read_text()[-3000:]
                    time.sleep(0.05)
                    while due and step_of(records) >= due[0][0]:
                        _, name = due.pop(0)
                        time.sleep(chance.uniform(0, 0.5))  # a moment within a step, or between two
                        ends[name](name)
                        print(
                            f"{time.monotonic() - started:.0f} s: {name} killed behind step {step_of(records)}",
                            flush=True,
                        )
            finally:
                run.kill()
        print((tmp_path / "log").read_text())
        assert run.returncode == 0
        assert not due
    print(f"{STEPS} steps and the kills: {time.monotonic() - started:.0f} s")
    seats = json.loads((out / SEATS).read_text())
    assert {name: len(numbers) for name, numbers in seats.items()} == {**dict.fromkeys(GATEWAYS, SEATS_EACH), PLAIN: 1}
    rows = Rows(str(sentences), text="text", label="label", shared=True)
    assert_same(out, in_one_process(tmp_path / "one", recipe, made, rows, seats), rounds=STEPS)
    events = [json.loads(line) for line in (out / EVENTS).read_text().splitlines()]
    print({kind: sum(event["event"] == kind for event in events) for kind in ("joined", "returned", "went back")})
