"""Clients of one process: they share the frozen weights, and where they agree by slopes also θ."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from torch import nn

from halfback.assembly.motion import make_optimizer, make_schedule
from halfback.config import RunConfig
from halfback.engine.client_side import ClientSide
from halfback.engine.server_side import ServerSide
from halfback.models.cut import Bottom
from halfback.parties.client import Client
from halfback.parties.holdings import BatchSource, Head, Local
from halfback.zeroth.replay import Replica
from halfback.zeroth.seeds import seed_for


@dataclass(frozen=True)
class Holdings:
    """What the clients of a process hold.

    Attributes:
        sources: their data, one each.
        bottoms: of those whose cut is not the deepest.
        head: theirs in the U-shape.
        local: a client's own model, for methods that have one.
    """

    sources: Sequence[BatchSource]
    bottoms: Mapping[int, Bottom]
    head: Head | None
    local: Callable[[int], Local] | None

    def parts(self, server: ServerSide, number: int) -> list[nn.Module]:
        """What client `number` holds of the model: the part that θ belongs to first."""
        part = self.bottoms.get(number, server.part)
        return [part] if self.head is None else [part, self.head.module]


def client_side(config: RunConfig, server: ServerSide, holdings: Holdings, number: int) -> ClientSide:
    """Client `number` beside its server."""
    party, algorithm, optimizer = server.party, server.algorithm, None
    replica = party.replica
    if algorithm.traits.agreement in ("weights", "relay"):
        replica = _copied(replica, number)
    if algorithm.traits.backpropagates:
        optimizer = partial(make_optimizer, config.bottom)(list(replica.parameters.values()))
    client = Client(
        number,
        holdings.bottoms.get(number, server.bottom),
        replica,
        holdings.sources[number],
        hidden_dtype=party.hidden_dtype,
        groups=party.groups.get(number),
        optimizer=optimizer,
        clip=config.bottom.clip,
        schedule=make_schedule(config, config.bottom),
        head=holdings.head,
        local=None if holdings.local is None else holdings.local(number),
    )
    return ClientSide(algorithm, client, server.part, server.links.near(number), server.meters)


def _copied(agreed: Replica, number: int) -> Replica:
    """Parameters of a client's own, which start as the agreed ones; and directions of its own."""
    return agreed.alike(
        {name: nn.Parameter(parameter.detach().clone()) for name, parameter in agreed.parameters.items()},
        seed_of=lambda row, p: seed_for(agreed.seed_of(row, p), "client", number),
        own_pace=True,
    )
