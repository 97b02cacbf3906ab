"""Estimators of a slope: the derivative of ⟨λ, z(θ)⟩ along a seeded direction u, from forward passes alone.

All have one signature, so that a method can be run with any of them:

* ``forward``: ⟨λ, z(θ+μu) − z(θ)⟩ / μ, one pass a direction beside the base (HO-SFL, arXiv 2603.14773, step 4).
* ``central``: ⟨λ, z(θ+μu) − z(θ−μu)⟩ / 2μ, two passes; the error falls as μ².
* ``forward_ad``: ⟨λ, J u⟩ by forward-mode automatic differentiation, exact, one dearer pass and no radius.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from halfback.zeroth.directions import Law, direction_of, direction_rows
from halfback.zeroth.perturb import perturbed, substituted

Estimator = Literal["forward", "central", "forward_ad"]


@torch.no_grad()
def estimate_slopes(
    run: Callable[[], Tensor],
    module: nn.Module,
    parameters: Mapping[str, Tensor],
    cotangent: Tensor,
    base: Tensor,
    seeds: Sequence[int],
    *,
    radius: float,
    estimator: Estimator = "forward",
    law: Law = "rademacher",
    clip: float | None = None,
) -> Tensor:
    """One slope a seed: (len(seeds),) float64.

    Args:
        run: the forward pass of `module`; its result has the shape of `cotangent`.
        parameters: name → parameter of `module` that directions move.
        cotangent: λ, the gradient of the loss with respect to the result (a one for a loss).
        base: ⟨λ, z(θ)⟩ of the unperturbed result, row by row (`inner`); only ``forward`` reads it.
        law: of the directions.
        radius: μ; ``forward_ad`` ignores it.
        clip: bound on the size of each row's slope of its own loss, whose mean the slope is; None for no bound.
    """

    def slope(seed: int) -> Tensor:
        if estimator == "forward_ad":
            return inner(cotangent, _tangent(run, module, parameters, seed, law, like=cotangent))
        with perturbed(module, parameters, seed, radius, law=law):
            ahead = inner(cotangent, run())
        if estimator == "forward":
            return (ahead - base) / radius
        with perturbed(module, parameters, seed, -radius, law=law):
            behind = inner(cotangent, run())
        return (ahead - behind) / (2 * radius)

    if not seeds:
        return torch.zeros(0, dtype=torch.float64, device=cotangent.device)
    return _clipped(torch.stack([slope(seed) for seed in seeds]), clip).sum(dim=1)


def _clipped(slopes: Tensor, clip: float | None) -> Tensor:
    """(P, B) parts of the slopes of a batch's mean loss, with each sample's own slope bounded by `clip`."""
    if clip is None:
        return slopes
    bound = clip / slopes.shape[1]  # a sample's part is its own slope over the number of samples
    return slopes.clamp(-bound, bound)


_INNER_CHUNK = 1 << 15  # values widened at once


@torch.no_grad()
def inner(cotangent: Tensor, result: Tensor) -> Tensor:
    """⟨λ, z⟩ of each row: (B,) float64, from (B, …).

    In float64 the difference of two such sums is as exact as the sum of differences: what is left is the rounding of z
    itself. So a device need not keep z beside λ while it probes.
    """
    rows = len(cotangent)
    width = max(1, _INNER_CHUNK // rows)
    pieces = zip(
        cotangent.reshape(rows, -1).split(width, dim=1), result.reshape(rows, -1).split(width, dim=1), strict=True
    )
    total = torch.zeros(rows, dtype=torch.float64, device=cotangent.device)
    for a, b in pieces:
        total += torch.linalg.vecdot(a.double(), b.double())
    return total


def _tangent(
    run: Callable[[], Tensor],
    module: nn.Module,
    parameters: Mapping[str, Tensor],
    seed: int,
    law: Law,
    *,
    like: Tensor,
) -> Tensor:
    def dual(name: str, parameter: Tensor, rows: Tensor | None) -> Tensor:
        if rows is None:
            return forward_ad.make_dual(parameter.detach(), direction_of(seed, name, parameter, law=law))
        tangent = direction_rows(seed, name, rows, parameter.shape[1], law=law).to(parameter.dtype)
        return forward_ad.make_dual(parameter.detach().index_select(0, rows), tangent)

    # The fused attention kernels have no forward-mode rule; the written-out one has.
    with forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH), substituted(module, parameters, dual):
        tangent = forward_ad.unpack_dual(run()).tangent
    return torch.zeros_like(like) if tangent is None else tangent


def default_radius(parameters: Mapping[str, Tensor], dtype: torch.dtype) -> float:
    """The measured default of μ (docs/results.md, "Slope error") for these parameters and the dtype of the activations.

    The truncation error grows with the length of the step, μ√d, and the rounding error with eps/μ. In float32 any
    radius from 1e-5 to 1e-4 is right to a few per cent up to 10^5 parameters and a smaller one for millions; half
    precisions need a larger one, and stay wrong by 30 % and more **(ours)**.
    """
    dimension = sum(parameter.numel() for parameter in parameters.values())
    coarser = max(torch.finfo(dtype).eps / torch.finfo(torch.float32).eps, 1.0)
    return min(1e-4, 0.25 / math.sqrt(max(dimension, 1))) * coarser ** (1 / 3)


def least_move(parameters: Mapping[str, Tensor], move: float) -> float:
    """`move` times the smallest power of ten with which most values change."""
    while swallowed(parameters, move) > 0.5:
        move *= 10
    return move


def swallowed(parameters: Mapping[str, Tensor], move: float) -> float:
    """The share of the values that adding `move` leaves as they are, because their dtype rounds it away."""
    counts = [int(((p.detach() + move) == p.detach()).sum()) for p in parameters.values()]
    return sum(counts) / max(sum(p.numel() for p in parameters.values()), 1)
