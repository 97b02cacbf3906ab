"""One process: clients are states that visit one shared set of frozen weights.

Where θ is a function of the history (clients agree by `slopes`), all clients share one replica: the first of a
cohort to take a step moves it, for the others the same rows are already taken. Each client still asks for, receives and
pays for the rows it missed. Where steps are pipelined a client's turn goes over a step: each takes it, and for all but
the last it is undone again. So memory does not grow with the number of clients, and the bits are those of clients that
each hold their own replica (a test says so).
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from halfback.codecs.protocol import Seen
from halfback.controllers.protocol import Controller, LinkUse, Observation
from halfback.engine.bounds import Bounds
from halfback.engine.kept import check_names, check_state, check_thresholds, going_on
from halfback.engine.link import End, Link, Side, charged, tensors_of
from halfback.engine.sampling import dependent_rounding
from halfback.engine.state import (
    load_moments,
    load_optimizer_tensors,
    moments,
    optimizer_tensors,
    trained_above,
    under,
)
from halfback.errors import PeerError, UserError
from halfback.models.cut import Bottom, Device, install
from halfback.parties.client import Client
from halfback.parties.holdings import BatchSource, Head, Local, Round
from halfback.parties.protocol import Algorithm, ChoosesClients, Conversation
from halfback.parties.server import Server
from halfback.telemetry.meters import ForwardCounter, MemoryMeter, Stopwatch, inference_peak_bytes
from halfback.wire.ledger import Direction, Ledger
from halfback.wire.messages import Message
from halfback.zeroth.directions import forget_tables
from halfback.zeroth.replay import Replica, Schedule
from halfback.zeroth.seeds import seed_for

OptimizerOf = Callable[[Sequence[Tensor]], torch.optim.Optimizer]


@dataclass
class Meters:
    """What a run cost so far; seconds and counts add up, peaks are the highest seen in a measured round."""

    client: Stopwatch = field(default_factory=Stopwatch)
    server: Stopwatch = field(default_factory=Stopwatch)
    wire: Stopwatch = field(default_factory=Stopwatch)
    forward_passes: int = 0
    client_peak_bytes: int = 0
    client_inference_peak_bytes: int = 0
    server_peak_bytes: int = 0


class Simulation:
    """N clients and a server in one process."""

    def __init__(
        self,
        algorithm: Algorithm,
        server: Server,
        device_part: Bottom | Device,
        sources: Sequence[BatchSource],
        *,
        sampled_clients: int,
        seed: int,
        device: torch.device,
        bottom_optimizer: OptimizerOf,
        bottom_clip: float | None,
        schedule: Schedule,
        head: Head | None,
        local: Callable[[int], Local] | None,
        ends: Callable[[int], tuple[End, End]],
        bounds: Bounds,
        controller: Controller | None,
        bottoms: Mapping[int, Bottom],
    ) -> None:
        """`device_part` is what θ belongs to; `sources` are the clients' data, one each; `seed` fixes who is sampled in
        which round; `local` gives a client's own model; `ends` makes the two ends of a client's link, the client's
        first; `bounds` is what clients elsewhere may say; `controller` sets the thresholds of links that reuse values;
        `bottoms` are those of the clients whose cut is not the deepest.
        """
        self.algorithm = algorithm
        self.server = server
        self.device_part = device_part
        self.bottom = device_part.bottom if isinstance(device_part, Device) else device_part
        self.bottoms = bottoms
        self.sources = sources
        self.sampled_clients = sampled_clients
        self.seed = seed
        self.device = device
        self.bottom_optimizer = bottom_optimizer
        self.bottom_clip = bottom_clip
        self.schedule = schedule
        self.head = head
        self.local = local
        self.ledger = Ledger()
        self.meters = Meters()
        self.link = Link(self.ledger, self.meters.wire, ends)
        self.bounds = bounds
        self.controller = controller
        self.clients: dict[int, Client] = {}
        self.server_meter: MemoryMeter | None = None

    def release_top(self) -> None:
        """Forgets the server's part of the model, on a machine that has a client alone."""
        self.server.top, self.server.optimizer, self.server.top_replica = nn.Module(), None, None
        self.server.above, self.server.auxiliary = {}, None

    def cohort(self, round_number: int) -> list[int]:
        """The clients sampled in a round, a pure function of (seed, round)."""
        generator = np.random.Generator(np.random.Philox(key=seed_for(self.seed, "cohort", round_number)))
        if isinstance(self.algorithm, ChoosesClients):
            probabilities = self.algorithm.inclusion(self.server, self.sampled_clients)
            if len(set(probabilities)) > 1:  # equal ones are what every other method has, and so are its cohorts
                return dependent_rounding(probabilities, generator)
        return sorted(generator.choice(len(self.sources), self.sampled_clients, replace=False).tolist())

    def client(self, number: int) -> Client:
        """Client `number`, made when it is first sampled."""
        if number not in self.clients:
            replica, optimizer = self.server.replica, None
            if self._has_own_parameters:
                replica = _copied(replica, number)
            if self.algorithm.traits.backpropagates:
                optimizer = self.bottom_optimizer(list(replica.parameters.values()))
            self.clients[number] = Client(
                number,
                self.bottoms.get(number, self.bottom),
                replica,
                self.sources[number],
                hidden_dtype=self.server.hidden_dtype,
                groups=self.server.groups.get(number),
                optimizer=optimizer,
                clip=self.bottom_clip,
                schedule=self.schedule,
                head=self.head,
                local=None if self.local is None else self.local(number),
            )
        return self.clients[number]

    @property
    def _has_own_parameters(self) -> bool:
        return self.algorithm.traits.agreement in ("weights", "relay")

    def run_round(self, round: Round, *, measure_memory: bool) -> float:
        """Carries the conversations of one round's cohort, exchange by exchange; returns the mean training loss.

        The loss is NaN where a round took none.
        """
        cohort = [self.client(number) for number in self.cohort(round.number)]
        thresholds = self.thresholds()
        for client in cohort:
            self.link.open(client.id, thresholds)
        memory: dict[int, MemoryMeter] = {}
        if measure_memory:
            memory = {client.id: MemoryMeter(self.resident(client)) for client in cohort}
            forget_tables()  # the first client to need one makes it, and is charged for it
        with self.measuring_server(measure_memory):
            for number in memory:
                self.measure_inference(self.client(number), round)
            for together in [[client] for client in cohort] if self.algorithm.traits.one_by_one else [cohort]:
                self.server.begin(round)
                self._converse(together, round, memory)
        for meter in memory.values():
            self.meters.client_peak_bytes = max(self.meters.client_peak_bytes, meter.peak_bytes)
        return take_losses(self.server, [loss for client in cohort for loss in client.take_losses()])

    @contextmanager
    def measuring_server(self, measure: bool) -> Iterator[None]:
        """While a round runs, what the server does is counted for its peak."""
        if measure:
            self.server_meter = MemoryMeter(self.server_resident())
        try:
            yield
        finally:
            if self.server_meter is not None:
                self.meters.server_peak_bytes = max(self.meters.server_peak_bytes, self.server_meter.peak_bytes)
                self.server_meter = None

    def _converse(self, together: Sequence[Client], round: Round, memory: Mapping[int, MemoryMeter]) -> None:
        """Carries the conversations of clients that speak in step."""
        talks = {client.id: self.algorithm.client_round(client, round) for client in together}
        replies: dict[int, Message | None] = dict.fromkeys(talks)
        while talks:
            messages: dict[int, Message] = {}
            for number, talk in list(talks.items()):
                with self._undone_for_others(number, list(talks)):
                    said = self.let_speak(self.client(number), talk, replies.pop(number), memory.get(number))
                if said is None:
                    del talks[number]
                else:
                    messages[number] = self._carry(number, "up", said, memory)
                    del said
            if messages:
                replies = self._reply(messages, memory)

    def _undone_for_others(self, number: int, speaking: Sequence[int]) -> AbstractContextManager[None]:
        """Of a turn that goes over an agreed step: those who share θ and speak after it must find θ as this one did."""
        replica, later = self.client(number).replica, speaking[speaking.index(number) + 1 :]
        if self.algorithm.traits.pipelined and any(self.client(other).replica is replica for other in later):
            return replica.rehearsal()
        return nullcontext()

    def thresholds(self) -> dict[str, float]:
        """Of each link that reuses values, in the round to come."""
        return {} if self.controller is None else self.controller.thresholds()

    def steer(self, round: Round, *, train_loss: float, validation_loss: float | None) -> None:
        """Tells the controller what a round of its thresholds came to; the validation loss, where it was taken."""
        if self.controller is None:
            return
        seen: dict[str, list[Seen]] = {}
        for number in self.cohort(round.number):
            near, far = self.link.of(number)
            near.take_seen()  # both ends see the same; a server has its own
            for link, matrices in far.take_seen().items():
                seen.setdefault(link, []).extend(matrices)
        thresholds = self.thresholds()
        links = {link: _use(thresholds[link], matrices) for link, matrices in seen.items() if matrices}
        self.controller.observe(Observation(round.number, train_loss, validation_loss, links))

    def let_speak(
        self, client: Client, talk: Conversation, reply: Message | None, memory: MemoryMeter | None
    ) -> Message | None:
        if memory is not None and reply is not None:
            memory.receive(tensors_of(reply))
        install(self.device_part, client.replica.parameters)
        # Inside the first block, which checkpointing runs again without passing by the bottom.
        counter = ForwardCounter(next(self.bottom.blocks[0].children()))
        with self.meters.client.running(), charged(memory):
            try:
                return talk.send(reply)
            except StopIteration:
                return None
            finally:
                counter.remove()
                self.meters.forward_passes += counter.count

    def _carry(self, number: int, direction: Direction, message: Message, memory: Mapping[int, MemoryMeter]) -> Message:
        charged: dict[Side, MemoryMeter | None] = {"client": memory.get(number), "server": self.server_meter}
        return self.link.carry(number, direction, message, charged)

    def _reply(self, messages: Mapping[int, Message], memory: Mapping[int, MemoryMeter]) -> dict[int, Message | None]:
        answers = self.answers(messages)
        return {number: self._carry(number, "down", answers[number], memory) for number in messages}

    def answers(self, messages: Mapping[int, Message]) -> Mapping[int, Message]:
        """The server's answers to one exchange; PeerError unless all are of one kind, the odd one named first."""
        kinds = {number: type(message).__name__ for number, message in messages.items()}
        alike = Counter(kinds.values())
        if len(alike) > 1:
            rarest_first = sorted(kinds.items(), key=lambda said: alike[said[1]])
            came = ", ".join(f"{kind} of client {number}" for number, kind in rarest_first)
            raise PeerError("exchange", f"{came} came together, one kind is allowed", sender=rarest_first[0][0])
        if self.server_meter is not None:
            for message in messages.values():
                self.server_meter.receive(tensors_of(message))
        if self.server.above:  # it runs blocks of θ, as its own replica has them
            install(self.device_part, self.server.replica.parameters)
        with self.meters.server.running(), charged(self.server_meter):
            return self.algorithm.answer(self.server, messages)

    def measure_inference(self, client: Client, round: Round) -> None:
        """The peak of plain inference on the batches that this round will use, of the head too if it has one."""
        install(self.device_part, client.replica.parameters)
        parts = nn.ModuleList(self._parts(client))
        for number in range(client.cursor, client.cursor + round.steps):
            peak = inference_peak_bytes(parts, lambda n=number: self._infer(client, client.data.batch(n).inputs), [])  # type: ignore[misc]
            self.meters.client_inference_peak_bytes = max(self.meters.client_inference_peak_bytes, peak)

    def _infer(self, client: Client, inputs: Mapping[str, Tensor]) -> None:
        """What a device computes of one batch's logits; the server's part in between is not its own."""
        hidden = self._parts(client)[0](inputs)
        if self.head is not None:
            mask = inputs.get("attention_mask")
            rows = hidden.shape[:1] if mask is None else mask.shape
            hidden = hidden.new_zeros(*rows, *self.head.sizes)  # what the middle would make of it
            self.head.module(hidden, mask)

    def resident(self, client: Client) -> list[Tensor]:
        """What a client holds between two rounds."""
        parts = self._parts(client)
        own = {name for name, _ in parts[0].named_parameters()}  # of θ, which has the blocks of the deepest cut
        states = [client.replica.parameters, *client.replica.moments.values()]
        replayed = [tensor for by_name in states for name, tensor in by_name.items() if name in own]
        optimizer = [] if client.optimizer is None else list(optimizer_tensors("", client.optimizer).values())
        frozen = [p for part in parts for p in part.parameters() if not p.requires_grad]  # a trained head comes anew
        buffers = [buffer for part in parts for buffer in part.buffers()]
        remembered = self.link.of(client.id)[0].tensors()
        return [*replayed, *frozen, *buffers, *optimizer, *remembered]

    def _parts(self, client: Client) -> list[nn.Module]:
        """What the client holds of the model: the part that θ belongs to first."""
        part = self.bottoms.get(client.id, self.device_part)
        return [part] if self.head is None else [part, self.head.module]

    def server_resident(self) -> list[Tensor]:
        """What the server holds between two rounds."""
        server = self.server
        optimizer = [] if server.optimizer is None else list(optimizer_tensors("", server.optimizer).values())
        replicas = [server.replica, *([server.top_replica] if server.top_replica else [])]
        replayed = [
            tensor for replica in replicas for tensor in [*replica.parameters.values(), *moments("", replica).values()]
        ]
        head = (server.head or {}).values()
        remembered = [tensor for _, far in self.link.ends.values() for tensor in far.tensors()]
        tops = {server.top, *(above.top for above in server.above.values())}
        weights = [tensor for top in tops for tensor in (*top.parameters(), *top.buffers())]
        lasting = [tensor for held in server.lasting.values() for tensor in held.values()]
        return [*weights, *head, *optimizer, *replayed, *server.history, *remembered, *lasting]

    def agreed_bottom(self) -> Bottom:
        """The bottom with the parameters that the federation has agreed on."""
        self.server.catch_up()
        install(self.device_part, self.server.replica.parameters)
        return self.bottom

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that a resumed run needs, as named tensors and plain values."""
        server = self.server
        server.settle()
        tensors = {f"bottom.{name}": p.detach() for name, p in server.replica.parameters.items()}
        tensors |= moments("bottom_moment", server.replica)
        tensors |= {f"top.{name}": p.detach() for name, p in trained_above(server).items()}
        if server.top_replica is not None:
            tensors |= moments("top_moment", server.top_replica)
        if server.optimizer is not None:
            tensors |= optimizer_tensors("top_optimizer", server.optimizer)
        if server.history:
            tensors["history"] = torch.stack(server.history)
        for number, held in server.lasting.items():
            tensors |= {f"lasting.{number}.{name}": tensor for name, tensor in held.items()}
        for number, client in self.clients.items():
            if client.optimizer is not None:
                tensors |= optimizer_tensors(f"client.{number}", client.optimizer)
            if self._has_own_parameters:  # these come anew with each round, what they were moved by does not
                tensors |= moments(f"client_moment.{number}", client.replica)
        steered: dict[str, Any] = {}
        if self.controller is not None:
            of_controller, steered = self.controller.state_dict()
            tensors |= {f"controller.{name}": tensor for name, tensor in of_controller.items()}
        links: dict[str, list[Any]] = {}
        for number, ends in self.link.ends.items():
            states = [end.state() for end in ends]
            links[str(number)] = [of_end for _, of_end in states]
            for side, (of_end, _) in zip(("near", "far"), states, strict=True):
                tensors |= {f"link.{number}.{side}.{name}": tensor for name, tensor in of_end.items()}
        meters = self.meters
        values = {
            "links": links,
            "controller": steered,
            "clients": {
                str(number): [client.position, client.cursor, client.replica.position]
                for number, client in self.clients.items()
            },
            "steps": server.steps,
            "turns": server.turns,
            "position": server.replica.position,
            "top_position": server.top_replica.position if server.top_replica else 0,
            "ledger": self.ledger.state_dict(),
            "seconds": [meters.client.seconds, meters.server.seconds, meters.wire.seconds],
            "forward_passes": meters.forward_passes,
            "peaks": [meters.client_peak_bytes, meters.client_inference_peak_bytes, meters.server_peak_bytes],
        }
        return tensors, values

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Continues from `state`, whatever was done since.

        Raises:
            UserError: the state is that of a run whose clients are elsewhere.
        """
        if "deployment" in values:
            raise UserError("this run's clients are on other machines: continue it with `halfback deploy`")
        with going_on():
            self.load_server_state(tensors, values)
            if lost := sorted({*values["links"]} ^ {*values["clients"]}):
                raise UserError(f"values.json: client {lost[0]} has a place in one of links and clients, not in both")
            for number, (position, cursor, replayed) in values["clients"].items():
                client = self.client(int(number))
                client.position, client.cursor = position, cursor
                if client.optimizer is not None:
                    load_optimizer_tensors(f"client.{number}", client.optimizer, tensors)
                if self._has_own_parameters:
                    load_moments(f"client_moment.{number}", client.replica, tensors)
                    client.replica.position = replayed

    @torch.no_grad()
    def load_server_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """What `load_state` does but for the clients' own."""
        server = self.server
        check_state(
            tensors,
            values,
            server=server,
            client=self.client,
            clients=len(self.sources),
            traits=self.algorithm.traits,
            steered=self.controller is not None,
        )
        server.passes, server.kept, server.lasting, server.losses = {}, {}, {}, []
        for name, tensor in under("lasting.", tensors).items():
            number, of_client = name.split(".", 1)
            server.lasting.setdefault(int(number), {})[of_client] = tensor.to(self.device)
        for name, parameter in server.replica.parameters.items():
            parameter.copy_(tensors[f"bottom.{name}"])
        for name, parameter in trained_above(server).items():
            parameter.copy_(tensors[f"top.{name}"])
        load_moments("bottom_moment", server.replica, tensors)
        server.steps = values["steps"]
        server.turns = [(row, step) for row, step in values["turns"]]
        server.replica.position = values["position"]
        if server.top_replica is not None:
            load_moments("top_moment", server.top_replica, tensors)
            server.top_replica.position = values["top_position"]
        if server.optimizer is not None:
            load_optimizer_tensors("top_optimizer", server.optimizer, tensors)
        server.history = list(tensors["history"].to(self.device)) if "history" in tensors else []
        server.settled = len(server.history)
        if self.controller is not None:
            self.controller.load_state_dict(under("controller.", tensors), values["controller"])
            check_thresholds(self.controller.thresholds())
            check_names("controller.", under("controller.", tensors), self.controller.state_dict()[0])
        self.link.ends.clear()
        for number, states in values["links"].items():
            for side, end, of_end in zip(("near", "far"), self.link.of(int(number)), states, strict=True):
                end.load_state(remembered := under(f"link.{number}.{side}.", tensors), of_end)
                check_names(f"link.{number}.{side}.", remembered, end.state()[0])
        self.ledger.load_state_dict(values["ledger"])
        meters = self.meters
        meters.client.seconds, meters.server.seconds, meters.wire.seconds = values["seconds"]
        meters.forward_passes = values["forward_passes"]
        meters.client_peak_bytes, meters.client_inference_peak_bytes, meters.server_peak_bytes = values["peaks"]


def take_losses(server: Server, local: Sequence[float]) -> float:
    """The mean training loss of a round: the server's, or where it took none the devices' own; NaN without any."""
    losses = server.losses or local
    server.losses = []
    return sum(losses) / len(losses) if losses else math.nan


def _copied(agreed: Replica, number: int) -> Replica:
    """Parameters of a client's own, which start as the agreed ones; and directions of its own."""
    return agreed.alike(
        {name: nn.Parameter(parameter.detach().clone()) for name, parameter in agreed.parameters.items()},
        seed_of=lambda row, p: seed_for(agreed.seed_of(row, p), "client", number),
        own_pace=True,
    )


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
