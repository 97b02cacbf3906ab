"""ZO-SFL: both parts by zeroth order on the loss itself, the floor that a hybrid method must beat.

The end-to-end scheme that MU-SplitFed describes with one server step a client step. One step, K sampled clients:

1. client m: z_m = f_b(x_m; θ) → z_m, labels
2. server: its own slopes along P seeded directions w_p of ψ, by central differences on the stored z_m, averaged
3. client: f_b(x_m; θ ± μu_p) for each p → server: the loss of each, one scalar down
4. client: v_{m,p} = (ℓ⁺ − ℓ⁻) / 2μ → P scalars; server: v̄_p = mean over m → P scalars
5. every client moves θ by ĝ = (1/P) Σ_p v̄_p u_p, the server moves ψ by its own: 1 + 2P activations up a step

Ours: the server moves ψ after the client's losses were computed, so both slopes belong to the same point.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from halfback.errors import PeerError
from halfback.parties.by_slopes import BySlopes
from halfback.parties.client import Client
from halfback.parties.client_exchange import upload
from halfback.parties.client_probing import probe_slopes
from halfback.parties.cohort import Aggregation
from halfback.parties.holdings import Round
from halfback.parties.protocol import Conversation, Needs
from halfback.parties.server import Server
from halfback.parties.server_probing import keep_batches, kept_of, probe_loss, top_slopes
from halfback.wire.messages import Activations, Losses, Message, Slopes
from halfback.zeroth.slopes import Probe


@dataclass(frozen=True)
class ZoSfl:
    """Options of ZO-SFL.

    Attributes:
        directions: P, seeded directions a step, for each part.
        radius: μ, the probe radius; None takes the measured default of each part.
        aggregation: of both parts' slopes: `uniform`, or by `rows`.
    """

    directions: int = 1
    radius: float | None = None
    aggregation: Aggregation = "uniform"

    def __post_init__(self) -> None:
        self._probe.check()

    @property
    def needs(self) -> Needs:
        """What must be prepared."""
        return Needs(
            self._agreement,
            top="replayed",
            fits=frozenset({"mixed_cuts"}),
            probe=self._probe,
            cut_gradient=False,
        )

    @property
    def _agreement(self) -> BySlopes:
        return BySlopes(self.directions, self.aggregation)

    @property
    def _probe(self) -> Probe:
        return Probe(self.directions, self.radius, "central")

    def client_round(self, client: Client, round: Round) -> Conversation:
        """The device's side: 1 + 2P forward passes a step."""
        yield from self._agreement.join(client)
        for batch in client.feed.batches(round):
            hidden = client.forward(batch)
            sent = hidden.dtype
            probe = self._probe.settled(client.theta.measured, sent)
            yield upload(batch, hidden)
            del hidden
            slopes = yield from probe_slopes(client, batch, probe, sent)
            yield from self._agreement.agree(client, Slopes(client.theta.position, slopes))

    def answer(self, server: Server, messages: Mapping[int, Any]) -> Mapping[int, Message]:
        """The server's side of one exchange."""
        match next(iter(messages.values())):
            case Activations(labels=None):
                return {m: Losses(probe_loss(server, m, message).reshape(1)) for m, message in messages.items()}
            case Activations():
                return keep_batches(server, messages)
            case Slopes():
                mean = self._agreement.mean(server, messages)
                if early := messages.keys() - kept_of(server).keys():
                    raise PeerError("Slopes", "they came before the batch that they belong to", sender=min(early))
                self._step_top(server)
                return dict.fromkeys(messages, server.agreed.append(mean))
            case _:
                return self._agreement.answer(server, messages)

    def _step_top(self, server: Server) -> None:
        slopes, loss = top_slopes(server, self._probe)
        server.losses.append(loss)
        replica = server.top.replayed
        replica.replay(replica.position, slopes.unsqueeze(0), [server.steps])
        server.memory = None
        server.steps += 1
