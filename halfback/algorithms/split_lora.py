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
from typing import Any, ClassVar

from halfback.parties.client import Client
from halfback.parties.client_descent import first_order_steps
from halfback.parties.exchange import unexpected
from halfback.parties.holdings import Round
from halfback.parties.protocol import Conversation, Traits
from halfback.parties.server import Server
from halfback.parties.server_passes import middle_activations
from halfback.parties.server_top import backpropagate_top, step_top
from halfback.parties.shares import Aggregation
from halfback.parties.weights import agreed_weights, average_weights, take_weights, weights_of
from halfback.wire.messages import Activations, CutGradient, HeadGradient, Join, Message, Weights


@dataclass(frozen=True)
class SplitLora:
    """Options of SplitLoRA.

    Attributes:
        checkpointing: the client stores only what enters each block and computes the rest again in its backward pass.
        aggregation: of bottoms and the top's gradients: `uniform` **(ours)**, or by `rows`.
    """

    traits: ClassVar[Traits] = Traits(agreement="weights", backpropagates=True, u_shape=True)

    checkpointing: bool = False
    aggregation: Aggregation = "uniform"

    def client_round(self, client: Client, round: Round) -> Conversation:
        """The device's side: forward and backward passes."""
        take_weights(client, (yield Join(client.position)))
        yield from first_order_steps(client, round, checkpointing=self.checkpointing)
        yield weights_of(client)

    def answer(self, server: Server, messages: Mapping[int, Any]) -> Mapping[int, Message]:
        """The server's side of one exchange."""
        match next(iter(messages.values())):
            case Join():
                return agreed_weights(server, messages)
            case Activations() if server.head is not None:
                return middle_activations(server, messages)
            case Activations() | HeadGradient():
                gradients = backpropagate_top(server, messages)
                step_top(server, messages)
                return {m: CutGradient(gradient) for m, gradient in gradients.items()}
            case Weights():
                return average_weights(server, messages)
            case _:
                raise unexpected(messages)
