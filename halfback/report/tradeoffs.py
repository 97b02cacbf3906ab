"""Privacy against quality against bytes: what the strongest attack came to, by cut and by how activations travel."""

from collections.abc import Mapping, Sequence
from typing import Any

from halfback.report.charts import Axes, Chart, points
from halfback.report.tables import number, short_size

NOISE = "noise "
OWN = "the recipe's own"
_SHAPES = {"recovered": "share recovered", "AUC": "area under the curve", "PSNR": "PSNR in decibels"}
Finding = Mapping[str, Any]


def curves_of(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """One curve for each thing that was attacked and each cut, as plain values.

    Args:
        findings: as `audit.json` has them; those without a cut, or whose fence failed, are left out.

    Returns:
        `about`, `cut`, `measure` and `points`: as it is and with more and more noise first, then the codecs; each has
        `sent`, `leaked` (what the strongest attack came to), `quality` (None where nothing was trained), `row_bytes`.
    """
    strongest: dict[tuple[str, int, str], Finding] = {}
    for finding in findings:
        if finding["cut"] is not None and not finding["fence"]:
            at = (finding["about"], finding["cut"], finding["sent"])
            if at not in strongest or finding["value"] > strongest[at]["value"]:
                strongest[at] = finding
    curves: dict[tuple[str, int], dict[str, Any]] = {}
    for finding in strongest.values():
        empty = {"about": finding["about"], "cut": finding["cut"], "measure": finding["measure"], "points": []}
        curve = curves.setdefault((finding["about"], finding["cut"]), empty)
        point = {name: finding[name] for name in ("sent", "quality", "row_bytes")}
        curve["points"].append(point | {"leaked": finding["value"]})
    for curve in curves.values():
        plain, *others = curve["points"]  # the first way is as it is
        curve["points"] = [plain, *sorted(others, key=lambda point: not point["sent"].startswith(NOISE))]
    return [curves[at] for at in sorted(curves)]


def drawn_tradeoffs(curves: Sequence[Mapping[str, Any]], metric: str, own: int) -> tuple[list[str], list[Chart]]:
    """Figures of what leaked for its bytes and for its quality, and of quality for bytes; a colour for each cut.

    Args:
        curves: as `curves_of` gives them.
        metric: what quality is.
        own: the cut whose points have their names beside them, where it is among them; else the first one.
    """
    cuts = sorted({curve["cut"] for curve in curves})
    drawn = []
    for about in dict.fromkeys(curve["about"] for curve in curves):
        of = [curve for curve in curves if curve["about"] == about]
        leaked = label_of(of[0]["measure"])
        named = own if any(curve["cut"] == own for curve in of) else of[0]["cut"]
        for x, y, axes in (
            ("quality", "leaked", Axes(f"{metric} on what arrives", leaked, x_text=number)),
            ("row_bytes", "leaked", Axes("bytes of a row", leaked, x_text=short_size)),
            ("row_bytes", "quality", Axes("bytes of a row", f"{metric} on what arrives", x_text=short_size)),
        ):
            if (chart := _drawn(of, cuts, (x, y), axes, named)) is not None:
                drawn.append(chart)
    return [f"cut {cut}" for cut in cuts], drawn


def label_of(measure: str) -> str:
    """What an axis with this measure says."""
    shape = _SHAPES[measure]
    return shape[:1].upper() + shape[1:] + (" in percent" if measure == "recovered" else "")


def scaled(value: float, measure: str) -> float:
    """A value as an axis has it."""
    return float(value) * (100 if measure == "recovered" else 1)


def _drawn(
    curves: Sequence[Mapping[str, Any]], cuts: Sequence[int], what: tuple[str, str], axes: Axes, named: int
) -> Chart | None:
    found: list[tuple[str, int, float, float]] = []
    joined, ringed, by_quality = [], set(), what[0] == "quality"
    for curve in curves:
        line = []
        for point in curve["points"]:
            x, y = (point[name] for name in what)
            if x is None or y is None:
                continue
            is_noise = point["sent"].startswith(NOISE)
            if point["sent"] == OWN:
                ringed.add(len(found))
            if is_noise or point is curve["points"][0]:
                line.append(len(found))
            # Noise takes no bytes, so beside bytes its points lie one above the other.
            is_named = curve["cut"] == named and (by_quality or not is_noise)
            height = scaled(y, curve["measure"]) if what[1] == "leaked" else y
            found.append((point["sent"] if is_named else "", cuts.index(curve["cut"]), x, height))
        joined.append(line)
    if len({x for _, _, x, _ in found}) < 2:
        return None
    noise = "the line joins more and more noise" if by_quality else ""
    said = [f"Named at cut {named}", noise, "ringed is the recipe's own" if ringed else ""]
    caption = "; ".join(part for part in said if part) + "."
    title = f"{axes.y[:1].upper()}{axes.y[1:]} by {axes.x}"
    return points(found, ringed, axes, title, caption, joined if by_quality else ())
