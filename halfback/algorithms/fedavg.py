"""FedAvg: local training of the whole model, and averages of the weights (McMahan et al., arXiv 1602.05629).

1. server → client: the averaged θ (with LoRA, the adapters and the task head)
2. client m, for each of the round's batches: a step of the optimiser on ∂ℓ/∂θ_m
3. client → server: θ_m; server: θ = Σ_m (n_m/n) θ_m over the round's clients, with n_m the rows of client m

Ours: each takes as many steps as the others; the moments of a client's optimiser stay with it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from halfback.parties.by_weights import ByWeights
from halfback.parties.client import Client
from halfback.parties.client_local import descend_local
from halfback.parties.cohort import Aggregation
from halfback.parties.holdings import Round
from halfback.parties.protocol import Conversation, Needs
from halfback.parties.server import Server
from halfback.wire.messages import Message


@dataclass(frozen=True)
class Fedavg:
    """Options of FedAvg; `steps_per_round` are its local steps.

    Attributes:
        aggregation: of weights, by `rows` (the paper's) or `uniform`.
    """

    aggregation: Aggregation = "rows"

    @property
    def needs(self) -> Needs:
        """What must be prepared."""
        return Needs(ByWeights(self.aggregation), holds="whole", backpropagates=True, top="none")

    def client_round(self, client: Client, round: Round) -> Conversation:
        """The device's side: forward and backward passes through the whole model."""
        yield from self.needs.agreement.join(client)
        for step, batch in enumerate(client.feed.batches(round), round.first):
            descend_local(client, batch, step)
        yield from self.needs.agreement.close(client)

    def answer(self, server: Server, messages: Mapping[int, Any]) -> Mapping[int, Message]:
        """The server's side of one exchange."""
        return self.needs.agreement.answer(server, messages)
