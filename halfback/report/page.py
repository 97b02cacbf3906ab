"""One self-contained page for one or several runs: a verdict, figures, and every number."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from halfback.report import charts
from halfback.report.charts import Axes, Chart, Line, smoothed
from halfback.report.reading import Run, read_runs
from halfback.report.rendering import Bars, Table, bars, write_page
from halfback.report.tables import NOTHING, count, default_labels, measured, measures, metric_name, rows, short_size
from halfback.report.verdict import Method, Metric, Verdict, method_of, rises, tiles, verdict

_COLUMNS = 4  # runs beside each other in a table, so that it fits the page
ROLES = {
    "activations": "what the devices' part gives, at the cut",
    "gradient": "of the loss by the activations, at the cut",
    "labels": "of the rows in a batch",
    "slopes": "how fast the loss rises along each direction",
    "weights": "parameters, or their gradients",
    "steps": "where a device stands",
    "framing": "headers of messages",
    "sample_ids": "which rows a batch has",
    "lengths": "of the texts in a batch",
    "masks": "keys and shares of secure sums",
}


def write_report(folders: Sequence[Path], out: Path) -> Path:
    """Writes one HTML page about runs, and about those beside them.

    Args:
        folders: of the runs.
        out: the page.

    Returns:
        The page's path.

    Raises:
        UserError: a run folder is missing, has no records or is corrupt; `out` cannot be written.
    """
    runs = read_runs(folders)
    names = _names(runs)
    said, figures = _said(runs)
    sent, kinds = _sent(runs, names)
    values = {
        "title": _title(runs),
        "versions": _versions(runs),
        "what_ran": _what_ran(runs, names),
        "verdict": said,
        "tiles": figures,
        "names": names,
        "curves": _curves(runs, names),
        "sent": sent,
        "kinds": kinds,
        "memory": _memory(runs, names),
        "results": _results(runs, names),
        "configurations": [
            (name if name == run.label else f"{name}: {run.label}", run.config)
            for name, run in zip(names, runs, strict=True)
        ],
    }
    return write_page("run.html", values, out)


def verdict_of(summaries: Sequence[dict[str, Any]]) -> Verdict:
    """What the first of some finished runs came to, beside those of the same task."""
    first = summaries[0]
    same = [
        method_of(label, [summary])
        for label, summary in zip(default_labels(summaries), summaries, strict=True)
        if _work(summary) == _work(first)
    ]
    return verdict(same, _metric(first), str(first["task"]))


def _metric(summary: Mapping[str, Any]) -> Metric:
    found = summary["metric"]
    values = [found.get(name) for name in ("initial", "final", "best")]
    return Metric.named(metric_name([dict(summary)]), values, rises=rises(summary))


def _work(summary: Mapping[str, Any]) -> tuple[Any, ...]:
    """What two runs must share to be compared."""
    return summary.get("task"), summary["metric"].get("name")


def _names(runs: Sequence[Run]) -> list[str]:
    """The runs' algorithms, with their seeds where these are needed to tell them apart, else their labels."""
    algorithms = [str(run.summary.get("algorithm", run.label)) for run in runs]
    seeded = [
        f"{name} (seed {run.summary.get('seed', NOTHING)})" if run.finished else name
        for name, run in zip(algorithms, runs, strict=True)
    ]
    return next((names for names in (algorithms, seeded) if len({*names}) == len(runs)), [run.label for run in runs])


def _said(runs: Sequence[Run]) -> tuple[Verdict, list[Any]]:
    """The verdict, and its figures: of the first run, with what differs from it in nothing but the seed."""
    first = runs[0]
    if not first.finished:
        step = first.summary["steps"]
        return Verdict(
            f"{first.label} has not finished: so far it is at step {step:,}.",
            "What follows is what its records say up to there.",
        ), []
    done = [run for run in runs if run.finished and _work(run.summary) == _work(first.summary)]
    methods: dict[str, list[Run]] = {}
    for run in done:
        methods.setdefault(_method(run), []).append(run)
    algorithms = [str(of_one[0].summary.get("algorithm")) for of_one in methods.values()]
    found: list[Method] = [
        method_of(name if algorithms.count(name) == 1 else of_one[0].label, [run.summary for run in of_one])
        for name, of_one in zip(algorithms, methods.values(), strict=True)
    ]
    metric = _metric(first.summary)
    return verdict(found, metric, str(first.summary.get("task", NOTHING))), tiles(found, metric)


