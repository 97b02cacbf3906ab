"""What blocks are called with: noted while what stands before them runs, and they don't."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from halfback.errors import UserError
from halfback.models.running import Bottom


class _Noting(nn.Module):
    """Stands in for a block: notes what it is called with, and gives its input back."""

    def __init__(self, block: nn.Module, noted: list[tuple[Any, ...]]) -> None:
        super().__init__()
        self.__dict__["block"], self.__dict__["noted"] = block, noted  # its parameters are not among the model's now

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["block"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        self.__dict__["noted"].append((args, kwargs))
        return args[0]  # type: ignore[no-any-return]


@contextlib.contextmanager
def plain_attention(parts: Sequence[nn.Module]) -> Iterator[None]:
    """While this context is open, attention is written out as products and a softmax."""
    configs = {id(c): c for part in parts for m in part.modules() if (c := getattr(m, "config", None)) is not None}
    before = {key: getattr(config, "_attn_implementation", None) for key, config in configs.items()}
    for key, config in configs.items():
        if before[key] is not None:
            config._attn_implementation = "eager"
    try:
        yield
    finally:
        for key, config in configs.items():
            if before[key] is not None:
                config._attn_implementation = before[key]


@contextlib.contextmanager
def noting(bottom: Bottom) -> Iterator[list[tuple[Any, ...]]]:
    """While this context is open, a pass stops before the blocks, and it is noted what they are called with."""
    held: Any = bottom.body.get_submodule(bottom.family.backbone).get_submodule(bottom.family.blocks)
    blocks, noted = dict(held._modules), list[tuple[Any, ...]]()
    for name, block in blocks.items():
        held._modules[name] = _Noting(block, noted)
    try:
        yield noted
    finally:
        held._modules.update(blocks)


def leaves_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[tuple[str, Tensor]]:
    """Tensors of a call beside the activations, with the name of their argument where they have one."""
    rest = [("", leaf) for leaf in tree_flatten(args[1:])[0]]
    named = [(name, leaf) for name, value in kwargs.items() for leaf in tree_flatten(value)[0]]
    return [(name, leaf) for name, leaf in (*rest, *named) if isinstance(leaf, Tensor)]


def windows_of(bottom: Bottom, longest: int) -> list[int | None]:
    """How many tokens each block's attention sees, itself among them; None for all, as where no text is longer.

    Raises:
        UserError: the model's own mask is none of these.
    """
    config: Any = bottom.body.config
    count = len(bottom.blocks)
    window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    if kinds is None:
        kinds = ["sliding_attention"] * count
    found = [
        window if kind == "sliding_attention" and window is not None and window < longest else None for kind in kinds
    ]
    if bottom.family.kind != "decoder":
        return [None] * count
    length = min(longest, max(filter(None, found), default=0) + 3)
    ids = torch.ones(length, dtype=torch.int64)
    with torch.no_grad(), noting(bottom) as noted:
        bottom({"input_ids": ids, "lengths": torch.tensor([length])})
    ahead = torch.arange(length) - torch.arange(length).unsqueeze(1)
    for place, ((args, kwargs), own) in enumerate(zip(noted, found, strict=True)):
        masks = [leaf for _, leaf in leaves_of(args, kwargs) if leaf.ndim == 4 and leaf.shape[1] == 1]
        sees = (ahead <= 0) & (ahead > -(own or length))
        theirs = (ahead <= 0) if not masks else masks[0][0, 0] if masks[0].dtype == torch.bool else masks[0][0, 0] == 0
        if not torch.equal(sees, theirs):
            raise UserError(f"block {place}: what its tokens see is neither all before them nor a window of it")
    return found
