"""What an attack came to, beside what it has to be held against: chance, and a planted leak."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

_SURE = 3.0  # standard errors beyond chance: of a thousand figures by chance alone about one is


@dataclass(frozen=True)
class Finding:
    """One attack on one way in which data arrive.

    There are rates alone in here, and never a row, a token or a label: a report is shown to others, and would be the
    leak that it looks for.

    Attributes:
        about: what is read: tokens, images, labels, membership, or rows by slopes.
        how: the attack, with its size where it is trained.
        measure: what `value` is: "recovered" as a share, "AUC", or "PSNR" in decibels.
        value: what the attack came to.
        chance: what it comes to without what it listens to.
        margin: how far from chance a value may be by chance.
        planted: what the same attack comes to where a leak was planted.
        needed: what it must come to there, or no conclusion is drawn.
        control: what it comes to on noise in the place of what arrives; None where there is no such attack.
        rows: tokens, images, labels, rows or trials that were attacked.
        cut: blocks before the cut, where it matters.
        sent: how it travels, and how much noise is on it; empty where it doesn't matter.
        row_bytes: of a row's activations or gradients on the wire; None where nobody counted.
        quality: the model's metric on what arrives; None where the model was not trained.
        beside: further figures of the same attack, by name.
    """

    about: str
    how: str
    measure: str
    value: float
    chance: float
    margin: float
    planted: float
    needed: float
    control: float | None
    rows: int
    cut: int | None = None
    sent: str = ""
    row_bytes: float | None = None
    quality: float | None = None
    beside: dict[str, float] = field(default_factory=dict)

    @property
    def fence(self) -> str:
        """What is wrong with the attack itself; empty where nothing is.

        Returns:
            "planted leak not found", or "finds what is not there", or nothing.
        """
        if self.planted < self.needed:
            return "planted leak not found"
        if self.control is not None and self.control > self.chance + self.margin:
            return "finds what is not there"
        return ""

    @property
    def conclusion(self) -> str:
        """What follows.

        Returns:
            "leaks"; "not by this attack", which promises nothing about others; or "none", where the fence failed.
        """
        if self.fence:
            return "none"
        return "leaks" if self.value > self.chance + self.margin else "not by this attack"


def rate_margin(chance: float, rows: int) -> float:
    """How far a share of so many may be from chance by chance."""
    return _SURE * math.sqrt(max(chance * (1 - chance), 1 / rows) / rows)


def auc_margin(positives: int, negatives: int) -> float:
    """How far an area under the curve may be from a half by chance (Hanley and McNeil 1982, under equality)."""
    return _SURE * math.sqrt((positives + negatives + 1) / (12 * positives * negatives))


def auc(positives: Tensor, negatives: Tensor) -> float:
    """The share of pairs in which a positive's score is the larger one; ties count a half."""
    below = torch.searchsorted(negatives.double().sort().values, positives.double(), right=False)
    up_to = torch.searchsorted(negatives.double().sort().values, positives.double(), right=True)
    return float((below + up_to).double().mean()) / (2 * len(negatives))


def true_positives(positives: Tensor, negatives: Tensor, rate: float) -> float:
    """The share of positives above a threshold that at most this share of the negatives passes."""
    allowed = math.floor(rate * len(negatives))
    threshold = negatives.double().sort(descending=True).values[allowed]
    return float((positives.double() > threshold).double().mean())


def counted(values: int) -> str:
    """How many values a trained attack has, for its name."""
    return f"{values / 1e6:.3g} M values" if values >= 1e6 else f"{values / 1e3:.3g} k values"


def values_of(finding: Finding) -> dict[str, Any]:
    """A finding as plain values, with what follows from them."""
    return {**vars(finding), "fence": finding.fence, "conclusion": finding.conclusion}
