"""Models that somebody has in Python already, as what can be cut: a copy, so that theirs stays as it is."""

import copy
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn

from halfback.errors import UserError
from halfback.models.cut import CutModel, cut
from halfback.models.families import Family, class_family, family, family_of
from halfback.models.fitting import check_finite
from halfback.models.packing import one_a_row


@dataclass
class OwnSettings:
    """Stands where Transformers' models have a configuration.

    Attributes:
        example: the inputs of one row, as a bottom takes them.
    """

    example: dict[str, Tensor] = field(default_factory=dict)


@final
@family("blocks", after=("head",))
class Stack(nn.Module):
    """An `nn.Sequential` as blocks and a head.

    The head is its last child that has parameters, with all that follows it; every child before that one is a block.
    """

    def __init__(self, own: nn.Sequential) -> None:
        super().__init__()
        children = list(own.named_children())
        with_weights = [
            place for place, (_, child) in enumerate(children) if next(child.parameters(), None) is not None
        ]
        head = with_weights[-1] if with_weights else 0
        if not head:
            raise UserError(
                f"model: an nn.Sequential of {len(children)} children, {len(with_weights)} with parameters, can't be "
                "cut; at least one child before the last that has parameters is needed"
            )
        self.blocks = nn.Sequential(OrderedDict(children[:head]))
        self.head = nn.Sequential(OrderedDict(children[head:]))

    def forward(self, rows: Tensor) -> Tensor:
        """(B, …) to what the last child gives."""
        return self.head(self.blocks(rows))

    def plain(self) -> nn.Sequential:
        """The same modules in one `nn.Sequential`, under their own names."""
        return nn.Sequential(OrderedDict([*self.blocks.named_children(), *self.head.named_children()]))


def own_model(model: nn.Module) -> nn.Module:
    """A copy of a model that can be cut: an `nn.Sequential`, a module of a registered class, or one of Transformers'.

    Raises:
        UserError: nobody said where its blocks are, or it has values that are not finite.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"model: a torch.nn.Module is allowed, not {type(model).__name__}")
    whole: Any = copy.deepcopy(model)
    if isinstance(whole, nn.Sequential) and class_family(whole) is None:
        whole = Stack(whole)
    if class_family(whole) is None and not hasattr(getattr(whole, "config", None), "model_type"):
        raise UserError(
            f"model: nobody said where the blocks of {type(model).__name__} are; put @halfback.family(…) on the class"
        )
    family_of(whole)
    if not hasattr(whole, "config"):
        whole.config = OwnSettings()
    check_finite("given", whole)
    return whole.eval()


@torch.no_grad()
def check_parts(whole: nn.Module, inputs: Mapping[str, Tensor], model: CutModel | None = None) -> Tensor:
    """The logits of `inputs`, which bottom and top together must give as the whole model does.

    Args:
        whole: the model.
        inputs: of a few rows, as a bottom takes them.
        model: the parts; cut after the first block where they are not given.

    Raises:
        UserError: they don't, because something runs between the blocks that is in none of the modules named.
    """
    wanted = uncut(whole, inputs)
    parts = cut(whole, 1) if model is None else model
    found = parts.logits(inputs)
    if found.shape != wanted.shape or not agrees(found, wanted, parts.family):
        raise UserError(
            f"model: {type(whole).__name__} in parts, cut after {parts.at} of {parts.blocks} blocks, doesn't give what "
            "it gives whole; what runs before and after the blocks must all be in the modules that its family names"
        )
    return wanted


def agrees(found: Tensor, wanted: Tensor, family: Family) -> bool:
    """Whether logits are those of the whole model.

    To the bit, but for texts of Transformers' models: these run without padding, so float sums have other lengths.
    They may differ by 32 roundings of the largest logit; a part that is wrong changes logits by about their size.
    """
    if family.kind == "image" or family.module is not None:
        return torch.equal(found, wanted)
    allowed = 32 * torch.finfo(wanted.dtype).eps * wanted.abs().max()
    return bool((found - wanted).abs().max() <= allowed)


@torch.no_grad()
def uncut(whole: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """The whole model's logits, called as any user of it would call it: texts in padded rows, of which none comes back.

    inputs: as a bottom takes them.
    """
    row = family_of(whole)
    if row.kind == "image":
        output = whole(inputs["pixel_values"])
        return output if isinstance(output, Tensor) else output.logits
    layout = one_a_row(inputs["lengths"], left=row.kind == "decoder")
    mask = (layout.samples >= 0).long()
    arguments = {name: layout.lay(tokens) for name, tokens in inputs.items() if name != "lengths"}
    # What fills up a row must be the padding token, by which a decoder's head finds the last one that is none.
    padding = getattr(whole.config, "pad_token_id", None) or 0
    arguments["input_ids"] = arguments["input_ids"].where(mask.bool(), padding)
    if row.kind == "decoder" and row.module is None:
        arguments["position_ids"] = layout.positions
    output = whole(**arguments, attention_mask=mask)
    logits = output if isinstance(output, Tensor) else output.logits
    return layout.take(logits) if logits.ndim == 3 else logits
