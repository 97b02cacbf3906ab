"""A device's own rows: a file of texts, a folder of images, or an array of them, read, named and encoded.

Which file, and which of its columns are read, is said on the device (its command line, or the site's file), never by a
package or a server. What is wrong with a row is a `RowError`: it may quote the row, so it stays on this machine.
"""

import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from halfback_device.batches import Split
from halfback_device.facts import TOKENIZER
from halfback_device.files import CSV_SUFFIXES, JSON_SUFFIXES, read_table
from halfback_device.partition import own_share
from halfback_device.tables import SKIPS, Cell, NoText, RowError, Table, is_whole
from halfback_device.tokens import Encoder

# What a spreadsheet or pandas writes for "no value"; a class that is really called so has to be renamed.
_MISSING = {"", "NA", "N/A", "#N/A", "<NA>", "NaN", "nan", "None", "null", "NULL"}
# Only what has a point: 1e5 and 1_2 are codes, though Python would read numbers in them.
_FRACTION = re.compile(r"[+-]?(\d+\.\d*|\.\d+)([eE][+-]?\d+)?")

# Columns beside the text and its pair, by the task's objective; and what is said of files of texts alone.
_ALSO_READ = {"classification": ("label",), "causal_lm": (), "generation": ("target",)}
_OF_TEXTS = ("delimiter", "encoding", "skip_bad_rows")
_FOLDER = "a folder with a subfolder of images for each class"
_ARRAY = "a .npz of `images` and `labels`"


@dataclass(frozen=True)
class Rows:
    """Where a device's rows are, and what of them may be read.

    Attributes:
        path: a .csv, .json or .jsonl file (or .gz of one), a folder with a subfolder of images for each class, or a
            .npz with `images` (N, C, H, W) float32 as the model takes them and `labels` (N,).
        text, pair, label, target: columns of a file of texts: what the model reads, a second text, the class, and the
            text to generate. What isn't named isn't read.
        delimiter: of a CSV file, one character or "tab"; None finds out from the header.
        encoding: of a file without a byte order mark; None for UTF-8.
        skip_bad_rows: leaves out rows without label or text and rows of too few or too many fields.
        shared: every client of the run has these rows, and takes its share of them.
    """

    path: str
    text: str | None = None
    pair: str | None = None
    label: str | None = None
    target: str | None = None
    delimiter: str | None = None
    encoding: str | None = None
    skip_bad_rows: bool = False
    shared: bool = False


@dataclass(frozen=True)
class _Source:
    """What a file or a folder holds, before rows are chosen: `rest` makes a split of some rows, from their ids."""

    labels: np.ndarray
    inputs: Sequence[Any]
    rest: Callable[[np.ndarray, np.ndarray], Split]


def own_split(rows: Rows, manifest: Mapping[str, Any], folder: Path, client: int) -> Split:
    """A client's rows, encoded for its model.

    Args:
        rows: where they are.
        manifest: of the package; its `task` and its `config` are looked at.
        folder: of the package.
        client: the number of the client, which takes its own share of shared rows.

    Returns:
        The rows that it trains on, at least one.

    Raises:
        RowError: what is wrong with the file or a row.
        PackageError: what is wrong with how rows are to be encoded.
    """
    task = manifest["task"]
    source = _images(rows, task) if task["inputs"] == "images" else _texts(rows, task, folder)
    if rows.shared:
        chosen, ids = own_share(manifest["config"], client, source.labels, source.inputs)
    else:
        chosen = ids = np.arange(len(source.labels))
    return source.rest(chosen, ids)


def check_all_read(rows: Rows, manifest: Mapping[str, Any]) -> None:
    """Refuses to be told of what a package's runs don't read; a site's file may, since it is for other runs too.

    Raises:
        RowError: names the flag.
    """
    task = manifest["task"]
    read, why = set[str](), "are images"
    if task["inputs"] == "texts":
        read, why = {"text", *_ALSO_READ[task["objective"]], *_OF_TEXTS}, "have none"
        read |= {"pair"} if task["texts"]["pair"] else set()
    for name in ("text", "pair", "label", "target", *_OF_TEXTS):
        if name not in read and getattr(rows, name) not in (None, False):
            raise RowError(f"--{name.replace('_', '-')}: rows of this package's run {why}; leave it away")


