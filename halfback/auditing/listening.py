"""What passes the server, by kind of message, while a run goes on as it would without a listener."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any, final

from torch import Tensor

from halfback.assembly import Built
from halfback.parties.client import Client
from halfback.parties.holdings import Round
from halfback.parties.protocol import Conversation
from halfback.parties.server import Server
from halfback.wire.messages import Message, parts_of

_Parts = tuple[dict[str, Any], dict[str, Any]]  # up and down


@dataclass(frozen=True)
class Heard:
    """What went between the server and one client about one batch.

    Attributes:
        client: its number.
        number: of the batch among the client's.
        up: parts of what the client said, by the names of their kinds; the last of each kind.
        down: parts of what it was told, likewise, as it decoded them.
    """

    client: int
    number: int
    up: dict[str, Any]
    down: dict[str, Any]


def listened(built: Built, rounds: int) -> Iterator[Heard]:
    """Carries some rounds of one step, from where the run stands, and gives what passed; θ moves meanwhile."""
    federation, first = built.federation, built.federation.server.party.steps
    for number in range(first, first + rounds):
        cohort = federation.server.cohort(number)
        with _listening(built, cohort) as heard:
            cursors = {client: federation.client(client).party.feed.cursor for client in cohort}
            federation.run_round(Round(number, 1, number), measure_memory=False)
        yield from (Heard(client, cursors[client], *heard[client]) for client in cohort)


@contextmanager
def _listening(built: Built, cohort: list[int]) -> Iterator[dict[int, _Parts]]:
    """Every party has a listener in the place of its algorithm while this is open."""
    sides: list[Any] = [built.federation.server, *(built.federation.client(client) for client in cohort)]
    heard: dict[int, _Parts] = {client: ({}, {}) for client in cohort}
    algorithm = built.federation.server.algorithm
    for side in sides:
        side.algorithm = _Listener(algorithm, heard)
    try:
        yield heard
    finally:
        for side in sides:
            side.algorithm = algorithm


@final
class _Listener:
    """An algorithm, and a note of what the server is told, and of what devices are told once it is decoded.

    The server encodes the latter, so it knows what is decoded.
    """

    def __init__(self, algorithm: Any, heard: dict[int, _Parts]) -> None:
        self._algorithm, self._heard = algorithm, heard

    def __getattr__(self, name: str) -> Any:
        return getattr(self._algorithm, name)

    def answer(self, server: Server, messages: Mapping[int, Message]) -> Mapping[int, Message]:
        """The algorithm's own."""
        for client, message in messages.items():
            self._note(self._heard[client][0], message)
        answers: Mapping[int, Message] = self._algorithm.answer(server, messages)
        return answers

    def client_round(self, client: Client, round: Round) -> Conversation:
        """The algorithm's own."""
        talk, reply = self._algorithm.client_round(client, round), None
        while True:
            try:
                message = talk.send(reply)
            except StopIteration:
                return
            reply = yield message
            self._note(self._heard[client.id][1], reply)

    @staticmethod
    def _note(noted: dict[str, Any], message: Any) -> None:
        for part in parts_of(message):
            noted[type(part).__name__] = _copied(part)


def _copied(part: Any) -> Any:
    """A message whose tensors nobody changes later."""
    return replace(part, **{field.name: _copy(getattr(part, field.name)) for field in fields(part)})


def _copy(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_copy(each) for each in value)
    return value.detach().clone() if isinstance(value, Tensor) else value
