"""A table as all readers see it: texts under named columns, each row with the place that it stands in."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from halfback_device.errors import DeviceError

ENDS = re.compile(r"\r\n|\r|\n")  # of lines, as editors have them
SKIPS = "--skip-bad-rows skips such rows"  # a site's file says it too, as it does all that the flags of `infer` say


class RowError(DeviceError):
    """A row, or a file of rows, is wrong. The message may quote it: it is for whoever has the rows, and for no peer."""


@dataclass(frozen=True)
class NoText:
    """A cell that no text stands in; `kind` says what does, with its article."""

    kind: str


Cell = str | NoText | None
"""The text as it is written, None where it is missing."""


@dataclass(frozen=True)
class Table:
    """Rows under named columns; `where` names the table in messages, `place` a row (from 0) within it."""

    where: str
    size: int
    columns: Mapping[str, Sequence[Cell]]
    place: Callable[[int], str]

    def column(self, name: str) -> Sequence[Cell]:
        """The cells of a column; blanks around its name don't count. RowError where there is none of the name."""
        if name.strip() not in self.columns:
            raise RowError(f"{self.where} has no column {name!r}; it has {', '.join(map(repr, self.columns))}")
        return self.columns[name.strip()]

    def take(self, rows: Sequence[int]) -> "Table":
        """The table of these rows alone; each keeps its place."""
        columns = {name: [cells[row] for row in rows] for name, cells in self.columns.items()}
        return Table(self.where, len(rows), columns, lambda row: self.place(rows[row]))


def line_of(text: str, position: int) -> int:
    """The line, from 1, that the character at `position` stands in."""
    return 1 + sum(1 for _ in ENDS.finditer(text[:position]))


def is_whole(text: str) -> bool:
    """Whether a text is a whole number."""
    return re.fullmatch(r"[+-]?\d{1,999}", text) is not None
