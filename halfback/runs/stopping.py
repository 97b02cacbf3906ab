"""When a run ends before its steps are done: it gets no better, or has used up a budget.

Whether it gets better follows from the records, which a run that is continued has as they were.
"""

from pathlib import Path
from typing import final

from halfback.assembly import Built
from halfback.config import RunConfig
from halfback.config.schema import BudgetConfig
from halfback.engine.server_side import ServerSide
from halfback.models.objectives import Objective, better
from halfback.runs.folder import RELEASES
from halfback.telemetry.records import Record


def used_up(budget: BudgetConfig, server: ServerSide, seconds: float) -> str | None:
    """Which budget the bytes of all links, or so many seconds, have used up; None where neither has."""
    used = server.ledger.total("up") + server.ledger.total("down")
    if budget.bytes is not None and used >= budget.bytes:
        return f"{used:,} bytes have used up budget.bytes={budget.bytes:,}"
    if budget.seconds is not None and seconds >= budget.seconds:
        return f"{seconds:.1f} seconds have used up budget.seconds={budget.seconds:g}"
    return None


def keep_account(built: Built, out: Path, step: int) -> None:
    """Of a private run in `out`, at a step: goes on with what was released, which no step back takes back."""
    private = built.federation.server.private
    if private is not None and not private.spent.is_kept:
        private.spent.keep(out / RELEASES, step)


@final
class Watch:
    """What a run's evaluations come to, one after the other.

    Only those over all validation rows count: over other rows a metric is another one.

    Attributes:
        round: of the best evaluation; -1 as long as there is none.
    """

    def __init__(self, config: RunConfig, objective: Objective) -> None:
        self.round = -1
        self._asked, self._objective = config.early_stopping, objective
        self._best: float | None = None
        self._mark: float | None = None  # that is to be beaten by `min_delta`
        self._waited = 0  # evaluations since one did

    def saw(self, record: Record) -> bool:
        """Takes an evaluation in; whether it is the best so far."""
        if record.rows is not None or record.metric is None:
            return False
        if self._mark is None or self._is_better(record.metric, self._mark, self._asked.min_delta):
            self._mark, self._waited = record.metric, 0
        else:
            self._waited += 1
        is_best = self._best is None or self._is_better(record.metric, self._best, 0.0)
        if is_best:
            self._best, self.round = record.metric, record.round
        return is_best

    @property
    def is_over(self) -> bool:
        """Whether nothing got better for as many evaluations as the run has patience for."""
        return self._asked.patience is not None and self._waited >= self._asked.patience

    def why(self, metric: str) -> str:
        """Says of a run that is over why it is."""
        by = f" by more than {self._asked.min_delta:g}" if self._asked.min_delta else ""
        times = "evaluation" if self._waited == 1 else "evaluations"
        return f"{metric} got no better{by} in {self._waited} {times} (early_stopping.patience={self._asked.patience})"

    def _is_better(self, metric: float, than: float, by: float) -> bool:
        """Whether it is better by more than that."""
        rises = better(self._objective, 1.0, 0.0)
        return better(self._objective, metric, than + by if rises else than - by)
