"""How a run goes, while it goes: a bar on a terminal or in a notebook, one plain line an evaluation elsewhere."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich import get_console
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from halfback.report.tables import seconds, short_size
from halfback.runs.training import OnRound, RunState


@contextmanager
def following(on_round: OnRound | None, *, progress: bool) -> Iterator[OnRound | None]:
    """Who is told of each round: `on_round`, behind a bar that is shown inside the block if there is to be one."""
    if not progress:
        yield on_round
        return
    with Bars(get_console()) as bars:

        def told(state: RunState) -> None:
            bars(state)
            if on_round is not None:
                on_round(state)

        yield told


class Bars:
    """A bar for each run on a terminal or in a notebook; one plain line an evaluation elsewhere."""

    def __init__(self, console: Console) -> None:
        self._is_live = console.is_terminal or console.is_jupyter
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=12),
            MofNCompleteColumn(),
            TextColumn("{task.fields[now]}"),
            TimeRemainingColumn(),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}
        self._metric: dict[str, str] = {}

    def __enter__(self) -> "Bars":
        if self._is_live:
            self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._is_live:
            self._bar.stop()

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
            if name not in self._tasks:
                self._tasks[name] = self._bar.add_task(name, total=steps, now=now)
            self._bar.update(self._tasks[name], completed=record.step, now=now)
        elif record.metric is not None:
            print(f"{name}  step {record.step}/{steps}  {now}", flush=True)
