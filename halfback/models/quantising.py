"""A device's frozen matrices in eight bits: what a package stores, and every party computes with.

Weight-only, symmetric, one scale for each output channel, or for each row of an embedding table: w ≈ s · q with whole
numbers q from −127 to 127. All parties have the floats s · q in the place of w, so what is trained is what runs on a
device that stores q and s. What is trained stays as it is, and so do activations: a slope is a difference of two of
them, and would drown in their rounding.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from halfback.errors import UserError, of_extra
from halfback.models.heavy import is_of
from halfback.models.quiet import hush
from halfback.models.running import Bottom

_MATRICES = (nn.Linear, nn.Conv2d, nn.Embedding)
_SCALE = "halfback_scale"  # of a module: beside its weight, and no buffer, as nothing is sent or kept of it


@torch.no_grad()
def quantise(bottom: Bottom) -> None:
    """Puts s · q in the place of the frozen matrices of a bottom, in place; what isn't held is left alone.

    Raises:
        UserError: torchao, which finds the scales, is not installed; or nothing of the bottom is frozen.
    """
    hush()
    with of_extra("package"):
        from torchao.quantization.quant_primitives import MappingType, choose_qparams_affine, quantize_affine
    found = list(_frozen(bottom))
    if not found:
        raise UserError("bottom.weights=int8: nothing of the bottom is frozen; set bottom.weights=float32")
    for module, weight, channel in found:
        if weight.is_meta:
            continue
        block = tuple(1 if place == channel else size for place, size in enumerate(weight.shape))
        kind, smallest = MappingType.SYMMETRIC, torch.finfo(torch.float32).tiny
        scale, zero = choose_qparams_affine(weight, kind, block, torch.int8, -127, 127, eps=smallest, keepdim=True)
        values = quantize_affine(weight, block, scale, zero, torch.int8, -127, 127)
        weight.copy_(values * scale)
        setattr(module, _SCALE, scale)


@torch.no_grad()
def quantised(part: nn.Module) -> dict[int, tuple[Tensor, Tensor]]:
    """What `quantise` found: a weight's identity → q, int8 in its shape, and s, of one size but for the channels'."""
    found = {}
    for module in part.modules():
        scale = getattr(module, _SCALE, None)
        if scale is not None:
            weight: Any = module.weight
            values = (weight / scale).round().to(torch.int8)
            assert torch.equal(values * scale, weight), "these weights have come from elsewhere"
            found[id(weight)] = (values, scale)
    return found


def _frozen(part: Bottom) -> Iterator[tuple[nn.Module, nn.Parameter, int]]:
    """Modules with a frozen matrix, the matrix, and which of its dimensions is the output's; adapters are none."""
    for name, module in part.named_modules():
        conv1d = is_of(module, "transformers.pytorch_utils", "Conv1D")  # its matrix is the other way round
        weight = getattr(module, "weight", None)
        if (isinstance(module, _MATRICES) or conv1d) and isinstance(weight, nn.Parameter):
            adapter = any(mark in name for mark in ("lora_", "ia3_"))
            if not weight.requires_grad and not adapter and weight.ndim > 1:
                yield module, weight, int(conv1d)
