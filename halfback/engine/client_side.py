"""A client where it runs: its part of the model, its end of the link, and what that costs. Nothing of the server."""

from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast, final

import torch
from torch import Tensor, nn

from halfback.engine.held import held
from halfback.engine.link import blamed, charged, tensors_of
from halfback.engine.links import Links
from halfback.engine.sums import is_summed, masked_talk
from halfback.engine.tensors import load_moments, load_optimizer_tensors, moments, optimizer_tensors, under
from halfback.masking.rules import SumRules
from halfback.models.cut import install
from halfback.models.normalising import training
from halfback.models.running import Bottom, LocalModel, in_rows
from halfback.parties.client import Client
from halfback.parties.holdings import Batch, Round
from halfback.parties.protocol import Algorithm, Conversation
from halfback.telemetry.meters import ForwardCounter, MemoryMeter, Meters, inference_peak_bytes
from halfback.wire.messages import Message
from halfback.zeroth.directions import forget_tables

Talk = Generator[bytes, bytes, None]
"""A round of one client: the bytes of each message that it sends, and of the answer that it gets."""


@final
class ClientSide:
    """One client. Those of one process may share a model, a replica of θ and meters; each has its own end of a link.

    Attributes:
        party: the client as its algorithm sees it.
        part: where its θ is put before it runs; among others in one process, what the deepest of their cuts leaves.
        links: what the links of the run are made of; a folder that they keep lives as long as this.
        near: its end of the link.
        meters: what it cost so far.
        rows_at_once: rows of a batch that go through its part at a time; None for all.
        norms: batch norms of its part that train.
        sums: the rules by which a cohort adds up what its clients say of θ; None where the server hears each.
    """

    def __init__(
        self, algorithm: Algorithm, party: Client, part: Bottom | LocalModel, links: Links, meters: Meters
    ) -> None:
        self.algorithm = algorithm
        self.party = party
        self.part = part
        self.near = links.near(party.id)
        self.meters = meters
        self.rows_at_once: int | None = None
        self.norms: Sequence[nn.BatchNorm2d] = ()
        self.sums: SumRules | None = None
        self._links = links  # the folder of what its end remembers on disk goes with them

    def converse(self, round: Round, *, measure_memory: bool) -> Talk:
        """Carries the client's side of one round.

        Raises:
            PeerError: an answer is none that this client can take.
            Diverged: the client's numbers, or those that it was sent, are not finite.
        """
        if (greeting := self.near.hello()) is not None:
            theirs = self._heard((yield self._said(greeting, None)), None)
            with blamed("server"):
                self.near.meet(theirs)
        memory = None
        if measure_memory:
            memory = MemoryMeter(self.resident())
            forget_tables()  # it makes them anew, and is charged for them
            self._measure_inference(round)
        talk, reply = self.algorithm.client_round(self.party, round), None
        while (message := self._speak(talk, reply, memory)) is not None:
            if self.sums is not None and is_summed(message):
                message = yield from self._masked(message, self.sums, memory)
            said = [self._said(message, memory)]
            del message, reply  # a device has no memory for what it has sent
            heard = yield said.pop()
            reply = self._heard(heard, memory)
            del heard
        self.near.take_seen()  # the server's end sees the same, and is asked for it
        if memory is not None:
            self.meters.client_peak_bytes = max(self.meters.client_peak_bytes, memory.peak_bytes)

    def _masked(
        self, message: Message, rules: SumRules, memory: MemoryMeter | None
    ) -> Generator[bytes, bytes, Message]:
        """Says what goes before the last of a masked message, which it returns."""
        talk, reply = masked_talk(self.party.id, len(self.party.feed.data), message, rules), None
        while True:
            with self.meters.wire.running(), blamed("server"), charged(memory):
                try:
                    said = talk.send(reply)
                except StopIteration as end:
                    return cast(Message, end.value)
            reply = self._heard((yield self._said(said, memory)), memory)

    def _said(self, message: Message, memory: MemoryMeter | None) -> bytes:
        with self.meters.wire.running(), charged(memory):
            return self.near.send(message).data

    def _heard(self, data: bytes, memory: MemoryMeter | None) -> Message:
        with self.meters.wire.running(), blamed("server"), charged(memory):
            return self.near.receive(data)

    def _speak(self, talk: Conversation, reply: Message | None, memory: MemoryMeter | None) -> Message | None:
        if memory is not None and reply is not None:
            memory.receive(tensors_of(reply))
        install(self.part, self.party.theta.parameters)
        counter = self.counter()
        with self.meters.client.running(), charged(memory), self._as_it_trains():
            try:
                return talk.send(reply)
            except StopIteration:
                return None
            finally:
                counter.remove()
                self.meters.forward_passes += counter.count

    @contextmanager
    def _as_it_trains(self) -> Iterator[None]:
        with in_rows(self.party.bottom, self.rows_at_once), training(self.norms):
            yield

    def counter(self) -> ForwardCounter:
        """Begins to count forward passes of the client's part."""
        # Inside the first block, which checkpointing runs again without passing by the bottom; but a pass in groups of
        # rows, which nothing repeats, is one pass, and exact gradients run blocks alone, which is none.
        inside = next(self.part.blocks[0].children(), self.part.blocks[0])
        whole = self.rows_at_once is not None or self.algorithm.needs.agreement.exact_blocks
        return ForwardCounter(self.party.bottom if whole else inside)

    def _measure_inference(self, round: Round) -> None:
        """The peak of plain inference on the batches that this round will use, of the head too if there is one.

        It is that of this client: in as many rows at a time as it takes, for it has no room for more.
        """
        feed, parts = self.party.feed, nn.ModuleList(self.parts())
        install(self.part, self.party.theta.parameters)
        for number in range(feed.cursor, feed.cursor + round.steps):
            # The batch is made where it counts, as in a round.
            with in_rows(self.party.bottom, self.rows_at_once):
                peak = inference_peak_bytes(parts, lambda n=number: self._infer(feed.data.batch(n)), [])  # type: ignore[misc]
            self.meters.client_inference_peak_bytes = max(self.meters.client_inference_peak_bytes, peak)

    def _infer(self, batch: Batch) -> None:
        """What a device computes of one batch's logits; the server's part in between is not its own."""
        part, head = self.parts()[0], self.party.head
        if isinstance(part, LocalModel):
            deque(part.pieces(batch.inputs, batch.scored), maxlen=0)
            return
        hidden = part(batch.inputs)
        if head is not None:  # on what the middle would make of it
            zeros = hidden.new_zeros(len(hidden), *head.sizes)
            head.module(zeros, batch.inputs.get("lengths"), batch.scored)

    def parts(self) -> list[nn.Module]:
        """What the client holds of the model: the part that θ belongs to first."""
        part = self.part if isinstance(self.part, LocalModel) else self.party.bottom
        return [part] if self.party.head is None else [part, self.party.head.module]

    def held(self) -> dict[str, Tensor]:
        """All tensors of what the client holds of the model, by name: its parts' parameters and buffers."""
        return held(self.parts(), self.party.theta.parameters)

    def resident(self) -> list[Tensor]:
        """What the client holds between two rounds."""
        party, parts = self.party, self.parts()
        own = {name for name, _ in parts[0].named_parameters()}  # of θ, which has the blocks of the deepest cut
        states = [party.theta.parameters, *party.theta.replica.moments.values()]
        replayed = [tensor for by_name in states for name, tensor in by_name.items() if name in own]
        optimizer = [] if party.descent is None else list(optimizer_tensors("", party.descent.optimizer).values())
        frozen = [p for part in parts for p in part.parameters() if not p.requires_grad]  # a trained head comes anew
        buffers = [buffer for part in parts for buffer in part.buffers()]
        return [*replayed, *frozen, *buffers, *optimizer, *self.near.tensors()]

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that this client needs to go on by itself, as named tensors and plain values."""
        party = self.party
        tensors = {f"theta.{name}": tensor.detach() for name, tensor in party.theta.parameters.items()}
        tensors |= moments("moment", party.theta.replica)
        if party.descent is not None:
            tensors |= optimizer_tensors("optimizer", party.descent.optimizer)
        of_link, link = self.near.state()
        tensors |= {f"link.{name}": tensor for name, tensor in of_link.items()}
        return tensors, {"position": party.theta.position, "replayed": party.theta.replica.position, "link": link}

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Continues from `state`."""
        party = self.party
        for name, parameter in party.theta.parameters.items():
            parameter.copy_(tensors[f"theta.{name}"])
        load_moments("moment", party.theta.replica, tensors)
        if party.descent is not None:
            load_optimizer_tensors("optimizer", party.descent.optimizer, tensors)
        party.theta.position, party.theta.replica.position = values["position"], values["replayed"]
        self.near.load_state(under("link.", tensors), values["link"])
