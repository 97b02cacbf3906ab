"""HERON-SFL: a hybrid of zeroth order on devices and first order on the server (arXiv 2601.09076).

As CSE-FSL, but a device takes zeroth-order steps on the loss of its auxiliary head, so it needs no backward pass.

1. server → client: the averaged bottom θ and auxiliary head a
2. client, for each of the round's batches: v_p = slope of ℓ(a_m(f_b(x; θ_m)), y) along u_p; (θ_m, a_m) move by the
   optimiser on (1/P) Σ_p v_p u_p
3. client, every k-th batch → server: z_m = f_b(x; θ_m), labels; server: a step of its top, client after client
4. client → server: θ_m, a_m; server: their means over m

Ours: each client draws directions of its own, since nobody else has to rebuild its updates; z_m is of θ_m before the
batch's own step.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from halfback.parties.by_weights import ByWeights
from halfback.parties.client import Client
from halfback.parties.client_exchange import upload
from halfback.parties.client_local import local_slopes
from halfback.parties.cohort import Aggregation
from halfback.parties.holdings import Round
from halfback.parties.protocol import Conversation, Needs, check_count
from halfback.parties.server import Server
from halfback.parties.server_top import step_top_by_client
from halfback.wire.messages import Activations, Message, Nothing
from halfback.zeroth.slopes import Estimator, Probe


@dataclass(frozen=True)
class HeronSfl:
    """Options of HERON-SFL.

    Attributes:
        directions: P, seeded directions a step.
        radius: μ, the probe radius; None takes the measured default for the parameters' number and dtype.
        estimator: `forward` (the paper's), `central` or `forward_ad`.
        every: k, batches from one upload of activations to the next.
        clip_samples: bound on the size of each sample's slope; None for no bound.
        aggregation: of weights: `uniform` (the paper's), or by `rows`.
    """

    directions: int = 2
    radius: float | None = None
    estimator: Estimator = "forward"
    every: int = 1
    clip_samples: float | None = None
    aggregation: Aggregation = "uniform"

    def __post_init__(self) -> None:
        self._probe.check()
        check_count("every", self.every)

    @property
    def needs(self) -> Needs:
        """What must be prepared."""
        return Needs(ByWeights(self.aggregation), holds="auxiliary", probe=self._probe)

    @property
    def _probe(self) -> Probe:
        return Probe(self.directions, self.radius, self.estimator, self.clip_samples)

    def client_round(self, client: Client, round: Round) -> Conversation:
        """The device's side: forward passes only."""
        yield from self.needs.agreement.join(client)
        for step, batch in enumerate(client.feed.batches(round), round.first):
            if step % self.every == 0:
                yield upload(batch, client.forward(batch))
            client.theta.step(local_slopes(client, batch, self._probe), step)
        yield from self.needs.agreement.close(client)

    def answer(self, server: Server, messages: Mapping[int, Any]) -> Mapping[int, Message]:
        """The server's side of one exchange."""
        match next(iter(messages.values())):
            case Activations():
                step_top_by_client(server, messages, every=self.every)
                return {m: Nothing() for m in messages}
            case _:
                return self.needs.agreement.answer(server, messages)
