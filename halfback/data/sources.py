"""Rows as a file or a hub gives them: checked and named, but not yet chosen, decoded or tokenised."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from halfback.data.labels import check_alike, in_order, is_missing, is_whole, read_labels
from halfback.data.tables import Cell, NoText, Table, listed, row_of
from halfback.errors import RowError, UserError, first_line, of_extra

if TYPE_CHECKING:
    from PIL import Image

log = logging.getLogger(__name__)

_FEW_CLASSES = 20  # each may have one row alone; of more classes most should have several


@dataclass(frozen=True)
class Preparation:
    """How a model wants its images of three channels.

    process: from an RGB picture to its values (3, H, W) float32: the model's own preprocessor, None where it has none.
    size: of both sides, None where the model takes any.
    """

    process: Callable[[Image.Image], np.ndarray] | None = None
    size: int | None = None


@dataclass(frozen=True)
class Source:
    """One split before rows are chosen; `where` names it in messages, `place` a row (from 0) within it.

    `labels` are the originals as text, one a row (empty without classes), `targets` the texts to generate. `names`
    lists the classes in order where the data declare them, else they follow from the training labels. Images are
    decoded only for the rows that are asked for: `images(rows, how)` gives (n, C, H, W) float32, normalised. `skipped`
    rows were left out on request.
    """

    where: str
    size: int
    labels: list[str]
    names: list[str] | None = None
    texts: list[str] | None = None
    pairs: list[str] | None = None
    targets: list[str] | None = None
    images: Callable[[np.ndarray, Preparation], Tensor] | None = None
    place: Callable[[int], str] = row_of
    skipped: int = 0


@dataclass(frozen=True)
class Columns:
    """What a table's columns are for, by their names; None for what isn't read.

    text: what the model reads, after it `pair`, a second text. label: the class. target: the text to generate.
    """

    text: str
    pair: str | None = None
    label: str | None = None
    target: str | None = None


def nearest_first(name: str, allowed: Iterable[str]) -> str:
    """The allowed names for a message, the most alike first."""
    return ", ".join(ranked(name, allowed))


def ranked(name: str, allowed: Iterable[str]) -> list[str]:
    """The allowed names, the most alike first."""
    return sorted(allowed, key=lambda other: -difflib.SequenceMatcher(None, name.lower(), other.lower()).ratio())


def class_names(source: Source) -> list[str]:
    """The classes in order: as declared, else whole numbers by value, else by text.

    Raises:
        UserError: there are fewer than two, or two that would be one if they were written alike, or nearly as many as
            rows.
    """
    if source.names is None:
        check_alike(source.labels, source.place, where=source.where)
    names = source.names or in_order(set(source.labels))
    if len(names) < 2:
        raise UserError(f"{source.where} has one class only ({names[0]!r}); classification needs at least two")
    if len(names) > max(_FEW_CLASSES, source.size / 2):
        raise UserError(
            f"{source.where} has {len(names)} different labels in {source.size} rows: is task.label the column of "
            "classes?"
        )
    return names


def class_numbers(source: Source, names: Sequence[str]) -> np.ndarray:
    """Labels of `source` as int64 (N,) into `names`; UserError names the first label that training never saw."""
    number = {name: index for index, name in enumerate(names)}
    for row, label in enumerate(source.labels):
        if label not in number:
            raise UserError(
                f"label {label!r} in {source.place(row)} of {source.where} never occurs in training; "
                f"known: {nearest_first(label, names)}"
            )
    return np.array([number[label] for label in source.labels], dtype=np.int64)


def data_folder(name: str) -> Path | None:
    """Folder `name` of the local data: in HALFBACK_DATA if that is set, else ../shared/data; None where absent."""
    given = os.environ.get("HALFBACK_DATA")
    if given:
        if not Path(given).is_dir():
            raise UserError(f"HALFBACK_DATA names {given!r}, which is not a folder")
        roots = [Path(given)]
    else:
        roots = [Path("../shared/data"), Path(__file__).resolve().parents[2].parent / "shared" / "data"]
    return next((root / name for root in roots if (root / name).is_dir()), None)


def read_hub(
    name: str, *, advice: str = "", converted: str | None = None, load: Callable[..., Any] | None = None
) -> Any:
    """A datasets.DatasetDict of a hub data set "path", "path/config", "owner/path" or "owner/path/config".

    A name with one slash is tried as owner/path first, then as path/config. UserError if neither can be had.
    `converted` names the configuration of an "owner/path" whose own form is a script, which the datasets library no
    longer runs: the hub's conversion to Parquet is read. `load`: what is called in place of `datasets.load_dataset`.
    """
    with of_extra("hub"):
        import datasets

    path, _, config = name.rpartition("/")
    slashes = name.count("/")
    candidates: list[tuple[str, str | None]] = [(name, None)] if slashes < 2 else []
    if slashes and converted is None:
        candidates.append((path, config))
    form = {} if converted is None else {"revision": "refs/convert/parquet", "data_dir": converted}
    causes: list[Exception] = []
    for candidate in candidates:
        try:
            with quiet():
                return (load or datasets.load_dataset)(*candidate, **form)
        except (datasets.exceptions.DatasetNotFoundError, ConnectionError) as error:
            causes.append(error)
        except (datasets.exceptions.DatasetsError, OSError, ValueError, RuntimeError) as error:
            raise UserError(f"hub data set {name!r} cannot be read: {reason(error)}{advice}") from error
    raise UserError(f"hub data set {name!r} cannot be had: {reason(causes[0])}{advice}") from causes[0]


def text_source(table: Table, columns: Columns, *, names: Sequence[str] | None = None, skip: bool = False) -> Source:
    """The named columns of a table; `names` gives whole-number labels their names.

    `skip` leaves out rows that lack one of them, and says how many.

    Raises:
        UserError: a column is not there, a row lacks one of them, or something else than a text stands there.
    """
    text, pair, label, target = columns.text, columns.pair, columns.label, columns.target
    wanted = [column for column in (text, pair, label, target) if column is not None]
    table = replace(table, columns={column: column_of(table, column) for column in wanted})
    if skip:
        table, _ = whole_rows(table, [text] if target is None else [text, target], pair, label)
    labels, declared = ([], None) if label is None else labels_of(table, label, names)
    return Source(
        where=table.where,
        size=table.size,
        labels=labels,
        names=declared,
        texts=_read_texts(table, text, may_be_blank=False),
        pairs=None if pair is None else _read_texts(table, pair, may_be_blank=True),
        targets=None if target is None else _read_texts(table, target, may_be_blank=False),
        place=table.place,
        skipped=table.skipped,
    )


def labels_of(table: Table, label: str, names: Sequence[str] | None) -> tuple[list[str], list[str] | None]:
    """The labels in a column, and their classes in order where `names` or the table declare them.

    Raises:
        UserError: one is missing, is no class, or none of those that are declared.
    """
    declared = list(names) if names else table.names.get(label.strip())
    labels = read_labels(table.columns[label], table.place, column=label, where=table.where)
    if declared:
        labels = [_named(value, declared, row, label, table) for row, value in enumerate(labels)]
    return labels, declared


def column_of(table: Table, name: str) -> Sequence[Cell]:
    """The cells of a column; blanks around its name don't count. UserError where there is none of the name."""
    if name.strip() not in table.columns:
        has = listed(ranked(name.strip(), table.columns))
        # What it has may be a row, where a file has no header.
        raise RowError(f"{table.where} has no column {name!r}; it has {has}{table.note}")
    return table.columns[name.strip()]


