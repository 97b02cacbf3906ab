"""The closing table as plain strings, for the terminal and for the page."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

T = TypeVar("T", int, float)
Measure = tuple[str, str, Callable[[dict[str, Any]], str]]

NOTHING = "–"  # what a run has not measured


def rows(summaries: Sequence[dict[str, Any]], labels: Sequence[str] | None = None) -> tuple[list[str], list[list[str]]]:
    """The header and the rows of the closing table: one row per measure, one column per run after the measure's name.

    `labels` name the runs; by default the algorithms do, with the seed where an algorithm comes twice. A summary may
    lack keys (a run that was killed): its cell is `NOTHING`. Columns and rows swap with `zip(*[header, *rows])`.
    """
    header = ["", *(labels if labels is not None else default_labels(summaries))]
    return header, [[name, *(cell(summary) for summary in summaries)] for name, _, cell in measures(summaries)]


def measures(summaries: Sequence[dict[str, Any]]) -> list[Measure]:
    """What a run is measured by: a name, what that is in a line, and what is said of a summary."""
    metric = metric_name(summaries)
    found: list[Measure] = [
        (
            f"{metric}, before",
            "on the validation rows, before the first step",
            _initial,
        ),
        (
            f"{metric}, final",
            "on the same rows, behind the last step",
            lambda run: number(run.get("metric", {}).get("final")),
        ),
        (f"{metric}, best", "of all evaluations on the way", lambda run: number(run.get("metric", {}).get("best"))),
        ("training loss", "mean since the evaluation before the last", lambda run: number(run.get("train_loss"))),
        ("steps", "optimiser steps, of one batch of each sampled client", lambda run: count(run.get("steps"))),
        ("bytes up", "sent by all clients together", lambda run: size(run.get("up_bytes"))),
        ("bytes down", "received by all clients together", lambda run: size(run.get("down_bytes"))),
        (
            "client peak memory",
            "most that one client's tensors took at once while it trained, weights included",
            lambda run: size(measured(run.get("client_peak_bytes"))),
        ),
        (
            "client inference peak",
            "the same while that client only runs its part of the model",
            lambda run: size(measured(run.get("client_inference_peak_bytes"))),
        ),
        (
            "client peak ÷ inference peak",
            "what training takes of a device that has room for the model: 1 is nothing more",
            _memory_ratio,
        ),
        (
            "server peak memory",
            "most that the server's tensors took at once",
            lambda run: size(measured(run.get("server_peak_bytes"))),
        ),
        (
            "forward passes",
            "of the clients' part on one batch, all clients together",
            lambda run: count(run.get("forward_passes")),
        ),
        ("client seconds", "spent by all clients together", lambda run: seconds(run.get("client_seconds"))),
        ("server seconds", "spent by the server", lambda run: seconds(run.get("server_seconds"))),
        ("wire seconds", "spent on packing and unpacking, and on codecs", lambda run: seconds(run.get("wire_seconds"))),
        ("wall seconds", "of the whole run, evaluations included", lambda run: seconds(run.get("wall_seconds"))),
        (
            "trainable parameters, bottom",
            "of the devices' part",
            lambda run: count(run.get("trainable_parameters", {}).get("bottom")),
        ),
        (
            "trainable parameters, top",
            "of what lies behind the cut",
            lambda run: count(run.get("trainable_parameters", {}).get("top")),
        ),
    ]
    if any(run.get("slopes") for run in summaries):
        found.append(("slopes", "how devices took them", lambda run: str(run.get("slopes") or NOTHING)))
    if any(run.get("private_activations") for run in summaries):
        what = "of the activations of the sample that was sent most often; labels, lengths and slopes are not in it"
        found.append(("ε of activations", what, _spent))
    if any(run.get("privacy") for run in summaries):
        found += [
            (
                "ε",
                "what noise on what clients say of θ bounds (docs/privacy.md), at its δ, for each row or client",
                _epsilon,
            ),
            ("ε covers", "what it is about, and what not", lambda run: str(_of_noise(run, "covers") or NOTHING)),
        ]
    if any(run.get("simulated_seconds") is not None for run in summaries):
        what = "that the run would have taken on the devices and links of its fleet"
        found.append(("seconds on the fleet", what, lambda run: seconds(run.get("simulated_seconds"))))
    if any(run.get("generation") for run in summaries):
        found += [
            ("BLEU", "0 to 100, of what the model wrote", lambda run: number(_generated(run, "bleu"))),
            ("chrF", "0 to 100, of the same texts, letter by letter", lambda run: number(_generated(run, "chrf"))),
            ("inputs decoded", "validation inputs that it wrote for", lambda run: count(_generated(run, "rows"))),
            ("decoding", "how each token was chosen", lambda run: str(_generated(run, "decoding") or NOTHING)),
        ]
    return found


def _spent(run: dict[str, Any]) -> str:
    spent = run.get("private_activations")
    if not spent:
        return "no noise"
    times = f"sent {count(spent.get('releases'))} times" if spent.get("releases") != 1 else "sent once"
    return f"{number(spent.get('epsilon'))} at δ = {spent.get('delta'):g}, {times}"


def metric_name(summaries: Sequence[dict[str, Any]]) -> str:
    """The one metric the runs share; "metric" where they differ or none says."""
    names = {str(summary["metric"]["name"]) for summary in summaries if summary.get("metric", {}).get("name")}
    return names.pop() if len(names) == 1 else "metric"


def default_labels(summaries: Sequence[dict[str, Any]]) -> list[str]:
    """The algorithms' names, with the seed where an algorithm comes twice."""
    algorithms = [str(summary.get("algorithm", NOTHING)) for summary in summaries]
    return [
        name if algorithms.count(name) == 1 else f"{name} (seed {summary.get('seed', NOTHING)})"
        for name, summary in zip(algorithms, summaries, strict=True)
    ]


