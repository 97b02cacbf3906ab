"""APOLLO and APOLLO-Mini: gradients scaled as AdamW would scale them, from moments of a projection (arXiv 2412.05270).

For a matrix of a hidden layer W (m × n, m ≤ n; else transposed), step t, with α the root of the paper's `scale`:

1. P (r × m) from N(0, 1/r), drawn anew every T steps; R = PG
2. R̃ = m̂ / (√v̂ + ε), Adam's step of R
3. APOLLO: s_j = ‖R̃[:, j]‖ / ‖R[:, j]‖ for each channel j; Mini: r = 1 and one s = ‖R̃‖ / ‖R‖
4. u = α · G · diag(s); where ‖u‖ > γ ‖u of the step before‖, it is scaled down to that
5. W ← W − ηu − ηλW

The whole gradient is scaled, the projection only tells by how much. All other tensors take Adam's step. P is a function
of (seed, place of the tensor, ⌊(t − 1) / T⌋), made in each step and let go, so it is no state: 2nr + 2 numbers are, the
moments, t and the last length.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import ClassVar, final

import torch
from torch import Tensor

from halfback.optimizers.base import TINY, OneByOne, Settings, State, adam_form, floats, lying

GROWTH = 1.01  # γ


@final
class Apollo(OneByOne):
    """Both, see above."""

    eps: ClassVar[float] = 1e-6

    def __init__(
        self, parameters: Sequence[Tensor], hidden: Sequence[bool], settings: Settings, *, mini: bool = False
    ) -> None:
        """`mini`: APOLLO-Mini, else APOLLO."""
        super().__init__(parameters, hidden, settings)
        self.mini = mini
        scale = settings.scale if settings.scale is not None else 128.0 if mini else 1.0
        self.alpha = math.sqrt(scale)

    def form(self, parameter: Tensor) -> dict[str, Tensor]:
        """The moments of the projection and the last update's length; of other tensors, Adam's."""
        if not self.hidden[parameter]:
            return adam_form(*parameter.shape)
        return adam_form(self._rank(parameter), max(parameter.shape)) | {"length": floats()}

    def change(self, parameter: Tensor, gradient: Tensor, state: State) -> None:
        """One step."""
        if not self.hidden[parameter]:
            self.shift(parameter, self.adam(gradient, state))
            return
        gradient = lying(gradient)
        projected = self.projection(parameter, int(state["step"])).to(gradient.device) @ gradient  # R = PG
        adapted = self.adam(projected, state)  # R̃
        along = (0, 1) if self.mini else 0
        scales = _length(adapted, along) / _length(projected, along).clamp_min(TINY)  # s
        update = (gradient * scales).mul_(self.alpha)  # u
        length, last = _length(update), state["length"]
        allowed = torch.where(last > 0, torch.minimum(length, GROWTH * last), length)
        update.mul_(allowed / length.clamp_min(TINY))
        last.copy_(allowed)
        self.shift(parameter, update if update.shape == parameter.shape else update.T)

    def projection(self, parameter: Tensor, step: int) -> Tensor:
        """P of a parameter in its step, from 1 on: (r, m) on the CPU."""
        gap = 200 if self.settings.gap is None else self.settings.gap
        path = f"{self.settings.seed}/{self.place[parameter]}/{(step - 1) // gap}"
        seed = int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "little", signed=True)
        rank = self._rank(parameter)
        drawn = torch.randn(rank, min(parameter.shape), generator=torch.Generator().manual_seed(seed))
        return drawn.div_(math.sqrt(rank))

    def _rank(self, parameter: Tensor) -> int:
        return 1 if self.mini else rank_of(parameter, self.settings)


def rank_of(parameter: Tensor, settings: Settings) -> int:
    """r: a quarter of the shorter side unless the settings say it; never more than that side."""
    shorter = min(parameter.shape)
    return max(shorter // 4, 1) if settings.rank is None else min(settings.rank, shorter)


def _length(tensor: Tensor, along: int | tuple[int, ...] | None = None) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(tensor, dim=along)
    return length
