"""Which parameters of each part are trained: all of them, LoRA adapters, or none."""

import copy
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from halfback.errors import UserError
from halfback.models.cut import Bottom, CutModel, Middle, Top
from halfback.models.quiet import quiet
from halfback.models.resnet import ResNet, file_names

Trained = Literal["lora", "full", "none"]
_TRAINED = ("lora", "full", "none")
_ADAPTABLE = (nn.Linear, nn.Conv2d, nn.Embedding, Conv1D)
_Part = Bottom | Middle | Top


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters. targets: module names (or dotted ends of them); empty means the family's default."""

    rank: int = 8
    alpha: int = 16
    targets: tuple[str, ...] = ()


def set_trainable(model: CutModel, *, bottom: Trained, top: Trained, lora: Lora, seed: int) -> None:
    """Choose what each part trains. Called once on a freshly cut model; `whole` has the same adapters as the parts.

    With `lora` the top's task head (not a language model's `lm_head`) is trained beside the adapters. In the U-shape
    `top` holds for the middle and the head, which together train what an undivided top would: a head without blocks
    has the task head, or nothing for a language model. A parameter that the model ties across the cut is untied as soon
    as either side could move it: the top gets its own copy.
    Adapters are float32 and start from (`seed`, name), so a block's start does not depend on where the model is cut.
    Raises UserError for a target that no module of bottom or top has, or one of them with nothing to train.
    """
    if any(isinstance(module, LoraLayer) for module in model.whole.modules()):
        raise ValueError("set_trainable was called before on this model")
    if lora.rank < 1:
        raise UserError(f"LoRA rank is {lora.rank}; 1 or more is allowed")
    parts: list[tuple[_Part, str, Trained]] = [(model.bottom, "bottom", bottom), (model.top, "top", top)]
    if model.head is not None:
        parts.append((model.head, "head", top))
    matched: dict[str, list[str]] = {}
    for part, side, trained in parts:
        if trained not in _TRAINED:
            raise UserError(f"{side} trains {trained!r}; allowed are {', '.join(_TRAINED)}")
        matched[side] = _match(part, side, lora.targets, model.family.lora) if trained == "lora" else []
    adapted = [part.get_submodule(name) for part, side, _ in parts for name in matched[side]]
    _untie(model, everything="full" in (bottom, top), adapted=adapted)
    for part, side, trained in parts:
        _choose(part, matched[side], trained, lora, seed)
        if matched[side]:
            _show(model.whole, part)
        if trained == "lora" and side != "head" and not trainable(part):
            raise UserError(f"{side} trains 'lora', but with cut {model.at} of {model.blocks} it has nothing to adapt")


def set_trainable_copy(part: Top, trained: Trained, lora: Lora, seed: int) -> None:
    """Choose what a copy of blocks and head trains, as `set_trainable` does for the top itself; no tie is looked for.

    A target of `lora` may match nothing here: `set_trainable` has refused what matches nowhere.
    """
    names = _match(part, "auxiliary", lora.targets, part.family.lora) if trained == "lora" else []
    _choose(part, names, trained, lora, seed)


def without_adapters(body: nn.Module) -> nn.Module:
    """The same modules with each adapted layer replaced, in place, by the layer that it adapts, as it was."""
    for name, module in list(body.named_modules()):
        if isinstance(module, LoraLayer):
            body.set_submodule(name, module.get_base_layer())
    return body


def draw_start(shape: Sequence[int], seed: int, name: str) -> Tensor:
    """Start of a new weight, float32 on the CPU: uniform as `nn.Linear`'s own, a function of (`seed`, `name`) alone."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    return nn.init.kaiming_uniform_(torch.empty(*shape), a=math.sqrt(5), generator=generator)


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """Name to parameter, for those that are trained."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def export(model: CutModel, folder: Path, label_names: Sequence[str] = ()) -> None:
    """Write the model, adapters merged into its weights, so that plain Transformers loads `folder`.

    A classifier is told its `label_names`.

    A ResNet is written as `model.safetensors` with the original names and a `config.json` that `load_model` reads.
    The live model is not changed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    whole = copy.deepcopy(model.whole)
    for name, module in list(whole.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            whole.set_submodule(name, module.get_base_layer())
    if isinstance(whole, ResNet):
        names = file_names(whole)
        save_file(
            {names[name]: tensor.contiguous() for name, tensor in whole.state_dict().items()},
            folder / "model.safetensors",
        )
        (folder / "config.json").write_text(json.dumps(asdict(whole.config), indent=2) + "\n")
    else:
        saved: Any = whole
        last = cast(Top, model.head or model.top)
        if len(label_names) == saved.config.num_labels and last.verbaliser is None:
            saved.config.id2label = dict(enumerate(label_names))
            saved.config.label2id = {name: number for number, name in enumerate(label_names)}
        with quiet():
            saved.save_pretrained(folder)


def _match(part: nn.Module, side: str, targets: tuple[str, ...], default: tuple[str, ...]) -> list[str]:
    """Names of the modules of a part that LoRA adapts.

    Default targets may match none, the user's own must, save in a head: it may have no blocks.
    """
    names = [name for name, module in part.named_modules() if isinstance(module, _ADAPTABLE)]
    matched = {target: [name for name in names if f".{name}".endswith(f".{target}")] for target in targets or default}
    for target in targets:
        if not matched[target] and side not in ("head", "auxiliary"):
            known = ", ".join(sorted({name.split(".")[-1] for name in names})[:12])
            raise UserError(f"LoRA target {target!r} matches nothing in the {side}; modules there are {known}")
    return [name for name in names if any(name in found for found in matched.values())]


def _choose(part: _Part, matched: list[str], trained: Trained, lora: Lora, seed: int) -> None:
    part.requires_grad_(trained == "full")
    if matched:
        _inject(part, matched, lora, seed)
    if trained == "lora" and isinstance(part, Top):
        for name in part.family.head:
            if hasattr(part.body, name):
                getattr(part.body, name).requires_grad_(True)


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


def _inject(part: nn.Module, names: list[str], lora: Lora, seed: int) -> None:
    conv1d = any(isinstance(part.get_submodule(name), Conv1D) for name in names)
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=0.0, target_modules=names, fan_in_fan_out=conv1d
    )
    with torch.random.fork_rng(devices=[]):  # PEFT draws a start of its own, which the loop below replaces
        inject_adapter_in_model(config, part)
    part.requires_grad_(False)
    for name, parameter in part.named_parameters():
        if "lora_" in name:
            # PEFT gives adapters the dtype of the weights; small steps need more digits than bfloat16 has.
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
        if ".lora_A." in name or ".lora_embedding_B." in name:
            parameter.data.copy_(draw_start(parameter.shape, seed, name))


def _show(whole: nn.Module, part: _Part) -> None:
    """Put a part's adapters in the whole model too: blocks are shared, but modules outside of them are not."""
    for name, module in part.body.named_modules():
        if isinstance(module, LoraLayer):
            whole.set_submodule(name, module)
