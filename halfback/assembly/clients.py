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
from halfback.parties.client import Client, Feed, Theta
from halfback.parties.holdings import BatchSource, Descent, Head, Local


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
    party, needs = server.party, server.algorithm.needs
    replica, descent = needs.agreement.replica_for(party.agreed.replica, number), None
    if needs.backpropagates:
        make = partial(make_optimizer, config.bottom)
        schedule = make_schedule(config, config.bottom)
        descent = Descent(list(replica.parameters.values()), make, config.bottom.clip, schedule)
    client = Client(
        number,
        holdings.bottoms.get(number, server.bottom),
        Theta(replica, groups=party.cohort.groups.get(number)),
        Feed(holdings.sources[number]),
        descent=descent,
        head=holdings.head,
        local=None if holdings.local is None else holdings.local(number),
    )
    return ClientSide(server.algorithm, client, server.part, server.links, server.meters)
