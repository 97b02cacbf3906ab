"""Frozen bottom: the device only encodes; the server trains its top on what arrives.

The fence that every zeroth-order method must jump to earn its keep: it costs a device one forward pass and nothing
comes back.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from halfback.parties.agreement import frozen
from halfback.parties.client import Client
from halfback.parties.client_feedback import submit
from halfback.parties.cohort import Aggregation
from halfback.parties.holdings import Round
from halfback.parties.protocol import Conversation, Needs
from halfback.parties.server import Server
from halfback.parties.server_top import backpropagate_top, middle_activations, step_top
from halfback.wire.messages import Activations, HeadGradient, Message, Nothing


@dataclass(frozen=True)
class FrozenBottom:
    """Options of the frozen bottom.

    Attributes:
        aggregation: of the top's gradients: `uniform`, or by `rows`.
    """

    aggregation: Aggregation = "uniform"

    @property
    def needs(self) -> Needs:
        """What must be prepared."""
        return Needs(frozen(self.aggregation), fits=frozenset({"u_shape", "mixed_cuts"}), cut_gradient=False)

    def client_round(self, client: Client, round: Round) -> Conversation:
        """The device's side: one forward pass a step."""
        for batch in client.feed.batches(round):
            yield from submit(client, batch, client.forward(batch))

    def answer(self, server: Server, messages: Mapping[int, Any]) -> Mapping[int, Message]:
        """The server's side of one exchange."""
        match next(iter(messages.values())):
            case Activations() if server.top.head is not None:
                return middle_activations(server, messages)
            case Activations() | HeadGradient():
                backpropagate_top(server, messages)
                step_top(server, messages)
                return {m: Nothing() for m in messages}
            case _:
                return self.needs.agreement.answer(server, messages)
