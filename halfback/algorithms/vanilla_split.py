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
from typing import Any

from halfback.parties.by_weights import RELAY
from halfback.parties.client import Client
from halfback.parties.client_feedback import first_order_steps
from halfback.parties.holdings import Round
from halfback.parties.protocol import Conversation, Needs
from halfback.parties.server import Server
from halfback.parties.server_top import backpropagate_top, middle_activations, step_top
from halfback.wire.messages import Activations, CutGradient, HeadGradient, Message


@dataclass(frozen=True)
class VanillaSplit:
    """No options."""

    @property
    def needs(self) -> Needs:
        """What must be prepared."""
        return Needs(RELAY, backpropagates=True, turns="one_by_one", fits=frozenset({"u_shape"}))

    def client_round(self, client: Client, round: Round) -> Conversation:
        """The device's side: forward and backward passes."""
        yield from RELAY.join(client)
        yield from first_order_steps(client, round)
        yield from RELAY.close(client)

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
                return RELAY.answer(server, messages)
