"""One client of a run whose server is elsewhere: it replies to the server's questions, and survives a kill.

Its state is good for the lineage and the rounds that it belongs to (`frames`). Where the server has gone back to a
checkpoint, or this process is new, the newest state on disk that lies on the server's way is put back; without one the
client begins anew, and where θ is a function of the history it catches up from there, bit for bit.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from halfback.engine import checkpoint
from halfback.engine.client_side import ClientSide, Talk
from halfback.engine.kept import going_on
from halfback.engine.remote.frames import Done, Frame, Open, Question, Refused, Said, Save, Saved, Say, frame
from halfback.engine.remote.weights import longest_body
from halfback.errors import Diverged, HalfbackError, PeerError, UserError
from halfback.parties.holdings import Round


@final
class RemoteClient:
    """One client, which replies to questions."""

    def __init__(
        self,
        side: ClientSide,
        folder: Path,
        *,
        most_steps: int | None = None,
        about: Mapping[str, str] | None = None,
    ) -> None:
        """`folder`: where this run's states are kept, the last two; `most_steps`: of a round, None for any number.

        `about`: the fingerprint of the client's rows and model; a state that was left with another is refused.
        """
        self._side = side
        self._folder = folder
        self._most_steps = most_steps
        self._about = dict(about or {})
        tensors, values = side.state()
        self._begin = ({name: tensor.clone() for name, tensor in tensors.items()}, values)  # to begin anew with
        self._label = ("", 1)  # of what is in memory: lineage and rounds; a new process looks for a state on disk first
        self._talk: Talk | None = None
        self._turn: tuple[str, int, int] = ("", 0, 0)  # lineage, round and exchange of the last reply
        self._told = (0, 0.0, 0.0)  # forward passes and seconds before this round

    def reply(self, question: Question, body: bytes) -> Frame:
        """Replies to one question; one that comes twice, late or out of turn changes nothing."""
        try:
            return self._replied(question, body)
        except Diverged as error:
            return refused("diverged", error)
        except PeerError as error:
            return refused("peer", error)
        except HalfbackError as error:
            return refused("user", error)

    def _replied(self, question: Question, body: bytes) -> Frame:
        match question:
            case Open():
                return self._open(question)
            case Say() if (question.lineage, question.round, question.exchange) == self._turn and self._talk:
                return self._next(body)
            case Say():
                return _stale(f"exchange {question.exchange} of round {question.round}, the client is at {self._turn}")
            case Save() if question.lineage == self._label[0]:
                tensors, values = self._side.state()
                values |= {"lineage": question.lineage, "rounds": question.rounds, "about": self._about}
                checkpoint.save(self._folder, question.rounds, tensors, values, keep=2)
                self._label = (question.lineage, question.rounds)
                return frame(Saved())
            case _:
                return _stale(f"{question.kind}, which does not belong here")

    def _open(self, order: Open) -> Frame:
        if self._most_steps is not None and order.steps > self._most_steps:  # some methods take them all at once
            raise PeerError("Open.steps", order.steps, f"up to {self._most_steps} are allowed", sender="server")
        way = {ancestor.lineage: ancestor.rounds for ancestor in order.ancestry}
        way |= {"": 0, order.lineage: order.round}
        if self._label[1] > way.get(self._label[0], -1):
            self._go_back(way)
        client, meters = self._side.party, self._side.meters
        self._told = (meters.forward_passes, meters.client.seconds, meters.wire.seconds)
        client.feed.cursor, client.losses = order.cursor, []
        self._label = (order.lineage, order.round + 1)
        self._talk = self._side.converse(Round(order.round, order.steps, order.first), measure_memory=order.measure)
        self._turn = (order.lineage, order.round, -1)
        return self._next(None)

    def _go_back(self, way: Mapping[str, int]) -> None:
        """To the newest state that lies on the server's way, else to the beginning."""
        for number in reversed(checkpoint.rounds(self._folder)):
            found = checkpoint.load(self._folder, number)
            if found is not None:
                self._check_about(found[2].get("about"))
                with going_on():
                    if found[2]["rounds"] <= way.get(found[2]["lineage"], -1):
                        self._side.load_state(*found[1:])
                        return
        self._side.load_state(*self._begin)

    def _check_about(self, kept: Any) -> None:
        """Refuses a state of other rows or another model."""
        if kept != self._about:
            changed = [
                name for name in self._about if not isinstance(kept, dict) or kept.get(name) != self._about[name]
            ]
            raise UserError(
                f"{', '.join(changed) or 'what this client works on'} has changed on this site since it left its state "
                f"in {self._folder}; put back what it began with, or begin a run of another name"
            )

    def _next(self, body: bytes | None) -> Frame:
        lineage, number, exchange = self._turn
        talk, self._talk = self._talk, None  # one that fails is over
        assert talk is not None
        try:
            said = next(talk) if body is None else talk.send(body)
        except StopIteration:
            return frame(self._done())
        self._talk, self._turn = talk, (lineage, number, exchange + 1)
        return frame(Said(lineage=lineage, round=number, exchange=exchange + 1), said)

    def _done(self) -> Done:
        meters, client, told = self._side.meters, self._side.party, self._told
        return Done(
            lineage=self._turn[0],
            round=self._turn[1],
            cursor=client.feed.cursor,
            forward_passes=meters.forward_passes - told[0],
            client_seconds=meters.client.seconds - told[1],
            wire_seconds=meters.wire.seconds - told[2],
            peak_bytes=meters.client_peak_bytes,
            inference_peak_bytes=meters.client_inference_peak_bytes,
            losses=tuple(client.take_losses()),
            releases=self._side.released,
        )


def takes(side: ClientSide, *, begun: bool) -> int:
    """Bytes of the longest body that a client reads: of the weights to begin with, and when it has `begun`, of a round.

    Both follow from the recipe, as this site has it.
    """
    return max(side.near.most_bytes if begun else 0, longest_body(side.held()))


def _stale(what: str) -> Frame:
    return frame(Refused(why="stale", error=f"a question came late or twice: {what}"))


def refused(why: Any, error: Exception) -> Frame:
    """The reply to a question that an error has ended."""
    return frame(Refused(why=why, error=str(error)[:2000]))
