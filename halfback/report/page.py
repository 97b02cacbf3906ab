"""One self-contained page for one or several runs: no script, nothing fetched."""

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from halfback.report.lines import Line, colour
from halfback.report.pieces import curve_figure, legend, sign, table, write_page
from halfback.report.reading import Run, read_runs
from halfback.report.tables import NOTHING, measured, metric_name, rows, short_size


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
    parts = [
        _what_ran(runs),
        "<h2>Results</h2>",
        _results(runs),
        "<h2>Curves</h2>",
        _curves(runs),
        "<h2>Bytes</h2>",
        _bytes(runs),
        "<h2>Client memory</h2>",
        _memory(runs),
        "<h2>Configuration</h2>",
        _configurations(runs),
    ]
    return write_page(_title(runs), parts, out)


def _title(runs: Sequence[Run]) -> str:
    named = {
        (str(s["algorithm"]), str(s["task"])) for run in runs if {"algorithm", "task"} <= (s := run.summary).keys()
    }
    if len(runs) == 1:
        return "{} on {}".format(*named.pop()) if named else f"{runs[0].label}, unfinished"
    tasks = {task for _, task in named}
    return f"{len(runs)} runs on {tasks.pop()}" if len(tasks) == 1 else f"{len(runs)} runs"


def _what_ran(runs: Sequence[Run]) -> str:
    items = []
    for order, run in enumerate(runs):
        if run.finished:
            said = escape(_sentence(run.summary))
        else:
            said = f'<span class="unfinished">unfinished</span>, so far at step {run.summary["steps"]:,}'
        items.append(f"<li>{sign(order)}<strong>{escape(run.label)}</strong>: {said}</li>")
    return f'<ul class="runs">{"".join(items)}</ul>'


