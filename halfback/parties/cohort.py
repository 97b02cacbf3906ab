"""Who counts how in a cohort: each client's share of a mean, and what stands in for a mean where some may lie.

A client counts like the others, or by its training rows. By rows is Federated Averaging's mean (McMahan et al., arXiv
1602.05629, algorithm 1): client k counts n_k / Σ n, over the clients of the round. n_k is the number of rows that it
trains on, not those of a batch: a batch stands for all of its client's rows, and the last of an epoch is smaller by
chance. Ours: the means that belong to a step (of slopes, and of the top's gradients) go by the same shares as those of
weights, so both parts descend on one objective.

Coordinate-wise median and trimmed mean: Yin et al. (2018, arXiv 1803.01498), whose coordinates are the gradient's. Here
they are the slopes along seeded directions.

Krum and Multi-Krum: Blanchard et al. (2017, arXiv 1703.02757), of vectors as wholes: a client's score is the sum of
squared distances to its n − f − 2 nearest of n clients, of which f lie; the smallest score is taken, of equal ones the
first client's, or the mean of the m smallest.

Ours: `clip`, a mean of slopes whose size is bounded by the cohort's own median size; `trim` counts clients, where the
paper has a share of them; in a cohort of 2 · `trim` clients or fewer, `trimmed_mean` is the median; m = n − f; in a
cohort of fewer than 2f + 3 clients, f is as large as it lets Krum be, and of one or two clients their mean is taken.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from halfback.errors import UserError
from halfback.parties.holdings import Boundary

Aggregation = Literal["uniform", "rows"]


@dataclass(frozen=True)
class Robust:
    """How slopes of several clients become one.

    Attributes:
        name: direction by direction, `none`: the mean; `clip`: the mean of bounded slopes; `median`, of an even number
            the mean of the two in the middle; `trimmed_mean`: the mean without the smallest and the largest. Of all
            directions together, `krum`: the slopes of the client nearest to the others; `multi_krum`: the mean of all
            but the `liars` farthest.
        bound: for `clip`, the largest size of a slope, as a multiple of the cohort's median size along its direction.
        trim: for `trimmed_mean`, how many clients are left out at each end.
        liars: for `krum` and `multi_krum`, the most clients of a cohort that may lie.
    """

    name: Literal["none", "clip", "median", "trimmed_mean", "krum", "multi_krum"] = "none"
    bound: float = 3.0
    trim: int = 1
    liars: int = 1

    def __post_init__(self) -> None:
        if not self.bound > 0:
            raise UserError(f"robust.bound={self.bound:g}: a positive number is allowed")
        for option in ("trim", "liars"):
            if getattr(self, option) < 1:
                raise UserError(f"robust.{option}={getattr(self, option)}: 1 or more are allowed")

    @property
    def needed(self) -> int:
        """The fewest clients among which one liar can't have its way."""
        krum = 2 * self.liars + 3
        return {
            "none": 1,
            "clip": 3,
            "median": 3,
            "trimmed_mean": 2 * self.trim + 1,
            "krum": krum,
            "multi_krum": krum,
        }[self.name]

    @property
    def said(self) -> str:
        """The settings on which `needed` depends, for a message."""
        option = {"trimmed_mean": "trim", "krum": "liars", "multi_krum": "liars"}.get(self.name)
        return f"robust.name={self.name}" + (f" with robust.{option}={getattr(self, option)}" if option else "")

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
            case "krum" | "multi_krum":
                slopes = _krum(rows, self.liars, several=self.name == "multi_krum")
        return slopes.float()


def _trimmed_mean(rows: Tensor, trim: int) -> Tensor:
    """Without the `trim` smallest and largest; the median where that leaves one row or two."""
    return rows.sort(dim=0).values[trim : len(rows) - trim].mean(dim=0)


def _krum(rows: Tensor, liars: int, *, several: bool) -> Tensor:
    """The row nearest to the others; with `several` the mean of all but the `liars` farthest from them."""
    count = len(rows)
    if count < 3:
        return rows.mean(dim=0)
    liars = min(liars, (count - 3) // 2)
    away = torch.stack([(rows - row).square().sum(dim=1) for row in rows])
    nearest = away.sort(dim=1).values[:, 1 : count - liars - 1]  # the first is a row's distance to itself
    order = nearest.sum(dim=1).sort(stable=True).indices
    return rows[order[: count - liars if several else 1]].mean(dim=0)


def mean(stacked: Tensor, shares: Sequence[float] | None) -> Tensor:
    """Along the first dimension, by the entries' `shares`, or alike without any; in the dtype of `stacked`."""
    if shares is None:
        return stacked.mean(dim=0)
    weights = torch.tensor(shares, dtype=torch.float64, device=stacked.device)
    return torch.tensordot(weights, stacked.double(), dims=1).to(stacked.dtype)


@dataclass
class Cohort:
    """Who counts how, by client.

    Attributes:
        rows: the training rows by which a client counts in means; empty where all count alike.
        robust: how the slopes of a cohort become those of the history.
        groups: the groups of θ that a client measures, as in `Theta.groups`; all for one that is not there.
        boundaries: of the clients by number, for methods whose devices have one each.
        summed: each client's values are the cohort's mean already, since nobody else's are known (`secure.sum`).
    """

    rows: dict[int, int] = field(default_factory=dict)
    robust: Robust = Robust()
    groups: dict[int, Sequence[int]] = field(default_factory=dict)
    boundaries: Sequence[Boundary] = ()
    summed: bool = False

    def shares(self, clients: Collection[int]) -> list[float] | None:
        """What each of these clients counts in their mean, all together 1; None where they count alike."""
        counts = [self.rows[client] for client in clients] if self.rows else []
        if len(set(counts)) < 2:
            return None
        return [count / sum(counts) for count in counts]
