"""MeZO: zeroth order on one machine with the memory of inference (arXiv 2305.17333, algorithm 1).

For each batch: v_p = (ℓ(θ+μu_p) − ℓ(θ−μu_p)) / 2μ; θ moves by the optimiser on (1/P) Σ_p v_p u_p.

The machine has the rows of all clients, and in a batch as many as a cohort has together. Ours: weights are perturbed
into a scratch copy of one layer at a time, where the paper adds and subtracts in place, which drifts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from halfback.parties.agreement import ALONE, unexpected
from halfback.parties.client import Client
from halfback.parties.client_local import local_slopes
from halfback.parties.holdings import Round
from halfback.parties.protocol import Conversation, Needs
from halfback.parties.server import Server
from halfback.wire.messages import Message
from halfback.zeroth.slopes import Estimator, Probe


@dataclass(frozen=True)
class Mezo:
    """Options of MeZO.

    Attributes:
        directions: P, seeded directions a step.
        radius: μ, the probe radius; None takes the measured default for the parameters' number and dtype.
        estimator: `central` (the paper's), `forward` or `forward_ad`.
        clip_samples: bound on the size of each sample's slope; None for no bound.
    """

    directions: int = 1
    radius: float | None = None
    estimator: Estimator = "central"
    clip_samples: float | None = None

    def __post_init__(self) -> None:
        self._probe.check()

    @property
    def needs(self) -> Needs:
        """What must be prepared."""
        return Needs(ALONE, holds="whole", top="none", probe=self._probe)

    @property
    def _probe(self) -> Probe:
        return Probe(self.directions, self.radius, self.estimator, self.clip_samples)

    def client_round(self, client: Client, round: Round) -> Conversation:
        """All of it: forward passes only."""
        for batch in client.feed.batches(round):
            slopes = local_slopes(client, batch, self._probe)
            client.theta.replay(client.theta.position, slopes.unsqueeze(0))
        yield from ()

    def answer(self, server: Server, messages: Mapping[int, Any]) -> Mapping[int, Message]:
        """Nobody speaks."""
        raise unexpected(messages)
