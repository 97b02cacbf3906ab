"""What is known of a run at the moments at which its settings are held against one another: the facts of `rules`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from halfback.algorithms import algorithms
from halfback.config.schema import BottomConfig, RunConfig, TopConfig
from halfback.optimizers.table import TABLE
from halfback.parties.protocol import Algorithm


@dataclass(frozen=True)
class Method:
    """An algorithm with its options, as rules see it.

    Attributes:
        slopes: its devices have slopes of what zeroth order moves, not gradients alone.
        backpropagates: its devices do. gradients: its bottom is moved by gradients. trains: it is moved at all.
        replays: slopes move its bottom, or a part of it; replays_top: slopes move its top.
        u_shape, mixed_cuts: it can leave the head on the device; it can have a cut for each client.
        averages: θ becomes a mean of the clients' at the end of a round.
        pools: one machine has the rows of all clients.
        slopes_meet: slopes of several clients come together, of which some may be false.
        releases: what clients say of θ is slopes of the whole of it, of which one mean is agreed on at a time.
        steps_alone: its devices take all steps of a round before they say anything.
        sums: the server needs of what clients say of θ the mean alone, and doesn't know each client's anyway.
        grouped: a device measures one of several groups of θ. one_by_one: clients' rounds follow one another.
        by_rows: a client counts by its rows. exact_blocks: whose gradient a device takes exactly, a number or "all".
        normed_bottom, normed_top: batch norm of this part can train: what runs it in training is backpropagated, once.
        recomputes: its devices run blocks again in the backward pass.
        directions: slopes of a step, 0 for a method that takes none.
    """

    slopes: bool
    backpropagates: bool
    gradients: bool
    trains: bool
    replays: bool
    replays_top: bool
    u_shape: bool
    mixed_cuts: bool
    averages: bool
    pools: bool
    slopes_meet: bool
    releases: bool
    steps_alone: bool
    sums: bool
    grouped: bool
    one_by_one: bool
    by_rows: bool
    exact_blocks: int | str
    normed_bottom: bool
    normed_top: bool
    recomputes: bool
    directions: int


def method_of(algorithm: Algorithm) -> Method:
    """What a rule may ask of an algorithm."""
    needs = algorithm.needs
    plain = needs.backpropagates and needs.agreement.moves and needs.boundaries is None
    probed = needs.probe is not None and not needs.cut_gradient  # through the top
    served = needs.top == "backpropagated" and needs.holds == "bottom" and not probed
    meet = needs.agreement.keeps_history and needs.turns != "one_by_one"
    # In zeroth order through the top the server takes the losses, of which a client's slopes are differences; and at a
    # boundary it makes a client's lower part anew, from that client's slopes.
    known = (needs.holds == "bottom" and probed) or needs.boundaries is not None
    return Method(
        slopes=not needs.backpropagates or needs.boundaries is not None,
        backpropagates=needs.backpropagates,
        gradients=needs.backpropagates and needs.agreement.moves,
        trains=needs.agreement.moves,
        replays=needs.replays or needs.boundaries is not None,
        replays_top=needs.top == "replayed",
        u_shape="u_shape" in needs.fits,
        mixed_cuts="mixed_cuts" in needs.fits,
        averages=needs.agreement.averages,
        pools=needs.agreement.pools,
        slopes_meet=meet,
        releases=meet and needs.agreement.name == "slopes" and needs.agreement.groups is None,
        steps_alone=needs.holds == "whole",
        sums=(meet or needs.agreement.averages) and needs.agreement.groups is None and not known,
        grouped=needs.agreement.groups is not None,
        one_by_one=needs.turns == "one_by_one",
        by_rows=needs.agreement.aggregation == "rows",
        exact_blocks=needs.agreement.exact_blocks,
        normed_bottom=plain,
        normed_top=served or (plain and needs.holds == "whole"),
        recomputes=bool(getattr(algorithm, "checkpointing", False)),
        directions=needs.directions,
    )


def able(what: str) -> str:
    """The names of the algorithms of which this is true by default, for a message."""
    return ", ".join(name for name, kind in algorithms().items() if getattr(method_of(kind()), what))


@dataclass(frozen=True)
class Chosen:
    """Before anything is loaded: the settings, and the algorithm with its options."""

    config: RunConfig
    algorithm: Algorithm

    @property
    def method(self) -> Method:
        """What the algorithm is."""
        return method_of(self.algorithm)

    @property
    def foreign_option(self) -> str | None:
        """An option that was set, and the optimiser that has none of that name; None where there is no such."""
        for side, part in (("bottom", self.config.bottom), ("top", self.config.top)):
            for option in part.options.chosen():
                if part.optimizer not in TABLE or option not in TABLE[part.optimizer].options:
                    return f"{side}.options.{option} with {side}.optimizer={part.optimizer}"
        return None

    @property
    def unclipped(self) -> str | None:
        """The side whose gradients should be clipped though its optimiser never has all of them."""
        moved = {"bottom": self.method.gradients, "top": not self.method.replays_top}
        for side, part in (("bottom", self.config.bottom), ("top", self.config.top)):
            if moved[side] and part.clip is not None and part.optimizer in TABLE and not TABLE[part.optimizer].clips:
                return side
        return None

    @property
    def misplaced_milestones(self) -> str | None:
        """The schedule that should have milestones and has none, or the other way round; None where there is none."""
        for side, part in (("bottom", self.config.bottom), ("top", self.config.top)):
            if (part.schedule == "multistep") != bool(part.milestones):
                return f"{side}.schedule={part.schedule} with {side}.milestones={list(part.milestones)}"
        return None

    @property
    def disordered_milestones(self) -> str | None:
        """Milestones that are no steps in rising order; None where all are."""
        for side, part in (("bottom", self.config.bottom), ("top", self.config.top)):
            if list(part.milestones) != sorted({max(step, 1) for step in part.milestones}):
                return f"{side}.milestones={list(part.milestones)}"
        return None

    @property
    def mixes_cuts(self) -> bool:
        """Whether clients have different cuts."""
        return len({self.config.model.cut_of(client) for client in range(self.config.clients)}) > 1

    @property
    def room(self) -> str | None:
        """The setting that says what a client has room for, with its value; None where there is none."""
        client = self.config.client
        chosen = {"client.rows_at_once": client.rows_at_once, "client.memory": client.memory}
        return next((f"{name}={value:g}" for name, value in chosen.items() if value is not None), None)

    @property
    def no_liar(self) -> int | None:
        """A client that lies and isn't there; None where all are."""
        return next((n for n in self.config.attack.liars if not 0 <= n < self.config.clients), None)

    @property
    def normed(self) -> list[str]:
        """The sides whose batch norm is to train."""
        sides = {"bottom": self.config.bottom.batch_norm, "top": self.config.top.batch_norm}
        return [side for side, how in sides.items() if how == "train"]

    @property
    def remembering_links(self) -> list[str]:
        """The links whose codecs remember samples in memory, more with each that they see."""
        return [
            link
            for link, chain in self.config.codecs
            for codec in chain
            if not link.startswith("slopes") and _remembers({"name": codec} if isinstance(codec, str) else codec)
        ]

    @property
    def idle_links(self) -> list[tuple[str, str]]:
        """The links that have codecs and carry nothing that these could stand for, and what would have to be there."""
        wanted: dict[str, str] = {}
        if self.config.model.head is None:
            wanted |= dict.fromkeys(("activations_down", "gradient_up"), "a head on the device (model.head)")
        if not self.method.exact_blocks:
            wanted |= dict.fromkeys(("slopes_up", "slopes_down"), "exact gradients (algorithm.exact_blocks)")
        return [(link, what) for link, what in wanted.items() if getattr(self.config.codecs, link)]


