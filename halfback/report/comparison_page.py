"""One self-contained page for a comparison: its tables, mean curves, and what quality each method bought with what."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from halfback.report.comparison import TITLES, bytes_table, notes, results_table, title_of, tuning_table
from halfback.report.lines import Line
from halfback.report.pieces import curve_figure, figure, legend, table, write_page
from halfback.report.tables import NOTHING, measured, number, seconds, short_size

Text = Callable[[float], str]


def write_comparison(comparison: Mapping[str, Any], out: Path) -> Path:
    """Write the page of what `compare.json` holds; return its path.

    Raises:
        UserError: `out` cannot be written.
    """
    parts = [f"<pre>{escape(comparison['command'])}</pre>"]
    parts += [f"<ul>{''.join(f'<li>{escape(note)}</li>' for note in notes(comparison))}</ul>"]
    for part in comparison["parts"]:
        title = TITLES[part["equal"]]
        parts += [
            f"<h2>{title}</h2>",
            table(
                *results_table(part, comparison), title, f"1 MB is a million bytes. {NOTHING}: not measured.", words=1
            ),
            _figures(part, comparison["metric"]),
            "<details><summary>Bytes by kind</summary>",
            table(*bytes_table(part), f"{title}: bytes by kind", "Packed messages, mean over seeds.", words=3),
            "</details>",
        ]
    if comparison["tuning"]:
        note = f"{comparison['metric']['name']} on the rows held back."
        parts += ["<h2>Tuning</h2>", table(*tuning_table(comparison), "Tuning", note, words=1)]
    return write_page(title_of(comparison), [*parts, "<h2>Cells</h2>", _cells(comparison)], out)


def _figures(part: Mapping[str, Any], metric: Mapping[str, Any]) -> str:
    labels, name, key = list(part["methods"]), metric["name"], part["equal"]
    curves: list[tuple[str, Callable[[Mapping[str, Any]], float | None], Text]] = [
        ("steps", lambda record: record["step"], lambda value: f"{value:,.0f}"),
        ("bytes, up and down", lambda record: record["up_bytes"] + record["down_bytes"], short_size),
        ("client forward passes", lambda record: record["forward_passes"], lambda value: f"{value:,.0f}"),
        ("seconds on the fleet", lambda record: record.get("simulated_seconds"), seconds),
    ]
    found = []
    for place, (x_label, at, x_text) in enumerate(curves):
        lines = [
            line
            for order, method in enumerate(part["methods"].values())
            if (line := _mean_curve(order, method["cells"], at))
        ]
        if lines:
            found.append(curve_figure(labels, lines, x_label, name, x_text, key=f"{key}{place}"))
    costs: list[tuple[str, Callable[[Mapping[str, Any]], float | None], Text]] = [
        ("bytes, up and down", lambda row: row["up_bytes"] + row["down_bytes"], short_size),
        ("client peak memory", lambda row: measured(row["client_peak_bytes"]), short_size),
        ("wall seconds", lambda row: row["wall_seconds"], seconds),
        ("seconds on the fleet", lambda row: row.get("simulated_seconds"), seconds),
    ]
    for place, (x_label, cost, x_text) in enumerate(costs):
        ends = [
            (order, spent, row["final"]["mean"])
            for order, row in enumerate(part["methods"].values())
            if row["final"] is not None and (spent := cost(row)) is not None
        ]
        if ends:
            found.append(_pareto(labels, ends, x_label, x_text, metric, key=f"{key}p{place}"))
    if not found:
        return '<p class="note">No cell finished.</p>'
    return f'{legend(labels)}<div class="curves">{"".join(found)}</div>'


def _mean_curve(
    order: int, cells: Sequence[Mapping[str, Any]], at: Callable[[Mapping[str, Any]], float | None]
) -> Line | None:
    """Mean over the seeds that finished, at each evaluation; None where none did."""
    done = [cell["curve"] for cell in cells if cell["status"] == "finished"]
    means = [
        (statistics.fmean(places), statistics.fmean(record["metric"] for record in row))
        for row in zip(*done, strict=False)
        if all(record["metric"] is not None for record in row)
        and len(places := [x for record in row if (x := at(record)) is not None]) == len(row)
    ]
    return Line(order, [x for x, _ in means], [y for _, y in means]) if means else None


def _pareto(
    labels: Sequence[str],
    ends: Sequence[tuple[int, float, float]],
    x_label: str,
    x_text: Text,
    metric: Mapping[str, Any],
    key: str,
) -> str:
    from halfback.report.figures import points

    name, best = metric["name"], undominated(ends, rises=metric["rises"])
    ringed = {place for place, (order, _, _) in enumerate(ends) if order in best}
    drawn = points(ends, ringed, x_label, f"{name} at the end", x_text, key)
    told = "; ".join(
        f"{labels[order]}: {number(y)} at {x_text(x)}{', not dominated' if order in best else ''}"
        for order, x, y in ends
    )
    caption = f"Final {name} against {x_label}. Ringed: no other is both as good and as cheap, and better in one."
    return figure(drawn, f"final {name} against {x_label}. {told}", caption)


def undominated(ends: Sequence[tuple[int, float, float]], *, rises: bool) -> set[int]:
    """The orders of those (order, cost, metric) of which no other is as cheap and as good, and better in one."""
    signed = [(order, x, y if rises else -y) for order, x, y in ends]
    return {order for order, x, y in signed if not any(u <= x and v >= y and (u < x or v > y) for _, u, v in signed)}


def _cells(comparison: Mapping[str, Any]) -> str:
    body = [
        [cell["folder"], cell["status"], cell.get("error") or "", cell["command"]]
        for part in comparison["parts"]
        for method in part["methods"].values()
        for cell in method["cells"]
    ]
    note = "Each is an ordinary run folder; its command repeats it alone."
    return table(["folder", "status", "error", "command"], body, "Cells", note, words=4)
