"""Spry: forward-mode AD on devices that share the layers out among them (arXiv 2405.15551), with scalars alone sent.

No cut: a device holds the whole model and takes the loss itself. The trainable layers are in G groups, as many as a
cohort has clients where there are as many layers. One step, K sampled clients, equal θ:

1. server → client m, once a round: the number g_m of its group
2. client m: v_{m,p} = ⟨∂ℓ_m/∂θ_g, u_p⟩ for its g = g_m alone, exact by forward-mode AD → P scalars
3. server: v̄_{g,p} = mean over the clients that have group g → G · P scalars
4. every client: each group of θ moves by the optimiser on (1/P) Σ_p v̄_{g,p} u_p

So a device differentiates along fewer coordinates: the error of its estimate falls with their number.

Ours, because the paper leaves it open: a layer is a module, with its bias or with both matrices of its adapter; layer j
is in group j mod G; a client's group turns with the rounds, so that no client's data alone move a layer.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from halfback.errors import PeerError
from halfback.parties.client import Client
from halfback.parties.client_local import local_slopes
from halfback.parties.client_replies import take_agreed, take_share
from halfback.parties.exchange import mean_slopes, missed_slopes, unexpected
from halfback.parties.holdings import Round
from halfback.parties.options import check_count
from halfback.parties.protocol import Conversation, Traits
from halfback.parties.server import Server
from halfback.parties.shares import Aggregation
from halfback.wire.messages import Join, Message, Share, Slopes
from halfback.zeroth.slopes import Estimator


def layers_in_turn(names: Sequence[str], sampled_clients: int) -> list[list[str]]:
    """The names in as many groups as there are clients in a cohort, or layers if these are fewer."""
    layers: dict[str, list[str]] = {}
    for name in names:
        module, *adapter = re.split(r"\.(?:lora|ia3)_", name)
        module = module if adapter else name.rpartition(".")[0]
        layers.setdefault(module, []).append(name)
    groups: list[list[str]] = [[] for _ in range(min(sampled_clients, len(layers)))]
    for place, layer in enumerate(layers.values()):
        groups[place % len(groups)] += layer
    return groups


@dataclass(frozen=True)
class Spry:
    """Options of Spry: `directions`, P, seeded directions a step; `aggregation`, `uniform` **(ours)** or by `rows`."""

    traits: ClassVar[Traits] = Traits(agreement="slopes", device="whole", top="none", groups=layers_in_turn)
    estimator: ClassVar[Estimator] = "forward_ad"

    directions: int = 1
    aggregation: Aggregation = "uniform"

    def __post_init__(self) -> None:
        check_count("directions", self.directions)

    def client_round(self, client: Client, round: Round) -> Conversation:
        """The device's side: forward passes only, each with its tangent."""
        take_share(client, (yield Join(client.position)), self.directions)
        for batch in client.batches(round):
            slopes = local_slopes(  # v_{m,p}
                client, batch, directions=self.directions, radius=None, estimator=self.estimator
            )
            take_agreed(client, (yield Slopes(client.position, slopes)), self.directions)

    def answer(self, server: Server, messages: Mapping[int, Any]) -> Mapping[int, Message]:
        """The server's side of one exchange."""
        match next(iter(messages.values())):
            case Join():
                missed, count = missed_slopes(server, messages), len(server.replica.groups)
                shares = {m: (place + server.round.number) % count for place, m in enumerate(messages)}
                server.groups = {m: (group,) for m, group in shares.items()}
                return {m: Share(missed[m].first, missed[m].slopes, group) for m, group in shares.items()}
            case Slopes():
                if early := messages.keys() - server.groups.keys():
                    raise PeerError(f"client {min(early)}: Slopes: they came before it joined and was given a group")
                step, mean = len(server.history), mean_slopes(server, messages, self.directions)
                server.history.append(mean)
                server.steps += 1
                return {m: Slopes(step, mean) for m in messages}
            case _:
                raise unexpected(messages)
