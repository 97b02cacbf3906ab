"""How long work goes, while it goes: a bar on a terminal or in a notebook, elsewhere plain lines.

Of a run elsewhere there is a line for each evaluation, and one where nothing was said for a while: whoever looks into a
log sees that it is alive, where it is, and how long it will take.
"""

import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO, final

from rich import get_console
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from halfback.assembly import OnRows
from halfback.config import RunConfig
from halfback.report.tables import seconds, short_size
from halfback.runs.training import OnRound, RunState, Told


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


@contextmanager
def working(what: str, *, shown: bool = True) -> Iterator[OnRows | None]:
    """Who is told how far work on rows is: a bar, or lines where it is silent for long; both where errors go."""
    if not shown:
        yield None
        return
    console = Console(stderr=True)
    if console.is_terminal or console.is_jupyter:
        with _bar(console) as bar:
            task = bar.add_task(what, total=None, now="getting ready")
            yield lambda done, total: bar.update(task, completed=done, total=total, now="rows")
        return
    line = _Line(sys.stderr)
    line.begin()
    try:
        yield lambda done, total: line.works(f"{what} {done}/{total} rows")
    finally:
        line.end()


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=12),
        MofNCompleteColumn(),
        TextColumn("{task.fields[now]}"),
        TimeRemainingColumn(),
        console=console,
    )


_FIRST, _SILENCE = 5.0, 30.0  # seconds without a line until there is one, at the beginning and from then on


class Bars:
    """A bar for each run on a terminal or in a notebook; elsewhere a plain line an evaluation, and after a silence."""

    def __init__(self, console: Console) -> None:
        self._is_live = console.is_terminal or console.is_jupyter
        self._bar = _bar(console)
        self._tasks: dict[str, TaskID] = {}
        self._metric: dict[str, str] = {}
        self._line = _Line(sys.stdout)

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


@final
class _Line:
    """Plain lines about work, by a thread of its own where nothing else says one."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._works = ""  # at what, within a step of a run
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

    def stands(self, name: str, step: int, steps: int, now: str, *, is_due: bool) -> None:
        """Where a run stands; said at once if it is due."""
        with self._lock:
            at = time.monotonic()
            if name != self._name or step < self._first[0]:
                self._name, self._first = name, (step, at)
            line, self._works = f"{name}  step {step}/{steps}  {now}", ""
            self._stands = lambda: line + self._pace(step, steps, at)
            if is_due:
                self._say(line)

    def works(self, at: str) -> None:
        """What it is at, for whoever asks before it stands elsewhere."""
        with self._lock:
            self._works = at

    def _pace(self, step: int, steps: int, at: float) -> str:
        """Seconds of a step, and what is left at that pace."""
        taken, since = step - self._first[0], at - self._first[1]
        return f"  {since / taken:.3g} s a step  {spoken(since / taken * (steps - step))} left" if taken else ""

    def _speak(self) -> None:
        while not self._over.wait(0.5):
            with self._lock:
                silent = time.monotonic() - self._said
                if silent > (_SILENCE if self._has_said else _FIRST) and not self._over.is_set():
                    stands = self._stands() if self._name or not self._works else ""
                    said = "  ".join(filter(None, [stands, self._works]))
                    self._say(f"{said}  ({spoken(time.monotonic() - self._begun)} so far)")

    def _say(self, line: str) -> None:
        print(line, file=self._out, flush=True)
        self._said, self._has_said = time.monotonic(), True


def spoken(seconds: float) -> str:
    """A time as hours, minutes and seconds, the larger two."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"
