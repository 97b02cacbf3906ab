"""Estimators of a slope: the derivative of ⟨λ, z(θ)⟩ along a seeded direction u, from forward passes alone.

All have one signature, so that a method can be run with any of them:

* ``forward``: ⟨λ, z(θ+μu) − z(θ)⟩ / μ, one pass a direction beside the base (HO-SFL, arXiv 2603.14773, step 4).
* ``central``: ⟨λ, z(θ+μu) − z(θ−μu)⟩ / 2μ, two passes; the error falls as μ².
* ``forward_ad``: ⟨λ, J u⟩ by forward-mode automatic differentiation, exact, one dearer pass and no radius.

Weights are perturbed where they are used; live parameters never change. While a module runs, and only then, its own
parameters are replaced by scratch tensors; so one layer's copy is alive at a time, nothing has to be restored by
arithmetic, and the parameters are bit-exact in every dtype, also when the probe raises. Adding and subtracting in place
drifts instead: 12 % in bfloat16 after 1,000 probes.

Where weights are of half precision, all three are of the float32 function at these weights (`widening`), and θ+μu is a
float32 sum: passes that round to half precision differ by their rounding more than by so small a step.
"""

import math
from collections.abc import Callable, Hashable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from halfback.errors import UserError
from halfback.zeroth import native
from halfback.zeroth.directions import (
    Law,
    Pack,
    Seeds,
    Segment,
    direction_of,
    direction_rows,
    layout_of,
    name_number,
    native_table,
    packs,
)
from halfback.zeroth.radius import default_radius
from halfback.zeroth.substitution import substituted
from halfback.zeroth.widening import has_half, in_float32, summed_in

Estimator = Literal["forward", "central", "forward_ad"]


@dataclass(frozen=True)
class Probe:
    """How a party takes its slopes.

    Attributes:
        directions: how many slopes a step takes, one for each seeded direction.
        radius: μ, how far weights are moved; None for the measured default, see `settled`. `forward_ad` needs none.
        estimator: one of the three above.
        clip: bound on the size of each sample's slope; None for no bound.
    """

    directions: int
    radius: float | None = None
    estimator: Estimator = "forward"
    clip: float | None = None

    def settled(self, parameters: Mapping[str, Tensor], sent: torch.dtype = torch.float32) -> "Probe":
        """With a radius: where none was chosen, the default for these parameters.

        `sent`: the dtype to which results of perturbed weights are rounded, where they are sent to be compared.
        """
        return replace(self, radius=self.radius or default_radius(parameters, sent))

    def said(self, module: nn.Module) -> str:
        """How slopes of this module are taken, in words."""
        return f"{self.estimator}, in float32 over half-precision weights" if has_half(module) else self.estimator

    @property
    def moved(self) -> float:
        """The radius of a probe that is settled."""
        assert self.radius is not None, "a probe is settled before it moves anything"
        return self.radius

    def check(self, *, fewest: int = 1, otherwise: str = "") -> None:
        """Refuses options of a method that mean nothing.

        `fewest`: directions that it needs; `otherwise`: what to say of how it could do with fewer.

        Raises:
            UserError: names the option and what is allowed.
        """
        if self.directions < fewest:
            raise UserError(f"algorithm.directions={self.directions}: {fewest} or more are allowed{otherwise}")
        for option, value, otherwise in (
            ("radius", self.radius, "the measured default"),
            ("clip_samples", self.clip, "no bound"),
        ):
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise UserError(f"algorithm.{option}={value:g}: a positive number is allowed, or null for {otherwise}")


@dataclass(frozen=True)
class Cotangent:
    """What a slope is the slope of: ⟨λ, z(θ)⟩ as a function of θ.

    Attributes:
        of: λ, the gradient of the loss with respect to the result z: (B, …), or (N, H) for the N tokens of B texts; a
            one for a loss.
        base: ⟨λ, z(θ)⟩ of the unperturbed result, sample by sample, (B,) float64 (`inner`); None where it isn't known.
            It saves `forward` a pass where the weights are not of half precision.
        lengths: of the texts, (B,) integers; None where each row of λ is a sample.
    """

    of: Tensor
    base: Tensor | None = None
    lengths: Tensor | None = None

    @classmethod
    def at(cls, of: Tensor, result: Tensor, lengths: Tensor | None = None) -> "Cotangent":
        """Of an unperturbed result, which need not be kept while the parameters are probed."""
        return cls(of, inner(of, result, lengths), lengths)


@torch.no_grad()
def estimate_slopes(
    run: Callable[[], Tensor],
    module: nn.Module,
    parameters: Mapping[str, Tensor],
    cotangent: Cotangent,
    seeds: Seeds,
    probe: Probe,
) -> Tensor:
    """Measures how ⟨λ, run()⟩ changes along each direction.

    Args:
        run: the forward pass of `module`; its result has the shape of λ.
        module: whose parameters are moved; they are as before when this returns or raises.
        parameters: name → parameter of `module` that directions move.
        cotangent: λ, and ⟨λ, run()⟩ where nothing is moved.
        seeds: of the directions.
        probe: settled, so that it has a radius.

    Returns:
        One slope a seed: (len(seeds),) float64.
    """
    of, lengths, base = cotangent.of, cotangent.lengths, cotangent.base
    if not len(seeds):
        return torch.zeros(0, dtype=torch.float64, device=of.device)
    law, radius = seeds.law, probe.moved
    if has_half(module):
        run, base = in_float32(run), None  # that of the pass in half precision belongs to another function
    if base is None and probe.estimator == "forward":
        base = inner(of, run(), lengths)

    def slope(seed: int) -> Tensor:
        if probe.estimator == "forward_ad":
            return inner(of, _tangent(run, module, parameters, seed, law, like=of), lengths)
        with perturbed(module, parameters, seed, radius, law=law):
            ahead = inner(of, run(), lengths)
        if probe.estimator == "forward":
            assert base is not None, "it was measured above where it was not known"
            return (ahead - base) / radius
        with perturbed(module, parameters, seed, -radius, law=law):
            behind = inner(of, run(), lengths)
        return (ahead - behind) / (2 * radius)

    return _clipped(torch.stack([slope(seed) for seed in seeds.numbers]), probe.clip).sum(dim=1)


