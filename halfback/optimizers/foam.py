"""FOAM: Adam's moments of the means of neighbours, and what a step's own gradient adds to them (arXiv 2512.07112).

For a matrix of a hidden layer, step t, with blocks of 2^l neighbours along the last dimension, filled up with zeros:

1. g̃ = the mean of each block; R = g − unfold(g̃)
2. m̃ ← β₁m̃ + (1 − β₁)g̃;  ṽ ← β₂ṽ + (1 − β₂)g̃²
3. M = unfold(m̃) + ρR;  V = unfold(ṽ) + ρ²R²
4. W ← W − η · √(1 − β₂^t) / (1 − β₁^t) · α · M / (√V + ε) − ηλW

All other tensors take Adam's step. State: 2 · mn / 2^l numbers, and t. Where the paper has g̃² in step 2, its authors'
code has the mean of g² over each block, which is larger; this is the paper's. ρ = 1.
"""

import math
from typing import ClassVar, final

from torch import Tensor, nn

from halfback.optimizers.base import OneByOne, State, adam_form


@final
class Foam(OneByOne):
    """See above. Defaults are the paper's for pretraining: l = 2, α = 0.25."""

    betas: ClassVar[tuple[float, float]] = (0.9, 0.95)

    @property
    def _block(self) -> int:
        return 1 << (2 if self.settings.level is None else self.settings.level)

    def form(self, parameter: Tensor) -> dict[str, Tensor]:
        """The moments of the blocks' means; of other tensors, Adam's."""
        if not self.hidden[parameter]:
            return adam_form(*parameter.shape)
        return adam_form(parameter.shape[0], -(-parameter.shape[1] // self._block))

    def change(self, parameter: Tensor, gradient: Tensor, state: State) -> None:
        """One step."""
        if not self.hidden[parameter]:
            self.shift(parameter, self.adam(gradient, state))
            return
        folded, square, count = state["mean"], state["square"], int(state["step"])
        beta1, beta2 = self.betas
        means = self._fold(gradient)  # g̃
        rest = gradient - self._unfold(means, gradient)  # R
        folded.lerp_(means, 1 - beta1)
        square.mul_(beta2).addcmul_(means, means, value=1 - beta2)
        root = self._unfold(square, gradient).addcmul_(rest, rest).sqrt_().add_(self.eps)  # √V + ε
        update = rest.add_(self._unfold(folded, gradient)).div_(root)  # M / (√V + ε)
        alpha = 0.25 if self.settings.scale is None else self.settings.scale
        self.shift(parameter, update.mul_(alpha * math.sqrt(1 - beta2**count) / (1 - beta1**count)))

    def _fold(self, gradient: Tensor) -> Tensor:
        filled = nn.functional.pad(gradient, (0, -gradient.shape[1] % self._block))
        return filled.view(len(gradient), -1, self._block).mean(-1)

    def _unfold(self, means: Tensor, like: Tensor) -> Tensor:
        return means.repeat_interleave(self._block, dim=1)[:, : like.shape[1]]
