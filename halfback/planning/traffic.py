"""Bytes in closed form: what a client sends and receives in one round, from shapes alone.

The ledger counts what was packed; these count apart from it, and the conformance table holds the two against each
other for every algorithm.
"""

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
class Talk:
    """What the formula of a round may use: one client's batches, the missed steps, the shapes of θ.

    Attributes:
        first: step of the run with which the round begins.
        batches: of each batch, the shape of its activations, and how many texts they are of; None for images.
        missed: agreed rows that the client lacks as the round begins.
        turns: whether these are numbered otherwise than the run's steps, since clients took turns.
        ever: whether any step was agreed before this round; with none, nobody has said how many slopes a step has.
        directions: slopes of a step.
        exact: values of the exact gradients that come with the slopes of one step.
        state: shapes of what exact gradients move: a client that missed a step may get it.
        weights: shapes of θ.
        codes: by link, what its codecs make of each row; links without codecs are not in it.
        reusing: the links whose codecs leave out what they find again. The formulas count all of it as sent.
        groups: of θ, where its parameters don't share their slopes.
        above: shapes of θ above the client's own boundary.
        second: in the U-shape, the shape of each batch at the second cut.
        head: in the U-shape, shapes of the head's trained tensors.
        item, item_of_theta: bytes of a value of activations, and of θ.
        labelled: what of texts has labels is their tokens.
    """

    first: int
    batches: list[tuple[Shape, int | None]]
    missed: int
    turns: bool
    ever: bool
    directions: int
    exact: int
    state: list[Shape]
    weights: list[Shape]
    codes: Mapping[str, Columns] = field(default_factory=dict)
    reusing: frozenset[str] = frozenset()
    groups: int = 1
    above: list[Shape] = field(default_factory=list)
    second: list[Shape] = field(default_factory=list)
    head: list[Shape] = field(default_factory=list)
    item: int = 4
    item_of_theta: int = 4
    labelled: bool = False


Formula = Callable[[Talk], tuple[int, int]]
"""Talk of a client in a round → bytes up and down."""


def tensor(*shape: int, item: int = 4) -> int:
    """Bytes of a tensor field: its type, dtype and number of dimensions, a word a dimension, the values."""
    return 1 + _bare(shape, item)


def _bare(shape: Shape, item: int) -> int:
    size = item
    for length in shape:
        size *= length
    return 2 + 4 * len(shape) + size


def tensors(shapes: list[Shape], item: int = 4) -> int:
    """Bytes of a field of several tensors: its type, their number, the tensors."""
    return 1 + 4 + sum(_bare(shape, item) for shape in shapes)


def weights(shapes: list[Shape], item: int = 4) -> int:
    """Bytes of the message that carries θ."""
    return HEADER + tensors(shapes, item)


def slopes(count: int) -> int:
    """Bytes of the message that carries this many slopes."""
    return HEADER + INTEGER + tensor(count)


def activations(
    hidden: Shape, texts: int | None, *, repeated: bool = False, labels: int | None = None, field: int | None = None
) -> int:
    """Bytes of an upload.

    `repeated`: without what was sent before. `labels`: how many, by default one for each row, 0 for none at all.
    `field`: bytes of the activations themselves, by default float32 as they are.
    """
    rows = hidden[0] if texts is None else texts
    lengths = NONE if texts is None or repeated else tensor(texts)
    ids = NONE if repeated else tensor(rows)
    sent = rows if labels is None else labels
    said = NONE if repeated or not sent else tensor(sent)
    return HEADER + (tensor(*hidden) if field is None else field) + lengths + said + ids


def of_states(talk: Talk, link: str, hidden: Shape, texts: int | None) -> int:
    """Bytes of a field with hidden states on a link, as its codecs have it."""
    if link not in talk.codes:
        return tensor(*hidden, item=talk.item)
    rows = hidden[0] if texts is not None or len(hidden) == 2 else hidden[0] * hidden[1]
    if link in talk.reusing:
        return reused(hidden[0] if texts is None else texts, rows, talk.codes[link])
    return 1 + 4 + sum(_bare((rows, count), item) for count, item in talk.codes[link])


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


