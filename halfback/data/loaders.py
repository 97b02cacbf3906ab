"""From a task's options to its sources: named sets of texts, the user's files and folders, the hub."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from halfback.data import images
from halfback.data.files import read_table
from halfback.data.hub import read_splits, typed
from halfback.data.sources import Columns, Source, data_folder, nearest_first, read_hub, text_source
from halfback.data.tables import Table
from halfback.errors import UserError

if TYPE_CHECKING:
    from halfback.data.options import TaskOptions


@dataclass(frozen=True)
class OnHub:
    """A data set of the Hugging Face hub, and its columns that have another name here: name there → name here."""

    name: str
    renamed: dict[str, str]


def text_files(
    folder: str,
    hub: OnHub | None,
    columns: Columns,
    *,
    names: list[str],
    train_file: str = "train",
    reshape: Callable[[Table], Table] | None = None,
) -> Callable[[TaskOptions], tuple[Source, Source]]:
    """Loader of a named text task: the local folder's training file and validation.csv.gz, else the hub's splits.

    `reshape` makes the columns that are read; the label's is the one that the options name.
    """

    def load(options: TaskOptions) -> tuple[Source, Source]:
        local = data_folder(folder)
        files = {"train": train_file, "validation": "validation"}
        if local is not None:
            tables = {part: read_table(str(local / f"{file}.csv.gz")) for part, file in files.items()}
        else:
            advice = f"give a folder with {folder}/{train_file}.csv.gz and validation.csv.gz in HALFBACK_DATA"
            if hub is None:
                raise UserError(f"the data of task {options.name!r} are not here and not on the hub; {advice}")
            splits = read_hub(hub.name, advice=f"; or {advice}").rename_columns(hub.renamed)
            tables = {part: typed(splits[part], f"{options.name} {part}") for part in files}
        if reshape is not None:
            tables = {part: reshape(table) for part, table in tables.items()}
        labelled = replace(columns, label=_label(options))
        train, validation = (text_source(tables[part], labelled, names=names) for part in files)
        return train, validation

    return load


def csv(options: TaskOptions) -> tuple[Source, Source | None]:
    """The user's own tables; no validation where `task.validation` names none."""

    def source(path: str) -> Source:
        return own_source(read_table(path, **_reading(options)), options)

    assert options.train is not None  # load_task has checked it
    return source(options.train), None if options.validation is None else source(options.validation)


def hub(options: TaskOptions) -> tuple[Source, Source | None]:
    """A data set of the hub; its split "validation" serves unless `task.validation` names another."""
    assert options.train is not None  # load_task has checked it
    splits = read_splits(options.train, **_reading(options))

    def source(part: str) -> Source:
        if part not in splits:
            have = nearest_first(part, splits)
            raise UserError(f"hub data set {options.train!r} has no split {part!r}; it has {have}")
        return own_source(splits[part](), options)

    part = options.validation or ("validation" if "validation" in splits else None)
    return source("train"), None if part is None else source(part)


def image_folders(options: TaskOptions) -> tuple[Source, Source | None]:
    """The user's own folders of images."""
    if options.image_size is not None and options.image_size < 1:
        raise UserError(f"task.image_size={options.image_size} must be at least 1")
    assert options.train is not None  # load_task has checked it
    train = images.image_folder(options.train, size=options.image_size)
    validation = options.validation
    return train, None if validation is None else images.image_folder(validation, size=options.image_size)


def _reading(options: TaskOptions) -> dict[str, Any]:
    return {"delimiter": options.delimiter, "encoding": options.encoding, "skip": options.skip_bad_rows}


def own_source(table: Table, options: TaskOptions) -> Source:
    """The columns of somebody's own table that the options name; UserError where one is named twice or isn't there."""
    text, label = options.text or "text", _label(options)
    target = (options.target or "target") if options.objective == "generation" else None
    fed = {column.strip() for column in (text, options.pair) if column is not None}
    for option, column in (("label", label), ("target", target)):
        if column is not None and column.strip() in fed:
            raise UserError(f"task.{option}={column!r} is also what the model reads (task.text, task.pair)")
    return text_source(table, Columns(text, options.pair, label, target), skip=options.skip_bad_rows)


def _label(options: TaskOptions) -> str | None:
    return options.label or "label" if options.objective == "classification" else None
