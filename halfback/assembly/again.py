"""A model as a run began with it, from its base alone: without the run's rows, clients or server."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from halfback.assembly.fingerprint import of_model
from halfback.assembly.ground import begun
from halfback.assembly.whole import in_data_folder, load_pretrained
from halfback.config import RunConfig, build_algorithm
from halfback.data.encode import verbaliser_ids
from halfback.errors import UserError
from halfback.models.cut import CutModel
from halfback.models.loading import HeadKind, ModelRequest, load_model
from halfback.models.own import own_model
from halfback.models.running import Bottom, LocalModel
from halfback.zeroth.directions import seed_for
from halfback.zeroth.replay import Replica


@dataclass(frozen=True)
class Again:
    """What a run began with.

    Attributes:
        model: at the deepest cut. part: what θ belongs to. theta: θ. tokenizer: None for images, and where it wasn't
            asked for.
    """

    model: CutModel
    part: Bottom | LocalModel
    theta: Replica
    tokenizer: Any


@dataclass(frozen=True)
class Wanted:
    """What a run asked of its model, as `ModelRequest` has it, and the digest that came of it."""

    head: HeadKind
    labels: Sequence[str]
    channels: int
    digest: str


def begin_again(config: RunConfig, wanted: Wanted, base: str | nn.Module) -> Again:
    """Cuts and adapts a base as a run did.

    Args:
        config: the run's, of which the data, the links and the machine don't count.
        wanted: what it asked of its model.
        base: the model that it began from: its name, its folder, or the model itself. Of a run that pretrained its
            model, the file `pretrained.safetensors` of that run.

    Raises:
        UserError: the base is not there, is another, or can't have what the configuration asks for.
    """
    whole, tokenizer = load_base(config, wanted, base)
    if of_model(whole) != wanted.digest:
        named = "the model" if isinstance(base, nn.Module) else repr(base)
        raise UserError(
            f"{named} is not what the run began from, {config.model.name!r}: its weights or settings are others"
        )
    ids = verbaliser_ids(config.task.verbaliser, tokenizer)
    device, algorithm = torch.device("cpu"), build_algorithm(config)
    levels, part, theta = begun(config, algorithm, whole, device, ids, len(wanted.labels))
    return Again(levels[max(levels)], part, theta, tokenizer)


def load_base(config: RunConfig, wanted: Wanted, base: str | nn.Module) -> tuple[nn.Module, Any]:
    """The base with the head that a run asked for, before it is cut, and its tokenizer; as `begin_again` takes it."""
    if isinstance(base, nn.Module):
        if config.task.verbaliser is not None:
            raise UserError(
                "a history with task.verbaliser needs the name or the folder of its base, for the tokenizer"
            )
        return own_model(base), None
    asked = ModelRequest(
        head=wanted.head,
        num_labels=max(len(wanted.labels), 1),
        seed=seed_for(config.seed, "model"),
        dtype=getattr(torch, config.model.dtype),
        in_channels=wanted.channels,
        label_names=wanted.labels,
    )
    if config.model.pretrain is None:
        return load_model(in_data_folder(base), asked)
    if not Path(base).is_file():
        raise UserError(
            f"{base!r}: the run pretrained {config.model.name!r}, so its base is a file of its own; "
            "name RUN/pretrained.safetensors"
        )
    whole, tokenizer = load_model(in_data_folder(config.model.name), asked)
    load_pretrained(whole, Path(base))
    return whole, tokenizer
