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
from typing import Any

from halfback.errors import PeerError
from halfback.parties.agreement import unexpected
from halfback.parties.by_slopes import BySlopes, missed_slopes, take_share
from halfback.parties.client import Client
from halfback.parties.client_local import local_slopes
from halfback.parties.cohort import Aggregation
from halfback.parties.holdings import Round
from halfback.parties.protocol import Conversation, Needs
from halfback.parties.server import Server
from halfback.wire.messages import Join, Message, Share, Slopes
from halfback.zeroth.slopes import Probe


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
    """Options of Spry.

    Attributes:
        directions: P, seeded directions a step.
        aggregation: `uniform` **(ours)** or by `rows`.
    """

    directions: int = 1
    aggregation: Aggregation = "uniform"

    def __post_init__(self) -> None:
        self._probe.check()

    @property
    def needs(self) -> Needs:
        """What must be prepared."""
        return Needs(self._agreement, holds="whole", top="none", probe=self._probe)

    @property
    def _agreement(self) -> BySlopes:
        return BySlopes(self.directions, self.aggregation, groups=layers_in_turn)

    @property
    def _probe(self) -> Probe:
        return Probe(self.directions, estimator="forward_ad")

    def client_round(self, client: Client, round: Round) -> Conversation:
        """The device's side: forward passes only, each with its tangent."""
        take_share(client, (yield Join(client.theta.position)), self.directions)
        for batch in client.feed.batches(round):
            slopes = local_slopes(client, batch, self._probe)  # v_{m,p}
            yield from self._agreement.agree(client, Slopes(client.theta.position, slopes))

    def answer(self, server: Server, messages: Mapping[int, Any]) -> Mapping[int, Message]:
        """The server's side of one exchange."""
        match next(iter(messages.values())):
            case Join():
                missed, count = missed_slopes(server, messages), len(server.agreed.replica.groups)
                shares = {m: (place + server.round.number) % count for place, m in enumerate(messages)}
                server.cohort.groups = {m: (group,) for m, group in shares.items()}
                return {m: Share(missed[m].first, missed[m].slopes, group) for m, group in shares.items()}
            case Slopes():
                if early := messages.keys() - server.cohort.groups.keys():
                    raise PeerError("Slopes", "they came before it joined and was given a group", sender=min(early))
                mean = server.agreed.append(self._agreement.mean(server, messages))
                server.steps += 1
                return dict.fromkeys(messages, mean)
            case _:
                raise unexpected(messages)
