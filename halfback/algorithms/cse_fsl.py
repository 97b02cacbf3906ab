"""CSE-FSL: communication- and storage-efficient federated split learning (arXiv 2507.15816).

A device trains its bottom on the loss of an auxiliary head, so nothing comes back from the server, which trains one top
on the activations that it is sent now and then.

1. server → client: the averaged bottom θ and auxiliary head a
2. client, for each of the round's batches: a step of (θ_m, a_m) on the auxiliary loss ℓ(a_m(f_b(x; θ_m)), y)
3. client, every h-th batch → server: z_m = f_b(x; θ_m), labels; server: a step of its top, client after client
4. client → server: θ_m, a_m; server: their means over m

Ours: z_m is of θ_m before the batch's own step, so that it costs no pass of its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from halfback.parties.client import Client
from halfback.parties.client_local import descend_local
from halfback.parties.exchange import unexpected, upload
from halfback.parties.holdings import Round
from halfback.parties.options import check_count
from halfback.parties.protocol import Conversation, Traits
from halfback.parties.server import Server
from halfback.parties.server_top import step_top_by_client
from halfback.parties.shares import Aggregation
from halfback.parties.weights import agreed_weights, average_weights, take_weights, weights_of
from halfback.wire.messages import Activations, Join, Message, Nothing, Weights


@dataclass(frozen=True)
class CseFsl:
    """Options of CSE-FSL.

    Attributes:
        every: h, batches from one upload of activations to the next.
        aggregation: of weights: `uniform` (the paper's), or by `rows`.
    """

    traits: ClassVar[Traits] = Traits(agreement="weights", device="auxiliary", backpropagates=True)

    every: int = 1
    aggregation: Aggregation = "uniform"

    def __post_init__(self) -> None:
        check_count("every", self.every)

    def client_round(self, client: Client, round: Round) -> Conversation:
        """The device's side: forward and backward passes through bottom and auxiliary head."""
        take_weights(client, (yield Join(client.position)))
        for step, batch in enumerate(client.batches(round), round.first):
            hidden = descend_local(client, batch, step)
            if step % self.every == 0:
                yield upload(batch, hidden)
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
