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
from typing import Any, ClassVar

from halfback.parties.client import Client
from halfback.parties.client_local import local_slopes
from halfback.parties.exchange import forward, unexpected, upload
from halfback.parties.holdings import Round
from halfback.parties.options import check_count, check_probes
from halfback.parties.protocol import Conversation, Traits
from halfback.parties.server import Server
from halfback.parties.server_top import step_top_by_client
from halfback.parties.shares import Aggregation
from halfback.parties.weights import agreed_weights, average_weights, take_weights, weights_of
from halfback.wire.messages import Activations, Join, Message, Nothing, Weights
from halfback.zeroth.slopes import Estimator


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

    traits: ClassVar[Traits] = Traits(agreement="weights", device="auxiliary")

    directions: int = 2
    radius: float | None = None
    estimator: Estimator = "forward"
    every: int = 1
    clip_samples: float | None = None
    aggregation: Aggregation = "uniform"

    def __post_init__(self) -> None:
        check_probes(self.directions, self.radius, self.clip_samples)
        check_count("every", self.every)

    def client_round(self, client: Client, round: Round) -> Conversation:
        """The device's side: forward passes only."""
        take_weights(client, (yield Join(client.position)))
        for step, batch in enumerate(client.batches(round), round.first):
            if step % self.every == 0:
                yield upload(batch, forward(client, batch))
            slopes = local_slopes(
                client,
                batch,
                directions=self.directions,
                radius=self.radius,
                estimator=self.estimator,
                clip_samples=self.clip_samples,
            )
            client.replica.replay(client.replica.position, slopes.unsqueeze(0), [step])
        yield weights_of(client)

    def answer(self, server: Server, messages: Mapping[int, Any]) -> Mapping[int, Message]:
        """The server's side of one exchange."""
        match next(iter(messages.values())):
            case Join():
                return agreed_weights(server, messages)
            case Activations():
                step_top_by_client(server, messages, every=self.every)
                return {m: Nothing() for m in messages}
            case Weights():
                return average_weights(server, messages)
            case _:
                raise unexpected(messages)
