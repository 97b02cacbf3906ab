"""The server where it runs: its part of the model, its ends of all links, and what that costs. No client's."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import final

import torch
from torch import Tensor

from halfback.codecs.protocol import Seen
from halfback.controllers.protocol import Controller, LinkUse, Observation
from halfback.engine.link import End, blamed, charged, tensors_of
from halfback.engine.links import Links
from halfback.engine.sampling import Sampler
from halfback.engine.sums import Sums
from halfback.engine.tensors import moments, optimizer_tensors
from halfback.errors import PeerError
from halfback.models.cut import install
from halfback.models.normalising import training
from halfback.models.running import Bottom, LocalModel
from halfback.parties.attack import Liars
from halfback.parties.holdings import Round
from halfback.parties.protocol import Algorithm, ChoosesClients
from halfback.parties.server import Server
from halfback.telemetry.meters import MemoryMeter, Meters
from halfback.wire.messages import Caches, HandOver, Message, kinds_of, name_of
from halfback.wire.packing import Ledger, split


@final
class ServerSide:
    """The server of a run, wherever its clients are.

    Attributes:
        party: the server as its algorithm sees it.
        part: what θ belongs to: where θ is put for an evaluation, and for blocks of θ that the server runs.
        sampling: who is drawn in a round.
        links: what the links of the run are made of.
        far: the server's ends of those that were made so far, by client.
        broadcast: what encodes for all clients at once; None where nothing is.
        ledger: the bytes that went over all links.
        meters: what the run cost so far.
        liars: what the server hears in the place of what some clients say, where lies are studied; else None.
        sums: what adds up what clients say of θ behind masks; None where the server hears each.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        party: Server,
        part: Bottom | LocalModel,
        sampling: Sampler,
        links: Links,
        controller: Controller | None,
    ) -> None:
        """`controller` sets the thresholds of links that reuse values; None where no link does."""
        self.algorithm = algorithm
        self.party = party
        self.part = part
        self.sampling = sampling
        self.links = links
        self.controller = controller
        self.far: dict[int, End] = {}
        self.broadcast = links.broadcast()
        if self.broadcast is not None:
            party.agreed.encode = self.broadcast.encode
        self.ledger = Ledger()
        self.meters = Meters()
        self.liars: Liars | None = None
        self.sums: Sums | None = None
        self._memory: MemoryMeter | None = None
        self._greetings: dict[int, Caches] = {}

    def cohort(self, round_number: int) -> list[int]:
        """The clients sampled in a round."""
        algorithm, probabilities = self.algorithm, None
        if isinstance(algorithm, ChoosesClients):
            probabilities = algorithm.inclusion(self.party, self.sampling.sampled)
        return self.sampling.draw(round_number, probabilities)

    def turns(self, cohort: Sequence[int]) -> list[list[int]]:
        """The clients of a cohort, together or one after another, as the method wants it."""
        return [[number] for number in cohort] if self.algorithm.needs.turns == "one_by_one" else [list(cohort)]

    def begin(self, round: Round, together: Sequence[int]) -> None:
        """A round of these clients begins: links that remember samples compare first what they remember."""
        self.party.begin(round)
        if self.sums is not None:
            self.sums.begin()
        greetings = {number: self.end(number).hello(self.thresholds()) for number in together}
        self._greetings = {number: greeting for number, greeting in greetings.items() if greeting is not None}

    def end(self, client: int) -> End:
        """The server's end of a client's link, made when it is first asked for."""
        if client not in self.far:
            self.far[client] = self.links.far(client)
        return self.far[client]

    def hear(self, client: int, data: bytes) -> Message:
        """What a client has sent, entered in the ledger.

        Raises:
            PeerError: the bytes are no message that this client may send now.
        """
        with self.meters.wire.running(), blamed(client), charged(self._memory):
            message = self.end(client).unpack(data)
            self.ledger.add("up", message, split(message, data))
            return self.end(client).decode(message)

    def say(self, client: int, message: Message) -> bytes:
        """What a client is sent; a hand-over, which is passed on, was entered in the ledger where a client sent it."""
        with self.meters.wire.running(), charged(self._memory):
            packed = self.end(client).send(message)
        if not isinstance(message, HandOver):
            self.ledger.add("down", message, packed)
        return packed.data

    def take_greetings(self) -> dict[int, Caches]:
        """The answers to what clients say first in a round where links remember samples; none later in the round."""
        greetings, self._greetings = self._greetings, {}
        return greetings

    def meet(self, client: int, message: Message) -> None:
        """Takes what a client says first in a round where links remember samples.

        Raises:
            PeerError: it says something else.
        """
        with blamed(client):
            self.end(client).meet(message)

    def exchange(self, messages: Mapping[int, Message]) -> Mapping[int, Message]:
        """The answers to what the clients of a cohort have said at once; raises as `meet` and `answers` do."""
        if greetings := self.take_greetings():
            for number, message in messages.items():
                self.meet(number, message)
            return greetings
        return self.answers(messages)

    def answers(self, messages: Mapping[int, Message]) -> Mapping[int, Message]:
        """The server's answers to one exchange; PeerError unless all are of one kind, the odd one named first."""
        kinds = {number: name_of(kinds_of(message)) for number, message in messages.items()}
        alike = Counter(kinds.values())
        if len(alike) > 1:
            rarest_first = sorted(kinds.items(), key=lambda said: alike[said[1]])
            came = ", ".join(f"{kind} of client {number}" for number, kind in rarest_first)
            raise PeerError("exchange", f"{came} came together, one kind is allowed", sender=rarest_first[0][0])
        if self._memory is not None:
            for message in messages.values():
                self._memory.receive(tensors_of(message))
        if self.sums is not None and self.sums.concerns(messages):
            with self.meters.wire.running():
                if (told := self.sums.answers(messages, self.party.cohort.rows)) is not None:
                    return told
                messages = self.sums.mean(messages, tuple(self.party.agreed.replica.parameters.values()))
        if self.party.top.above:  # it runs blocks of θ, as its own replica has them
            install(self.part, self.party.agreed.replica.parameters)
        if self.liars is not None:
            messages = self.liars.heard(self.party, messages)
        with self.meters.server.running(), charged(self._memory), training(self.party.top.norms):
            return self.algorithm.answer(self.party, messages)

    def take_losses(self, local: Sequence[float]) -> float:
        """The mean training loss of a round: the server's, or where it took none the devices' own; NaN without any."""
        losses, self.party.losses = self.party.losses or local, []
        return sum(losses) / len(losses) if losses else math.nan

    @contextmanager
    def measuring(self, measure_memory: bool) -> Iterator[None]:
        """While a round runs, what the server does is counted for its peak."""
        if measure_memory:
            self._memory = MemoryMeter(self.resident())
        try:
            yield
        finally:
            if self._memory is not None:
                self.meters.server_peak_bytes = max(self.meters.server_peak_bytes, self._memory.peak_bytes)
                self._memory = None

    def resident(self) -> list[Tensor]:
        """What the server holds between two rounds."""
        top, agreed = self.party.top, self.party.agreed
        optimizer = [] if top.descent is None else list(optimizer_tensors("", top.descent.optimizer).values())
        replicas = [agreed.replica] if top.replica is None else [agreed.replica, top.replica]
        replayed = [
            tensor for replica in replicas for tensor in [*replica.parameters.values(), *moments("", replica).values()]
        ]
        head = (top.head or {}).values()
        remembered = [tensor for far in self.far.values() for tensor in far.tensors()]
        modules = {top.module, *(above.module for above in top.above.values())}
        weights = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
        remembered += [] if self.broadcast is None else self.broadcast.tensors()
        lasting = [*self.party.lasting().values()]
        lasting += [] if self.party.averaging is None else self.party.averaging.tensors().values()
        recent = [part for parts in agreed.recent for part in parts]
        return [*weights, *head, *optimizer, *replayed, *agreed.rows, *recent, *remembered, *lasting]

    @property
    def bottom(self) -> Bottom:
        """The bottom of the deepest cut."""
        return self.part.bottom if isinstance(self.part, LocalModel) else self.part

    def agreed_bottom(self) -> Bottom:
        """The bottom with the parameters that the federation has agreed on."""
        self.party.agreed.catch_up()
        install(self.part, self.party.agreed.replica.parameters)
        return self.bottom

    def thresholds(self) -> dict[str, float]:
        """Of each link that reuses values, in the round to come."""
        return {} if self.controller is None else self.controller.thresholds()

    def steer(self, round: Round, *, train_loss: float, validation_loss: float | None) -> None:
        """Tells the controller what a round of its thresholds came to; the validation loss, where it was taken."""
        if self.controller is None:
            return
        seen: dict[str, list[Seen]] = {}
        for _, end in sorted(self.far.items()):  # whoever took part, which not all do that were sampled
            for link, matrices in end.take_seen().items():
                seen.setdefault(link, []).extend(matrices)
        thresholds = self.thresholds()
        links = {link: _use(thresholds[link], matrices) for link, matrices in seen.items() if matrices}
        self.controller.observe(Observation(round.number, train_loss, validation_loss, links))


def _use(threshold: float, matrices: Sequence[Seen]) -> LinkUse:
    """What all clients' matrices of one round came to."""
    similarity = torch.cat([seen.similarity for seen in matrices]).float()
    compared = similarity[~similarity.isnan()]
    return LinkUse(
        threshold=threshold,
        compared=len(compared),
        skipped=int(torch.cat([seen.skipped for seen in matrices]).sum()),
        mean_similarity=float(compared.mean()) if len(compared) else None,
        std_similarity=float(compared.std(correction=0)) if len(compared) else None,
        bytes=sum(seen.sent_bytes for seen in matrices),
        full_bytes=sum(seen.full_bytes for seen in matrices),
    )
