"""What was trained of a cut model as adapters of PEFT: folders that `PeftModel.from_pretrained(base, folder)` loads."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file
from torch import Tensor, nn

from halfback.errors import UserError
from halfback.models.adapters import BottomTrained, Lora, Trained, is_adapted, trainable
from halfback.models.cut import CutModel
from halfback.models.heavy import is_of
from halfback.models.own import Stack
from halfback.models.quiet import hush
from halfback.models.running import Bottom, Middle, Top

if TYPE_CHECKING:
    from peft import PeftConfig

_Part = Bottom | Middle | Top
_PREFIX = "base_model.model."  # before a module's name in PEFT's files


@dataclass(frozen=True)
class Kind:
    """How a model was trained, and from what.

    Attributes:
        bottom, top, lora: as `set_trainable` was called.
        base: the name of the model that it began from; None where it has none that others know.
        fresh: names of tensors that the base's own files lack, and that no task trains.
    """

    bottom: BottomTrained
    top: Trained
    lora: Lora
    base: str | None
    fresh: frozenset[str] = frozenset()


def write_adapters(model: CutModel, folder: Path, kind: Kind, *, parts: bool) -> list[str]:
    """Writes one adapter into `folder`; with `parts` one of the bottom and one of the rest, each in a folder there.

    What a task trains in full beside adapters (its head, norms) is in it whole (`modules_to_save`).

    Returns:
        The names of the folders in `folder`; none where it is the adapter itself.

    Raises:
        UserError: PEFT's adapters can't say what was trained; the message says what to use.
    """
    _check(model, kind, parts=parts)
    behind: list[_Part] = [part for part in (model.top, model.head) if part is not None]
    if not parts:
        _write(model, [model.bottom, *behind], folder, kind)
        return []
    sides: dict[str, list[_Part]] = {"bottom": [model.bottom], "top": behind}
    for name, chosen in sides.items():
        (folder / name).mkdir()
        _write(model, chosen, folder / name, kind)
    return ["bottom", "top"]


def _check(model: CutModel, kind: Kind, *, parts: bool) -> None:
    for side, trained in (("bottom", kind.bottom), ("top", kind.top)):
        if trained == "full":
            raise UserError(f"--adapter: {side}.train=full: adapters don't hold weights that are trained; use --merged")
    if isinstance(model.whole, Stack):
        raise UserError("--adapter: of an nn.Sequential there are none that PEFT would load; use --merged")
    if kind.bottom == "ia3" and not parts:
        raise UserError(
            "--adapter: bottom.train=ia3 and top.train=lora don't go into one adapter; use --adapter --parts"
        )
    if kind.bottom == "bias" and parts:
        raise UserError("--parts: bottom.train=bias makes no adapter of its own; use --adapter alone")
    if kind.bottom == "norm" and parts:
        raise UserError("--parts: bottom.train=norm makes no adapter of its own; use --adapter alone")
    if kind.bottom == "none" and parts:
        raise UserError("--parts: bottom.train=none: the devices' part has no adapter; use --adapter alone")


def _write(model: CutModel, parts: Sequence[_Part], folder: Path, kind: Kind) -> None:
    adapted = {name: module for part in parts for name, module in part.body.named_modules() if is_adapted(module)}
    if not adapted:
        raise UserError("--adapter: no layer of it was adapted, and PEFT has no adapter without one; use --merged")
    tensors = {
        f"{_PREFIX}{name}": tensor.detach()
        for target, module in adapted.items()
        for name, tensor in _of_layer(target, module)
    }
    behind = any(isinstance(part, Top) for part in parts)
    whole = _in_full(model, parts) if behind or kind.bottom != "bias" else {}
    biases = {name for name in whole if kind.bottom == "bias" and not _is_head(model, name)}
    saved = sorted({name for name in whole if name not in biases} | (_fresh(model, kind) if behind else set()))
    for name in saved:
        if inside := [target for target in adapted if target == name or target.startswith(f"{name}.")]:
            raise UserError(f"--adapter: {inside[0]} is adapted and trained in full; use --merged")
        state = model.whole.get_submodule(name).state_dict()
        tensors |= {f"{_PREFIX}{name}.{key}": tensor.detach() for key, tensor in state.items()}
    for name in biases:
        tensors[f"{_PREFIX}{name}.bias"] = whole[name]["bias"].detach()
    config = _config(model, kind, adapted, saved, behind=behind)
    if biases:
        config.bias = "all"
    config.save_pretrained(folder)
    save_file({name: t.contiguous().clone() for name, t in tensors.items()}, folder / "adapter_model.safetensors")


def _config(
    model: CutModel, kind: Kind, adapted: dict[str, nn.Module], saved: list[str], *, behind: bool
) -> "PeftConfig":
    """PEFT's settings of an adapter: the layers are named in full, so that it finds these and no others."""
    hush()
    from peft import IA3Config, LoraConfig

    bases = [getattr(module, "base_layer", None) for module in adapted.values()]
    options: dict[str, Any] = {
        "target_modules": sorted(adapted),
        "fan_in_fan_out": any(is_of(base, "transformers.pytorch_utils", "Conv1D") for base in bases),
        "modules_to_save": saved or None,
        "task_type": _task(model) if behind else None,
        "base_model_name_or_path": kind.base,
        "inference_mode": True,
    }
    if kind.bottom == "ia3" and not behind:
        ends = tuple(f".{path}" for path, what in model.family.ia3.items() if what == "input")
        return IA3Config(feedforward_modules=sorted(name for name in adapted if name.endswith(ends)), **options)
    return LoraConfig(r=kind.lora.rank, lora_alpha=kind.lora.alpha, lora_dropout=0.0, **options)


def _task(model: CutModel) -> str | None:
    """The name that PEFT has for what the model does; it has none for images."""
    if model.family.kind == "image" or model.family.module is not None:
        return None
    return "CAUSAL_LM" if hasattr(model.whole, "lm_head") else "SEQ_CLS"


def _of_layer(name: str, module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """An adapted layer's own tensors, by the names that PEFT's files have for them: without the adapter's."""
    for key, tensor in module.named_parameters():
        if not key.startswith("base_layer."):
            parts = [part for part in key.split(".") if part != "default"]
            yield f"{name}.{'.'.join(parts)}", tensor


def _in_full(model: CutModel, parts: Sequence[_Part]) -> dict[str, dict[str, nn.Parameter]]:
    """Modules of which tensors of the model's own are trained, by name: those of them by theirs; a head as one."""
    found = dict[str, dict[str, nn.Parameter]]()
    for part in parts:
        for path, parameter in trainable(part).items():
            name, _, own = path.removeprefix("body.").rpartition(".")
            if "lora_" in path or "ia3_" in path:
                continue
            head = next((head for head in model.family.head if name == head or name.startswith(f"{head}.")), None)
            found.setdefault(head or name, {})[own] = parameter
    return found


def _is_head(model: CutModel, name: str) -> bool:
    return name in model.family.head


def _fresh(model: CutModel, kind: Kind) -> set[str]:
    return {name for name in model.family.fresh if any(tensor.startswith(f"{name}.") for tensor in kind.fresh)}
