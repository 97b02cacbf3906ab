"""CSV and JSON texts to tables, without a guess at any type; errors name the line that an editor shows.

A cell of a CSV file is its text. In JSON a text stays as it is, a number as it is spelt, true and false are "True" and
"False", null and NaN are missing. These are the reference's rules (halfback/data/parsing.py): a file means the same
there.
"""

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from halfback_device.tables import ENDS, SKIPS, Cell, NoText, RowError, Table, is_whole, line_of

_DELIMITERS = (",", ";", "\t", "|")  # that are looked for in a header; any other has to be named
_HEAD = 1 << 20  # characters that the header is looked for in, without a copy of the whole file
_BLANKS = re.compile(r"[ \t\r\n]*")
_HALF = re.compile(r"\\u[dD][89a-fA-F]")  # what may be half of a pair, which is no character
_SAID = re.compile(r"(?i)\"?sep=([^\w\s\"]|\t)\1*\"?[ \t]*(?=[\r\n])")  # the first line of what Excel writes and reads
_RULE = re.compile(r"\s*(:?-+:?\s*)?")  # of a cell in the line below the header of a Markdown table


def read_csv(text: str, where: str, delimiter: str | None, skip: bool) -> Table:
    """The rows of a CSV file's text, which is not blank; options and errors as `files.read_table` has them."""
    if said := _SAID.match(text):
        delimiter, text = delimiter or said[1], text[said.end() :]  # a blank line stays, so lines keep their numbers
    limit = csv.field_size_limit(2**31 - 1)
    try:
        return _csv_table(text, where, delimiter or _delimiter(text), skip)
    finally:
        csv.field_size_limit(limit)


def _delimiter(text: str) -> str:
    """The comma where the header has one, else what splits it into most."""
    fields = {each: len(_header(text, each)) for each in _DELIMITERS}
    return "," if fields[","] > 1 else max(_DELIMITERS, key=fields.__getitem__)


def _header(text: str, delimiter: str) -> list[str]:
    head = io.StringIO(text[:_HEAD], newline="")
    try:
        return next((row for row in csv.reader(head, delimiter=delimiter, strict=True) if _is_row(row)), [])
    except csv.Error:  # a delimiter that isn't the file's may stand between quotes that are none then
        return []


def _is_row(fields: list[str]) -> bool:
    """A line of blanks alone is none."""
    return len(fields) > 1 or any(cell.strip() for cell in fields)


def _csv_table(text: str, where: str, delimiter: str, skip: bool) -> Table:
    found = _header(text, delimiter)
    rows = _csv_rows(text, where, delimiter, len(found) > 1 and all(name.startswith(" ") for name in found[1:]))
    names = [name.strip() for name in next(rows, (1, []))[1]]
    while names and not names[-1]:  # of a delimiter at the end of each line
        names.pop()
    named = [name for name in names if name]
    if len(set(named)) < len(named):
        raise RowError(f"{where} names a column twice in its header: {', '.join(map(repr, names))}")
    if not named:
        raise RowError(f"{where} has no names of columns in its header")
    kept: list[list[str]] = []
    lines: list[int] = []
    skipped = 0
    for line, row in rows:
        if delimiter == "|" and not kept and all(map(_RULE.fullmatch, row)):
            continue
        if len(row) == len(names) or (len(row) > len(names) and not any(cell.strip() for cell in row[len(names) :])):
            kept.append(row)
            lines.append(line)
        elif skip:
            skipped += 1
        else:
            fields = f"{len(row)} field{'s' * (len(row) != 1)}, but the header has {len(names)}"
            split = f"split at {delimiter!r}; --delimiter names another character"
            raise RowError(f"{where}, line {line}: {fields} ({split}); {SKIPS}")
    if skipped and not kept:
        raise RowError(f"{where} has no whole row: --skip-bad-rows skips all {skipped}")
    _check_long_cells(kept, lines, where, delimiter, len(names))
    columns = {name: [row[place] for row in kept] for place, name in enumerate(names) if name}
    return Table(where, len(kept), columns, lambda row: f"line {lines[row]}")


def _check_long_cells(rows: Sequence[list[str]], lines: Sequence[int], where: str, delimiter: str, width: int) -> None:
    """Refuses a cell of several lines that are rows themselves: two stray quotes make one that is CSV all the same."""
    long = {number for number, row in enumerate(rows) if any("\n" in cell or "\r" in cell for cell in row)}
    if not long or width < 2:
        return
    others = [row for number, row in enumerate(rows) if number not in long]
    known = [{row[place] for row in others} for place in range(width)]
    numeric = [bool(values) and all(map(is_whole, values)) for values in known]
    for number in long:
        row = rows[number][:width]
        for place, cell in enumerate(row):
            pieces = [piece.split(delimiter) for piece in ENDS.split(cell)]
            inside = [row[:place] + pieces[0], *pieces[1:-1], pieces[-1] + row[place + 1 :]]
            is_prose = any(part.startswith(" ") for piece in pieces for part in piece[1:])  # a blank behind its commas
            is_table = not (pieces[0][0] and pieces[-1][-1])  # that begins or ends with the end of a line
            # All of them with the header's number of fields,
            if len(pieces) == 1 or is_prose or is_table or any(len(each) != width for each in inside):
                continue
            columns = list(zip(*inside, strict=True))
            # with numbers where the others have nothing else,
            if any(must and not all(map(is_whole, column)) for must, column in zip(numeric, columns, strict=True)):
                continue
            # and in one column with values that other rows have, or that this one has, or with an index's numbers.
            around = [rows[other][:width] for other in (number - 1, number + 1) if 0 <= other < len(rows)]
            if any(
                all(value in known[column] or value == row[column] for value in values)
                or (numeric[column] and _ascends(values, [each[column] for each in around], first=number == 0))
                for column, values in enumerate(columns)
            ):
                raise RowError(
                    f"{where}, line {lines[number]}: a quoted cell of {len(pieces)} lines which look like rows "
                    "themselves; a quote is missing or stray (a file of JSON lines can have such a text)"
                )


