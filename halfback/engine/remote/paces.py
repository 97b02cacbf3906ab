"""How long each client may take for a reply: as long as the deadline says, or as its own pace says."""

from collections import defaultdict, deque
from typing import final

from halfback.engine.remote.presence import Terms

_LATELY = 20  # replies of a client that its pace is taken from
_LEAST = 1.0  # seconds: shorter waits are not told from the noise of a machine and a line


@final
class Paces:
    """What clients took for their replies."""

    def __init__(self, terms: Terms) -> None:
        self._terms = terms
        self._took: defaultdict[int, deque[float]] = defaultdict(lambda: deque(maxlen=_LATELY))
        self._last: dict[int, int] = {}  # the last round that each took part in

    def allowed(self, client: int, round_number: int) -> float:
        """Seconds that a client has for its next reply: its slowest one lately, as often as the terms say.

        It has once more as long for each round that it missed, since it replays these first. One that has not replied
        yet, or was away, has until the deadline.
        """
        if self._terms.pace is None or not self._took[client]:
            return self._terms.deadline
        missed = round_number - self._last[client]
        own = max(self._terms.pace * max(self._took[client]), _LEAST) * max(missed, 1)
        return min(own, self._terms.deadline)

    def took(self, client: int, round_number: int, seconds: float) -> None:
        """A client has replied after so many seconds."""
        self._took[client].append(seconds)
        self._last[client] = round_number

    def forget(self, client: int) -> None:
        """A client was away: what it took before says nothing of how it is when it is back."""
        self._took.pop(client, None)
