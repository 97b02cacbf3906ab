"""What the clients of a run have agreed on by slopes, as their server keeps it."""

from bisect import bisect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from halfback.wire.messages import Both, Encoded, Exact, Message, Slopes
from halfback.zeroth.replay import Replica

Parts = tuple[Tensor, ...]
FEW = 1 << 20  # values: what a codec made one bit of is four bytes again on the device


def rows_below_state(replica: Replica, row_bytes: int) -> int:
    """Says how many steps of exact gradients cost a client less than what they have made of θ.

    Args:
        replica: θ.
        row_bytes: of the values of one step's exact gradients as they are sent.

    Returns:
        The most rows that are together fewer bytes than the exact parameters and their moments, and of which a client
        has no more values in memory at once than of these, or than `FEW`.
    """
    state, values = sum(tensor.nbytes for tensor in replica.exact_state().values()), replica.width(0)
    return min((state - 1) // row_bytes, max(FEW, state // 4) // values) if values else 0


@dataclass
class Agreed:
    """The θ that the clients have agreed on, and the history of slopes that led to it.

    Attributes:
        replica: θ, for evaluation and for whoever joins. It may lag behind `rows`: see `catch_up`.
        rows: the agreed slopes of every step, each float32, of each group of θ in turn; behind them exact gradients, as
            long as `replica` has not taken the step: see `settle`.
        settled: how many rows have no exact gradients any more.
        turns: where rows are not numbered as the run's steps, because clients take turns: (row, its step) of those from
            which both count on by one.
        recent: exact gradients of the newest rows as they were sent: of each what the codec made of it, or the one
            tensor; as many rows as `rows_below_state` says.
        encode: where agreed exact gradients go through a codec: what is sent of them, the same to all clients, and what
            these make of it; None where they are sent as they are.
    """

    replica: Replica
    rows: list[Tensor] = field(default_factory=list)
    turns: list[tuple[int, int]] = field(default_factory=list)
    settled: int = 0
    recent: list[Parts] = field(default_factory=list)
    encode: Callable[[Tensor], tuple[Encoded, Tensor]] | None = None

    def begin(self, step: int) -> None:
        """Notes where the next row belongs.

        Args:
            step: of the run.
        """
        row = len(self.rows)
        if row and self.steps_of(row, 1) != [step]:
            self.turns = [turn for turn in self.turns if turn[0] != row] + [(row, step)]

    def steps_of(self, first: int, count: int) -> list[int]:
        """Says which steps of the run rows belong to.

        Args:
            first: the number of the first row.
            count: how many rows.

        Returns:
            The step of each.
        """
        steps = []
        for row in range(first, first + count):
            place = bisect(self.turns, row, key=lambda turn: turn[0])
            begun, step = self.turns[place - 1] if place else (0, 0)
            steps.append(step + row - begun)
        return steps

    def append(self, row: Tensor, steps: int = 1) -> Slopes:
        """Takes in what clients have agreed on.

        Args:
            row: the slopes of a step, float32: P for each group of θ in turn, and exact gradients behind them.
            steps: that `row` holds, one behind the other.

        Returns:
            The message that tells clients of it.
        """
        first = len(self.rows)
        self.rows += list(row.view(steps, -1)) if steps > 1 else [row]
        return Slopes(first, row)

    def append_exact(self, row: Tensor) -> Message:
        """Takes in what clients have agreed on, where blocks have exact gradients: as the clients will decode it.

        Args:
            row: as `append` takes it, of one step.

        Returns:
            The message that tells clients of it: `Slopes` and `Exact`.
        """
        count = len(row) - self.replica.width(0)
        slopes, exact = row[:count], row[count:]
        said: Any = exact  # or what a codec makes of it, as in any message that a link has encoded
        if self.encode is not None:
            said, exact = self.encode(exact)
        self._keep(said.parts if isinstance(said, Encoded) else (said.clone(),))
        message = self.append(torch.cat([slopes, exact]))
        return Both(replace(message, values=slopes), Exact(said))

    def _keep(self, parts: Parts) -> None:
        self.recent.append(parts)
        most = rows_below_state(self.replica, sum(part.nbytes for part in parts))
        self.recent = self.recent[-most:] if most else []

    def missed_exact(self, count: int) -> Exact:
        """What a client has not replayed yet of exact gradients.

        Args:
            count: of the newest rows; 1 or more, of which all are in `recent`.

        Returns:
            The message with those of these rows, one behind the other.
        """
        parts = tuple(torch.cat(rows) for rows in zip(*self.recent[-count:], strict=True))
        said: Any = parts[0] if self.encode is None else Encoded(parts)
        return Exact(said)

    def missed(self, position: int) -> Tensor:
        """What a client has not replayed yet.

        Args:
            position: the number of the first row that it lacks.

        Returns:
            The rows from there on, (steps, slopes of a row).
        """
        rows = self.rows[position:]
        return torch.stack(rows) if rows else torch.zeros(0, len(self.rows[0]) if self.rows else 0)

    def catch_up(self) -> None:
        """Brings the replica up to the rows."""
        if self.rows:
            first, rows = self.replica.position, self.missed(self.replica.position)
            self.replica.replay(first, rows, self.steps_of(first, len(rows)))

    def settle(self) -> None:
        """Catches up, and forgets the exact gradients: θ has them now, and they would outgrow it."""
        if exact := self.replica.width(0):
            self.catch_up()
            for place in range(self.settled, len(self.rows)):
                self.rows[place] = self.rows[place][:-exact].clone()
            self.settled = len(self.rows)
