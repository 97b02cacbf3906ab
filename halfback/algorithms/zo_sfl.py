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

from halfback.errors import PeerError
from halfback.parties.client import Client
from halfback.parties.client_replies import catch_up, take_agreed
from halfback.parties.exchange import forward, mean_slopes, missed_slopes, unexpected, upload
from halfback.parties.holdings import Round
from halfback.parties.options import check_probes
from halfback.parties.probing import keep_batches, probe_loss, probe_slopes, replica_of_top, top_slopes
from halfback.parties.protocol import Conversation, Traits
from halfback.parties.server import Server
from halfback.parties.shares import Aggregation
from halfback.wire.messages import Activations, Join, Losses, Message, Slopes
from halfback.zeroth.slopes import default_radius


@dataclass(frozen=True)
class ZoSfl:
    """Options of ZO-SFL.

    Attributes:
        directions: P, seeded directions a step, for each part.
        radius: μ, the probe radius; None takes the measured default of each part.
        aggregation: of both parts' slopes: `uniform`, or by `rows`.
    """

    traits: ClassVar[Traits] = Traits(agreement="slopes", top="replayed", mixed_cuts=True)

    directions: int = 1
    radius: float | None = None
    aggregation: Aggregation = "uniform"

    def __post_init__(self) -> None:
        check_probes(self.directions, self.radius)

    def client_round(self, client: Client, round: Round) -> Conversation:
        """The device's side: 1 + 2P forward passes a step."""
        catch_up(client, (yield Join(client.position)), self.directions)
        for batch in client.batches(round):
            hidden = forward(client, batch)
            radius = self.radius or default_radius(client.measured, hidden.dtype)
            yield upload(batch, hidden)
            del hidden
            slopes = yield from probe_slopes(client, batch, self.directions, radius)
            take_agreed(client, (yield Slopes(client.position, slopes)), self.directions)

    def answer(self, server: Server, messages: Mapping[int, Any]) -> Mapping[int, Message]:
        """The server's side of one exchange."""
        match next(iter(messages.values())):
            case Join():
                return missed_slopes(server, messages)
            case Activations(labels=None):
                return {m: Losses(probe_loss(server, m, message).reshape(1)) for m, message in messages.items()}
            case Activations():
                return keep_batches(server, messages)
            case Slopes():
                step, mean = len(server.history), mean_slopes(server, messages, self.directions)
                if early := messages.keys() - server.kept.keys():
                    raise PeerError(f"client {min(early)}: Slopes: they came before the batch that they belong to")
                self._step_top(server)
                server.history.append(mean)
                return {m: Slopes(step, mean) for m in messages}
            case _:
                raise unexpected(messages)

    def _step_top(self, server: Server) -> None:
        replica = replica_of_top(server)
        radius = self.radius or default_radius(replica.parameters, server.hidden_dtype)
        slopes, loss = top_slopes(server, self.directions, radius)
        server.losses.append(loss)
        replica.replay(replica.position, slopes.unsqueeze(0), [server.steps])
        server.kept = {}
        server.steps += 1
