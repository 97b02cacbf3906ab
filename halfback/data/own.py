"""Rows that somebody has in Python already (frames, data sets, lists) as what tasks are made of: tables and tensors."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from halfback.data.hub import cell, typed
from halfback.data.loaders import own_source
from halfback.data.options import TaskOptions
from halfback.data.sources import Source, column_of, labels_of
from halfback.data.tables import Table, listed, row_of
from halfback.errors import UserError

_INPUTS = ("text", "image", "pixel_values")  # what the input's column may be called where nobody says it
_FORMS = (
    "a datasets.Dataset, a torch Dataset with a length, a pandas DataFrame, a dict of columns, or a list of rows, each "
    "(input, label), a dict, or a text"
)


@dataclass(frozen=True)
class Data:
    """Rows of your own to train on and to validate on, as they are in Python already.

    Each is a `datasets.Dataset`, a `torch.utils.data.Dataset` with a length, a pandas DataFrame, a dict of columns, or
    a list of rows; a row is a pair (input, label) or a dict. An input is a text, or a tensor of floats with the same
    shape in every row, prepared as the model wants it: (C, H, W) of an image, (F,) of a table's features. A label is a
    class: a text or a whole number. Columns are called "text" (or "image", "pixel_values") and "label" unless the
    settings `task.text`, `task.pair`, `task.label` and `task.target` say otherwise.

    Attributes:
        train: the rows that clients share.
        valid: the rows to validate on; None holds back a tenth of `train`.
    """

    train: Any
    valid: Any = None


def own_sources(data: Data, options: TaskOptions) -> tuple[Source, Source | None]:
    """Both splits of somebody's own rows; None for validation rows that nobody gave.

    Raises:
        UserError: they are of no form that is known, a column is missing, or a row is not like the others.
    """
    train = _source(data.train, "the given training set", options)
    return train, None if data.valid is None else _source(data.valid, "the given validation set", options)


def _source(rows: Any, where: str, options: TaskOptions) -> Source:
    second = options.target or "target" if options.objective == "generation" else options.label or "label"
    table, inputs = table_of(rows, where, (options.text or _INPUTS[0], second))
    if not table.size:
        raise UserError(f"{where} is empty: it has no rows")
    name = options.text or next((name for name in _INPUTS if name in inputs), _INPUTS[0])
    if name.strip() in inputs and holds_arrays(inputs[name.strip()]):
        return _of_tensors(table, inputs[name.strip()], name, options)
    return own_source(table, replace(options, text=name))


def _of_tensors(table: Table, values: Sequence[Any], name: str, options: TaskOptions) -> Source:
    if options.objective != "classification":
        raise UserError(f"task.objective={options.objective!r} needs texts; {table.where} has tensors")
    if options.pair is not None:
        raise UserError(f"task.pair={options.pair!r} has no meaning for tensors, which {table.where} has")
    label = options.label or "label"
    labels, names = labels_of(replace(table, columns={label: column_of(table, label)}), label, None)
    images = stacked(table, values, name)
    return Source(
        where=table.where,
        size=table.size,
        labels=labels,
        names=names,
        images=lambda chosen, _how: images[torch.from_numpy(chosen)],
    )


def stacked(table: Table, values: Sequence[Any], name: str) -> Tensor:
    """The tensors of a column as one (rows, …) float32; UserError where they are no arrays, or not of one shape."""
    tensors = [_tensor(values[row], f"{row_of(row)}, column {name!r} of {table.where}") for row in range(table.size)]
    for row, tensor in enumerate(tensors):
        if tensor.shape != tensors[0].shape:
            raise UserError(
                f"{row_of(row)}, column {name!r} of {table.where} has shape {tuple(tensor.shape)}; that of the first "
                f"row, {tuple(tensors[0].shape)}, is allowed"
            )
    return torch.stack(tensors)


def table_of(rows: Any, where: str, pair: tuple[str, str]) -> tuple[Table, Mapping[str, Sequence[Any]]]:
    """The rows as texts under named columns, and the same columns as they came; `pair`: names of (input, label)."""
    if _is(rows, "datasets", "Dataset"):
        plain = rows.with_format(None)
        return typed(plain, where), {name.strip(): plain[name] for name in plain.column_names}
    columns = _columns(rows, where, pair)
    sizes = {name: len(column) for name, column in columns.items()}
    for name, size in sizes.items():
        if size != (most := next(iter(sizes.values()))):
            raise UserError(f"column {name!r} of {where} has {size} rows, the first column has {most}")
    return Table(where, next(iter(sizes.values()), 0), _Texts(columns)), columns


class _Texts(dict[str, Any]):
    """Columns made text when they are asked for: others may hold whatever they like."""

    def __getitem__(self, name: str) -> Any:
        return [cell(_plain(value)) for value in super().__getitem__(name)]


def _columns(rows: Any, where: str, pair: tuple[str, str]) -> dict[str, Sequence[Any]]:
    if _is(rows, "pandas", "DataFrame"):
        if not rows.columns.is_unique:
            raise UserError(f"{where} names a column twice")
        known = rows.astype(object).where(rows.notna(), None)
        return {str(name).strip(): known[name].tolist() for name in rows.columns}
    if isinstance(rows, Mapping):
        if bad := next((name for name, column in rows.items() if not _is_column(column)), None):
            raise UserError(
                f"{where} has {type(rows[bad]).__name__} for column {bad!r}; a list of its cells is allowed"
            )
        return {str(name).strip(): column for name, column in rows.items()}
    if isinstance(rows, str | bytes) or not (hasattr(rows, "__getitem__") and hasattr(rows, "__len__")):
        raise UserError(f"{where} is {type(rows).__name__}; {_FORMS} is allowed")
    return _of_rows([rows[number] for number in range(len(rows))], where, pair)


def _of_rows(rows: list[Any], where: str, pair: tuple[str, str]) -> dict[str, Any]:
    names = list(rows[0]) if rows and isinstance(rows[0], Mapping) else list(pair)
    if rows and isinstance(rows[0], str):
        names = names[:1]
    columns: dict[str, list[Any]] = {str(name).strip(): [] for name in names}
    for number, row in enumerate(rows):
        if isinstance(row, Mapping):
            if row.keys() != set(names):
                raise UserError(
                    f"{row_of(number)} of {where} has {listed(map(str, row))}; the first has {listed(names)}"
                )
            cells = [row[name] for name in names]
        else:
            cells = [row] if isinstance(row, str) else list(row) if isinstance(row, tuple | list) else []
        if len(cells) != len(names):
            raise UserError(
                f"{row_of(number)} of {where} is no row like the others, or none at all; {_FORMS} is allowed"
            )
        for column, value in zip(columns.values(), cells, strict=True):
            column.append(value)
    return columns


def _is(rows: Any, module: str, name: str) -> bool:
    """Whether this is such an object; who has one has imported its module."""
    kind = getattr(sys.modules.get(module), name, None)
    return kind is not None and isinstance(rows, kind)


def _is_column(column: Any) -> bool:
    return not isinstance(column, str | bytes) and hasattr(column, "__getitem__") and hasattr(column, "__len__")


def holds_arrays(column: Sequence[Any]) -> bool:
    """Whether a column's cells are arrays and no texts, by the first of them."""
    return not isinstance(column[0], str) and _is_array(column[0])


def _is_array(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return bool(value) and (isinstance(value[0], bool | int | float) or _is_array(value[0]))
    return isinstance(value, Tensor | np.ndarray)


def _plain(value: Any) -> Any:
    """A number out of what holds a single one."""
    return value.item() if isinstance(value, Tensor | np.ndarray | np.generic) and not value.ndim else value


def _tensor(value: Any, where: str) -> Tensor:
    """(…) float32; UserError for what is no array of finite numbers."""
    try:
        tensor = value.detach().cpu() if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
    except (TypeError, ValueError):  # of lists that are no array, and of arrays of anything
        raise UserError(f"{where} is no array of numbers") from None
    if tensor.is_complex() or not tensor.ndim:
        raise UserError(
            f"{where} is {tensor.dtype} of shape {tuple(tensor.shape)}; real numbers in a dimension or more are needed"
        )
    if not torch.isfinite(tensor := tensor.float()).all():
        raise UserError(f"{where} has a number that is not finite")
    return tensor