def _ascends(values: Sequence[str], around: list[str], *, first: bool) -> bool:
    """Whether these are an index's next numbers, between those of the rows around them."""
    before, after = ([], around) if first else (around[:1], around[1:])
    numbers = [*before, *values, *after]
    return all(map(is_whole, numbers)) and all(int(one) < int(next_) for one, next_ in pairwise(numbers))


def _csv_rows(text: str, where: str, delimiter: str, after_blanks: bool) -> Iterator[tuple[int, list[str]]]:
    """Each row with the line that it begins in, the header first; RowError for quotes that are no CSV."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=after_blanks)
    before = 0
    try:
        for row in reader:
            if _is_row(row):
                yield before + 1, row
            before = reader.line_num
    except csv.Error as error:
        if "end of data" in str(error):
            raise RowError(f"{where}, line {before + 1}: a quote opens here that nothing closes") from None
        begun = f" (the row begins in line {before + 1})" if before + 1 < reader.line_num else ""
        raise RowError(
            f"{where}, line {reader.line_num}: text behind a closing quote{begun}; a quote in a quoted cell is written "
            "twice"
        ) from None


def read_json(text: str, where: str, *, one_a_line: bool) -> Table:
    """The rows of a JSON file's text, which is not blank: the objects of a list, or one after another.

    `one_a_line`: where it is no list, each line is parsed alone, so that a row which breaks off ends with its line.
    """
    rows: list[dict[str, Any]] = []
    starts: list[int] = []
    for start, row in _objects(text, where, one_a_line):
        if not isinstance(row, dict):
            raise RowError(f"{where}, line {line_of(text, start)}: no object; a file of rows is a list of objects")
        rows.append(row)
        starts.append(start)
    if rows and not any(rows):
        raise RowError(f"{where} has empty objects alone")
    if len(rows) == 1 and all(isinstance(value, list | dict) for value in rows[0].values()):
        raise RowError(f"{where} is one object of lists or objects; a file of rows has an object in each line")
    strict = _HALF.search(text) is not None
    columns: dict[str, list[Cell]] = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        if name.strip() in columns:
            raise RowError(f"{where} names a column twice: {name.strip()!r}")
        columns[name.strip()] = [_cell(row.get(name), strict) for row in rows]
    lines = _lines(text, starts)
    apart = len(set(lines)) == len(lines)
    return Table(where, len(rows), columns, lambda row: f"line {lines[row]}" if apart else f"row {row + 1}")


def _lines(text: str, starts: Sequence[int]) -> list[int]:
    """The lines of ascending positions."""
    found, line, before = [], 1, 0
    for start in starts:
        line += sum(1 for _ in ENDS.finditer(text, before, start))
        found.append(line)
        before = start
    return found


def _objects(text: str, where: str, one_a_line: bool) -> Iterator[tuple[int, Any]]:
    """The values of a list, or one value after another, with the position at which each begins."""
    decoder = json.JSONDecoder(object_pairs_hook=_object, parse_int=str, parse_float=str, parse_constant=_constant)
    at = start = _behind_blanks(text, 0)
    is_list = text[at] == "["
    if is_list:
        at = _behind_blanks(text, at + 1)
    try:
        if one_a_line and not is_list:
            for start, written in _each_line(text):
                yield start, decoder.decode(written)
            return
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
        at = _behind_blanks(text, at)
        if at < len(text):
            raise json.JSONDecodeError("Extra data", text, at)
    except json.JSONDecodeError as error:
        first = line_of(text, start)
        line = first if one_a_line and not is_list else line_of(text, error.pos)  # there the position is the line's own
        begun = f" (the row begins in line {first})" if first < line else ""
        raise RowError(f"{where} cannot be read: line {line} is no JSON: {error.msg}{begun}") from None
    except _Twice as error:
        raise RowError(f"{where}, line {line_of(text, start)}: an object names {error.args[0]!r} twice") from None
    except RecursionError:
        raise RowError(f"{where} cannot be read: line {line_of(text, start)} is nested too deep") from None


def _each_line(text: str) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, each with the position at which it begins."""
    start = 0
    for end in (*(match.span() for match in ENDS.finditer(text)), (len(text), len(text))):
        if not _BLANKS.fullmatch(text, start, end[0]):
            yield start, text[start : end[0]]
        start = end[1]


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
        return NoText("a list" if isinstance(value, list) else "an object")
    if strict and isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return NoText("half of a surrogate pair")
    return value if value is None or isinstance(value, str) else str(value)
