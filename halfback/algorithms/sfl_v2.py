"""SFL-V2: split federated learning with one server model (SplitFed, arXiv 2004.12088, algorithm 3).

As `split_lora`, save that the server steps on one client's batch after the other's, where that takes one step on the
mean of the cohort.

1. server → client: the averaged bottom
2. for each of the round's steps: every client: z_m = f_b(x_m; θ_m) → server: client after client, λ_m and a step of its
   one top → client: a step of θ_m on ∂⟨λ_m, z_m⟩/∂θ_m
3. client → server: θ_m; server: θ = Σ_m (n_m/n) θ_m, with n_m the rows of client m

Ours, because the paper draws it: the order of the clients within a step is that of their numbers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from halfback.parties.by_weights import ByWeights
from halfback.parties.client import Client
from halfback.parties.client_feedback import first_order_steps
from halfback.parties.cohort import Aggregation
from halfback.parties.holdings import Round
from halfback.parties.protocol import Conversation, Needs
from halfback.parties.server import Server
from halfback.parties.server_top import step_top_by_client
from halfback.wire.messages import Activations, CutGradient, Message


@dataclass(frozen=True)
class SflV2:
    """Options of SFL-V2.

    Attributes:
        aggregation: of bottoms, by `rows` (the paper's n_k / n) or `uniform`.
    """

    aggregation: Aggregation = "rows"

    @property
    def needs(self) -> Needs:
        """What must be prepared."""
        return Needs(ByWeights(self.aggregation), backpropagates=True)

    def client_round(self, client: Client, round: Round) -> Conversation:
        """The device's side: forward and backward passes."""
        yield from self.needs.agreement.join(client)
        yield from first_order_steps(client, round)
        yield from self.needs.agreement.close(client)

    def answer(self, server: Server, messages: Mapping[int, Any]) -> Mapping[int, Message]:
        """The server's side of one exchange."""
        match next(iter(messages.values())):
            case Activations():
                gradients = step_top_by_client(server, messages)
                return {m: CutGradient(gradient) for m, gradient in gradients.items()}
            case _:
                return self.needs.agreement.answer(server, messages)
