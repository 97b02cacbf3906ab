"""Which parameters of each part are trained: all of them, adapters, some of the model's own vectors, or none."""

import copy
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import torch
from safetensors.torch import save_file, save_model
from torch import Tensor, nn

from halfback.errors import UserError, of_extra
from halfback.models.cut import CutModel
from halfback.models.heavy import is_of
from halfback.models.own import Stack
from halfback.models.quiet import hush, quiet
from halfback.models.resnet import ResNet, file_names
from halfback.models.running import Bottom, Middle, Top

if TYPE_CHECKING:
    from peft import PeftConfig

Trained = Literal["lora", "full", "none"]
# The device's part has more choices: zeroth order gets better with fewer dimensions.
BottomTrained = Literal["lora", "lora_b", "ia3", "bias", "norm", "full", "none"]
_ADAPTABLE = (nn.Linear, nn.Conv2d, nn.Embedding)  # and the Conv1D of Transformers
_MARKS = ("lora_", "ia3_")  # in the names of PEFT's parameters, and in no others
_LARGEST_RANK = 4096
_Part = Bottom | Middle | Top


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters.

    Attributes:
        rank: r, of each adapter.
        alpha: what an adapter adds is multiplied by alpha / rank.
        targets: names of modules, or dotted ends of them; empty for the family's default, and where it has none for
            every linear, convolution and embedding layer of the blocks.
    """

    rank: int = 8
    alpha: int = 16
    targets: tuple[str, ...] = ()


def set_trainable(model: CutModel, *, bottom: BottomTrained, top: Trained, lora: Lora, seed: int) -> None:
    """Choose what each part trains. Called once on a freshly cut model; `whole` has the same adapters as the parts.

    What the bottom may train beside `full` and `none`; with each the model computes at first the bits of before:
        lora     W + (alpha / rank) B·A on the targets; A (rank, in) is drawn, B (out, rank) starts at zero.
        lora_b   the same with A fixed, as in LoRA-FA (arXiv 2308.03303).
        ia3      factors on keys, values and the feed-forward's inner activation ((IA)³, arXiv 2205.05638), from 1.
        bias     every bias in the blocks (BitFit, arXiv 2106.10199), those of norms too; a key's moves nothing where
                 positions don't turn the keys, as the softmax drops what it adds.
        norm     weights and biases of the normalisations in the blocks; running statistics stay as they are.
    The last two are the model's own parameters, so they keep its dtype.

    With `lora` the top's task head (not a language model's `lm_head`) is trained beside the adapters. In the U-shape
    `top` holds for the middle and the head, which together train what an undivided top would: a head without blocks
    has the task head, or nothing for a language model. A parameter that the model ties across the cut is untied as soon
    as either side could move it: the top gets its own copy.
    Adapters are float32 and start from (`seed`, name), so a block's start does not depend on where the model is cut.
    Raises UserError for a target that no module of bottom or top has, or one of them with nothing to train.
    """
    if any(is_adapted(module) for module in model.whole.modules()):
        raise ValueError("set_trainable was called before on this model")
    if not 1 <= lora.rank <= _LARGEST_RANK:
        raise UserError(f"LoRA rank is {lora.rank}; 1 to {_LARGEST_RANK} is allowed")
    parts: list[tuple[_Part, str, BottomTrained]] = [(model.bottom, "bottom", bottom), (model.top, "top", top)]
    if model.head is not None:
        parts.append((model.head, "head", top))
    matched: dict[str, list[str]] = {}
    for part, side, trained in parts:
        allowed = get_args(BottomTrained if side == "bottom" else Trained)
        if trained not in allowed:
            raise UserError(f"{side} trains {trained!r}; allowed are {', '.join(allowed)}")
        matched[side] = _adapted(part, side, trained, lora)
    adapted = [part.get_submodule(name) for part, side, _ in parts for name in matched[side]]
    _untie(model, everything="full" in (bottom, top), adapted=adapted)
    for part, side, trained in parts:
        _choose(part, matched[side], trained, lora, seed)
        if matched[side]:
            _show(model.whole, part)
        if trained != "none" and side != "head" and not trainable(part):
            where = f"{side} trains {trained!r}, but with cut {model.at} of {model.blocks} it has nothing to adapt"
            raise UserError(where + (f"; allowed are {', '.join(_fitting(part))}" if isinstance(part, Bottom) else ""))


def set_trainable_copy(part: Top, trained: Trained, lora: Lora, seed: int) -> None:
    """Choose what a copy of blocks and head trains, as `set_trainable` does for the top itself; no tie is looked for.

    A target of `lora` may match nothing here: `set_trainable` has refused what matches nowhere.
    """
    _choose(part, _adapted(part, "auxiliary", trained, lora), trained, lora, seed)


def without_adapters(body: nn.Module) -> nn.Module:
    """The same modules with each adapted layer replaced, in place, by the layer that it adapts, as it was."""
    for name, module in list(body.named_modules()):
        if is_adapted(module):
            body.set_submodule(name, cast(Any, module).get_base_layer())
    return body


def draw_start(shape: Sequence[int], seed: int, name: str) -> Tensor:
    """Start of a new weight, float32 on the CPU: uniform as `nn.Linear`'s own, a function of (`seed`, `name`) alone."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    return nn.init.kaiming_uniform_(torch.empty(*shape), a=math.sqrt(5), generator=generator)


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """Name to parameter, for those that are trained."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def hidden_matrices(module: nn.Module) -> set[str]:
    """Names of the matrices of hidden layers: those in the blocks, not of embeddings, nor of what gives the logits."""
    return {
        ".".join(filter(None, (outer, path, name)))
        for outer, part in module.named_modules()
        if isinstance(part, Bottom | Middle | Top)
        for path, block in _blocks(part)
        for name, parameter in block.named_parameters()
        if parameter.ndim == 2
    }


def merged(model: CutModel) -> nn.Module:
    """A copy of the whole model with its adapters merged into the layers that they adapt; an `nn.Sequential` as one."""
    whole = copy.deepcopy(model.whole)
    for name, module in list(whole.named_modules()):
        if is_adapted(module):
            cast(Any, module).merge()
            whole.set_submodule(name, cast(Any, module).get_base_layer())
    return whole.plain() if isinstance(whole, Stack) else whole


def export(model: CutModel, folder: Path, label_names: Sequence[str] = (), *, pad: int | None = None) -> None:
    """Write the model, adapters merged into its weights, so that plain Transformers loads `folder`.

    A classifier is told its `label_names`, and that a row has one class, whatever it was made for. `pad`: the token
    that pads rows, which the classifier of a decoder looks for; None leaves it as it is.

    A ResNet is written as `model.safetensors` with the original names and a `config.json` that `load_model` reads; a
    module of somebody's own as `model.safetensors` alone, with its own names. The live model is not changed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    whole: Any = merged(model)
    if not isinstance(whole, ResNet) and not is_of(whole, "transformers.modeling_utils", "PreTrainedModel"):
        save_model(whole, str(folder / "model.safetensors"))
        return
    settings = settle(model, whole, label_names, pad=pad)
    if isinstance(whole, ResNet):
        names = file_names(whole)
        save_file(
            {names[name]: tensor.contiguous() for name, tensor in whole.state_dict().items()},
            folder / "model.safetensors",
        )
        (folder / "config.json").write_text(json.dumps(asdict(whole.config) | settings, indent=2) + "\n")
        return
    with quiet():
        cast(Any, whole).save_pretrained(folder)


