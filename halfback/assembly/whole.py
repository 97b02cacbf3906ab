"""The model before it is cut: loaded, held against the data, and pretrained where the recipe says so."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from halfback.assembly.given import Given, check_given, given_whole, settled_tokenizer, with_functions
from halfback.config import ModelConfig, RunConfig
from halfback.config.facts import Pretraining, Rows
from halfback.config.rules import check
from halfback.data.augment import padding_of, parse
from halfback.data.batches import ClientData
from halfback.data.encode import EncodedTask, encode
from halfback.data.images import RGB_MEAN, RGB_STD
from halfback.data.options import GIVEN, TaskOptions
from halfback.data.sources import Preparation, data_folder
from halfback.data.tasks import RawTask, has_colour_images, load_task, to_train_on
from halfback.errors import UserError, first_line
from halfback.models.decoding import check_known
from halfback.models.families import family_of
from halfback.models.fitting import check_finite
from halfback.models.loading import HeadKind, ModelRequest, files_here, load_model
from halfback.models.part import Held
from halfback.models.pretraining import pretrain
from halfback.models.processor import Processor, own_processor, own_size, plain_processor
from halfback.zeroth.directions import seed_for

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loaded:
    """A model before it is cut, and rows for it.

    Attributes:
        tokenizer: None for images.
        how: the model wants the task's images.
        raw, task: the rows as they were read, and encoded.
    """

    whole: nn.Module
    tokenizer: Any
    how: Preparation
    raw: RawTask
    task: EncodedTask

    @property
    def processor(self) -> Any:
        """What says how colour images were made, with a method `save_pretrained`; None for all else."""
        if isinstance(self.how.process, Processor):
            return self.how.process.own
        images = None if self.raw.name == GIVEN else self.raw.train.images
        return None if images is None or len(images[0]) != 3 else plain_processor(images.shape[1:], RGB_MEAN, RGB_STD)


def load(config: RunConfig, given: Given, *, site: Sequence[str] | None = None, held: Held | None = None) -> Loaded:
    """The model with the head that the task asks for, and the rows as it takes them.

    Args:
        config: of the run.
        given: what the configuration calls "given".
        site: for a client's machine, where nothing is validated: the federation's classes, in order; empty where there
            are none.
        held: the part of the model that is loaded; None for the whole.

    Raises:
        UserError: a model or a data set is not there, is damaged, or doesn't fit the other.
    """
    check_given(config, given)
    options = config.task
    how = preparation(config.model, options)
    raw = raw_rows(config, given, site or (), how)
    raw = raw if site is None else to_train_on(raw)
    whole, tokenizer = _load_model(config, raw, given, held)
    continued = options.verbaliser is not None
    task = encode(raw, tokenizer, max_length=options.max_length, template=options.template, continued=continued)
    loaded = Loaded(whole, tokenizer, how, raw, with_functions(task, given))
    check_rows(loaded, config)
    return loaded


def raw_rows(config: RunConfig, given: Given, classes: Sequence[str] = (), how: Preparation | None = None) -> RawTask:
    """The rows of a run before a tokenizer has had its texts; `classes` and `how` as for `load_task`."""
    seed = seed_for(config.seed, "task")
    return load_task(config.task, seed=seed, classes=classes, how=how or Preparation(), given=given.data)


def _load_model(config: RunConfig, raw: RawTask, given: Given, held: Held | None) -> tuple[nn.Module, Any]:
    """The model and its tokenizer (None for images), with the head that the task asks for, or as they were given."""
    if given.model is not None:
        return given_whole(given, raw)
    head: HeadKind = "classifier"
    if raw.train.images is not None:
        head = "image"
    elif raw.objective != "classification":
        head = "causal_lm"
    elif config.task.verbaliser is not None:
        head = "verbaliser"
    asked = ModelRequest(
        head=head,
        num_labels=max(len(raw.label_names), 1),
        seed=seed_for(config.seed, "model"),
        dtype=getattr(torch, config.model.dtype),
        in_channels=raw.in_channels or 3,
        label_names=raw.label_names,
    )
    whole, tokenizer = load_model(in_data_folder(config.model.name), asked, held=held)
    return whole, tokenizer if given.tokenizer is None or tokenizer is None else settled_tokenizer(given, whole)


def has_weights(config: ModelConfig) -> bool:
    """Whether the weights of the model are in files here, or can be fetched; not so for a folder that has none."""
    return files_here(in_data_folder(config.name))


def preparation(config: ModelConfig, options: TaskOptions) -> Preparation:
    """How the model wants the task's images; UserError for a preprocessor that can't be used, or not for this size."""
    if config.name == GIVEN or not has_colour_images(options):
        return Preparation()
    name = in_data_folder(config.name)
    return Preparation(own_processor(name, options.image_size), own_size(name))


def check_rows(loaded: Loaded, config: RunConfig) -> None:
    """Refuses rows that a model can't take, before one is drawn in the middle of a run.

    Rows are too long or too large for it, or have tokens, or kinds of them, that it has no embedding for; padding is
    none of the rows' own.
    """
    whole: Any = loaded.whole
    model, task, images = whole.config, loaded.task, loaded.raw.train.images
    positions = getattr(model, "max_position_embeddings", None)
    if positions is not None and family_of(whole).positions_behind_padding:
        positions -= model.pad_token_id + 1
    wanted = getattr(model, "image_size", None)
    found = [split.largest() for split in (task.train, task.validation)]
    facts = Rows(
        config,
        longest=max(task.train.longest(), task.validation.longest()),
        longest_prompt=max((len(prompt.tokens) for prompt in task.prompts), default=0),
        positions=positions,
        size=None if images is None or images.ndim < 4 else tuple(images.shape[-2:]),
        wanted=tuple(wanted) if isinstance(wanted, list | tuple) else None if wanted is None else (wanted, wanted),
        kinds=max(kind for _, kind in found) + 1,
        known_kinds=getattr(model, "type_vocab_size", None),
        padding=padding_of(parse(config.task.augment)),
        classes=len(task.label_names) if task.objective == "classification" else 0,
    )
    check(facts)
    if loaded.tokenizer is not None and hasattr(whole, "get_input_embeddings"):
        token = max(max(token for token, _ in found), *(max(prompt.tokens) for prompt in task.prompts), -1)
        check_known(whole, loaded.tokenizer, token, f"model.name={config.model.name}")


def in_data_folder(name: str) -> str:
    """A name that begins with `$HALFBACK_DATA/` as a path where the data sets are; any other name as it is."""
    marker, _, rest = name.partition("/")
    if marker != "$HALFBACK_DATA":
        return name
    folder = data_folder(Path(rest).parts[0])
    if folder is None:
        raise UserError(f"model.name={name!r}: HALFBACK_DATA has no such folder; set it, or name a file or folder")
    return str(folder.joinpath(*Path(rest).parts[1:]))


def pretrain_whole(
    model: nn.Module,
    target: RawTask,
    config: RunConfig,
    device: torch.device,
    kept: Path | None,
    how: Preparation,
) -> None:
    """Trains the model in place as `model.pretrain` says, or loads what was kept of that; UserError where it can't."""
    settings = config.model.pretrain
    assert settings is not None
    if kept is not None and kept.exists():
        load_pretrained(model, kept)
        return
    raw = load_task(TaskOptions(settings.task), seed=seed_for(config.seed, "task"), how=how)
    classes, allowed = len(raw.label_names), len(target.label_names)
    check(Pretraining(settings.task, raw.in_channels, classes, target.name, target.in_channels, allowed))
    source = ClientData(
        encode(raw, None, max_length=config.task.max_length, template=None).train,
        torch.arange(len(raw.train.labels)).numpy(),
        batch_size=settings.batch_size,
        seed=seed_for(config.seed, "pretrain"),
    )
    log.info("pretraining %s on %s, %d steps", config.model.name, settings.task, settings.steps)
    batches = (source.batch(number).to(device) for number in range(settings.steps))
    pretrain(model, ((batch.inputs, batch.labels) for batch in batches), lr=settings.lr)
    if kept is not None:
        unfinished = kept.with_suffix(".unfinished")
        try:
            unfinished.unlink(missing_ok=True)  # not written through, where it is a link
            save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, unfinished)
            with unfinished.open("rb") as file:
                os.fsync(file.fileno())
            unfinished.rename(kept)
        except (OSError, SafetensorError) as error:
            unfinished.unlink(missing_ok=True)
            raise UserError(f"{kept} can't be written: {getattr(error, 'strerror', None) or error}") from None


def load_pretrained(model: nn.Module, kept: Path) -> None:
    """Loads in place what a run has kept of its pretraining; UserError where that is damaged or another model's."""
    try:
        if not kept.is_file():  # a pipe would never end
            raise OSError("it is not a file")
        tensors = load_file(kept)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{kept} can't be read: {first_line(error)}") from None
    own = {name: (tensor.shape, tensor.dtype) for name, tensor in model.state_dict().items()}
    found = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
    for name in own | found:
        if own.get(name) != found.get(name):
            raise UserError(f"{kept} is not of this model: tensor {name!r} is missing, unknown, or of another shape")
    model.load_state_dict(tensors)
    check_finite(str(kept), model)
