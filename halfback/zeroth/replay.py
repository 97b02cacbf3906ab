"""Replay: everyone who knows the seeds and the agreed slopes rebuilds the same update, bit for bit.

ĝ = (1/P) Σ_p v̄_p u_p (HO-SFL, arXiv 2603.14773, step 6), taken through SGD, momentum or AdamW. Nothing here depends on
the order in which parameters are visited or on how they are packed, so many missed steps are replayed in
one pass over the parameters, and the result has the bits of one step at a time.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from halfback.errors import PeerError
from halfback.zeroth.directions import PACK_WIDTH, Law, Pack, layout_of, packs

SeedOf = Callable[[int, int], int]
Schedule = Callable[[int], float]


def constant(step: int) -> float:
    """The schedule that leaves the learning rate as it is."""
    return 1.0


@dataclass(frozen=True)
class UpdateRule:
    """How an agreed gradient estimate moves the parameters.

    Attributes:
        optimizer: `sgd`, `momentum` (heavy ball) or `adamw` (Loshchilov and Hutter, arXiv 1711.05101).
        lr: learning rate. With `normalize` it is the root-mean-square move of a coordinate in one step.
        normalize: divide the update by the norm of its own slopes **(ours)**; a function of the agreed scalars alone,
            so replay stays exact.
        clip: bound on the norm of ĝ. The norm is taken as √(d/P · mean v̄²), exact for orthogonal ±1 directions and
            off by O(√(P/d)) otherwise **(ours)**: it needs no pass over the parameters.
    """

    optimizer: Literal["sgd", "momentum", "adamw"] = "sgd"
    lr: float = 1e-3
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    normalize: bool = False
    clip: float | None = None

    def moments(self) -> tuple[str, ...]:
        """Names of the state tensors that one parameter needs."""
        return {"sgd": (), "momentum": ("velocity",), "adamw": ("mean", "square")}[self.optimizer]

    def coefficients(self, slopes: Sequence[float], dimension: int) -> list[float]:
        """What each direction is multiplied by: (P,) slopes → (P,) coefficients of ĝ."""
        norm = math.sqrt(math.fsum(slope * slope for slope in slopes))
        if self.normalize:
            return [slope / norm if norm > 0 else 0.0 for slope in slopes]
        scale = 1 / len(slopes)
        length = norm * scale * math.sqrt(dimension)
        if self.clip is not None and length > self.clip:
            scale *= self.clip / length
        return [slope * scale for slope in slopes]


class Replica:
    """Parameters that every party moves alike, with the optimiser's moments and the number of steps taken.

    Attributes:
        parameters: name → parameter; moved in place.
        position: steps replayed so far; the next agreed row is number `position`.
        groups: names of the parameters that share slopes; a row of the history has P slopes for each group in turn.
            A group may be one of which this replica has no parameter: a device with fewer blocks than others.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        *,
        rule: UpdateRule,
        seed_of: SeedOf,
        law: Law = "rademacher",
        schedule: Schedule = constant,
        groups: Sequence[Sequence[str]] | None = None,
    ) -> None:
        """`seed_of(step, p)` is the seed of direction p of a step, `schedule(step)` the factor of its learning rate.

        By default all parameters share their slopes.
        """
        self.parameters = dict(parameters)
        self.rule = rule
        self.law = law
        self.seed_of = seed_of
        self.schedule = schedule
        self.groups = [list(self.parameters)] if groups is None else [list(names) for names in groups]
        self.position = 0
        self.dimension = sum(parameter.numel() for parameter in self.parameters.values())
        self.moments: dict[str, dict[str, Tensor]] = {
            moment: {name: torch.zeros_like(p, dtype=torch.float32) for name, p in self.parameters.items()}
            for moment in rule.moments()
        }

    def seeds(self, directions: int, *, step: int | None = None) -> list[int]:
        """The seeds of a step's directions: of the one to be replayed next, unless another is named."""
        return [self.seed_of(self.position if step is None else step, p) for p in range(directions)]

    @torch.no_grad()
    def replay(self, first: int, slopes: Tensor) -> None:
        """Takes the steps `first`, `first` + 1, … with the agreed `slopes` (steps, groups · P).

        Rows that were already taken are ignored, so a repeated message is harmless.

        Raises:
            PeerError: the rows begin after `position`: steps in between are missing; or they are no rows.
        """
        count = len(self.groups)
        if slopes.ndim != 2 or (len(slopes) and (not slopes.shape[1] or slopes.shape[1] % count)) or first < 0:
            wanted = "P" if count == 1 else f"{count} · P"
            raise PeerError(
                f"history: {tuple(slopes.shape)} from step {first} came, (steps, {wanted}) from step 0 is allowed"
            )
        if first > self.position:
            raise PeerError(f"history: rows begin at step {first}, but this replica is at step {self.position}")
        new = slopes[self.position - first :]
        if not len(new):
            return
        directions = new.shape[1] // count
        seeds = [self.seed_of(self.position + i, p) for i in range(len(new)) for p in range(directions)]
        for names, rows in zip(self.groups, new.split(directions, dim=1), strict=True):
            own = {name: self.parameters[name] for name in names if name in self.parameters}
            dimension = sum(parameter.numel() for parameter in own.values())
            coefficients = [self.rule.coefficients(row, dimension) for row in rows.tolist()]
            for dtype in {parameter.dtype for parameter in own.values()}:  # a pack is rounded as a whole
                alike = {name: parameter for name, parameter in own.items() if parameter.dtype == dtype}
                for pack in packs(layout_of(alike)):
                    self._replay_pack(pack, coefficients, seeds)
        self.position += len(new)

    @contextmanager
    def rehearsal(self) -> Iterator[None]:
        """What is replayed inside is undone at the end, to the bit: from copies, not by arithmetic."""
        states = [self.parameters, *self.moments.values()]
        kept = [{name: tensor.detach().clone() for name, tensor in state.items()} for state in states]
        position = self.position
        try:
            yield
        finally:
            with torch.no_grad():
                for state, before in zip(states, kept, strict=True):
                    for name, tensor in state.items():
                        tensor.copy_(before[name])
            self.position = position

    def _replay_pack(self, pack: Pack, coefficients: list[list[float]], seeds: list[int]) -> None:
        device = next(iter(self.parameters.values())).device
        dtype = self.parameters[pack.segments[0].name].dtype
        values = _gather(self.parameters, pack, device)
        moments = [_gather(self.moments[moment], pack, device) for moment in self.rule.moments()]
        directions = self._directions(pack, coefficients, seeds, device)
        for i, row in enumerate(coefficients):
            gradient = next(directions)
            for _ in row[1:]:
                gradient += next(directions)
            self._step(values, gradient, moments, self.position + i + 1)
            del gradient  # before the next step's directions are made
            if dtype != torch.float32:  # as a client that takes one step at a time does
                values.copy_(values.to(dtype))
        _scatter(values, self.parameters, pack)
        for moment, changed in zip(self.rule.moments(), moments, strict=True):
            _scatter(changed, self.moments[moment], pack)

    def _directions(
        self, pack: Pack, coefficients: list[list[float]], seeds: list[int], device: torch.device
    ) -> Iterator[Tensor]:
        """Each seed's direction times its coefficient.

        Those of a step are made together, if the scratch memory allows it; never those of several, so that catching up
        needs no more memory than taking one step.
        """
        # Half a megabyte, or a sixteenth of the parameters: a call costs as much as a hundred thousand values.
        at_once = max(1, max(PACK_WIDTH, self.dimension // 16) // pack.width)
        for step, row in enumerate(coefficients):
            own = seeds[step * len(row) : (step + 1) * len(row)]
            for begin in range(0, len(row), at_once):
                chosen = slice(begin, begin + at_once)
                yield from pack.directions(own[chosen], law=self.law, device=device, scales=row[chosen])

    def _step(self, values: Tensor, gradient: Tensor, moments: list[Tensor], count: int) -> None:
        """One optimiser step on a pack, in float32 and in place; `gradient` is used up.

        Products and sums are apart: a fused multiply-add rounds once instead of twice, and which of the two is used
        differs between devices and vector tails. So does dividing by a number, which CUDA turns into a product.
        """
        rule, lr = self.rule, self.rule.lr * self.schedule(count - 1)
        if rule.weight_decay:
            values.mul_(1 - lr * rule.weight_decay)
        if rule.optimizer == "sgd":
            values.sub_(gradient.mul_(lr))
        elif rule.optimizer == "momentum":
            (velocity,) = moments
            values.sub_(velocity.mul_(rule.momentum).add_(gradient) * lr)
        else:
            mean, square = moments
            beta1, beta2 = rule.betas
            mean.mul_(beta1).add_(gradient * (1 - beta1))
            square.mul_(beta2).add_(gradient.square_().mul_(1 - beta2))
            root = (square * (1 / (1 - beta2**count))).sqrt_().add_(rule.eps)
            values.sub_((mean * (1 / (1 - beta1**count))).div_(root).mul_(lr))


def _gather(tensors: Mapping[str, Tensor], pack: Pack, device: torch.device) -> Tensor:
    """(width,) float32: the pack's segments of the tensors, zero in the gaps. A view, where one segment is all."""
    if len(pack.segments) == 1 and pack.segments[0].stop - pack.segments[0].start == pack.width:
        (only,) = pack.segments
        return tensors[only.name].view(-1)[only.start : only.stop].float()
    flat = torch.zeros(pack.width, dtype=torch.float32, device=device)
    for segment in pack.segments:
        size = segment.stop - segment.start
        flat[segment.place : segment.place + size] = tensors[segment.name].view(-1)[segment.start : segment.stop]
    return flat


def _scatter(flat: Tensor, tensors: Mapping[str, Tensor], pack: Pack) -> None:
    """Puts back what `_gather` took."""
    for segment in pack.segments:
        size = segment.stop - segment.start
        tensors[segment.name].view(-1)[segment.start : segment.stop] = flat[segment.place : segment.place + size]
