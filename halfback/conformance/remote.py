"""A second carrier of conversations, written apart from the engine: a socket for each client, one thread each."""

import socket
import struct
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from halfback.algorithms.holdings import Round
from halfback.engines.link import End
from halfback.engines.simulation import Simulation, take_losses
from halfback.models.cut import install
from halfback.wire.messages import HandOver

PATIENCE = 60.0  # seconds until a silent other side is an error
_ONE_AT_A_TIME = threading.Lock()  # torch has one level of forward-mode differentiation a process, not a thread


@dataclass
class Received:
    """What the server saw."""

    losses: list[float] = field(default_factory=list)
    up_bytes: int = 0
    down_bytes: int = 0


def run_over_sockets(server: Simulation, machine: Callable[[], Simulation], *, rounds: int, steps: int) -> Received:
    """Trains with `server`'s server; a client is a client of the `machine` that is built for it alone."""
    machines: dict[int, Simulation] = {}
    received = Received()
    for number in range(rounds):
        cohort = server.cohort(number)
        for client in cohort:
            machines.setdefault(client, machine())
        server.server.round = round = Round(number, steps, number * steps)
        for together in [[client] for client in cohort] if server.algorithm.traits.one_by_one else [cohort]:
            _converse(server, machines, together, round, received)
        parties = [machines[client].clients[client] for client in cohort]
        received.losses.append(take_losses(server.server, parties))
    return received


def _converse(
    server: Simulation, machines: dict[int, Simulation], together: list[int], round: Round, received: Received
) -> None:
    pairs = {client: socket.socketpair() for client in together}
    for ends in pairs.values():
        for end in ends:
            end.settimeout(PATIENCE)
    with ThreadPoolExecutor(len(together)) as threads:
        talks = [threads.submit(_talk, machines[client], client, round, pairs[client][1]) for client in together]
        try:
            lines = {client: Line(pairs[client][0], server.link.of(client)[1]) for client in together}
            _serve(server, lines, received)
        finally:
            for near, _ in pairs.values():
                near.close()
        for talk in talks:
            talk.result()


def _talk(machine: Simulation, number: int, round: Round, end: socket.socket) -> None:
    with end:
        client = machine.client(number)
        near = machine.link.of(number)[0]
        greeting = near.hello()
        if greeting is not None:
            _write(end, near.send(greeting).data)
            near.meet(near.receive(_read(end)))
        install(machine.device_part, client.replica.parameters)
        talk, reply = machine.algorithm.client_round(client, round), None
        while True:
            try:
                with _ONE_AT_A_TIME:
                    message = talk.send(reply)
            except StopIteration:
                _write(end, b"")
                return
            _write(end, near.send(message).data)
            reply = near.receive(_read(end))


@dataclass(frozen=True)
class Line:
    """The server's end of a client: the socket, and what the codecs remember."""

    socket: socket.socket
    end: End

    def hear(self, received: Received) -> Any:
        """The message, or None where the client has said all."""
        data = _read(self.socket)
        received.up_bytes += len(data)
        return self.end.receive(data) if data else None

    def say(self, message: Any, received: Received) -> None:
        data = self.end.send(message).data
        if not isinstance(message, HandOver):  # passed on: counted where a device sent it
            received.down_bytes += len(data)
        _write(self.socket, data)


def _serve(server: Simulation, lines: dict[int, Line], received: Received) -> None:
    for line in lines.values():
        greeting = line.end.hello(server.thresholds())
        if greeting is not None:
            line.end.meet(line.hear(received))
            line.say(greeting, received)
    while True:
        heard = {client: line.hear(received) for client, line in lines.items()}
        messages = {client: message for client, message in heard.items() if message is not None}
        lines = {client: lines[client] for client in messages}
        if not messages:
            return
        answers = server.algorithm.answer(server.server, messages)
        for client, line in lines.items():
            line.say(answers[client], received)


def _write(end: socket.socket, data: bytes) -> None:
    end.sendall(struct.pack("<I", len(data)) + data)


def _read(end: socket.socket) -> bytes:
    return _exactly(end, struct.unpack("<I", _exactly(end, 4))[0])


def _exactly(end: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = end.recv(size - len(data))
        if not piece:
            raise ConnectionError("the other side is gone")
        data += piece
    return bytes(data)
