"""Muon for the matrices of hidden layers, AdamW for all else (kellerjordan.github.io/posts/muon, arXiv 2502.16982).

The library's own, `torch.optim.Muon` and `torch.optim.AdamW`, as one optimiser with one state. An update of Muon is as
long as one of AdamW's (0.2 · √max(m, n), as in "Muon is Scalable for LLM Training"), so both take the same rate. It
orthogonalises in bfloat16, by five steps of Newton and Schulz.
"""

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor

from halfback.optimizers.base import Settings, floats


@final
class Muon(torch.optim.Optimizer):
    """Both, see above."""

    def __init__(self, parameters: Sequence[Tensor], hidden: Sequence[bool], settings: Settings) -> None:
        """`hidden`: of each parameter, whether it is a matrix of a hidden layer."""
        self.hidden = dict(zip(parameters, hidden, strict=True))
        chosen = {kind: [p for p in parameters if self.hidden[p] is kind] for kind in (True, False)}
        lr, decay = settings.lr, settings.weight_decay
        self.parts: list[torch.optim.Optimizer] = []
        if chosen[True]:
            self.parts.append(torch.optim.Muon(chosen[True], lr, decay, adjust_lr_fn="match_rms_adamw"))
        if chosen[False]:
            self.parts.append(torch.optim.AdamW(chosen[False], lr, weight_decay=decay))
        super().__init__([group for part in self.parts for group in part.param_groups], {"lr": settings.lr})
        for part in self.parts:  # their groups are the same objects already
            part.state = self.state

    def form(self, parameter: Tensor) -> dict[str, Tensor]:
        """Muon's momentum, or AdamW's state."""
        like = parameter.to("meta")
        if self.hidden[parameter]:
            return {"momentum_buffer": like}
        return {"step": floats(), "exp_avg": like, "exp_avg_sq": like}

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Moves every parameter that holds a gradient."""
        for part in self.parts:
            part.step()
