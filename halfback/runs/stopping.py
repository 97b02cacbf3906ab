"""Whether a run gets better: which of its evaluations is the best, and when there has been none better for too long.

All of it follows from the records, which a run that is continued has as they were.
"""

from typing import final

from halfback.config import RunConfig
from halfback.models.objectives import Objective, better
from halfback.telemetry.records import Record


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
