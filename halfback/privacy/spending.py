"""Of how many releases one row, or one client, was part: what an account is of.

A row is in one batch of each epoch of its client, so what counts is how often that batch was part of a release, added
up over epochs: not the steps of the run. A step that is taken again, behind a kill or in a round that was void, is
another release and counts again. So a release is on disk before anybody is told of it, and is never taken back.
"""

import json
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, final

from halfback import json_reading
from halfback.errors import UserError, shown
from halfback.privacy.rules import batches_of_epoch
from halfback.privacy.settings import Unit

_MOST, _MOST_STEPS = 1 << 53, 1 << 20


class Part(NamedTuple):
    """What a client's part in a release is of.

    Attributes:
        first: the number of its first batch.
        steps: batches one after the other, each a release.
        rows: that the client has.
    """

    first: int
    steps: int
    rows: int


@final
class Spending:
    """The releases of a run.

    Attributes:
        steps: how many there were.
    """

    def __init__(self, unit: Unit, size: int) -> None:
        """`size`: rows of a batch."""
        self.steps = 0
        self._unit, self._size = unit, size
        self._path: Path | None = None
        self._times: Counter[tuple[int, int]] = Counter()  # of a client's batch
        self._highest: dict[tuple[int, int], int] = {}  # of all batches of a client's epoch
        self._totals: Counter[int] = Counter()

    @property
    def is_kept(self) -> bool:
        """Whether it is written down."""
        return self._path is not None

    @property
    def most(self) -> int:
        """Releases of which the row, or the client, that was part of most of them was part."""
        return max(self._totals.values(), default=0)

    def most_with(self, parts: Mapping[int, Part]) -> int:
        """What `most` would be if these, by client, were released too."""
        after = {client: self._totals[client] + len(self._raised(client, part)) for client, part in parts.items()}
        return max(self.most, *after.values())

    def add(self, parts: Mapping[int, Part]) -> None:
        """Writes a release down, of clients by their numbers; it is on disk when this returns."""
        if self._path is not None:
            line = json.dumps({str(client): list(part) for client, part in sorted(parts.items())})
            try:
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                raise UserError(f"{self._path} can't be written: {error.strerror}") from None
        self._enter(parts)

    def keep(self, path: Path, steps: int) -> None:
        """Goes on from a file, and writes into it from now on.

        Args:
            path: of the file, which need not be there yet.
            steps: that the run has taken, by its checkpoint: of each there must have been a release.

        Raises:
            UserError: a line is none, or releases are missing: what was released would be forgotten.
        """
        text = json_reading.text_of(path) if path.exists() else ""
        lines, half = text.split("\n")[:-1], text.rpartition("\n")[2]
        for number, line in enumerate(lines):
            self._enter(_parts(line, f"{path}, line {number + 1}"))
        if self.steps < steps:
            raise UserError(f"{path} has {self.steps} of the {steps} steps that were released: its account is lost")
        if half:  # a kill came between: nobody was told of it
            with path.open("r+b") as file:
                file.truncate(len(text.encode()) - len(half.encode()))
        self._path = path

    def _raised(self, client: int, part: Part) -> list[int]:
        """Of which of the client's epochs, or batches, one more release is one more of the same row, or client."""
        numbers = range(part.first, part.first + part.steps)
        if self._unit == "client":
            return list(numbers)
        a_epoch = batches_of_epoch(part.rows, self._size)
        highest = {at // a_epoch: self._highest.get((client, at // a_epoch), 0) for at in numbers}
        return sorted({at // a_epoch for at in numbers if self._times[client, at] >= highest[at // a_epoch]})

    def _enter(self, parts: Mapping[int, Part]) -> None:
        for client, part in parts.items():
            raised = self._raised(client, part)
            self._totals[client] += len(raised)
            if self._unit == "sample":
                for epoch in raised:
                    self._highest[client, epoch] = self._highest.get((client, epoch), 0) + 1
                self._times.update((client, number) for number in range(part.first, part.first + part.steps))
        self.steps += max(part.steps for part in parts.values())


def _parts(line: str, where: str) -> dict[int, Part]:
    try:
        found = {int(client): Part(*part) for client, part in json_reading.parse(line).items()}
    except (ValueError, TypeError, AttributeError):
        found = {}
    numbers = [number for part in found.values() for number in part]
    if not found or not all(type(number) is int and 0 <= number < _MOST for number in numbers):
        raise UserError(f"{where}: {shown(line)} is no release")
    if any(not 0 < part.steps <= _MOST_STEPS or part.rows < 1 for part in found.values()):
        raise UserError(f"{where}: {shown(line)} is no release")
    return found
