"""What FLARE does for each of a run's thousands of calls and nobody needs, left out in this process.

FLARE 2.9 has no settings for these: `benchmarks/flare_growth.py` and `benchmarks/gateway_transport.py` measure them.
"""

import heapq
import logging
import threading
import time
from collections.abc import Callable
from itertools import count
from typing import Any, final

from nvflare.fuel.f3.streaming.byte_receiver import RxTask
from nvflare.fuel.utils.buffer_list import ConsumableBufferList


def be_quiet() -> None:
    """Three things.

    - It writes several lines of log for each call.
    - It makes a line for debugging of whatever comes, byte for byte, and throws it away where nobody reads such lines:
      10 ms for a megabyte, more than its way takes.
    - It keeps a thread for each reply that has come until it would not be sent again, 65 s, only to forget it then:
      6,500 threads at a hundred calls a second. One thread forgets them all.
    """
    for name in ("CellDispatcher", "Group"):
        logging.getLogger(name).setLevel(logging.WARNING)
    ConsumableBufferList.__repr__ = _short
    RxTask._schedule_remove_task = _forget_later


def _short(buffers: list[Any]) -> str:
    return f"{len(buffers)} buffers"


def _forget_later(task: Any, ttl: float | None = None) -> None:
    """In place of `RxTask._schedule_remove_task`."""
    with task.stop_lock:
        if task.cleanup_timer is None:
            seconds = task.completed_task_ttl if ttl is None else ttl
            task.cleanup_timer = _LATER.call(seconds, task._remove_task)


@final
class Later:
    """Calls functions after a while, all of them from one thread, which begins with the first."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int, Call]] = []  # a heap
        self._order = count()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def call(self, seconds: float, work: Callable[[], None]) -> "Call":
        """Calls `work` after so many seconds."""
        call = Call(work)
        with self._changed:
            heapq.heappush(self._due, (time.monotonic() + seconds, next(self._order), call))
            self._changed.notify()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="later", daemon=True)
                self._thread.start()
        return call

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._due or self._due[0][0] > time.monotonic():
                    self._changed.wait(self._due[0][0] - time.monotonic() if self._due else None)
                call = heapq.heappop(self._due)[2]
            try:
                call.now()
            except Exception:
                logging.getLogger(__name__).exception("a call failed")  # the others are due all the same


@final
class Call:
    """One that is due later, which may be called off."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work: Callable[[], None] | None = work

    def now(self) -> None:
        """Calls it, unless it was called off."""
        if (work := self._work) is not None:
            work()

    def cancel(self) -> None:
        """Calls it off."""
        self._work = None


_LATER = Later()
