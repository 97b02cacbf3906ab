"""FedAvg: local training of the whole model, and averages of the weights (McMahan et al., arXiv 1602.05629).

1. server → client: the averaged θ (with LoRA, the adapters and the task head)
2. client m, for each of the round's batches: a step of the optimiser on ∂ℓ/∂θ_m
3. client → server: θ_m; server: θ = Σ_m (n_m/n) θ_m over the round's clients, with n_m the rows of client m

Ours: each takes as many steps as the others; the moments of a client's optimiser stay with it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from halfback.parties.client import Client
from halfback.parties.client_local import descend_local
from halfback.parties.exchange import unexpected
from halfback.parties.holdings import Round
from halfback.parties.protocol import Conversation, Traits
from halfback.parties.server import Server
from halfback.parties.shares import Aggregation
from halfback.parties.weights import agreed_weights, average_weights, take_weights, weights_of
from halfback.wire.messages import Join, Message, Weights


@dataclass(frozen=True)
class Fedavg:
    """Options of FedAvg: `aggregation`, by `rows` (the paper's) or `uniform`. `steps_per_round` are local steps."""

    traits: ClassVar[Traits] = Traits(agreement="weights", device="whole", backpropagates=True, top="none")

    aggregation: Aggregation = "rows"

    def client_round(self, client: Client, round: Round) -> Conversation:
        """The device's side: forward and backward passes through the whole model."""
        take_weights(client, (yield Join(client.position)))
        for step, batch in enumerate(client.batches(round), round.first):
            descend_local(client, batch, step)
        yield weights_of(client)

    def answer(self, server: Server, messages: Mapping[int, Any]) -> Mapping[int, Message]:
        """The server's side of one exchange."""
        match next(iter(messages.values())):
            case Join():
                return agreed_weights(server, messages)
            case Weights():
                return average_weights(server, messages)
            case _:
                raise unexpected(messages)
