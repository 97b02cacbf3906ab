"""How an agreed gradient estimate moves parameters: SGD, its sign, momentum or AdamW, in float32 and to the bit.

Each line below is one operation of NumPy, so each product, sum, quotient and root is rounded by itself, in the order of
docs/protocol.md. Numbers that multiply arrays are reckoned in float64 and rounded to float32 once.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from halfback_device.messages import Array

_PIECE = 4096  # values that are Python's own at once

Schedule = Callable[[int], float]
Shape = Literal["constant", "linear", "cosine", "multistep"]


def constant(step: int) -> float:
    """The schedule that leaves the learning rate as it is."""
    return 1.0


@dataclass(frozen=True)
class Falls:
    """The steps from which on a multistep schedule's factor is `gamma` times what it was before, in rising order."""

    milestones: Sequence[int] = ()
    gamma: float = 0.1


NEVER = Falls()


def schedule(shape: Shape, *, warmup: int, total: int, falls: Falls = NEVER) -> Schedule:
    """Step from 0 on → factor of the learning rate.

    It rises in a line over the first `warmup` steps, and then stays at 1, or falls to 0 at step `total` in a line or a
    half cosine, or by a factor at each milestone.
    """
    return partial(_factor, shape, warmup, total, falls)


def _factor(shape: str, warmup: int, total: int, falls: Falls, step: int) -> float:
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if shape == "constant":
        return 1.0
    if shape == "multistep":
        factor = 1.0
        for milestone in falls.milestones:
            factor *= falls.gamma if step >= milestone else 1.0
        return factor
    gone = min((step - warmup) / max(total - warmup, 1), 1.0)
    return 1 - gone if shape == "linear" else (1 + math.cos(math.pi * gone)) / 2


@dataclass(frozen=True)
class UpdateRule:
    """How an agreed gradient estimate moves the parameters; the settings are those of `bottom` in a recipe."""

    optimizer: Literal["sgd", "momentum", "adamw", "sign"] = "sgd"
    lr: float = 1e-3
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    normalize: bool = False
    clip: float | None = None

    def moments(self) -> tuple[str, ...]:
        """Names of the state arrays that one parameter needs."""
        return {"sgd": (), "momentum": ("velocity",), "adamw": ("mean", "square"), "sign": ()}[self.optimizer]

    def coefficients(self, slopes: Sequence[float], dimension: int) -> list[float]:
        """What each direction is multiplied by: (P,) slopes → (P,) coefficients of ĝ, in float64."""
        norm = math.sqrt(math.fsum(slope * slope for slope in slopes))
        if self.normalize:
            return [slope / norm if norm > 0 else 0.0 for slope in slopes]
        scale = 1 / len(slopes)
        length = norm * scale * math.sqrt(dimension)
        if self.clip is not None and length > self.clip:
            scale *= self.clip / length
        return [slope * scale for slope in slopes]

    def exact_scale(self, gradient: Array) -> float:
        """What an exact gradient (d,) is multiplied by, so that `normalize` and `clip` mean what they mean for ĝ."""
        if not self.normalize and self.clip is None:
            return 1.0
        pieces = (gradient[at : at + _PIECE].tolist() for at in range(0, len(gradient), _PIECE))
        # Rounded once, whatever the order of the sum.
        norm = math.sqrt(math.fsum(value * value for piece in pieces for value in piece))
        if self.normalize:
            return math.sqrt(len(gradient)) / norm if norm > 0 else 0.0
        return self.clip / norm if self.clip is not None and norm > self.clip else 1.0

    def step(self, values: Array, gradient: Array, moments: Sequence[Array], count: int, lr: float) -> None:
        """Step number `count`, from 1 on, of float32 values and moments, in place; `gradient` is used up."""
        rate = np.float32(lr)
        if self.weight_decay:
            values *= np.float32(1 - lr * self.weight_decay)
        if self.optimizer == "sgd":
            gradient *= rate
            values -= gradient
        elif self.optimizer == "sign":
            values -= np.subtract(gradient > 0, gradient < 0, dtype=np.float32) * rate
        elif self.optimizer == "momentum":
            (velocity,) = moments
            velocity *= np.float32(self.momentum)
            velocity += gradient
            np.multiply(velocity, rate, out=gradient)
            values -= gradient
        else:
            self._adamw(values, gradient, moments, count, rate)

    def _adamw(self, values: Array, gradient: Array, moments: Sequence[Array], count: int, rate: np.float32) -> None:
        mean, square = moments
        beta1, beta2 = self.betas
        mean *= np.float32(beta1)
        mean += gradient * np.float32(1 - beta1)
        square *= np.float32(beta2)
        gradient *= gradient
        gradient *= np.float32(1 - beta2)
        square += gradient
        # NumPy's root of float32 is the correctly rounded one on every processor of today; by way of float64 it is the
        # same, whatever a library does.
        np.multiply(square, np.float32(1 / (1 - beta2**count)), out=gradient)
        root = np.sqrt(gradient.astype(np.float64)).astype(np.float32)
        root += np.float32(self.eps)
        np.multiply(mean, np.float32(1 / (1 - beta1**count)), out=gradient)
        gradient /= root
        gradient *= rate
        values -= gradient
