"""Bytes in closed form: what a client sends and receives in one round, from shapes alone."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

HEADER = 4  # magic, version, kind
INTEGER = 1 + 8
NONE = 1
JOIN = HEADER + INTEGER
NOTHING = HEADER
LOSS = HEADER + 1 + 2 + 4 + 4  # one float32

Shape = tuple[int, ...]
Columns = list[tuple[int, int]]
"""Of each tensor that a chain makes: columns, and bytes of a value."""


@dataclass(frozen=True)
class Work:
    """What the formula of a round may use: one client's batches, the missed steps, the shapes of θ.

    In the U-shape also the shapes of each batch at the second cut, and of the head's trainable tensors.
    """

    first: int  # step of the run with which the round begins
    batches: list[tuple[Shape, int | None]]  # shapes of activations, and how many texts they are of
    missed: int
    turns: bool  # whether the missed rows are numbered otherwise than the run's steps, since clients took turns
    ever: bool  # whether any step was agreed before this round; with none, nobody has said how many slopes a step has
    directions: int
    exact: int  # values of the exact gradients that come with the slopes of one step
    state: list[Shape]  # of what exact gradients move: a client that missed a step gets it
    weights: list[Shape]
    codes: Mapping[str, Columns] = field(default_factory=dict)  # by link, of exact gradients that go through codecs
    groups: int = 1  # of θ, where its parameters don't share their slopes
    above: list[Shape] = field(default_factory=list)  # of θ, above the client's own boundary
    second: list[Shape] = field(default_factory=list)
    head: list[Shape] = field(default_factory=list)


Formula = Callable[[Work], tuple[int, int]]
"""Work of a client in a round → bytes up and down."""


def tensor(*shape: int, item: int = 4) -> int:
    """Bytes of a tensor field: its type, dtype and number of dimensions, a word a dimension, the values."""
    return 1 + _bare(shape, item)


def _bare(shape: Shape, item: int) -> int:
    size = item
    for length in shape:
        size *= length
    return 2 + 4 * len(shape) + size


def tensors(shapes: list[Shape]) -> int:
    """Bytes of a field of several tensors: its type, their number, the tensors."""
    return 1 + 4 + sum(_bare(shape, 4) for shape in shapes)


def weights(shapes: list[Shape]) -> int:
    """Bytes of the message that carries θ."""
    return HEADER + tensors(shapes)


def slopes(count: int) -> int:
    """Bytes of the message that carries this many slopes."""
    return HEADER + INTEGER + tensor(count)


def activations(hidden: Shape, texts: int | None, *, repeated: bool = False, kept: bool = False) -> int:
    """Bytes of an upload; `repeated`: without what was sent before, `kept`: without labels."""
    rows = hidden[0] if texts is None else texts
    lengths = NONE if texts is None or repeated else tensor(texts)
    labels = NONE if repeated or kept else tensor(rows)
    ids = NONE if repeated else tensor(rows)
    return HEADER + tensor(*hidden) + lengths + labels + ids


def coded(values: int, columns: Columns, vectors: int = 1) -> int:
    """Bytes of a field with vectors that went through codecs, each in rows of 256 values of its own."""
    return 1 + 4 + sum(_bare((vectors * -(-values // 256), count), item) for count, item in columns)


def kept(state: list[Shape], values: int, columns: Columns | None) -> int:
    """How many steps of so many exact gradients are fewer bytes than the state, by their values alone.

    And are not more float32 than the state, or than 2^20.
    """
    row = -(-values // 256) * sum(count * item for count, item in columns) if columns else 4 * values
    moved = sum(math.prod(shape) for shape in state)
    return min(-(-4 * moved // row) - 1, max(moved, 1 << 20) // values)


def reused(samples: int, rows: int, columns: Columns) -> int:
    """Bytes of a field with temporal reuse: similarities (float32), skip map, the chain's tensors of what is sent."""
    told = _bare((samples,), 4) + _bare((samples,), 1)
    return 1 + 4 + told + sum(_bare((rows, count), item) for count, item in columns)


def greeting(links: int) -> tuple[int, int]:
    """Bytes up and down: a digest a link, and down a threshold."""
    digests = HEADER + tensor(links, item=8)
    return digests + NONE, digests + tensor(links)


def _history(work: Work) -> int:
    slopes = HEADER + INTEGER + tensor(work.missed, work.directions if work.ever else 0)
    slopes += tensor(work.missed) if work.turns else 0
    return slopes + (_missed_exact(work) if work.state else 0)


def _missed_exact(work: Work) -> int:
    """The exact gradients of the missed steps, or where they are more than that, the state."""
    if 0 < work.missed <= kept(work.state, work.exact, work.codes.get("slopes_down")):
        return _exact(work, "slopes_down", work.missed)
    return tensors(work.state if work.missed else [])


