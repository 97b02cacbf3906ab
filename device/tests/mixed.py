"""Runs of the reference's server whose clients are of either kind, PyTorch's worker or the device, in this process."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from halfback import config as configuration
from halfback.assembly.remote import remote_server
from halfback.config import RunConfig
from halfback.deploy.site import SiteConfig
from halfback.deploy.worker import Worker
from halfback.engine.federation import Federation
from halfback.engine.remote.frames import Frame, Longest
from halfback.engine.remote.presence import Terms
from halfback.engine.remote.server import RemoteServer
from halfback.engine.remote.stream import Gone, read_frame, write_frame
from halfback.parties.holdings import Round
from halfback.runs.package import package
from halfback.testing import small
from halfback_device.client import Device
from halfback_device.data import Rows
from halfback_device.package import MANIFEST, Package

Kind = Literal["torch", "device"]
Reply = Callable[[Frame], Frame]
DEVICE = Path(__file__).parents[1]
RUN = "00112233445566aa"
_ONE_AT_A_TIME = (
    threading.Lock()
)  # clients are brought in side by side, and Transformers loads one model a process at a time


@dataclass
class Here:
    """Carries questions to who replies in this process."""

    replies: dict[int, Reply]
    asked: list[tuple[int, Frame]] = field(default_factory=list)

    def reachable(self) -> set[int]:
        return set(self.replies)

    def is_there(self, client: int) -> bool:
        return client in self.replies

    def ask(
        self, questions: Mapping[int, Frame], seconds: Mapping[int, float], longest: Longest
    ) -> Generator[tuple[int, Frame], None, None]:
        self.asked += questions.items()
        with _ONE_AT_A_TIME:
            for number, question in questions.items():
                yield number, self.replies[number](question)


def served(config: RunConfig, carrier: Any) -> tuple[Federation, RemoteServer]:
    """A server of a run, which asks as one on a site does, and what it serves."""
    built, terms = small.built(config), Terms(60.0, None, 5.0)
    server = remote_server(built, configuration.to_tree(config), carrier, RUN, terms, lambda event: None)
    return built.federation, server


def shared_rows(sentences: Path) -> Rows:
    return Rows(str(sentences), text="text", label="label", shared=True)


def run_of(name: str, tiny_bert: Path, sentences: Path, **changes: Any) -> RunConfig:
    """A small run of a method with three clients, in rounds of two steps."""
    given = {"model__cut": 2, "clients": 3, "sampled_clients": 3, "steps_per_round": 2, "seed": 5}
    return small.texts(name, tiny_bert, sentences, **given | changes)


def package_folder(config: RunConfig, folder: Path, *, client: int | None = None) -> Path:
    """A package of a recipe."""
    package(configuration.to_tree(config), folder, client=client)
    return folder


def adapted(folder: Path, config: RunConfig, out: Path) -> Package:
    """The package of a recipe that differs in its method alone: the graphs are the same, and take long to be made."""
    shutil.copytree(folder, out)
    manifest = json.loads((out / MANIFEST).read_text())
    manifest["config"] = configuration.to_tree(config)
    blocks = config.algorithm.options().get("exact_blocks", 0)
    numbers = range(manifest["model"]["cut"])[-blocks:] if blocks not in (0, "all") else range(2 if blocks else 0)
    inside = tuple(f".layer.{number}." for number in numbers)
    manifest["exact"] = [each["name"] for each in manifest["theta"] if any(i in each["name"] for i in inside)]
    (out / MANIFEST).write_text(json.dumps(manifest))
    return Package.open(out)


@dataclass
class World:
    """A run with its parties."""

    federation: Federation
    server: RemoteServer
    carrier: Here
    workers: dict[int, Worker]
    devices: dict[int, Device]

    def run(self, rounds: int, *, first: int = 0, steps: int = 2) -> list[float]:
        return [
            self.server.run_round(Round(number, steps, number * steps), measure_memory=number == 0)
            for number in range(first, first + rounds)
        ]

    def thetas(self) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """How many agreed rows the server and each client have taken, and θ there."""
        self.federation.server.agreed_bottom()
        sides = [self.federation.server.party.agreed.replica]
        sides += [worker._side.party.theta.replica for worker in self.workers.values() if worker._side is not None]
        for replica in sides:
            yield replica.position, {name: p.detach().numpy().copy() for name, p in replica.parameters.items()}
        for device in self.devices.values():
            client: Any = device._client
            theta = client._session.party.theta
            yield theta.position, {name: p.copy() for name, p in theta.parameters.items()}


def world(config: RunConfig, kinds: list[Kind], rows: Rows, folder: Path, of: Callable[[int], Package]) -> World:
    """A run whose client i is of the kind `kinds[i]`."""
    workers = {n: Worker(SiteConfig(trial=True), folder / "torch") for n, kind in enumerate(kinds) if kind == "torch"}
    devices = {n: Device(of(n), rows, folder / "device") for n, kind in enumerate(kinds) if kind == "device"}
    replies: dict[int, Reply] = {number: worker.reply for number, worker in workers.items()}
    replies |= {number: _of(device) for number, device in devices.items()}
    carrier = Here(replies)
    federation, server = served(config, carrier)
    return World(federation, server, carrier, workers, devices)


def _of(device: Device) -> Reply:
    return lambda asked: Frame(*device.reply(asked.header, asked.body))


class Processes:
    """Carries questions to workers in processes of their own, each of which is started again when it is gone."""

    def __init__(self, arguments: Mapping[int, Mapping[str, Any]]) -> None:
        """`arguments`: of each client's worker, without the descriptor."""
        self._arguments = arguments
        self._lines: dict[int, socket.socket] = {}
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self.asked = 0
        self.kill: tuple[int, int] | None = None
        """The client whose worker is killed before it reads question number so and so, both counted from 0."""

    def reachable(self) -> set[int]:
        return set(self._arguments)

    def is_there(self, client: int) -> bool:
        return client in self._arguments

    def ask(
        self, questions: Mapping[int, Frame], seconds: Mapping[int, float], longest: Longest
    ) -> Generator[tuple[int, Any], None, None]:
        for number, question in questions.items():
            if number not in self._lines:
                self._start(number)
            if self.kill == (number, self.asked):
                self._running[number].kill()
                self._running[number].wait()
            with contextlib.suppress(Gone):  # then no reply comes either
                write_frame(self._lines[number], question)
        self.asked += 1
        for number in questions:
            yield number, self._reply(number, longest)

    def _start(self, number: int) -> None:
        self._lines[number], far = socket.socketpair()
        with far:
            told = json.dumps({**self._arguments[number], "descriptor": far.fileno()})
            command = [sys.executable, "-m", "halfback_device", "worker", told]
            environment = os.environ | {"PYTHONPATH": str(DEVICE)}
            self._running[number] = subprocess.Popen(command, pass_fds=[far.fileno()], env=environment)

    def _reply(self, number: int, longest: Longest) -> Frame | str:
        try:
            return read_frame(self._lines[number], longest)
        except Gone:
            self._lines.pop(number).close()
            self._running.pop(number).wait()
            return "its worker died"

    def close(self) -> None:
        for line in self._lines.values():
            line.close()  # by which a worker knows that nobody asks any more
        for process in self._running.values():
            assert process.wait(60) == 0
