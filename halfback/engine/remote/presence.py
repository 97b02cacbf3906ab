"""Which of a run's clients are there, which are on their way, and which are out of it for good."""

import logging
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence, Set
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Protocol, final

from halfback.engine.remote.frames import (
    Frame,
    Longest,
    Prepare,
    Question,
    Ready,
    Refused,
    frame,
    longest_reply,
    read_reply,
)
from halfback.errors import Diverged, HalfbackError, PeerError, UserError

log = logging.getLogger(__name__)

_SILENCE = 5.0  # seconds of waiting until it is said
_PAUSE = 0.05  # seconds between two looks for clients that are back
_RETRY = 2.0  # seconds until a client that could not be prepared is asked again

Came = Frame | str | PeerError
"""The reply that came, why none did, or what was wrong with it."""

Events = Callable[[dict[str, Any]], None]
"""Takes what happens to clients, as plain values."""


class Carrier(Protocol):
    """Takes questions to sites and brings their replies; it may be used by several threads."""

    def reachable(self) -> set[int]:
        """The clients that have a site which could reply."""
        ...

    def is_there(self, client: int) -> bool:
        """Whether its site replies at all, found out in a few seconds."""
        ...

    def ask(
        self, questions: Mapping[int, Frame], seconds: Mapping[int, float], longest: Longest
    ) -> Generator[tuple[int, Came], None, None]:
        """All at once; each client and its reply as it comes, or why there is none after its seconds.

        Whoever has heard enough may stop listening; the other clients are then busy until they have replied. What is
        longer than allowed is a PeerError, and is not read.
        """
        ...


@dataclass(frozen=True)
class Beginning:
    """What a client is told first: the question with its part of the run; and the weights, packed, if it needs them."""

    question: Callable[[int], Prepare]
    weights: Callable[[int], bytes]


@dataclass(frozen=True)
class Terms:
    """How long the server waits.

    Attributes:
        deadline: seconds that a client has for a reply in a round.
        min_cohort: clients that a round needs; None for all that are sampled.
        patience: seconds that a round waits for them until the run stops.
        spare: clients that are asked beside those that are sampled, of whom the slowest are not waited for.
        pace: how many times as long as it took lately a client may take for a reply; None for `deadline` alone.
    """

    deadline: float
    min_cohort: int | None
    patience: float
    spare: int = 0
    pace: float | None = None

    @property
    def needs_all(self) -> bool:
        """Whether no client of a cohort may be missing."""
        return self.min_cohort is None

    def least(self, wanted: Sequence[int]) -> int:
        """How many of a cohort a round needs."""
        return len(wanted) if self.min_cohort is None else min(self.min_cohort, len(wanted))

    def most(self, wanted: Sequence[int]) -> int:
        """How many clients are asked in its place."""
        return len(wanted) if self.min_cohort is None else len(wanted) + self.spare


