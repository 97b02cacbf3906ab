"""ZO-SFL: both parts by zeroth order on the loss itself, the floor that a hybrid method must beat.

The end-to-end scheme that MU-SplitFed describes with one server step a client step. One step, K sampled clients:

1. client m: z_m = f_b(x_m; θ) → z_m, labels, mask
2. server: its own slopes along P seeded directions w_p of ψ, by central differences on the stored z_m, averaged
3. client: f_b(x_m; θ ± μu_p) for each p → server: the loss of each, one scalar down
4. client: v_{m,p} = (ℓ⁺ − ℓ⁻) / 2μ → P scalars; server: v̄_p = mean over m → P scalars
5. every client moves θ by ĝ = (1/P) Σ_p v̄_p u_p, the server moves ψ by its own: 1 + 2P activations up a step

Ours: the server moves ψ after the client's losses were computed, so both slopes belong to the same point.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from halfback.algorithms.checks import check_activations, check_probes
from halfback.algorithms.exchange import forward, mean_slopes, missed_slopes, unexpected, upload
from halfback.algorithms.parties import Client, Round, Server
from halfback.algorithms.protocol import Conversation, Traits
from halfback.algorithms.replies import catch_up, loss_value, take_agreed
from halfback.algorithms.top import loss_of
from halfback.errors import PeerError
from halfback.wire.messages import Activations, Join, Losses, Message, Nothing, Slopes
from halfback.zeroth.perturb import perturbed
from halfback.zeroth.slopes import default_radius, estimate_slopes


@dataclass(frozen=True)
class ZoSfl:
    """Options of ZO-SFL.

    Attributes:
        directions: P, seeded directions a step, for each part.
        radius: μ, the probe radius; None takes the measured default of each part.
    """

    traits: ClassVar[Traits] = Traits(agreement="slopes", top="replayed")

    directions: int = 1
    radius: float | None = None

    def __post_init__(self) -> None:
        check_probes(self.directions, self.radius)

    def client_round(self, client: Client, round: Round) -> Conversation:
        """The device's side: 1 + 2P forward passes a step."""
        replica = client.replica
        catch_up(client, (yield Join(client.position)), self.directions)
        for batch in client.batches(round):
            hidden = forward(client, batch)
            radius = self.radius or default_radius(replica.parameters, hidden.dtype)
            yield upload(batch, hidden)
            slopes = []
            for seed in replica.seeds(self.directions):
                losses = []
                for side in (radius, -radius):
                    with perturbed(client.bottom, replica.parameters, seed, side, law=replica.law):
                        hidden = forward(client, batch)
                    losses.append(loss_value((yield upload(batch, hidden, repeated=True))))
                slopes.append((losses[0] - losses[1]) / (2 * radius))
            take_agreed(
                client, (yield Slopes(client.position, torch.tensor(slopes, dtype=torch.float32))), self.directions
            )

    def answer(self, server: Server, messages: Mapping[int, Any]) -> Mapping[int, Message]:
        """The server's side of one exchange."""
        match next(iter(messages.values())):
            case Join():
                return missed_slopes(server, messages)
            case Activations(labels=None):
                return {m: Losses(self._loss(server, m, message).reshape(1)) for m, message in messages.items()}
            case Activations():
                for m, message in messages.items():
                    check_activations(server, m, message)
                server.kept = dict(messages)
                return {m: Nothing() for m in messages}
            case Slopes():
                step, mean = len(server.history), mean_slopes(server, messages, self.directions)
                if early := messages.keys() - server.kept.keys():
                    raise PeerError(f"client {min(early)}: Slopes: they came before the batch that they belong to")
                self._step_top(server, step)
                server.history.append(mean)
                return {m: Slopes(step, mean) for m in messages}
            case _:
                raise unexpected(messages)

    @torch.no_grad()
    def _loss(self, server: Server, client: int, message: Activations) -> Tensor:
        check_activations(server, client, message)
        first = server.kept.get(client)
        if first is None or first.labels is None or len(first.labels) != len(message.hidden):
            raise PeerError(f"client {client}: Activations: a probe came before the batch and its labels")
        return loss_of(server, client, message.hidden, first.mask, first.labels)

    @torch.no_grad()
    def _step_top(self, server: Server, step: int) -> None:
        replica = server.top_replica
        assert replica is not None, "an algorithm with top_update 'replayed' gets a replica of the top"

        def mean_loss() -> Tensor:
            losses = [self._loss(server, client, message) for client, message in server.kept.items()]
            return torch.stack(losses).mean().reshape(1)

        base = mean_loss()
        server.losses.append(base.item())
        slopes = estimate_slopes(
            mean_loss,
            server.top,
            replica.parameters,
            cotangent=torch.ones_like(base),
            base=base,
            seeds=replica.seeds(self.directions),
            radius=self.radius or default_radius(replica.parameters, server.hidden_dtype),
            estimator="central",
            law=replica.law,
        )
        replica.replay(step, slopes.to(torch.float32).unsqueeze(0))
        server.kept = {}
        server.steps += 1
