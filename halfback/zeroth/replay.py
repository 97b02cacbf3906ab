"""Replay: everyone who knows the seeds and the agreed slopes rebuilds the same update, bit for bit.

ĝ = (1/P) Σ_p v̄_p u_p (HO-SFL, arXiv 2603.14773, step 6), taken through SGD, momentum or AdamW. Nothing here depends on
the order in which parameters are visited or on how they are cut into chunks, so many missed steps are replayed in
one pass over the parameters, and the result has the bits of one step at a time.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from halfback.errors import PeerError
from halfback.zeroth.directions import Law, direction_slices
from halfback.zeroth.perturb import CHUNK

SeedOf = Callable[[int, int], int]


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
    """

    def __init__(
        self, parameters: Mapping[str, Tensor], *, rule: UpdateRule, seed_of: SeedOf, law: Law = "rademacher"
    ) -> None:
        """`seed_of(step, p)` is the seed of direction p of a step."""
        self.parameters = dict(parameters)
        self.rule = rule
        self.law = law
        self.seed_of = seed_of
        self.position = 0
        self.dimension = sum(parameter.numel() for parameter in self.parameters.values())
        self.moments: dict[str, dict[str, Tensor]] = {
            moment: {name: torch.zeros_like(p, dtype=torch.float32) for name, p in self.parameters.items()}
            for moment in rule.moments()
        }

    def seeds(self, directions: int) -> list[int]:
        """The seeds of the next step's directions."""
        return [self.seed_of(self.position, p) for p in range(directions)]

    @torch.no_grad()
    def replay(self, first: int, slopes: Tensor) -> None:
        """Takes the steps `first`, `first` + 1, … with the agreed `slopes` (steps, P).

        Rows that were already taken are ignored, so a repeated message is harmless.

        Raises:
            PeerError: the rows begin after `position`: steps in between are missing.
        """
        if first > self.position:
            raise PeerError(f"history: rows begin at step {first}, but this replica is at step {self.position}")
        rows = slopes[self.position - first :].tolist()
        if not rows:
            return
        coefficients = [self.rule.coefficients(row, self.dimension) for row in rows]
        seeds = [self.seed_of(self.position + i, p) for i, row in enumerate(rows) for p in range(len(row))]
        for name, parameter in self.parameters.items():
            self._replay_parameter(name, parameter, coefficients, seeds)
        self.position += len(rows)

    def _replay_parameter(
        self, name: str, parameter: Tensor, coefficients: list[list[float]], seeds: list[int]
    ) -> None:
        flat = parameter.view(-1)
        directions = len(coefficients[0])
        for start in range(0, flat.numel(), CHUNK):
            stop = min(start + CHUNK, flat.numel())
            values = flat[start:stop].float()
            moments = [self.moments[moment][name].view(-1)[start:stop] for moment in self.rule.moments()]
            at_once = max(1, CHUNK // ((stop - start) * directions))  # steps whose directions are made together
            for begin in range(0, len(coefficients), at_once):
                end = min(begin + at_once, len(coefficients))
                made = direction_slices(
                    seeds[begin * directions : end * directions], name, start, stop, law=self.law, device=flat.device
                )
                for i in range(begin, end):
                    gradient = torch.zeros_like(values)
                    for p, coefficient in enumerate(coefficients[i]):
                        gradient += made[(i - begin) * directions + p] * coefficient
                    values = self._step(values, gradient, moments, self.position + i + 1).to(flat.dtype).float()
            flat[start:stop] = values.to(flat.dtype)

    def _step(self, values: Tensor, gradient: Tensor, moments: list[Tensor], count: int) -> Tensor:
        """One optimiser step on a chunk, in float32. Products and sums are apart: a fused multiply-add rounds once
        instead of twice, and which one is used differs between devices and vector tails."""
        rule = self.rule
        if rule.weight_decay:
            values = values * (1 - rule.lr * rule.weight_decay)
        if rule.optimizer == "sgd":
            return values - gradient * rule.lr
        if rule.optimizer == "momentum":
            (velocity,) = moments
            velocity.mul_(rule.momentum).add_(gradient)
            return values - velocity * rule.lr
        mean, square = moments
        beta1, beta2 = rule.betas
        mean.mul_(beta1).add_(gradient * (1 - beta1))
        square.mul_(beta2).add_((gradient * gradient) * (1 - beta2))
        corrected_mean = mean / (1 - beta1**count)
        corrected_square = square / (1 - beta2**count)
        return values - corrected_mean / (corrected_square.sqrt() + rule.eps) * rule.lr
