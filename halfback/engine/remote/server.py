"""The server of a run whose clients are elsewhere: the same conversations as in one process, carried by questions.

A client that doesn't reply in time is dropped from the round: the means of its steps are over those who replied. It
is asked again in the background, and takes part once it is back; what it missed it gets as any client does that was
not sampled. Where fewer reply than the recipe wants, the round is void, the run goes back to its last checkpoint and
waits. Of clients that were asked to spare, the slowest are left behind: they catch up likewise. A client that sends
what no client may send is expelled for as long as this server runs.

Who took part in a round, and until when, is told as it ends. The clients of a round that is repeated from such a record
are those that it names, each until it left.
"""

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from operator import itemgetter
from typing import Any, final

from torch import Tensor

from halfback.engine.attendance import Attendance, Attended
from halfback.engine.bounds import Tab
from halfback.engine.kept import going_on
from halfback.engine.remote.frames import (
    Ancestor,
    Done,
    Evaluation,
    Frame,
    Longest,
    Open,
    Refused,
    Said,
    Save,
    Saved,
    Say,
    frame,
    longest_reply,
)
from halfback.engine.remote.paces import Paces
from halfback.engine.remote.presence import (
    Beginning,
    Came,
    Carrier,
    Events,
    Presence,
    Terms,
    read,
    read_or_why,
    reported,
)
from halfback.engine.server_side import ServerSide
from halfback.engine.state import load_server, state_of_server
from halfback.errors import CohortLost, Diverged, HalfbackError, PeerError, UserError
from halfback.parties.holdings import Round
from halfback.wire.messages import Message
from halfback.zeroth.directions import seed_for


@dataclass
class _Talks:
    """A round's conversations: which clients are in it, and what each has said and cost.

    `gone`: those that were, and the exchange to which each said nothing any more. `openings`: how many exchanges take
    no work, in which clients say where they stand.
    """

    round: Round
    measure_memory: bool
    there: set[int]
    gone: dict[int, int] = field(default_factory=dict)
    tabs: dict[int, Tab] = field(default_factory=dict)
    exchange: int = 0
    openings: int = 1


