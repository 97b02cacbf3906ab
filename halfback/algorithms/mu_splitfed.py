"""MU-SplitFed: split federated learning by zeroth order, with τ server steps a client step (its unbalanced update).

One step, K sampled clients, each with a bottom θ_m of its own within a round:

1. server → client, once a round: the averaged bottom
2. client: z = f_b(x; θ_m) → z, labels; server: τ zeroth-order steps of its top ψ on the mean loss of the z
3. client, for p = 1, …, P: z± = f_b(x; θ_m ± μu_p) → each; server: ℓ⁺ − ℓ⁻ → one scalar
4. client: θ_m moves by the optimiser on (1/P) Σ_p (ℓ⁺ − ℓ⁻) / 2μ · u_p
5. client → server, once a round: θ_m; server: θ = mean over m

Traffic a step: 1 + 2P activations up, P scalars down. Ours: one top for all clients, which steps by central differences
of their mean loss; each client draws directions of its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from halfback.parties.by_weights import ByWeights
from halfback.parties.client import Client
from halfback.parties.client_exchange import loss_value, upload
from halfback.parties.client_probing import probe
from halfback.parties.cohort import Aggregation
from halfback.parties.holdings import Round
from halfback.parties.protocol import Conversation, Needs, check_count
from halfback.parties.server import Server
from halfback.parties.server_probing import keep_batches, kept_of, probe_loss, top_slopes
from halfback.wire.messages import Activations, Losses, Message, Nothing
from halfback.zeroth.slopes import Probe


@dataclass(frozen=True)
class MuSplitfed:
    """Options of MU-SplitFed.

    Attributes:
        directions: P, seeded directions a step, for each part.
        radius: μ, the probe radius; None takes the measured default of each part.
        server_steps: τ, steps of the top for each step of the clients.
        aggregation: of weights and of the top's losses: `uniform` (the paper's), or by `rows`.
    """

    directions: int = 1
    radius: float | None = None
    server_steps: int = 2
    aggregation: Aggregation = "uniform"

    def __post_init__(self) -> None:
        self._probe.check()
        check_count("server_steps", self.server_steps)

    @property
    def needs(self) -> Needs:
        """What must be prepared."""
        return Needs(ByWeights(self.aggregation), top="replayed", probe=self._probe, cut_gradient=False)

    @property
    def _probe(self) -> Probe:
        return Probe(self.directions, self.radius, "central")

    def client_round(self, client: Client, round: Round) -> Conversation:
        """The device's side: 1 + 2P forward passes a step."""
        yield from self.needs.agreement.join(client)
        for step, batch in enumerate(client.feed.batches(round), round.first):
            hidden = client.forward(batch)
            sent = hidden.dtype
            radius = self._probe.settled(client.theta.parameters, sent).moved
            yield upload(batch, hidden)
            del hidden
            slopes = []
            for seed in client.theta.seeds(self.directions).numbers:
                yield probe(client, batch, seed, radius, sent)
                change = loss_value((yield probe(client, batch, seed, -radius, sent)))
                slopes.append(change / (2 * radius))
            client.theta.step(torch.tensor(slopes, dtype=torch.float32), step)
        yield from self.needs.agreement.close(client)

    def answer(self, server: Server, messages: Mapping[int, Any]) -> Mapping[int, Message]:
        """The server's side of one exchange."""
        match next(iter(messages.values())):
            case Activations(labels=None):
                return {m: self._compared(server, m, message) for m, message in messages.items()}
            case Activations():
                answers = keep_batches(server, messages)
                self._step_top(server)
                return answers
            case _:
                server.memory = None  # of the round that ends, or of one that nobody ended
                return self.needs.agreement.answer(server, messages)

    def _step_top(self, server: Server) -> None:
        replica = server.top.replayed
        for place in range(self.server_steps):
            slopes, loss = top_slopes(server, self._probe)
            if place == 0:
                server.losses.append(loss)
            replica.replay(replica.position, slopes.unsqueeze(0), [server.steps])
        server.steps += 1

    def _compared(self, server: Server, client: int, message: Activations) -> Message:
        loss, seen = probe_loss(server, client, message), kept_of(server)[client].losses
        if not seen:  # ℓ⁺, of which nothing is said yet
            seen.append(loss.item())
            return Nothing()
        return Losses((seen.pop() - loss).reshape(1))
