"""Gradients through a device's last blocks alone, within little more than the memory of inference.

Ours: HO-SFL (arXiv 2603.14773) measures all of the bottom along random directions. The last blocks hold a large part of
its gradient's energy, and λ stands right behind them: so a device may take theirs exactly. It keeps what enters each of
these blocks, as activation checkpointing does, and goes back block by block and *row by row*, so that the graph of one
block and one sample is in its memory at a time.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from halfback.models.families import OF_PAIRS, OF_PLACES
from halfback.models.packing import Layout, parts_of
from halfback.models.running import Bottom


@dataclass(frozen=True)
class Entry:
    """A block and what it was called with: activations first, then what `families.OF_PLACES` and `OF_PAIRS` name."""

    block: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def of(self, row: int, places: slice) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments for one sample: some places of a row; of images, whose activations have no places, all of it.

        An argument's name says what of it belongs to the sample, never its size: tokens, features or rows may be
        equally many.

        Raises:
            ValueError: a tensor's name is in no table.
        """
        _, *names = inspect.signature(self.block.forward).parameters

        def chosen(name: str, value: Any) -> Any:
            if not any(isinstance(leaf, Tensor) for leaf in tree_leaves(value)):
                return value
            if name not in (*OF_PLACES, *OF_PAIRS):
                raise ValueError(f"{type(self.block).__name__}: what of {name!r} belongs to a sample is not known")

            def own(leaf: Any) -> Any:
                if not isinstance(leaf, Tensor):
                    return leaf
                at = row if len(leaf) > 1 else 0
                if name in OF_PLACES or leaf.ndim == 2:
                    return leaf[at : at + 1, places]
                return leaf[at : at + 1, ..., places if leaf.shape[-2] > 1 else slice(None), places]

            return tree_map(own, value)

        hidden, *others = self.args
        rest = (chosen(name, value) for name, value in zip(names, others, strict=False))
        return (hidden[row : row + 1, places], *rest), {
            name: chosen(name, value) for name, value in self.kwargs.items()
        }


def last(bottom: Bottom, count: int | str) -> Sequence[nn.Module]:
    """The last `count` blocks of a bottom, or "all" of them."""
    return list(bottom.blocks)[0 if count == "all" else len(bottom.blocks) - int(count) :]


@contextmanager
def entries(bottom: Bottom, count: int | str) -> Iterator[list[Entry]]:
    """While this context is open, a forward pass notes what enters the last `count` blocks, or "all" of them.

    Where a batch goes through in groups of rows, the entries of a group come behind those of the one before it.
    """
    noted: list[Entry] = []

    def note(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        noted.append(Entry(block, args, kwargs))

    handles = [block.register_forward_pre_hook(note, with_kwargs=True) for block in last(bottom, count)]
    try:
        yield noted
    finally:
        for handle in handles:
            handle.remove()


def exact_gradient(
    noted: list[Entry], gradient: Tensor, parameters: Mapping[str, Tensor], layouts: Sequence[Layout | None]
) -> Tensor:
    """∂⟨λ, z⟩/∂ of `parameters`, all in the noted blocks: one (d,) float32, in their order.

    `gradient` is λ, in the shape of the activations; `layouts` says, for each group of rows that went through together,
    where each text's tokens were in the blocks' rows, None for images. `noted` is used up.
    """
    sums = {id(p): torch.zeros_like(p, dtype=torch.float32, requires_grad=False) for p in parameters.values()}
    count, end = len(noted) // len(layouts), len(gradient)
    for layout in reversed(layouts) if noted else ():
        own = noted[-count:]
        del noted[-count:]
        begin = end - (len(own[0].args[0]) if layout is None else sum(layout.lengths))
        _add_gradient(sums, own, gradient[begin:end], layout)
        end = begin
    return torch.cat([total.flatten() for total in sums.values()]) if sums else gradient.new_zeros(0)


def _add_gradient(sums: Mapping[int, Tensor], noted: list[Entry], gradient: Tensor, layout: Layout | None) -> None:
    """Adds what one group of rows has of the gradient to the sums, by the parameters' identities."""
    # Of each sample: its part of λ, and the row and the places of the blocks' activations.
    parts = parts_of([1] * len(gradient) if layout is None else layout.lengths)
    spots = [(row, slice(None)) for row in range(len(gradient))] if layout is None else layout.spots()
    while noted:
        entry = noted.pop()
        own = [p for p in entry.block.parameters() if id(p) in sums]
        if not noted and not own:
            break
        before = torch.empty_like(entry.args[0] if layout is None else gradient) if noted else None
        for part, (row, places) in zip(parts, spots, strict=True):
            (hidden, *args), kwargs = entry.of(row, places)
            hidden = hidden.detach().requires_grad_(before is not None)
            with torch.enable_grad():
                out = entry.block(hidden, *args, **kwargs)
            out = out if isinstance(out, Tensor) else out[0]
            wanted = own if before is None else [hidden, *own]
            found = list(torch.autograd.grad(out, wanted, gradient[part].view_as(out), materialize_grads=True))
            del out
            if before is not None:
                of_hidden, *found = found
                before[part] = of_hidden.view_as(before[part])
            for parameter, slope in zip(own, found, strict=True):
                sums[id(parameter)] += slope
        if before is not None:
            gradient = before