@final
class RemoteServer:
    """Runs rounds with a server and clients that a carrier reaches.

    Attributes:
        attendance: who takes part in each round, where a run is repeated; None for those that are sampled and there.
        evaluation: gives the last one, which clients are told; None before there is any.
    """

    def __init__(self, side: ServerSide, carrier: Carrier, beginning: Beginning, terms: Terms, events: Events) -> None:
        self._side = side
        self._carrier = carrier
        self._terms = terms
        self._events = events
        self.attendance: Attendance | None = None
        self.evaluation: Callable[[], Evaluation | None] = lambda: None
        self._presence = Presence(carrier, beginning, terms, events)
        self._paces = Paces(terms)
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
        side, wanted = self._side, self._wanted(round.number)
        bound = self._changed if self._terms.needs_all else set[int]()
        cohort = self._presence.gather(
            round.number, wanted, lambda ready: self._substitutes(round, wanted, ready), bound
        )
        if side.party.cohort.rows:  # by which clients count
            side.party.cohort.rows |= {number: self._presence.rows[number] for number in cohort}
        if side.private is not None:
            side.private.rows |= {number: self._presence.rows[number] for number in cohort}
        talks, losses = _Talks(round, measure_memory, set(cohort)), list[float]()
        with side.measuring(measure_memory):
            for together in side.turns(cohort):
                side.begin(round, {number: self._cursors.get(number, 0) for number in together})
                for number, report in self._converse(together, talks).items():
                    self._enter(number, report)
                    losses += report.losses
        self._rounds = round.number + 1
        attended = Attended(round.number, tuple(cohort), talks.gone)
        self._events({"event": "took part", **asdict(attended)})
        return side.take_losses(losses)

    def _wanted(self, round_number: int) -> Sequence[int]:
        """The clients that a round would have if all were there."""
        if self.attendance is not None:
            return self.attendance[round_number].cohort
        return self._side.cohort(round_number)

    def _substitutes(self, round: Round, wanted: Sequence[int], ready: set[int]) -> list[int]:
        """Clients that are there and were not sampled, in an order of the round's own; none where all sampled count.

        A cohort that is filled up by them is a sample of all who are there, each as likely as the other, where those
        that were sampled are one of all.
        """
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
        talks.exchange, talks.openings, reports = 0, 1, dict[int, Done]()
        while questions := self._of_those_that_stay(questions, talks):
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
            talks.openings = 2
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
            evaluation=self.evaluation(),
        )

    def _asked(self, questions: Mapping[int, Frame], talks: _Talks) -> dict[int, tuple[Any, bytes]]:
        """The replies by client, in the order of their numbers; who gave none is dropped."""
        longest = max(self._side.end(number).most_bytes for number in questions)
        found = self._heard(questions, longest_reply(talks.round.steps, longest), talks)
        for number in sorted(questions.keys() - found.keys()):
            self._presence.leave_behind(number)
            self._go_on_without(number, "the others were faster", talks)
        replies: dict[int, tuple[Any, bytes]] = {}
        for number in sorted(found):
            came: Came = found[number]
            try:
                reply = read(came)
            except PeerError as error:
                self._expel(number, error.of(number), talks)
                continue
            if self._terms.needs_all and isinstance(reply, Refused) and (told := reported(number, reply)):
                raise told  # it would come again and again
            if isinstance(reply, str | Refused):
                why = reply if isinstance(reply, str) else reply.error
                self._presence.lose(number, why)
                self._paces.forget(number)
                self._go_on_without(number, why, talks)
            else:
                assert isinstance(came, Frame)
                replies[number] = (reply, came.body)
        return replies

    def _heard(self, questions: Mapping[int, Frame], longest: Longest, talks: _Talks) -> dict[int, Came]:
        """What came of each client; of the slowest nothing, where more were asked than are needed."""
        number, began = talks.round.number, time.monotonic()
        is_work = talks.exchange >= talks.openings
        enough = self._side.sampling.sampled if self._terms.spare and is_work else len(questions)
        seconds = {client: self._paces.allowed(client, number) for client in questions}
        found: dict[int, Came] = {}
        replied = 0
        with closing(self._carrier.ask(questions, seconds, longest)) as coming:
            for client, came in coming:
                took = time.monotonic() - began
                talks.tabs[client].seconds += took
                found[client] = came
                if isinstance(came, Frame):
                    self._paces.took(client, number, took)
                    replied += 1
                if replied >= enough:
                    break
        return found

    def _of_those_that_stay(self, questions: dict[int, Frame], talks: _Talks) -> dict[int, Frame]:
        """In a round that is repeated, the questions to those that said something to them then."""
        if self.attendance is None:
            return questions
        stay = self.attendance[talks.round.number].stay(talks.exchange)
        for number in questions.keys() - stay:
            self._leave(number, talks)
        return {number: question for number, question in questions.items() if number in stay}

    def _expel(self, number: int, error: HalfbackError, talks: _Talks) -> None:
        self._presence.expel(number, error)
        self._go_on_without(number, str(error), talks)

    def _go_on_without(self, number: int, why: str, talks: _Talks) -> None:
        self._leave(number, talks)
        if len(talks.there) < self._terms.least(self._wanted(talks.round.number)):
            raise CohortLost(f"round {talks.round.number}: client {number}: {why}")

    def _leave(self, number: int, talks: _Talks) -> None:
        self._side.party.forget(number)
        talks.there.discard(number)
        talks.gone[number] = talks.exchange

    def _enter(self, number: int, report: Done) -> None:
        meters = self._side.meters
        self._cursors[number] = report.cursor
        meters.forward_passes += report.forward_passes
        meters.client.seconds += report.client_seconds
        meters.wire.seconds += report.wire_seconds
        meters.client_peak_bytes = max(meters.client_peak_bytes, report.peak_bytes)
        meters.client_inference_peak_bytes = max(meters.client_inference_peak_bytes, report.inference_peak_bytes)
        meters.releases = max(meters.releases, report.releases or 0)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that the server needs to go on; the clients have then written down their own.

        Raises:
            UserError: a client could not write.
            CohortLost: one was lost before it had, and no client may be missing: what it remembered is gone, so a
                checkpoint of this moment would be none that a run goes on from to the same bits.
        """
        lost: dict[int, str] = {}
        save = frame(Save(lineage=self._lineage, rounds=self._rounds, evaluation=self.evaluation()))
        saving = dict.fromkeys(self._changed & self._presence.ready, save)
        if saving:
            deadline = dict.fromkeys(saving, self._terms.deadline)
            for number, came in sorted(self._carrier.ask(saving, deadline, longest_reply(0, 0)), key=itemgetter(0)):
                reply = read_or_why(came)
                if self._terms.needs_all and isinstance(reply, Refused) and (told := reported(number, reply)):
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
