"""What runs came to, in a sentence or two, and in three or four figures: beside what, for which share of the costs.

A *method* is one algorithm with its settings, and has a value for each seed. Whatever compares two methods does so seed
by seed; what a few seeds can't tell from chance is said to be that.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from halfback.report.differences import FEWEST, Difference, difference, excludes_zero, recovered
from halfback.report.rendering import Tile
from halfback.report.tables import measured, number, seconds, short_size

FLOOR, CEILING = "frozen_bottom", "split_lora"  # the fences of the gap: no training on the device, first order
_WHAT = {
    FLOOR: "the device's part left as it was",
    CEILING: "backpropagation on the device",
}
_SPENT, _PEAKS = ("up_bytes", "down_bytes", "wall_seconds"), ("client_peak_bytes", "client_inference_peak_bytes")
_HARDLY_MORE = 1.15  # times the memory of inference
_LIKE, _AS_MUCH = 0.03, "as much as"  # a share this near to one


@dataclass(frozen=True)
class Method:
    """What one algorithm with its settings came to; costs are means over its seeds, None where nobody measured them.

    Attributes:
        label: what it is called here.
        algorithm: its name.
        finals: by seed, the metric at the end.
        initial: the metric before training.
        steps: of one run.
        total_bytes: sent and received by all clients.
        peak: bytes of one client's live tensors.
        inference: the same of its plain inference.
        wall: seconds of one run.
        lost: runs that diverged.
    """

    label: str
    algorithm: str
    finals: Mapping[int, float]
    initial: float | None = None
    steps: int | None = None
    total_bytes: float | None = None
    peak: float | None = None
    inference: float | None = None
    wall: float | None = None
    lost: int = 0

    @property
    def final(self) -> float | None:
        """The mean metric at the end."""
        return sum(self.finals.values()) / len(self.finals) if self.finals else None


@dataclass(frozen=True)
class Metric:
    """What the metric is called, whether more of it is better, and whether it is a percentage."""

    name: str
    rises: bool = True
    is_percent: bool = False

    @classmethod
    def named(cls, name: str, values: Iterable[float | None], *, rises: bool = True) -> "Metric":
        """The metric of this name that came to these values.

        The package's own accuracy is a percentage; somebody else's of that name may be a share, which none exceeds.
        """
        known = [value for value in values if value is not None]
        return cls(name, rises, name == "accuracy" and max(known, default=0) > 1)

    def said(self, value: float) -> str:
        """`95.6 % accuracy`, or `perplexity 12.3`."""
        return f"{value:.1f} % {self.name}" if self.is_percent else f"{self.name} {number(value)}"

    def short(self, value: float) -> str:
        """The same without the name."""
        return f"{value:.1f} %" if self.is_percent else number(value)

    def tick(self, value: float) -> str:
        """The same on an axis."""
        return f"{value:.4g} %" if self.is_percent else number(value)

    def apart(self, found: Difference) -> str:
        """`1.8 ± 0.3 points below`, by the sign of a difference."""
        form, unit = (".1f", " points") if self.is_percent else (".3g", "")
        spread = "" if found["se"] is None else f" ± {found['se']:{form}}"
        return f"{abs(found['mean']):{form}}{spread}{unit} {'above' if found['mean'] > 0 else 'below'}"


@dataclass(frozen=True)
class Verdict:
    """`said`: what was reached, beside what and at which cost; `care`: what the reader mustn't take from it."""

    said: str
    care: str = ""

    @property
    def sentences(self) -> list[str]:
        """All of it, for a terminal."""
        return [part for part in (self.said, self.care) if part]


def rises(summary: Mapping[str, Any]) -> bool:
    """Whether a run's metric is better where it is higher, by what its summary holds for the best."""
    metric = summary["metric"]
    best = metric.get("best")
    others = [value for value in (metric.get("final"), metric.get("initial")) if value is not None and value != best]
    return best is None or not others or best > others[0]


