"""The table: one row an algorithm (and its variants), with settings that make it learn and its bytes in closed form."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Settings = dict[str, Any]

HEADER = 4  # magic, version, kind
INTEGER = 1 + 8
NONE = 1


def tensor(*shape: int, item: int = 4) -> int:
    """Bytes of a tensor field: its type, dtype and number of dimensions, a word a dimension, the values."""
    return 1 + _bare(shape, item)


def _bare(shape: tuple[int, ...], item: int) -> int:
    size = item
    for length in shape:
        size *= length
    return 2 + 4 * len(shape) + size


def tensors(shapes: list[tuple[int, ...]]) -> int:
    """Bytes of a field of several tensors: its type, their number, the tensors."""
    return 1 + 4 + sum(_bare(shape, 4) for shape in shapes)


def weights(shapes: list[tuple[int, ...]]) -> int:
    return HEADER + tensors(shapes)


Columns = list[tuple[int, int]]
"""Of each tensor that a chain makes: columns, and bytes of a value."""


def reused(samples: int, rows: int, columns: Columns) -> int:
    """Bytes of a field with temporal reuse: similarities (float32), skip map, the chain's tensors of what is sent."""
    told = _bare((samples,), 4) + _bare((samples,), 1)
    return 1 + 4 + told + sum(_bare((rows, count), item) for count, item in columns)


def greeting(links: int) -> tuple[int, int]:
    """Bytes up and down: a digest a link, and down a threshold."""
    digests = HEADER + tensor(links, item=8)
    return digests + NONE, digests + tensor(links)


def _values(width: int) -> Columns:
    return [(width, 4)]


def _int8(width: int) -> Columns:
    return [(width, 1), (1, 4)]


JOIN = HEADER + INTEGER
NOTHING = HEADER


def slopes(directions: int) -> int:
    return HEADER + INTEGER + tensor(directions)


@dataclass(frozen=True)
class Work:
    """What the formula of a round may use: one client's batches, the missed steps, the shapes of the bottom's θ.

    In the U-shape also the shapes of each batch at the second cut, and of the head's trainable tensors.
    """

    batches: list[tuple[tuple[int, ...], tuple[int, ...] | None]]  # shapes of activations and mask
    missed: int
    ever: bool  # whether any step was agreed before this round; with none, nobody has said how many slopes a step has
    directions: int
    bottom: list[tuple[int, ...]]
    groups: int = 1  # of θ, where its parameters don't share their slopes
    second: list[tuple[int, ...]] = field(default_factory=list)
    head: list[tuple[int, ...]] = field(default_factory=list)
    above: list[tuple[int, ...]] = field(default_factory=list)  # of θ, above the client's own boundary


def activations(
    hidden: tuple[int, ...], mask: tuple[int, ...] | None, *, repeated: bool = False, kept: bool = False
) -> int:
    rows = hidden[0]
    masked = NONE if mask is None or repeated else tensor(*mask, item=1)
    labels = NONE if repeated or kept else tensor(rows)
    ids = NONE if repeated else tensor(rows)
    return HEADER + tensor(*hidden) + masked + labels + ids


def _joined(work: Work) -> int:
    return HEADER + INTEGER + tensor(work.missed, work.directions if work.ever else 0)


def _ho_sfl(work: Work) -> tuple[int, int]:
    sent, asked = slopes(work.directions), slopes(work.directions)
    up = JOIN + sum(activations(hidden, mask) + sent for hidden, mask in work.batches)
    down = _joined(work) + sum(HEADER + tensor(*hidden) + asked for hidden, _ in work.batches)
    return up, down


def _zo_sfl(work: Work) -> tuple[int, int]:
    p = work.directions
    up = JOIN + sum(
        activations(h, mask) + 2 * p * activations(h, mask, repeated=True) + slopes(p) for h, mask in work.batches
    )
    down = _joined(work) + len(work.batches) * (NOTHING + 2 * p * (HEADER + tensor(1)) + slopes(p))
    return up, down


def _spry(work: Work) -> tuple[int, int]:
    p, groups = work.directions, work.groups
    row = p * groups
    up = JOIN + len(work.batches) * slopes(p)
    down = HEADER + INTEGER + tensor(work.missed, row if work.ever else 0) + INTEGER + len(work.batches) * slopes(row)
    return up, down


def _split_lora(work: Work) -> tuple[int, int]:
    up = JOIN + sum(activations(hidden, mask) for hidden, mask in work.batches) + weights(work.bottom)
    down = weights(work.bottom) + sum(HEADER + tensor(*hidden) for hidden, _ in work.batches) + NOTHING
    return up, down


def _frozen_bottom(work: Work) -> tuple[int, int]:
    return sum(activations(hidden, mask) for hidden, mask in work.batches), len(work.batches) * NOTHING


def _ho_fl(work: Work) -> tuple[int, int]:
    sent = slopes(len(work.batches) * work.directions)
    return JOIN + sent + weights(work.above), weights(work.bottom) + 2 * NOTHING


def _u_shaped(plain: Callable[[Work], tuple[int, int]]) -> Callable[[Work], tuple[int, int]]:
    """A formula with an exchange more a batch, and without the labels."""

    def formula(work: Work) -> tuple[int, int]:
        up, down = plain(work)
        for (hidden, mask), second in zip(work.batches, work.second, strict=True):
            up += activations(hidden, mask, kept=True) - activations(hidden, mask)
            up += HEADER + tensor(*second) + tensor(1) + tensors(work.head)
            down += HEADER + tensor(*second) + tensors(work.head)
        return up, down

    return formula


