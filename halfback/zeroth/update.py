"""How an agreed gradient estimate moves parameters: SGD, its sign, momentum or AdamW, in float32 and to the bit.

Products and sums are apart: a fused multiply-add rounds once instead of twice, and which of the two is used differs
between devices and vector tails. So does dividing by a number, which CUDA turns into a product. And PyTorch's square
root of float32 isn't the correctly rounded one on every CPU: with MKL a fifth of all values differ in the last bit.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Replayed = Literal["sgd", "momentum", "adamw", "sign"]


@dataclass(frozen=True)
class UpdateRule:
    """How an agreed gradient estimate moves the parameters.

    Attributes:
        optimizer: `sgd`, `momentum` (heavy ball), `adamw` (Loshchilov and Hutter, arXiv 1711.05101) or `sign` (of ĝ;
            Bernstein et al., arXiv 1802.04434).
        lr: learning rate. With `normalize` it is the root-mean-square move of a coordinate in one step.
        normalize: divide the update by the norm of its own slopes **(ours)**; a function of the agreed scalars alone,
            so replay stays exact.
        clip: bound on the norm of ĝ. The norm is taken as √(d/P · mean v̄²), exact for orthogonal ±1 directions and
            off by O(√(P/d)) otherwise **(ours)**: it needs no pass over the parameters. With N directions that are
            not few beside d it is too small, about by √(1 + N/d); so is the norm of `normalize`.
    """

    optimizer: Replayed = "sgd"
    lr: float = 1e-3
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    normalize: bool = False
    clip: float | None = None

    def moments(self) -> tuple[str, ...]:
        """Names of the state tensors that one parameter needs."""
        return {"sgd": (), "momentum": ("velocity",), "adamw": ("mean", "square"), "sign": ()}[self.optimizer]

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

    def exact_scale(self, gradient: Tensor) -> float:
        """What an exact gradient (d,) is multiplied by, so that `normalize` and `clip` mean what they mean for ĝ."""
        norm = math.sqrt(math.fsum(value * value for value in gradient.tolist()))  # whatever the order of the sum
        if self.normalize:
            return math.sqrt(len(gradient)) / norm if norm > 0 else 0.0
        return self.clip / norm if self.clip is not None and norm > self.clip else 1.0

    def decay(self, lr: float) -> float:
        """What weight decay multiplies values by in a step."""
        return 1 - lr * self.weight_decay

    def step(self, values: Tensor, gradient: Tensor, moments: Sequence[Tensor], count: int, lr: float) -> None:
        """Step number `count`, from 1 on, of float32 values and moments, in place; `gradient` is used up."""
        if self.weight_decay:
            values.mul_(self.decay(lr))
        if self.optimizer in ("sgd", "sign"):
            step = gradient if self.optimizer == "sgd" else gradient.sign_()
            values.sub_(step.mul_(lr))
        elif self.optimizer == "momentum":
            (velocity,) = moments
            values.sub_(velocity.mul_(self.momentum).add_(gradient) * lr)
        else:
            mean, square = moments
            beta1, beta2 = self.betas
            mean.mul_(beta1).add_(gradient * (1 - beta1))
            square.mul_(beta2).add_(gradient.square_().mul_(1 - beta2))
            # By way of float64, whose rounding is too fine to matter: the nearest float32, on every device.
            root = (square * (1 / (1 - beta2**count))).double().sqrt_().float().add_(self.eps)
            values.sub_((mean * (1 / (1 - beta1**count))).div_(root).mul_(lr))