def _texts(rows: Rows, task: Mapping[str, Any], folder: Path) -> _Source:
    how, objective, path = task["texts"], task["objective"], rows.path
    if not path.lower().endswith(CSV_SUFFIXES + JSON_SUFFIXES):
        raise RowError(f"{path!r}: the model reads texts, so a .csv, .json or .jsonl file is needed")
    wanted = {"text": rows.text, "pair": rows.pair if how["pair"] else None}
    wanted |= {name: getattr(rows, name) for name in _ALSO_READ[objective]}
    needed = [name for name in wanted if name != "pair" or how["pair"]]
    if missing := [name for name in needed if wanted[name] is None]:
        raise RowError(f"the run needs each row's {missing[0]}: name its column with --{missing[0]}")
    named = {name: column for name, column in wanted.items() if column is not None}
    if len({column.strip() for column in named.values()}) < len(named):
        raise RowError(f"a column is named for two things: {', '.join(f'--{n} {c!r}' for n, c in named.items())}")
    table = read_table(path, delimiter=rows.delimiter, encoding=rows.encoding, skip=rows.skip_bad_rows)
    table = Table(table.where, table.size, {name: table.column(column) for name, column in named.items()}, table.place)
    if rows.skip_bad_rows:
        table = _whole_rows(table)
    texts = _read_texts(table, "text", named["text"], may_be_blank=False)
    pairs = _read_texts(table, "pair", named["pair"], may_be_blank=True) if "pair" in named else None
    targets = _read_texts(table, "target", named["target"], may_be_blank=False) if "target" in named else None
    labels = np.zeros(table.size, dtype=np.int64)
    if "label" in named:
        labels = _numbers(_read_labels(table, named["label"]), task["label_names"], table.where, table.place)

    def rest(chosen: np.ndarray, ids: np.ndarray) -> Split:
        encoder = Encoder(folder / TOKENIZER, how)
        own, second, last = (
            [each[row] for row in chosen] if each is not None else None for each in (texts, pairs, targets)
        )
        assert own is not None
        if last is not None:
            tokens, unscored = encoder.continuations(own, second, last)
            return Split(labels[chosen], ids, tokens, unscored=unscored)
        tokens, types = encoder.rows(own, second)
        if objective != "causal_lm":
            return Split(labels[chosen], ids, tokens, types)
        if tokens.lengths.max() < 2:
            raise RowError("no text has a second token, so there is nothing to predict")
        return Split(labels[chosen], ids, tokens, types, np.ones(len(ids), dtype=np.int64))

    return _Source(labels, texts if pairs is None else list(zip(texts, pairs, strict=True)), rest)


def _images(rows: Rows, task: Mapping[str, Any]) -> _Source:
    how, path = task["images"], Path(rows.path).expanduser()
    if path.suffix.lower() == ".npz":
        return _array(rows.path, task)
    if how["channels"] != 3:
        raise RowError(f"the model takes images of {how['channels']} channel(s), so {_ARRAY} is needed")
    if path.is_file():
        raise RowError(f"{rows.path!r} is a file: the model takes images, so {_FOLDER}, or {_ARRAY}, is needed")
    if not rows.path or not path.is_dir():
        raise RowError(f"folder {rows.path!r} does not exist; {_FOLDER}, or {_ARRAY}, is needed")
    try:
        from halfback_device.pictures import decoded, image_files
    except ImportError:
        cure = "pip install 'halfback-device[images]', or './device[images]' in a checkout"
        raise RowError(f"images are read with Pillow, not installed here: {cure}") from None
    files, classes = image_files(rows.path)
    labels = _numbers(classes, task["label_names"], f"folder {rows.path!r}", lambda row: repr(str(files[row])))

    def rest(chosen: np.ndarray, ids: np.ndarray) -> Split:
        return Split(labels[chosen], ids, images=decoded([files[row] for row in chosen], how), image_form=how)

    return _Source(labels, range(len(files)), rest)


