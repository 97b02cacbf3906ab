"""From a task's options to its sources: named sets of texts, the user's files and folders, the hub."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from halfback.data import images
from halfback.data.sources import Source, data_folder, nearest_first, read_hub, read_table, text_source
from halfback.errors import UserError

if TYPE_CHECKING:
    import datasets

    from halfback.data.tasks import TaskOptions


def text_files(
    folder: str,
    hub: str | None,
    *,
    text: str,
    pair: str | None = None,
    hub_columns: dict[str, str] | None = None,
    names: list[str],
    train_file: str = "train",
    reshape: Callable[[datasets.Dataset], datasets.Dataset] | None = None,
) -> Callable[[TaskOptions], tuple[Source, Source]]:
    """Loader of a named text task: the local folder's training file and validation.csv.gz, else the hub's splits.

    `hub_columns` renames the hub's columns to those of the local files; `reshape` makes the columns that are read.
    """

    def load(options: TaskOptions) -> tuple[Source, Source]:
        local = data_folder(folder)
        if local is not None:
            files = {"train": train_file, "validation": "validation"}
            tables = {part: read_table(str(local / f"{file}.csv.gz")) for part, file in files.items()}
        else:
            advice = f"give a folder with {folder}/{train_file}.csv.gz and validation.csv.gz in HALFBACK_DATA"
            if hub is None:
                raise UserError(f"the data of task {options.name!r} are not here and not on the hub; {advice}")
            tables = read_hub(hub, advice=f"; or {advice}").rename_columns(hub_columns or {})
        if reshape is not None:
            tables = {part: reshape(table) for part, table in tables.items()}
        label = _label(options)
        train, validation = (
            text_source(tables[part], f"{options.name} {part}", text=text, pair=pair, label=label, names=names)
            for part in ("train", "validation")
        )
        return train, validation

    return load


def csv(options: TaskOptions) -> tuple[Source, Source | None]:
    """The user's own tables; no validation where `task.validation` names none."""

    def source(path: str) -> Source:
        return _own_source(read_table(path), f"file {path!r}", options)

    assert options.train is not None  # load_task has checked it
    return source(options.train), None if options.validation is None else source(options.validation)


def hub(options: TaskOptions) -> tuple[Source, Source | None]:
    """A data set of the hub; its split "validation" serves unless `task.validation` names another."""
    assert options.train is not None  # load_task has checked it
    splits = read_hub(options.train)

    def source(part: str) -> Source:
        if part not in splits:
            have = nearest_first(part, splits)
            raise UserError(f"hub data set {options.train!r} has no split {part!r}; it has {have}")
        return _own_source(splits[part], f"split {part!r} of {options.train!r}", options)

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


def _own_source(table: datasets.Dataset, where: str, options: TaskOptions) -> Source:
    target = (options.target or "target") if options.objective == "generation" else None
    return text_source(
        table, where, text=options.text or "text", pair=options.pair, label=_label(options), target=target
    )


def _label(options: TaskOptions) -> str | None:
    return options.label or "label" if options.objective == "classification" else None
