"""Whole numbers of eight bits as floats, where a graph needs them."""

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Rows(TorchFunctionMode):
    """Looks up rows of tables as whole numbers, by the identity of the floats that stand for them."""

    def __init__(self, tables: Mapping[int, tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self._tables = tables

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.embedding and id(args[1]) in self._tables:
            whole, scale = self._tables[id(args[1])]
            return whole[args[0]].to(scale.dtype) * scale[args[0]]
        return func(*args, **(kwargs or {}))


def dequantised(whole: Tensor, scale: Tensor, channel: int) -> Tensor:
    """Whole numbers as floats, by the one operator that the runtime has for it."""
    import torch.ao.quantization.fx._decomposed

    made = torch.ops.quantized_decomposed.dequantize_per_channel.default
    return made(whole, scale, None, channel, -127, 127, torch.int8)  # type: ignore[no-any-return]
