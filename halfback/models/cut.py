"""Cut a model after any block, in bottom (device) and top (server), or in bottom, middle and head (the U-shape).

No forward pass is written again. Each part is a shallow copy of the modules on the way to the blocks, with its share
of the blocks; every other module, and every parameter, is the whole model's own. So the parts together compute the
bits of the uncut model, whatever the model does between its blocks. Texts go through without padding (`packing`): what
the model's own padded rows would give, but for the rounding of float sums of another length.
"""

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from halfback.errors import UserError
from halfback.models.families import Family, family_of
from halfback.models.heavy import is_of
from halfback.models.running import Bottom, Middle, Top


class _Pass(nn.Module):
    """Returns its first argument: stands after the cut for embeddings that the bottom has already computed."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        # ViT asks its patch embedding for a dtype; an empty buffer answers and follows `.to(...)`.
        self.patch_embeddings = nn.Module()
        self.patch_embeddings.projection = nn.Module()
        self.patch_embeddings.projection.register_buffer("weight", torch.empty(0, dtype=dtype), persistent=False)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return args[0] if args else kwargs["inputs_embeds"]


class _Zero(nn.Module):
    """Returns zero: stands after the cut for position embeddings that the bottom has already added."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return torch.zeros(())


@dataclass(frozen=True)
class CutModel:
    """A model in parts, which share their parameters with the whole.

    Attributes:
        bottom: what runs on a device: all up to the cut.
        top: what runs on the server: all behind the cut, or in the U-shape the middle.
        whole: the model that was cut.
        blocks: how many it has.
        at: how many of them are in the bottom.
        family: where the model's modules are.
        head: in the U-shape what follows the middle, on a device again; else None.
    """

    bottom: Bottom
    top: Top | Middle
    whole: nn.Module
    blocks: int
    at: int
    family: Family
    head: Top | None = None

    def logits(self, inputs: Mapping[str, Tensor], scored: Tensor | None = None) -> Tensor:
        """Runs the parts one after the other.

        Args:
            inputs: a batch as a bottom takes it.
            scored: of a language model, the places (S,) of the tokens whose logits are wanted; None for all.

        Returns:
            The logits: (B, classes), or of a language model (N, vocabulary) for the N tokens, or for the S of them.
        """
        lengths = inputs.get("lengths")
        hidden = self.bottom(inputs)
        if isinstance(self.top, Top):
            return self.top(hidden, lengths, scored)
        assert self.head is not None, "behind a middle comes a head"
        return self.head(self.top(hidden, lengths), lengths, scored)


def cut(model: nn.Module, at: int, *, head: int | None = None, verbaliser: Sequence[int] | None = None) -> CutModel:
    """Cuts a model in two, or for the U-shape in three; it is put in eval mode and frozen.

    Args:
        model: of a known family, with the head of a task.
        at: how many blocks are in the bottom, 1 to all.
        head: for the U-shape, how many of the last blocks stay with the final norm and the head layer, 0 or more.
        verbaliser: token ids, one a class, whose logits at the last position are then those of the classes.

    Returns:
        The parts, which have the model's own parameters; together they give its bits.

    Raises:
        UserError: the family is unknown, `at` or `head` out of range, or the verbaliser none that the model can have.
    """
    family, blocks = family_of(model), check_cut(model, at, head)
    if verbaliser is not None:
        _check_verbaliser(model, verbaliser)
    model.eval()
    model.requires_grad_(False)
    bottom = Bottom(_bottom_body(model, family, at), family)
    if head is None:
        top = Top(top_body(model, family, at, blocks), family, verbaliser)
        return CutModel(bottom.eval(), top.eval(), model, blocks, at, family)
    middle = Middle(_middle_body(model, family, at, blocks - head), family)
    last = Top(top_body(model, family, blocks - head, blocks), family, verbaliser)
    return CutModel(bottom.eval(), middle.eval(), model, blocks, at, family, last.eval())


def check_cut(model: nn.Module, at: int, head: int | None) -> int:
    """Refuses a cut, or a head behind it, that a model has not.

    Args:
        model: of a known family.
        at: how many blocks are in the bottom.
        head: how many of the last blocks stay with the head layer; None outside of the U-shape.

    Returns:
        How many blocks the model has.

    Raises:
        UserError: the family is unknown, or `at` or `head` out of range.
    """
    family = family_of(model)
    blocks = len(cast(nn.ModuleList, model.get_submodule(family.backbone).get_submodule(family.blocks)))
    _check_at(model, at, blocks)
    if head is not None and not 0 <= head < blocks - at:
        allowed = f"0 to {blocks - at - 1} are allowed" if at < blocks else "no head can be split off"
        raise UserError(f"head is {head}; {type(model).__name__} has {blocks} blocks and the cut is {at}, so {allowed}")
    return blocks


def recut(model: CutModel, at: int, *, head: int | None = None) -> CutModel:
    """The same model, and what is trained of it, with its (first) cut elsewhere; called after `set_trainable`.

    Modules are shared with the parts of `model`, so these ones see what `install` puts in theirs, and the adapters.
    `head` is as `model` was cut with; UserError for `at` out of range.
    """
    _check_at(model.whole, at, model.blocks)
    family = model.family
    bottom = Bottom(_bottom_body(model.whole, family, at), family).eval()
    top: Top | Middle
    if isinstance(model.top, Top):
        top = Top(top_body(model.whole, family, at, model.blocks), family, model.top.verbaliser)
    else:
        top = Middle(_middle_body(model.whole, family, at, model.blocks - (head or 0)), family)
    return replace(model, bottom=bottom, top=top.eval(), at=at)


