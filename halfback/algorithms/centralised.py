"""Centralised training: backpropagation through the whole model on one machine, the ceiling of the others.

For each batch: a step of the optimiser on ∂ℓ/∂θ. The machine has the rows of all clients, and in a batch as many as a
cohort has together.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from halfback.parties.agreement import ALONE, unexpected
from halfback.parties.client import Client
from halfback.parties.client_local import descend_local
from halfback.parties.holdings import Round
from halfback.parties.protocol import Conversation, Needs
from halfback.parties.server import Server
from halfback.wire.messages import Message


@dataclass(frozen=True)
class Centralised:
    """No options."""

    @property
    def needs(self) -> Needs:
        """What must be prepared."""
        return Needs(ALONE, holds="whole", backpropagates=True, top="none")

    def client_round(self, client: Client, round: Round) -> Conversation:
        """All of it: forward and backward passes through the whole model."""
        for step, batch in enumerate(client.feed.batches(round), round.first):
            descend_local(client, batch, step)
        yield from ()

    def answer(self, server: Server, messages: Mapping[int, Any]) -> Mapping[int, Message]:
        """Nobody speaks."""
        raise unexpected(messages)