def _method(run: Run) -> str:
    """What runs of one method share: the configuration but for its seed, and for what runs beside it."""
    if not run.config:
        return run.label
    kept, inside = [], False
    for line in run.config.splitlines():
        inside = line.startswith("beside:") or (inside and line[:1] in (" ", "-"))
        if not inside and not line.startswith("seed:"):
            kept.append(line)
    return "\n".join([str(run.summary.get("algorithm")), *kept])


def _title(runs: Sequence[Run]) -> str:
    named = {
        (str(s["algorithm"]), str(s["task"])) for run in runs if {"algorithm", "task"} <= (s := run.summary).keys()
    }
    tasks = {task for _, task in named}
    if not named or len(tasks) > 1:
        return f"{len(runs)} runs" if len(runs) > 1 else f"{runs[0].label}, unfinished"
    algorithms = dict.fromkeys(str(s["algorithm"]) for run in runs if "algorithm" in (s := run.summary))
    first, *others = algorithms
    beside = f", beside {' and '.join(others)}" if 0 < len(others) < 4 else f", {len(runs)} runs"
    return f"{first} on {tasks.pop()}" + (beside if len(runs) > 1 else "")


def _versions(runs: Sequence[Run]) -> str:
    found = (f"{name} {number}" for run in runs for name, number in run.summary.get("versions", {}).items())
    return ", ".join(dict.fromkeys(found))


def _what_ran(runs: Sequence[Run], names: Sequence[str]) -> list[tuple[str, str, bool]]:
    """Whose facts they are, the facts, and whether these runs are finished; no names where all have the same."""
    groups: dict[tuple[str, bool], dict[str, str]] = {}
    for name, run in zip(names, runs, strict=True):
        groups.setdefault((_facts(run), run.finished), {})[name] = str(run.summary.get("seed", NOTHING))
    found = []
    for (said, finished), of_whom in groups.items():
        seeds = list(dict.fromkeys(of_whom.values()))
        told = f" · seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}" if finished else ""
        found.append((", ".join(of_whom) if len(groups) > 1 else "", said + told, finished))
    return found


def _facts(run: Run) -> str:
    summary = run.summary
    if not run.finished:
        return f"so far at step {summary['steps']:,}"
    said = {name: summary.get(name, NOTHING) for name in ("model", "cut", "clients", "sampled_clients")}
    blocks = summary.get("head")
    head = "" if blocks is None else f", the head on the device too, with {blocks} of the blocks before it"
    cuts = summary.get("cut")
    said["cut"] = f"{' or '.join(map(str, cuts))}, client by client" if isinstance(cuts, list) else said["cut"]
    return (
        "{model} cut behind block {cut}".format(**said)
        + f"{head} · {{sampled_clients}} of {{clients}} clients in a step".format(**said)
        + f" · {count(summary.get('steps'))} steps"
    )


def _results(runs: Sequence[Run], names: Sequence[str]) -> list[Table]:
    """Every measure of every run, a few runs in a table."""
    summaries = [run.summary for run in runs]
    meanings = [meaning for _, meaning, _ in measures(summaries)]
    header, body = rows(summaries, names)
    made = []
    for at in range(1, len(header), _COLUMNS):
        some = slice(at, at + _COLUMNS)
        name = "Results" if len(runs) <= _COLUMNS else f"Results, runs {at} to {min(at + _COLUMNS - 1, len(runs))}"
        parts = [[row[0], *row[some]] for row in body]
        made.append(Table(name, ["", *header[some]], parts, meanings=meanings))
    note = f"1 MB is a million bytes. {NOTHING}: not measured."
    return [*made[:-1], Table(made[-1].name, made[-1].header, made[-1].body, meanings=meanings, note=note)]


