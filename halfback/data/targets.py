"""Generation tasks: an input and the text to write for it (E2E, WebNLG, DART); rows of one input are references."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from halfback.data.files import read_table
from halfback.data.sources import Columns, Source, column_of, data_folder, is_blank, read_hub, text_source
from halfback.data.tables import Table
from halfback.errors import UserError

if TYPE_CHECKING:
    import datasets

    from halfback.data.options import TaskOptions

Pairs = Iterator[tuple[str, str]]  # input and target


def check_options(options: TaskOptions) -> None:
    """UserError for options of generation that are out of range, or that the task's objective has no use for."""
    unused = ("label", "verbaliser") if options.objective == "generation" else ("target", "generated_rows")
    for field in unused:
        if getattr(options, field):
            raise UserError(
                f"task.{field}={getattr(options, field)!r} has no meaning for task.objective={options.objective}"
            )
    for field, least in (("generated_rows", 0), ("beams", 1), ("max_new_tokens", 1)):
        if getattr(options, field) < least:
            raise UserError(f"task.{field}={getattr(options, field)} must be at least {least}")


def first_rows(source: Source, numbers: np.ndarray) -> np.ndarray:
    """(N,) for each of the rows `numbers` the first of them that has the same input (text and pair)."""
    assert source.texts is not None
    pairs = source.pairs or [""] * source.size
    first: dict[tuple[str, str], int] = {}
    return np.array([first.setdefault((source.texts[row], pairs[row]), row) for row in numbers], dtype=np.int64)


def references(source: Source, numbers: np.ndarray, pool: np.ndarray) -> list[list[str]]:
    """For each of the rows `numbers` the targets of all rows in `pool` that have its input."""
    assert source.targets is not None
    found: dict[int, list[str]] = {}
    first = dict(zip(pool.tolist(), first_rows(source, pool).tolist(), strict=True))
    for row in pool.tolist():
        found.setdefault(first[row], []).append(source.targets[row])
    return [found[first[row]] for row in numbers.tolist()]


def e2e() -> tuple[Source, Source]:
    """Restaurants described by slots; the E2E challenge's training and validation rows."""
    return _load("e2e", "tuetschek/e2e_nlg", "default", _e2e_pairs)


def webnlg() -> tuple[Source, Source]:
    """DBpedia triples; the WebNLG challenge 2017's training and validation rows."""
    return _load("webnlg", "web-nlg-org/web_nlg", "webnlg_challenge_2017", _webnlg_pairs)


def dart() -> tuple[Source, Source]:
    """Triples of several sources. A local folder without a training file trains on validation and validates on test."""
    return _load("dart", "Yale-LILY/dart", "default", _dart_pairs, without_train=("validation", "test"))


def _load(
    name: str,
    hub: str,
    config: str,
    pairs: Callable[[Any], Pairs],
    *,
    without_train: tuple[str, str] = ("train", "validation"),
) -> tuple[Source, Source]:
    """The local folder's files, columns input and target, else the hub's rows as `pairs` reads them off an entry."""
    local = data_folder(name)
    parts = ("train", "validation")
    if local is not None:
        parts = parts if _file(local, "train").exists() else without_train
        tables = {part: read_table(str(_file(local, part))) for part in parts}
    else:
        advice = f"; or give a folder with {name}/train.csv.gz and validation.csv.gz in HALFBACK_DATA"
        splits = read_hub(hub, converted=config, advice=advice)
        tables = {part: _flat(splits[part], pairs, f"{name} {part}") for part in parts}
    columns = Columns("input", target="target")
    train, validation = (text_source(_with_target(tables[part]), columns) for part in parts)
    return train, validation


def _file(folder: Path, part: str) -> Path:
    return folder / f"{part}.csv.gz"


def _with_target(table: Table) -> Table:
    """The rows that have a target: DART's test data have one that has none."""
    return table.take([row for row, target in enumerate(column_of(table, "target")) if not is_blank(target)])


def _flat(entries: datasets.Dataset, pairs: Callable[[Any], Pairs], where: str) -> Table:
    """One row for every text that an entry has."""
    rows = [pair for entry in entries for pair in pairs(entry)]
    columns = {"input": [row[0] for row in rows], "target": [row[1] for row in rows]}
    return Table(where, len(rows), columns)


def _e2e_pairs(entry: Any) -> Pairs:
    yield entry["meaning_representation"], entry["human_reference"]


def _webnlg_pairs(entry: Any) -> Pairs:
    triples = entry["modified_triple_sets"]["mtriple_set"][0]
    for text in entry["lex"]["text"]:
        yield _triples([triple.split(" | ") for triple in triples]), text


def _dart_pairs(entry: Any) -> Pairs:
    for text in entry["annotations"]["text"]:
        yield _triples(entry["tripleset"]), text


def _triples(triples: list[list[str]]) -> str:
    """As the local files have them: "subject : predicate : object | subject : predicate : object"."""
    return " | ".join(" : ".join(triple) for triple in triples)
