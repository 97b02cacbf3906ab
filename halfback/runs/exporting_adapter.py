"""What a run trained as adapters of PEFT, with the tokenizer that the run's texts were read by."""

from pathlib import Path

import torch

from halfback.assembly import Built
from halfback.assembly.again import load_base
from halfback.data.options import GIVEN
from halfback.errors import UserError
from halfback.models.adapter_folders import Kind, write_adapters
from halfback.models.resnet import is_resnet_name
from halfback.runs import tokens as reading
from halfback.runs.history import wanted_of
from halfback.runs.naming import hub_name


def write(built: Built, folder: Path, *, parts: bool) -> list[str]:
    """Writes the adapters, and returns the names of their folders in `folder`; none where it is the adapter itself.

    Raises:
        UserError: an adapter can't say what was trained, or its base is nobody else's.
    """
    config = built.config
    if config.model.pretrain is not None:
        raise UserError("--adapter: model.pretrain made a base of this run's own, which nobody else has; use --merged")
    if is_resnet_name(config.model.name):
        raise UserError(
            f"--adapter: model.name={config.model.name} begins at random: nobody has its base; use --merged"
        )
    if config.bottom.weights == "int8":
        raise UserError("--adapter: bottom.weights=int8 rounded the base, which others have as it was; use --merged")
    kind = Kind(
        config.bottom.train, config.top.train, config.lora, hub_name(built.ground.config.model.name), _fresh(built)
    )
    found = write_adapters(built.model, folder, kind, parts=parts)
    if built.tokenizer is not None:
        reading.settled(built.tokenizer, reading.tokens_of(built)).save_pretrained(folder)
    if built.processor is not None:
        built.processor.save_pretrained(folder)
    return found


def _fresh(built: Built) -> frozenset[str]:
    """Names of the frozen tensors that the base's own files lack: loaded with another seed they are others."""
    family, config = built.model.family, built.ground.config
    if not family.fresh or config.model.name == GIVEN:
        return frozenset()
    whole, _ = load_base(config.model_copy(update={"seed": config.seed + 1}), wanted_of(built), config.model.name)
    return frozenset(
        f"{name}.{key}"
        for name in family.fresh
        for key, tensor in whole.get_submodule(name).state_dict().items()
        if not torch.equal(tensor, built.model.whole.get_submodule(name).state_dict()[key])
    )
