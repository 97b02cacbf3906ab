"""How long an audit has, and how much of it each attack may take."""

import time
from dataclasses import dataclass, field
from typing import final


@final
@dataclass
class Clock:
    """Counts from when it is made.

    Attributes:
        seconds: that there are.
    """

    seconds: float
    _begun: float = field(default_factory=time.monotonic)

    @property
    def spent(self) -> float:
        """Seconds since it was made."""
        return time.monotonic() - self._begun

    @property
    def left(self) -> float:
        """Seconds that are left, 0 or more."""
        return max(0.0, self.seconds - self.spent)

    def part(self, share: float) -> "Clock":
        """A share of what is left, which begins now."""
        return Clock(self.left * share)