def _initial(summary: dict[str, Any]) -> str:
    """The metric before training, with the rows that it is over where these are not all."""
    found = summary.get("metric", {})
    over = "" if found.get("initial_rows") is None else f" ({found['initial_rows']:,} rows)"
    return f"{number(found.get('initial'))}{over}"


def _of_noise(run: dict[str, Any], key: str) -> Any:
    return (run.get("privacy") or {}).get(key)


def _epsilon(run: dict[str, Any]) -> str:
    """ε, its δ, and whose it is, with the releases that it is of."""
    if not run.get("privacy"):
        return NOTHING
    found = {key: _of_noise(run, key) for key in ("epsilon", "delta", "unit", "noise", "releases", "where")}
    noise = f"{found['where']} noise {number(found['noise'])}, {count(found['releases'])} releases"
    return f"{number(found['epsilon'])} at δ = {found['delta']:g}, each {found['unit']} ({noise})"


def _generated(summary: dict[str, Any], key: str) -> Any:
    return (summary.get("generation") or {}).get(key)


def _memory_ratio(summary: dict[str, Any]) -> str:
    peak, inference = summary.get("client_peak_bytes"), summary.get("client_inference_peak_bytes")
    return f"{peak / inference:.2f}×" if peak and inference else NOTHING


def measured(peak: T | None) -> T | None:
    """A peak of memory; None where it is 0, which a summary has where nobody measured it."""
    return peak or None


def number(value: float | None) -> str:
    """Four significant digits."""
    return NOTHING if value is None else f"{value:.4g}"


def count(value: int | None) -> str:
    """A whole number with its thousands apart."""
    return NOTHING if value is None else f"{value:,}"


def seconds(value: float | None) -> str:
    """Seconds to a tenth; below ten, three significant digits."""
    if value is None:
        return NOTHING
    return f"{value:,.1f}" if value >= 10 else f"{value:.3g}"


def size(value: int | None) -> str:
    """Bytes for people, and exactly: `12.6 MB (12,582,912)`."""
    if value is None:
        return NOTHING
    return f"{short_size(value)} ({value:,})" if value >= 1000 else short_size(value)


def short_size(value: float) -> str:
    """Bytes with three significant digits and a decimal unit: 1 MB is a million bytes."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 999.5:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:,.4g} TB"
