"""DeComFL: dimension-free communication in federated learning by zeroth order (ICLR 2025, arXiv 2405.15861).

No cut: a device holds the whole model and takes the loss itself. A round has L local steps and one exchange; K sampled
clients, equal θ:

1. client: replays the agreed slopes that it missed
2. client m, for l = 1, …, L: v_{m,l,p} = slope of its loss along u_{l,p}, and a step by its own slopes → L · P scalars
3. server: v̄_{l,p} = mean over m → L · P scalars
4. every client: back to where it was before its own steps; then for l = 1, …, L: θ moves by the optimiser on
   (1/P) Σ_p v̄_{l,p} u_{l,p}

Ours: a client goes back by copies of θ and of its optimiser's moments, not by arithmetic: all θ stay equal to the bit.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from halfback.parties.by_slopes import BySlopes
from halfback.parties.client import Client
from halfback.parties.client_local import local_slopes
from halfback.parties.cohort import Aggregation
from halfback.parties.holdings import Round
from halfback.parties.protocol import Conversation, Needs
from halfback.parties.server import Server
from halfback.wire.messages import Message, Slopes
from halfback.zeroth.slopes import Estimator, Probe


@dataclass(frozen=True)
class Decomfl:
    """Options of DeComFL; a round's `steps_per_round` are its local steps.

    Attributes:
        directions: P, seeded directions a step.
        radius: μ, the probe radius; None takes the measured default for the parameters' number and dtype.
        estimator: `forward` (the paper's), `central` or `forward_ad`.
        clip_samples: bound on the size of each sample's slope; None for no bound.
        aggregation: of slopes: `uniform` (the paper's), or by `rows`.
    """

    directions: int = 2
    radius: float | None = None
    estimator: Estimator = "forward"
    clip_samples: float | None = None
    aggregation: Aggregation = "uniform"

    def __post_init__(self) -> None:
        self._probe.check()

    @property
    def needs(self) -> Needs:
        """What must be prepared."""
        return Needs(self._agreement, holds="whole", top="none", probe=self._probe)

    @property
    def _agreement(self) -> BySlopes:
        return BySlopes(self.directions, self.aggregation)

    @property
    def _probe(self) -> Probe:
        return Probe(self.directions, self.radius, self.estimator, self.clip_samples)

    def client_round(self, client: Client, round: Round) -> Conversation:
        """The device's side: forward passes only."""
        replica, measured = client.theta.replica, []
        yield from self._agreement.join(client)
        with replica.rehearsal() if round.steps > 1 else nullcontext():
            for batch in client.feed.batches(round):
                slopes = local_slopes(client, batch, self._probe)  # v_{m,l,p}
                measured.append(slopes)
                if len(measured) < round.steps:
                    replica.replay(replica.position, slopes.unsqueeze(0))
        said = Slopes(client.theta.position, torch.cat(measured))
        yield from self._agreement.agree(client, said, steps=round.steps)

    def answer(self, server: Server, messages: Mapping[int, Any]) -> Mapping[int, Message]:
        """The server's side of one exchange."""
        match next(iter(messages.values())):
            case Slopes():
                steps = server.round.steps
                mean = server.agreed.append(self._agreement.mean(server, messages, steps=steps), steps)
                server.steps += steps
                return dict.fromkeys(messages, mean)
            case _:
                return self._agreement.answer(server, messages)
