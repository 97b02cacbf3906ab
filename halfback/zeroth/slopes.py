"""Estimators of a slope: the derivative of ⟨λ, z(θ)⟩ along a seeded direction u, from forward passes alone.

All have one signature, so that a method can be run with any of them:

* ``forward``: ⟨λ, z(θ+μu) − z(θ)⟩ / μ, one pass a direction beside the base (HO-SFL, arXiv 2603.14773, step 4).
* ``central``: ⟨λ, z(θ+μu) − z(θ−μu)⟩ / 2μ, two passes; the error falls as μ².
* ``forward_ad``: ⟨λ, J u⟩ by forward-mode automatic differentiation, exact, one dearer pass and no radius.

Weights are perturbed where they are used; live parameters never change. While a module runs, and only then, its own
parameters are replaced by scratch tensors; so one layer's copy is alive at a time, nothing has to be restored by
arithmetic, and the parameters are bit-exact in every dtype, also when the probe raises. Adding and subtracting in place
drifts instead: 12 % in bfloat16 after 1,000 probes.
"""

import inspect
import math
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from halfback.errors import UserError
from halfback.zeroth.directions import Law, Pack, Seeds, Segment, direction_of, direction_rows, layout_of, packs

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

    def settled(self, parameters: Mapping[str, Tensor], dtype: torch.dtype) -> "Probe":
        """With a radius: where none was chosen, the default for these parameters and activations of this dtype."""
        return replace(self, radius=self.radius or default_radius(parameters, dtype))

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
        base: ⟨λ, z(θ)⟩ of the unperturbed result, sample by sample, (B,) float64 (`inner`); only `forward` reads it.
        lengths: of the texts, (B,) integers; None where each row of λ is a sample.
    """

    of: Tensor
    base: Tensor
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
    of, lengths, law, radius = cotangent.of, cotangent.lengths, seeds.law, probe.moved

    def slope(seed: int) -> Tensor:
        if probe.estimator == "forward_ad":
            return inner(of, _tangent(run, module, parameters, seed, law, like=of), lengths)
        with perturbed(module, parameters, seed, radius, law=law):
            ahead = inner(of, run(), lengths)
        if probe.estimator == "forward":
            return (ahead - cotangent.base) / radius
        with perturbed(module, parameters, seed, -radius, law=law):
            behind = inner(of, run(), lengths)
        return (ahead - behind) / (2 * radius)

    if not len(seeds):
        return torch.zeros(0, dtype=torch.float64, device=of.device)
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
            return forward_ad.make_dual(parameter.detach(), direction_of(seed, name, parameter, law=law))
        tangent = direction_rows(seed, name, rows, parameter.shape[1], law=law).to(parameter.dtype)
        return forward_ad.make_dual(parameter.detach().index_select(0, rows), tangent)

    # The fused attention kernels have no forward-mode rule; the written-out one has.
    moves = _named(parameters, seed, law)
    with forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH), substituted(module, parameters, dual, moves):
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


Substitute = Callable[[str, Tensor, Tensor | None], Tensor]
_Own = list[tuple[nn.Module, str, nn.Parameter]]  # holder, attribute, parameter
_HOLDERS = (nn.ParameterDict, nn.ParameterList)  # never run: the module around them uses their parameters


_IN_FORCE: ContextVar[tuple[Hashable, ...]] = ContextVar("in_force", default=())


def in_force() -> tuple[Hashable, ...]:
    """What stands in for parameters while a module runs now: equal where the same does, empty where nothing does."""
    return _IN_FORCE.get()


def _named(parameters: Mapping[str, Tensor], *moves: Hashable) -> Hashable:
    """These moves of these parameters, for `in_force`."""
    return (*moves, *((name, id(parameter)) for name, parameter in parameters.items()))


@contextmanager
def substituted(
    module: nn.Module, parameters: Mapping[str, Tensor], substitute: Substitute, known_as: Hashable
) -> Iterator[None]:
    """While this context is open, every submodule that runs sees `substitute(name, parameter, rows)` for its weights.

    Args:
        module: the tree whose submodules run.
        parameters: name → parameter (by identity) to be replaced; others are left alone.
        substitute: gives the replacement; `rows` is None for the whole parameter or, for an embedding table, the (n,)
            distinct rows that this call uses: the replacement then has only these rows.
        known_as: what `in_force` says meanwhile; another for whatever gives other replacements.
    """
    names = {id(parameter): name for name, parameter in parameters.items()}
    handles = []
    swapped: dict[nn.Module, Callable[[], None]] = {}
    for child in module.modules():
        if isinstance(child, _HOLDERS):
            continue
        holders = [child, *(part for part in child.children() if isinstance(part, _HOLDERS))]
        own = [(h, attribute, p) for h in holders for attribute, p in h._parameters.items() if p is not None]
        own = [entry for entry in own if id(entry[2]) in names]
        if own:
            handles.append(child.register_forward_pre_hook(_enter(own, names, substitute, swapped)))
            handles.append(child.register_forward_hook(_leave(swapped), always_call=True))
    before = _IN_FORCE.set((*in_force(), known_as))
    try:
        yield
    finally:
        _IN_FORCE.reset(before)
        for handle in handles:
            handle.remove()
        for restore in list(swapped.values()):  # an interrupt passes by the forward hooks
            restore()


def _enter(
    own: _Own,
    names: dict[int, str],
    substitute: Substitute,
    swapped: dict[nn.Module, Callable[[], None]],
) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if isinstance(module, nn.Embedding) and len(args) == 1 and _looks_up_ids(module):
            (_, attribute, table), padding = own[0], module.padding_idx
            rows, ids = torch.unique(args[0], return_inverse=True)
            swapped[module] = lambda: _restore(own, module, padding)
            module.padding_idx = None  # meant for row numbers of the whole table, and only for its gradient
            module._parameters[attribute] = substitute(names[id(table)], table, rows)  # type: ignore[assignment]
            return (ids,)
        swapped[module] = lambda: _restore(own)
        for holder, attribute, parameter in own:
            holder._parameters[attribute] = substitute(names[id(parameter)], parameter, None)  # type: ignore[assignment]
        return None

    return hook


def _leave(swapped: dict[nn.Module, Callable[[], None]]) -> Callable[..., None]:
    def hook(module: nn.Module, _args: Any, _output: Any) -> None:
        restore = swapped.pop(module, None)
        if restore is not None:
            restore()

    return hook


def _restore(own: _Own, embedding: nn.Embedding | None = None, padding: int | None = None) -> None:
    for holder, attribute, parameter in own:
        holder._parameters[attribute] = parameter
    if embedding is not None:
        embedding.padding_idx = padding


def _looks_up_ids(module: nn.Embedding) -> bool:
    """Whether the call's one argument is the row numbers (learned positions compute theirs from other arguments)."""
    return list(inspect.signature(type(module).forward).parameters)[1] in ("input", "input_ids")


