"""Frozen bottom: the device only encodes; the server trains its top on what arrives.

The fence that every zeroth-order method must jump to earn its keep: it costs a device one forward pass and nothing
comes back.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from halfback.parties.client import Client
from halfback.parties.client_feedback import submit
from halfback.parties.exchange import forward, unexpected
from halfback.parties.holdings import Round
from halfback.parties.protocol import Conversation, Traits
from halfback.parties.server import Server
from halfback.parties.server_passes import middle_activations
from halfback.parties.server_top import backpropagate_top, step_top
from halfback.parties.shares import Aggregation
from halfback.wire.messages import Activations, HeadGradient, Message, Nothing


@dataclass(frozen=True)
class FrozenBottom:
    """Options: `aggregation`, of the top's gradients: `uniform`, or by `rows`."""

    traits: ClassVar[Traits] = Traits(agreement="frozen", u_shape=True, mixed_cuts=True)

    aggregation: Aggregation = "uniform"

    def client_round(self, client: Client, round: Round) -> Conversation:
        """The device's side: one forward pass a step."""
        for batch in client.batches(round):
            yield from submit(client, batch, forward(client, batch))

    def answer(self, server: Server, messages: Mapping[int, Any]) -> Mapping[int, Message]:
        """The server's side of one exchange."""
        match next(iter(messages.values())):
            case Activations() if server.head is not None:
                return middle_activations(server, messages)
            case Activations() | HeadGradient():
                backpropagate_top(server, messages)
                step_top(server, messages)
                return {m: Nothing() for m in messages}
            case _:
                raise unexpected(messages)
