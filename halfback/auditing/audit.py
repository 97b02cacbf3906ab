"""`audit`: all attacks on a run, or on what a recipe would begin with, as a typed result and a page."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

from halfback.assembly import Built, build
from halfback.assembly.given import Given, settings_of
from halfback.auditing.apart import apart
from halfback.auditing.arrivals import cuts_of
from halfback.auditing.clock import Clock
from halfback.auditing.finding import Finding, values_of
from halfback.auditing.images import images
from halfback.auditing.labels import labels
from halfback.auditing.members import membership
from halfback.auditing.seat import Seat
from halfback.auditing.slopes import slopes
from halfback.auditing.tokens import tokens
from halfback.config.values import Config, resolve_values
from halfback.data.own import Data
from halfback.errors import UserError
from halfback.models.cut import check_cut
from halfback.report.audited import sentences, write_audit
from halfback.report.tradeoffs import curves_of
from halfback.runs.folder import CONFIG, as_json, write_results
from halfback.runs.heartbeat import Line
from halfback.runs.opening import reload

PAGE, VALUES = "audit.html", "audit.json"
_MOST_ROWS = 2000  # of each heap


@final
class Audit:
    """What `audit` came to.

    Attributes:
        findings: one for each attack, cut and way in which data travel.
        values: everything, as `audit.json` has it: rates, and no row of anybody's.
    """

    def __init__(self, findings: Sequence[Finding], values: dict[str, Any]) -> None:
        """`audit` makes one.

        Args:
            findings: of all attacks.
            values: as they are written.
        """
        self.findings = list(findings)
        self.values = values

    def __repr__(self) -> str:
        return f"<Audit: {self.values['said'][0]}>"

    @property
    def said(self) -> list[str]:
        """The verdict.

        Returns:
            Sentences.
        """
        return list(self.values["said"])

    def write(self, out: str | Path) -> Path:
        """Writes the page `audit.html`, and `audit.json` beside it.

        Args:
            out: a folder; files of an earlier audit in it are replaced.

        Returns:
            The folder.

        Raises:
            UserError: it can't be written.
        """
        texts = {VALUES: as_json(self.values)}
        return write_results(out, lambda folder: write_audit(self.values, folder / PAGE), texts)


def audit(
    config: Config,
    *,
    minutes: float = 5.0,
    cuts: Sequence[int] | None = None,
    data: Data | None = None,
    progress: bool = True,
    **settings: Any,
) -> Audit:
    """Attacks one's own set-up from the server's seat, on this machine, on rows that are set apart.

    An attack that finds nothing proves nothing about stronger ones; one that can't find a planted leak says nothing at
    all, and its finding says so.

    Args:
        config: the folder of a run, whose last checkpoint is attacked; or a recipe's name, a YAML file or settings,
            for the weights that such a run would begin with.
        minutes: that the attacks may take, about; the more, the stronger are those that are trained.
        cuts: blocks before the cut, each of which is looked at; by default the recipe's, the first, the deepest and
            some between.
        data: as `train` was given it, where it was.
        progress: whether to say where it stands.
        **settings: of the recipe, by section or by path, that are others here.

    Returns:
        What each attack came to, with what it has to be held against.

    Raises:
        UserError: a setting is wrong, or there are too few rows to set apart.
    """
    if not 0 < minutes <= 24 * 60:
        raise UserError(f"minutes={minutes:g}: more than 0 and up to 1440 are allowed")
    with _telling(progress) as tell:
        clock = Clock(60 * minutes)
        tell("reading rows and model")
        built, is_trained = _opened(config, data, settings)
        built.federation.server.agreed_bottom()
        rows = apart(built, built.config.seed, _MOST_ROWS)
        seat = Seat(built, rows, is_trained, tell)
        looked = _cuts(built, cuts)
        findings, notes = _attacked(seat, looked, clock)
    plain = [values_of(finding) for finding in findings]
    values = {
        "task": built.config.task.name,
        "model": Path(built.config.model.name).name,
        "method": built.config.algorithm.name,
        "shape": "plain" if built.model.head is None else "U-shape",
        "is_trained": is_trained,
        "cut": built.model.at,
        "cuts": looked,
        "metric": built.task.metric,
        "victim_rows": len(rows.victims),
        "own_rows": len(rows.own),
        "rows_left_out_as_equal": rows.doubled,
        "seconds": round(clock.spent, 1),
        "findings": plain,
        "curves": curves_of(plain),
        "notes": notes,
    }
    return Audit(findings, {**values, "said": sentences(values)})


def _opened(config: Config, data: Data | None, settings: dict[str, Any]) -> tuple[Built, bool]:
    """What is attacked, and whether a run has trained it."""
    given = Given(data=data)
    if isinstance(config, str | Path) and (Path(config) / CONFIG).exists():
        if settings:
            raise UserError(f"{next(iter(settings))}: a run's settings are what they are; give its recipe instead")
        return reload(Path(config), given), True
    return build(resolve_values(config, settings | settings_of(given)), given=given), False


def _cuts(built: Built, chosen: Sequence[int] | None) -> list[int]:
    looked = cuts_of(built, chosen)
    for cut in looked:
        check_cut(built.model.whole, cut, built.config.model.head)
    return looked


def _attacked(seat: Seat, cuts: Sequence[int], clock: Clock) -> tuple[list[Finding], list[str]]:
    """All attacks, each with a share of the time; that on labels is the last, since the run goes on meanwhile."""
    found: list[Finding] = []
    notes: list[str] = []
    for attack in (membership, slopes):
        more, said = attack(seat, clock.part(0.08))
        found, notes = [*found, *more], [*notes, *said]
    by_cut = images if seat.built.task.train.longest() == 0 else tokens
    if _sends_activations(seat):
        found = [*by_cut(seat, cuts, clock.part(0.85)), *found]
    else:
        notes.append("Activations: this method sends none.")
    more, said = labels(seat, clock)
    return [*found, *more], [*notes, *said]


def _sends_activations(seat: Seat) -> bool:
    return seat.built.ground.algorithm.needs.holds != "whole"


@contextmanager
def _telling(progress: bool) -> Iterator[Callable[[str], None]]:
    """Who is told where the audit stands."""
    if not progress:
        yield lambda what: None
        return
    line = Line(sys.stdout)
    line.begin()
    try:
        yield lambda what: line.works(f"audit: {what}")
    finally:
        line.end()