def _exact(work: Work, link: str, steps: int = 1) -> int:
    """Of so many steps."""
    columns = work.codes.get(link)
    return tensor(steps * work.exact) if columns is None else coded(work.exact, columns, steps)


def _uploads(work: Work) -> int:
    return sum(activations(*batch) for batch in work.batches)


def _cut_gradients(work: Work) -> int:
    return sum(HEADER + tensor(*hidden) for hidden, _ in work.batches)


def _probes(work: Work) -> int:
    return 2 * work.directions * sum(activations(*batch, repeated=True) for batch in work.batches)


def ho_sfl(work: Work) -> tuple[int, int]:
    """Activations and a client's slopes up; the missed steps, cut gradients and a row of slopes down."""
    agreed = [slopes(work.directions) + (_exact(work, f"slopes_{way}") if work.exact else 0) for way in ("up", "down")]
    up, down = (len(work.batches) * each for each in agreed)
    return JOIN + _uploads(work) + up, _history(work) + _cut_gradients(work) + down


def ho_sfl_pipelined(work: Work) -> tuple[int, int]:
    """As `ho_sfl`, with a header less each way for each step but the first."""
    up, down = ho_sfl(work)
    saved = (len(work.batches) - 1) * HEADER
    return up - saved, down - saved


def zo_sfl(work: Work) -> tuple[int, int]:
    """1 + 2P activations and P slopes up; the missed steps, 2P losses and P slopes down."""
    steps, agreed = len(work.batches), len(work.batches) * slopes(work.directions)
    down = _history(work) + steps * (NOTHING + 2 * work.directions * LOSS) + agreed
    return JOIN + _uploads(work) + _probes(work) + agreed, down


def hosl(work: Work) -> tuple[int, int]:
    """As `zo_sfl`, without any slopes but the missed ones."""
    agreed = len(work.batches) * slopes(work.directions)
    up, down = zo_sfl(work)
    return up - agreed, down - agreed


def split_lora(work: Work) -> tuple[int, int]:
    """Activations up, cut gradients down, and θ both ways."""
    up = JOIN + _uploads(work) + weights(work.weights)
    return up, weights(work.weights) + _cut_gradients(work) + NOTHING


def relay(work: Work) -> tuple[int, int]:
    """As `split_lora`, but θ counts once, where a device hands it over."""
    up, down = split_lora(work)
    return up, down - weights(work.weights)


def own_loss(every: int) -> Formula:
    """Activations up with every so many batches, and θ both ways; nothing else comes down."""

    def formula(work: Work) -> tuple[int, int]:
        sent = [batch for place, batch in enumerate(work.batches, work.first) if place % every == 0]
        up = JOIN + sum(activations(*batch) for batch in sent) + weights(work.weights)
        return up, weights(work.weights) + len(sent) * NOTHING + NOTHING

    return formula


def mu_splitfed(work: Work) -> tuple[int, int]:
    """1 + 2P activations up, P differences of losses down, and θ both ways."""
    up = JOIN + _uploads(work) + _probes(work) + weights(work.weights)
    answers = NOTHING + work.directions * (NOTHING + LOSS)
    return up, weights(work.weights) + len(work.batches) * answers + NOTHING


def spry(work: Work) -> tuple[int, int]:
    """P slopes of a group up; the missed steps, the number of the group, and P slopes of every group down."""
    row = work.directions * work.groups
    missed = HEADER + INTEGER + tensor(work.missed, row if work.ever else 0) + INTEGER
    steps = len(work.batches)
    return JOIN + steps * slopes(work.directions), missed + steps * slopes(row)


def ho_fl(work: Work) -> tuple[int, int]:
    """P slopes a step, all of a round at once, and θ above the boundary up; θ down."""
    sent = slopes(len(work.batches) * work.directions)
    return JOIN + sent + weights(work.above), weights(work.weights) + 2 * NOTHING


def decomfl(work: Work) -> tuple[int, int]:
    """P slopes a step, all of a round at once, both ways; and the missed ones."""
    agreed = slopes(len(work.batches) * work.directions)
    return JOIN + agreed, _history(work) + agreed


def fedavg(work: Work) -> tuple[int, int]:
    """θ both ways."""
    return JOIN + weights(work.weights), weights(work.weights) + NOTHING


def frozen_bottom(work: Work) -> tuple[int, int]:
    """Activations up."""
    return _uploads(work), len(work.batches) * NOTHING


def silent(work: Work) -> tuple[int, int]:
    """Nothing at all."""
    return 0, 0


def u_shaped(plain: Formula) -> Formula:
    """A formula with an exchange more a batch, and without the labels."""

    def formula(work: Work) -> tuple[int, int]:
        up, down = plain(work)
        for batch, second in zip(work.batches, work.second, strict=True):
            up += activations(*batch, kept=True) - activations(*batch)
            up += HEADER + tensor(*second) + tensor(1) + tensors(work.head)
            down += HEADER + tensor(*second) + tensors(work.head)
        return up, down

    return formula
