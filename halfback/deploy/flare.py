"""What the two components of the FLARE job share: calls by FLARE's Collab API, and what they carry.

All that makes a federation is FLARE's: membership, certificates, authorisation, the life of the job, large messages.
Ours are a header (text) and a body (bytes; FLARE moves a tensor slower, since it asks for it in calls of its own).
"""

import time
from collections.abc import Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from math import isfinite
from typing import Any, NamedTuple, final

from nvflare.collab import CollabCallError

from halfback.deploy.seats import Place
from halfback.deploy.site import MOST_SEATS
from halfback.engine.remote.frames import Frame, Longest
from halfback.engine.remote.presence import Came
from halfback.errors import PeerError, one_line

PROGRESS = "halfback"  # topic of the questions that `halfback deploy` asks a running job
SERVER = "server"  # who calls, in FLARE's words, where the job's server does
_GRACE = 5.0  # seconds more for a call than for its question, so that the site's own word comes first
_LOOK = 1.0  # seconds between two looks at who is at a site
_THREADS = 256
_MOST_COUNTS = 100  # that a gateway says


@final
class FlareCarrier:
    """Asks the sites of a job by FLARE's calls, and looks once a second which of their places somebody is at."""

    def __init__(self, sites: Mapping[str, Any], seats: Mapping[int, Place]) -> None:
        """`sites`: name → proxy; `seats`: client number → its place."""
        self._sites = dict(sites)
        self._seats = dict(seats)
        threads = min(len(seats) * 2 + len(sites) + 1, _THREADS)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="ask")
        self._there: dict[str, tuple[float, _Present | None]] = {}  # as each site said last; None: it said nothing
        self._looks: dict[str, tuple[float, Future[None]]] = {}

    def reachable(self) -> set[int]:
        """Who was there a moment ago; the first look is waited for, since a run begins with all who are there."""
        is_first, now = not self._looks, time.monotonic()
        for name in {place.site for place in self._seats.values()}:
            begun, look = self._looks.get(name, (0.0, None))
            if look is None or (look.done() and now - begun > _LOOK):
                self._looks[name] = (now, self._threads.submit(self._look, name))
        if is_first:
            wait([look for _, look in self._looks.values()])
        return {number for number, place in self._seats.items() if self._is_there(place)}

    def counts(self) -> dict[str, Mapping[str, float]]:
        """What each gateway has counted since the job began, as it said last."""
        return {
            name: said.counts for name, (_, said) in sorted(self._there.items()) if said is not None and said.counts
        }

    def is_there(self, client: int) -> bool:
        place = self._seats[client]
        self._look(place.site)
        return self._is_there(place)

    def silent(self) -> set[str]:
        return {name for name, (_, said) in list(self._there.items()) if said is None}

    def _is_there(self, place: Place) -> bool:
        _, said = self._there.get(place.site, (0.0, None))
        return said is not None and place.number in said.places

    def _look(self, name: str) -> None:
        begun = time.monotonic()
        found = _present(self._sites[name])
        if begun >= self._there.get(name, (0.0, None))[0]:  # a look that began later may have ended before
            self._there[name] = (begun, found)

    def ask(
        self, questions: Mapping[int, Frame], seconds: Mapping[int, float], longest: Longest
    ) -> Generator[tuple[int, Came], None, None]:
        calls = {self._threads.submit(self._one, n, asked, seconds[n], longest): n for n, asked in questions.items()}
        for call in as_completed(calls):
            yield calls[call], call.result()

    def _one(self, number: int, question: Frame, seconds: float, longest: Longest) -> Came:
        place = self._seats[number]
        proxy = self._sites[place.site](timeout=seconds + _GRACE)
        try:
            reply = proxy.exchange(question.header, question.body, seconds, place.number, list(longest))
        except CollabCallError as error:
            return one_line(str(error)[:2000])  # it may quote the site's own words
        if not isinstance(reply, list | tuple) or len(reply) != 3:
            return PeerError("", type(reply).__name__, "a header, a body and a reason are due")
        header, body, why = reply
        try:
            return one_line(str(why)[:2000]) if why is not None else read(header, body, longest)
        except PeerError as error:
            return error


def seats_of(sites: Mapping[str, Any]) -> dict[str, int]:
    """How many clients each site of a job says it may be, by its name; one, where it doesn't say in time."""
    with ThreadPoolExecutor(max(len(sites), 1)) as threads:
        found = dict(zip(sites, threads.map(_present, sites.values()), strict=True))
    return {name: 1 if said is None else said.seats for name, said in found.items()}


class _Present(NamedTuple):
    """How many places a site has, at which of them somebody is, and what it has counted."""

    seats: int
    places: set[int]
    counts: Mapping[str, float]


def _present(proxy: Any) -> _Present | None:
    """What a site says of itself; None where it says nothing that one of ours would say."""
    try:
        said = proxy(timeout=_GRACE).present()
    except CollabCallError:
        return None
    if not isinstance(said, list | tuple) or len(said) != 3:
        return None
    seats, places, counts = said
    if type(seats) is not int or not 0 < seats <= MOST_SEATS or not isinstance(places, list | tuple):
        return None
    if len(places) > seats or any(type(place) is not int or not 0 <= place < seats for place in places):
        return None
    if not isinstance(counts, dict) or len(counts) > _MOST_COUNTS:
        return None
    if any(
        not isinstance(n, str) or len(n) > 100 or type(c) is not float or not isfinite(c) for n, c in counts.items()
    ):
        return None
    return _Present(seats, set(places), counts)


def read(header: Any, body: Any, longest: Longest) -> Frame:
    """A frame, of what any peer may have sent.

    Raises:
        PeerError: it is none, or longer than allowed.
    """
    if not isinstance(header, str) or not isinstance(body, bytes):
        raise PeerError("frame", f"{type(header).__name__} and {type(body).__name__}", "text and bytes are allowed")
    longest.check(len(header), len(body))
    return Frame(header, body)
