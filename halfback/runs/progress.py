"""How a run goes, while it goes: a bar on a terminal or in a notebook, elsewhere a plain line for each evaluation.

Elsewhere there is also a line where nothing was said for a while: whoever looks into a log sees that the run is alive,
where it is, and how long it will take.
"""

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, final

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


_FIRST, _SILENCE = 5.0, 30.0  # seconds without a line until there is one, at the beginning and from then on


class Bars:
    """A bar for each run on a terminal or in a notebook; elsewhere a plain line an evaluation, and after a silence."""

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
        self._line = Line()

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
            if name not in self._tasks:
                self._tasks[name] = self._bar.add_task(name, total=steps, now=now)
            self._bar.update(self._tasks[name], completed=record.step, now=now)
        else:
            self._line.stands(name, record.step, steps, now, is_due=record.metric is not None)


@final
class Line:
    """Plain lines of work that takes long, by a thread of its own where nothing else says one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._stands: Callable[[], str] = lambda: "getting ready"
        self._name, self._first = "", (0, 0.0)  # of the run that goes: its first step here, and when that was done
        self._begun = self._said = time.monotonic()
        self._has_said = False

    def begin(self) -> None:
        self._begun = self._said = time.monotonic()
        threading.Thread(target=self._speak, daemon=True).start()

    def end(self) -> None:
        self._over.set()

    def at(self, what: str) -> None:
        """What is done now; said at once if nothing was said for a little while."""
        with self._lock:
            self._stands = lambda: what
            if not self._has_said or time.monotonic() - self._said > _FIRST:
                self._say(what)

    def stands(self, name: str, step: int, steps: int, now: str, *, is_due: bool) -> None:
        """Where a run stands; said at once if it is due."""
        with self._lock:
            at = time.monotonic()
            if name != self._name or step < self._first[0]:
                self._name, self._first = name, (step, at)
            line = f"{name}  step {step}/{steps}  {now}"
            self._stands = lambda: line + self._pace(step, steps, at)
            if is_due:
                self._say(line)

    def _pace(self, step: int, steps: int, at: float) -> str:
        """Seconds of a step, and what is left at that pace."""
        taken, since = step - self._first[0], at - self._first[1]
        return f"  {since / taken:.3g} s a step  {spoken(since / taken * (steps - step))} left" if taken else ""

    def _speak(self) -> None:
        while not self._over.wait(0.5):
            with self._lock:
                silent = time.monotonic() - self._said
                if silent > (_SILENCE if self._has_said else _FIRST) and not self._over.is_set():
                    self._say(f"{self._stands()}  ({spoken(time.monotonic() - self._begun)} so far)")

    def _say(self, line: str) -> None:
        print(line, flush=True)
        self._said, self._has_said = time.monotonic(), True


def spoken(seconds: float) -> str:
    """A time as hours, minutes and seconds, the larger two."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"
