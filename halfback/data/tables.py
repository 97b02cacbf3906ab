"""Tables as they are written: one view of CSV and JSON files for all that reads rows, without a guess at any type.

Read anew every time: a copy kept by name and time stamp would outlive the file's content.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from halfback.errors import UserError

CSV_SUFFIXES = (".csv", ".csv.gz")
JSON_SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
_DELIMITERS = (",", ";", "\t", "|")  # that are looked for in a header; any other has to be named
_BOMS = {  # in this order, since one begins with another
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_HEAD = 1 << 20  # characters that the header is looked for in, without a copy of the whole file
_ENDS = re.compile(r"\r\n|\r|\n")  # of lines, as editors have them
_BLANKS = re.compile(r"[ \t\r\n]*")
_HALF = re.compile(r"\\u[dD][89a-fA-F]")  # what may be half of a pair, which is no character
_SKIPS = "task.skip_bad_rows=true skips such rows"


@dataclass(frozen=True)
class NoText:
    """A cell that no text stands in; `kind` says what does, with its article."""

    kind: str


Cell = str | NoText | None
"""The text as it is written, None where it is missing."""


@dataclass(frozen=True)
class Table:
    """Rows under named columns; `where` names the table in messages, `place` a row (from 0) within it.

    names: classes that the data declare for a column, in order. note: the end of a message about a column that is not
    there. skipped: how many rows were left out on request.
    """

    where: str
    size: int
    columns: Mapping[str, Sequence[Cell]]
    place: Callable[[int], str]
    names: Mapping[str, list[str]] = field(default_factory=dict)
    note: str = ""
    skipped: int = 0

    def take(self, rows: Sequence[int]) -> Table:
        """The table of these rows alone; each keeps its place."""
        columns = {name: [cells[row] for row in rows] for name, cells in self.columns.items()}
        return replace(self, size=len(rows), columns=columns, place=lambda row: self.place(rows[row]))


def read_table(
    path: str, *, delimiter: str | None = None, encoding: str | None = None, skip: bool = False, kind: str | None = None
) -> Table:
    """The rows of a .csv, .json or .jsonl file, or of one compressed with gzip.

    A cell of a CSV file is its text. In JSON a text stays as it is, a number as it is spelt, true and false are "True"
    and "False", null and NaN are missing. `delimiter` None finds out from the header, `encoding` None means UTF-8, or
    what the file's byte order mark says. `skip` leaves out rows with too few or too many fields. `kind`: "csv" or
    "json", whatever the file's name ends in.

    Raises:
        UserError: the file is missing, unreadable or without rows, or an option is no delimiter or encoding; names the
            line where there is one.
    """
    where = f"file {path!r}"
    file = Path(path).expanduser()
    if not file.is_file():
        beside = [other.name for other in file.parent.iterdir()] if file.parent.is_dir() else []
        alike = difflib.get_close_matches(file.name, beside, n=3)
        hint = f"; the folder has {', '.join(alike)}" if alike and not file.is_dir() else ""
        raise UserError(f"{where} does not exist or is not a file{hint}")
    lower = file.name.lower()
    if kind is None and not lower.endswith(CSV_SUFFIXES + JSON_SUFFIXES):
        raise UserError(f"{where} has an unknown ending; allowed: {', '.join(CSV_SUFFIXES + JSON_SUFFIXES)}")
    delimiter = _checked(delimiter)
    text = _decoded(_bytes(file, where), where, encoding)
    if not text.strip():
        raise UserError(f"{where} is empty")
    is_csv = lower.endswith(CSV_SUFFIXES) if kind is None else kind == "csv"
    table = _read_csv(text, where, delimiter, skip) if is_csv else _read_json(text, where)
    if not table.size:
        raise UserError(f"{where} is empty: it has no rows")
    return table


def joined(tables: Sequence[Table], files: Sequence[str], where: str) -> Table:
    """The rows of several files one after another; UserError where one lacks a column of the first."""
    first = tables[0]
    for table in tables:
        if lacking := [column for column in first.columns if column not in table.columns]:
            raise UserError(f"{table.where} has no column {lacking[0]!r}, which {first.where} has")
    starts = [(number, row) for number, table in enumerate(tables) for row in range(table.size)]

    def place(row: int) -> str:
        number, inside = starts[row]
        return f"{tables[number].place(inside)} of {files[number]!r}"

    columns = {name: [cell for table in tables for cell in table.columns[name]] for name in first.columns}
    skipped = sum(table.skipped for table in tables)
    return replace(first, where=where, size=len(starts), columns=columns, place=place, skipped=skipped)


def shown(names: Iterable[str]) -> str:
    """Names of columns for a message, in quotes where they might be read wrongly without."""
    return ", ".join(name if re.fullmatch(r"\w(?:[\w .-]*\w)?", name) else repr(name) for name in names)


def _checked(delimiter: str | None) -> str | None:
    if delimiter is None:
        return None
    found = "\t" if delimiter in ("tab", "\\t") else delimiter
    if len(found) != 1 or found in '"\r\n':
        raise UserError(f"task.delimiter={delimiter!r}: one character is allowed, such as ';', or tab")
    return found


def _bytes(file: Path, where: str) -> bytes:
    try:
        found = file.read_bytes()
        is_compressed = file.name.lower().endswith(".gz") or found.startswith(b"\x1f\x8b")
        return gzip.decompress(found) if is_compressed and found else found
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{where} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _decoded(found: bytes, where: str, encoding: str | None) -> str:
    marked = next((name for mark, name in _BOMS.items() if found.startswith(mark)), None)
    name = encoding or marked or "utf-8"
    try:
        b"".decode(name)
    except (LookupError, ValueError):
        allowed = "utf-8, utf-16, cp1252 and latin-1 are among those allowed"
        raise UserError(f"task.encoding={encoding!r} is no encoding; {allowed}") from None
    try:
        text = found.decode(name).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = _line(found[: error.start].decode(name, "replace"), error.start)
        cure = "name its encoding, such as task.encoding='cp1252'" if encoding is None else "another is needed"
        byte = found[error.start : error.start + 1].hex()
        raise UserError(f"{where} cannot be read: byte 0x{byte} in line {line} is no {name!r}; {cure}") from None
    if "\0" in text:
        line = _line(text, text.index("\0"))
        raise UserError(
            f"{where} cannot be read: line {line} has a zero byte, so it is no text in {name!r}; name its encoding, "
            "such as task.encoding='utf-16-le'"
        )
    return text


def _line(text: str, position: int) -> int:
    """The line, from 1, that the character at `position` stands in."""
    return 1 + sum(1 for _ in _ENDS.finditer(text[:position]))


def _numbered(unit: str, numbers: Sequence[int]) -> Callable[[int], str]:
    return lambda row: f"{unit} {numbers[row]}"


def _read_csv(text: str, where: str, delimiter: str | None, skip: bool) -> Table:
    limit = csv.field_size_limit(2**31 - 1)
    try:
        found = delimiter or _delimiter(text)
        return _csv_table(text, where, found, skip)
    finally:
        csv.field_size_limit(limit)


def _delimiter(text: str) -> str:
    """The comma where the header has one, else what splits it into most."""
    fields = {each: len(_header(text, each)) for each in _DELIMITERS}
    return "," if fields[","] > 1 else max(_DELIMITERS, key=fields.__getitem__)


def _header(text: str, delimiter: str) -> list[str]:
    head = io.StringIO(text[:_HEAD], newline="")
    return next((row for row in csv.reader(head, delimiter=delimiter) if _is_row(row)), [])


def _is_row(fields: list[str]) -> bool:
    """A line of blanks alone is none."""
    return len(fields) > 1 or any(cell.strip() for cell in fields)


def _csv_table(text: str, where: str, delimiter: str, skip: bool) -> Table:
    names = _header(text, delimiter)
    after_blanks = len(names) > 1 and all(name.startswith(" ") for name in names[1:])
    rows = _csv_rows(text, where, delimiter, after_blanks)
    _, header = next(rows, (1, []))
    names = [name.strip() for name in header]
    while names and not names[-1]:  # of a delimiter at the end of each line
        names.pop()
    named = [name for name in names if name]
    if len(set(named)) < len(named):
        raise UserError(f"{where} names a column twice in its header: {', '.join(map(repr, names))}")
    if not named:
        raise UserError(f"{where} has no names of columns in its header")
    kept: list[list[str]] = []
    lines: list[int] = []
    skipped = 0
    for line, row in rows:
        if len(row) == len(names) or (len(row) > len(names) and not any(cell.strip() for cell in row[len(names) :])):
            kept.append(row)
            lines.append(line)
        elif skip:
            skipped += 1
        else:
            raise UserError(
                f"{where}, line {line}: {len(row)} fields, but the header has {len(names)}; a text with {delimiter!r} "
                f"in it needs quotes ({_SKIPS})"
            )
    columns = {name: [row[place] for row in kept] for place, name in enumerate(names) if name}
    others = [other for other in _DELIMITERS if other != delimiter and any(other in name for name in named)]
    note = f" (split at {delimiter!r}; task.delimiter={others[0]!r} would split at another)" if others else ""
    return Table(where, len(kept), columns, _numbered("line", lines), note=note, skipped=skipped)


def _csv_rows(text: str, where: str, delimiter: str, after_blanks: bool) -> Iterator[tuple[int, list[str]]]:
    """Each row with the line that it begins in, the header first; UserError for quotes that are no CSV."""
    lines = io.StringIO(text, newline="")
    reader = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=after_blanks)
    before = 0
    try:
        for row in reader:
            if _is_row(row):
                yield before + 1, row
            before = reader.line_num
    except csv.Error as error:
        start, line = before + 1, reader.line_num
        if "end of data" in str(error):
            raise UserError(f"{where}, line {start}: a quote opens here that nothing closes") from None
        begun = f" (the row begins in line {start})" if start < line else ""
        raise UserError(
            f"{where}, line {line}: text behind a closing quote{begun}; a quote in a quoted cell is written twice"
        ) from None


def _read_json(text: str, where: str) -> Table:
    rows: list[dict[str, Any]] = []
    starts: list[int] = []
    for start, row in _objects(text, where):
        if not isinstance(row, dict):
            raise UserError(f"{where}, line {_line(text, start)}: {_kind(row)} in place of an object; {_EXPECTED}")
        rows.append(row)
        starts.append(start)
    strict = _HALF.search(text) is not None
    columns: dict[str, list[Cell]] = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        if name.strip() in columns:
            raise UserError(f"{where} names a column twice: {name.strip()!r}")
        columns[name.strip()] = [_cell(row.get(name), strict) for row in rows]
    lines = _lines(text, starts)
    unit = "line" if len(set(lines)) == len(lines) else "row"
    place = _numbered(unit, lines if unit == "line" else range(1, len(rows) + 1))
    nested = len(rows) == 1 and any(isinstance(value, list | dict) for value in rows[0].values())
    return Table(where, len(rows), columns, place, note=f"; {_EXPECTED}" if nested else "")


_EXPECTED = "a file of rows is a list of objects, or an object in each line"


def _lines(text: str, starts: Sequence[int]) -> list[int]:
    """The lines of ascending positions."""
    found, line, before = [], 1, 0
    for start in starts:
        line += sum(1 for _ in _ENDS.finditer(text, before, start))
        found.append(line)
        before = start
    return found


def _objects(text: str, where: str) -> Iterator[tuple[int, Any]]:
    """The values of a list, or one value after another, with the position at which each begins."""
    decoder = json.JSONDecoder(
        object_pairs_hook=_object, parse_int=str, parse_float=str, parse_constant=_constant, strict=True
    )
    at = _behind_blanks(text, 0)
    is_list = text[at] == "["
    at, start = (_behind_blanks(text, at + 1) if is_list else at), at
    try:
        if is_list and text[at : at + 1] == "]":
            at += 1
        else:
            while at < len(text) or is_list:
                start = at
                value, at = decoder.raw_decode(text, at)
                yield start, value
                at = _behind_blanks(text, at)
                if is_list:
                    if text[at : at + 1] not in (",", "]"):
                        raise json.JSONDecodeError("Expecting ',' or ']'", text, at)
                    at += 1
                    if text[at - 1] == "]":
                        break
                    at = _behind_blanks(text, at)
        if _behind_blanks(text, at) < len(text):
            raise json.JSONDecodeError("Extra data", text, at)
    except json.JSONDecodeError as error:
        line, first = _line(text, error.pos), _line(text, start)
        begun = f" (the row begins in line {first})" if first < line else ""
        raise UserError(f"{where} cannot be read: line {line} is no JSON: {error.msg}{begun}") from None
    except _Twice as error:
        raise UserError(f"{where}, line {_line(text, start)}: an object names {error.args[0]!r} twice") from None
    except RecursionError:
        raise UserError(f"{where} cannot be read: line {_line(text, start)} is nested too deep") from None


def _behind_blanks(text: str, at: int) -> int:
    match = _BLANKS.match(text, at)
    return match.end() if match else at


class _Twice(Exception):
    """A key that an object has twice."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise _Twice(next(name for name in names if names.count(name) > 1))
    return found


def _constant(name: str) -> str | None:
    return None if name == "NaN" else name


def _cell(value: Any, strict: bool) -> Cell:
    if isinstance(value, list | dict):
        return NoText(_kind(value))
    if strict and isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return NoText("half of a surrogate pair")
    return value if value is None or isinstance(value, str) else str(value)


def _kind(value: Any) -> str:
    return {list: "a list", dict: "an object", type(None): "null", bool: "a truth value"}.get(type(value), "a value")