def _history(talk: Talk) -> int:
    slopes = HEADER + INTEGER + tensor(talk.missed, talk.directions * talk.groups if talk.ever else 0)
    slopes += tensor(talk.missed) if talk.turns else 0
    return slopes + (_missed_exact(talk) if talk.state else 0)


def _missed_exact(talk: Talk) -> int:
    """The exact gradients of the missed steps, or where they are more than that, the state."""
    if 0 < talk.missed <= kept(talk.state, talk.exact, talk.codes.get("slopes_down")):
        return _exact(talk, "slopes_down", talk.missed)
    return tensors(talk.state if talk.missed else [])


def _exact(talk: Talk, link: str, steps: int = 1) -> int:
    """Of so many steps."""
    columns = talk.codes.get(link)
    return tensor(steps * talk.exact) if columns is None else coded(talk.exact, columns, steps)


def _upload(talk: Talk, hidden: Shape, texts: int | None, *, kept: bool = False) -> int:
    """Of one batch; `kept`: without labels."""
    labels = 0 if kept else hidden[0] if talk.labelled else None
    return activations(hidden, texts, labels=labels, field=of_states(talk, "activations_up", hidden, texts))


def _uploads(talk: Talk) -> int:
    return sum(_upload(talk, *batch) for batch in talk.batches)


def _cut_gradients(talk: Talk) -> int:
    return sum(HEADER + of_states(talk, "gradient_down", *batch) for batch in talk.batches)


def _probes(talk: Talk) -> int:
    fields = [(batch, of_states(talk, "activations_up", *batch)) for batch in talk.batches]
    return 2 * talk.directions * sum(activations(*batch, repeated=True, field=field) for batch, field in fields)


def _theta(talk: Talk) -> int:
    return weights(talk.weights, talk.item_of_theta)


def ho_sfl(talk: Talk) -> tuple[int, int]:
    """Activations and a client's slopes up; the missed steps, cut gradients and a row of slopes down."""
    counts = {"up": talk.directions, "down": talk.directions * talk.groups}
    agreed = [slopes(count) + (_exact(talk, f"slopes_{way}") if talk.exact else 0) for way, count in counts.items()]
    up, down = (len(talk.batches) * each for each in agreed)
    return JOIN + _uploads(talk) + up, _history(talk) + _cut_gradients(talk) + down


def ho_sfl_pipelined(talk: Talk) -> tuple[int, int]:
    """As `ho_sfl`, with a header less each way for each step but the first."""
    up, down = ho_sfl(talk)
    saved = (len(talk.batches) - 1) * HEADER
    return up - saved, down - saved


def zo_sfl(talk: Talk) -> tuple[int, int]:
    """1 + 2P activations and P slopes up; the missed steps, 2P losses and P slopes down."""
    steps = len(talk.batches)
    down = _history(talk) + steps * (NOTHING + 2 * talk.directions * LOSS + slopes(talk.directions * talk.groups))
    return JOIN + _uploads(talk) + _probes(talk) + steps * slopes(talk.directions), down


def hosl(talk: Talk) -> tuple[int, int]:
    """As `zo_sfl`, without any slopes but the missed ones."""
    agreed = len(talk.batches) * slopes(talk.directions)
    up, down = zo_sfl(talk)
    return up - agreed, down - agreed


def split_lora(talk: Talk) -> tuple[int, int]:
    """Activations up, cut gradients down, and θ both ways."""
    up = JOIN + _uploads(talk) + _theta(talk)
    return up, _theta(talk) + _cut_gradients(talk) + NOTHING


def relay(talk: Talk) -> tuple[int, int]:
    """As `split_lora`, but θ counts once, where a device hands it over."""
    up, down = split_lora(talk)
    return up, down - _theta(talk)


def own_loss(every: int) -> Formula:
    """Activations up with every so many batches, and θ both ways; nothing else comes down."""

    def formula(talk: Talk) -> tuple[int, int]:
        sent = [batch for place, batch in enumerate(talk.batches, talk.first) if place % every == 0]
        up = JOIN + sum(_upload(talk, *batch) for batch in sent) + _theta(talk)
        return up, _theta(talk) + len(sent) * NOTHING + NOTHING

    return formula


