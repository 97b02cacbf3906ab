"""The deployment engine on this machine: each client in a thread, at the far end of a socket."""

import socket
import threading
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import final

from halfback.engine.client_side import ClientSide
from halfback.engine.federation import Federation
from halfback.engine.remote.client import RemoteClient, takes
from halfback.engine.remote.frames import Frame, Longest, Prepare, Ready, frame, read_question
from halfback.engine.remote.presence import Beginning, Came, Carrier, Events, Terms
from halfback.engine.remote.server import RemoteServer
from halfback.engine.remote.stream import Gone, read_frame, write_frame
from halfback.engine.remote.weights import at_the_beginning, digest_of, take_weights
from halfback.errors import PeerError
from halfback.parties.holdings import Round
from halfback.wire.messages import Weights
from halfback.wire.packing import pack

PATIENCE = 60.0  # seconds until a silent other side is an error
_ONE_AT_A_TIME = threading.Lock()  # torch has one level of forward-mode differentiation a process, not a thread


@final
class Sockets:
    """Carries the questions to clients that are made when they are first asked."""

    def __init__(self, make_client: Callable[[int], ClientSide], clients: int, folder: Path) -> None:
        self._make_client = make_client
        self._clients = clients
        self._folder = folder
        self._lines: dict[int, socket.socket] = {}

    def reachable(self) -> set[int]:
        return set(range(self._clients))

    def is_there(self, client: int) -> bool:
        return client < self._clients

    def ask(
        self, questions: Mapping[int, Frame], seconds: Mapping[int, float], longest: Longest
    ) -> Generator[tuple[int, Came], None, None]:
        for number, question in questions.items():
            if number not in self._lines:
                self._lines[number], far = socket.socketpair()
                self._lines[number].settimeout(PATIENCE)
                threading.Thread(target=self._work, args=(number, far), daemon=True).start()
            write_frame(self._lines[number], question)
        for number in questions:
            yield number, self._reply(number, longest)

    def _reply(self, number: int, longest: Longest) -> Came:
        try:
            return read_frame(self._lines[number], longest)
        except PeerError as error:
            self._lines.pop(number).close()  # what follows on this line is no frame
            return error

    def _work(self, number: int, line: socket.socket) -> None:
        with line:
            with _ONE_AT_A_TIME:  # Transformers changes its own classes while it loads a model
                side = self._make_client(number)
            client: RemoteClient | None = None
            try:
                while True:
                    header, body = read_frame(line, Longest(takes(side, begun=client is not None)))
                    question = read_question(header)
                    if isinstance(question, Prepare):
                        if body:
                            take_weights(side.held(), body)
                        fits = client is not None or digest_of(side.held()) == question.weights
                        if fits and client is None:
                            client = RemoteClient(side, self._folder / str(number))
                        ready = Ready(fits=fits, takes=takes(side, begun=fits), rows=len(side.party.feed.data))
                        write_frame(line, frame(ready))
                        continue
                    assert client is not None
                    with _ONE_AT_A_TIME:
                        reply = client.reply(question, body)
                    write_frame(line, reply)
            except (Gone, PeerError):
                return

    def close(self) -> None:
        for line in self._lines.values():
            line.close()


def deployed(federation: Federation, carrier: Carrier, terms: Terms, events: Events) -> RemoteServer:
    """The server of a federation with clients elsewhere, which begin with the weights that it has now."""
    server = federation.server
    theta, numbers = server.party.agreed.replica.parameters, range(server.sampling.clients)
    weights = {number: at_the_beginning(federation.client(number).parts(), theta) for number in numbers}
    digests = {number: digest_of(tensors) for number, tensors in weights.items()}

    def question(number: int) -> Prepare:
        return Prepare(run="0" * 16, client=number, config={}, label_names=(), weights=digests[number])

    beginning = Beginning(question, lambda number: pack(Weights(tuple(weights[number].values()))).data)
    return RemoteServer(server, carrier, beginning, terms, events)


def run_over_sockets(
    federation: Federation, make_client: Callable[[int], ClientSide], *, rounds: int, steps: int, folder: Path
) -> list[float]:
    """Trains with a federation's server and clients that are made anew, each at the far end of a socket.

    Returns the training loss of each round.
    """
    carrier = Sockets(make_client, federation.server.sampling.clients, folder)
    server = deployed(federation, carrier, Terms(PATIENCE, None, PATIENCE), lambda _: None)
    try:
        return [
            server.run_round(Round(number, steps, number * steps), measure_memory=False) for number in range(rounds)
        ]
    finally:
        carrier.close()
