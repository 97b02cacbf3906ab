"""The deployment engine on this machine: for each client a device, in a thread, at the far end of a socket."""

import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import final

from halfback.engine.federation import Simulation
from halfback.engine.remote.client import Device, digest_of, held_by_devices, take_weights, takes
from halfback.engine.remote.frames import Frame, Longest, Prepare, Ready, frame, read_question
from halfback.engine.remote.server import Came, Deployment
from halfback.engine.remote.stream import Gone, read_frame, write_frame
from halfback.errors import PeerError
from halfback.parties.holdings import Round
from halfback.wire.messages import Weights
from halfback.wire.packing import pack

PATIENCE = 60.0  # seconds until a silent other side is an error
_ONE_AT_A_TIME = threading.Lock()  # torch has one level of forward-mode differentiation a process, not a thread


@final
class Sockets:
    """Carries the questions to clients whose machines are made when they are first asked."""

    def __init__(self, machine: Callable[[], Simulation], clients: int, folder: Path) -> None:
        self._machine = machine
        self._clients = clients
        self._folder = folder
        self._lines: dict[int, socket.socket] = {}

    def reachable(self) -> set[int]:
        return set(range(self._clients))

    def is_there(self, client: int) -> bool:
        return client < self._clients

    def ask(self, questions: Mapping[int, Frame], seconds: float, longest: Longest) -> Mapping[int, Came]:
        for number, question in questions.items():
            if number not in self._lines:
                self._lines[number], far = socket.socketpair()
                self._lines[number].settimeout(PATIENCE)
                threading.Thread(target=self._serve, args=(number, far), daemon=True).start()
            write_frame(self._lines[number], question)
        return {number: self._answer(number, longest) for number in questions}

    def _answer(self, number: int, longest: Longest) -> Came:
        try:
            return read_frame(self._lines[number], longest)
        except PeerError as error:
            self._lines.pop(number).close()  # what follows on this line is no frame
            return error

    def _serve(self, number: int, line: socket.socket) -> None:
        with line:
            with _ONE_AT_A_TIME:  # Transformers changes its own classes while it loads a model
                machine = self._machine()
            device: Device | None = None
            try:
                while True:
                    header, body = read_frame(line, Longest(takes(machine, number, begun=device is not None)))
                    question = read_question(header)
                    if isinstance(question, Prepare):
                        if body:
                            take_weights(machine, body)
                        fits = digest_of(held_by_devices(machine)) == question.weights
                        device = Device(machine, number, self._folder / str(number)) if fits else None
                        rows = len(machine.sources[number])
                        ready = Ready(fits=fits, takes=takes(machine, number, begun=fits), rows=rows)
                        write_frame(line, frame(ready))
                        continue
                    assert device is not None
                    with _ONE_AT_A_TIME:
                        answer = device.answer(question, body)
                    write_frame(line, answer)
            except (Gone, PeerError):
                return

    def close(self) -> None:
        for line in self._lines.values():
            line.close()


def deployed(server: Simulation, carrier: Sockets) -> Deployment:
    """A deployment of `server`'s server, with every client needed."""
    weights = {name: tensor.clone() for name, tensor in held_by_devices(server).items()}
    digest = digest_of(weights)

    def prepare(number: int) -> Prepare:
        return Prepare(run="0" * 16, client=number, config={}, label_names=(), weights=digest)

    return Deployment(
        server,
        carrier,
        prepare,
        lambda: pack(Weights(tuple(weights.values()))).data,
        deadline=PATIENCE,
        min_cohort=None,
        patience=PATIENCE,
        events=lambda _: None,
    )


def run_over_sockets(
    server: Simulation, machine: Callable[[], Simulation], *, rounds: int, steps: int, folder: Path
) -> list[float]:
    """Trains with `server`'s server; a client is a client of the `machine` that is built for it alone.

    Returns the training loss of each round.
    """
    carrier = Sockets(machine, len(server.sources), folder)
    deployment = deployed(server, carrier)
    try:
        return [
            deployment.run_round(Round(number, steps, number * steps), measure_memory=False) for number in range(rounds)
        ]
    finally:
        carrier.close()
