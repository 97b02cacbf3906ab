"""Gradients through a device's last blocks alone, within little more than the memory of inference.

Ours: HO-SFL (arXiv 2603.14773) measures all of the bottom along random directions. The last blocks hold a large part of
its gradient's energy, and λ stands right behind them: so a device may take theirs exactly. It keeps what enters each of
these blocks, as activation checkpointing does, and goes back block by block and *row by row*, so that the graph of one
block and one sample is in its memory at a time.
"""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from halfback.models.cut import Bottom
from halfback.models.families import OF_ALL, OF_ROWS


@dataclass(frozen=True)
class Entry:
    """A block and what it was called with: activations (B, …) first, then what `families.OF_ROWS` and `OF_ALL` name."""

    block: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def rows(self, rows: slice) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Some rows of the arguments; what is the same for all rows stays whole.

        An argument's name says which it is, never its size: tokens, features or rows may be equally many.

        Raises:
            ValueError: a tensor's name is in no table.
        """
        _, *names = inspect.signature(self.block.forward).parameters

        def chosen(name: str, value: Any) -> Any:
            if name in OF_ALL or not any(isinstance(leaf, Tensor) for leaf in tree_leaves(value)):
                return value
            if name not in OF_ROWS:
                raise ValueError(f"{type(self.block).__name__}: whether {name!r} has a row for each row is not known")
            return tree_map(lambda leaf: leaf[rows] if isinstance(leaf, Tensor) and len(leaf) > 1 else leaf, value)

        hidden, *others = self.args
        args = (hidden[rows], *(chosen(name, value) for name, value in zip(names, others, strict=False)))
        return args, {name: chosen(name, value) for name, value in self.kwargs.items()}


@contextmanager
def entries(bottom: Bottom, count: int) -> Iterator[list[Entry]]:
    """While this context is open, a forward pass notes what enters the last `count` blocks."""
    noted: list[Entry] = []

    def note(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        noted.append(Entry(block, args, kwargs))

    blocks = bottom.blocks[-count:] if count else []
    handles = [block.register_forward_pre_hook(note, with_kwargs=True) for block in blocks]
    try:
        yield noted
    finally:
        for handle in handles:
            handle.remove()


def exact_gradient(noted: list[Entry], gradient: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
    """∂⟨λ, z⟩/∂ of `parameters`, all in the noted blocks: one (d,) float32, in their order.

    `gradient` is λ, (B, …) as the activations; `noted` is used up.
    """
    sums = {id(p): torch.zeros_like(p, dtype=torch.float32, requires_grad=False) for p in parameters.values()}
    while noted:
        entry = noted.pop()
        own = [p for p in entry.block.parameters() if id(p) in sums]
        if not noted and not own:
            break
        before = torch.empty_like(entry.args[0]) if noted else None
        for row in range(len(gradient)):
            (hidden, *args), kwargs = entry.rows(slice(row, row + 1))
            hidden = hidden.detach().requires_grad_(before is not None)
            with torch.enable_grad():
                out = entry.block(hidden, *args, **kwargs)
            out = out if isinstance(out, Tensor) else out[0]
            wanted = own if before is None else [hidden, *own]
            found = list(torch.autograd.grad(out, wanted, gradient[row : row + 1], materialize_grads=True))
            del out
            if before is not None:
                before[row : row + 1], *found = found
            for parameter, slope in zip(own, found, strict=True):
                sums[id(parameter)] += slope
        if before is not None:
            gradient = before
    return torch.cat([total.flatten() for total in sums.values()]) if sums else gradient.new_zeros(0)
