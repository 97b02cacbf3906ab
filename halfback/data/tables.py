"""A table as all readers see it: texts under named columns, each row with the place that it stands in."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from halfback.errors import UserError

ENDS = re.compile(r"\r\n|\r|\n")  # of lines, as editors have them


@dataclass(frozen=True)
class NoText:
    """A cell that no text stands in; `kind` says what does, with its article."""

    kind: str


Cell = str | NoText | None
"""The text as it is written, None where it is missing."""


def row_of(number: int) -> str:
    """The place of a row of what has no lines."""
    return f"row {number + 1}"


@dataclass(frozen=True)
class Table:
    """Rows under named columns; `where` names the table in messages, `place` a row (from 0) within it.

    names: classes that the data declare for a column, in order. note: the end of a message about a column that is not
    there. skipped: how many rows were left out on request.
    """

    where: str
    size: int
    columns: Mapping[str, Sequence[Cell]]
    place: Callable[[int], str] = row_of
    names: Mapping[str, list[str]] = field(default_factory=dict)
    note: str = ""
    skipped: int = 0

    def take(self, rows: Sequence[int]) -> Table:
        """The table of these rows alone; each keeps its place."""
        columns = {name: [cells[row] for row in rows] for name, cells in self.columns.items()}
        return replace(self, size=len(rows), columns=columns, place=lambda row: self.place(rows[row]))


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


def listed(names: Iterable[str]) -> str:
    """Names of columns for a message, in quotes where they might be read wrongly without."""
    return ", ".join(name if re.fullmatch(r"\w(?:[\w .-]*\w)?", name) else repr(name) for name in names)


def numbered(unit: str, numbers: Sequence[int]) -> Callable[[int], str]:
    """The places of a table whose rows have these numbers."""
    return lambda row: f"{unit} {numbers[row]}"


def line_of(text: str, position: int) -> int:
    """The line, from 1, that the character at `position` stands in."""
    return 1 + sum(1 for _ in ENDS.finditer(text[:position]))
