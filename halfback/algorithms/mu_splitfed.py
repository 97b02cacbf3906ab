"""MU-SplitFed: split federated learning by zeroth order, with τ server steps a client step (its unbalanced update).

One step, K sampled clients, each with a bottom θ_m of its own within a round:

1. server → client, once a round: the averaged bottom
2. client: z = f_b(x; θ_m) → z, labels, mask; server: τ zeroth-order steps of its top ψ on the mean loss of the z
3. client, for p = 1, …, P: z± = f_b(x; θ_m ± μu_p) → each; server: ℓ⁺ − ℓ⁻ → one scalar
4. client: θ_m moves by the optimiser on (1/P) Σ_p (ℓ⁺ − ℓ⁻) / 2μ · u_p
5. client → server, once a round: θ_m; server: θ = mean over m

Traffic a step: 1 + 2P activations up, P scalars down. Ours: one top for all clients, which steps by central differences
of their mean loss; each client draws directions of its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from halfback.parties.client import Client
from halfback.parties.client_replies import loss_value
from halfback.parties.exchange import forward, unexpected, upload
from halfback.parties.holdings import Round
from halfback.parties.options import check_count, check_probes
from halfback.parties.probing import keep_batches, probe, probe_loss, replica_of_top, top_slopes
from halfback.parties.protocol import Conversation, Traits
from halfback.parties.server import Server
from halfback.parties.shares import Aggregation
from halfback.parties.weights import agreed_weights, average_weights, take_weights, weights_of
from halfback.wire.messages import Activations, Join, Losses, Message, Nothing, Weights
from halfback.zeroth.slopes import default_radius


@dataclass(frozen=True)
class MuSplitfed:
    """Options of MU-SplitFed.

    Attributes:
        directions: P, seeded directions a step, for each part.
        radius: μ, the probe radius; None takes the measured default of each part.
        server_steps: τ, steps of the top for each step of the clients.
        aggregation: of weights and of the top's losses: `uniform` (the paper's), or by `rows`.
    """

    traits: ClassVar[Traits] = Traits(agreement="weights", top="replayed")

    directions: int = 1
    radius: float | None = None
    server_steps: int = 2
    aggregation: Aggregation = "uniform"

    def __post_init__(self) -> None:
        check_probes(self.directions, self.radius)
        check_count("server_steps", self.server_steps)

    def client_round(self, client: Client, round: Round) -> Conversation:
        """The device's side: 1 + 2P forward passes a step."""
        replica = client.replica
        take_weights(client, (yield Join(client.position)))
        for step, batch in enumerate(client.batches(round), round.first):
            yield upload(batch, forward(client, batch))
            radius = self.radius or default_radius(replica.parameters, client.hidden_dtype)
            slopes = []
            for seed in replica.seeds(self.directions):
                yield probe(client, batch, seed, radius)
                change = loss_value((yield probe(client, batch, seed, -radius)))
                slopes.append(change / (2 * radius))
            replica.replay(replica.position, torch.tensor([slopes], dtype=torch.float32), [step])
        yield weights_of(client)

    def answer(self, server: Server, messages: Mapping[int, Any]) -> Mapping[int, Message]:
        """The server's side of one exchange."""
        match next(iter(messages.values())):
            case Join():
                return agreed_weights(server, messages)
            case Activations(labels=None):
                return {m: self._compared(server, m, message) for m, message in messages.items()}
            case Activations():
                answers = keep_batches(server, messages)
                self._step_top(server)
                return answers
            case Weights():
                server.kept = {}
                return average_weights(server, messages)
            case _:
                raise unexpected(messages)

    def _step_top(self, server: Server) -> None:
        replica = replica_of_top(server)
        radius = self.radius or default_radius(replica.parameters, server.hidden_dtype)
        for place in range(self.server_steps):
            slopes, loss = top_slopes(server, self.directions, radius)
            if place == 0:
                server.losses.append(loss)
            replica.replay(replica.position, slopes.unsqueeze(0), [server.steps])
        server.steps += 1

    def _compared(self, server: Server, client: int, message: Activations) -> Message:
        loss, seen = probe_loss(server, client, message), server.kept[client].losses
        if not seen:  # ℓ⁺, of which nothing is said yet
            seen.append(loss.item())
            return Nothing()
        return Losses((seen.pop() - loss).reshape(1))
