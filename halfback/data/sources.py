"""Rows as a file or a hub gives them: checked and named, but not yet chosen, decoded or tokenised."""

from __future__ import annotations

import csv
import difflib
import glob
import gzip
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from halfback.errors import UserError

if TYPE_CHECKING:
    import datasets  # importing it takes seconds: the functions that need it import it
    from PIL import Image

CSV_SUFFIXES = (".csv", ".csv.gz")
JSON_SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
# What a spreadsheet or pandas writes for "no value"; a class that is really called so has to be renamed.
MISSING = {"", "NA", "N/A", "NaN", "nan", "None", "null", "NULL"}


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
    """One split before rows are chosen; `where` names it in messages.

    `labels` are the originals as text, one a row (empty without classes), `targets` the texts to generate. `names`
    lists the classes in order where the data declare them, else they follow from the training labels. Images are
    decoded only for the rows that are asked for: `images(rows, how)` gives (n, C, H, W) float32, normalised.
    """

    where: str
    size: int
    labels: list[str]
    names: list[str] | None = None
    texts: list[str] | None = None
    pairs: list[str] | None = None
    targets: list[str] | None = None
    images: Callable[[np.ndarray, Preparation], Tensor] | None = None


def nearest_first(name: str, allowed: Iterable[str]) -> str:
    """The allowed names for a message, the most alike first."""
    ranked = sorted(allowed, key=lambda other: -difflib.SequenceMatcher(None, name.lower(), other.lower()).ratio())
    return ", ".join(ranked)


def class_names(source: Source) -> list[str]:
    """The classes in order: as declared, else whole numbers by value, else by text. UserError if fewer than two."""
    found = set(source.labels)
    names = source.names or (sorted(found, key=int) if all(map(_is_whole, found)) else sorted(found))
    if len(names) < 2:
        raise UserError(f"{source.where} has one class only ({names[0]!r}); classification needs at least two")
    return names


