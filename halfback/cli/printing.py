"""What the commands print, and how they read a recipe with settings."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rich import get_console
from rich.table import Table

from halfback.errors import UserError, offer, one_line

if TYPE_CHECKING:
    from halfback.runs.opening import Which
    from halfback.runs.summary import Summary

console = get_console()
if not console.is_terminal:  # a pipe or a file has no width that a table must fit into
    console.width = 200


def recipe_and_settings(given: list[str]) -> tuple[str | None, list[str]]:
    """The recipe, if there is one before the settings, and the settings."""
    named = bool(given) and "=" not in given[0]
    return (given[0], given[1:]) if named else (None, given)


def parsed(settings: list[str]) -> dict[str, Any]:
    """Each setting's value by its path; of one that is given twice the last counts."""
    from halfback.config import parse_override

    return dict(parse_override(setting) for setting in settings)


def checkpoint_of(name: str) -> "Which":
    """Which checkpoint of a run an option names."""
    if name not in ("last", "best"):
        raise UserError(f"--checkpoint {name}: {offer(name, ('last', 'best'))}")
    return cast("Which", name)


def print_rows(rows: list[tuple[str, str]]) -> None:
    """A name and a line each."""
    width = max(len(name) for name, _ in rows)
    for name, line in rows:
        print(f"{name:<{width}}  {line}")


def print_closing(summaries: "Sequence[Summary]", folder: Path) -> None:
    """The table of what runs came to, what that means, and where their page is."""
    from halfback.report.page import verdict_of
    from halfback.report.tables import rows

    found = [summary.to_dict() for summary in summaries]
    print_table(*rows(found))
    print()
    for sentence in verdict_of(found).sentences:
        console.print(one_line(sentence), highlight=False, markup=False)
    console.print(f"report: {folder / 'report.html'}", soft_wrap=True, markup=False)


def print_table(header: Sequence[str], body: Iterable[Sequence[str]]) -> None:
    """Columns of numbers behind one of names."""
    table = Table(*map(one_line, header), box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify, column.overflow = "right", "fold"
    for row in body:
        table.add_row(*map(one_line, row))
    console.print(table, markup=False)
