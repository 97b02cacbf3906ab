"""Algorithms that a test listens to, or speaks in the place of."""

from collections.abc import Callable, Mapping
from typing import Any

from halfback.engine.federation import Federation
from halfback.parties.protocol import Conversation
from halfback.wire.messages import Message


class Wrapped:
    """An algorithm, of which a test has replaced the server's side of an exchange, the client's of a round, or both.

    `wrap` puts it in the place of the server's and of all clients'.
    """

    def __init__(
        self,
        algorithm: Any,
        *,
        answer: Callable[..., Mapping[int, Message]] | None = None,
        client_round: Callable[..., Conversation] | None = None,
    ) -> None:
        self._algorithm = algorithm
        self.answer = answer or algorithm.answer
        self.client_round = client_round or algorithm.client_round

    def __getattr__(self, name: str) -> Any:
        return getattr(self._algorithm, name)


def give(federation: Federation, algorithm: Any) -> None:
    """Puts an algorithm in the place of the server's and of all clients'."""
    federation.server.algorithm = algorithm
    for number in range(federation.server.sampling.clients):
        federation.client(number).algorithm = algorithm


def wrap(federation: Federation, **replaced: Callable[..., Any]) -> None:
    """Replaces `answer`, `client_round` or both of the algorithm."""
    give(federation, Wrapped(federation.server.algorithm, **replaced))


def saying(talk: Conversation, change: Callable[[Message], Message]) -> Conversation:
    """A client's side of a round, which says something else."""
    reply = None
    while True:
        try:
            message = talk.send(reply)
        except StopIteration:
            return
        reply = yield change(message)
