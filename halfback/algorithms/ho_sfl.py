"""HO-SFL: hybrid-order split federated learning (arXiv 2603.14773).

The server backpropagates its top and returns the cut gradient λ; a device measures with forward passes how ⟨λ, z⟩
changes along P seeded directions, and only these P slopes are averaged. One step, K sampled clients, equal θ:

1. shared seeds s_1..s_P of the step, derived by everyone: nothing is sent
2. client m: z_m = f_b(x_m; θ), no graph → z_m, labels
3. server: one backward of ℓ_m = ℓ(f_t(z_m), y_m) → λ_m = ∂ℓ_m/∂z_m
4. client: v_{m,p} = ⟨λ_m, f_b(x_m; θ+μu_p) − z_m⟩ / μ → P scalars
5. server: v̄_p = mean over m → P scalars; its own step on the averaged ∂ℓ/∂θ_t
6. every client: θ moves by the optimiser on ĝ = (1/P) Σ_p v̄_p u_p

Ours, because the paper leaves it open: a client that was away replays the steps it missed, in order, with the
optimiser's moments it kept; the slope is divided by μ before it is sent, so that it means the same for every estimator.
With a cut for each client (`model.cut` a list) u_p in step 4 has the client's own coordinates, and step 5 averages
over those who have them. The last blocks of a device, or all, may take their gradients exactly (`exact`); these are
sent, averaged and replayed beside the slopes.
"""

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any

from halfback.models.exact import entries, exact_gradient
from halfback.parties.by_slopes import BySlopes
from halfback.parties.client import Client
from halfback.parties.client_feedback import feedback, feedback_slopes
from halfback.parties.cohort import Aggregation
from halfback.parties.holdings import Batch, Round
from halfback.parties.protocol import Conversation, Needs, check_blocks
from halfback.parties.server import Server
from halfback.parties.server_top import backpropagate_top, middle_activations, step_top
from halfback.wire.messages import Activations, Both, CutGradient, Exact, HeadGradient, Message, Slopes
from halfback.zeroth.slopes import Cotangent, Estimator, Probe


@dataclass(frozen=True)
class HoSfl:
    """Options of HO-SFL.

    Attributes:
        directions: P, seeded directions a step.
        radius: μ, the probe radius; None takes the measured default for the parameters' number and dtype.
        estimator: `forward` (the paper's), `central` or `forward_ad`.
        clip_samples: bound on the size of each sample's slope **(ours)**; None for no bound.
        exact_blocks: the last blocks of the device whose gradient it takes exactly **(ours)**: a number, or "all". With
            any, `directions` may be 0, and what else is trained of the bottom stays as it is.
        aggregation: of slopes and of the top's gradients: `uniform` (the paper's), or by `rows`.
    """

    directions: int = 2
    radius: float | None = None
    estimator: Estimator = "forward"
    clip_samples: float | None = None
    exact_blocks: int | str = 0
    aggregation: Aggregation = "uniform"

    def __post_init__(self) -> None:
        fewest, otherwise = (0, "") if self.exact_blocks else (1, ", or 0 with algorithm.exact_blocks")
        self._probe.check(fewest=fewest, otherwise=otherwise)
        check_blocks("exact_blocks", self.exact_blocks)

    @property
    def needs(self) -> Needs:
        """What must be prepared."""
        return Needs(self._agreement, fits=frozenset({"u_shape", "mixed_cuts"}), probe=self._probe)

    @property
    def _agreement(self) -> BySlopes:
        return BySlopes(self.directions, self.aggregation, self.exact_blocks)

    @property
    def _probe(self) -> Probe:
        return Probe(self.directions, self.radius, self.estimator, self.clip_samples)

    def client_round(self, client: Client, round: Round) -> Conversation:
        """The device's side: forward passes only, but for `exact_blocks`."""
        yield from self._agreement.join(client)
        for batch in client.feed.batches(round):
            slopes = yield from self._measure(client, batch)
            yield from self._agreement.agree(client, slopes)

    def _measure(self, client: Client, batch: Batch) -> Generator[Message, Any, Slopes | Both]:
        """What a batch says of the direction in which θ should move."""
        with entries(client.bottom, self.exact_blocks) as noted:
            hidden = client.forward(batch)  # z_m
        gradient = yield from feedback(client, batch, hidden)  # λ_m
        cotangent = Cotangent.at(gradient, hidden, batch.inputs.get("lengths"))
        del hidden, gradient  # the device needs their memory for what follows
        exact = exact_gradient(noted, cotangent.of, client.theta.exact, client.bottom.layouts(batch.inputs))
        slopes = feedback_slopes(client, batch, cotangent, client.theta.seeds(self.directions), self._probe)  # v_{m,p}
        del cotangent
        said = Slopes(client.theta.position, slopes)
        return Both(said, Exact(exact)) if client.theta.exact else said

    def answer(self, server: Server, messages: Mapping[int, Any]) -> Mapping[int, Message]:
        """The server's side of one exchange."""
        match next(iter(messages.values())):
            case Activations() if server.top.head is not None:
                return middle_activations(server, messages)
            case Activations() | HeadGradient():
                gradients = backpropagate_top(server, messages)
                return {m: CutGradient(gradient) for m, gradient in gradients.items()}
            case Slopes() | Both(Slopes(), Exact()):
                mean, exact = self._agreement.mean(server, messages), server.agreed.replica.exact
                step_top(server, messages)
                return dict.fromkeys(
                    messages, server.agreed.append_exact(mean) if exact else server.agreed.append(mean)
                )
            case _:
                return self._agreement.answer(server, messages)
