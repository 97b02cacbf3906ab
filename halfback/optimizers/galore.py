"""GaLore: Adam in the space of the gradient's leading singular vectors (arXiv 2403.03507).

For a matrix of a hidden layer (m × n, m ≤ n; else transposed), step t:

1. every T steps, from the first gradient on that isn't 0: P (m × r) = the first r left singular vectors of G
2. R = PᵀG; N = m̂ / (√v̂ + ε), Adam's step of R; the moments stay when P changes
3. W ← W − ηα P N − ηλW

All other tensors take Adam's step. State: mr + 2nr numbers, and t. The paper has no weight decay, and leaves open which
of its two signs a singular vector has, on which the kept moments depend: here its largest entry is positive. Ours in
place of pytorch-optimizer's, which the tests hold it against: that one keeps P in an object, not among the tensors of
its state, so that a checkpoint would lose it, and renews it at the steps 1, T, 2T in place of 1, T + 1, 2T + 1.
"""

from typing import final

import torch
from torch import Tensor

from halfback.optimizers.apollo import rank_of
from halfback.optimizers.base import OneByOne, State, adam_form, floats, lying


@final
class GaLore(OneByOne):
    """See above. Defaults: r is a quarter of the shorter side, T = 200, α = 0.25."""

    def form(self, parameter: Tensor) -> dict[str, Tensor]:
        """The moments of the projection, and P; of other tensors, Adam's."""
        if not self.hidden[parameter]:
            return adam_form(*parameter.shape)
        rank = rank_of(parameter, self.settings)
        return adam_form(rank, max(parameter.shape)) | {"projection": floats(min(parameter.shape), rank)}

    def change(self, parameter: Tensor, gradient: Tensor, state: State) -> None:
        """One step."""
        if not self.hidden[parameter]:
            self.shift(parameter, self.adam(gradient, state))
            return
        gradient, projection = lying(gradient), state["projection"]
        gap = 200 if self.settings.gap is None else self.settings.gap
        due = (int(state["step"]) - 1) % gap == 0 or not projection.any()
        if due and gradient.any():  # of LoRA's A the first gradient is 0, and has no leading directions
            leading = torch.linalg.svd(gradient, full_matrices=False).U[:, : projection.shape[1]]
            largest = leading.gather(0, leading.abs().argmax(0, keepdim=True))
            projection.copy_(leading * largest.sign())
        update = projection @ self.adam(projection.T @ gradient, state)
        update.mul_(0.25 if self.settings.scale is None else self.settings.scale)
        self.shift(parameter, update if update.shape == parameter.shape else update.T)
