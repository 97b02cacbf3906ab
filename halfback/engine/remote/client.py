"""One client of a run whose server is elsewhere: it answers the server's questions, and can start again after a kill.

Its state is good for the lineage and the rounds that it belongs to (`frames`). Where the server has gone back to a
checkpoint, or this process is new, the newest state on disk that lies on the server's way is put back; without one the
client begins anew, and where θ is a function of the history it catches up from there, bit for bit.
"""

import hashlib
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from halfback.engine.bounds import model_bound
from halfback.engine.federation import Simulation
from halfback.engine.kept import going_on
from halfback.engine.remote.frames import Done, Frame, Open, Question, Refused, Said, Save, Saved, Say, frame
from halfback.engine.state import load_moments, load_optimizer_tensors, moments, optimizer_tensors, under
from halfback.errors import Diverged, HalfbackError, PeerError, UserError
from halfback.parties.checks import check_tensors
from halfback.parties.holdings import Round
from halfback.runs import checkpoint
from halfback.telemetry.meters import MemoryMeter
from halfback.wire.messages import Weights
from halfback.wire.packing import most_bytes, unpack
from halfback.zeroth.directions import forget_tables

_Talk = Generator[bytes, bytes, None]


@final
class Device:
    """Client `number` of the parties that `machine` holds; the others of them stay unused."""

    def __init__(
        self,
        machine: Simulation,
        number: int,
        folder: Path,
        *,
        most_steps: int | None = None,
        about: Mapping[str, str] | None = None,
    ) -> None:
        """`folder`: where this run's states are kept, the last two; `most_steps`: of a round, None for any number.

        `about`: the fingerprint of the client's rows and model; a state that was left with another is refused.
        """
        self._machine = machine
        self._number = number
        self._folder = folder
        self._most_steps = most_steps
        self._about = dict(about or {})
        self._client = machine.client(number)
        self._begin = self._state()  # to begin anew with
        self._begin = ({name: tensor.clone() for name, tensor in self._begin[0].items()}, self._begin[1])
        self._label = ("", 1)  # of what is in memory: lineage and rounds; a new process looks for a state on disk first
        self._talk: _Talk | None = None
        self._turn: tuple[str, int, int] = ("", 0, 0)  # lineage, round and exchange of the last answer
        self._told = (0, 0.0, 0.0)  # forward passes and seconds before this round

    def answer(self, question: Question, body: bytes) -> Frame:
        """Answers one question; one that comes twice, late or out of turn changes nothing."""
        try:
            return self._answered(question, body)
        except Diverged as error:
            return refused("diverged", error)
        except PeerError as error:
            return refused("peer", error)
        except HalfbackError as error:
            return refused("user", error)

    def _answered(self, question: Question, body: bytes) -> Frame:
        match question:
            case Open():
                return self._open(question)
            case Say() if (question.lineage, question.round, question.exchange) == self._turn and self._talk:
                return self._next(body)
            case Say():
                return _stale(f"exchange {question.exchange} of round {question.round}, the client is at {self._turn}")
            case Save() if question.lineage == self._label[0]:
                tensors, values = self._state()
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
        client, meters = self._client, self._machine.meters
        self._told = (meters.forward_passes, meters.client.seconds, meters.wire.seconds)
        client.cursor, client.losses = order.cursor, []
        self._label = (order.lineage, order.round + 1)
        self._talk = self._conversation(Round(order.round, order.steps, order.first), order.measure)
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
                        self._load(*found[1:])
                        return
        self._load(*self._begin)

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

    def _conversation(self, round: Round, measure: bool) -> _Talk:
        machine, client = self._machine, self._client
        link, meters = machine.link, machine.meters
        near, _ = link.of(self._number)
        if (greeting := near.hello()) is not None:
            near.meet(link.receive(self._number, (yield link.send(self._number, greeting))))
        memory = MemoryMeter(machine.resident(client)) if measure else None
        if measure:
            forget_tables()
            machine.measure_inference(client, round)
        talk, reply = machine.algorithm.client_round(client, round), None
        while (message := machine.let_speak(client, talk, reply, memory)) is not None:
            said = link.send(self._number, message, memory)
            del message, reply  # a device has no memory for what it has sent
            heard = yield said
            del said
            reply = link.receive(self._number, heard, memory)
            del heard
        if memory is not None:
            meters.client_peak_bytes = max(meters.client_peak_bytes, memory.peak_bytes)

    def _done(self) -> Done:
        meters, client, told = self._machine.meters, self._client, self._told
        return Done(
            lineage=self._turn[0],
            round=self._turn[1],
            cursor=client.cursor,
            forward_passes=meters.forward_passes - told[0],
            client_seconds=meters.client.seconds - told[1],
            wire_seconds=meters.wire.seconds - told[2],
            peak_bytes=meters.client_peak_bytes,
            inference_peak_bytes=meters.client_inference_peak_bytes,
            losses=tuple(client.take_losses()),
        )

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        client, (near, _) = self._client, self._machine.link.of(self._number)
        tensors = {f"theta.{name}": tensor.detach() for name, tensor in client.replica.parameters.items()}
        tensors |= moments("moment", client.replica)
        if client.optimizer is not None:
            tensors |= optimizer_tensors("optimizer", client.optimizer)
        of_link, link = near.state()
        tensors |= {f"link.{name}": tensor for name, tensor in of_link.items()}
        return tensors, {"position": client.position, "replayed": client.replica.position, "link": link}

    @torch.no_grad()
    def _load(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        client, link = self._client, self._machine.link
        for name, parameter in client.replica.parameters.items():
            parameter.copy_(tensors[f"theta.{name}"])
        load_moments("moment", client.replica, tensors)
        if client.optimizer is not None:
            load_optimizer_tensors("optimizer", client.optimizer, tensors)
        client.position, client.replica.position = values["position"], values["replayed"]
        link.ends.clear()
        link.of(self._number)[0].load_state(under("link.", tensors), values["link"])


def held_by_devices(machine: Simulation) -> dict[str, Tensor]:
    """All tensors of what the devices hold of a model: its parts' parameters and buffers, by name."""
    parts: list[nn.Module] = [machine.device_part] + ([] if machine.head is None else [machine.head.module])
    held = {f"{place}.{name}": tensor for place, part in enumerate(parts) for name, tensor in part.state_dict().items()}
    theta = {f"0.{name}": parameter.detach() for name, parameter in machine.server.replica.parameters.items()}
    return held | theta


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """One text that differs where a name, a shape, a dtype or a bit does."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def takes(machine: Simulation, client: int, *, begun: bool) -> int:
    """Bytes of the longest body that a client reads: of the weights to begin with, and when it has `begun`, of a round.

    Both follow from the recipe, as this site has it.
    """
    of_rounds = machine.link.of(client)[0].most_bytes if begun else 0
    return max(of_rounds, most_bytes(model_bound(held_by_devices(machine))))


@torch.no_grad()
def take_weights(machine: Simulation, body: bytes) -> None:
    """Puts the server's weights to begin with in the place of this site's own.

    Raises:
        PeerError: the body is no message with these tensors.
    """
    held = held_by_devices(machine)
    message = unpack(body, model_bound(held))
    if not isinstance(message, Weights):
        raise PeerError("", type(message).__name__, "Weights is allowed", sender="server")
    check_tensors("server: Weights.tensors", message.tensors, held)
    for tensor, theirs in zip(held.values(), message.tensors, strict=True):
        tensor.copy_(theirs)


def _stale(what: str) -> Frame:
    return frame(Refused(why="stale", error=f"a question came late or twice: {what}"))


def refused(why: Any, error: Exception) -> Frame:
    """The answer to a question that an error has ended."""
    return frame(Refused(why=why, error=str(error)[:2000]))
