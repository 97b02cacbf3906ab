"""Pipelined HO-SFL: a step's slopes travel with the next step's activations and cut gradient.

Ours: as `ho_sfl` (arXiv 2603.14773), with one exchange a step instead of two, and one more at a round's end. A round
of S steps t, K sampled clients, equal θ_0:

1. client m: z_t = f_b(x_t; θ_t), no graph → z_t, labels; for t > 0 with them its slopes v_{t−1}
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
from typing import Any

from torch import Tensor

from halfback.errors import PeerError
from halfback.parties.by_slopes import BySlopes, take_agreed
from halfback.parties.client import Client
from halfback.parties.client_exchange import cut_gradient, received_both, upload
from halfback.parties.client_feedback import feedback_slopes
from halfback.parties.cohort import Aggregation
from halfback.parties.holdings import Round
from halfback.parties.protocol import Conversation, Needs
from halfback.parties.server import ByClient, Server
from halfback.parties.server_top import backpropagate_top, step_top
from halfback.wire.messages import Activations, Both, CutGradient, Message, Slopes
from halfback.zeroth.slopes import Cotangent, Estimator, Probe


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
        return Needs(self._agreement, turns="pipelined", fits=frozenset({"mixed_cuts"}), probe=self._probe)

    @property
    def _agreement(self) -> BySlopes:
        return BySlopes(self.directions, self.aggregation)

    @property
    def _probe(self) -> Probe:
        return Probe(self.directions, self.radius, self.estimator, self.clip_samples)

    def client_round(self, client: Client, round: Round) -> Conversation:
        """The device's side: forward passes only."""
        yield from self._agreement.join(client)
        said: Slopes | None = None  # of the step before
        for step, batch in enumerate(client.feed.batches(round), client.theta.position):
            hidden = client.forward(batch)  # z_t
            agreed: Slopes | None = None
            if said is None:
                gradient = cut_gradient((yield upload(batch, hidden)), hidden)  # λ_t
            else:
                agreed, answer = received_both((yield Both(said, upload(batch, hidden))), Slopes, CutGradient)
                gradient = cut_gradient(answer, hidden)
                del answer
            cotangent = Cotangent.at(gradient, hidden, batch.inputs.get("lengths"))
            del hidden, gradient  # the device needs their memory for what follows
            seeds = client.theta.seeds(self.directions, step=step)
            said = Slopes(step, feedback_slopes(client, batch, cotangent, seeds, self._probe))  # v_t
            del cotangent
            if agreed is not None:  # behind the probes, which belong to the θ of z_t
                take_agreed(client, agreed, self.directions)
        assert said is not None, "a round has a step"
        yield from self._agreement.agree(client, said)

    def answer(self, server: Server, messages: Mapping[int, Any]) -> Mapping[int, Message]:
        """The server's side of one exchange; what may be refused comes before what moves."""
        match next(iter(messages.values())):
            case Activations():
                gradients = _train_top(server, messages)
                return {m: CutGradient(gradient) for m, gradient in gradients.items()}
            case Both(Slopes(), Activations()):
                mean = self._mean(server, {m: said.first for m, said in messages.items()})
                gradients = _train_top(server, {m: said.second for m, said in messages.items()})
                agreed = server.agreed.append(mean)
                return {m: Both(agreed, CutGradient(gradient)) for m, gradient in gradients.items()}
            case Slopes():
                agreed = server.agreed.append(self._mean(server, messages))
                server.memory = None
                return dict.fromkeys(messages, agreed)
            case _:
                server.memory = None  # of a round that nobody ended
                return self._agreement.answer(server, messages)

    def _mean(self, server: Server, slopes: Mapping[int, Slopes]) -> Tensor:
        if early := slopes.keys() - _due(server).keys():
            raise PeerError("Slopes", "they came before the batch that they belong to", sender=min(early))
        return self._agreement.mean(server, slopes)


def _due(server: Server) -> dict[int, None]:
    """Whose slopes are due."""
    memory: ByClient[None] = server.recall(ByClient)
    return memory.of


def _train_top(server: Server, batches: Mapping[int, Activations]) -> dict[int, Tensor]:
    """λ by client, and the top's step."""
    gradients = backpropagate_top(server, batches)
    step_top(server, batches)
    server.memory = ByClient(dict.fromkeys(gradients))
    return gradients
