"""A comparison's rows as tables, for the terminal, for Markdown and for the page, and the sentences to read them by."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from halfback.report.comparison import Row
from halfback.report.differences import CONFIDENCE, FEWEST, RESAMPLES, said_difference, said_recovered
from halfback.report.tables import NOTHING, count, measured, number, seconds, short_size
from halfback.report.verdict import CEILING, FLOOR

REACHED, COST, TARGET = "What was reached", "What it cost", "On the way to the target"  # tables of the page
_SPENT = {
    "client": "seconds that all clients spent together",
    "server": "seconds that the server spent",
    "wall": "seconds of a whole run on the machine of the comparison",
}
TITLES = {"steps": "At equal steps", "passes": "At equal client forward passes"}


@dataclass(frozen=True)
class Column:
    """A column of results: in which table of the page it is, what it says, and its cells, one a method."""

    table: str
    name: str
    meaning: str
    cells: list[str]


def columns(part: Mapping[str, Any], comparison: Mapping[str, Any]) -> list[Column]:
    """All that is said of the methods in one part of a comparison."""
    metric, target, tuning = comparison["metric"]["name"], comparison["target"]["value"], comparison["tuning"]
    methods: Mapping[str, Row] = part["methods"]
    rows = list(methods.values())
    made: list[Column] = []

    def add(table: str, name: str, meaning: str, cell: Callable[[Row], str]) -> None:
        made.append(Column(table, name, meaning, [cell(row) for row in rows]))

    add(REACHED, "steps", "optimiser steps of each run", lambda row: count(row["steps"]))
    if tuning:
        said = [_chosen(tuning, label) for label in methods]
        made.append(Column(REACHED, tuning["name"], "chosen for the method on training rows held back", said))
    add(REACHED, f"{metric}, final", "behind the last step: mean ± standard deviation over the seeds", _final)
    add(REACHED, f"{metric}, best", "of all evaluations of a run, likewise", lambda row: _said(row["best"]))
    for key, name, meaning, cell in _FENCES:
        if any(row[key] for row in rows):
            add(REACHED, name, meaning, cell)
    add(COST, "up", "bytes that all clients sent", lambda row: _size(row["up_bytes"]))
    add(COST, "down", "bytes that all clients received", lambda row: _size(row["down_bytes"]))
    timed = any(row.get("simulated_seconds") is not None for row in rows)
    if target is not None:
        mark, there = number(target), "at the first evaluation that reached it, mean over the seeds"
        add(TARGET, f"steps to {mark}", f"optimiser steps {there}", _there(lambda to: f"{to['step']:,.0f}"))
        both = _there(lambda to: short_size(to["up_bytes"] + to["down_bytes"]))
        add(TARGET, f"bytes to {mark}", f"up and down, {there}", both)
        if timed:
            fleet = _there(lambda to: seconds(to["simulated_seconds"]))
            add(TARGET, f"fleet s to {mark}", f"seconds on the fleet {there}", fleet)
    peak = "most that one client's tensors took at once, weights included"
    add(COST, "client peak", peak, lambda row: _size(measured(row["client_peak_bytes"])))
    add(COST, "÷ inference", "the same over the peak of that client's plain inference", _ratio)
    add(COST, "forward passes", "of the clients' part on one batch, all clients together", _passes)
    for what, meaning in _SPENT.items():
        add(COST, f"{what} s", meaning, _spent(f"{what}_seconds"))
    if timed:
        add(COST, "fleet s", "seconds of a whole run on the fleet's devices and links", _spent("simulated_seconds"))
    return made


def _there(cell: Callable[[Mapping[str, Any]], str]) -> Callable[[Row], str]:
    """What is said of a method at the target, or how many of its seeds came there."""

    def said(row: Row) -> str:
        to = row["to_target"]
        return cell(to) if to["step"] is not None else f"{NOTHING} ({to['reached']} of {row['seeds']})"

    return said


def _spent(key: str) -> Callable[[Row], str]:
    def said(row: Row) -> str:
        spent: float | None = row[key]
        return seconds(spent)

    return said


def _ratio(row: Row) -> str:
    return NOTHING if row["client_peak_ratio"] is None else f"{row['client_peak_ratio']:.3f}"


def _passes(row: Row) -> str:
    return NOTHING if row["forward_passes"] is None else f"{row['forward_passes']:,.0f}"


def results_table(part: Mapping[str, Any], comparison: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows, one a method, of one part of a comparison: all columns in one table."""
    found = columns(part, comparison)
    body = [[label, *(column.cells[place] for column in found)] for place, label in enumerate(part["methods"])]
    return ["algorithm", *(column.name for column in found)], body


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
            "With three it runs from the least to the largest seed's own ratio). No gap to recover: fewer than "
            f"{FEWEST} such seeds, or {CEILING} − {FLOOR} is no gain whose {sure} interval by Student's t excludes 0."
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


_FENCES: tuple[tuple[str, str, str, Callable[[Row], str]], ...] = (  # key of a row, its column, what it is, the cell
    (
        "minus_frozen",
        f"− {FLOOR}",
        f"final minus that of {FLOOR}, seed by seed: mean ± its standard error",
        _against("minus_frozen"),
    ),
    (
        "minus_first_order",
        f"− {CEILING}",
        f"final minus that of {CEILING}, seed by seed: mean ± its standard error",
        _against("minus_first_order"),
    ),
    (
        "gap_recovered",
        "gap recovered",
        f"the part of what {CEILING} gains over {FLOOR}, and its {100 * CONFIDENCE:g} % interval; only where {CEILING} "
        "ends better by more than the spread of three seeds or more",
        lambda row: said_recovered(row["gap_recovered"]),
    ),
)


def _size(value: float | None) -> str:
    return NOTHING if value is None else short_size(value)
