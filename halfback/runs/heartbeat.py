"""Work that shows it is alive: a bar on a terminal or in a notebook, elsewhere a line where it is silent for long.

Nothing heavy is imported here, so a command that takes long to begin can say so.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO, final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_FIRST, _SILENCE = 2.5, 28.0  # seconds without a line until there is one, at the beginning and from then on


@contextmanager
def working(what: str, *, shown: bool = True) -> Iterator[Callable[[int, int], object] | None]:
    """Who is told how far work on rows is: a bar, or lines where it is silent for long; both where errors go."""
    if not shown:
        yield None
        return
    console = Console(stderr=True)
    if console.is_terminal or console.is_jupyter:
        with bar(console, is_left=False) as shown_bar:
            task = shown_bar.add_task(what, total=None, now="getting ready")
            yield lambda done, total: shown_bar.update(task, completed=done, total=total, now="rows")
        return
    line = Line(sys.stderr)
    line.begin()
    line.works(what)
    try:
        yield lambda done, total: line.works(f"{what} {done}/{total} rows")
    finally:
        line.end()


def bar(console: Console, *, is_left: bool = True) -> Progress:
    """A bar for each thing that goes on; `is_left` there when it is over."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=12),
        MofNCompleteColumn(),
        TextColumn("{task.fields[now]}"),
        TimeRemainingColumn(),
        console=console,
        transient=not is_left,
    )


@final
class Line:
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

    def says(self, line: str) -> None:
        """Something that is said at once."""
        with self._lock:
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