def settle(model: CutModel, whole: Any, label_names: Sequence[str], *, pad: int | None = None) -> dict[str, Any]:
    """Says in the settings of a merged model, which are returned, what its classes are and which token pads its rows.

    A ResNet's settings don't change: they are returned alone.
    """
    last = cast(Top, model.head or model.top)
    settings: dict[str, Any] = {}
    if len(label_names) == whole.config.num_labels and last.verbaliser is None:
        settings["id2label"] = dict(enumerate(label_names))
        settings["label2id"] = {name: row for row, name in enumerate(label_names)}
    if isinstance(whole, ResNet):
        return settings
    if settings:
        settings["problem_type"] = "single_label_classification"
    if pad is not None:
        settings["pad_token_id"] = pad
    for key, value in settings.items():
        setattr(whole.config, key, value)
    return settings


def is_adapted(module: nn.Module) -> bool:
    """Whether PEFT has put this layer in the place of another."""
    return is_of(module, "peft.tuners.tuners_utils", "BaseTunerLayer")


def _is_conv1d(module: nn.Module) -> bool:
    return is_of(module, "transformers.pytorch_utils", "Conv1D")


def _adapted(part: _Part, side: str, trained: BottomTrained, lora: Lora) -> list[str]:
    """Names of the modules of a part that get an adapter."""
    match trained:
        case "lora" | "lora_b":
            return _match(part, side, lora.targets)
        case "ia3":
            return [f"{name}.{path}" for name, _ in _blocks(part) for path in part.family.ia3]
        case _:
            return []


def _own_vectors(part: _Part, trained: BottomTrained) -> list[nn.Parameter]:
    """The model's own parameters that `bias` or `norm` trains. None is tied: the blocks of a part are its alone."""
    modules = [module for _, block in _blocks(part) for module in block.modules()]
    if trained == "norm":
        # By name: most families of Transformers have an RMSNorm of their own, and these have no base class.
        norms = [module for module in modules if type(module).__name__.endswith(("Norm", "Norm2d"))]
        return [parameter for module in norms for parameter in module.parameters(recurse=False)]
    named = [own for module in modules for own in module.named_parameters(recurse=False)]
    return [parameter for name, parameter in named if name == "bias"] if trained == "bias" else []


def _blocks(part: _Part) -> Iterator[tuple[str, nn.Module]]:
    path = ".".join(name for name in ("body", part.family.backbone, part.family.blocks) if name)
    return ((f"{path}.{number}", block) for number, block in part.get_submodule(path).named_children())


