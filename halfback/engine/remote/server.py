"""The server of a run whose clients are elsewhere: the same conversations as in one process, carried by questions.

A client that doesn't reply in time is dropped from the round: the means of its steps are over those who replied. It
is asked again in the background, and takes part once it is back; what it missed it gets as any client does that was
not sampled. Where fewer reply than the recipe wants, the round is void, the run goes back to its last checkpoint and
waits. A client that sends what no client may send is expelled for as long as this server runs.
"""

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

from torch import Tensor

from halfback.engine.bounds import Tab
from halfback.engine.kept import going_on
from halfback.engine.remote.frames import (
    Ancestor,
    Done,
    Frame,
    Open,
    Refused,
    Said,
    Save,
    Saved,
    Say,
    frame,
    longest_reply,
)
from halfback.engine.remote.presence import Beginning, Came, Carrier, Events, Presence, Terms, read, read_or_why
from halfback.engine.server_side import ServerSide
from halfback.engine.state import load_server, state_of_server
from halfback.errors import CohortLost, Diverged, HalfbackError, PeerError, UserError
from halfback.parties.holdings import Round
from halfback.wire.messages import Message
from halfback.zeroth.directions import seed_for


@dataclass
class _Talks:
    """A round's conversations: which clients are left in it, and what each has said and cost."""

    round: Round
    measure_memory: bool
    left: set[int]
    tabs: dict[int, Tab] = field(default_factory=dict)
    exchange: int = 0


