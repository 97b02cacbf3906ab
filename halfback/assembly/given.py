"""What somebody gives in Python in place of names: a model, a tokenizer, rows, a loss, a metric."""

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from halfback.config import RunConfig
from halfback.data.encode import EncodedTask, verbaliser_ids
from halfback.data.options import GIVEN
from halfback.data.own import Data
from halfback.data.tasks import RawTask
from halfback.errors import UserError
from halfback.models.cut import cut
from halfback.models.families import class_family, family_of
from halfback.models.loading import settle_padding
from halfback.models.objectives import Loss, Metric, check_mean, loss_of
from halfback.models.own import OwnSettings, check_parts, own_model

_DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Given:
    """Objects of a run that its configuration can't name; each that is None is what the configuration says.

    Attributes:
        model: a Transformers model of a known family, an `nn.Sequential`, or a module of a class that
            `halfback.family` stands on. A run works on a copy of it.
        tokenizer: of Transformers; needed where the model is given and the rows are texts.
        data: the rows.
        loss: (logits, labels) → the mean loss of these rows, a scalar tensor.
        metric: (logits, labels) of all validation rows → a number, more is better; for classification.
    """

    model: nn.Module | None = None
    tokenizer: Any = None
    data: Data | None = None
    loss: Loss | None = None
    metric: Metric | None = None


NOTHING = Given()


def settings_of(given: Given) -> dict[str, Any]:
    """The settings, by key path, that say of a configuration what was given: "given" where an object stands for a name.

    A given model begins with its own weights and in its own dtype, so there is no pretraining. Of the rows' options
    those that say where a file is and how it is written are none.

    Raises:
        UserError: the model's dtype is none that a run can have.
    """
    settings: dict[str, Any] = {}
    if given.model is not None:
        dtype = str(next(given.model.parameters(), torch.empty(0)).dtype).removeprefix("torch.")
        if dtype not in _DTYPES:
            raise UserError(f"model: its parameters are {dtype}; {', '.join(_DTYPES)} are allowed")
        settings |= {"model.name": GIVEN, "model.pretrain": None, "model.dtype": dtype}
    if given.data is not None:
        of_files = ("train", "validation", "delimiter", "encoding", "image_size")
        settings |= {"task.name": GIVEN} | {f"task.{option}": None for option in of_files}
    if given.loss is not None:
        settings["task.loss"] = GIVEN
    if given.metric is not None:
        settings["task.metric"] = GIVEN
    return settings


def check_given(config: RunConfig, given: Given) -> None:
    """Refuses objects that the configuration doesn't speak of, and one that speaks of objects that nobody gave.

    Raises:
        UserError: names the setting, and the argument that is missing or too many.
    """
    said = {
        "model.name": (config.model.name, "model", given.model),
        "task.name": (config.task.name, "data", given.data),
        "task.loss": (config.task.loss, "loss", given.loss),
        "task.metric": (config.task.metric, "metric", given.metric),
    }
    for setting, (value, argument, thing) in said.items():
        if value == GIVEN and thing is None:
            raise UserError(f"{setting}={GIVEN!r}: it was given in Python; give it again, as {argument}=…")
        if value != GIVEN and thing is not None:
            raise UserError(f"{argument}=…: this run has {setting}={value!r}, and takes no other; leave it away")
    if config.model.name == GIVEN and config.model.pretrain is not None:
        raise UserError("model.pretrain: a given model begins with its own weights; model.pretrain=null is allowed")


def given_whole(given: Given, raw: RawTask) -> tuple[nn.Module, Any]:
    """A copy of the given model, ready to be cut, and of its tokenizer (None for tensors).

    Raises:
        UserError: the model can't be cut, or it doesn't fit the kind of rows.
    """
    assert given.model is not None
    whole: Any = own_model(given.model)
    family, texts = family_of(whole), raw.train.images is None
    if texts == (family.kind == "image"):
        takes, has = ("tensors", "texts") if texts else ("texts", "tensors")
        raise UserError(f"model: {type(given.model).__name__} takes {takes}; the rows of task {raw.name!r} are {has}")
    channels = getattr(whole.config, "num_channels", raw.in_channels)
    if not texts and channels != raw.in_channels:
        raise UserError(f"model: it takes images of {channels} channels, not {raw.in_channels}")
    return whole, settled_tokenizer(given, whole) if texts else None


def settled_tokenizer(given: Given, whole: nn.Module) -> Any:
    """A copy of the given tokenizer that pads as the model wants it.

    Raises:
        UserError: none was given.
    """
    if given.tokenizer is None:
        raise UserError("tokenizer=…: the rows are texts, so a given model needs its tokenizer")
    tokenizer: Any = copy.deepcopy(given.tokenizer)
    if hasattr(whole, "get_input_embeddings"):
        settle_padding(tokenizer, whole, family_of(whole))
    else:
        tokenizer.padding_side = "left" if family_of(whole).kind == "decoder" else "right"
    return tokenizer


def with_functions(task: EncodedTask, given: Given) -> EncodedTask:
    """The task with the given loss and metric.

    Raises:
        UserError: a metric is given for a language model, whose logits of all rows are too many to keep.
    """
    metric = task.metric
    if given.metric is not None:
        if task.objective != "classification":
            raise UserError(f"metric=…: it is for classification, not for task.objective={task.objective}")
        metric = getattr(given.metric, "__name__", "metric")
    return replace(task, own_loss=given.loss, own_metric=given.metric, metric=metric)


def check_fit(whole: Any, tokenizer: Any, task: EncodedTask, config: RunConfig, *, piecewise: bool) -> None:
    """Tries a given model, and a given loss, on the first rows, before a run begins.

    Args:
        whole: the model, before it is cut.
        tokenizer: its own; None where it takes no texts.
        task: the encoded rows, and the loss.
        config: the run's.
        piecewise: whether the method takes the loss of a few rows at a time.

    Raises:
        UserError: the model in parts is not the whole model, its logits don't fit the classes, or the loss is no mean.
    """
    ids = verbaliser_ids(config.task.verbaliser, tokenizer)
    batch = task.train.batch(list(range(min(len(task.train), 4))))
    if isinstance(whole.config, OwnSettings):
        whole.config.example = task.train.batch([0]).inputs
    if class_family(whole) is not None:
        check_parts(whole, batch.inputs)
    with torch.no_grad():
        logits = cut(whole, 1, verbaliser=ids).logits(batch.inputs, batch.scored)
    classes = len(task.label_names)
    count, what, width = len(batch.labels), "rows", str(classes)
    if batch.scored is not None:
        count, what, width = len(batch.scored), "tokens", "vocabulary"
    if logits.ndim != 2 or len(logits) != count or logits.shape[-1] < classes:
        needed = f"({count}, {width}) is needed"
        raise UserError(f"model: it gives logits {tuple(logits.shape)} for {count} {what}; {needed}")
    if task.own_loss is not None:
        loss_of(task.objective, task.own_loss)(logits, batch.labels)
        if piecewise and task.objective != "classification":
            raise UserError("loss=…: this method takes the loss of a few rows at a time, and for classification alone")
        if piecewise:
            check_mean(task.own_loss, logits, batch.labels)
