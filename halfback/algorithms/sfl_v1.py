"""SFL-V1: split federated learning with a server model for each client (SplitFed, arXiv 2004.12088, algorithms 1, 2).

1. server → client: the averaged bottom; the server makes a copy ψ_m of its top for each client of the cohort
2. for each of the round's steps: client: z_m = f_b(x_m; θ_m) → server: λ_m, a step of ψ_m alone → client: a step of θ_m
   on ∂⟨λ_m, z_m⟩/∂θ_m
3. client → server: θ_m; server: θ = Σ_m (n_m/n) θ_m, ψ = Σ_m (n_m/n) ψ_m, with n_m the rows of client m

Ours, because the paper steps by plain SGD: the moments of a copy's optimiser live as long as the copy, one round.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from halfback.models.cut import install
from halfback.parties.by_weights import ByWeights, copied
from halfback.parties.client import Client
from halfback.parties.client_feedback import first_order_steps
from halfback.parties.cohort import Aggregation, mean
from halfback.parties.holdings import Descent, Round
from halfback.parties.protocol import Conversation, Needs
from halfback.parties.server import ByClient, Server
from halfback.parties.server_top import step_top_by_client
from halfback.wire.messages import Activations, CutGradient, Message, Weights


@dataclass(frozen=True)
class SflV1:
    """Options of SFL-V1.

    Attributes:
        aggregation: of bottoms and tops, by `rows` (the paper's n_k / n) or `uniform`.
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
                gradients = _step_copies(server, messages)
                return {m: CutGradient(gradient) for m, gradient in gradients.items()}
            case Weights():
                _average_copies(server)
        return self.needs.agreement.answer(server, messages)


@dataclass(frozen=True)
class Copy:
    """The server's model of one client: what is trained of it, and what moves that."""

    parameters: dict[str, Tensor]
    descent: Descent


def _copies(server: Server) -> dict[int, Copy]:
    memory: ByClient[Copy] = server.recall(ByClient)
    return memory.of


def _step_copies(server: Server, messages: Mapping[int, Activations]) -> dict[int, Tensor]:
    """λ by client; each client's copy has taken its step."""
    top, copies, gradients = server.top, _copies(server), dict[int, Tensor]()
    shared, descent, steps = top.trained, top.first_order, server.steps
    try:
        for m, message in messages.items():
            if m not in copies:
                own = copied(shared)
                copies[m] = Copy(own, descent.another([each for each in own.values() if each.requires_grad]))
            install(top.module, copies[m].parameters)
            top.descent, server.steps = copies[m].descent, steps  # the cohort's copies step at once
            gradients |= step_top_by_client(server, {m: message})
    finally:  # also where a message is refused
        install(top.module, shared)
        top.descent = descent
    return gradients


@torch.no_grad()
def _average_copies(server: Server) -> None:
    copies = _copies(server)
    shares = server.cohort.shares(copies)
    for name, parameter in server.top.trained.items():
        values = [copy.parameters[name] for copy in copies.values()]
        if values:
            parameter.copy_(mean(torch.stack(values), shares))
    copies.clear()
