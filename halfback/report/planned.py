"""A plan as a table, as sentences and as a page, from its plain values alone (`plan.json`)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from halfback.report.charts import Axes, Chart, points
from halfback.report.rendering import Table, write_page
from halfback.report.tables import NOTHING, seconds, short_size

Row = Mapping[str, Any]
HEADER = ["", "", "cut", "codecs", "weights", "s a step", "binds", "peak", "up", "down", "knows"]
NOTE = (
    "Seconds of a step: mean over the first cohorts, each waiting for its slowest device. Binds: what takes the "
    "largest part of the slowest class's step. Peak, up, down: of one client, in a step. Knows: the share of the "
    "gradient, over all values that are trained, that a step has in hand; a proxy of quality, no promise."
)


def plan_table(plan: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of what no other variant beats at once in time, memory and knowledge; an arrow: recommended."""
    rows = [plan["variants"][place] for place in plan["best"]]
    return HEADER, [_cells(row, row is plan["variants"][plan["recommended"]["variant"]]) for row in rows]


def _cells(row: Row, taken: bool) -> list[str]:
    return [
        row["method"],
        "→" if taken else "",
        str(row["cut"]),
        row["codecs"],
        row["weights"],
        seconds(row["seconds"]),
        row["binds"],
        short_size(row["peak_bytes"]),
        short_size(row["up_bytes"]),
        short_size(row["down_bytes"]),
        f"{row['known']:.1%}",
    ]


def explained(plan: Mapping[str, Any]) -> list[str]:
    """Where the time of the recommended goes, class by class, and what keeps the others out; a sentence each."""
    row, room = plan["variants"][plan["recommended"]["variant"]], plan["memory_bytes"]
    said = []
    for name, step in row["by_class"].items():
        parts = ", ".join(
            f"{part} {seconds(step[part])}" for part in ("compute", "up", "server", "down", "latency") if step[part]
        )
        said.append(
            f"{name}: {seconds(step['total'])} s a step ({parts}), bound by {step['binds']}; "
            f"{short_size(row['peak_bytes'])} of its {short_size(room[name])}."
        )
    for name in room:
        out = [other for other in plan["variants"] if name in other["lacking"]]
        if out:
            least = min(other["lacking"][name] for other in out)
            kept_out = f"{len(out)} of {len(plan['variants'])} variants"
            said.append(f"Memory of {name} keeps {kept_out} out, the nearest by {short_size(least)}.")
    return said


def write_plan(plan: Mapping[str, Any], out: Path) -> Path:
    """Writes a plan as one page and returns its path.

    Raises:
        UserError: `out` cannot be written.
    """
    header, body = plan_table(plan)
    best = [[f"{row[1]} {row[0]}".strip(), *row[2:]] for row in body]
    values = {
        "title": f"A plan for {plan['task']} on {plan['fleet']}",
        "versions": "",
        "said": plan["said"],
        "best": Table(
            "What no other beats at once in time, memory and knowledge; →: recommended",
            ["method", *header[2:]],
            best,
            words=4,
            note=NOTE,
        ),
        "names": _methods(plan),
        "drawn": _charts(plan),
        "explained": explained(plan),
        "pilot": Table("Pilot", *pilot_table(plan["pilot"]), note=pilot_note(plan["pilot"])) if plan["pilot"] else None,
        "recipe": plan["recommended"]["recipe"],
    }
    return write_page("plan.html", values, out)


def pilot_table(pilot: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the candidates that were run: what they came to, and when they were at the target."""
    metric, target = pilot["metric"], f"{pilot['target']:.4g}"
    header = [
        "",
        "cut",
        f"{metric} after {pilot['steps']} steps",
        f"s on the fleet to {metric} {target}",
        "seeds there",
    ]
    body = []
    for one in pilot["candidates"]:
        there = [value for value in one["to_target"] if value is not None]
        body.append(
            [
                one["method"],
                str(one["cut"]),
                _spread([end for end in one["finals"] if end is not None]),
                _spread(there),
                f"{len(there)} of {len(one['finals'])}",
            ]
        )
    return header, body


def pilot_note(pilot: Mapping[str, Any]) -> str:
    """How the pilot's table is to be read."""
    seeds = ", ".join(map(str, pilot["seeds"]))
    return (
        f"Each was run for {pilot['steps']} steps with seeds {seeds}: mean, smallest and largest. Between two "
        "evaluations the metric is taken to move in a straight line."
    )


def _spread(values: Sequence[float]) -> str:
    if not values:
        return NOTHING
    mean = sum(values) / len(values)
    return f"{mean:.4g}" if len(values) == 1 else f"{mean:.4g} ({min(values):.4g}–{max(values):.4g})"


def _methods(plan: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(row["algorithm"] for row in plan["variants"]))


def _charts(plan: Mapping[str, Any]) -> list[Chart]:
    """Every variant that fits: memory and knowledge against time, a colour for each method."""
    methods = _methods(plan)
    fitting = [(place, row) for place, row in enumerate(plan["variants"]) if not row["lacking"]]
    ringed = [place for place, _ in fitting].index(plan["recommended"]["variant"])
    drawn = []
    for key, label, scale, text in (
        ("peak_bytes", "client peak", 1, short_size),
        ("known", "what a step knows", 100, "{:.3g} %".format),
    ):
        found = [
            (
                "recommended" if place == ringed else "",
                methods.index(row["algorithm"]),
                row["seconds"],
                scale * row[key],
            )
            for place, (_, row) in enumerate(fitting)
        ]
        title = f"{label[:1].upper()}{label[1:]} by seconds a step"
        caption = f"{len(fitting)} variants that fit, by method."
        axes = Axes("seconds a step", label, x_text=seconds, y_text=text)
        drawn.append(points(found, {ringed}, axes, title, caption))
    return drawn
