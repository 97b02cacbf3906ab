"""Who sits where: the client numbers of a run, and the sites that have them, a gateway's several."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from halfback import json_reading
from halfback.errors import UserError, shown
from halfback.telemetry.records import replace_text

log = logging.getLogger(__name__)


class Place(NamedTuple):
    """A client's: its site, and which of that site's clients it is, from 0 on."""

    site: str
    number: int

    def __str__(self) -> str:
        return f"{self.site}:{self.number}"


@dataclass(frozen=True)
class Seats:
    """The seats of a run.

    Attributes:
        given: the client numbers of each site that ever had one, by its own places.
        here: client number → its place, of the sites that are here.
        free: how many numbers no site has.
    """

    given: Mapping[str, list[int]]
    here: Mapping[int, Place]
    free: int

    @property
    def known(self) -> list[str]:
        """All sites that have a seat."""
        return list(self.given)

    @property
    def alone(self) -> set[int]:
        """The clients that are all of their site."""
        return {numbers[0] for numbers in self.given.values() if len(numbers) == 1}

    def is_gateway(self, site: str) -> bool:
        """Whether a site has several clients."""
        return len(self.given[site]) > 1


def seated(path: Path, sites: Mapping[str, int], clients: int) -> Seats:
    """Gives seats to those that have none, or more places than before, and writes down who has which.

    Whoever had a seat keeps it. The free ones go round, one to each site in the order of their names, until no site has
    more places or none is left: so a gateway takes no other site's, however many places it says it has.

    Args:
        path: the run's file of seats.
        sites: those that are here, and how many clients each says it may be.
        clients: of the run.

    Raises:
        UserError: the file gives a number to nobody who could have it, or to two.
    """
    given = _read(path, clients)
    taken = {number for numbers in given.values() for number in numbers}
    free = [number for number in range(clients) if number not in taken]
    wanting = [name for name in sorted(sites) if len(given.get(name, ())) < sites[name]]
    while free and wanting:
        for name in list(wanting):
            if free:
                given.setdefault(name, []).append(free.pop(0))
            if len(given.get(name, ())) >= sites[name]:
                wanting.remove(name)
    for name in wanting:
        log.warning(
            "no seat is left for site %s beside %d: the run has clients=%d", name, len(given.get(name, ())), clients
        )
    replace_text(path, json.dumps(given))
    here = {
        number: Place(name, place)
        for name, numbers in given.items()
        for place, number in enumerate(numbers[: sites.get(name, 0)])
    }
    return Seats(given, here, len(free))


def _read(path: Path, clients: int) -> dict[str, list[int]]:
    found: Any = json_reading.read(path) if path.exists() else {}
    lists = list(found.values()) if isinstance(found, dict) else [None]
    numbers = [number for each in lists for number in (each if isinstance(each, list) and each else [None])]
    if not {*map(type, numbers)} <= {int} or not {*numbers} <= {*range(clients)} or len({*numbers}) < len(numbers):
        raise UserError(f"{path} must give each site clients of its own, 0 to {clients - 1}, not {shown(found)}")
    return {str(name): list(each) for name, each in found.items()}
