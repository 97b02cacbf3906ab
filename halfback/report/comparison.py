"""Several seeds of several algorithms as tables: means, spreads, costs of a target, fences; from plain values alone.

A *method* is an algorithm as it was entered, with a *cell* for each seed. A cell has the run's records in `curve`
and a `status`: `finished` (with the run's `summary`) or `diverged` (with `after_step`).
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from halfback.report.differences import (
    CONFIDENCE,
    FEWEST,
    RESAMPLES,
    difference,
    recovered,
    said_difference,
    said_recovered,
)
from halfback.report.tables import NOTHING, count, measured, metric_name, number, seconds, short_size

FLOOR, CEILING = "frozen_bottom", "split_lora"  # the fences of the gap: no training on the device, first order
TARGET_SHARE = 0.95
TITLES = {"steps": "At equal steps", "passes": "At equal client forward passes"}
_MEANS = (
    "up_bytes",
    "down_bytes",
    "client_peak_bytes",
    "client_inference_peak_bytes",
    "forward_passes",
    "client_seconds",
    "server_seconds",
    "wall_seconds",
    "simulated_seconds",
)
Cell = dict[str, Any]
Row = dict[str, Any]


def target_of(methods: Mapping[str, Sequence[Cell]], *, rises: bool) -> float | None:
    """`TARGET_SHARE` of the way from the mean metric before training to the best mean final one; None without gain."""
    before = initial_of(methods)
    finals = [mean for cells in methods.values() if (mean := _mean(_finals(cells).values())) is not None]
    if before is None or not finals:
        return None
    best = max(finals) if rises else min(finals)
    gained = best > before if rises else best < before
    return before + TARGET_SHARE * (best - before) if gained else None


def initial_of(methods: Mapping[str, Sequence[Cell]]) -> float | None:
    """The mean metric before training."""
    return _mean(cell["curve"][0]["metric"] for cells in methods.values() for cell in cells if cell["curve"])


def summarise(methods: Mapping[str, Sequence[Cell]], *, target: float | None, rises: bool) -> dict[str, Row]:
    """A row for each method, by its label; what no seed measured is None."""
    low, high = (_finals(methods.get(name, ())) for name in (FLOOR, CEILING))
    rows = {}
    for label, cells in methods.items():
        finals = _finals(cells)
        rows[label] = _row(cells, target, rises) | {
            "minus_frozen": None if label == FLOOR else difference(finals, low),
            "minus_first_order": None if label == CEILING else difference(finals, high),
            "gap_recovered": None if label in (FLOOR, CEILING) else recovered(finals, low, high),
        }
    return rows


def _row(cells: Sequence[Cell], target: float | None, rises: bool) -> Row:
    done = [cell["summary"] for cell in cells if cell["status"] == "finished"]
    reached = [_first_at(cell["curve"], target, rises) for cell in cells if cell["status"] == "finished"]
    ratios = [
        run["client_peak_bytes"] / run["client_inference_peak_bytes"]
        for run in done
        if run["client_inference_peak_bytes"]
    ]
    return {
        "seeds": len(cells),
        "finished": len(done),
        "diverged_after_steps": [cell["after_step"] for cell in cells if cell["status"] == "diverged"],
        "steps": done[0]["steps"] if done else None,
        "final": _spread(_finals(cells)),
        "best": _spread({run["seed"]: run["metric"]["best"] for run in done if run["metric"]["best"] is not None}),
        "to_target": _to_target(reached, len(cells)),
        "client_peak_ratio": _mean(ratios),
        "bytes_by_kind": _by_kind(done),
        **{key: _mean(run.get(key) for run in done) for key in _MEANS},
    }


def _finals(cells: Sequence[Cell]) -> dict[int, float]:
    """Seed → final metric, of the cells that have one."""
    done = [cell["summary"] for cell in cells if cell["status"] == "finished"]
    return {run["seed"]: run["metric"]["final"] for run in done if run["metric"]["final"] is not None}


def _mean(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _spread(by_seed: Mapping[int, float]) -> dict[str, Any] | None:
    """Mean and standard deviation (of a sample; None of one) with the values behind them."""
    if not by_seed:
        return None
    values = list(by_seed.values())
    deviation = statistics.stdev(values) if len(values) > 1 else None
    named = {str(seed): value for seed, value in by_seed.items()}
    return {"mean": statistics.fmean(values), "sd": deviation, "by_seed": named}


def _first_at(curve: Sequence[Mapping[str, Any]], target: float | None, rises: bool) -> Mapping[str, Any] | None:
    """The first record whose metric is as good as the target."""
    for record in curve:
        metric = record["metric"]
        if target is not None and metric is not None and (metric >= target if rises else metric <= target):
            return record
    return None


def _to_target(reached: Sequence[Mapping[str, Any] | None], seeds: int) -> dict[str, Any]:
    """Means over all seeds; None unless all of them came there."""
    there = [record for record in reached if record is not None]
    everyone = bool(there) and len(there) == seeds
    keys = ("step", "up_bytes", "down_bytes", "simulated_seconds")
    means = {key: _mean(record.get(key) for record in there) if everyone else None for key in keys}
    return {"reached": len(there)} | means


def _by_kind(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Direction → kind → role → mean bytes; what a seed never sent counts as 0."""
    totals: dict[str, dict[str, dict[str, float]]] = {"up": {}, "down": {}}
    for run in runs:
        for direction, kinds in run["bytes_by_kind"].items():
            for kind, roles in kinds.items():
                into = totals[direction].setdefault(kind, {})
                for role, size in roles.items():
                    into[role] = into.get(role, 0) + size / len(runs)
    return totals