def mu_splitfed(talk: Talk) -> tuple[int, int]:
    """1 + 2P activations up, P differences of losses down, and θ both ways."""
    up = JOIN + _uploads(talk) + _probes(talk) + _theta(talk)
    answers = NOTHING + talk.directions * (NOTHING + LOSS)
    return up, _theta(talk) + len(talk.batches) * answers + NOTHING


def spry(talk: Talk) -> tuple[int, int]:
    """P slopes of a group up; the missed steps, the number of the group, and P slopes of every group down."""
    row = talk.directions * talk.groups
    missed = HEADER + INTEGER + tensor(talk.missed, row if talk.ever else 0) + INTEGER
    steps = len(talk.batches)
    return JOIN + steps * slopes(talk.directions), missed + steps * slopes(row)


def ho_fl(talk: Talk) -> tuple[int, int]:
    """P slopes a step, all of a round at once, and θ above the boundary up; θ down."""
    below = len(talk.above) < len(talk.weights)
    sent = slopes(len(talk.batches) * talk.directions * below)
    return JOIN + sent + weights(talk.above, talk.item_of_theta), _theta(talk) + 2 * NOTHING


def decomfl(talk: Talk) -> tuple[int, int]:
    """P slopes a step, all of a round at once, both ways; and the missed ones."""
    agreed = slopes(len(talk.batches) * talk.directions)
    return JOIN + agreed, _history(talk) + agreed


def fedavg(talk: Talk) -> tuple[int, int]:
    """θ both ways."""
    return JOIN + _theta(talk), _theta(talk) + NOTHING


def frozen_bottom(talk: Talk) -> tuple[int, int]:
    """Activations up."""
    return _uploads(talk), len(talk.batches) * NOTHING


def silent(talk: Talk) -> tuple[int, int]:
    """Nothing at all."""
    return 0, 0


@dataclass(frozen=True)
class Sums:
    """The secure sums of a round in which nobody leaves.

    Attributes:
        cohort: clients that take part.
        item: bytes of a whole number.
        told: bytes of what a client is told of each at first.
        averages: of θ, one a round.
        by_round: of the slopes of all steps, one a round; otherwise one a step, of its slopes and exact gradients.
    """

    cohort: int
    item: int
    told: int
    averages: bool
    by_round: bool

    def count(self, steps: int) -> int:
        """Of a round with so many steps."""
        return 1 if self.averages or self.by_round else steps


def masking(rows: int, each: int) -> int:
    """Bytes of a message of a secure sum with so many rows of so many bytes."""
    return HEADER + INTEGER + tensor(rows, item=8) + tensor(rows, each, item=1)


def summed(plain: Formula, sums: Sums) -> Formula:
    """A formula with keys, sealed and opened shares, and with whole numbers in the place of the values of θ."""
    all_of, others = sums.cohort, sums.cohort - 1

    def formula(talk: Talk) -> tuple[int, int]:
        up, down = plain(talk)
        steps = len(talk.batches)
        count = sums.count(steps)
        values = steps * (talk.directions + talk.exact) * (sums.item - 4)
        if sums.averages:
            values = sum(math.prod(shape) for shape in talk.weights) * (sums.item - talk.item_of_theta)
        up += values + count * (masking(1, 96) + masking(others, 48) + masking(all_of, 16))
        return up, down + count * (masking(all_of, sums.told) + masking(others, 48) + masking(all_of, 0))

    return formula


def u_shaped(plain: Formula) -> Formula:
    """A formula with an exchange more a batch, and without the labels."""

    def formula(talk: Talk) -> tuple[int, int]:
        up, down = plain(talk)
        for batch, second in zip(talk.batches, talk.second, strict=True):
            texts, head = batch[1], tensors(talk.head, talk.item_of_theta)
            up += _upload(talk, *batch, kept=True) - _upload(talk, *batch)
            up += HEADER + of_states(talk, "gradient_up", second, texts) + tensor(1) + head
            down += HEADER + of_states(talk, "activations_down", second, texts) + head
        return up, down

    return formula