@final
class Presence:
    """The clients that a carrier can reach.

    Attributes:
        ready: those that have built their part of the run and reply.
        rows: training rows that each has said it has.
    """

    def __init__(self, carrier: Carrier, beginning: Beginning, terms: Terms, events: Events) -> None:
        self.ready: set[int] = set()
        self.rows: dict[int, int] = {}
        self._carrier = carrier
        self._beginning = beginning
        self._terms = terms
        self._events = events
        self._begun = False  # a round, with this server
        self._round = 0
        self._expelled: dict[int, HalfbackError] = {}
        self._failures: dict[int, str] = {}
        self._coming: set[int] = set()
        self._busy: set[int] = set()  # with a question whose reply nobody waits for any more
        self._came: SimpleQueue[tuple[int, str | UserError | None]] = SimpleQueue()  # prepared, or why not

    def lose(self, number: int, why: str) -> None:
        """A client is gone, until it is back."""
        self._events({"event": "dropped", "round": self._round, "client": number, "why": why})
        self._forget(number, why)

    def expel(self, number: int, error: HalfbackError) -> None:
        """A client is gone for good."""
        self._events({"event": "expelled", "round": self._round, "client": number, "why": str(error)})
        self._expelled[number] = error
        self._forget(number, str(error))

    def leave_behind(self, number: int) -> None:
        """A client is not waited for; it is ready again once it has replied."""
        self.ready.discard(number)
        self._busy.add(number)

    def _forget(self, number: int, why: str) -> None:
        self.ready.discard(number)
        self._busy.discard(number)
        self._failures[number] = why

    def gather(
        self,
        round_number: int,
        wanted: Sequence[int],
        others: Callable[[set[int]], list[int]],
        bound: Set[int] = frozenset(),
    ) -> list[int]:
        """Those of a round's cohort that are there, once there are enough.

        Args:
            round_number: of the round.
            wanted: its cohort.
            others: who may take part beside them, first come first, of the clients that are ready.
            bound: those without whose memory the run can't go on to the same bits. One that has left is asked all the
                same, since it might be back as another process, without that memory.

        Raises:
            UserError: too few came within the patience.
        """
        self._round, patience = round_number, self._terms.patience
        least, begun, said = self._terms.least(wanted), time.monotonic(), False
        while True:
            there = self._look_around()
            for client in [client for client in wanted if client in self.ready - there - bound]:
                self.lose(client, "nobody is at its place")
            present = [client for client in wanted if client in self.ready]
            present = sorted([*present, *others(self.ready & there)[: self._terms.most(wanted) - len(present)]])
            # A run begins with all who are there; later on nobody waits for one who is coming, if there are enough.
            waits = not self._begun and self._coming & set(wanted) and time.monotonic() < begun + patience
            if len(present) >= least and not waits:
                self._begun = True
                return present
            if len([client for client in wanted if client not in self._expelled]) < least:
                error = next(self._expelled[client] for client in wanted if client in self._expelled)
                raise type(error)(f"round {round_number} needs {least} clients, and one is expelled: {error}")
            waited = time.monotonic() - begun
            if waited > min(_SILENCE, patience):
                missing = {client: self._failures.get(client, "not connected") for client in wanted}
                why = "; ".join(f"client {c}: {why}" for c, why in missing.items() if c not in self.ready)
                needs = f"needs {least} of the clients {list(wanted)}"
                if waited > patience:
                    raise UserError(
                        f"round {round_number} {needs} and waited {patience:g} s (deployment.patience): {why}"
                    )
                if not said:
                    self._events({"event": "waits", "round": round_number, "why": f"it {needs}; {why}"})
                said = True
            time.sleep(_PAUSE)

    def _look_around(self) -> set[int]:
        """Takes in who is prepared by now, and has those prepared who are reachable and not ready; who is reachable."""
        while not self._came.empty():
            number, why = self._came.get()
            self._coming.discard(number)
            if why is None:
                self.ready.add(number)
                event = "returned" if number in self._failures else "joined"
                if number not in self._busy:
                    self._events({"event": event, "round": self._round, "client": number})
                self._busy.discard(number)
                self._failures.pop(number, None)
            elif isinstance(why, UserError):  # asking again would change nothing
                self.expel(number, why)
            elif number in self._busy:
                self.lose(number, why)
            else:
                self._failures[number] = why
        there = self._carrier.reachable()
        for number in there - self.ready - self._coming - self._expelled.keys():
            self._coming.add(number)
            wait = _RETRY if number in self._failures else 0.0
            # A daemon: nobody waits for a silent client when the run is over.
            threading.Thread(target=self._bring, args=(number, wait), daemon=True).start()
        return there

    def _bring(self, number: int, wait: float) -> None:
        time.sleep(wait)
        try:
            self._came.put((number, self._prepared(number)))
        except Exception as error:  # of the carrier: the next look tries again
            log.exception("client %d could not be prepared", number)
            self._came.put((number, f"{type(error).__name__}: {error}"))

    def _prepared(self, number: int) -> str | UserError | None:
        """Has a client build its part of the run; why that failed, for good where it is an error, or None."""
        if not self._carrier.is_there(number):
            return "its site does not reply"
        question = self._beginning.question(number)
        reply = self._ask(number, question, b"")
        if isinstance(reply, Ready) and not reply.fits:
            weights = self._beginning.weights(number)
            self._events({"event": "was sent weights", "round": self._round, "client": number, "bytes": len(weights)})
            reply = self._ask(number, question, weights)
        if not isinstance(reply, Ready):
            return reply if isinstance(reply, str) else getattr(reply, "error", f"{reply.kind} came, ready is due")
        if not reply.fits:
            return "its model differs from the server's, also after it got the weights"
        if (before := self.rows.setdefault(number, reply.rows)) != reply.rows:
            return UserError(f"client {number}: it said that it has {before} training rows, and says {reply.rows} now")
        return None

    def _ask(self, number: int, question: Question, body: bytes) -> Any:
        patience = {number: self._terms.patience}
        ((_, came),) = self._carrier.ask({number: frame(question, body)}, patience, longest_reply(0, 0))
        return read_or_why(came)


def read(came: Came) -> Any:
    """The reply that came, or why there is none; PeerError for what is none."""
    if isinstance(came, PeerError):
        raise came
    return came if isinstance(came, str) else read_reply(came.header)


def read_or_why(came: Came) -> Any:
    """The reply that came, or why there is none that can be read."""
    try:
        return read(came)
    except PeerError as error:
        return str(error)


def reported(number: int, refusal: Refused) -> HalfbackError | None:
    """The error that a client says it met; None where it may reply if it is asked again."""
    match refusal.why:
        case "peer":
            return PeerError(refusal.error, sender=number)
        case "diverged":
            return Diverged(refusal.error, sender=number)
        case "user":
            return UserError(f"client {number}: {refusal.error}")
        case _:
            return None
