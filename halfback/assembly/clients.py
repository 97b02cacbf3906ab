"""Clients of one process: all of them beside a server, or one alone on a machine of its own."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn

from halfback.assembly.ground import Ground, groups_of
from halfback.assembly.motion import make_optimizer, make_schedule
from halfback.engine.client_side import ClientSide
from halfback.engine.links import Links
from halfback.parties.client import Client
from halfback.parties.holdings import BatchSource, Local
from halfback.telemetry.meters import Meters
from halfback.zeroth.replay import Replica
from halfback.zeroth.seeds import seed_for


@dataclass(frozen=True)
class Clients:
    """What the clients of a process are made of: they share frozen weights, and where they agree by slopes also θ.

    Attributes:
        ground: what they stand on.
        links: to the server.
        sources: their data, by number.
        local: a client's own model, for methods that have one.
        meters: what they cost, all together.
    """

    ground: Ground
    links: Links
    sources: Mapping[int, BatchSource]
    local: Callable[[int], Local] | None
    meters: Meters

    def side(self, number: int) -> ClientSide:
        """Client `number`, anew."""
        ground, optimizer = self.ground, None
        config, algorithm, replica = ground.config, ground.algorithm, ground.theta
        if algorithm.traits.agreement in ("weights", "relay"):
            replica = _copied(replica, number)
        if algorithm.traits.backpropagates:
            optimizer = make_optimizer(config.bottom, list(replica.parameters.values()))
        client = Client(
            number,
            ground.level(number).bottom,
            replica,
            self.sources[number],
            hidden_dtype=ground.form.dtype,
            groups=groups_of(ground, number),
            optimizer=optimizer,
            clip=config.bottom.clip,
            schedule=make_schedule(config, config.bottom),
            head=ground.head,
            local=None if self.local is None else self.local(number),
        )
        return ClientSide(algorithm, client, ground.part, self.links.near(number), self.meters)


def _copied(agreed: Replica, number: int) -> Replica:
    """Parameters of a client's own, which start as the agreed ones; and directions of its own."""
    return agreed.alike(
        {name: nn.Parameter(parameter.detach().clone()) for name, parameter in agreed.parameters.items()},
        seed_of=lambda row, p: seed_for(agreed.seed_of(row, p), "client", number),
        own_pace=True,
    )