def results_table(part: Mapping[str, Any], comparison: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows, one a method, of one part of a comparison."""
    metric, target = comparison["metric"]["name"], comparison["target"]["value"]
    tuning = comparison["tuning"]
    fences = [column for column in _FENCES if any(method[column[0]] for method in part["methods"].values())]
    header = ["algorithm", "steps"]
    header += [tuning["name"]] if tuning else []
    header += [f"{metric}, final", f"{metric}, best", *(name for _, name, _ in fences), "up", "down"]
    header += [f"{what} to {number(target)}" for what in ("steps", "bytes")] if target is not None else []
    timed = any(method.get("simulated_seconds") is not None for method in part["methods"].values())
    header += [f"fleet s to {number(target)}"] if target is not None and timed else []
    header += ["client peak", "÷ inference", "forward passes", "client s", "server s", "wall s"]
    header += ["fleet s"] if timed else []
    body = []
    for label, row in part["methods"].items():
        cells = [label, count(row["steps"])]
        cells += [_chosen(tuning, label)] if tuning else []
        cells += [_final(row), _said(row["best"])]
        cells += [said(row) for _, _, said in fences]
        cells += [_size(row["up_bytes"]), _size(row["down_bytes"])]
        if target is not None:
            there = row["to_target"]
            missed = f"{NOTHING} ({there['reached']} of {row['seeds']})"
            full = there["step"] is not None
            cells += [f"{there['step']:,.0f}" if full else missed]
            cells += [short_size(there["up_bytes"] + there["down_bytes"]) if full else missed]
            cells += [seconds(there["simulated_seconds"]) if full else missed] if timed else []
        ratio, passes = row["client_peak_ratio"], row["forward_passes"]
        cells += [_size(measured(row["client_peak_bytes"])), NOTHING if ratio is None else f"{ratio:.3f}"]
        cells += [NOTHING if passes is None else f"{passes:,.0f}"]
        cells += [seconds(row[f"{what}_seconds"]) for what in ("client", "server", "wall")]
        cells += [seconds(row["simulated_seconds"])] if timed else []
        body.append(cells)
    return header, body


def bytes_table(part: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of what was sent: for each direction, kind and role the mean bytes of each method."""
    rows = part["methods"].values()
    sent = [
        (direction, kind, role)
        for row in rows
        for direction, kinds in row["bytes_by_kind"].items()
        for kind, roles in kinds.items()
        for role in roles
    ]
    body = []
    for direction, kind, role in sorted(dict.fromkeys(sent), key=lambda line: line[0] != "up"):
        sizes = [row["bytes_by_kind"][direction].get(kind, {}).get(role) for row in rows]
        body.append([direction, kind, role, *(NOTHING if size is None else f"{size:,.0f}" for size in sizes)])
    return ["direction", "kind", "role", *part["methods"]], body


def tuning_table(comparison: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of what each method reached on held-back rows with each value that any was tried with."""
    tuning = comparison["tuning"]
    values = list(dict.fromkeys([*tuning["values"], *(value for more in tuning["widened"].values() for value in more)]))
    if len(values) > len(tuning["values"]):
        values.sort(key=float)
    body = []
    for label, scores in tuning["scores"].items():
        tried = [NOTHING if value not in scores else _score(scores[value]) for value in values]
        body.append([label, *tried, _chosen(tuning, label)])
    return ["algorithm", *(f"{tuning['name']}={value}" for value in values), "chosen"], body


def _score(score: float | None) -> str:
    return "diverged" if score is None else number(score)


def _chosen(tuning: Mapping[str, Any], label: str) -> str:
    marks = {None: "", "lower": " (lowest tried)", "upper": " (highest tried)", "diverged": " (all diverged)"}
    if label not in tuning["chosen"]:
        return NOTHING
    return tuning["chosen"][label] + marks[tuning["edge"][label]]


def tuning_notes(comparison: Mapping[str, Any]) -> list[str]:
    """Which grids were widened, and whose best is at an edge nevertheless; nothing where neither is."""
    tuning, said = comparison["tuning"], []
    if more := {label: ", ".join(values) for label, values in tuning["widened"].items() if values}:
        of_whom = "; ".join(f"{label} {values}" for label, values in more.items())
        said.append(f"The best {tuning['name']} was at an edge, so the grid was widened: {of_whom}.")
    if left := [f"{label} {_chosen(tuning, label)}" for label, edge in tuning["edge"].items() if edge]:
        said.append(f"Not bracketed, so a value beyond may be better still: {'; '.join(left)}.")
    return said


def notes(comparison: Mapping[str, Any]) -> list[str]:
    """What a reader must know to read the tables, one sentence or two each."""
    metric, tuning = comparison["metric"], comparison["tuning"]
    seeds = ", ".join(map(str, comparison["seeds"]))
    said = [
        f"{metric['name'][:1].upper()}{metric['name'][1:]}: {'higher' if metric['rises'] else 'lower'} is better; "
        f"{number(metric['initial'])} before training. Mean ± standard deviation over seeds {seeds}; costs are means.",
        comparison["target"]["said"],
    ]
    if tuning:
        steps = " or ".join(dict.fromkeys(f"{steps:,}" for steps in tuning["steps"].values()))
        share = " or ".join(dict.fromkeys(f"{share:.2%}" for share in tuning["held_back"].values()))
        everyone = len(tuning["chosen"]) == len(comparison["algorithms"])
        whom = "each algorithm" if everyone else " and ".join(tuning["chosen"])
        said.append(
            f"{tuning['name']} was chosen for {whom} among {', '.join(tuning['values'])}: the best "
            f"{metric['name']} after {steps} steps, seed {tuning['seed']}, on {share} of the training rows, held back. "
            "Of equal ones the one with the lower loss."
        )
        said += tuning_notes(comparison)
    said += _about_fences(comparison)
    said += [note for part in comparison["parts"] for note in part["notes"]]
    versions = ", ".join(f"{name} {version}" for name, version in comparison["versions"].items())
    return [
        *said,
        f"Client peak: bytes of one client's live tensors, and over the same client's inference. {versions}.",
    ]


def _about_fences(comparison: Mapping[str, Any]) -> list[str]:
    rows = [row for part in comparison["parts"] for row in part["methods"].values()]
    said = []
    if any(row[key] for row in rows for key in ("minus_frozen", "minus_first_order")):
        said.append(
            f"− {FLOOR}, − {CEILING}: mean difference of the final {comparison['metric']['name']}, paired by seed, "
            "± its standard error."
        )
    if any(row["gap_recovered"] for row in rows):
        sure = f"{100 * CONFIDENCE:g} %"
        said.append(
            f"Gap recovered: mean of (final − {FLOOR}) ÷ mean of ({CEILING} − {FLOOR}), over the seeds that all three "
            f"finished, and the {sure} interval over {RESAMPLES:,} resamples of these seeds (up to five: of all. "
            "With three it runs from the least to the largest seed's own ratio). No gap: fewer than "
            f"{FEWEST} such seeds, or the {sure} interval of {CEILING} − {FLOOR} by Student's t has 0 in it."
        )
    return said


def title_of(comparison: Mapping[str, Any]) -> str:
    return f"{len(comparison['algorithms'])} algorithms on {comparison['task']}"


def markdown(comparison: Mapping[str, Any]) -> str:
    """The comparison as a Markdown text."""
    lines = [f"# {title_of(comparison)}", "", "```", comparison["command"], "```", ""]
    lines += [f"- {note}" for note in notes(comparison)]
    if comparison["tuning"]:
        lines += ["", "## Tuning", "", *_pipes(*tuning_table(comparison), words=1)]
    for part in comparison["parts"]:
        lines += ["", f"## {TITLES[part['equal']]}", "", *_pipes(*results_table(part, comparison), words=1)]
        lines += ["", "Bytes by kind, means:", "", *_pipes(*bytes_table(part), words=3)]
    return "\n".join([*lines, ""])


def _pipes(header: Sequence[str], body: Sequence[Sequence[str]], words: int) -> list[str]:
    rule = ["---" if place < words else "---:" for place in range(len(header))]
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in (header, rule, *body)]


def metric_of(methods: Mapping[str, Sequence[Cell]]) -> str:
    """The name of the metric."""
    return metric_name(
        [cell["summary"] for cells in methods.values() for cell in cells if cell["status"] == "finished"]
    )


def _final(row: Row) -> str:
    if not row["diverged_after_steps"]:
        return _said(row["final"])
    steps = ", ".join(map(str, row["diverged_after_steps"]))
    return f"{_said(row['final'])} ({len(row['diverged_after_steps'])} of {row['seeds']} diverged, after step {steps})"


def _said(spread: Mapping[str, Any] | None) -> str:
    if spread is None:
        return NOTHING
    form = _form(spread)
    return f"{spread['mean']:{form}}" + ("" if spread["sd"] is None else f" ± {spread['sd']:{form}}")


def _form(spread: Mapping[str, Any] | None) -> str:
    return ".3f" if spread is None or abs(spread["mean"]) < 10 else ".2f"


def _against(key: str) -> Callable[[Row], str]:
    """How a row's difference is said: with the digits of its metric."""
    return lambda row: said_difference(row[key], _form(row["final"]))


_FENCES: tuple[tuple[str, str, Callable[[Row], str]], ...] = (  # key of a row, its column, how it is said
    ("minus_frozen", f"− {FLOOR}", _against("minus_frozen")),
    ("minus_first_order", f"− {CEILING}", _against("minus_first_order")),
    ("gap_recovered", "gap recovered", lambda row: said_recovered(row["gap_recovered"])),
)


def _size(value: float | None) -> str:
    return NOTHING if value is None else short_size(value)
