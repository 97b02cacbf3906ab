"""A comparison while it runs: a table on a terminal or in a notebook, one plain line a cell that is over elsewhere."""

import math
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from halfback.report.tables import NOTHING, number, short_size
from halfback.runs.cells import Cell, State
from halfback.telemetry.records import Record

_COLUMNS = ("cell", "state", "step", "loss", "metric", "bytes")


class LiveTable:
    """A row for each cell: its state, step, training loss, last metric and bytes both ways."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._is_live = console.is_terminal or console.is_jupyter
        self._rows: dict[str, list[str]] = {}
        self._metrics: dict[str, float] = {}
        self._live = Live(console=console, get_renderable=self._table, refresh_per_second=4, transient=True)

    def __enter__(self) -> "LiveTable":
        if self._is_live:
            self._live.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._is_live:
            self._live.stop()

    def __call__(self, cell: Cell, state: State, step: int, record: Record | None) -> None:
        name = f"{cell.folder.parent.name}/{cell.folder.name}"
        if state == "waiting":
            self._rows.setdefault(name, [name, state, "", "", "", ""])
            return
        if record is not None and record.metric is not None:
            self._metrics[name] = record.metric
        loss = NOTHING if record is None or math.isnan(record.train_loss) else number(record.train_loss)
        metric = number(self._metrics.get(name))
        size = NOTHING if record is None else short_size(record.up_bytes + record.down_bytes)
        self._rows[name] = [name, state, f"{step:,}/{cell.config.steps:,}", loss, metric, size]
        if not self._is_live and state in ("kept", "finished", "diverged"):
            end = f"after step {step}" if state == "diverged" else f"loss {loss}  metric {metric}  bytes {size}"
            print(f"{name}  {state}  {end}", flush=True)

    def _table(self) -> Table:
        """As many rows as the terminal has lines for: those that are over scroll out first."""
        rows = list(self._rows.values())
        room = max(self._console.height - 4, 1)
        running = next((place for place, row in enumerate(rows) if row[1] in ("waiting", "running")), len(rows))
        start = max(0, min(running - room // 2, len(rows) - room))
        table = Table(*_COLUMNS, box=None, pad_edge=False)
        for column in table.columns[2:]:
            column.justify = "right"
        for row in rows[start : start + room]:
            table.add_row(*row)
        return table
