"""Several seeds of several algorithms as rows: means, spreads, costs of a target, fences; from plain values alone.

A *method* is an algorithm as it was entered, with a *cell* for each seed. A cell has the run's records in `curve`
and a `status`: `finished` (with the run's `summary`) or `diverged` (with `after_step`).
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from halfback.report.differences import difference, recovered
from halfback.report.tables import metric_name
from halfback.report.verdict import CEILING, FLOOR, Method, Metric, Verdict, method_of, verdict

TARGET_SHARE = 0.95
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
            "gap_recovered": None if label in (FLOOR, CEILING) else recovered(finals, low, high, rises=rises),
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


def metric_of(methods: Mapping[str, Sequence[Cell]]) -> str:
    """The name of the metric."""
    return metric_name(
        [cell["summary"] for cells in methods.values() for cell in cells if cell["status"] == "finished"]
    )


def methods_of(part: Mapping[str, Any]) -> list[Method]:
    """What the verdict is made from, in the order in which the methods were entered."""
    found = []
    for label, row in part["methods"].items():
        done = [cell["summary"] | {"algorithm": label} for cell in row["cells"] if cell["status"] == "finished"]
        found.append(method_of(label, done, lost=len(row["diverged_after_steps"])))
    return found


def verdict_of(part: Mapping[str, Any], comparison: Mapping[str, Any]) -> Verdict:
    """What the first method of a comparison came to, beside the others."""
    return verdict(methods_of(part), metric_in(comparison), comparison["task"])


def metric_in(comparison: Mapping[str, Any]) -> Metric:
    """The metric of a comparison."""
    found = comparison["metric"]
    finals = [row["final"] for part in comparison["parts"] for row in part["methods"].values()]
    values = [found["initial"], *(final["mean"] for final in finals if final is not None)]
    return Metric.named(found["name"], values, rises=found["rises"])
