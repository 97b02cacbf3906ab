"""Rows for a model that is trained already, read as its run read its own: with their answers, or without."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from halfback.data import images, ink, targets
from halfback.data.files import read_table
from halfback.data.options import GIVEN, TaskOptions
from halfback.data.own import holds_arrays, stacked, table_of
from halfback.data.sources import Columns, Preparation, Source, class_numbers, column_of, text_source, whole_rows
from halfback.data.tables import Table
from halfback.data.tasks import TASKS, RawSplit, RawTask, fields_of, has_colour_images
from halfback.errors import UserError

_WHERE = "the given rows"
_INPUTS = ("text", "image", "pixel_values")  # what the input's column may be called where nobody says it
# What named sets call their columns; those of all others are called text, label and target.
_COLUMNS = {
    "rte": Columns("premise", "hypothesis"),
    "cb": Columns("premise", "hypothesis"),
    "boolq": Columns("passage", "question"),
    "wic": Columns("text", "sentence2"),
    "wsc": Columns("text", "candidate"),
    "e2e": Columns("input", target="target"),
    "webnlg": Columns("input", target="target"),
    "dart": Columns("input", target="target"),
}
COLUMNS = ("text", "pair", "label", "target", "delimiter", "encoding", "skip_bad_rows")
"""The options of a task that say how a file of rows is read."""


@dataclass(frozen=True)
class Rows:
    """Rows that a model has not seen.

    Attributes:
        source: what the model reads of them, and the answers where these were asked for.
        columns: what came with them, as it came, by name: the cells of a file, the names of images.
        how: images are made for the model.
        numbers: the classes (N,) int64, zeros where there are none or nobody asked.
    """

    source: Source
    columns: Mapping[str, Sequence[Any]]
    how: Preparation
    numbers: np.ndarray

    def __len__(self) -> int:
        return self.source.size


@dataclass(frozen=True)
class Wanted:
    """How rows are to be read.

    Attributes:
        options: of the run's task, with its objective.
        names: of the run's classes, in order.
        how: the run's model wants its images.
        tensors: the rows are images, or tensors of somebody's own.
        answers: classes, or targets to write, are needed.
    """

    options: TaskOptions
    names: Sequence[str]
    how: Preparation
    tensors: bool
    answers: bool


def read_rows(data: Any, wanted: Wanted) -> Rows:
    """Reads a file of rows, an image or a folder of images, or rows that are in Python already.

    Args:
        data: a path, or rows in a form that `Data` takes; of texts without labels a list will do, of tensors an array
            (rows, …).
        wanted: how they are read.

    Raises:
        UserError: they can't be read so, lack a column, or have a label that the run doesn't know.
    """
    rows = _read(data, wanted)
    if wanted.answers and wanted.options.objective == "classification":
        return replace(rows, numbers=class_numbers(rows.source, wanted.names))
    return rows


def _read(data: Any, wanted: Wanted) -> Rows:
    options = wanted.options
    if isinstance(data, str | Path):
        if not wanted.tensors:
            table = read_table(
                str(data), delimiter=options.delimiter, encoding=options.encoding, skip=options.skip_bad_rows
            )
            return _of_table(table, table.columns, wanted)
        if options.name == GIVEN or not TASKS[options.name].is_images:
            raise UserError(f"{str(data)!r}: the run's rows are tensors, which come from Python alone")
        return _of_images(str(data), wanted)
    columns = columns_of(options)
    if isinstance(data, Tensor | np.ndarray):
        data = {"pixel_values": list(data)}
    second = columns.target if options.objective == "generation" else columns.label
    table, inputs = table_of(data, _WHERE, (columns.text, second or "label"))
    if not table.size:
        raise UserError(f"{_WHERE} are none")
    if not wanted.tensors:
        return _of_table(table, inputs, wanted)
    name = options.text or next((name for name in _INPUTS if name in inputs), _INPUTS[0])
    if name not in inputs or not holds_arrays(inputs[name]):
        raise UserError(f"{_WHERE} have no column {name!r} of tensors, which this model takes")
    values = stacked(table, inputs[name], name)
    labels = [] if not wanted.answers else _labels(table, columns.label or "label")
    source = Source(_WHERE, table.size, labels, images=lambda chosen, _: values[torch.from_numpy(chosen)])
    plain = {key: column for key, column in inputs.items() if not holds_arrays(column)}
    return Rows(source, plain, wanted.how, _zeros(table.size))


def _labels(table: Table, name: str) -> list[str]:
    return [str(cell).strip() for cell in column_of(table, name)]


def columns_of(options: TaskOptions) -> Columns:
    """What the columns of the task's rows are called."""
    own = _COLUMNS.get(options.name, Columns("text"))
    label, target = options.label or "label", options.target or own.target or "target"
    return Columns(options.text or own.text, options.pair or own.pair, label, target)