def _remembers(codec: Mapping[str, Any]) -> bool:
    """Whether a codec with these options remembers samples."""
    return codec.get("name") == "temporal" or bool(codec.get("feedback", codec.get("name") == "sign"))


@dataclass(frozen=True)
class Rows:
    """The rows, and the model that is to take them.

    Attributes:
        config: the settings.
        longest: tokens of the longest row, of training and validation; longest_prompt: of the longest prompt.
        positions: tokens that the model takes; None for any number.
        size: height and width of images, None of what has none; wanted: those that the model takes, None for any.
        kinds: texts that the tokenizer tells apart in a row; known_kinds: those of the model, None for any number.
        padding: pixels around an image, of which an augmentation takes a window.
        classes: that the rows are of, 0 where they are of none.
    """

    config: RunConfig
    longest: int
    longest_prompt: int
    positions: int | None
    size: tuple[int, ...] | None
    wanted: tuple[int, ...] | None
    kinds: int
    known_kinds: int | None
    padding: int = 0
    classes: int = 0


@dataclass(frozen=True)
class Pretraining:
    """The rows of `model.pretrain.task` and those of the task: channels of images (None for texts), classes, names."""

    name: str
    channels: int | None
    classes: int
    target: str
    target_channels: int | None
    target_classes: int


@dataclass(frozen=True)
class Trained:
    """How many tensors are trained in the bottom, and in its exact blocks, and in how many groups they are.

    `normless`: a side whose batch norm is to train and that has none.
    """

    config: RunConfig
    method: Method
    tensors: int
    exact: int
    groups: int
    normless: str | None = None

    @property
    def of_a_group(self) -> int:
        """Clients of a cohort that measure the same group."""
        return self.config.sampled_clients // self.groups


@dataclass(frozen=True)
class Shallow:
    """A client whose cut is not the deepest: after `at` of the model's blocks, with so many groups of θ before it."""

    config: RunConfig
    method: Method
    at: int
    blocks: int
    groups: int


@dataclass(frozen=True)
class Moved:
    """What an optimiser moves on a side (`bottom` or `top`), by replayed slopes or by gradients."""

    side: str
    settings: BottomConfig | TopConfig
    parameters: Mapping[str, Tensor]
    replays: bool
    normalize: bool

    @property
    def is_as_long_as_the_rate(self) -> bool:
        """Whether a step changes each value by about the learning rate, whatever the slopes are."""
        return self.settings.optimizer in ("adamw", "adamw8bit", "sign") or self.normalize


@dataclass(frozen=True)
class Probed:
    """What is probed, at distance μ."""

    parameters: Mapping[str, Tensor]
    radius: float


@dataclass(frozen=True)
class Boundaries:
    """Where zeroth order ends on the devices, as numbers of blocks of a model."""

    boundaries: Sequence[int]
    model: str
    blocks: int


def dtypes_of(parameters: Mapping[str, Tensor]) -> str:
    """The dtypes of parameters, for a message."""
    return "/".join(sorted({str(parameter.dtype)[6:] for parameter in parameters.values()}))