@final
class RemoteServer:
    """Runs rounds with a server and clients that a carrier reaches."""

    def __init__(self, side: ServerSide, carrier: Carrier, beginning: Beginning, terms: Terms, events: Events) -> None:
        self._side = side
        self._carrier = carrier
        self._terms = terms
        self._events = events
        self._presence = Presence(carrier, beginning, terms, events)
        self._lineage = secrets.token_hex(8)
        self._ancestry: list[Ancestor] = []
        self._rounds = 0  # that are done
        self._cursors: dict[int, int] = {}
        self._changed: set[int] = set()  # took part since the last checkpoint

    def run_round(self, round: Round, *, measure_memory: bool) -> float:
        """One round with those of its cohort that are there; returns the mean training loss, NaN where none was taken.

        Raises:
            CohortLost: too few were left; the state is then that of the middle of a round.
            UserError: too few came within the patience.
            Diverged: a client's numbers, or the server's, are not finite.
        """
        side, wanted = self._side, self._side.cohort(round.number)
        bound = self._changed if self._terms.needs_all else set[int]()
        cohort = self._presence.gather(
            round.number, wanted, lambda ready: self._substitutes(round, wanted, ready), bound
        )
        if side.party.cohort.rows:  # by which clients count
            side.party.cohort.rows |= {number: self._presence.rows[number] for number in cohort}
        talks, losses = _Talks(round, measure_memory, set(cohort)), list[float]()
        with side.measuring(measure_memory):
            for together in side.turns(cohort):
                side.begin(round, together)
                for number, report in self._converse(together, talks).items():
                    self._enter(number, report)
                    losses += report.losses
        self._rounds = round.number + 1
        return side.take_losses(losses)

    def _substitutes(self, round: Round, wanted: Sequence[int], ready: set[int]) -> list[int]:
        """Clients that are there and were not sampled, in an order of the round's own; none where all sampled count."""
        if self._terms.needs_all:
            return []
        seed = self._side.sampling.seed
        order = {client: seed_for(seed, "substitute", round.number, client) for client in ready}
        return sorted(order.keys() - set(wanted), key=order.__getitem__)

    def _converse(self, together: Sequence[int], talks: _Talks) -> dict[int, Done]:
        """Carries the conversations of clients that speak in step."""
        questions = {n: frame(self._open(n, talks)) for n in together}
        bounds, steps = self._side.links.bounds, talks.round.steps
        talks.tabs = {n: Tab(n, bounds, cursor=self._cursors.get(n, 0), steps=steps) for n in together}
        talks.exchange, reports = 0, dict[int, Done]()
        while questions:
            self._changed.update(questions)
            messages: dict[int, Message] = {}
            for number, (reply, body) in self._asked(questions, talks).items():
                try:
                    match reply:
                        case Done(lineage=self._lineage, round=talks.round.number):
                            talks.tabs[number].check(reply)
                            reports[number] = reply
                        case Said(lineage=self._lineage, round=talks.round.number, exchange=talks.exchange):
                            messages[number] = self._side.hear(number, body)
                            talks.tabs[number].hear(messages[number])
                        case _:
                            raise PeerError("", reply.kind, f"exchange {talks.exchange} is due", sender=number)
                except PeerError as error:  # the server's state is as it was
                    messages.pop(number, None)
                    self._expel(number, error, talks)
                del body
            answers = self._answers(messages, talks)
            del messages
            say = Say(lineage=self._lineage, round=talks.round.number, exchange=talks.exchange)
            questions = {n: frame(say, self._side.say(n, answer)) for n, answer in answers.items()}
            talks.exchange += 1
        return reports

    def _answers(self, messages: Mapping[int, Message], talks: _Talks) -> Mapping[int, Message]:
        if greetings := self._side.take_greetings():  # links that remember samples compare first what they do
            return {n: greetings[n] for n, message in messages.items() if self._met(n, message, talks)}
        if not messages:
            return {}
        try:
            answers = self._side.answers(messages)
        except (PeerError, Diverged) as error:
            # How far the server's state has moved depends on the method, so the round can't go on without the culprit.
            if not isinstance(error.sender, int) or error.sender not in messages:
                raise
            self._expel(error.sender, error, talks)
            raise CohortLost(f"round {talks.round.number}: {error}") from None
        return {number: answers[number] for number in messages}

    def _met(self, number: int, message: Message, talks: _Talks) -> bool:
        try:
            self._side.meet(number, message)
        except PeerError as error:
            self._expel(number, error, talks)
            return False
        return True

    def _open(self, number: int, talks: _Talks) -> Open:
        return Open(
            lineage=self._lineage,
            ancestry=tuple(self._ancestry),
            round=talks.round.number,
            first=talks.round.first,
            steps=talks.round.steps,
            cursor=self._cursors.get(number, 0),
            measure=talks.measure_memory,
        )

    def _asked(self, questions: Mapping[int, Frame], talks: _Talks) -> dict[int, tuple[Any, bytes]]:
        """The replies by client, in the order of their numbers; who gave none is dropped."""
        longest = max(self._side.end(number).most_bytes for number in questions)
        began = time.monotonic()
        found = self._carrier.ask(questions, self._terms.deadline, longest_reply(talks.round.steps, longest))
        for number in questions:
            talks.tabs[number].seconds += time.monotonic() - began
        replies: dict[int, tuple[Any, bytes]] = {}
        for number in sorted(questions):
            came: Came = found[number]
            try:
                reply = read(came)
            except PeerError as error:
                self._expel(number, error.of(number), talks)
                continue
            if self._terms.needs_all and isinstance(reply, Refused) and (told := _reported(number, reply)):
                raise told  # it would come again and again
            if isinstance(reply, str | Refused):
                why = reply if isinstance(reply, str) else reply.error
                self._presence.lose(number, why)
                self._go_on_without(number, why, talks)
            else:
                assert isinstance(came, Frame)
                replies[number] = (reply, came.body)
        return replies

    def _expel(self, number: int, error: HalfbackError, talks: _Talks) -> None:
        self._presence.expel(number, error)
        self._go_on_without(number, str(error), talks)

    def _go_on_without(self, number: int, why: str, talks: _Talks) -> None:
        self._side.party.forget(number)
        talks.left.discard(number)
        if len(talks.left) < self._terms.least(self._side.cohort(talks.round.number)):
            raise CohortLost(f"round {talks.round.number}: client {number}: {why}")

    def _enter(self, number: int, report: Done) -> None:
        meters = self._side.meters
        self._cursors[number] = report.cursor
        meters.forward_passes += report.forward_passes
        meters.client.seconds += report.client_seconds
        meters.wire.seconds += report.wire_seconds
        meters.client_peak_bytes = max(meters.client_peak_bytes, report.peak_bytes)
        meters.client_inference_peak_bytes = max(meters.client_inference_peak_bytes, report.inference_peak_bytes)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that the server needs to go on; the clients have then written down their own.

        Raises:
            UserError: a client could not write.
            CohortLost: one was lost before it had, and no client may be missing: what it remembered is gone, so a
                checkpoint of this moment would be none that a run goes on from to the same bits.
        """
        lost: dict[int, str] = {}
        saving = {
            n: frame(Save(lineage=self._lineage, rounds=self._rounds)) for n in self._changed & self._presence.ready
        }
        if saving:
            for number, came in self._carrier.ask(saving, self._terms.deadline, longest_reply(0, 0)).items():
                reply = read_or_why(came)
                if self._terms.needs_all and isinstance(reply, Refused) and (told := _reported(number, reply)):
                    raise told
                if not isinstance(reply, Saved):
                    lost[number] = reply if isinstance(reply, str) else getattr(reply, "error", reply.kind)
                    self._presence.lose(number, lost[number])
        if lost and self._terms.needs_all:
            number, why = next(iter(lost.items()))
            raise CohortLost(f"behind round {self._rounds}: client {number} wrote no state: {why}")
        self._changed = set()
        tensors, values = state_of_server(self._side)
        values["clients"] = {}
        values["deployment"] = {
            "lineage": self._lineage,
            "ancestry": [ancestor.model_dump() for ancestor in self._ancestry],
            "rounds": self._rounds,
            "cursors": {str(number): cursor for number, cursor in self._cursors.items()},
            "rows": {str(number): rows for number, rows in dict(self._presence.rows).items()},
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
            load_server(self._side, tensors, values)
        kept = values["deployment"]
        self._rounds = kept["rounds"]
        self._cursors = {int(number): cursor for number, cursor in kept["cursors"].items()}
        self._presence.rows |= {int(number): rows for number, rows in kept.get("rows", {}).items()}
        self._ancestry = [Ancestor(**ancestor) for ancestor in kept["ancestry"]]
        self._ancestry.append(Ancestor(lineage=kept["lineage"], rounds=self._rounds))
        self._lineage = secrets.token_hex(8)
        self._changed = set()
        self._events({"event": "went back", "round": self._rounds})


def _reported(number: int, refusal: Refused) -> HalfbackError | None:
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
