"""Figures as inline SVG that takes the page's text colour, so one picture serves light and dark.

Importing this imports Matplotlib, so whoever draws imports it then.
"""

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, SymmetricalLogLocator

from halfback.report.lines import Line, colour, marker

_INK = "#010203"  # stands for the page's text colour until the SVG is written
_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: readers, search and the page's font reach it
    "text.parse_math": False,  # a name with dollars is a name
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK),
}


def curves(
    lines: Sequence[Line], x_label: str, y_label: str, x_text: Callable[[float], str], key: str, log_x: bool
) -> str:
    """An SVG of `y_label` against `x_label`; `key` is unique on the page; `log_x` leaves out what lies at 0."""
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": key}):
        figure = Figure(figsize=(4.6, 3.0), layout="constrained")
        axes = figure.add_subplot()
        axes.grid(color=_INK, alpha=0.15, linewidth=0.6)
        axes.set_axisbelow(True)
        for line in lines:
            shown = [(x, y) for x, y in zip(line.x, line.y, strict=True) if x > 0 or not log_x]
            axes.plot(
                [x for x, _ in shown],
                [y for _, y in shown],
                color=colour(line.order),
                linestyle="--" if line.dashed else "-",
                linewidth=1.2 if line.dashed else 1.8,
                marker=None if line.dashed else marker(line.order),
                markersize=4,
                markevery=max(1, len(shown) // 12),
            )
        if log_x:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(numticks=5))
            axes.xaxis.set_minor_formatter(NullFormatter())
        else:
            axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: x_text(value)))
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        return _svg(figure, key)


def points(
    found: Sequence[tuple[int, float, float]],
    marked: set[int],
    x_label: str,
    y_label: str,
    x_text: Callable[[float], str],
    key: str,
) -> str:
    """An SVG of (order, x ≥ 0, y), those at the places in `marked` ringed.

    x is logarithmic where it spans a decade, with 0 beside it.
    """
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": key}):
        figure = Figure(figsize=(4.6, 3.0), layout="constrained")
        axes = figure.add_subplot()
        axes.grid(color=_INK, alpha=0.15, linewidth=0.6)
        axes.set_axisbelow(True)
        for place, (order, x, y) in enumerate(found):
            axes.plot([x], [y], color=colour(order), marker=marker(order), markersize=6, linestyle="none")
            if place in marked:
                axes.plot([x], [y], color=_INK, marker="o", markersize=13, fillstyle="none", linestyle="none")
        above = [x for _, x, _ in found if x > 0]
        if above and (max(above) / min(above) > 10 or (len(above) < len(found))):
            axes.set_xscale("symlog", linthresh=min(above))
            axes.xaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=min(above)))
            axes.set_xlim(left=-0.2 * min(above) if len(above) < len(found) else min(above) / 2, right=2 * max(above))
        else:
            axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: x_text(value)))
        axes.margins(y=0.15)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        return _svg(figure, key)


def _svg(figure: Figure, key: str) -> str:
    """The figure without ground, prolog and metadata, its ids prefixed: several share one page."""
    buffer = io.StringIO()
    figure.patch.set_visible(False)
    for axes in figure.axes:
        axes.patch.set_visible(False)
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{key}-", text)
    text = re.sub(r"font-family: [^;\"]*", "font-family: inherit", text)
    return text.replace(_INK, "currentColor")
