"""What the server makes of a cohort's slopes where some clients may lie about theirs.

Coordinate-wise median and trimmed mean: Yin et al. (2018, arXiv 1803.01498), whose coordinates are the gradient's. Here
they are the slopes along seeded directions.

Ours: `clip`, a mean of slopes whose size is bounded by the cohort's own median size; `trim` counts clients, where the
paper has a share of them; in a cohort of 2 · `trim` clients or fewer, `trimmed_mean` is the median.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from halfback.errors import UserError
from halfback.parties.shares import mean


@dataclass(frozen=True)
class Robust:
    """How slopes of several clients become one.

    Attributes:
        name: direction by direction, `none`: the mean; `clip`: the mean of bounded slopes; `median`, of an even number
            the mean of the two in the middle; `trimmed_mean`: the mean without the smallest and the largest.
        bound: for `clip`, the largest size of a slope, as a multiple of the cohort's median size along its direction.
        trim: for `trimmed_mean`, how many clients are left out at each end.
    """

    name: Literal["none", "clip", "median", "trimmed_mean"] = "none"
    bound: float = 3.0
    trim: int = 1

    def __post_init__(self) -> None:
        if not self.bound > 0:
            raise UserError(f"robust.bound={self.bound:g}: a positive number is allowed")
        if self.trim < 1:
            raise UserError(f"robust.trim={self.trim}: 1 or more are allowed")

    @property
    def needed(self) -> int:
        """The fewest clients among which one liar can't have its way."""
        return {"none": 1, "clip": 3, "median": 3, "trimmed_mean": 2 * self.trim + 1}[self.name]

    def agreed(self, rows: Tensor, shares: Sequence[float] | None = None) -> Tensor:
        """One slope for each direction, (P,) float32, from those of the clients that measured it, (clients, P).

        `shares`: of each client in the mean, None where they count alike; nothing else than a mean is taken by shares.
        Summed in float64: slopes whose sum overflows have a finite mean.
        """
        rows, middle = rows.double(), (len(rows) - 1) // 2
        match self.name:
            case "none":
                slopes = mean(rows, shares)
            case "clip":
                limit = self.bound * _trimmed_mean(rows.abs(), middle)
                slopes = rows.clamp(-limit, limit).mean(dim=0)
            case "median":
                slopes = _trimmed_mean(rows, middle)
            case "trimmed_mean":
                slopes = _trimmed_mean(rows, min(self.trim, middle))
        return slopes.float()


def _trimmed_mean(rows: Tensor, trim: int) -> Tensor:
    """Without the `trim` smallest and largest; the median where that leaves one row or two."""
    return rows.sort(dim=0).values[trim : len(rows) - trim].mean(dim=0)
