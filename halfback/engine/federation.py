"""One process that plays everybody: a server, and clients that visit one shared set of frozen weights.

Where θ is a function of the history (clients agree by slopes), all clients share one replica: the first of a cohort to
take a step moves it, for the others the same rows are already taken. Each client still asks for, receives and pays for
the rows it missed. Where steps are pipelined a client's turn goes over a step: each takes it, and for all but the last
it is undone again. So memory does not grow with the number of clients, and the bits are those of clients that each
hold their own replica (a test says so). With `one_pass` a cohort's batches go through a part of the model as one: the
bits then differ from these by rounding.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import count
from typing import Any, final

from torch import Tensor

from halfback.engine.attendance import Attendance, Attended
from halfback.engine.client_side import ClientSide, Talk
from halfback.engine.kept import going_on
from halfback.engine.one_pass import OnePass, one_pass
from halfback.engine.server_side import ServerSide
from halfback.engine.state import load_client, load_server, state_of_client, state_of_server
from halfback.errors import UserError
from halfback.parties.holdings import Round
from halfback.wire.packing import Direction

Tap = Callable[[int, Direction, bytes], None]


@final
class Federation:
    """A server and its clients.

    Attributes:
        server: the server's side.
        clients: the sides of those that were sampled so far, by number; `client` makes them.
        tap: is told of each message that arrives: the client, the direction, and the bytes.
        one_pass: whether a cohort goes through each part of the model as one batch, where its method lets it.
        attendance: who takes part in each round, where a run is repeated; None for those that are sampled.
    """

    def __init__(
        self,
        server: ServerSide,
        make_client: Callable[[int], ClientSide],
        *,
        tap: Tap | None = None,
        one_pass: bool = False,
    ) -> None:
        self.server = server
        self.clients: dict[int, ClientSide] = {}
        self.tap = tap
        self.one_pass = one_pass
        self.attendance: Attendance | None = None
        self._make_client = make_client

    def client(self, number: int) -> ClientSide:
        """Client `number` and the server's end of its link, made when it is first sampled."""
        if number not in self.clients:
            self.clients[number] = self._make_client(number)
            self.server.end(number)
        return self.clients[number]

    def run_round(self, round: Round, *, measure_memory: bool) -> float:
        """Carries the conversations of one round's cohort, exchange by exchange; returns the mean training loss.

        The loss is NaN where a round took none. Where memory is measured each client runs alone: its peak is its own.
        """
        attended = self._attended(round.number)
        cohort = attended.cohort
        self.server.party.top.one_pass = joined = self.one_pass and not measure_memory
        with self.server.measuring(measure_memory):
            for together in self.server.turns(cohort):
                sides = [self.client(number) for number in together]
                self.server.begin(round, {side.party.id: side.party.feed.cursor for side in sides})
                with one_pass(sides if joined and self._speak_in_step else ()) as joint:
                    talks = {s.party.id: s.converse(round, measure_memory=measure_memory) for s in sides}
                    self._carry(talks, joint, attended)
        self.server.meters.releases = max(self.server.meters.releases, self.server.links.releases.most)
        return self.server.take_losses([loss for n in cohort for loss in self.client(n).party.take_losses()])

    def _attended(self, round_number: int) -> Attended:
        """Who is in a round; all stay to its end, unless it is one that is repeated."""
        if self.attendance is not None:
            return self.attendance[round_number]
        return Attended(round_number, tuple(self.server.cohort(round_number)))

    @property
    def _speak_in_step(self) -> bool:
        """Whether clients do the same between two exchanges, and nothing looks into their bottoms while these run."""
        needs = self.server.algorithm.needs
        return needs.turns == "together" and not needs.agreement.exact_blocks

    def _carry(self, talks: dict[int, Talk], joint: OnePass, attended: Attended) -> None:
        """Carries what clients say that speak in step, until all have said everything, or have left."""
        heard: dict[int, Any] = dict.fromkeys(talks)
        cursors = {number: self.client(number).party.feed.cursor for number in talks}
        for exchange in count():
            for number in talks.keys() - attended.stay(exchange):
                talks.pop(number).close()
                self.client(number).party.feed.cursor = cursors[number]  # its next round has the same rows
                self.server.party.forget(number)
            if not talks:
                return
            messages = {}
            joint.exchange(list(talks))
            for number, talk in list(talks.items()):
                with self._undone_for_others(number, list(talks)):
                    try:
                        said = talk.send(heard.pop(number))
                    except StopIteration:
                        del talks[number]
                        continue
                self._tell(number, "up", said)
                messages[number] = self.server.hear(number, said)
                del said
            if messages:
                for number, answer in self.server.exchange(messages).items():
                    heard[number] = self.server.say(number, answer)
                    self._tell(number, "down", heard[number])

    def _tell(self, client: int, direction: Direction, data: bytes) -> None:
        if self.tap is not None:
            self.tap(client, direction, data)

    def _undone_for_others(self, number: int, speaking: Sequence[int]) -> AbstractContextManager[None]:
        """Of a turn that goes over an agreed step: those who share θ and speak after it must find θ as this one did."""
        replica, later = self.client(number).party.theta.replica, speaking[speaking.index(number) + 1 :]
        shared = any(self.client(other).party.theta.replica is replica for other in later)
        return replica.rehearsal() if self.server.algorithm.needs.turns == "pipelined" and shared else nullcontext()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that a resumed run needs, as named tensors and plain values."""
        tensors, values = state_of_server(self.server)
        values["clients"] = {}
        for number, side in self.clients.items():
            of_client, values["clients"][str(number)] = state_of_client(number, side, self.server.algorithm)
            tensors |= of_client
        return tensors, values

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Continues from `state`, whatever was done since.

        Raises:
            UserError: the state is that of a run whose clients are elsewhere, or of other parties than these.
        """
        if "deployment" in values:
            raise UserError("this run's clients are on other machines: continue it with `halfback deploy`")
        self.clients.clear()
        with going_on():
            load_server(self.server, tensors, values, self.client)
            for number, of_client in values["clients"].items():
                side = self.client(int(number))
                load_client(int(number), side, tensors, of_client, self.server.algorithm)