@dataclass(frozen=True)
class Row:
    """`name` in the registry, its options and settings, and (work of a client in a round) → bytes up and down.

    `learns`: settings with which the loss falls within 30 rounds where the others' do not do.
    `reuses`: links with temporal reuse, and what their chain makes of rows of that width.
    """

    name: str
    bytes_of_round: Callable[[Work], tuple[int, int]]
    settings: Settings = field(default_factory=dict)
    learns: Settings = field(default_factory=dict)
    reuses: dict[str, Callable[[int], Columns]] = field(default_factory=dict)


_REPLAYED: Settings = {"bottom.optimizer": "adamw", "bottom.lr": 1e-3}
# An epoch is one batch, so that samples come again within the few rounds of a test.
_REUSING: Settings = {"batch_size": 32, "controller.threshold": 0.9}
_UP_AND_DOWN: Settings = _REUSING | {
    "codecs.activations_up": ["temporal", "int8"],
    "codecs.gradient_down": [{"name": "temporal", "where": "disk", "cache": "int8", "cap_mb": 0.5}],
}
_ON_FOUR_LINKS: Settings = _UP_AND_DOWN | {
    "codecs.activations_down": ["temporal"],
    "codecs.gradient_up": [{"name": "temporal", "projection": None}, "int8"],
}
ROWS: dict[str, Row] = {
    "ho_sfl": Row("ho_sfl", _ho_sfl, {"algorithm.directions": 3, **_REPLAYED}),
    "ho_sfl-central": Row(
        "ho_sfl",
        _ho_sfl,
        {"algorithm.directions": 2, "algorithm.estimator": "central", "bottom.optimizer": "momentum"},
        learns={"bottom.lr": 1e-3},
    ),
    "ho_sfl-forward_ad": Row(
        "ho_sfl",
        _ho_sfl,
        {"algorithm.directions": 2, "algorithm.estimator": "forward_ad", "bottom.law": "gaussian"},
        learns={"bottom.lr": 1e-3},
    ),
    "split_lora": Row("split_lora", _split_lora, {"bottom.optimizer": "adamw", "bottom.clip": 1.0}),
    "split_lora-checkpointing": Row("split_lora", _split_lora, {"algorithm.checkpointing": True}),
    "zo_sfl": Row(
        "zo_sfl",
        _zo_sfl,
        {"algorithm.directions": 2, "top.optimizer": "momentum", "top.lr": 1e-3},
        learns={"model.cut": 3, "top.optimizer": "adamw", "top.lr": 5e-3, "bottom.lr": 1e-4},
    ),
    "spry": Row("spry", _spry, {"algorithm.directions": 2, **_REPLAYED}, learns={"bottom.lr": 3e-3}),
    "frozen_bottom": Row("frozen_bottom", _frozen_bottom),
    "ho_sfl-u": Row("ho_sfl", _u_shaped(_ho_sfl), {"algorithm.directions": 3, "model.head": 0, **_REPLAYED}),
    "ho_sfl-u-block": Row("ho_sfl", _u_shaped(_ho_sfl), {"model.head": 1, **_REPLAYED}),
    "split_lora-u": Row(
        "split_lora", _u_shaped(_split_lora), {"model.head": 0, "bottom.optimizer": "adamw", "top.clip": 1.0}
    ),
    "split_lora-u-block": Row(
        "split_lora", _u_shaped(_split_lora), {"model.head": 1, "top.train": "full", "algorithm.checkpointing": True}
    ),
    "frozen_bottom-u": Row("frozen_bottom", _u_shaped(_frozen_bottom), {"model.head": 0}),
    "ho_sfl-temporal": Row(
        "ho_sfl",
        _ho_sfl,
        {"algorithm.directions": 3, **_REPLAYED, **_UP_AND_DOWN},
        reuses={"activations_up": _int8, "gradient_down": _values},
    ),
    "split_lora-temporal": Row(
        "split_lora",
        _split_lora,
        {"bottom.optimizer": "adamw", **_UP_AND_DOWN},
        reuses={"activations_up": _int8, "gradient_down": _values},
    ),
    "zo_sfl-temporal": Row(
        "zo_sfl",
        _zo_sfl,
        {"algorithm.directions": 2, **_REUSING, "codecs.activations_up": ["temporal", "int8"]},
        learns={"model.cut": 3, "top.optimizer": "adamw", "top.lr": 5e-3, "bottom.lr": 1e-4},
        reuses={"activations_up": _int8},
    ),
    "ho_sfl-u-temporal": Row(
        "ho_sfl",
        _u_shaped(_ho_sfl),
        {"model.head": 0, **_REPLAYED, **_ON_FOUR_LINKS},
        reuses={"activations_up": _int8, "gradient_down": _values, "activations_down": _values, "gradient_up": _int8},
    ),
    "ho_fl": Row(
        "ho_fl",
        _ho_fl,
        {"algorithm.directions": 3, "algorithm.boundaries": [2, 1], "bottom.optimizer": "adamw", "bottom.lr": 1e-3},
        learns={"bottom.lr": 1e-2},
    ),
}