def perturbed(
    module: nn.Module,
    parameters: Mapping[str, Tensor],
    seed: int,
    radius: float,
    *,
    law: Law = "rademacher",
) -> AbstractContextManager[None]:
    """A context in which `module` runs with θ + `radius`·u; a negative radius probes the other side.

    Bit-equal to adding ``radius * u`` to the parameters in place, for every dtype.
    """
    pieces: dict[str, list[tuple[Pack, Segment]]] = {name: [] for name in parameters}
    for pack in packs(layout_of(parameters)):
        for segment in pack.segments:
            pieces[segment.name].append((pack, segment))
    made: dict[Pack, Tensor] = {}  # the last pack only: modules run about in the order of their parameters
    # Scaling in float32 gives the bits of scaling in the parameters' dtype only where that is float32.
    scales = [radius] if all(p.dtype == torch.float32 for p in parameters.values()) else None

    def add_direction(name: str, parameter: Tensor, rows: Tensor | None) -> Tensor:
        if rows is not None:
            direction = direction_rows(seed, name, rows, parameter.shape[1], law=law)
            return parameter.detach().index_select(0, rows).add_(direction.to(parameter.dtype).mul_(radius))
        scratch = torch.empty_like(parameter, memory_format=torch.contiguous_format)
        flat, old = scratch.view(-1), parameter.detach().reshape(-1)
        for pack, segment in pieces[name]:
            if pack not in made:
                made.clear()
                made[pack] = pack.directions([seed], law=law, device=flat.device, scales=scales)[0]
            step = made[pack][segment.place : segment.place + segment.stop - segment.start]
            if scales is None:
                step = step.to(flat.dtype) * radius
            torch.add(old[segment.start : segment.stop], step, out=flat[segment.start : segment.stop])
        return scratch

    return substituted(module, parameters, add_direction, _named(parameters, seed, radius, law))
