"""The server of a run whose clients are elsewhere: the same conversations as in one process, carried by questions.

A client that doesn't answer in time is dropped from the round: the means of its steps are over those who answered. It
is asked again in the background, and takes part once it is back; what it missed it gets as any client does that was
not sampled. Where fewer answer than the recipe wants, the round is void, the run goes back to its last checkpoint and
waits. A client that sends what no client may send is expelled for as long as this server runs.
"""

import logging
import re
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from queue import SimpleQueue
from typing import Any, Protocol, final

from torch import Tensor

from halfback.engine.bounds import Tab
from halfback.engine.federation import Simulation, take_losses
from halfback.engine.kept import going_on
from halfback.engine.remote.frames import (
    Ancestor,
    Done,
    Frame,
    Longest,
    Open,
    Prepare,
    Question,
    Ready,
    Refused,
    Said,
    Save,
    Saved,
    Say,
    frame,
    longest_answer,
    read_answer,
)
from halfback.errors import CohortLost, Diverged, HalfbackError, PeerError, UserError
from halfback.parties.holdings import Round
from halfback.wire.messages import Message
from halfback.zeroth.seeds import seed_for

log = logging.getLogger(__name__)

_SILENCE = 5.0  # seconds of waiting until it is said
_PAUSE = 0.05  # seconds between two looks for clients that are back
_RETRY = 2.0  # seconds until a client that could not be prepared is asked again


Came = Frame | str | PeerError
"""The answer that came, why none did, or what was wrong with it."""


class Carrier(Protocol):
    """Takes questions to sites and brings their answers; it may be used by several threads."""

    def reachable(self) -> set[int]:
        """The clients that have a site which could answer."""
        ...

    def is_there(self, client: int) -> bool:
        """Whether its site answers at all, found out in a few seconds."""
        ...

    def ask(self, questions: Mapping[int, Frame], seconds: float, longest: Longest) -> Mapping[int, Came]:
        """All at once; of each client the answer, or why there is none after at most so many seconds.

        What is longer than allowed is a PeerError, and is not read.
        """
        ...


Events = Callable[[dict[str, Any]], None]


