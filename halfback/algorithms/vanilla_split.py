"""Vanilla split learning: one client at a time, and the bottom goes from one to the next (arXiv 1810.06060).

1. the client whose turn it was → the next one: the bottom θ
2. for each of the turn's batches: client: z = f_b(x; θ) → server: λ = ∂ℓ/∂z, its own step → client: a step of θ on
   ∂⟨λ, z⟩/∂θ
3. the client hands θ over

The server passes θ on, so a hand-over counts once, where a device sends it. Ours: each turn is as long as a round, the
clients of a cohort take theirs in the order of their numbers, and the moments of a client's optimiser stay with it.
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
from halfback.parties.weights import average_weights, take_weights
from halfback.wire.messages import Activations, CutGradient, HandOver, HeadGradient, Join, Message


@dataclass(frozen=True)
class VanillaSplit:
    """No options."""

    traits: ClassVar[Traits] = Traits(agreement="relay", backpropagates=True, u_shape=True, one_by_one=True)

    def client_round(self, client: Client, round: Round) -> Conversation:
        """The device's side: forward and backward passes."""
        take_weights(client, (yield Join(client.position)), HandOver)
        yield from first_order_steps(client, round)
        yield HandOver(tuple(client.replica.parameters.values()))

    def answer(self, server: Server, messages: Mapping[int, Any]) -> Mapping[int, Message]:
        """The server's side of one exchange."""
        match next(iter(messages.values())):
            case Join():
                return {m: HandOver(tuple(server.replica.parameters.values())) for m in messages}
            case Activations() if server.head is not None:
                return middle_activations(server, messages)
            case Activations() | HeadGradient():
                gradients = backpropagate_top(server, messages)
                step_top(server, messages)
                return {m: CutGradient(gradient) for m, gradient in gradients.items()}
            case HandOver():
                return average_weights(server, messages)  # of one
            case _:
                raise unexpected(messages)
