"""Signals that end a run behind a round, with a checkpoint."""

import logging
import signal
import threading
from typing import Any

log = logging.getLogger(__name__)


class Asked(KeyboardInterrupt):
    """A signal has ended a run behind a round.

    Attributes:
        step: that is done, and in the checkpoint.
        signal: its number.
    """

    def __init__(self, step: int, number: int) -> None:
        """Says what was asked, and when."""
        super().__init__(f"asked to stop at step {step}")
        self.step, self.signal = step, number


class Interrupts:
    """Ctrl-C or SIGTERM while a run goes: the first ends it behind the round, the next at once.

    Only where the signal does what it does by itself, in Python: nobody else's handler is touched.

    Attributes:
        asked: the number of the signal that came; 0 as long as none did.
    """

    def __init__(self) -> None:
        self.asked = 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
                if signal.getsignal(number) is usual:
                    self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        self._put_back()

    def _put_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _: object) -> None:
        self.asked = number
        self._put_back()
        log.info("stopping behind this round; once more stops at once, at the last checkpoint")
