"""Clients of one process: all of them beside a server, or one alone on a machine of its own."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from halfback.assembly.ground import Ground, groups_of
from halfback.assembly.hiding import hiding_of
from halfback.assembly.motion import make_descent
from halfback.assembly.room import rows_with_room
from halfback.codecs.releases import Releases
from halfback.data.batches import ClientData
from halfback.engine.client_side import ClientSide
from halfback.engine.links import Links
from halfback.models.adapters import hidden_matrices
from halfback.parties.client import Client, Feed, Theta
from halfback.parties.holdings import Local
from halfback.telemetry.meters import Meters


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
    sources: Mapping[int, ClientData]
    local: Callable[[int], Local] | None
    meters: Meters
    _rows: dict[int, int] = field(default_factory=dict)  # at once, from the memory that they have

    def settle(self) -> None:
        """Finds out, before the first round, how many rows at once each client has memory for.

        Raises:
            UserError: one has too little for one row.
        """
        for number in self.sources if self.ground.config.client.memory is not None else ():
            self.side(number)

    def side(self, number: int) -> ClientSide:
        """Client `number`, anew."""
        ground, descent = self.ground, None
        config, needs = ground.config, ground.algorithm.needs
        replica = needs.agreement.replica_for(ground.theta, number)
        if needs.backpropagates:
            descent = make_descent(config, "bottom", Theta(replica).trained, hidden_matrices(ground.part))
        client = Client(
            number,
            ground.level(number).bottom,
            Theta(replica, groups=groups_of(ground, number)),
            Feed(self.sources[number]),
            descent=descent,
            head=ground.head,
            local=None if self.local is None else self.local(number),
        )
        side = ClientSide(ground.algorithm, client, ground.part, self.links, self.meters)
        side.norms, side.rows_at_once = ground.norms, config.client.rows_at_once
        side.sums, side.hiding = self.links.bounds.sums, hiding_of(config, ground.algorithm)
        if config.client.memory is not None:
            if number not in self._rows:
                trial = replace(self.links, releases=Releases())  # nothing of it leaves this process
                self._rows[number] = rows_with_room(
                    side, trial, self.sources[number].longest, config.client.memory, history=config.steps
                )
            side.rows_at_once = self._rows[number]
        return side
