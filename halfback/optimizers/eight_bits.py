"""AdamW with moments of eight bits (arXiv 2110.02861): the arithmetic of bitsandbytes, its state as plain tensors.

A moment is kept as eight bits a value, with a scale for each 256 values, in a code of numbers that are dense near zero;
tensors of fewer than 4,096 values keep float32, as in bitsandbytes. Its own class keeps the two codes, which are
constant, in the state of each tensor, where a checkpoint would hold them once more for each.
"""

from collections.abc import Sequence
from typing import final

import torch
from bitsandbytes import functional
from torch import Tensor

from halfback.optimizers.base import OneByOne, Settings, State, adam_form, floats

BLOCK, SMALLEST = 256, 4096


@final
class AdamW8bit(OneByOne):
    """See above."""

    def __init__(self, parameters: Sequence[Tensor], hidden: Sequence[bool], settings: Settings) -> None:
        """As of `OneByOne`."""
        super().__init__(parameters, hidden, settings)
        self.codes = [functional.create_dynamic_map(signed=signed) for signed in (True, False)]

    def form(self, parameter: Tensor) -> dict[str, Tensor]:
        """Two moments of eight bits with their scales, or of float32."""
        if parameter.numel() < SMALLEST:
            return adam_form(*parameter.shape)
        bits = torch.empty(parameter.shape, dtype=torch.uint8, device="meta")
        scales = floats(-(-parameter.numel() // BLOCK))
        return {"step": floats(), "mean": bits, "mean_scale": scales, "square": bits, "square_scale": scales}

    def change(self, parameter: Tensor, gradient: Tensor, state: State) -> None:
        """One step."""
        if parameter.numel() < SMALLEST:
            self.shift(parameter, self.adam(gradient, state))
            return
        group = self.param_groups[0]
        signed, unsigned = (code.to(parameter.device) for code in self.codes)
        values = parameter.contiguous()
        functional.optimizer_update_8bit_blockwise(
            "adam",
            gradient.to(parameter.dtype).contiguous(),
            values,
            state["mean"],
            state["square"],
            *self.betas,
            0.0,  # of another optimiser
            0.0,
            self.eps,
            int(state["step"]),
            group["lr"],
            signed,
            unsigned,
            state["mean_scale"],
            state["square_scale"],
            group["weight_decay"],
        )
        if values is not parameter:
            parameter.copy_(values)
