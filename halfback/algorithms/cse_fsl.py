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
from typing import Any

from halfback.parties.by_weights import ByWeights
from halfback.parties.client import Client
from halfback.parties.client_exchange import upload
from halfback.parties.client_local import descend_local
from halfback.parties.cohort import Aggregation
from halfback.parties.holdings import Round
from halfback.parties.protocol import Conversation, Needs, check_count
from halfback.parties.server import Server
from halfback.parties.server_top import step_top_by_client
from halfback.wire.messages import Activations, Message, Nothing


@dataclass(frozen=True)
class CseFsl:
    """Options of CSE-FSL.

    Attributes:
        every: h, batches from one upload of activations to the next.
        aggregation: of weights: `uniform` (the paper's), or by `rows`.
    """

    every: int = 1
    aggregation: Aggregation = "uniform"

    def __post_init__(self) -> None:
        check_count("every", self.every)

    @property
    def needs(self) -> Needs:
        """What must be prepared."""
        return Needs(ByWeights(self.aggregation), holds="auxiliary", backpropagates=True)

    def client_round(self, client: Client, round: Round) -> Conversation:
        """The device's side: forward and backward passes through bottom and auxiliary head."""
        yield from self.needs.agreement.join(client)
        for step, batch in enumerate(client.feed.batches(round), round.first):
            hidden = descend_local(client, batch, step)
            if step % self.every == 0:
                yield upload(batch, hidden)
        yield from self.needs.agreement.close(client)

    def answer(self, server: Server, messages: Mapping[int, Any]) -> Mapping[int, Message]:
        """The server's side of one exchange."""
        match next(iter(messages.values())):
            case Activations():
                step_top_by_client(server, messages, every=self.every)
                return {m: Nothing() for m in messages}
            case _:
                return self.needs.agreement.answer(server, messages)
