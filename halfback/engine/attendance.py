"""Who took part in the rounds of a run: what its bits follow from, beside its configuration and its rows."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from halfback import json_reading
from halfback.errors import UserError
from halfback.telemetry.records import replace_text


@dataclass(frozen=True)
class Attended:
    """One round.

    Attributes:
        round: its number.
        cohort: the clients that were asked to take part, in order.
        left: of those that did not stay to its end, the exchange to which they said nothing any more.
    """

    round: int
    cohort: tuple[int, ...]
    left: Mapping[int, int] = field(default_factory=dict)

    def stay(self, exchange: int) -> set[int]:
        """Those that speak in an exchange of the round, which are counted from 0."""
        return {client for client in self.cohort if self.left.get(client, exchange + 1) > exchange}


_ATTENDED: TypeAdapter[Attended] = TypeAdapter(Attended)


def add(path: Path, attended: Attended) -> None:
    """Writes down one more round; it is in the file when this returns, whoever is killed next."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(attended)) + "\n")


def rounds_of(path: Path, clients: int) -> list[Attended]:
    """The rounds that a file has, in order.

    Args:
        path: the file.
        clients: of the run.

    Raises:
        UserError: a line is none, names a client that the run doesn't have, or is not that of the round that is due.
    """
    found: list[Attended] = []
    for number, line in enumerate(json_reading.text_of(path).split("\n")[:-1]):
        try:
            attended = _ATTENDED.validate_json(line)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"])) or "line"
            raise UserError(f"{path}, line {number + 1}: {where}: {first['msg']}") from None
        cohort = attended.cohort
        if attended.round != number or list(cohort) != sorted({*cohort} & {*range(clients)}) or not cohort:
            raise UserError(f"{path}, line {number + 1}: round {number} is due, of clients 0 to {clients - 1} in order")
        found.append(attended)
    return found


def keep(path: Path, rounds: int) -> None:
    """Takes away what a file has of later rounds than the first so many, also half a line that a kill has left."""
    if not path.exists():
        return
    lines = json_reading.text_of(path).split("\n")[:-1][:rounds]
    replace_text(path, "".join(f"{line}\n" for line in lines))


Attendance = Mapping[int, Attended]
"""The rounds of a run, by their numbers."""