def _of_table(table: Table, cells: Mapping[str, Sequence[Any]], wanted: Wanted) -> Rows:
    options, own = wanted.options, columns_of(wanted.options)
    label = own.label if wanted.answers and options.objective == "classification" else None
    target = own.target if wanted.answers and options.objective == "generation" else None
    columns = Columns(own.text, own.pair, label, target)
    kept: Sequence[int] = range(table.size)
    if options.skip_bad_rows:
        read = [name for name in (own.text, own.pair, label, target) if name is not None]
        narrow = replace(table, columns={name: column_of(table, name) for name in read})
        table, kept = whole_rows(narrow, [own.text, *filter(None, [target])], own.pair, label)
    # A named set's labels may be numbers; those of somebody's own rows are classes as they are written.
    names = wanted.names if label and not fields_of(options.name) else None
    source = text_source(table, columns, names=names)
    return Rows(
        source, {name: [column[row] for row in kept] for name, column in cells.items()}, wanted.how, _zeros(table.size)
    )


def _of_images(path: str, wanted: Wanted) -> Rows:
    options, how, size = wanted.options, wanted.how, wanted.options.image_size
    if not has_colour_images(options):
        how = Preparation(process=ink.ink_of)
    elif fields_of(options.name) == ():  # of a named set, whose images have one size
        size = images.SIZE
    if wanted.answers:
        source = images.image_folder(path, size=size)
        return Rows(source, {}, how, _zeros(source.size))
    source, files = images.loose_images(path, size=size)
    return Rows(source, {"file": files}, how, _zeros(source.size))


def _zeros(size: int) -> np.ndarray:
    return np.zeros(size, dtype=np.int64)


def chunks(rows: Rows, wanted: Wanted, size: int) -> Iterator[RawTask]:
    """So many rows at a time, in order, as the validation rows of a task without training rows."""
    source = rows.source
    for begin in range(0, source.size, size):
        numbers = np.arange(begin, min(begin + size, source.size))
        part = slice(begin, begin + len(numbers))
        made = None if source.images is None else source.images(numbers, rows.how)
        labels = torch.from_numpy(rows.numbers[part])
        split = RawSplit(
            texts=None if source.texts is None else source.texts[part],
            pairs=None if source.pairs is None else source.pairs[part],
            images=made,
            labels=labels,
            targets=None if source.targets is None else source.targets[part],
            references=[[] for _ in numbers],
        )
        none = RawSplit(
            texts=None if split.texts is None else [],
            pairs=None if split.pairs is None else [],
            images=None if made is None else made[:0],
            labels=labels[:0],
            targets=None if split.targets is None else [],
        )
        options = wanted.options
        assert options.objective is not None, "whoever wants rows knows what for"
        yield RawTask(options.name, options.objective, none, split, list(wanted.names), None)


def inputs_of(source: Source) -> tuple[list[int], list[list[str]]]:
    """The first row of each different input, and all that is to be written for it."""
    numbers = np.arange(source.size)
    firsts = np.unique(targets.first_rows(source, numbers))
    written = targets.references(source, firsts, numbers)
    return firsts.tolist(), written
