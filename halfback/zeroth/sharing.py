"""Who measures which of a step's directions.

HO-SFL (arXiv 2603.14773) has one set of P directions that a whole cohort shares. Seeds cost nothing, so each client, or
each sample of each client, may have P of its own **(ours)**: the same forward passes then give as many times more
measurements, each of a gradient with more noise in it, and only scalars more are sent.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Per = Literal["cohort", "client", "sample"]


@dataclass(frozen=True)
class Sharing:
    """How the directions of a step are shared out; a step has `seats` · `rows` · P of them.

    Attributes:
        seats: clients of a cohort with directions of their own; 1 where they share them.
        rows: samples of a client's batch with directions of their own; 1 where they share them.
    """

    seats: int = 1
    rows: int = 1

    def of_client(self, directions: int) -> int:
        """Slopes that one client measures, for P `directions`."""
        return self.rows * directions

    def of_cohort(self, directions: int) -> int:
        """Directions of one step, for P `directions`."""
        return self.seats * self.of_client(directions)

    def place(self, seat: int, directions: int) -> slice:
        """Where, among the step's directions, those of the client in this seat of the cohort are."""
        own = self.of_client(directions)
        first = seat % self.seats * own
        return slice(first, first + own)

    def spread(self, measured: dict[int, Tensor], shares: Sequence[float] | None = None) -> Tensor:
        """What a cohort agrees on, (seats · own,) float32, from (own,) by seat: zeros along what nobody measured.

        Each value is weighed so that the mean of slope times direction over all directions of the step is the mean over
        the clients that measured, by their `shares`; None where they count alike.
        """
        own = len(next(iter(measured.values())))
        agreed = torch.zeros(self.seats, own, dtype=torch.float64, device=next(iter(measured.values())).device)
        for place, (seat, slopes) in enumerate(measured.items()):
            weight = self.seats / len(measured) if shares is None else self.seats * shares[place]
            agreed[seat] = slopes.double() * weight
        return agreed.flatten().float()
