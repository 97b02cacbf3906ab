"""Where the marks of a figure lie, as plain values that a template draws.

No library drew what the pages need: text that keeps its size at every width, in the page's own font and in the
colours of light and dark, without a script. So a figure is a stretched SVG of lines alone, whose strokes don't scale,
and its text is HTML beside it, placed in percent.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from halfback.report.tables import number

_WIDE, _HIGH = 1000, 500  # of the drawing's own coordinates: whole numbers that are finer than a pixel
_MOST = 300  # points of one line; more of them can't be told apart, and make the page large
_LOG_RATIO = 10  # runs whose ends lie further apart than this share an axis only when it is logarithmic
_BEGINNINGS = (0.2, 0.4)  # of each line: left out of an axis where the rest then has twice the room or more
_LETTERS = 1.1  # rem, the height of a label
_CLEAR = 0.3  # of the width: labels that far apart don't meet

Text = Callable[[float], str]


@dataclass(frozen=True)
class Line:
    """A curve of one run or method; `order` chooses its colour.

    Attributes:
        name: its label.
        order: its place among those of the page. Of the style sheet's eight colours each four next to each other can
            be told apart by the colour-blind, and every four lines have other dashes.
        x: of its points.
        y: of its points.
        low: of the band around it, where it is a mean.
        high: of the band.
        raw: what a smoothed line was before.
    """

    name: str
    order: int
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    raw: Sequence[float] = ()


@dataclass(frozen=True)
class Axes:
    """What the two axes say, and how their values are told."""

    x: str
    y: str
    x_text: Text = "{:,g}".format
    y_text: Text = number


@dataclass
class Chart:
    """A figure for the template `chart`: what it says in words, and where everything lies in percent."""

    title: str
    caption: str
    told: str
    x_label: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    paths: list[dict[str, Any]] = field(default_factory=list)
    labels: list[dict[str, Any]] = field(default_factory=list)
    high: float = 15.0

    @property
    def spots(self) -> bool:
        """Whether it has points, and no lines."""
        return any(path["kind"] == "spot" for path in self.paths)

    @property
    def letters(self) -> tuple[int, int]:
        """Of the longest tick of the vertical axis, and of the longest label."""
        names = max((len(label["name"]) for label in self.labels), default=0)
        return max((len(text) for _, text in self.y_ticks), default=0), names


@dataclass(frozen=True)
class _Scale:
    low: float
    high: float
    log: bool = False

    def at(self, value: float) -> float:
        """The place between 0 and 1, or beyond where the value is."""
        if self.log:
            return (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return (value - self.low) / (self.high - self.low)


def smoothed(line: Line) -> Line:
    """A running mean over a twelfth of the line, with what it was as `raw`; a short line stays as it is."""
    reach = len(line.y) // 24
    if reach < 1:
        return line
    means = []
    for place in range(len(line.y)):
        near = min(reach, place, len(line.y) - 1 - place)  # as far on both sides, so that the ends don't lag
        window = line.y[place - near : place + near + 1]
        means.append(sum(window) / len(window))
    return Line(line.name, line.order, line.x, means, raw=line.y)


def curves(lines: Sequence[Line], axes: Axes, title: str, caption: str = "") -> Chart:
    """A figure of curves against x ≥ 0, its axes fitted to what they differ in."""
    ends = [max(line.x) for line in lines]
    log_x = min(ends) > 0 and max(ends) / min(ends) > _LOG_RATIO
    if log_x:
        lines = [shown for line in lines if (shown := _above_zero(line)).x]
        caption += " The horizontal axis is logarithmic, so what lies at 0 is left out."
    across = [x for line in lines for x in line.x]
    horizontal = _fitted(min(across) if log_x else 0, max(across), log=log_x, margin=0)
    low, high = _extent(lines, 0.0)
    for beginning in _BEGINNINGS if len(lines) > 1 else ():  # of one curve all is shown
        late_low, late_high = _extent(lines, beginning)
        if not late_low < late_high or (late_high - late_low) * 2 > high - low:
            break
        low, high = late_low, late_high
    vertical = _fitted(low, high)
    told = "; ".join(
        f"{line.name}: "
        + ", ".join(f"{axes.y_text(line.y[at])} at {axes.x_text(line.x[at])}" for at in sorted({0, len(line.x) - 1}))
        for line in lines
    )
    chart = _chart(title, caption, f"{axes.y} against {axes.x}. {told}", axes, horizontal, vertical)
    ordered = sorted(lines, key=lambda line: -line.order)  # the first run lies above the others
    for line in ordered:
        if line.low:
            there = [*zip(line.x, line.high, strict=True)]
            back = [*zip(line.x, line.low, strict=True)]
            area = _path([*_fewer(there), *_fewer(back)[::-1]], horizontal, vertical)
            chart.paths.append({"kind": "band", "order": line.order, "d": f"{area}Z"})
    for line in ordered:
        if line.raw:
            raw = _path(_fewer([*zip(line.x, line.raw, strict=True)]), horizontal, vertical)
            chart.paths.append({"kind": "raw", "order": line.order, "d": raw})
    for line in ordered:
        points = _fewer([*zip(line.x, line.y, strict=True)])
        kind = "line" if len(points) > 1 else "dot"
        chart.paths.append({"kind": kind, "order": line.order, "d": _path(points, horizontal, vertical)})
    if len(lines) > 1:
        found = [(line.name, line.order, line.x[-1], line.y[-1]) for line in lines]
        chart.high = _height(len(lines))
        chart.labels = _labels(found, horizontal, vertical, chart.high)
    return chart


def points(
    found: Sequence[tuple[str, int, float, float]],
    ringed: set[int],
    axes: Axes,
    title: str,
    caption: str,
    joined: Sequence[Sequence[int]] = (),
) -> Chart:
    """A figure of (name, order, x ≥ 0, y), with a ring around those at the places in `ringed`.

    An empty name is no label. x is logarithmic where it spans a decade. `joined`: places between which a line runs.
    """
    across = [x for _, _, x, _ in found]
    log_x = min(across) > 0 and max(across) / min(across) > _LOG_RATIO
    horizontal = _fitted(min(across), max(across), log=log_x, margin=0.08)
    up = [y for *_, y in found]
    vertical = _fitted(min(up), max(up), margin=0.12)
    told = "; ".join(
        f"{name}: {axes.y_text(y)} at {axes.x_text(x)}{', ringed' if place in ringed else ''}"
        for place, (name, _, x, y) in enumerate(found)
        if name
    )
    if log_x:
        caption += " The horizontal axis is logarithmic."
    chart = _chart(title, caption, f"{axes.y} against {axes.x}. {told}", axes, horizontal, vertical)
    for line in joined:
        if len(line) > 1:
            way = _path([found[place][2:] for place in line], horizontal, vertical)
            chart.paths.append({"kind": "line", "order": found[line[0]][1], "d": way})
    for place, (_, order, x, y) in enumerate(found):
        spot = _path([(x, y)], horizontal, vertical)
        if place in ringed:
            chart.paths.append({"kind": "ring", "order": order, "d": spot})
            chart.paths.append({"kind": "hole", "order": order, "d": spot})
        chart.paths.append({"kind": "spot", "order": order, "d": spot})
    named = [one for one in found if one[0]]
    chart.high = _height(len(named))
    chart.labels = _labels(named, horizontal, vertical, chart.high)
    return chart


def _above_zero(line: Line) -> Line:
    places = [place for place, x in enumerate(line.x) if x > 0]
    parts: dict[str, Any] = {name: getattr(line, name) for name in ("x", "y", "low", "high", "raw")}
    kept: dict[str, Any] = {name: [part[place] for place in places] for name, part in parts.items() if part}
    return replace(line, **kept)


def _extent(lines: Sequence[Line], after: float) -> tuple[float, float]:
    """The least and the largest value behind a part of each line."""
    values = [
        value
        for line in lines
        for part in (line.y, line.low, line.high, line.raw)
        for x, value in zip(line.x, part or line.y, strict=True)
        if x >= after * line.x[-1]
    ]
    return min(values), max(values)


def _fitted(low: float, high: float, *, log: bool = False, margin: float = 0.06) -> _Scale:
    if log:
        room = (high / low) ** margin
        return _Scale(low / room, high * room if high > low else 2 * high, log=True)
    if high == low:
        around = abs(high) * 0.05 or 1.0
        return _Scale(low - (around if margin else 0), high + around)
    return _Scale(low - margin * (high - low), high + margin * (high - low))


def _ticks(scale: _Scale, most: int) -> list[float]:
    """Round values on a scale, at most about as many."""
    if scale.log:
        first, last = math.floor(math.log10(scale.low)), math.ceil(math.log10(scale.high))
        steps = (1, 2, 5) if last - first <= 2 else (1,)
        every = max(1, math.ceil((last - first) / most))
        found = [step * 10.0**power for power in range(first, last + 1, every) for step in steps]
    else:
        rough = (scale.high - scale.low) / most
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(size * power for size in (1, 2, 2.5, 5, 10) if size * power >= rough)
        first = math.ceil(scale.low / step)
        found = [place * step for place in range(first, first + 2 * most)]
    return [value for value in found if value > 0 or not scale.log if -1e-9 <= scale.at(value) <= 1 + 1e-9]


def _chart(title: str, caption: str, told: str, axes: Axes, horizontal: _Scale, vertical: _Scale) -> Chart:
    def marks(scale: _Scale, most: int, text: Text) -> list[tuple[float, str]]:
        found = _ticks(scale, most)
        steps = [after - before for before, after in itertools.pairwise(found)]
        fine = not scale.log and bool(steps) and len({text(value) for value in found}) < len(found)
        digits = max(0, -math.floor(math.log10(min(steps)))) if fine else 0
        # Where the axis' own text can't tell two marks apart, as many digits as it takes.
        return [(round(100 * scale.at(v), 2), f"{v:,.{digits}f}" if fine else text(v)) for v in found]

    return Chart(
        title,
        caption.strip(),
        told,
        axes.x,
        marks(horizontal, 4, axes.x_text),
        marks(vertical, 5, axes.y_text),
    )


def _fewer(found: list[tuple[float, float]]) -> list[tuple[float, float]]:
    every = math.ceil(len(found) / _MOST)
    return found if every < 2 else [*found[:-1:every], found[-1]]


def _path(found: Sequence[tuple[float, float]], horizontal: _Scale, vertical: _Scale) -> str:
    places = [f"{round(_WIDE * horizontal.at(x))} {_drawn(vertical.at(y))}" for x, y in found]
    return f"M{'L'.join(places)}" if len(places) > 1 else f"M{places[0]}h0"


def _drawn(place: float) -> int:
    """What lies far below or above an axis is drawn nearer: a number of twenty digits is no place."""
    return round(_HIGH * (1 - min(max(place, -9.0), 9.0)))


def _labels(
    found: Sequence[tuple[str, int, float, float]], horizontal: _Scale, vertical: _Scale, high: float
) -> list[dict[str, Any]]:
    """Each name beside its point, moved up or down where two would meet; `high`: the figure's height in rem."""
    gap = _LETTERS / high
    placed: list[dict[str, Any]] = [
        {"name": name, "order": order, "across": horizontal.at(x), "up": min(max(vertical.at(y), gap / 2), 1 - gap / 2)}
        for name, order, x, y in sorted(found, key=lambda one: one[3])
    ]
    for place, label in enumerate(placed):
        label["up"] = max([label["up"], *(other["up"] + gap for other in _near(label, placed[:place]))])
    for place, label in reversed([*enumerate(placed)]):
        label["up"] = min([label["up"], 1 - gap / 2, *(o["up"] - gap for o in _near(label, placed[place + 1 :]))])
    return [label | {key: round(100 * label[key], 1) for key in ("across", "up")} for label in placed]


def _near(label: dict[str, Any], others: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [other for other in others if abs(other["across"] - label["across"]) < _CLEAR]


def _height(labels: int) -> float:
    """Of a figure, in rem: room for all its labels, one below the other."""
    return max(15.0, (labels + 1) * _LETTERS)
