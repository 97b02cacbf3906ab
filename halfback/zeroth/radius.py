"""How far a probe moves the weights: the default of μ, and when a move is rounded away."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from halfback.zeroth.widening import summed_in


def default_radius(parameters: Mapping[str, Tensor], sent: torch.dtype = torch.float32) -> float:
    """The measured default of μ (docs/results.md, "Slope error") for these parameters.

    The truncation error grows with the length of the step, μ√d, and the rounding error with eps/μ. Probes are passes in
    float32: any radius from 1e-5 to 1e-4 is right to a few per cent up to 10^5 parameters and a smaller one for
    millions. Where results are rounded to half precision and `sent`, a larger one is needed **(ours)**.
    """
    dimension = sum(parameter.numel() for parameter in parameters.values())
    coarser = max(torch.finfo(sent).eps / torch.finfo(torch.float32).eps, 1.0)
    return min(1e-4, 0.25 / math.sqrt(max(dimension, 1))) * math.cbrt(coarser)


def least_move(parameters: Mapping[str, Tensor], move: float, *, probing: bool = False) -> float:
    """`move` times the smallest power of ten with which most values change; `probing` as in `swallowed`."""
    while swallowed(parameters, move, probing=probing) > 0.5:
        move *= 10
    return move


def swallowed(parameters: Mapping[str, Tensor], move: float, *, probing: bool = False) -> float:
    """The share of the values that adding `move` leaves as they are, because it is rounded away.

    The sum is rounded to the dtype of the parameters, or if `probing` to that of a probe's θ+μu.
    """

    def unchanged(values: Tensor) -> int:
        return int(((values + move) == values).sum())

    counts = [unchanged(p.detach().to(summed_in(p) if probing else p.dtype)) for p in parameters.values()]
    return sum(counts) / max(sum(p.numel() for p in parameters.values()), 1)