def class_numbers(source: Source, names: Sequence[str]) -> np.ndarray:
    """Labels of `source` as int64 (N,) into `names`; UserError names the first label that training never saw."""
    number = {name: index for index, name in enumerate(names)}
    for row, label in enumerate(source.labels, start=1):
        if label not in number:
            raise UserError(
                f"label {label!r} in row {row} of {source.where} never occurs in training; "
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


def read_table(path: str) -> datasets.Dataset:
    """Rows of a .csv, .csv.gz, .json or .jsonl file; every CSV cell stays text. UserError if missing, bad or empty."""
    import datasets

    file = Path(path).expanduser()
    if not file.is_file():
        beside = [other.name for other in file.parent.iterdir()] if file.parent.is_dir() else []
        alike = difflib.get_close_matches(file.name, beside, n=3)
        hint = f"; the folder has {', '.join(alike)}" if alike else ""
        raise UserError(f"file {path!r} does not exist or is not a file{hint}")
    lower = file.name.lower()
    if not lower.endswith(CSV_SUFFIXES + JSON_SUFFIXES):
        raise UserError(f"file {path!r} has an unknown ending; allowed: {', '.join(CSV_SUFFIXES + JSON_SUFFIXES)}")
    options: dict[str, Any] = {}
    try:
        if lower.endswith(CSV_SUFFIXES):
            # All columns as text: pandas would guess a type for each chunk, read "007" as 7 and "None" as missing.
            columns = _csv_header(file, path)
            options["features"] = datasets.Features({column: datasets.Value("string") for column in columns})
            options["keep_default_na"] = False
        else:
            with _opened(file) as stream:
                if not stream.read(1):
                    raise UserError(f"file {path!r} is empty")
        kind = "csv" if lower.endswith(CSV_SUFFIXES) else "json"
        with quiet():
            table = datasets.load_dataset(kind, data_files=_literal(file), split="train", **options)
    except (datasets.exceptions.DatasetsError, OSError, ValueError, csv.Error) as error:
        raise UserError(f"file {path!r} cannot be read: {_reason(error)}") from error
    if not len(table):
        raise UserError(f"file {path!r} is empty: it has no rows")
    return table


def read_hub(name: str, *, advice: str = "", converted: str | None = None) -> datasets.DatasetDict:
    """Splits of a hub data set "path", "path/config", "owner/path" or "owner/path/config".

    A name with one slash is tried as owner/path first, then as path/config. UserError if neither can be had.
    `converted` names the configuration of an "owner/path" whose own form is a script, which the datasets library no
    longer runs: the hub's conversion to Parquet is read.
    """
    import datasets

    if Path(name).is_dir():
        return _read_folder(name)
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
                return datasets.load_dataset(*candidate, **form)
        except (datasets.exceptions.DatasetNotFoundError, ConnectionError) as error:
            causes.append(error)
        except (datasets.exceptions.DatasetsError, OSError, ValueError, RuntimeError) as error:
            raise UserError(f"hub data set {name!r} cannot be read: {_reason(error)}{advice}") from error
    raise UserError(f"hub data set {name!r} cannot be had: {_reason(causes[0])}{advice}") from causes[0]


def _read_folder(name: str) -> datasets.DatasetDict:
    """A folder that `save_to_disk` wrote, or one that `load_dataset` understands (data files, a dataset card)."""
    import datasets

    try:
        with quiet():
            if any((Path(name) / file).exists() for file in ("dataset_dict.json", "state.json")):
                found = datasets.load_from_disk(name)
                return found if isinstance(found, datasets.DatasetDict) else datasets.DatasetDict(train=found)
            return datasets.load_dataset(name)
    except (datasets.exceptions.DatasetsError, OSError, ValueError, RuntimeError) as error:
        raise UserError(f"data set folder {name!r} cannot be read: {_reason(error)}") from error


def text_source(
    table: datasets.Dataset,
    where: str,
    *,
    text: str,
    pair: str | None,
    label: str | None,
    target: str | None = None,
    names: Sequence[str] | None = None,
) -> Source:
    """The named columns of a table. `label` None leaves labels out; `names` gives whole-number labels their names."""
    for column in (text, pair, label, target):
        if column is not None and column not in table.column_names:
            raise UserError(f"{where} has no column {column!r}; it has {nearest_first(column, table.column_names)}")
    declared = list(names) if names else None
    labels: list[str] = []
    if label is not None:
        values = list(table[label])
        declared = declared or getattr(table.features[label], "names", None)
        labels = read_labels(values, column=label, where=where)
        if declared:
            labels = [_named(value, declared, row, label, where) for row, value in enumerate(labels, start=1)]
    return Source(
        where=where,
        size=len(table),
        labels=labels,
        names=declared,
        texts=_read_texts(table[text], text, where, may_be_blank=False),
        pairs=None if pair is None else _read_texts(table[pair], pair, where, may_be_blank=True),
        targets=None if target is None else _read_texts(table[target], target, where, may_be_blank=False),
    )


def read_labels(values: Sequence[Any], *, column: str, where: str) -> list[str]:
    """Labels as text; UserError at the first that is missing or a fraction (a class is a whole number or a text)."""
    labels = []
    for row, value in enumerate(values, start=1):
        text = str(value).strip()
        if value is None or text in MISSING:
            problem = "is missing"
        elif isinstance(value, float) or (isinstance(value, str) and _is_fraction(text)):
            problem = "is not a whole number or a text"
        elif not isinstance(value, bool | int | str | np.integer):
            problem = f"is a {type(value).__name__}, not a whole number or a text"
        else:
            labels.append(text)
            continue
        raise UserError(f"label {value!r} in row {row}, column {column!r} of {where} {problem}")
    return labels


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no chatter of the datasets library; what the process had set before comes back."""
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


def _read_texts(values: Sequence[Any], column: str, where: str, *, may_be_blank: bool) -> list[str]:
    texts = []
    for row, value in enumerate(values, start=1):
        if value is None or (not may_be_blank and not str(value).strip()):
            raise UserError(f"row {row}, column {column!r} of {where} has no text")
        texts.append(str(value))
    return texts


def _named(value: str, names: Sequence[str], row: int, column: str, where: str) -> str:
    if value in names:
        return value
    if not _is_whole(value) or not 0 <= int(value) < len(names):
        raise UserError(
            f"label {value!r} in row {row}, column {column!r} of {where} is not a number from 0 to {len(names) - 1}"
        )
    return names[int(value)]


def _is_whole(text: str) -> bool:
    return re.fullmatch(r"[+-]?\d+", text) is not None


def _is_fraction(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return not _is_whole(text)


def _opened(file: Path) -> Any:
    if file.name.lower().endswith(".gz"):
        return gzip.open(file, "rt", encoding="utf-8-sig", newline="")
    return file.open(encoding="utf-8-sig", newline="")


def _csv_header(file: Path, path: str) -> list[str]:
    with _opened(file) as stream:
        rows = csv.reader(stream)
        header = next(rows, None)
        first = next(rows, None)
    if not header:
        raise UserError(f"file {path!r} is empty")
    if len(set(header)) < len(header):
        raise UserError(f"file {path!r} names a column twice in its header: {', '.join(header)}")
    if first is None:
        raise UserError(f"file {path!r} is empty: it has no rows")
    # pandas would take the extra field for an index and shift every column without a word.
    if len(first) > len(header):
        raise UserError(f"file {path!r} has {len(first)} fields in its first row but {len(header)} in its header")
    return header


def _literal(file: Path) -> str:
    """The file's absolute path with the glob characters escaped, as the datasets library expects patterns."""
    return glob.escape(str(file.resolve()))


def _reason(error: BaseException) -> str:
    """The first line of what went wrong at the root (the datasets library wraps it)."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