def _clipped(slopes: Tensor, clip: float | None) -> Tensor:
    """(P, B) parts of the slopes of a batch's mean loss, with each sample's own slope bounded by `clip`."""
    if clip is None:
        return slopes
    bound = clip / slopes.shape[1]  # a sample's part is its own slope over the number of samples
    return slopes.clamp(-bound, bound)


_INNER_CHUNK = 1 << 15  # values widened at once


@torch.no_grad()
def inner(cotangent: Tensor, result: Tensor, lengths: Tensor | None = None) -> Tensor:
    """⟨λ, z⟩ of each sample: (B,) float64, from (B, …); or from (N, H) of the tokens of texts of these `lengths` (B,).

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
    if lengths is None:
        return total
    owners = torch.repeat_interleave(torch.arange(len(lengths), device=total.device), lengths.long())
    return total.new_zeros(len(lengths)).index_add_(0, owners, total)


def _tangent(
    run: Callable[[], Tensor], module: nn.Module, parameters: Mapping[str, Tensor], seed: int, law: Law, *, like: Tensor
) -> Tensor:
    def dual(name: str, parameter: Tensor, rows: Tensor | None) -> Tensor:
        if rows is None:
            values = parameter.detach().to(summed_in(parameter))
            return forward_ad.make_dual(values, direction_of(seed, name, values, law=law))
        values = parameter.detach().index_select(0, rows).to(summed_in(parameter))
        return forward_ad.make_dual(
            values, direction_rows(seed, name, rows, parameter.shape[1], law=law).to(values.dtype)
        )

    # The fused attention kernels have no forward-mode rule; the written-out one has.
    moves = _named(parameters, seed, law)
    with forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH), substituted(module, parameters, dual, moves):
        tangent = forward_ad.unpack_dual(run()).tangent
    return torch.zeros_like(like) if tangent is None else tangent


def _named(parameters: Mapping[str, Tensor], *moves: Hashable) -> Hashable:
    """These moves of these parameters, for `in_force`."""
    return (*moves, *((name, id(parameter)) for name, parameter in parameters.items()))


def perturbed(
    module: nn.Module,
    parameters: Mapping[str, Tensor],
    seed: int,
    radius: float,
    *,
    law: Law = "rademacher",
) -> AbstractContextManager[None]:
    """A context in which `module` runs with θ + `radius`·u; a negative radius probes the other side.

    Bit-equal to adding ``radius * u`` to the parameters in place; for those of half precision, to a float32 copy of
    them: the module then runs `in_float32`.
    """
    # Those that the kernel moves: found beforehand, since between two layers' passes Python's cache is cold.
    whole = {
        name: native.Stretch(name_number(name), 0, parameter.numel())
        for name, parameter in parameters.items()
        if native.serves(parameter.device) and parameter.dtype == torch.float32
    }
    table = native_table(law) if whole else None
    pieces: dict[str, list[tuple[Pack, Segment]]] = {}
    made: dict[Pack, Tensor] = {}  # the last pack only: modules run about in the order of their parameters
    # Scaling in float32 gives the bits of scaling in the dtype of the sum only where that is float32.
    scales = [radius] if all(p.dtype != torch.float64 for p in parameters.values()) else None

    def add_direction(name: str, parameter: Tensor, rows: Tensor | None) -> Tensor:
        dtype = summed_in(parameter)
        if rows is not None:
            direction = direction_rows(seed, name, rows, parameter.shape[1], law=law)
            return parameter.detach().index_select(0, rows).to(dtype).add_(direction.to(dtype).mul_(radius))
        if name in whole:
            values = parameter.contiguous()
            moved = torch.empty_like(values)
            native.move(moved, values, whole[name], seed, radius, table)
            return moved
        if not pieces:
            for pack in packs(layout_of(parameters)):
                for segment in pack.segments:
                    pieces.setdefault(segment.name, []).append((pack, segment))
        scratch = torch.empty(parameter.shape, dtype=dtype, device=parameter.device)
        flat, old = scratch.view(-1), parameter.detach().reshape(-1)
        for pack, segment in pieces.get(name, ()):
            if pack not in made:
                made.clear()
                made[pack] = pack.directions([seed], law=law, device=flat.device, scales=scales)[0]
            step = made[pack][segment.place : segment.place + segment.stop - segment.start]
            if scales is None:
                step = step.to(flat.dtype) * radius
            torch.add(old[segment.start : segment.stop], step, out=flat[segment.start : segment.stop])
        return scratch

    return substituted(module, parameters, add_direction, _named(parameters, seed, radius, law))
