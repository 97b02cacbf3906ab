"""An audit as a table, as sentences and as a page, from its plain values alone (`audit.json`)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from halfback.report.charts import Axes, Chart, Line, curves
from halfback.report.rendering import Table, write_page
from halfback.report.tables import NOTHING, number, short_size
from halfback.report.tradeoffs import NOISE, OWN, drawn_tradeoffs, label_of, scaled

Finding = Mapping[str, Any]
HEADER = ["", "attack", "cut", "sent as", "came to", "chance", "planted", "a row", "quality", "so"]
NOTE = (
    "Came to: the share that was recovered, the area under the curve (a half is chance), or decibels. Chance: what the "
    "attack comes to without listening. Planted: the same attack where a leak was planted; one that misses it proves "
    "nothing, and no conclusion is drawn. A row: bytes on the wire. Quality: the metric on what arrives, where a run "
    "was trained. An attack that finds nothing promises nothing about stronger ones."
)
RATES = (
    "There are rates alone in here, and no row, token or label of anybody: a report is made to be shown, and would "
    "otherwise be the leak that it looks for."
)


def audit_table(audit: Mapping[str, Any], *, every: bool = False) -> tuple[list[str], list[list[str]]]:
    """Header and rows of all findings; unless `every`, of each attack and cut as it is and the least that came."""
    shown = audit["findings"] if every else _chosen(audit["findings"])
    return HEADER, [_cells(finding, audit["metric"]) for finding in shown]


def _chosen(findings: Sequence[Finding]) -> list[Finding]:
    """Of what has a cut the strongest attack on each, as it is sent plainly, and what lies lowest without noise."""
    chosen = [finding for finding in findings if finding["cut"] is None]
    for about, cut in dict.fromkeys((f["about"], f["cut"]) for f in findings if f["cut"] is not None):
        here = [f for f in findings if (f["about"], f["cut"]) == (about, cut) and not f["sent"].startswith(NOISE)]
        strongest: dict[str, Finding] = {}
        for finding in here:
            known = strongest.get(finding["sent"])
            if known is None or finding["value"] > known["value"]:
                strongest[finding["sent"]] = finding
        found = list(strongest.values())
        least = min(found, key=lambda f: f["value"])
        chosen += [found[0]] if least is found[0] else [found[0], least]
    return chosen


def _cells(finding: Finding, metric: str) -> list[str]:
    size, quality = finding["row_bytes"], finding["quality"]
    return [
        finding["about"],
        finding["how"],
        NOTHING if finding["cut"] is None else str(finding["cut"]),
        finding["sent"] or NOTHING,
        _value(finding, "value"),
        _value(finding, "chance"),
        _value(finding, "planted"),
        NOTHING if size is None else short_size(size),
        NOTHING if quality is None else f"{metric} {number(quality)}",
        finding["fence"] or finding["conclusion"],
    ]


def _value(finding: Finding, key: str) -> str:
    value = finding[key]
    if finding["measure"] == "recovered":
        return f"{value:.1%}"
    return f"{value:.3f}" if finding["measure"] == "AUC" else f"{value:.1f} dB"


def sentences(audit: Mapping[str, Any]) -> list[str]:
    """The verdict: what leaks most of each thing, what no conclusion can be drawn about, and what wasn't attacked."""
    said = []
    for about in dict.fromkeys(finding["about"] for finding in audit["findings"]):
        of = [finding for finding in audit["findings"] if finding["about"] == about]
        sound = [finding for finding in of if not finding["fence"]]
        plain = [finding for finding in sound if not finding["sent"].startswith(NOISE)]
        if not plain:
            said.append(f"{_capital(about)}: no conclusion, since the attack did not pass its own fences.")
            continue
        own = [finding for finding in plain if finding["cut"] in (None, audit["cut"])] or plain
        # Of what has no cut the first one is the recipe's own case.
        said.append(_worst(about, own[0] if own[0]["cut"] is None and about != "labels" else _largest(own)))
        if through := [finding for finding in own if finding["sent"] == OWN]:
            said.append(_worst(about, _largest(through)))
        if failed := len(of) - len(sound):
            said.append(f"{_capital(about)}: {failed} of {len(of)} attacks did not pass their own fences.")
    return [*said, *audit["notes"]]


def _largest(findings: Sequence[Finding]) -> Finding:
    return max(findings, key=lambda finding: float(finding["value"]))


def _worst(about: str, finding: Finding) -> str:
    where = "" if finding["cut"] is None else f" at cut {finding['cut']}"
    sent = f" ({finding['sent']})" if finding["sent"] else ""
    what = {"recovered": "recovered", "AUC": "told apart, area", "PSNR": "rebuilt at"}[finding["measure"]]
    end = "that is chance, for this attack" if finding["conclusion"] != "leaks" else "it leaks"
    figures = f"{_value(finding, 'value')} by {finding['how']}, {_value(finding, 'chance')} by chance"
    return f"{_capital(about)}{where}{sent}: {what} {figures}; {end}."


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def write_audit(audit: Mapping[str, Any], out: Path) -> Path:
    """Writes an audit as one page and returns its path.

    Raises:
        UserError: `out` cannot be written.
    """
    header, body = audit_table(audit, every=True)
    names, drawn = _by_cut(audit)
    costs, bought = drawn_tradeoffs(audit["curves"], audit["metric"], audit["cut"])
    values = {
        "title": f"What a server reads of {audit['task']}",
        "versions": "",
        "said": audit["said"],
        "set_up": (
            f"{audit['model']}, {audit['method']}, {audit['shape']} shape, cut {audit['cut']}; weights "
            + ("of the run's last checkpoint" if audit["is_trained"] else "that a run would begin with")
            + f". {audit['victim_rows']} training rows were attacked with {audit['own_rows']} validation rows that are "
            f"none of them ({audit['rows_left_out_as_equal']} equal ones were left out), in {audit['seconds']:g} s."
        ),
        "names": names,
        "drawn": drawn,
        "costs": costs,
        "bought": bought,
        "table_": Table("All attacks", ["about", *header[1:]], body, words=4, note=NOTE),
        "rates": RATES,
    }
    return write_page("audit.html", values, out)


def _by_cut(audit: Mapping[str, Any]) -> tuple[list[str], list[Chart]]:
    """What came by cut, a curve for each way that it was sent, a figure for each kind of attack."""
    found = [f for f in audit["findings"] if f["cut"] is not None and not f["fence"]]
    ways = list(dict.fromkeys(f["sent"] for f in found))
    drawn = []
    for about, kind in dict.fromkeys((f["about"], _kind(f)) for f in found):
        lines = []
        for order, way in enumerate(ways):
            here = [f for f in found if (f["about"], _kind(f), f["sent"]) == (about, kind, way)]
            if here:
                lines.append(
                    Line(way, order, [f["cut"] for f in here], [scaled(f["value"], f["measure"]) for f in here])
                )
        if lines:
            axes = Axes("blocks before the cut", label_of(found[0]["measure"]))
            drawn.append(curves(lines, axes, f"{_capital(about)} by cut", f"By the {kind}."))
    return ways, drawn


def _kind(finding: Finding) -> str:
    """The attack without its size, which differs by cut."""
    return str(finding["how"]).partition(" of ")[0]