def method_of(label: str, summaries: Sequence[Mapping[str, Any]], lost: int = 0) -> Method:
    """The method of one or several finished runs, which differ in nothing but their seed."""

    def mean(values: Iterable[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known else None

    first = summaries[0] if summaries else {}
    seeds = [place if run.get("seed") is None else int(run["seed"]) for place, run in enumerate(summaries)]
    finals = {seed: run["metric"].get("final") for seed, run in zip(seeds, summaries, strict=True)}
    up, down, wall = (mean(run.get(key) for run in summaries) for key in _SPENT)
    peak, inference = (mean(measured(run.get(key)) for run in summaries) for key in _PEAKS)
    return Method(
        label,
        str(first.get("algorithm", label)),
        {seed: final for seed, final in finals.items() if final is not None},
        mean(run["metric"].get("initial") for run in summaries),
        first.get("steps"),
        None if up is None or down is None else up + down,
        peak,
        inference,
        wall,
        lost,
    )


def verdict(methods: Sequence[Method], metric: Metric, task: str) -> Verdict:
    """What the first of some methods came to, beside the others."""
    mine = methods[0]
    if mine.final is None:
        why = "every run diverged" if mine.lost else "nothing was measured at its end"
        return Verdict(f"{mine.label} came to no result on {task}: {why}.")
    rest = _beside(mine, methods, metric)
    said = f"{mine.label} ended at {metric.said(mine.final)} on {task}{_from(mine, metric)}"
    if rest:
        said += _beside_said(mine, rest, metric)
    if mine.initial is not None and (mine.final <= mine.initial if metric.rises else mine.final >= mine.initial):
        nothing = "It is no better than before training: with these settings it learned nothing that the metric shows."
        return Verdict(f"{said}. {nothing}", _care(mine, methods, metric))
    return Verdict(f"{said}. {_costs(mine, rest[0]) if rest else _alone(mine)}".strip(), _care(mine, methods, metric))


def tiles(methods: Sequence[Method], metric: Metric) -> list[Tile]:
    """The three or four figures to remember of the first method."""
    mine = methods[0]
    if mine.final is None:
        return []
    rest = _beside(mine, methods, metric)
    other = rest[0] if rest else None
    before = f"{metric.short(mine.initial)} before training" if mine.initial is not None else ""
    over = f", mean of {len(mine.finals)} seeds" if len(mine.finals) > 1 else ""
    found = [Tile(f"{metric.name} at the end{over}", metric.short(mine.final), before)]
    if mine.total_bytes is not None:
        compared = _share(mine.total_bytes, other.total_bytes if other else None)
        beside = _beside_it(compared, other)
        found.append(Tile("moved between devices and server", short_size(mine.total_bytes), beside))
    if mine.peak is not None:
        compared = _share(mine.peak, other.peak if other else None)
        plain = f"{mine.peak / mine.inference:.2f} × plain inference" if mine.inference else ""
        beside = "; ".join(filter(None, [plain, _beside_it(compared, other)]))
        found.append(Tile("memory that a device needs", short_size(mine.peak), beside))
    gap = _gap(mine, methods, metric)
    if gap is not None and len(mine.finals) > 1:
        if gap["established"]:
            interval = f"{100 * gap['low']:.0f} % to {100 * gap['high']:.0f} % by resampling the seeds"
            found.append(Tile(f"of the gap from {FLOOR} to {CEILING}", f"{100 * gap['ratio']:.0f} %", interval))
        else:
            why = f"{CEILING} did not end above {FLOOR} by more than the seeds' spread"
            found.append(Tile("to recover", "no gap", why))
    elif mine.wall is not None:
        found.append(
            Tile(
                "for the run, on this machine", f"{seconds(mine.wall)} s", f"{mine.steps:,} steps" if mine.steps else ""
            )
        )
    return found


def _beside(mine: Method, methods: Sequence[Method], metric: Metric) -> list[Method]:
    """First order, the frozen bottom and the best of the rest, as far as they are there."""
    others = [method for method in methods if method is not mine and method.final is not None]
    fences = [other for name in (CEILING, FLOOR) for other in others if other.algorithm == name][:2]
    free = [other for other in others if other not in fences]
    if not free:
        return fences
    best = (max if metric.rises else min)(free, key=lambda other: other.final or 0.0)
    is_better = metric.rises == ((best.final or 0.0) > (mine.final or 0.0))
    return [*fences, best] if not fences or is_better else fences


def _from(mine: Method, metric: Metric) -> str:
    seeds = f" (mean of {len(mine.finals)} seeds)" if len(mine.finals) > 1 else ""
    return seeds + ("" if mine.initial is None else f", from {metric.short(mine.initial)} before training")


def _beside_said(mine: Method, rest: Sequence[Method], metric: Metric) -> str:
    parts = []
    for other in rest:
        what = _WHAT.get(other.algorithm)
        found = difference(mine.finals, other.finals)
        if found is None or found["se"] is None:
            told = f"{metric.short(other.final or 0.0)} with {other.label}"
        elif found["mean"] == 0:
            told = f"level with {other.label}"
        else:
            told = f"{metric.apart(found)} {other.label}"
        parts.append(f"{told} ({what})" if what else told)
    paired = any((found := difference(mine.finals, other.finals)) and found["se"] is not None for other in rest)
    return (": " if paired else ", beside ") + _joined(parts)


def _costs(mine: Method, other: Method) -> str:
    """What it took of the devices, beside another method."""
    moved = _share(mine.total_bytes, other.total_bytes)
    held = _share(mine.peak, other.peak)
    plain = f"{mine.peak / mine.inference:.2f} times that of plain inference" if mine.peak and mine.inference else ""
    parts = []
    if moved:
        parts.append(f"moved {moved} {other.label}'s bytes" if moved != _AS_MUCH else f"moved as much as {other.label}")
    if held:
        whose = "its" if moved else f"{other.label}'s"
        of_it = f"{held} {whose}" if held != _AS_MUCH else "as much"
        parts.append(f"needed {of_it} device memory" + (f", which is {plain}" if plain else ""))
    elif plain:
        parts.append(f"needed a device memory {plain}")
    return f"It {' and '.join(parts)}{_meaning(mine)}." if parts else ""


def _meaning(mine: Method) -> str:
    """What a peak near that of inference means to whoever has the devices."""
    near = mine.peak and mine.inference and mine.peak <= _HARDLY_MORE * mine.inference
    return ": a device that can run its part of the model can train it" if near else ""


def _alone(mine: Method) -> str:
    parts = []
    if mine.total_bytes is not None:
        steps = f" in {mine.steps:,} steps" if mine.steps else ""
        parts.append(f"moved {short_size(mine.total_bytes)} between devices and server{steps}")
    if mine.peak and mine.inference:
        parts.append(f"needed {mine.peak / mine.inference:.2f} times the memory of plain inference on a device")
    return f"It {' and '.join(parts)}{_meaning(mine)}." if parts else ""


def _care(mine: Method, methods: Sequence[Method], metric: Metric) -> str:
    """What the spread of the seeds leaves open."""
    said = [f"{_lost(mine)}."] if mine.lost else []
    rest = _beside(mine, methods, metric)
    if not rest:
        return " ".join([*said, "Nothing ran beside it, so this says what was reached and not what that is worth."])
    compared = {other.label: difference(mine.finals, other.finals) for other in rest}
    seeds = min((len(found["by_seed"]) for found in compared.values() if found), default=0)
    if seeds < 2:
        alone = len(mine.finals) == 1
        what = "Each ran with one seed" if alone else "They have not two seeds in common"
        return " ".join([*said, f"{what}, so differences may be chance; several seeds would tell."])
    open_ones = [label for label, found in compared.items() if found and not excludes_zero(found)]
    if open_ones and seeds < FEWEST:
        said.append(f"With {seeds} seeds no difference can be told from chance.")
    elif open_ones:
        said.append(f"With {seeds} seeds, the difference to {_joined(open_ones)} can't be told from chance.")
    gap = _gap(mine, methods, metric)
    if gap is not None and gap["established"]:
        said.append(
            f"Of what {CEILING} gains over {FLOOR}, it recovered {100 * gap['ratio']:.0f} % "
            f"({100 * gap['low']:.0f} % to {100 * gap['high']:.0f} % by resampling the seeds)."
        )
    elif gap is not None:
        said.append(f"There is no gap to recover: {CEILING} did not end above {FLOOR} by more than the seeds' spread.")
    return " ".join(said)


def _gap(mine: Method, methods: Sequence[Method], metric: Metric) -> dict[str, Any] | None:
    """The part of the gap between the fences that the first method recovers; None where one of the three is missing."""
    fences = {name: next((m for m in methods if m.algorithm == name), None) for name in (FLOOR, CEILING)}
    low, high = fences[FLOOR], fences[CEILING]
    if low is None or high is None or mine in (low, high):
        return None
    return recovered(mine.finals, low.finals, high.finals, rises=metric.rises)


def _share(mine: float | None, theirs: float | None) -> str:
    """`17 % of`, `1.4 times`, of what stands behind, or `_AS_MUCH`; empty where one is missing."""
    if not mine or not theirs:
        return ""
    share = mine / theirs
    if abs(share - 1) <= _LIKE:
        return _AS_MUCH
    if share > 2:
        return f"{share:.3g} times"
    return f"{100 * share:.0f} % of" if share >= 0.1 else f"{100 * share:.2g} % of"


def _beside_it(share: str, other: Method | None) -> str:
    if not share or other is None:
        return ""
    return f"{share} {other.label}" if share == _AS_MUCH else f"{share} {other.label}'s"


def _lost(mine: Method) -> str:
    return f"{mine.lost} of {mine.lost + len(mine.finals)} runs of {mine.label} diverged" if mine.lost else ""


def _joined(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