def _sentence(summary: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    said = {name: summary.get(name, NOTHING) for name in ("algorithm", "task", "model", "cut", "steps", "seed")}
    head = summary.get("head")
    return (
        "{algorithm} on {task}; model {model}, cut {cut}".format(**said)
        + ("; " if head is None else f", head {head}; ")
        + f"{summary.get('sampled_clients', NOTHING)} of {summary.get('clients', NOTHING)} clients per step; "
        + "{steps} steps; seed {seed}".format(**said)
        + (f"; slopes: {summary['slopes']}" if summary.get("slopes") else "")
        + (f"; {versions}" if versions else "")
    )


def _results(runs: Sequence[Run]) -> str:
    header, body = rows([run.summary for run in runs], [run.label for run in runs])
    note = (
        "Before: at the first evaluation, before any step. Memory: the high-water mark of live tensors that one "
        "client owns while its code runs, and of the same client's plain inference. 1 MB is a million bytes. "
        f"{NOTHING}: not measured."
    )
    return table(header, body, "Results", note, words=1)


def _curves(runs: Sequence[Run]) -> str:
    metric = metric_name([run.summary for run in runs])
    labels = [run.label for run in runs]
    axes: list[tuple[str, Callable[[dict[str, Any]], float | None], Callable[[float], str]]] = [
        ("steps", lambda record: record["step"], lambda value: f"{value:,.0f}"),
        ("bytes, up and down", lambda record: record["up_bytes"] + record["down_bytes"], short_size),
        ("wall seconds", lambda record: record["wall_seconds"], lambda value: f"{value:,g}"),
        ("seconds on the fleet", lambda record: record.get("simulated_seconds"), lambda value: f"{value:,g}"),
    ]
    figures: list[str] = []
    for y_label, keys in ((metric, ("metric",)), ("loss", ("train_loss", "validation_loss"))):
        for x_label, at, x_text in axes:
            lines = [
                Line(order, [x for x, _ in found], [record[key] for _, record in found], dashed=place > 0)
                for order, run in enumerate(runs)
                for place, key in enumerate(keys)
                if (found := [(x, r) for r in run.records if r.get(key) is not None and (x := at(r)) is not None])
            ]
            if lines:
                figures.append(curve_figure(labels, lines, x_label, y_label, x_text, key=f"f{len(figures)}"))
    ends = [
        Line(order, [size], [last["metric"]])
        for order, run in enumerate(runs)
        if (size := (last := run.records[-1])["up_bytes"] + last["down_bytes"]) and last.get("metric") is not None
    ]
    if len(ends) > 1:  # what quality each run bought with which bytes
        x_label, y_label = "bytes, up and down, of the whole run", f"{metric} at the end"
        figures.append(curve_figure(labels, ends, x_label, y_label, short_size, key=f"f{len(figures)}"))
    if not figures:
        return '<p class="note">No evaluation has been recorded.</p>'
    return f'{legend(labels)}<div class="curves">{"".join(figures)}</div>'


def _bytes(runs: Sequence[Run]) -> str:
    sent = [
        (run, direction, kind, role, size)
        for run in runs
        for direction, kinds in run.summary.get("bytes_by_kind", {}).items()
        for kind, roles in kinds.items()
        for role, size in roles.items()
    ]
    if not sent:
        return '<p class="note">A run writes what it sent, by kind, when it finishes.</p>'
    orders: dict[str, int] = {}
    for _, _, kind, role, _ in sent:
        orders.setdefault(f"{kind}: {role}", len(orders))
    stacks: dict[str, list[tuple[str, int, float]]] = {}
    for run, direction, kind, role, size in sent:
        label = f"{run.label}, {direction}" if len(runs) > 1 else direction
        stacks.setdefault(label, []).append((f"{kind}: {role}", orders[f"{kind}: {role}"], size))
    totals: dict[tuple[str, str], float] = {}
    for run, direction, *_, size in sent:
        totals[run.label, direction] = totals.get((run.label, direction), 0) + size
    body = [
        [run.label, direction, kind, role, short_size(size), f"{size:,}", _share(size, totals[run.label, direction])]
        for run, direction, kind, role, size in sent
    ]
    header = ["run", "direction", "kind", "role", "bytes", "exactly", "of its direction"]
    dots = "".join(f"<li>{_dot(order)}{escape(name)}</li>" for name, order in orders.items())
    return (
        f'<ul class="runs legend">{dots}</ul>'
        + _bars(stacks)
        + table(header, body, "Bytes by kind and role", "Packed messages, as they were sent.", words=4)
    )


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else NOTHING


def _memory(runs: Sequence[Run]) -> str:
    stacks: dict[str, list[tuple[str, int, float]]] = {}
    for run in runs:
        prefix = f"{run.label}, " if len(runs) > 1 else ""
        for name, order, key in (
            ("training", 0, "client_peak_bytes"),
            ("plain inference", 1, "client_inference_peak_bytes"),
        ):
            if (peak := measured(run.summary.get(key))) is not None:
                stacks[prefix + name] = [(name, order, peak)]
    if not stacks:
        said = "A run writes its peak memory when it finishes; that of clients on device packages isn't measured."
        return f'<p class="note">{said}</p>'
    return _bars(stacks) + '<p class="note">Peak bytes of one client\'s live tensors, weights included.</p>'


def _dot(order: int) -> str:
    return f'<span class="dot" style="background:{colour(order)}"></span>'


def _bars(stacks: dict[str, list[tuple[str, int, float]]]) -> str:
    """Horizontal bars of stacked (name, colour's index, bytes), in HTML: their text keeps its size on a phone."""
    longest = max(sum(size for *_, size in stack) for stack in stacks.values())
    lines = []
    for label, stack in stacks.items():
        total = sum(size for *_, size in stack)
        told = ", ".join(f"{name} {short_size(size)}" for name, _, size in stack)
        pieces = "".join(
            f'<span title="{escape(f"{name}: {short_size(size)}")}" '
            f'style="background:{colour(order)};width:{size / total:.3%}"></span>'
            for name, order, size in stack
            if size
        )
        # The longest bar leaves room for the number at its end.
        width = f"calc((100% - 5.5rem) * {total / longest:.4f})" if longest else "0"
        lines.append(
            f'<div>{escape(label)}</div><div class="track"><div class="bar" role="img" '
            f'aria-label="{escape(f"{label}: {told}")}" style="width:{width}">{pieces}</div>'
            f'<span class="length">{short_size(total)}</span></div>'
        )
    return f'<div class="bars">{"".join(lines)}</div>'


def _configurations(runs: Sequence[Run]) -> str:
    blocks = []
    for run in runs:
        text = f"<pre>{escape(run.config)}</pre>" if run.config else '<p class="note">There is no config.yaml.</p>'
        blocks.append(f"<details><summary>{escape(run.label)}</summary>{text}</details>")
    return "".join(blocks)
