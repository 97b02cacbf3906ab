"""One self-contained page for a comparison: its verdict, mean curves, what was bought with what, and its tables."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from halfback.report import charts
from halfback.report.charts import Axes, Chart, Line, Text
from halfback.report.comparison import methods_of, metric_in, verdict_of
from halfback.report.comparison_tables import (
    COST,
    REACHED,
    TARGET,
    TITLES,
    bytes_table,
    columns,
    notes,
    title_of,
    tuning_table,
)
from halfback.report.page import ROLES
from halfback.report.rendering import Bars, Table, bars, write_page
from halfback.report.tables import NOTHING, measured, seconds, short_size
from halfback.report.verdict import Metric, tiles

_METHODS = 6  # beside each other in a table, so that it fits the page
_BANDS = 5  # more of them can't be told apart
_WHOLES: Text = "{:,.0f}".format


def write_comparison(comparison: Mapping[str, Any], out: Path) -> Path:
    """Write the page of what `compare.json` holds; return its path.

    Raises:
        UserError: `out` cannot be written.
    """
    first, metric = comparison["parts"][0], metric_in(comparison)
    tuning = None
    if comparison["tuning"]:
        note = f"{metric.name} on the rows held back."
        tuning = Table("Tuning", *tuning_table(comparison), words=2, note=note)
    values = {
        "title": title_of(comparison),
        "command": comparison["command"],
        "seeds": len(comparison["seeds"]),
        "verdict": verdict_of(first, comparison),
        "tiles": tiles(methods_of(first), metric),
        "parts": [_part(part, comparison) for part in comparison["parts"]],
        "tuning": tuning,
        "notes": notes(comparison),
        "cells": _cells(comparison),
        "versions": ", ".join(f"{name} {version}" for name, version in comparison["versions"].items()),
    }
    return write_page("comparison.html", values, out)


def _part(part: Mapping[str, Any], comparison: Mapping[str, Any]) -> dict[str, Any]:
    labels, made = list(part["methods"]), columns(part, comparison)
    tables = []
    for name in (REACHED, COST, TARGET):
        shown = [column for column in made if column.table == name]
        body = [[label, *(column.cells[place] for column in shown)] for place, label in enumerate(labels)]
        if shown:
            meanings = [(column.name, column.meaning) for column in shown]
            note = comparison["target"]["said"] if name == TARGET else ""
            head = ["algorithm", *(column.name for column in shown)]
            tables.append(Table(name, head, body, columns=meanings, note=note))
    return {
        "title": TITLES[part["equal"]],
        "names": labels,
        "drawn": _charts(part, metric_in(comparison)),
        "tables": tables,
        "sent": _sent(part),
        "kinds": _kinds(part),
    }


def _charts(part: Mapping[str, Any], metric: Metric) -> list[Chart]:
    name = metric.name
    curves: list[tuple[str, str, Callable[[Mapping[str, Any]], float | None], Text]] = [
        ("steps", "steps", lambda record: record["step"], _WHOLES),
        ("bytes", "bytes, up and down", lambda record: record["up_bytes"] + record["down_bytes"], short_size),
        ("forward passes", "client forward passes", lambda record: record["forward_passes"], _WHOLES),
        ("seconds on the fleet", "seconds on the fleet", lambda record: record.get("simulated_seconds"), seconds),
    ]
    found = []
    for what, x_label, at, x_text in curves:
        lines = [
            line
            for order, (label, method) in enumerate(part["methods"].items())
            if (line := _mean_curve(label, order, method["cells"], at))
        ]
        if lines:
            banded = len(lines) <= _BANDS and any(line.low for line in lines)
            lines = lines if banded else [replace(line, low=(), high=()) for line in lines]
            caption = "Mean over the seeds" + ("; the band runs from the least to the largest seed." if banded else ".")
            title = f"{name[:1].upper()}{name[1:]} by {what}"
            found.append(charts.curves(lines, Axes(x_label, name, x_text, metric.tick), title, caption))
    costs: list[tuple[str, Callable[[Mapping[str, Any]], float | None], Text]] = [
        ("bytes, up and down", lambda row: row["up_bytes"] + row["down_bytes"], short_size),
        ("client peak memory", lambda row: measured(row["client_peak_bytes"]), short_size),
        ("wall seconds", lambda row: row["wall_seconds"], seconds),
        ("seconds on the fleet", lambda row: row.get("simulated_seconds"), seconds),
    ]
    for x_label, cost, x_text in costs:
        ends = [
            (label, order, spent, row["final"]["mean"])
            for order, (label, row) in enumerate(part["methods"].items())
            if row["final"] is not None and (spent := cost(row)) is not None
        ]
        if ends:
            best = undominated([end[1:] for end in ends], rises=metric.rises)
            ringed = {place for place, (_, order, _, _) in enumerate(ends) if order in best}
            caption = "Ringed: no other is both as good and as cheap, and better in one."
            title = f"Final {name} for its {x_label}"
            axes = Axes(x_label, f"final {name}", x_text, metric.tick)
            found.append(charts.points(ends, ringed, axes, title, caption))
    return found


def _mean_curve(
    label: str, order: int, cells: Sequence[Mapping[str, Any]], at: Callable[[Mapping[str, Any]], float | None]
) -> Line | None:
    """Mean over the seeds that finished, at each evaluation, with their range; None where none did."""
    done = [cell["curve"] for cell in cells if cell["status"] == "finished"]
    rows = [
        (statistics.fmean(places), [record["metric"] for record in row])
        for row in zip(*done, strict=False)
        if all(record["metric"] is not None for record in row)
        and len(places := [x for record in row if (x := at(record)) is not None]) == len(row)
    ]
    if not rows:
        return None
    across, values = [x for x, _ in rows], [found for _, found in rows]
    means = [statistics.fmean(found) for found in values]
    if len(done) < 2:
        return Line(label, order, across, means)
    return Line(label, order, across, means, low=[*map(min, values)], high=[*map(max, values)])


def undominated(ends: Sequence[tuple[int, float, float]], *, rises: bool) -> set[int]:
    """The orders of those (order, cost, metric) of which no other is as cheap and as good, and better in one."""
    signed = [(order, x, y if rises else -y) for order, x, y in ends]
    return {order for order, x, y in signed if not any(u <= x and v >= y and (u < x or v > y) for _, u, v in signed)}


def _sent(part: Mapping[str, Any]) -> Bars | None:
    """What each method sent, by what it is."""
    stacks: dict[str, dict[str, float]] = {}
    for label, row in part["methods"].items():
        for direction, kinds in row["bytes_by_kind"].items():
            for roles in kinds.values():
                for role, size in roles.items():
                    stack = stacks.setdefault(f"{label}, {direction}", {})
                    stack[role] = stack.get(role, 0) + size
    if not stacks:
        return None
    caption = "Packed messages of a whole run, all clients together, mean over the seeds."
    return bars("Bytes up and down", caption, stacks, ROLES)


def _kinds(part: Mapping[str, Any]) -> list[Table]:
    header, body = bytes_table(part)
    made = []
    for at in range(3, len(header), _METHODS):
        some = slice(at, at + _METHODS)
        rows = [[row[1], row[0], row[2], *row[some]] for row in body]
        made.append(Table("Bytes by kind of message", ["kind", "direction", "role", *header[some]], rows, words=3))
    return made


def _cells(comparison: Mapping[str, Any]) -> Table:
    body = [
        [cell["folder"], cell["status"] + (f": {cell['error']}" if cell.get("error") else ""), cell["command"]]
        for part in comparison["parts"]
        for method in part["methods"].values()
        for cell in method["cells"]
    ]
    note = f"Each is an ordinary run folder; its command repeats it alone. {NOTHING}: not measured."
    return Table("Runs of this comparison", ["folder", "status", "command"], body, words=3, note=note)
