"""From plain values to a page: the templates, and the parts that they take. One file, no script, nothing fetched."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from halfback.errors import UserError
from halfback.report.tables import short_size

_TEMPLATES = Path(__file__).parent / "templates"
_UNIT = re.compile(r"(?<=\d) (?=%|[kMGT]?B\b|s\b|×)")  # what stands before a unit
_NAMED = 6  # parts of a bar that have a name, beside "other"


@dataclass(frozen=True)
class Tile:
    """One large figure: what it is, its value, and what stands beside it."""

    name: str
    value: str
    beside: str = ""


@dataclass(frozen=True)
class Table:
    """A table whose first column names its rows; on a narrow screen each row is a card.

    Attributes:
        name: what it shows.
        header: of the columns; the first may be empty.
        body: as many cells in each row.
        words: how many of the columns, from the left, are words and not numbers.
        meanings: of the rows, one a row, or none.
        columns: what the columns say, as (name, meaning).
        note: a sentence below it.
    """

    name: str
    header: Sequence[str]
    body: Sequence[Sequence[str]]
    words: int = 1
    meanings: Sequence[str] = ()
    columns: Sequence[tuple[str, str]] = ()
    note: str = ""


@dataclass(frozen=True)
class Bars:
    """Horizontal bars of bytes, each made of the same few parts."""

    title: str
    caption: str
    parts: list[dict[str, Any]] = field(default_factory=list)
    bars: list[dict[str, Any]] = field(default_factory=list)


def bars(
    title: str, caption: str, stacks: Mapping[str, Mapping[str, float]], meanings: Mapping[str, str] | None = None
) -> Bars:
    """Bars by name, each of bytes by part; beyond the largest six parts the rest is "other"."""
    totals: dict[str, float] = {}
    for stack in stacks.values():
        for part, size in stack.items():
            totals[part] = totals.get(part, 0) + size
    named = [*totals] if len(totals) <= _NAMED + 1 else sorted(totals, key=lambda part: -totals[part])[:_NAMED]
    orders = {part: order for order, part in enumerate(named)}
    made = Bars(title, caption)
    meant = {"other": "all that is smaller"} | dict(meanings or {})
    rest = len(named)
    made.parts.extend({"name": part, "order": order, "meaning": meant.get(part, "")} for part, order in orders.items())
    if len(named) < len(totals):
        made.parts.append({"name": "other", "order": rest, "meaning": meant["other"]})
    longest = max((sum(stack.values()) for stack in stacks.values()), default=0) or 1
    for name, stack in stacks.items():
        total = sum(stack.values())
        shown: dict[int, list[Any]] = {}
        for part, size in stack.items():
            order = orders.get(part, rest)
            kept = shown.setdefault(order, [part if part in orders else "other", 0.0])
            kept[1] += size
        pieces = [
            {"order": order, "told": f"{part}: {short_size(size)}", "share": round(size / total, 5)}
            for order, (part, size) in sorted(shown.items())
            if size
        ]
        told = f"{name}: {short_size(total)}" + (
            f", of it {', '.join(piece['told'] for piece in pieces)}" if len(made.parts) > 1 and pieces else ""
        )
        share = round(total / longest, 4)
        made.bars.append({"name": name, "total": short_size(total), "share": share, "pieces": pieces, "told": told})
    return made


def write_page(template: str, values: Mapping[str, Any], out: Path) -> Path:
    """Writes the page that a template makes of values; returns its path.

    Raises:
        UserError: `out` cannot be written.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # no run needs it before its page

    # Every value is escaped: names of runs and algorithms are whatever somebody wrote.
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["unbroken"] = lambda said: _UNIT.sub("\N{NO-BREAK SPACE}", said)
    text = environment.get_template(template).render(values)
    out = Path(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.exists() and not out.is_file():  # a pipe would never end
            raise UserError(f"{out} cannot be written: it is not a file")
        if out.is_symlink():  # in a folder that came from elsewhere: what it leads to is not ours to overwrite
            out.unlink()
        out.write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}") from None
    return out
