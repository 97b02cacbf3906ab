"""The table of model families: where the blocks, the embeddings, the final norm and the head live.

A new family is one row of `FAMILIES`, here or in another package. A path is dotted, as in `nn.Module.get_submodule`.
The tests cut a tiny model of every row at every block and ask for the bits of the uncut model.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from torch import nn

from halfback.errors import UserError
from halfback.registry import Registry

M = TypeVar("M", bound=type[nn.Module])

Kind = Literal["decoder", "encoder", "image"]
# What stands in the top for a module before the first block: nothing at all, a module that returns what it is given, or
# one that returns zero (for a term that the forward pass adds again).
StandIn = Literal["none", "pass", "zero"]
Scaled = Literal["output", "input"]  # what of a module (IA)³ scales


@dataclass(frozen=True)
class Family:
    """One row: the layout that a set of Transformers model types share, or the modules of a class.

    name         the row's name.
    model_types  values of `config.model_type` that have this layout.
    kind         decoder (text, a token sees those before it), encoder (text) or image (any tensor a row).
    backbone     path, in the task model, of the module whose forward pass runs the blocks ("" is the model itself).
    blocks       path, in the backbone, of the list of blocks.
    before       modules of the backbone that run before the first block, with their stand-in in the top.
    after        modules of the backbone that run after the last block; the bottom passes through them unchanged.
    head         modules of the task model that a new task trains (a language model's `lm_head` is not one).
    lora         names of the modules that LoRA adapts unless the user names others; empty for every linear,
                 convolution and embedding layer of the blocks.
    ia3          paths, in a block, of what (IA)³ scales: keys and values by their output, the feed-forward's inner
                 activation as the input of its second layer. Empty where a block has no such modules.
    positions_behind_padding  whether positions are counted from behind the padding token's number, which is that
                 token's own position and counts for none; else from 0.
    sees_by_positions  whether attention, where it is given no mask, begins anew where the positions do.
    other        first names, behind the base model's own, of what checkpoints made for other tasks hold beside what
                 this one's model has: their heads, and poolers that only those use. They may be left unused.
    fresh        modules beside the head that a checkpoint without a head may lack; a new task trains them from new.
    module       a class whose modules have this layout, for what is no model of Transformers.
    """

    name: str
    model_types: tuple[str, ...]
    kind: Kind
    backbone: str
    blocks: str
    before: Mapping[str, StandIn] = field(default_factory=dict)
    after: tuple[str, ...] = ()
    head: tuple[str, ...] = ()
    lora: tuple[str, ...] = ()
    ia3: Mapping[str, Scaled] = field(default_factory=dict)
    positions_behind_padding: bool = False
    sees_by_positions: bool = False
    other: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()
    module: type[nn.Module] | None = None


_OURS = (
    Family(
        name="OPT",
        model_types=("opt",),
        kind="decoder",
        backbone="model.decoder",
        blocks="layers",
        before={"embed_tokens": "none", "embed_positions": "zero", "project_in": "none"},
        after=("final_layer_norm", "project_out"),
        head=("score",),
        lora=("q_proj", "v_proj"),
        ia3={"self_attn.k_proj": "output", "self_attn.v_proj": "output", "fc2": "input"},
        other=("lm_head", "score", "qa_outputs", "v_head"),
    ),
    Family(
        name="GPT-2",
        model_types=("gpt2",),
        kind="decoder",
        backbone="transformer",
        blocks="h",
        before={"wte": "none", "wpe": "zero"},
        after=("ln_f",),
        head=("score",),
        lora=("c_attn",),
        # Queries, keys and values are one layer, so the queries get factors too. They add nothing that the keys' have
        # not: a score is a sum of products of a query's entry and a key's.
        ia3={"attn.c_attn": "output", "mlp.c_proj": "input"},
        sees_by_positions=True,
        other=("lm_head", "score", "classifier", "qa_outputs", "multiple_choice_head", "v_head"),
    ),
    Family(
        name="Llama",
        model_types=("llama", "mistral", "qwen2", "qwen3", "gemma3_text"),
        kind="decoder",
        backbone="model",
        blocks="layers",
        before={"embed_tokens": "none"},
        after=("norm",),
        head=("score",),
        lora=("q_proj", "v_proj"),
        ia3={"self_attn.k_proj": "output", "self_attn.v_proj": "output", "mlp.down_proj": "input"},
        sees_by_positions=True,
        other=("lm_head", "score", "qa_outputs", "v_head"),
    ),
    Family(
        name="BERT",
        model_types=("bert",),
        kind="encoder",
        backbone="bert",
        blocks="encoder.layer",
        before={"embeddings": "pass"},
        after=("pooler",),
        head=("classifier",),
        lora=("query", "value"),
        ia3={"attention.self.key": "output", "attention.self.value": "output", "output.dense": "input"},
        other=("cls", "classifier", "qa_outputs"),
        fresh=("bert.pooler",),
    ),
    Family(
        name="RoBERTa",
        model_types=("roberta",),
        kind="encoder",
        backbone="roberta",
        blocks="encoder.layer",
        before={"embeddings": "pass"},
        after=("pooler",),
        head=("classifier",),
        lora=("query", "value"),
        ia3={"attention.self.key": "output", "attention.self.value": "output", "output.dense": "input"},
        positions_behind_padding=True,
        other=("lm_head", "classifier", "qa_outputs", "pooler"),
    ),
    Family(
        name="ViT",
        model_types=("vit",),
        kind="image",
        backbone="vit",
        blocks="layers",
        before={"embeddings": "pass"},
        after=("layernorm", "pooler"),
        head=("classifier",),
        lora=("q_proj", "v_proj"),
        ia3={"attention.k_proj": "output", "attention.v_proj": "output", "mlp.fc2": "input"},
        other=("classifier", "decoder", "pooler", "embeddings.mask_token"),
    ),
    Family(
        name="ResNet",
        model_types=("halfback_resnet",),
        kind="image",
        backbone="",
        blocks="blocks",
        before={"stem": "pass"},
        after=("head",),
        head=("head",),
        lora=("conv1", "conv2"),
    ),
)
FAMILIES: Registry[Family] = Registry("halfback.families", {row.name: row for row in _OURS})


# What the families' blocks are called with beside the activations (R, M, …), by the names of their arguments: a row for
# each of theirs, or one for all, of places (R, M, …), or for a mask of pairs of places (R, 1, M, M).
OF_PLACES = ("position_ids", "position_embeddings")
OF_PAIRS = ("attention_mask",)


def family(
    blocks: str,
    *,
    kind: Kind = "image",
    before: Mapping[str, StandIn] | Sequence[str] = (),
    after: Sequence[str] = (),
) -> Callable[[M], M]:
    """A decorator that says, on a class of modules of your own, where its blocks are, so that it can be cut.

    The forward pass of such a module is: what stands before the blocks, each block on the output of the one before
    it, what stands after them, and nothing in between; `halfback.testing.check_family` finds out. It takes one tensor
    (B, …) by position and gives logits (B, classes). Where `kind` is encoder or decoder it takes texts, by name:
    `input_ids` (B, T) or in their place `inputs_embeds` (B, T, H), and `attention_mask` (B, T); others it lets pass.

    Args:
        blocks: path of the `ModuleList` or `Sequential` of the blocks.
        kind: of the rows: "image" for a tensor a row, else texts, filled up on the right (encoder) or the left.
        before: names of the modules that run before the first block. The server has none of them: what it has instead
            gives its input back ("pass"), or nothing ("none"), or zero ("zero", for a term that is added again).
        after: names of the modules that run after the last block: the head, which is trained in full.

    Returns:
        The decorator, which leaves the class as it is.
    """

    def register(module: M) -> M:
        stand_ins: dict[str, StandIn] = dict(before) if isinstance(before, Mapping) else dict.fromkeys(before, "pass")
        row = Family(
            name=module.__name__,
            model_types=(),
            kind=kind,
            backbone="",
            blocks=blocks,
            before=stand_ins,
            after=tuple(after),
            head=tuple(after),
            module=module,
        )
        FAMILIES.add(row.name, row)
        return module

    return register


def family_of_type(model_type: str) -> Family:
    """The row for a `config.model_type`.

    Raises UserError, with the supported types, if there is none.
    """
    for row in FAMILIES.values():
        if model_type in row.model_types:
            return row
    known = ", ".join(sorted(name for row in FAMILIES.values() for name in row.model_types))
    raise UserError(f"model family {model_type!r} is not supported; supported are {known}")


def class_family(model: nn.Module) -> Family | None:
    """The row that names the class of a module; None where there is none. What was registered last comes first."""
    rows = [row for row in FAMILIES.values() if row.module is not None and isinstance(model, row.module)]
    return rows[-1] if rows else None


def family_of(model: nn.Module) -> Family:
    """The row for a model.

    Raises UserError if the family is not in the table, or if the model has no task head (a bare backbone).
    """
    config = getattr(model, "config", None)
    row = class_family(model) or family_of_type(getattr(config, "model_type", type(model).__name__))
    try:
        model.get_submodule(row.backbone).get_submodule(row.blocks)
    except AttributeError:
        path = f"{row.backbone}.{row.blocks}" if row.module is None else row.blocks
        needed = "" if row.module else f"; a {row.name} model with a task head is needed"
        raise UserError(f"{type(model).__name__} has no blocks at {path}{needed}") from None
    return row