def _array(path: str, task: Mapping[str, Any]) -> _Source:
    """Images as the model takes them, in a file of NumPy's."""
    where = f"file {path!r}"
    try:
        with Path(path).expanduser().open("rb") as file:
            if not zipfile.is_zipfile(file):  # NumPy reads files of other kinds too, some of them as programs
                raise RowError(f"{where} is no .npz; {_ARRAY} is needed")
            file.seek(0)
            found = np.load(file, allow_pickle=False)
            if missing := [name for name in ("images", "labels") if name not in found]:
                raise RowError(f"{where} has no array {missing[0]!r}; {_ARRAY} is needed")
            images, names = np.asarray(found["images"]), np.asarray(found["labels"])
    except RowError:
        raise
    except Exception as error:  # bytes from anywhere: NumPy and zipfile raise whatever they stumble over
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise RowError(f"{where} cannot be read: {why}") from None
    shape = (task["images"]["channels"], *task["images"]["size"])
    if images.dtype != np.float32 or names.ndim != 1 or images.shape != (len(names), *shape) or not len(names):
        came = f"images {images.dtype} {images.shape} with labels {names.shape}"
        raise RowError(f"{where} has {came}; float32 (N, {', '.join(map(str, shape))}) with (N,) are needed")
    if not np.isfinite(images).all():
        raise RowError(f"{where} has a value that is not finite")
    labels = _numbers([str(name) for name in names], task["label_names"], where, lambda row: f"row {row + 1}")
    return _Source(labels, range(len(labels)), lambda chosen, ids: Split(labels[chosen], ids, images=images[chosen]))


def _numbers(labels: Sequence[str], names: Sequence[str], where: str, place: Callable[[int], str]) -> np.ndarray:
    """Class numbers (N,) int64 of labels; where no class is a whole number, a whole number is that of a class."""
    number = {name: index for index, name in enumerate(names)}
    if not any(map(is_whole, names)):
        number |= {str(index): index for index in range(len(names))}
    for row, label in enumerate(labels):
        if label not in number:
            raise RowError(f"label {label!r} in {place(row)} of {where} is no class of the run: {', '.join(names)}")
    return np.array([number[label] for label in labels], dtype=np.int64)


def _is_blank(cell: Cell) -> bool:
    return cell is None or (isinstance(cell, str) and not cell.strip())


def _whole_rows(table: Table) -> Table:
    columns = table.columns
    bad = {row for name in ("text", "target") for row, cell in enumerate(columns.get(name, ())) if _is_blank(cell)}
    bad |= {row for row, cell in enumerate(columns.get("pair", ())) if cell is None}
    bad |= {row for row, cell in enumerate(columns.get("label", ())) if _is_missing(cell)}
    if len(bad) == table.size:
        raise RowError(f"{table.where} has no whole row: --skip-bad-rows skips all {table.size}")
    return table.take([row for row in range(table.size) if row not in bad])


def _is_missing(cell: Cell) -> bool:
    return cell is None or (isinstance(cell, str) and cell.strip() in _MISSING)


def _read_texts(table: Table, name: str, column: str, *, may_be_blank: bool) -> list[str]:
    texts = []
    for row, cell in enumerate(table.columns[name]):
        if isinstance(cell, NoText):
            problem = f"{cell.kind} where a text belongs"
        elif cell is None or (not may_be_blank and _is_blank(cell)):
            problem = f"no text; {SKIPS}"
        else:
            texts.append(cell)
            continue
        raise RowError(f"{table.place(row)}, column {column!r} of {table.where} has {problem}")
    return texts


def _read_labels(table: Table, column: str) -> list[str]:
    """Labels without the blanks around them; RowError at the first that is missing, a fraction or no text."""
    found = []
    for row, cell in enumerate(table.columns["label"]):
        if cell is None or isinstance(cell, NoText) or _is_missing(cell) or _FRACTION.fullmatch(cell.strip()):
            problem = f"the label {cell!r}, which is no whole number or text"
            if isinstance(cell, NoText):
                problem = f"{cell.kind} where a label belongs"
            elif cell is None or not cell.strip():
                problem = f"no label; {SKIPS}"
            elif _is_missing(cell):
                problem = (
                    f"{cell!r}, which stands for no label; {SKIPS}, and a class that is called so needs another name"
                )
            raise RowError(f"{table.place(row)}, column {column!r} of {table.where} has {problem}")
        found.append(cell.strip())
    return found
