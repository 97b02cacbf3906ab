"""SFL-V1: split federated learning with a server model for each client (SplitFed, arXiv 2004.12088, algorithms 1, 2).

1. server → client: the averaged bottom; the server makes a copy ψ_m of its top for each client of the cohort
2. for each of the round's steps: client: z_m = f_b(x_m; θ_m) → server: λ_m, a step of ψ_m alone → client: a step of θ_m
   on ∂⟨λ_m, z_m⟩/∂θ_m
3. client → server: θ_m; server: θ = Σ_m (n_m/n) θ_m, ψ = Σ_m (n_m/n) ψ_m, with n_m the rows of client m

Ours, because the paper steps by plain SGD: the moments of a copy's optimiser live as long as the copy, one round.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from halfback.models.adapters import trainable
from halfback.models.cut import install
from halfback.parties.client import Client
from halfback.parties.client_descent import first_order_steps
from halfback.parties.exchange import unexpected
from halfback.parties.holdings import Round
from halfback.parties.protocol import Conversation, Traits
from halfback.parties.server import Server
from halfback.parties.server_top import step_top_by_client
from halfback.parties.shares import Aggregation, mean
from halfback.parties.weights import agreed_weights, average_weights, take_weights, weights_of
from halfback.wire.messages import Activations, CutGradient, Join, Message, Weights


@dataclass(frozen=True)
class SflV1:
    """Options of SFL-V1: `aggregation`, of bottoms and tops by `rows` (the paper's n_k / n) or `uniform`."""

    traits: ClassVar[Traits] = Traits(agreement="weights", backpropagates=True)

    aggregation: Aggregation = "rows"

    def client_round(self, client: Client, round: Round) -> Conversation:
        """The device's side: forward and backward passes."""
        take_weights(client, (yield Join(client.position)))
        yield from first_order_steps(client, round)
        yield weights_of(client)

    def answer(self, server: Server, messages: Mapping[int, Any]) -> Mapping[int, Message]:
        """The server's side of one exchange."""
        match next(iter(messages.values())):
            case Join():
                return agreed_weights(server, messages)
            case Activations():
                gradients: dict[int, Tensor] = {}
                shared, steps = (trainable(server.top), server.optimizer), server.steps
                try:
                    for m, message in messages.items():
                        if m not in server.kept:
                            server.kept[m] = _copy(server, shared[0])
                        parameters, server.optimizer = server.kept[m]
                        install(server.top, parameters)
                        server.steps = steps  # the cohort's copies step at once
                        gradients |= step_top_by_client(server, {m: message})
                finally:  # also where a message is refused
                    install(server.top, shared[0])
                    server.optimizer = shared[1]
                return {m: CutGradient(gradient) for m, gradient in gradients.items()}
            case Weights():
                _average_copies(server)
                return average_weights(server, messages)
            case _:
                raise unexpected(messages)


Copy = tuple[dict[str, nn.Parameter], torch.optim.Optimizer]


def _copy(server: Server, shared: Mapping[str, nn.Parameter]) -> Copy:
    own = {name: nn.Parameter(parameter.detach().clone()) for name, parameter in shared.items()}
    assert server.make_optimizer is not None, "an algorithm with a backpropagated top gets optimisers"
    return own, server.make_optimizer(list(own.values()))


@torch.no_grad()
def _average_copies(server: Server) -> None:
    copies: list[Copy] = list(server.kept.values())
    shares = server.shares(server.kept)
    for name, parameter in trainable(server.top).items():
        values: list[Tensor] = [own[name] for own, _ in copies]
        if values:
            parameter.copy_(mean(torch.stack(values), shares))
    server.kept = {}
