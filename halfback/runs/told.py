"""Who is told how a run goes, and what."""

from collections.abc import Callable
from dataclasses import dataclass

from halfback.config import RunConfig
from halfback.telemetry.records import Record


@dataclass(frozen=True)
class RunState:
    """Where a run stands behind a round, as the function `on_round` is told.

    Attributes:
        config: the run's configuration.
        metric_name: what `record.metric` is, as `accuracy` (in percent) or `perplexity`.
        record: step, losses, metric, bytes and seconds; the validation loss and the metric are None behind a round
            that is followed by no evaluation.
    """

    config: RunConfig
    metric_name: str
    record: Record

    @property
    def step(self) -> int:
        """Optimiser steps that have been taken; `config.steps` is how many there will be."""
        return self.record.step

    @property
    def train_loss(self) -> float:
        """Mean training loss of the rounds since the last evaluation; NaN before the first round."""
        return self.record.train_loss

    @property
    def metric(self) -> float | None:
        """The metric on the validation rows, where this round was followed by an evaluation."""
        return self.record.metric

    @property
    def total_bytes(self) -> int:
        """Bytes that all clients have sent and received since the run began."""
        return self.record.up_bytes + self.record.down_bytes


OnRound = Callable[[RunState], object]
"""Called behind every round, and once before the first; an exception from it stops the run, which can go on."""


@dataclass(frozen=True)
class Told:
    """Who is told how a run goes.

    Attributes:
        on_round: of each round.
        on_rows: within an evaluation, of the run's configuration, the rows that are done, and how many there are.
        on_evaluation: of each evaluation as soon as it is made, so before the checkpoint behind it.
    """

    on_round: OnRound | None = None
    on_rows: Callable[[RunConfig, int, int], object] | None = None
    on_evaluation: OnRound | None = None
