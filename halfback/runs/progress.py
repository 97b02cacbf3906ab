"""How long work goes, while it goes: a bar on a terminal or in a notebook, elsewhere plain lines.

Of a run elsewhere there is a line for each evaluation, and one where nothing was said for a while: whoever looks into a
log sees that it is alive, where it is, and how long it will take.
"""

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich import get_console
from rich.console import Console
from rich.progress import TaskID

from halfback.config import RunConfig
from halfback.report.tables import seconds, short_size
from halfback.runs.heartbeat import Line, bar
from halfback.runs.told import OnRound, RunState, Told


@contextmanager
def following(on_round: OnRound | None, *, progress: bool) -> Iterator[Told]:
    """Who is told how a run goes: `on_round`, behind a bar that is shown inside the block if there is to be one."""
    if not progress:
        yield Told(on_round)
        return
    with Bars(get_console()) as bars:

        def told(state: RunState) -> None:
            bars(state)
            if on_round is not None:
                on_round(state)

        yield Told(told, bars.rows)


class Bars:
    """A bar for each run on a terminal or in a notebook; elsewhere a plain line an evaluation, and after a silence."""

    def __init__(self, console: Console) -> None:
        self._is_live = console.is_terminal or console.is_jupyter
        self._bar = bar(console)
        self._tasks: dict[str, TaskID] = {}
        self._metric: dict[str, str] = {}
        self._line = Line(sys.stdout)

    def __enter__(self) -> "Bars":
        if self._is_live:
            self._bar.start()
        else:
            self._line.begin()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._is_live:
            self._bar.stop()
        else:
            self._line.end()

    def __call__(self, state: RunState) -> None:
        """Shows where a run stands."""
        name, steps, record = state.config.algorithm.name, state.config.steps, state.record
        if record.metric is not None:
            self._metric[name] = f"{record.metric:.1f}"
        loss = "" if math.isnan(record.train_loss) else f"loss {record.train_loss:.3f}  "
        now = (
            f"{loss}{state.metric_name} {self._metric.get(name, '–')}  "
            f"up {short_size(record.up_bytes)} down {short_size(record.down_bytes)}"
            + ("" if record.simulated_seconds is None else f"  fleet {seconds(record.simulated_seconds)} s")
        )
        if self._is_live:
            self._bar.update(self._task(state.config), completed=record.step, now=now)
        else:
            self._line.stands(name, record.step, steps, now, is_due=record.metric is not None)

    def rows(self, config: RunConfig, done: int, total: int) -> None:
        """Shows how far an evaluation of a run is."""
        said = f"evaluating {done}/{total} rows"
        if self._is_live:
            self._bar.update(self._task(config), now=said)
        else:
            self._line.works(said)

    def _task(self, config: RunConfig) -> TaskID:
        name = config.algorithm.name
        if name not in self._tasks:
            self._tasks[name] = self._bar.add_task(name, total=config.steps, now="")
        return self._tasks[name]