def _fitting(part: Bottom) -> list[BottomTrained]:
    """What this bottom can train, with the default targets."""
    return [
        trained
        for trained in get_args(BottomTrained)
        if trained in ("full", "none") or _adapted(part, "bottom", trained, Lora()) or _own_vectors(part, trained)
    ]


def _match(part: _Part, side: str, targets: tuple[str, ...]) -> list[str]:
    """Names of the modules of a part that LoRA adapts.

    Default targets may match none, the user's own must, save in a head, which may have no blocks.
    """
    names = [name for name, module in part.named_modules() if isinstance(module, _ADAPTABLE) or _is_conv1d(module)]
    wanted = targets or part.family.lora
    if not wanted:
        inside = tuple(name for name, _ in _blocks(part))
        return [name for name in names if name.startswith(tuple(f"{block}." for block in inside)) or name in inside]
    matched = {target: [name for name in names if f".{name}".endswith(f".{target}")] for target in wanted}
    for target in targets:
        if not matched[target] and side not in ("head", "auxiliary"):
            known = ", ".join(sorted({name.split(".")[-1] for name in names})[:12])
            raise UserError(f"LoRA target {target!r} matches nothing in the {side}; modules there are {known}")
    return [name for name in names if any(name in found for found in matched.values())]


def _choose(part: _Part, matched: list[str], trained: BottomTrained, lora: Lora, seed: int) -> None:
    part.requires_grad_(trained == "full")
    if matched:
        _inject(part, matched, trained, lora, seed)
    for parameter in _own_vectors(part, trained):
        parameter.requires_grad_(True)
    if trained == "lora" and isinstance(part, Top):
        for name in part.family.head:
            if hasattr(part.body, name):
                _head_in_float32(getattr(part.body, name))
                getattr(part.body, name).requires_grad_(True)


def _head_in_float32(head: nn.Module) -> None:
    """A head of float16 becomes one of float32, like the adapters beside it: AdamW's squared gradients would vanish."""
    if any(parameter.dtype == torch.float16 for parameter in head.parameters()):
        head.float()
        head.register_forward_pre_hook(_float32)


def _float32(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(tensor.float() for tensor in inputs)


def untie(model: CutModel) -> None:
    """Give the top its own copy of every parameter that the bottom also has, before the bottom's are changed."""
    _untie(model, everything=True, adapted=[])


def _untie(model: CutModel, *, everything: bool, adapted: list[nn.Module]) -> None:
    """Give the top its own copy of every parameter that the bottom also has, if training could move it."""
    after = [model.top] if model.head is None else [model.top, model.head]
    shared = {id(parameter) for parameter in model.bottom.parameters()}
    movable = {id(parameter) for module in adapted for parameter in module.parameters(recurse=False)}
    for module in (module for part in after for module in part.modules()):
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in shared and (everything or id(parameter) in movable):
                module.register_parameter(name, nn.Parameter(parameter.detach().clone(), requires_grad=False))
                # The module is the whole model's own too, which from here on has two parameters where it had one.
                for owner in (model.whole, model.bottom.body, *(part.body for part in after)):
                    owner.config.tie_word_embeddings = False  # type: ignore[union-attr]


def _inject(part: _Part, names: list[str], trained: BottomTrained, lora: Lora, seed: int) -> None:
    with torch.random.fork_rng(devices=[]):  # PEFT draws a start of its own, which is replaced below
        _put(part, names, trained, lora)
    part.requires_grad_(False)
    for name, parameter in part.named_parameters():
        if any(mark in name for mark in _MARKS):
            # PEFT gives adapters the dtype of the weights; small steps need more digits than bfloat16 has.
            parameter.data = parameter.data.float()
            drawn = ".lora_A." in name or ".lora_embedding_B." in name
            parameter.requires_grad_(trained != "lora_b" or not drawn)
            if drawn and not parameter.is_meta:  # as in a part that isn't held
                parameter.data.copy_(draw_start(parameter.shape, seed, name))


def _put(part: _Part, names: list[str], trained: BottomTrained, lora: Lora) -> None:
    """PEFT's layers in the place of these modules."""
    hush()
    with of_extra("transformers"):
        from peft import IA3Config, LoraConfig, inject_adapter_in_model

    conv1d = any(_is_conv1d(part.get_submodule(name)) for name in names)
    config: PeftConfig
    if trained == "ia3":
        scaled = tuple(f".{path}" for path, what in part.family.ia3.items() if what == "input")
        second = [name for name in names if name.endswith(scaled)]
        config = IA3Config(target_modules=names, feedforward_modules=second, fan_in_fan_out=conv1d)
    else:
        config = LoraConfig(
            r=lora.rank, lora_alpha=lora.alpha, lora_dropout=0.0, target_modules=names, fan_in_fan_out=conv1d
        )
    inject_adapter_in_model(config, part)


def _show(whole: nn.Module, part: _Part) -> None:
    """Put a part's adapters in the whole model too: blocks are shared, but modules outside of them are not."""
    for name, module in part.body.named_modules():
        if is_adapted(module):
            whole.set_submodule(name, module)