def _curves(runs: Sequence[Run], names: Sequence[str]) -> list[Chart]:
    metric = metric_name([run.summary for run in runs])
    percent = Metric.named(metric, [record["metric"] for run in runs for record in run.records]).tick
    wholes: Callable[[float], str] = "{:,.0f}".format

    def lines(key: str, at: Callable[[dict[str, Any]], float | None]) -> list[Line]:
        found = []
        for order, run in enumerate(runs):
            shown = [(x, r[key]) for r in run.records if r.get(key) is not None and (x := at(r)) is not None]
            if shown:
                found.append(Line(names[order], order, [x for x, _ in shown], [y for _, y in shown]))
        return found

    plans: list[tuple[str, str, Axes, Callable[[dict[str, Any]], float | None]]] = [
        ("metric", f"{metric} by steps", Axes("steps", metric, wholes, percent), lambda r: r["step"]),
        (
            "metric",
            f"{metric} by bytes",
            Axes("bytes, up and down", metric, short_size, percent),
            lambda r: r["up_bytes"] + r["down_bytes"],
        ),
        (
            "metric",
            f"{metric} by seconds on the fleet",
            Axes("seconds on the fleet", metric, y_text=percent),
            lambda r: r.get("simulated_seconds"),
        ),
        (
            "metric",
            f"{metric} by seconds on this machine",
            Axes("wall seconds", metric, y_text=percent),
            lambda r: r["wall_seconds"],
        ),
        ("train_loss", "training loss by steps", Axes("steps", "training loss", wholes), lambda r: r["step"]),
        ("validation_loss", "validation loss by steps", Axes("steps", "validation loss", wholes), lambda r: r["step"]),
    ]
    figures = []
    for key, title, axes, at in plans:
        found = lines(key, at)
        caption = "On the validation rows." if key != "train_loss" else ""
        if key == "train_loss":
            smooth = [smoothed(line) for line in found]
            if any(line.raw for line in smooth):
                found, caption = smooth, "A running mean; faint behind it, what it is a mean of."
        if found:
            figures.append(charts.curves(found, axes, title[:1].upper() + title[1:], caption))
    return [*figures, *_thresholds(runs, names)]


def _thresholds(runs: Sequence[Run], names: Sequence[str]) -> list[Chart]:
    """How the thresholds of temporal reuse went, of runs that have any: a figure a run."""
    made = []
    for order, run in enumerate(runs):
        links = list(dict.fromkeys(link for record in run.records for link in record.get("thresholds") or {}))
        found = []
        for place, link in enumerate(links):
            shown = [(r["step"], r["thresholds"][link]) for r in run.records if link in (r.get("thresholds") or {})]
            found.append(Line(link, place, [x for x, _ in shown], [y for _, y in shown]))
        if found:
            title = "Thresholds of temporal reuse" + (f", {names[order]}" if len(runs) > 1 else "")
            caption = "Similarity to what was sent before, above which a value is not sent again."
            made.append(charts.curves(found, Axes("steps", "threshold", "{:,.0f}".format), title, caption))
    return made


def _sent(runs: Sequence[Run], names: Sequence[str]) -> tuple[Bars | None, Table | None]:
    """Bars of what was sent by what it is, and a table of it by kind of message, to the byte."""
    sent = [
        (name, direction, kind, role, size)
        for name, run in zip(names, runs, strict=True)
        for direction, kinds in run.summary.get("bytes_by_kind", {}).items()
        for kind, roles in kinds.items()
        for role, size in roles.items()
    ]
    if not sent:
        return None, None
    stacks: dict[str, dict[str, float]] = {}
    totals: dict[tuple[str, str], float] = {}
    for name, direction, _, role, size in sent:
        label = f"{name}, {direction}" if len(runs) > 1 else direction
        stack = stacks.setdefault(label, {})
        stack[role] = stack.get(role, 0) + size
        totals[name, direction] = totals.get((name, direction), 0) + size
    body = [
        [name, direction, kind, role, f"{size:,}", f"{size / total:.1%}" if (total := totals[name, direction]) else "–"]
        for name, direction, kind, role, size in sent
    ]
    header = ["run", "direction", "kind", "role", "bytes", "of its direction"]
    caption = "Packed messages of the whole run, all clients together; up is from the devices to the server."
    drawn = bars("Bytes up and down", caption, stacks, ROLES)
    return drawn, Table("Bytes by kind of message", header, body, words=4)


def _memory(runs: Sequence[Run], names: Sequence[str]) -> Bars | None:
    stacks: dict[str, dict[str, float]] = {}
    for name, run in zip(names, runs, strict=True):
        peak = measured(run.summary.get("client_peak_bytes"))
        plain = measured(run.summary.get("client_inference_peak_bytes"))
        if peak is not None:
            least = min(peak, plain or 0)
            stacks[name] = {"plain inference": least, "training": peak - least}
    if not stacks:
        return None
    caption = "Most bytes that one client's tensors took at once, weights included."
    return bars("Peak memory of a client", caption, stacks, {"training": "comes on top"})
