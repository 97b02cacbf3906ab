"""HO-FL: hybrid-order federated learning, without a server that computes (by the authors of HO-SFL, arXiv 2603.14773).

A device holds the whole model. The blocks below its boundary b_m move by zeroth order, what is above them by
backpropagation on the device, so that its memory holds no activations of the lower part. One round, K sampled clients:

1. server → client: the averaged θ; the client's optimisers start anew
2. client m, for each of the round's L batches, with z = f_b(x; θ_b) the activations at its boundary, no graph:
   ℓ = ℓ(f_t(z; θ_t), y); backward → λ = ∂ℓ/∂z, and a step of θ_t on ∂ℓ/∂θ_t
   v_p = (⟨λ, f_b(x; θ_b + μu_p)⟩ − ⟨λ, z⟩) / μ on seeds of its own, and a step of θ_b on (1/P) Σ_p v_p u_p
3. client → server: its L · P slopes, then θ_t
4. server: rebuilds each client's θ_b from the averaged one by the same L steps; θ = mean over m

Clients are sampled with p_i = (1−β)/N + β·1{d_i among the K smallest}/K, where d_i counts what client i moves by zeroth
order: a cohort's noise grows with it.

Ours: clients that tie for the last of the K places share it, so with equal boundaries all
are sampled alike; `bottom.*` gives the optimisers of both parts, and the learning rates their place in the schedule.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from halfback.errors import PeerError, UserError
from halfback.parties.by_weights import ByWeights
from halfback.parties.checks import check_slopes, check_weights
from halfback.parties.client import Client
from halfback.parties.client_local import descend_local, hybrid_step
from halfback.parties.cohort import Aggregation
from halfback.parties.holdings import Round
from halfback.parties.protocol import Boundaries, Conversation, Needs
from halfback.parties.server import ByClient, Server
from halfback.wire.messages import Message, Nothing, Slopes, Weights
from halfback.zeroth.slopes import Estimator, Probe


@dataclass(frozen=True)
class HoFl:
    """Options of HO-FL; a round's `steps_per_round` are its local steps.

    Attributes:
        directions: P, seeded directions a step.
        radius: μ, the probe radius; None takes the measured default for the parameters' number and dtype.
        estimator: `forward` (the paper's), `central` or `forward_ad`.
        clip_samples: bound on the size of each sample's slope **(ours)**; None for no bound.
        boundaries: entry i is the number of blocks below client i's boundary, in turn. With 0 all is backpropagated,
            the embeddings too; with all blocks, what follows them. None for the recipe's cut.
        beta: β of the sampling, 0 (all alike) to 1; the paper's is 0.75.
        aggregation: of weights: `uniform` **(ours)**, or by `rows`.
    """

    directions: int = 2
    radius: float | None = None
    estimator: Estimator = "forward"
    clip_samples: float | None = None
    boundaries: tuple[int, ...] | None = None
    beta: float = 0.75
    aggregation: Aggregation = "uniform"

    def __post_init__(self) -> None:
        self._probe.check()
        if not 0 <= self.beta <= 1:
            raise UserError(f"algorithm.beta={self.beta:g}: 0 to 1 is allowed")
        if self.boundaries == ():
            raise UserError("algorithm.boundaries=[]: one entry or more is allowed, or null")

    @property
    def needs(self) -> Needs:
        """What must be prepared."""
        agreement, boundaries = ByWeights(self.aggregation), Boundaries(self.boundaries)
        return Needs(
            agreement, holds="whole", backpropagates=True, top="none", probe=self._probe, boundaries=boundaries
        )

    @property
    def _probe(self) -> Probe:
        return Probe(self.directions, self.radius, self.estimator, self.clip_samples)

    def inclusion(self, server: Server, sampled: int) -> list[float]:
        """K · p_i of each client."""
        parameters = server.agreed.replica.parameters
        sizes = [sum(parameters[name].numel() for name in boundary.below) for boundary in server.cohort.boundaries]
        last = sorted(sizes)[sampled - 1]  # the largest among the K smallest
        shared = (sampled - sum(size < last for size in sizes)) / sizes.count(last)
        smallest = [float(size < last) if size != last else shared for size in sizes]
        return [(1 - self.beta) * sampled / len(sizes) + self.beta * part for part in smallest]

    def client_round(self, client: Client, round: Round) -> Conversation:
        """The device's side: its graph begins at the boundary."""
        boundary, theta, measured = client.own.boundary, client.theta.parameters, [torch.zeros(0)]
        assert boundary is not None, "an algorithm with boundaries gets one for each client"
        yield from self.needs.agreement.join(client)
        below = boundary.replica({name: theta[name] for name in boundary.below}, round.first)
        with client.first_order.moments_for_now():
            for step, batch in enumerate(client.feed.batches(round), round.first):
                if not boundary.below:
                    descend_local(client, batch, step)
                else:
                    measured.append(hybrid_step(client, batch, below, step, self._probe).cpu())
        del below
        yield Slopes(round.first, torch.cat(measured))
        yield Weights(tuple(parameter for name, parameter in theta.items() if name not in boundary.below))

    def answer(self, server: Server, messages: Mapping[int, Any]) -> Mapping[int, Message]:
        """The server's side of one exchange."""
        match next(iter(messages.values())):
            case Slopes():
                for m, message in messages.items():
                    count = server.round.steps * self.directions if server.cohort.boundaries[m].below else 0
                    check_slopes(server, m, message, count, step=server.round.first)
                    _measured(server)[m] = message.values
                return {m: Nothing() for m in messages}
            case Weights():
                theta = {m: self._rebuilt(server, m, said) for m, said in messages.items()}
                return self.needs.agreement.answer(server, theta)
            case _:
                server.memory = None  # of a round that nobody ended
                return self.needs.agreement.answer(server, messages)

    def _rebuilt(self, server: Server, m: int, said: Weights) -> Weights:
        """All of θ_m, from the client's slopes and what it said of its upper part."""
        agreed, boundary = server.agreed.replica.parameters, server.cohort.boundaries[m]
        above = {name: parameter for name, parameter in agreed.items() if name not in boundary.below}
        check_weights(m, said, above, server.round.first)
        measured = _measured(server).pop(m, None)
        if measured is None:
            raise PeerError("Weights", "they came before the slopes of the round", sender=m)
        theta = {name: agreed[name].detach().clone() for name in boundary.below}
        if theta:
            rows = measured.view(server.round.steps, self.directions)
            first = server.round.first
            boundary.replica(theta, first).replay(0, rows, range(first, first + len(rows)))
        theta |= dict(zip(above, said.tensors, strict=True))
        return Weights(tuple(theta[name] for name in agreed))


def _measured(server: Server) -> dict[int, Tensor]:
    """The slopes that each client has said in this round."""
    memory: ByClient[Tensor] = server.recall(ByClient)
    return memory.of