@final
class Deployment:
    """Runs rounds with the server of `simulation` and clients that a carrier reaches."""

    def __init__(
        self,
        simulation: Simulation,
        carrier: Carrier,
        prepare: Callable[[int], Prepare],
        weights: Callable[[], bytes],
        *,
        deadline: float,
        min_cohort: int | None,
        patience: float,
        events: Events,
    ) -> None:
        """`prepare`: the first question to a client; `weights`: those to begin with, packed, for who needs them.

        deadline: seconds for an answer in a round. min_cohort: how many clients a round needs, None for all that are
        sampled. patience: seconds to wait for them. events: takes what happens to clients, as plain values.
        """
        self._simulation = simulation
        self._carrier = carrier
        self._prepare = prepare
        self._weights = weights
        self._deadline = deadline
        self._min_cohort = min_cohort
        self._patience = patience
        self._events = events
        self._lineage = secrets.token_hex(8)
        self._ancestry: list[Ancestor] = []
        self._rounds = 0  # that are done
        self._begun = False  # with this server
        self._cursors: dict[int, int] = {}
        self._ready: set[int] = set()
        self._told_rows: dict[int, int] = {}
        self._changed: set[int] = set()  # took part since the last checkpoint
        self._expelled: dict[int, HalfbackError] = {}
        self._failures: dict[int, str] = {}
        self._coming: set[int] = set()
        self._came: SimpleQueue[tuple[int, str | UserError | None]] = SimpleQueue()  # prepared, or why not

    def run_round(self, round: Round, *, measure_memory: bool) -> float:
        """One round with those of its cohort that are there; returns the mean training loss, NaN where none was taken.

        Raises:
            CohortLost: too few were left; the state is then that of the middle of a round.
            UserError: too few came within the patience.
            Diverged: a client's numbers, or the server's, are not finite.
        """
        simulation = self._simulation
        cohort = self._gathered(round.number)
        thresholds, left = simulation.thresholds(), set(cohort)
        losses: list[float] = []
        with simulation.measuring_server(measure_memory):
            for together in [[n] for n in cohort] if simulation.algorithm.traits.one_by_one else [cohort]:
                simulation.server.begin(round)
                for number, report in self._converse(together, round, thresholds, measure_memory, left).items():
                    self._enter(number, report)
                    losses += report.losses
        self._rounds = round.number + 1
        return take_losses(simulation.server, losses)

    def _converse(
        self,
        together: Sequence[int],
        round: Round,
        thresholds: Mapping[str, float],
        measure: bool,
        left: set[int],
    ) -> dict[int, Done]:
        """Carries the conversations of clients that speak in step; `left` loses those who are lost."""
        greetings = {n: self._simulation.link.of(n)[1].hello(thresholds) for n in together}
        questions = {n: frame(self._open(n, round, measure)) for n in together}
        reports: dict[int, Done] = {}
        tabs = {n: Tab(n, self._simulation.bounds, cursor=self._cursors.get(n, 0), steps=round.steps) for n in together}
        exchange = 0
        while questions:
            self._changed.update(questions)
            messages: dict[int, Message] = {}
            for number, (answer, body) in self._asked(questions, round, left, tabs).items():
                try:
                    match answer:
                        case Done(lineage=self._lineage, round=round.number):
                            tabs[number].check(answer)
                            reports[number] = answer
                        case Said(lineage=self._lineage, round=round.number, exchange=at) if at == exchange:
                            messages[number] = self._simulation.link.hear(number, body, self._simulation.server_meter)
                            tabs[number].hear(messages[number])
                        case _:
                            raise PeerError("", answer.kind, f"exchange {exchange} is due", sender=number)
                except PeerError as error:  # the server's state is as it was
                    messages.pop(number, None)
                    self._expel(number, error, round, left)
                del body
            answers: Mapping[int, Message]
            if exchange == 0 and any(greetings.values()):  # links that remember samples compare first what they do
                answers = self._greeted(greetings, messages, round, left)
            else:
                answers = self._answers(messages, round, left)
            del messages
            say = Say(lineage=self._lineage, round=round.number, exchange=exchange)
            link, meter = self._simulation.link, self._simulation.server_meter
            questions = {n: frame(say, link.say(n, answer, meter)) for n, answer in answers.items()}
            exchange += 1
        return reports

    def _greeted(
        self, greetings: Mapping[int, Message | None], messages: Mapping[int, Message], round: Round, left: set[int]
    ) -> dict[int, Message]:
        answers = {}
        for number, message in messages.items():
            greeting = greetings[number]
            assert greeting is not None, "all clients have the same links"
            try:
                self._simulation.link.of(number)[1].meet(message)
                answers[number] = greeting
            except PeerError as error:
                self._expel(number, error.of(number), round, left)
        return answers

    def _answers(self, messages: Mapping[int, Message], round: Round, left: set[int]) -> Mapping[int, Message]:
        if not messages:
            return {}
        try:
            answers = self._simulation.answers(messages)
        except (PeerError, Diverged) as error:
            # How far the server's state has moved depends on the method, so the round can't go on without the culprit.
            culprit = _blamed(error)
            if culprit is None or culprit not in messages:
                raise
            self._expel(culprit, error, round, left)
            raise CohortLost(f"round {round.number}: {error}") from None
        return {number: answers[number] for number in messages}

    def _open(self, number: int, round: Round, measure: bool) -> Open:
        return Open(
            lineage=self._lineage,
            ancestry=tuple(self._ancestry),
            round=round.number,
            first=round.first,
            steps=round.steps,
            cursor=self._cursors.get(number, 0),
            measure=measure,
        )

    def _asked(
        self, questions: Mapping[int, Frame], round: Round, left: set[int], tabs: Mapping[int, Tab]
    ) -> dict[int, tuple[Any, bytes]]:
        """The answers by client, in the order of their numbers; who gave none is dropped."""
        longest = max(self._simulation.link.of(number)[1].most_bytes for number in questions)
        began = time.monotonic()
        found = self._carrier.ask(questions, self._deadline, longest_answer(round.steps, longest))
        for number in questions:
            tabs[number].seconds += time.monotonic() - began
        answers: dict[int, tuple[Any, bytes]] = {}
        for number in sorted(questions):
            came = found[number]
            try:
                answer = _read(came)
            except PeerError as error:
                self._expel(number, error.of(number), round, left)
                continue
            if self._needs_all and isinstance(answer, Refused) and (told := _reported(number, answer)):
                raise told  # it would come again and again
            if isinstance(answer, str | Refused):
                self._drop(number, answer if isinstance(answer, str) else answer.error, round, left)
            else:
                assert isinstance(came, Frame)
                answers[number] = (answer, came.body)
        return answers

    def _drop(self, number: int, why: str, round: Round, left: set[int]) -> None:
        """Goes on without a client, until it is back."""
        self._events({"event": "dropped", "round": round.number, "client": number, "why": why})
        self._forget(number, why, round, left)

    def _expel(self, number: int, error: HalfbackError, round: Round, left: set[int]) -> None:
        """Goes on without a client, for good."""
        self._events({"event": "expelled", "round": round.number, "client": number, "why": str(error)})
        self._expelled[number] = error
        self._forget(number, str(error), round, left)

    def _forget(self, number: int, why: str, round: Round, left: set[int]) -> None:
        self._ready.discard(number)
        self._failures[number] = why
        server = self._simulation.server
        server.passes.pop(number, None)
        server.kept.pop(number, None)
        left.discard(number)
        wanted = self._simulation.cohort(round.number)
        if len(left) < self._least(wanted):
            raise CohortLost(f"round {round.number}: client {number}: {why}")

    def _enter(self, number: int, report: Done) -> None:
        meters = self._simulation.meters
        self._cursors[number] = report.cursor
        meters.forward_passes += report.forward_passes
        meters.client.seconds += report.client_seconds
        meters.wire.seconds += report.wire_seconds
        meters.client_peak_bytes = max(meters.client_peak_bytes, report.peak_bytes)
        meters.client_inference_peak_bytes = max(meters.client_inference_peak_bytes, report.inference_peak_bytes)

    @property
    def _needs_all(self) -> bool:
        return self._min_cohort is None

    def _least(self, wanted: Sequence[int]) -> int:
        return len(wanted) if self._min_cohort is None else min(self._min_cohort, len(wanted))

    def _gathered(self, number: int) -> list[int]:
        """Those of a round's cohort that are there, once there are enough."""
        wanted = self._simulation.cohort(number)
        least, begun = self._least(wanted), time.monotonic()
        until, said = begun + self._patience, False
        while True:
            self._look_around()
            present = [client for client in wanted if client in self._ready]
            present = sorted([*present, *self._substitutes(number, wanted)[: max(least - len(present), 0)]])
            # A run begins with all who are there; later on nobody waits for one who is coming, if there are enough.
            waits = not self._begun and self._coming & set(wanted) and time.monotonic() < until
            if len(present) >= least and not waits:
                self._begun = True
                return present
            if len([client for client in wanted if client not in self._expelled]) < least:
                error = next(self._expelled[client] for client in wanted if client in self._expelled)
                raise type(error)(f"round {number} needs {least} clients, and one is expelled: {error}")
            waited = time.monotonic() - begun
            if waited > min(_SILENCE, self._patience):
                missing = {client: self._failures.get(client, "not connected") for client in wanted}
                why = "; ".join(f"client {c}: {why}" for c, why in missing.items() if c not in self._ready)
                needs = f"needs {least} of the clients {wanted}"
                if waited > self._patience:
                    raise UserError(
                        f"round {number} {needs} and waited {self._patience:g} s (deployment.patience): {why}"
                    )
                if not said:
                    self._events({"event": "waits", "round": number, "why": f"it {needs}; {why}"})
                said = True
            time.sleep(_PAUSE)

    def _substitutes(self, number: int, wanted: Sequence[int]) -> list[int]:
        """Clients that are there and were not sampled, in an order of the round's own; none where all sampled count."""
        if self._needs_all:
            return []
        order = {client: seed_for(self._simulation.seed, "substitute", number, client) for client in self._ready}
        return sorted(order.keys() - set(wanted), key=order.__getitem__)

    def _look_around(self) -> None:
        """Takes in who is prepared by now, and has those prepared who are reachable and not ready."""
        while not self._came.empty():
            number, why = self._came.get()
            self._coming.discard(number)
            if why is None:
                self._ready.add(number)
                event = "returned" if number in self._failures else "joined"
                self._events({"event": event, "round": self._rounds, "client": number})
                self._failures.pop(number, None)
            elif isinstance(why, UserError):  # asking again would change nothing
                self._events({"event": "expelled", "round": self._rounds, "client": number, "why": str(why)})
                self._expelled[number] = why
            else:
                self._failures[number] = why
        for number in self._carrier.reachable() - self._ready - self._coming - self._expelled.keys():
            self._coming.add(number)
            wait = _RETRY if number in self._failures else 0.0
            # A daemon: nobody waits for a silent client when the run is over.
            threading.Thread(target=self._bring, args=(number, wait), daemon=True).start()

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
            return "its site does not answer"
        question = self._prepare(number)
        answer = self._ask_one(number, question, b"")
        if isinstance(answer, Ready) and not answer.fits:
            weights = self._weights()
            self._events({"event": "was sent weights", "round": self._rounds, "client": number, "bytes": len(weights)})
            answer = self._ask_one(number, question, weights)
        if isinstance(answer, Ready):
            return self._admitted(number, answer)
        return answer if isinstance(answer, str) else getattr(answer, "error", f"{answer.kind} came, ready is due")

    def _admitted(self, number: int, answer: Ready) -> str | UserError | None:
        """Why a client that has its part of the run can't take part, for good where it is an error; None if it can."""
        if not answer.fits:
            return "its model differs from the server's, also after it got the weights"
        if (before := self._told_rows.setdefault(number, answer.rows)) != answer.rows:
            return UserError(f"client {number}: it said that it has {before} training rows, and says {answer.rows} now")
        if self._simulation.server.rows:  # by which clients count
            self._simulation.server.rows[number] = answer.rows
        return None

    def _ask_one(self, number: int, question: Question, body: bytes) -> Any:
        asked = self._carrier.ask({number: frame(question, body)}, self._patience, longest_answer(0, 0))
        return _read_or_why(asked[number])

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that the server needs to go on; the clients have then written down their own.

        Raises:
            UserError: a client could not write.
        """
        saving = {n: frame(Save(lineage=self._lineage, rounds=self._rounds)) for n in self._changed & self._ready}
        if saving:
            for number, came in self._carrier.ask(saving, self._deadline, longest_answer(0, 0)).items():
                answer = _read_or_why(came)
                if self._needs_all and isinstance(answer, Refused) and (told := _reported(number, answer)):
                    raise told
                if not isinstance(answer, Saved):
                    why = answer if isinstance(answer, str) else getattr(answer, "error", answer.kind)
                    self._events({"event": "dropped", "round": self._rounds, "client": number, "why": why})
                    self._ready.discard(number)
                    self._failures[number] = why
        self._changed = set()
        tensors, values = self._simulation.state()
        values["deployment"] = {
            "lineage": self._lineage,
            "ancestry": [ancestor.model_dump() for ancestor in self._ancestry],
            "rounds": self._rounds,
            "cursors": {str(number): cursor for number, cursor in self._cursors.items()},
            "rows": {str(number): rows for number, rows in dict(self._told_rows).items()},
        }
        return tensors, values

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Continues from `state`, in a new lineage.

        Raises:
            UserError: the state is that of a run in one process.
        """
        if "deployment" not in values:
            raise UserError("this run was begun in one process: continue it with `halfback resume`")
        with going_on():
            self._simulation.load_server_state(tensors, values)
        kept = values["deployment"]
        self._rounds = kept["rounds"]
        self._cursors = {int(number): cursor for number, cursor in kept["cursors"].items()}
        self._told_rows |= {int(number): rows for number, rows in kept.get("rows", {}).items()}
        self._ancestry = [Ancestor(**ancestor) for ancestor in kept["ancestry"]]
        self._ancestry.append(Ancestor(lineage=kept["lineage"], rounds=self._rounds))
        self._lineage = secrets.token_hex(8)
        self._changed = set()
        self._events({"event": "went back", "round": self._rounds})


def _read(came: Came) -> Any:
    """The answer that came, or why there is none; PeerError for what is none."""
    if isinstance(came, PeerError):
        raise came
    return came if isinstance(came, str) else read_answer(came.header)


def _read_or_why(came: Came) -> Any:
    try:
        return _read(came)
    except PeerError as error:
        return str(error)


def _reported(number: int, refusal: Refused) -> HalfbackError | None:
    """The error that a client says it met; None where it may answer if it is asked again."""
    match refusal.why:
        case "peer":
            return PeerError(refusal.error, sender=number)
        case "diverged":
            return Diverged(refusal.error, sender=number)
        case "user":
            return UserError(f"client {number}: {refusal.error}")
        case _:
            return None


def _blamed(error: HalfbackError) -> int | None:
    """The client that an error of a message is about."""
    found = re.search(r"\bclient (\d+)\b", str(error))
    return int(found[1]) if found else None
