"""What is used once it is trained: a run's model, or one that was exported, with how its rows are read."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from halfback import json_reading
from halfback.assembly import Built
from halfback.assembly.given import Given
from halfback.data.batches import Batch, Split
from halfback.data.encode import EncodedTask, encode, metric_of, verbaliser_ids
from halfback.data.options import GIVEN, TaskOptions
from halfback.data.reading import COLUMNS, Rows, Wanted, chunks, read_rows
from halfback.data.sources import Preparation
from halfback.data.tasks import has_colour_images
from halfback.errors import UserError, offer, shown
from halfback.models.classes import own_names
from halfback.models.cut import CutModel, cut
from halfback.models.decoding import check_known
from halfback.models.families import family_of
from halfback.models.loading import HeadKind, ModelRequest, load_model
from halfback.models.objectives import Loss, Metric, Objective
from halfback.models.processor import own_processor, own_size
from halfback.runs.folder import CONFIG
from halfback.runs.generation import Writer
from halfback.runs.opening import Which, reload

FILE = "halfback.json"
"""Beside an exported model: how the run read its rows, without where they were."""
_WHERE = ("train", "validation", "train_rows", "validation_rows", "holdout", "generated_rows", "loss", "metric")
_CHUNK, _BATCH = 1024, 32  # rows that are made ready at a time; rows of a batch of an exported model


@dataclass(frozen=True)
class Subject:
    """A trained model, with all that rows need on their way to it.

    Attributes:
        where: its folder.
        model: cut somewhere, which changes no bit of what it gives.
        tokenizer: None for images and tensors.
        how: images are made for it.
        options: of its task, with the objective.
        names: its classes in order; empty where there are none.
        batch_size: rows at once.
        task: the rows of its run; None for an exported model.
        own_loss, own_metric: of the run's own, where they were given.
        metric: what it is scored by.
    """

    where: Path
    model: CutModel
    tokenizer: Any
    how: Preparation
    options: TaskOptions
    names: Sequence[str]
    batch_size: int
    task: EncodedTask | None = None
    own_loss: Loss | None = None
    own_metric: Metric | None = None
    metric: str = "accuracy"

    @property
    def objective(self) -> Objective:
        """What it was trained for."""
        assert self.options.objective is not None, "a subject's options say it"
        return self.options.objective

    @property
    def device(self) -> torch.device:
        """Where its model is."""
        return next(self.model.whole.parameters()).device

    @property
    def writer(self) -> Writer:
        """What writes with it."""
        return Writer(self.model.whole, self.tokenizer, self.options, self.batch_size)

    def wanted(self, *, answers: bool) -> Wanted:
        """How its rows are read."""
        return Wanted(self.options, self.names, self.how, self.tokenizer is None, answers)

    def read(self, data: Any, *, answers: bool) -> Rows:
        """Reads rows for it; see `read_rows`."""
        return read_rows(data, self.wanted(answers=answers))

    def splits(self, rows: Rows, *, answers: bool) -> Iterator[Split]:
        """The rows encoded, some at a time, so that a file's length costs no memory beyond its own."""
        size = max(_CHUNK // self.batch_size, 1) * self.batch_size  # whole batches: those of one split
        for raw in chunks(rows, self.wanted(answers=answers), size):
            encoded = encode(
                raw,
                self.tokenizer,
                max_length=self.options.max_length,
                template=self.options.template,
                continued=self.options.verbaliser is not None,
            )
            self._check(encoded.validation)
            yield encoded.validation

    def batches(self, split: Split) -> Iterator[tuple[Tensor, Batch]]:
        """The logits of each batch of a split in turn."""
        for some in torch.arange(len(split)).split(self.batch_size):
            batch = split.batch(some).to(self.device)
            with torch.no_grad():
                yield self.model.logits(batch.inputs, batch.scored), batch

    def _check(self, split: Split) -> None:
        if self.tokenizer is not None and hasattr(self.model.whole, "get_input_embeddings"):
            check_known(self.model.whole, self.tokenizer, split.largest()[0], f"{self.where}")
            return
        if self.task is not None and self.tokenizer is None:
            due, found = (each.batch([0]).inputs["pixel_values"].shape[1:] for each in (self.task.train, split))
            if due != found:
                raise UserError(f"the rows have shape {tuple(found)}; {self.where} was trained on {tuple(due)}")


def subject(
    where: Path, given: Given | None = None, *, which: Which = "last", changes: Mapping[str, Any] | None = None
) -> Subject:
    """What a folder holds: a run, or an exported model.

    Args:
        where: the folder.
        given: what the run was given in Python.
        which: of a run's checkpoints.
        changes: of how a file of rows is read, by the names of the task's options.

    Raises:
        UserError: it holds neither, or nothing that can be used yet.
    """
    if (where / CONFIG).exists():
        found = _of_run(where, given, which)
    elif (where / "config.json").exists():
        if which != "last":
            raise UserError(f"{where} is an exported model, which has no other checkpoint than its own")
        found = _of_model(where)
    else:
        raise UserError(f"{where} holds no run and no exported model: there is no {CONFIG}, and no config.json")
    options = replace(found.options, **_known(changes or {}))
    positions = _positions(found)
    if positions is not None:
        options = replace(options, max_length=min(options.max_length, positions))
    return replace(found, options=options)


def _known(changes: Mapping[str, Any]) -> Mapping[str, Any]:
    for key, value in changes.items():
        if key not in COLUMNS:
            raise UserError(f"{key}={value}: {offer(key, COLUMNS)}")
        allowed = bool if key == "skip_bad_rows" else str
        if not isinstance(value, allowed):
            raise UserError(f"{key}={value}: {'true or false' if allowed is bool else 'a name'} is allowed")
    return changes


def _positions(found: Subject) -> int | None:
    """How many tokens the model takes; None for any number."""
    whole: Any = found.model.whole
    positions: int | None = getattr(whole.config, "max_position_embeddings", None)
    if positions is not None and family_of(whole).positions_behind_padding:
        positions -= whole.config.pad_token_id + 1
    return positions


def _of_run(where: Path, given: Given | None, which: Which) -> Subject:
    built = reload(where, given, which)
    task = built.task
    return Subject(
        where=where,
        model=built.model,
        tokenizer=built.tokenizer,
        how=built.how,
        options=replace(built.config.task, objective=task.objective),
        names=task.label_names,
        batch_size=built.config.eval_batch_size,
        task=task,
        own_loss=task.own_loss,
        own_metric=task.own_metric,
        metric=task.metric,
    )


def write_reading(built: Built, folder: Path) -> None:
    """Leaves beside an exported model how the run read its rows."""
    options = {key: value for key, value in asdict(built.config.task).items() if key not in _WHERE}
    options["objective"] = built.task.objective
    said = {"task": options, "classes": built.task.label_names, "dtype": built.config.model.dtype}
    (folder / FILE).write_text(json.dumps(said, indent=2) + "\n")


def _of_model(where: Path) -> Subject:
    config = json_reading.read(where / "config.json")
    if not isinstance(config, dict):
        raise UserError(f"{where / 'config.json'} must hold names and values, not {shown(config)}")
    options, names, dtype = _reading(where, config)
    heads: dict[str, HeadKind] = {"generation": "causal_lm", "causal_lm": "causal_lm", "classification": "classifier"}
    head = heads[str(options.objective)]
    if head == "classifier":
        head = "image" if _has_images(config) else "verbaliser" if options.verbaliser is not None else head
    channels: Any = config.get("num_channels", config.get("in_channels", 3))
    classes = names if head != "verbaliser" else ()
    asked = ModelRequest(head, max(len(names), 1), 0, getattr(torch, dtype), channels, classes)
    whole, tokenizer = load_model(str(where), asked)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = cut(whole.to(device), 1, verbaliser=verbaliser_ids(options.verbaliser, tokenizer))
    how = Preparation()
    if options.name != GIVEN and has_colour_images(options):
        how = Preparation(own_processor(str(where), options.image_size), own_size(str(where)))
    metric = metric_of(options.objective or "classification")
    return Subject(where, model, tokenizer, how, options, names, _BATCH, metric=metric)


def _has_images(config: Mapping[str, Any]) -> bool:
    is_resnet = config.get("model_type") == "halfback_resnet"
    return is_resnet or "ImageClassification" in " ".join(map(str, config.get("architectures") or ()))


def _reading(where: Path, config: Mapping[str, Any]) -> tuple[TaskOptions, list[str], str]:
    """How the run read its rows, its classes and its dtype; of a model without a run what its configuration says."""
    if not (where / FILE).exists():
        kind = " ".join(map(str, config.get("architectures") or ()))
        names = own_names(str(where), config)
        if _has_images(config):
            return TaskOptions("images", objective="classification"), names, "float32"
        if "SequenceClassification" in kind:
            return TaskOptions("csv", objective="classification"), names, "float32"
        if "CausalLM" in kind or "LMHead" in kind:
            return TaskOptions("csv", objective="causal_lm"), [], "float32"
        raise UserError(f"{where}: {kind or 'the model'} is no classifier and no language model that is known")
    said = json_reading.read(where / FILE)
    try:
        options = TypeAdapter(TaskOptions).validate_python(said["task"])
        names = TypeAdapter(list[str]).validate_python(said["classes"])
        dtype = TypeAdapter(Literal["float32", "bfloat16", "float16"]).validate_python(said["dtype"])
    except (KeyError, TypeError, ValidationError):
        raise UserError(f"{where / FILE} doesn't say how rows are read, as `halfback export` writes it") from None
    if options.objective is None:
        raise UserError(f"{where / FILE} doesn't say the task's objective, as `halfback export` writes it")
    return options, names, dtype