def before_blocks(model: CutModel) -> Bottom:
    """A bottom without a block: what enters the model's first block, which nobody hides behind any cut."""
    return Bottom(_bottom_body(model.whole, model.family, 0), model.family).eval()


def install(part: nn.Module, parameters: Mapping[str, Tensor]) -> None:
    """Puts other parameters in a part's places: objects are exchanged, so a graph keeps those it was built on.

    Buffers too, where some of them are trained as well.
    """
    for name, parameter in parameters.items():
        path, _, attribute = name.rpartition(".")
        module = part.get_submodule(path)
        places = module._buffers if attribute in module._buffers else module._parameters
        places[attribute] = parameter  # type: ignore[assignment]


def _check_at(model: nn.Module, at: int, blocks: int) -> None:
    if not 1 <= at <= blocks:
        raise UserError(f"cut is {at}; {type(model).__name__} has {blocks} blocks, so 1 to {blocks} are allowed")


def _check_verbaliser(model: nn.Module, verbaliser: Sequence[int]) -> None:
    head = getattr(model, "lm_head", None)
    if head is None:
        raise UserError(f"a verbaliser needs a causal language model; {type(model).__name__} has no lm_head")
    outside = [token for token in verbaliser if not 0 <= token < head.out_features]
    if outside or not verbaliser:
        raise UserError(f"verbaliser is {list(verbaliser)}; token ids from 0 to {head.out_features - 1} are allowed")


def _bottom_body(model: nn.Module, family: Family, at: int) -> nn.Module:
    return _without_exit(_copy_with_blocks(model, family, slice(0, at)), family)


def _middle_body(model: nn.Module, family: Family, at: int, end: int) -> nn.Module:
    body = _copy_with_blocks(model, family, slice(at, end))
    _without_entry(body, family)
    return _without_exit(body, family)


def top_body(model: nn.Module, family: Family, start: int, end: int) -> nn.Module:
    """What a `Top` runs: the blocks `start` to `end` (exclusive) of the whole model, and all that follows its last."""
    body = _copy_with_blocks(model, family, slice(start, end))
    _without_entry(body, family)
    if family.kind == "decoder" and getattr(body.config, "pad_token_id", 0) is None:
        # Heads of decoders refuse batches without a padding token, which they look for in the tokens alone.
        cast(Any, body.config).pad_token_id = 0
    for name in (type(model).__module__, "transformers.modeling_layers"):
        logging.getLogger(name).addFilter(_drop_padding_warning)
    return body


def _without_entry(body: nn.Module, family: Family) -> None:
    """Replaces what runs before the first block by stand-ins."""
    backbone = body.get_submodule(family.backbone)
    dtype = next(body.parameters()).dtype
    made: dict[str, Callable[[], nn.Module | None]]
    made = {"none": lambda: None, "zero": _Zero, "pass": lambda: _Pass(dtype)}
    for name, stand_in in family.before.items():
        backbone._modules[name] = made[stand_in]()
    for name, module in backbone.named_children():
        # All parts need the rotary frequencies, which are buffers: each its own, as parts may be on two devices.
        if next(module.buffers(), None) is not None and next(module.parameters(), None) is None:
            backbone._modules[name] = _shallow(module)


def _without_exit(body: nn.Module, family: Family) -> nn.Module:
    """Drops what runs after the last block; returns `body`."""
    backbone = body.get_submodule(family.backbone)
    for name in family.after:
        backbone._modules[name] = nn.Identity()
    on_the_way = family.backbone.split(".")[0]
    if on_the_way:
        for name in body._modules:
            if name != on_the_way:
                body._modules[name] = None
    return body


def _drop_padding_warning(record: logging.LogRecord) -> bool:
    """Heads of decoders warn that activations show no padding: they are given none."""
    return "will not detect padding tokens in `inputs_embeds`" not in record.getMessage()


def _copy_with_blocks(model: nn.Module, family: Family, keep: slice) -> nn.Module:
    """A copy of the modules on the way to the blocks, with the blocks `keep`; all other modules are shared."""
    body = _shallow(model)
    config = _sliced_config(getattr(model, "config", None), keep)
    module = body
    for name in ".".join(filter(None, (family.backbone, family.blocks))).split("."):
        module._modules[name] = _shallow(cast(nn.Module, module._modules[name]))
        if hasattr(module, "config"):
            module.config = config
        module = cast(nn.Module, module._modules[name])
    # The blocks keep their numbers, so that a parameter has one name in its part and in the whole model.
    module._modules = dict(list(module._modules.items())[keep])
    return body


def _shallow(module: nn.Module) -> nn.Module:
    """A copy with registries of its own that hold the same parameters, buffers, submodules and hooks."""
    clone = copy.copy(module)
    for key, value in module.__dict__.items():
        if key in ("_modules", "_parameters", "_buffers") or key.endswith("_hooks"):
            clone.__dict__[key] = copy.copy(value)
    return clone


def _sliced_config(config: Any, keep: slice) -> Any:
    """The configuration for the blocks `keep`: forward passes read the number and the types of the layers from it."""
    if not is_of(config, "transformers.configuration_utils", "PreTrainedConfig"):
        return config
    sliced = copy.deepcopy(config)
    sliced.num_hidden_layers = keep.stop - keep.start
    if getattr(config, "layer_types", None) is not None:
        sliced.layer_types = config.layer_types[keep]
    return sliced
