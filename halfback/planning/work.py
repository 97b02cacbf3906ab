"""What a configuration costs a client and its server in a step, from shapes and rows alone: nothing is trained."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from halfback.assembly.choices import sums_of as rules_of
from halfback.assembly.given import NOTHING, Given
from halfback.assembly.sources import client_sources, pooled_source
from halfback.assembly.whole import Loaded, load
from halfback.config import RunConfig, build_algorithm
from halfback.data.batches import Batch, ClientData
from halfback.data.encode import verbaliser_ids
from halfback.errors import UserError
from halfback.models.adapters import trainable
from halfback.models.part import Held
from halfback.parties.protocol import Algorithm
from halfback.planning.device import Device
from halfback.planning.memory import peak
from halfback.planning.methods import exchanges_of, formula_of, sums_of
from halfback.planning.operations import Counts, Operations, Sizes, mean_sizes, sizes_of
from halfback.planning.rounds import Turn, devices_by_client, talks_of, turns
from halfback.planning.shapes import Adapted, Trained, adapt, auxiliary_of
from halfback.planning.tracing import Tracer
from halfback.planning.traffic import Sums, greeting

STEPS = 30
"""Steps of a run that are looked at, from its first one on, if it has as many."""


@dataclass(frozen=True)
class Work:
    """What one client does in one step, a batch: means over the steps that were looked at, the peak is the largest.

    Attributes:
        peak_bytes: the most that a client's tensors take, as `client_peak_bytes` of a run counts them.
        parameter_bytes: weights and buffers of the client's part, in the peak.
        up_bytes, down_bytes: as the ledger counts them, of all messages of a step; a round's first and last message
            are shared out over its steps.
        device_forward: operations, two for each multiply-add, of one forward pass of the client's part.
        passes: forward passes of that part in a step, probes and what exact gradients compute again among them. One
            that is dearer, as with `forward_ad`, counts as so many more.
        device_backward: operations of the device's backward passes; in the U-shape with the forward pass of its head.
        server_forward, server_backward: operations of the server for one client's batch, all passes of a step.
        device_blocks, server_blocks: how often a block is run in those passes, there or back; a head counts as one.
        exchanges: messages up with an answer: each costs a round trip.
        steps: that all this is of.
        estimated: the bytes are a bound, since a codec leaves out what it finds again, which depends on the values.
    """

    peak_bytes: int
    parameter_bytes: int
    up_bytes: float
    down_bytes: float
    device_forward: float
    passes: float
    device_backward: float
    server_forward: float
    server_backward: float
    device_blocks: float
    server_blocks: float
    exchanges: float
    steps: int = 1
    estimated: bool = False


@dataclass(frozen=True)
class Values:
    """How many values a configuration trains.

    Attributes:
        exact: on the device, by gradients.
        along: by slopes, on either side, or not at all where none are taken.
        top: on the server, by gradients.
    """

    exact: int
    along: int
    top: int


class Workload:
    """The rows and the model's shapes of a recipe, and what variants of it cost.

    A variant may have another method, cut, head, codecs, dtype, batch size, number of clients or seed; it has the
    recipe's task and model. The first with other trained modules takes seconds, any other milliseconds.
    """

    def __init__(self, config: RunConfig, given: Given = NOTHING, *, steps: int = STEPS) -> None:
        """Reads the rows, and of the model what stands before its blocks; the blocks' weights are not read.

        Args:
            config: the recipe.
            given: what it calls "given".
            steps: how many of a run's steps are looked at.

        Raises:
            UserError: a model or a data set is not there or doesn't fit the other.
        """
        self.config = config
        self.steps = steps
        # A given model is there already; one by name is made without its files.
        self._loaded: Loaded = load(config, given, held=None if given.model is not None else Held(0, None, False))
        self._one = self._loaded.task.train.batch([0]).inputs
        self._tracer = Tracer()
        self._adapted: dict[Any, Adapted] = {}
        self._turns: dict[Any, list[Turn]] = {}
        self._parts: dict[Any, Any] = {}
        self._of_batches: dict[Any, Sizes] = {}
        self._done: dict[Any, Work] = {}  # without bytes
        self._trained: dict[str, Values] = {}

    @property
    def blocks(self) -> int:
        """Of the model."""
        return self._model(self.config).blocks

    def work(self, config: RunConfig) -> Work:
        """What a variant of the recipe costs.

        Raises:
            UserError: the variant is none that could run: a cut outside of the model, or nothing to train.
        """
        algorithm, devices, taken = self._parties(config)
        up, down, estimated = self._bytes(config, algorithm, taken, devices)
        steps, head = sum(len(turn.batches) for turn in taken), config.model.head is not None
        sums = _sums(config, algorithm)
        exchanges = exchanges_of(config.algorithm.name, algorithm, head=head, steps=config.steps_per_round, sums=sums)
        computed = self._computed(config, algorithm, devices, taken)
        return replace(computed, up_bytes=up / steps, down_bytes=down / steps, exchanges=exchanges, estimated=estimated)

    def computed(self, config: RunConfig) -> Work:
        """The same with nothing on the links, also of a method of which nobody said what it sends; raises as `work`."""
        return self._computed(config, *self._parties(config))

    def _parties(self, config: RunConfig) -> tuple[Algorithm, list[Device], list[Turn]]:
        self._check_same(config)
        algorithm = build_algorithm(config)
        devices = devices_by_client(config, lambda at: self._device(config, algorithm, at))
        return algorithm, devices, self._taken(config, algorithm)

    def _computed(
        self, config: RunConfig, algorithm: Algorithm, devices: Sequence[Device], taken: Sequence[Turn]
    ) -> Work:
        key = (_but_links(config), self.steps)
        if key not in self._done:
            self._done[key] = self._compute(config, algorithm, devices, taken)
        return self._done[key]

    def _compute(
        self, config: RunConfig, algorithm: Algorithm, devices: Sequence[Device], taken: Sequence[Turn]
    ) -> Work:
        counted = self._operations(config, taken, devices)
        mean: Callable[[str], float] = lambda name: sum(share * getattr(each, name) for each, share in counted)  # noqa: E731
        return Work(
            peak_bytes=max(
                peak(devices[turn.client], rows, turn.missed if rows is turn.batches[0] else 0)
                for turn, rows in self._largest(taken, devices)
            ),
            parameter_bytes=max(device.parameter_bytes for device in devices),
            up_bytes=0,
            down_bytes=0,
            device_forward=mean("device_forward"),
            passes=mean("passes"),
            device_backward=mean("device_backward"),
            server_forward=mean("server_forward"),
            server_backward=mean("server_backward"),
            device_blocks=mean("device_blocks"),
            server_blocks=mean("server_blocks"),
            exchanges=0,
        )

    def trained(self, config: RunConfig) -> Values:
        """How many values a variant of the recipe trains; raises as `work` does."""
        key = _but_links(config)
        if key not in self._trained:
            self._trained[key] = self._trained_of(config)
        return self._trained[key]

    def _trained_of(self, config: RunConfig) -> Values:
        self._check_same(config)
        algorithm = build_algorithm(config)
        device = self._device(config, algorithm, config.model.cut_of(0))
        above, needs = self._model(config).above(device.at, config.model.head), algorithm.needs
        of_top = _count([*trainable(above.top).values(), *device.sent_head.values()])
        by_gradients = needs.agreement.moves and needs.backpropagates
        exact = _count(device.theta.values() if by_gradients else device.exact)
        along = _count(device.theta.values()) - exact
        return Values(exact, along, of_top) if needs.top != "replayed" else Values(exact, along + of_top, 0)

    def _check_same(self, config: RunConfig) -> None:
        for section, own, other in (
            ("task", self.config.task, config.task),
            ("model.name", self.config.model.name, config.model.name),
            ("model.dtype", self.config.model.dtype, config.model.dtype),
        ):
            if own != other:
                raise UserError(f"plan: {section} is another than that of the recipe, whose rows and model were read")

    def _taken(self, config: RunConfig, algorithm: Algorithm) -> list[Turn]:
        alone, pools = algorithm.needs.turns == "one_by_one", algorithm.needs.agreement.pools
        sizes = (config.clients, config.sampled_clients, config.batch_size, config.steps, config.steps_per_round)
        steps = min(self.steps, config.steps)
        key = (alone, pools, sizes, config.seed, config.partition, steps)
        if key not in self._turns:
            train, device = self._loaded.task.train, "cpu"
            sources: Sequence[ClientData] = (
                pooled_source(config, train, device) if pools else client_sources(config, train, device)  # type: ignore[arg-type]
            )
            self._turns[key] = list(turns(config, algorithm, sources, None, steps))
        return self._turns[key]

    def _model(self, config: RunConfig) -> Adapted:
        kind = Trained(
            config.bottom.train, config.top.train, config.lora, config.bottom.weights == "int8", config.model.head
        )
        if kind not in self._adapted:
            ids = verbaliser_ids(config.task.verbaliser, self._loaded.tokenizer)
            self._adapted[kind] = adapt(self._loaded.whole, kind, ids, self._tracer)
        return self._adapted[kind]

    def _device(self, config: RunConfig, algorithm: Algorithm, at: int) -> Device:
        model, head = self._model(config), config.model.head
        fits = model.blocks - at if head is None else model.blocks - at - 1
        if not 1 <= at <= model.blocks or not 0 <= (head or 0) <= fits:
            raise UserError(f"cut is {at} and head {head}; the model has {model.blocks} blocks")
        if at > len(model.low_blocks):
            raise UserError(f"cut is {at}, and behind it nothing would be trained")
        above = model.above(at, head)
        tail = None
        match algorithm.needs.holds:
            case "whole":
                tail = above.top
            case "auxiliary":
                kind = Trained(
                    config.bottom.train, config.top.train, config.lora, config.bottom.weights == "int8", head
                )
                key = (kind, at, config.model.auxiliary)
                if key not in self._parts:
                    labels = max(len(self._loaded.raw.label_names), 1)
                    self._parts[key] = auxiliary_of(model, at, config.model.auxiliary, kind, labels)
                tail = self._parts[key]
        return Device(config, algorithm.needs, model, at, above.head, tail, self._one)

    def _bytes(
        self, config: RunConfig, algorithm: Algorithm, taken: Sequence[Turn], devices: Sequence[Device]
    ) -> tuple[int, int, bool]:
        head, sums = config.model.head is not None, _sums(config, algorithm)
        formula = formula_of(config.algorithm.name, algorithm, head=head, sums=sums)
        if formula is None:
            raise UserError(f"algorithm {config.algorithm.name!r}: nobody said what its bytes are in closed form")
        up, down, met = 0, 0, frozenset[str]()
        kinds = {id(each): talks_of(each, config) for each in {id(each): each for each in devices}.values()}
        for turn in taken:
            talk = kinds[id(devices[turn.client])](turn)
            sent, came = formula(talk)
            hello, answer = greeting(len(talk.reusing)) if talk.reusing else (0, 0)
            up, down, met = up + sent + hello, down + came + answer, met | talk.reusing
        return up, down, bool(met)

    def _operations(
        self, config: RunConfig, taken: Sequence[Turn], devices: Sequence[Device]
    ) -> list[tuple[Operations, float]]:
        """Of each kind of device those on the mean of its batches, and its share of all."""
        kinds = {id(devices[turn.client]): devices[turn.client] for turn in taken}
        total, found = sum(len(turn.batches) for turn in taken), []
        for device in kinds.values():
            batches = [batch for turn in taken if devices[turn.client] is device for batch in turn.batches]
            sizes = [self._sizes(device, batch, config.client.rows_at_once) for batch in batches]
            found.append((Counts(device).step(mean_sizes(sizes)), len(batches) / total))
        return found

    def _sizes(self, device: Device, batch: Batch, at_once: int | None) -> Sizes:
        key = (id(batch), at_once)  # a batch is kept with its turn
        if key not in self._of_batches:
            self._of_batches[key] = sizes_of(device, batch)
        return self._of_batches[key]

    def _largest(self, taken: Sequence[Turn], devices: Sequence[Device]) -> list[tuple[Turn, Batch]]:
        """Of each cut, the batches of which one has the largest peak."""
        best: dict[tuple[int, int], tuple[float, Turn, Batch]] = {}
        for turn in taken:
            for number, batch in enumerate(turn.batches):
                sizes, at = self._sizes(devices[turn.client], batch, None), devices[turn.client].at
                alone = "lengths" in batch.inputs and devices[turn.client].needs.agreement.exact_blocks
                longest = max(batch.inputs["lengths"].tolist()) if alone else 0
                of_batch = (*sizes.whole, longest, sizes.reads, 0 if number else turn.missed)
                for place, size in enumerate(of_batch):
                    if (at, place) not in best or size > best[at, place][0]:
                        best[at, place] = (size, turn, batch)
        return list({id(batch): (turn, batch) for _, turn, batch in best.values()}.values())


def _sums(config: RunConfig, algorithm: Algorithm) -> Sums | None:
    """The secure sums of a recipe; None without any."""
    if (rules := rules_of(config)) is None:
        return None
    item = rules.fixed.bits // 8
    return sums_of(config.algorithm.name, algorithm, cohort=rules.most, item=item, told=rules.told)


def _but_links(config: RunConfig) -> str:
    """Equal for variants that differ in what is made of activations and their gradients on the links."""
    bare = dict.fromkeys(("activations_up", "gradient_down", "activations_down", "gradient_up"), ())
    codecs = config.codecs.model_copy(update=bare)
    return config.model_copy(update={"codecs": codecs}).model_dump_json()


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)
