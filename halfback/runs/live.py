"""A comparison while it runs: a table on a terminal or in a notebook; elsewhere a line for each cell that is over.

Where that takes long there is a line about the one that runs.
"""

import math
import sys
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from halfback.report.tables import NOTHING, number, seconds, short_size
from halfback.runs.cells import Cell, State
from halfback.runs.heartbeat import Line
from halfback.telemetry.records import Record

_COLUMNS = ("cell", "state", "step", "loss", "metric", "bytes", "fleet s")


class LiveTable:
    """A row for each cell: its state, step, training loss, last metric, bytes both ways and seconds on a fleet."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._is_live = console.is_terminal or console.is_jupyter
        self._rows: dict[str, list[str]] = {}
        self._metrics: dict[str, float] = {}
        self._live = Live(console=console, get_renderable=self._table, refresh_per_second=4, transient=True)
        self._line = Line(sys.stdout)

    def __enter__(self) -> "LiveTable":
        if self._is_live:
            self._live.start()
        else:
            self._line.begin()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._is_live:
            self._live.stop()
        else:
            self._line.end()

    def __call__(self, cell: Cell, state: State, step: int, record: Record | None) -> None:
        name = f"{cell.folder.parent.name}/{cell.folder.name}"
        if state == "waiting":
            self._rows.setdefault(name, [name, state, *[""] * (len(_COLUMNS) - 2)])
            return
        if record is not None and record.metric is not None:
            self._metrics[name] = record.metric
        loss = NOTHING if record is None or math.isnan(record.train_loss) else number(record.train_loss)
        metric = number(self._metrics.get(name))
        size = NOTHING if record is None else short_size(record.up_bytes + record.down_bytes)
        on_fleet = "" if record is None or record.simulated_seconds is None else seconds(record.simulated_seconds)
        self._rows[name] = [name, state, f"{step:,}/{cell.config.steps:,}", loss, metric, size, on_fleet]
        if self._is_live:
            return
        if state == "running":
            self._line.stands(name, step, cell.config.steps, f"loss {loss}  metric {metric}", is_due=False)
        elif state in ("kept", "finished", "diverged"):
            end = f"after step {step}" if state == "diverged" else f"loss {loss}  metric {metric}  bytes {size}"
            end += f"  fleet {on_fleet} s" if on_fleet else ""
            self._line.says(f"{name}  {state}  {end}")

    def _table(self) -> Table:
        """As many rows as the terminal has lines for: those that are over scroll out first."""
        rows = list(self._rows.values())
        room = max(self._console.height - 4, 1)
        running = next((place for place, row in enumerate(rows) if row[1] in ("waiting", "running")), len(rows))
        start = max(0, min(running - room // 2, len(rows) - room))
        shown = len(_COLUMNS) if any(row[-1] for row in rows) else len(_COLUMNS) - 1
        table = Table(*_COLUMNS[:shown], box=None, pad_edge=False)
        for column in table.columns[2:]:
            column.justify = "right"
        for row in rows[start : start + room]:
            table.add_row(*row[:shown])
        return table
