"""Pipelined HO-SFL: a step's slopes travel with the next step's activations and cut gradient.

Ours: as `ho_sfl` (arXiv 2603.14773), with one exchange a step instead of two, and one more at a round's end. A round
of S steps t, K sampled clients, equal θ_0:

1. client m: z_t = f_b(x_t; θ_t), no graph → z_t, labels, mask; for t > 0 with them its slopes v_{t−1}
2. server: v̄_{t−1} = mean over m; one backward of the loss at z_t → λ_t; its own step on the averaged ∂ℓ/∂θ_t of the
   top → λ_t and v̄_{t−1}
3. client: v_t = slopes of ⟨λ_t, f_b(x_t; θ_t)⟩ along the directions of step t
4. client: for t > 0, θ_{t+1} by the optimiser on v̄_{t−1}; θ_1 = θ_0
5. behind the last step: v_{S−1} → v̄_{S−1}, and θ moves by it

So the bottom's update is late by one step: z_t and the probes of step t are taken at the same θ_t, which lacks the
update of step t − 1 alone. The top is never late: it moves at once, on the gradient at its weights of now, where
`ho_sfl` waits for the slopes; the weights that the next batch meets are the same. With S = 1 all is `ho_sfl` to the
bit, and at a round's end nothing is under way, so a client that was away catches up as there.

The server checks all that an exchange brings before it moves anything: who is refused, or leaves in mid-round, can be
left out, and the mean is over those who are there. Blocks of θ on the server (a cut for each client) are as late as a
device's. There is no U-shape: its batch takes two exchanges, and the slopes would save one of three.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from halfback.errors import PeerError
from halfback.parties.client import Client
from halfback.parties.client_feedback import feedback_slopes
from halfback.parties.client_replies import catch_up, cut_gradient, gradient_and_slopes, take_agreed
from halfback.parties.exchange import forward, mean_slopes, missed_slopes, parted, unexpected, upload, with_slopes
from halfback.parties.holdings import Round
from halfback.parties.options import check_probes
from halfback.parties.protocol import Conversation, Traits
from halfback.parties.server import Server
from halfback.parties.server_top import backpropagate_top, step_top
from halfback.parties.shares import Aggregation
from halfback.wire.messages import (
    Activations,
    CutGradient,
    Join,
    Message,
    Slopes,
    SlopesAndActivations,
    SlopesAndGradient,
)
from halfback.zeroth.slopes import Estimator, inner


@dataclass(frozen=True)
class HoSflPipelined:
    """Options, as those of HO-SFL; `steps_per_round` are the steps that are pipelined.

    Attributes:
        directions: P, seeded directions a step.
        radius: μ, the probe radius; None takes the measured default for the parameters' number and dtype.
        estimator: `forward` (the paper's), `central` or `forward_ad`.
        clip_samples: bound on the size of each sample's slope; None for no bound.
        aggregation: of slopes and of the top's gradients: `uniform` (the paper's), or by `rows`.
    """

    traits: ClassVar[Traits] = Traits(agreement="slopes", mixed_cuts=True, pipelined=True)

    directions: int = 2
    radius: float | None = None
    estimator: Estimator = "forward"
    clip_samples: float | None = None
    aggregation: Aggregation = "uniform"

    def __post_init__(self) -> None:
        check_probes(self.directions, self.radius, self.clip_samples)

    def client_round(self, client: Client, round: Round) -> Conversation:
        """The device's side: forward passes only."""
        catch_up(client, (yield Join(client.position)), self.directions)
        said: Slopes | None = None  # of the step before
        for step, batch in enumerate(client.batches(round), client.position):
            hidden = forward(client, batch)  # z_t
            agreed: Slopes | None = None
            if said is None:
                gradient = cut_gradient((yield upload(batch, hidden)), hidden)  # λ_t
            else:
                gradient, agreed = gradient_and_slopes((yield with_slopes(upload(batch, hidden), said)), hidden)
            base = inner(gradient, hidden)
            del hidden  # the device needs its memory for what follows
            slopes = feedback_slopes(  # v_t
                client,
                batch,
                gradient,
                base,
                client.replica.seeds(self.directions, step=step),
                radius=self.radius,
                estimator=self.estimator,
                clip_samples=self.clip_samples,
            )
            del gradient
            said = Slopes(step, slopes)
            if agreed is not None:  # behind the probes, which belong to the θ of z_t
                take_agreed(client, agreed, self.directions)
        assert said is not None, "a round has a step"
        take_agreed(client, (yield said), self.directions)

    def answer(self, server: Server, messages: Mapping[int, Any]) -> Mapping[int, Message]:
        """The server's side of one exchange; what may be refused comes before what moves."""
        match next(iter(messages.values())):
            case Join():
                server.kept = {}  # of a round that nobody ended
                return missed_slopes(server, messages)
            case Activations():
                gradients = _train_top(server, messages)
                return {m: CutGradient(gradient) for m, gradient in gradients.items()}
            case SlopesAndActivations():
                slopes, batches = parted(messages)
                step, mean = len(server.history), self._mean(server, slopes)
                gradients = _train_top(server, batches)
                server.history.append(mean)
                return {m: SlopesAndGradient(step, mean, gradient) for m, gradient in gradients.items()}
            case Slopes():
                step, mean = len(server.history), self._mean(server, messages)
                server.history.append(mean)
                server.kept = {}
                return {m: Slopes(step, mean) for m in messages}
            case _:
                raise unexpected(messages)

    def _mean(self, server: Server, slopes: Mapping[int, Slopes]) -> Tensor:
        if early := slopes.keys() - server.kept.keys():
            raise PeerError(f"client {min(early)}: Slopes: they came before the batch that they belong to")
        return mean_slopes(server, slopes, self.directions)


def _train_top(server: Server, batches: Mapping[int, Activations]) -> dict[int, Tensor]:
    """λ by client, and the top's step."""
    gradients = backpropagate_top(server, batches)
    step_top(server, batches)
    server.kept = dict.fromkeys(gradients)  # whose slopes are due
    return gradients
