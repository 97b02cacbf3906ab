"""SplitLoRA: first-order split federated learning (arXiv 2407.00952), with adapters or full parameters.

A device keeps the graph of its forward pass, receives λ = ∂ℓ/∂z and backpropagates its bottom. The server takes one
step on the cohort's averaged gradient. After the round's steps the bottoms of the cohort are averaged.

1. server → client: the averaged bottom
2. for each of the round's steps: client: z_m = f_b(x_m; θ_m) → server: λ_m, its own step → client: a step of θ_m on
   ∂⟨λ_m, z_m⟩/∂θ_m
3. client → server: θ_m; server: θ = mean over m

Ours, because the paper's clients all take part in every round: the moments of a client's optimiser stay with the client
while it is not sampled, and are never sent.
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
from halfback.parties.server_top import backpropagate_top, middle_activations, step_top
from halfback.wire.messages import Activations, CutGradient, HeadGradient, Message


@dataclass(frozen=True)
class SplitLora:
    """Options of SplitLoRA.

    Attributes:
        checkpointing: the client stores only what enters each block and computes the rest again in its backward pass.
        aggregation: of bottoms and the top's gradients: `uniform` **(ours)**, or by `rows`.
    """

    checkpointing: bool = False
    aggregation: Aggregation = "uniform"

    @property
    def needs(self) -> Needs:
        """What must be prepared."""
        return Needs(ByWeights(self.aggregation), backpropagates=True, fits=frozenset({"u_shape"}))

    def client_round(self, client: Client, round: Round) -> Conversation:
        """The device's side: forward and backward passes."""
        yield from self.needs.agreement.join(client)
        yield from first_order_steps(client, round, checkpointing=self.checkpointing)
        yield from self.needs.agreement.close(client)

    def answer(self, server: Server, messages: Mapping[int, Any]) -> Mapping[int, Message]:
        """The server's side of one exchange."""
        match next(iter(messages.values())):
            case Activations() if server.top.head is not None:
                return middle_activations(server, messages)
            case Activations() | HeadGradient():
                gradients = backpropagate_top(server, messages)
                step_top(server, messages)
                return {m: CutGradient(gradient) for m, gradient in gradients.items()}
            case _:
                return self.needs.agreement.answer(server, messages)
