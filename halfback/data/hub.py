"""Data sets of the hub, and folders that are laid out like one, as tables without a guess at any type."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from halfback.data.files import read_table
from halfback.data.sources import quiet, read_hub, reason
from halfback.data.tables import Cell, NoText, Table, joined
from halfback.errors import UserError, of_extra

if TYPE_CHECKING:
    import datasets

_TEXT_FILES = ("csv", "json")  # what the datasets library would guess types for
_OF_CARDS = ("sep", "delimiter", "names", "column_names", "encoding", "features")  # what a card may say of them


def read_splits(
    name: str, *, delimiter: str | None = None, encoding: str | None = None, skip: bool = False
) -> Mapping[str, Callable[[], Table]]:
    """The splits of a folder or of a hub data set, each read when it is called.

    CSV and JSON files are read as `read_table` does, with its options. What has types (Parquet, Arrow, a folder that
    `save_to_disk` wrote) becomes text as Python writes it: True, 1.5, 2020-01-31, 2020-01-31 12:00:00.

    Raises:
        UserError: it can't be had, or its card asks for another way of reading than is known here.
    """
    with of_extra("hub"):
        import datasets

    options = {"delimiter": delimiter, "encoding": encoding, "skip": skip}
    folder = Path(name).expanduser()
    if not folder.is_dir():
        found = read_hub(name)
        if not any(split.info.builder_name in _TEXT_FILES for split in found.values()):
            return _typed_splits(found, name)
        return _files(read_hub(name, load=datasets.load_dataset_builder), name, options)
    try:
        with quiet():
            if any((folder / file).exists() for file in ("dataset_dict.json", "state.json")):
                saved = datasets.load_from_disk(str(folder))
                return _typed_splits(saved if isinstance(saved, datasets.DatasetDict) else {"train": saved}, name)
            # The whole path, since a folder may have the name of one of the library's own readers.
            builder = datasets.load_dataset_builder(str(folder.resolve()))
    except Exception as error:  # files from anywhere: the library raises whatever it stumbles over
        raise UserError(f"data set folder {name!r} cannot be read: {reason(error)}") from error
    if builder.name in _TEXT_FILES:
        return _files(builder, name, options)
    return {str(part): partial(_streamed, builder, str(part), name) for part in builder.config.data_files or {}}


def typed(dataset: datasets.Dataset, where: str) -> Table:
    """A data set that has types as a table of texts."""
    columns = [column.strip() for column in dataset.column_names]
    if twice := next((column for column in columns if columns.count(column) > 1), None):
        raise UserError(f"{where} names a column twice: {twice!r}")
    names = {column.strip(): kind.names for column, kind in dataset.features.items() if hasattr(kind, "names")}
    return Table(where, len(dataset), _Columns(dataset), names=names)


@final
class _Columns(Mapping[str, Sequence[Cell]]):
    """The columns of a data set, each made text when it is asked for: others may hold images."""

    def __init__(self, dataset: datasets.Dataset) -> None:
        self._dataset = dataset
        self._names = {name.strip(): name for name in dataset.column_names}

    def __getitem__(self, name: str) -> Sequence[Cell]:
        return [cell(value) for value in self._dataset[self._names[name]]]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def cell(value: Any) -> Cell:
    """A value that has a type as the text that Python writes for it; None where there is none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float | decimal.Decimal | datetime.date | datetime.time):
        return str(value)
    kinds = {"list": "a list", "dict": "an object", "bytes": "bytes"}
    return NoText(kinds.get(type(value).__name__, f"a {type(value).__name__}"))


def _typed_splits(splits: Mapping[str, datasets.Dataset], name: str) -> Mapping[str, Callable[[], Table]]:
    return {str(part): partial(typed, split, _where(str(part), name)) for part, split in splits.items()}


def _where(part: str, name: str) -> str:
    return f"split {part!r} of {name!r}"


def _files(builder: Any, name: str, options: Mapping[str, Any]) -> Mapping[str, Callable[[], Table]]:
    import datasets

    config, plain = builder.config, type(builder.config)(name=builder.config.name)
    known = {field.name for field in dataclasses.fields(datasets.BuilderConfig)} | {*_OF_CARDS}
    for field in dataclasses.fields(config):
        if field.name not in known and getattr(config, field.name) != getattr(plain, field.name):
            raise UserError(
                f"data set {name!r}: its card sets {field.name}={getattr(config, field.name)!r}, which is not "
                "supported; give its files to task.name=csv"
            )
    said = dict(options)
    if builder.name == "csv":
        said["header"] = config.names
        if config.sep != plain.sep or config.names:
            said["delimiter"] = said["delimiter"] or config.sep
    said["encoding"] = said["encoding"] or (config.encoding if config.encoding != plain.encoding else None)
    features = builder.info.features or {}
    names = {column.strip(): kind.names for column, kind in features.items() if hasattr(kind, "names")}
    return {
        str(part): partial(_joined_files, list(files), _where(str(part), name), builder.name, said, names)
        for part, files in config.data_files.items()
    }


def _joined_files(
    files: Sequence[str], where: str, kind: str, options: Mapping[str, Any], names: Mapping[str, list[str]]
) -> Table:
    import datasets

    with quiet():  # what is on the hub is fetched, what is here stays where it is
        paths = datasets.DownloadManager().download(list(files))
    tables = [read_table(str(path), kind=kind, **options) for path in paths]
    table = tables[0] if len(tables) == 1 else joined(tables, [Path(file).name for file in files], where)
    return dataclasses.replace(table, names=names)


def _streamed(builder: Any, part: str, name: str) -> Table:
    """Rows read without the library's copies, which it keeps by name and time stamp."""
    import datasets

    where = _where(part, name)
    try:
        with quiet():
            stream = builder.as_streaming_dataset(split=part)
            info = datasets.DatasetInfo(features=stream.features)
            batches = stream.with_format("arrow").iter(batch_size=1000)
            pieces = [datasets.Dataset(rows, info=info) for rows in batches]
            if not pieces:
                raise UserError(f"{where} is empty: it has no rows")
            found = datasets.concatenate_datasets(pieces)
    except UserError:
        raise
    except Exception as error:  # as above
        raise UserError(f"{where} cannot be read: {reason(error)}") from error
    return typed(found, where)
