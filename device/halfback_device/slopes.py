"""Estimators of a slope: the derivative of ⟨λ, z(θ)⟩ along a seeded direction u, from forward passes alone.

* ``forward``: ⟨λ, z(θ+μu) − z(θ)⟩ / μ, one pass a direction beside the base.
* ``central``: ⟨λ, z(θ+μu) − z(θ−μu)⟩ / 2μ, two passes.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from halfback_device.directions import Perturbed
from halfback_device.messages import Array
from halfback_device.seeds import Seeds

Weight = Callable[[str], Array]
"""The name of a parameter of θ → its values."""


@dataclass(frozen=True)
class Probe:
    """How a device takes its slopes.

    Attributes:
        directions: how many slopes a step takes, one for each seeded direction.
        radius: μ, how far weights are moved; None for the default, see `settled`.
        estimator: one of the two above.
        clip: bound on the size of each sample's slope; None for no bound.
    """

    directions: int
    radius: float | None = None
    estimator: Literal["forward", "central"] = "forward"
    clip: float | None = None

    def settled(self, parameters: Mapping[str, Array]) -> "Probe":
        """With a radius: where none was chosen, the default for these parameters."""
        return replace(self, radius=self.radius or default_radius(parameters))

    @property
    def moved(self) -> float:
        """The radius of a probe that is settled."""
        if self.radius is None:
            raise ValueError("a probe is settled before it moves anything")
        return self.radius


def default_radius(parameters: Mapping[str, Array]) -> float:
    """The default of μ for the float32 parameters that directions move: 1e-4, or less for millions of them."""
    dimension = sum(parameter.size for parameter in parameters.values())
    return min(1e-4, 0.25 / math.sqrt(max(dimension, 1)))


@dataclass(frozen=True)
class Cotangent:
    """What a slope is the slope of: ⟨λ, z(θ)⟩ as a function of θ.

    Attributes:
        of: λ, the gradient of the loss with respect to z: (B, …), or (N, H) for the N tokens of B texts.
        base: ⟨λ, z(θ)⟩ of the unperturbed z, sample by sample, (B,) float64.
        lengths: of the texts, (B,) integers; None where each row of λ is a sample.
    """

    of: Array
    base: Array
    lengths: Array | None = None

    @classmethod
    def at(cls, of: Array, result: Array, lengths: Array | None = None) -> "Cotangent":
        """Of an unperturbed result, which need not be kept while the parameters are probed."""
        return cls(of, inner(of, result, lengths), lengths)


def estimate(
    run: Callable[[Weight], Array],
    theta: Mapping[str, Array],
    measured: Mapping[str, Array],
    cotangent: Cotangent,
    seeds: Seeds,
    probe: Probe,
) -> Array:
    """Measures how ⟨λ, run(weight)⟩ changes along each direction.

    Args:
        run: the forward pass, which asks for θ's values by name when it is about to use them.
        theta: name → values; never changed.
        measured: those of θ that directions move.
        cotangent: λ, and ⟨λ, z⟩ where nothing is moved.
        seeds: of the directions.
        probe: settled, so that it has a radius.

    Returns:
        One slope a seed: (len(seeds),) float64.
    """

    def moved(place: int, radius: float) -> Array:
        return inner(cotangent.of, run(perturbed(theta, measured, seeds, place, radius)), cotangent.lengths)

    slopes = np.zeros(len(seeds))
    for place in range(len(seeds)):
        ahead = moved(place, probe.moved)
        if probe.estimator == "forward":
            slope = (ahead - cotangent.base) / probe.moved
        else:
            slope = (ahead - moved(place, -probe.moved)) / (2 * probe.moved)
        slopes[place] = _clipped(slope, probe.clip).sum()
    return slopes


def perturbed(
    theta: Mapping[str, Array], measured: Mapping[str, Array], seeds: Seeds, place: int, radius: float
) -> Weight:
    """θ + `radius`·u of the direction at `place`; a negative radius is the other side, what isn't measured stays."""
    moved = Perturbed(measured, seeds, place, radius)
    return lambda name: moved(name) if name in measured else theta[name]


def _clipped(slopes: Array, clip: float | None) -> Array:
    """(B,) parts of the slope of a batch's mean loss, with each sample's own slope bounded by `clip`."""
    if clip is None:
        return slopes
    bound = clip / len(slopes)  # a sample's part is its own slope over the number of samples
    return np.clip(slopes, -bound, bound)


_CHUNK = 1 << 15  # values widened at once


def inner(cotangent: Array, result: Array, lengths: Array | None = None) -> Array:
    """⟨λ, z⟩ of each sample: (B,) float64, from (B, …); or from (N, H) of the tokens of texts of these `lengths` (B,).

    In float64 the difference of two such sums is as exact as the sum of differences: what is left is the rounding of z
    itself. So a device need not keep z beside λ while it probes.
    """
    rows = len(cotangent)
    one, other = cotangent.reshape(rows, -1), result.reshape(rows, -1)
    total, width = np.zeros(rows), max(1, _CHUNK // max(rows, 1))
    for begin in range(0, one.shape[1], width):
        piece = one[:, begin : begin + width].astype(np.float64)
        piece *= other[:, begin : begin + width]
        total += piece.sum(axis=1)
    if lengths is None:
        return total
    # Of each text, whose first token comes behind the tokens of those before it.
    return np.add.reduceat(total, np.cumsum(lengths) - lengths)