def whole_rows(table: Table, texts: Sequence[str], pair: str | None, label: str | None) -> tuple[Table, list[int]]:
    """The rows that lack none of these columns, and which they are; how many are left out is logged.

    Raises:
        UserError: none is left.
    """
    bad = {row for column in texts for row, cell in enumerate(table.columns[column]) if is_blank(cell)}
    if pair is not None:
        bad |= {row for row, cell in enumerate(table.columns[pair]) if cell is None}
    if label is not None:
        bad |= {row for row, cell in enumerate(table.columns[label]) if is_missing(cell)}
    skipped, rows = len(bad) + table.skipped, table.size + table.skipped
    if len(bad) == table.size:
        raise UserError(f"{table.where} has no whole row: task.skip_bad_rows skips all {rows}")
    if skipped:
        log.info("%s: %d of %d rows are not whole and are skipped (task.skip_bad_rows)", table.where, skipped, rows)
    kept = [row for row in range(table.size) if row not in bad]
    return replace(table.take(kept), skipped=skipped), kept


def reason(error: BaseException) -> str:
    """The first line of what went wrong at the root (the datasets library wraps it)."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no chatter of the datasets library; what the process had set before comes back."""
    with of_extra("hub"):
        import datasets

    bars_off = datasets.utils.are_progress_bars_disabled()
    level = datasets.logging.get_verbosity()
    hub = logging.getLogger("huggingface_hub")  # it would tell of every retry
    hub_level = hub.level
    hub.setLevel(logging.ERROR)
    if not bars_off:
        datasets.utils.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        hub.setLevel(hub_level)
        if not bars_off:
            datasets.utils.enable_progress_bars()


def is_blank(cell: Cell) -> bool:
    """Whether a cell has no text that one could read."""
    return cell is None or (isinstance(cell, str) and not cell.strip())


def _read_texts(table: Table, column: str, *, may_be_blank: bool) -> list[str]:
    texts = []
    for row, cell in enumerate(table.columns[column]):
        if isinstance(cell, NoText):
            problem = f"has {cell.kind} where a text belongs{table.note}"
        elif cell is None or (not may_be_blank and is_blank(cell)):
            problem = "has no text; task.skip_bad_rows=true skips such rows"
        else:
            texts.append(cell)
            continue
        raise UserError(f"{table.place(row)}, column {column!r} of {table.where} {problem}")
    return texts


def _named(value: str, names: Sequence[str], row: int, column: str, table: Table) -> str:
    if value in names:
        return value
    if not is_whole(value) or not 0 <= int(value) < len(names):
        raise UserError(
            f"label {value!r} in {table.place(row)}, column {column!r} of {table.where} is not a number from 0 to "
            f"{len(names) - 1}"
        )
    return names[int(value)]
