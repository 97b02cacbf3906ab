"""AdaLomo: a factored second moment, and no gradient kept beyond the backward pass (arXiv 2310.10195).

For a matrix (m × n), step t:

1. u = g² + 1e-30; β₂ = 1 − t^−0.8
2. r ← β₂r + (1 − β₂) · row means of u;  c ← β₂c + (1 − β₂) · column means of u
3. û = g / √(r / mean(r) ⊗ c), for any other tensor g / √v with v the running mean of u itself
4. û ← û / max(1, RMS(û))
5. η_t = η · max(1e-3, RMS(W));  W ← (1 − η_tλ)W − η_t û

State: m + n numbers, and t. Whoever runs the backward pass has it move each tensor in a hook, as soon as its gradient
is there, and frees that gradient (`parties/holdings`). Ours in place of pytorch-optimizer's, which the tests hold it
against: that one's hooks move on each backward pass, where a cohort's gradients are averaged over several, and it takes
no convolutions and no scalars.
"""

import math
from typing import final

from torch import Tensor

from halfback.optimizers.base import OneByOne, State, floats


@final
class AdaLomo(OneByOne):
    """See above."""

    def form(self, parameter: Tensor) -> dict[str, Tensor]:
        """A matrix' means by row and column; of other tensors, a mean for each value."""
        if parameter.ndim == 2:
            return {"step": floats(), "rows": floats(parameter.shape[0]), "columns": floats(parameter.shape[1])}
        return {"step": floats(), "square": floats(*parameter.shape)}

    def change(self, parameter: Tensor, gradient: Tensor, state: State) -> None:
        """One step."""
        new = int(state["step"]) ** -0.8  # 1 − β₂
        update = gradient.square().add_(1e-30)
        if parameter.ndim == 2:
            rows, columns = state["rows"], state["columns"]
            rows.lerp_(update.mean(1), new)
            columns.lerp_(update.mean(0), new)
            update.copy_(gradient).mul_((rows / rows.mean()).rsqrt_()[:, None]).mul_(columns.rsqrt())
        else:
            state["square"].lerp_(update, new)
            update.copy_(gradient).mul_(state["square"].rsqrt())
        update.div_(max(1.0, _rms(update)))
        self.shift(parameter, update, self.param_groups[0]["lr"] * max(1e-3, _rms(parameter)))


def _rms(tensor: Tensor) -> float:
    return float(tensor.float().norm()) / math.sqrt(tensor.numel())
