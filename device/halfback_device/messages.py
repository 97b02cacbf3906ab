"""The message kinds of docs/protocol.md: frozen dataclasses, with a role for each field.

Tensors are NumPy arrays. NumPy has no bfloat16, and the wire has no uint16: an array of uint16 is the bits of bfloat16.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Role = Literal[
    "activations",
    "lengths",
    "labels",
    "sample_ids",
    "gradient",
    "slopes",
    "losses",
    "weights",
    "steps",
    "caches",
    "thresholds",
    "groups",
    "masks",
]


def _role(role: Role, *, coded: bool = False) -> Any:
    """`coded`: the values that a codec made of the field may stand in its place."""
    return field(metadata={"role": role, "coded": coded})


@dataclass(frozen=True)
class Nothing:
    """An answer without content: the exchange itself is the signal."""


@dataclass(frozen=True)
class Join:
    """Up, first in a round: how many agreed rows of slopes the device has replayed."""

    position: int = _role("steps")


@dataclass(frozen=True)
class History:
    """Down: agreed slopes, the rows from number `first` on, (steps, P) float32; P for each group of θ in turn."""

    first: int = _role("steps")
    slopes: Array = _role("slopes")


@dataclass(frozen=True)
class Activations:
    """Up: what the server needs for the loss of one batch. What was sent earlier in the step is None.

    hidden: (N, H) for the N tokens of B texts one behind the other, or (B, C, H, W). lengths: (B,) int32, None for
    images. labels: (B,) or (N,) int32, None in the U-shape. sample_ids: (B,) int32.
    """

    hidden: Array = _role("activations", coded=True)
    lengths: Array | None = _role("lengths")
    labels: Array | None = _role("labels")
    sample_ids: Array | None = _role("sample_ids")


@dataclass(frozen=True)
class CutGradient:
    """Down: λ = ∂ℓ/∂z, in the shape of the activations that it answers."""

    gradient: Array = _role("gradient", coded=True)


@dataclass(frozen=True)
class Slopes:
    """Up: the device's slopes (P,) float32 of agreed row `step`; down: that row."""

    step: int = _role("steps")
    values: Array = _role("slopes")


@dataclass(frozen=True)
class Losses:
    """Down: the loss of a batch, (1,) float32."""

    values: Array = _role("losses")


@dataclass(frozen=True)
class Weights:
    """Both ways: trainable tensors in the order of their names."""

    tensors: tuple[Array, ...] = _role("weights")


@dataclass(frozen=True)
class HandOver:
    """From one device to the next: trainable tensors in the order of their names."""

    tensors: tuple[Array, ...] = _role("weights")


@dataclass(frozen=True)
class MiddleActivations:
    """Down, in the U-shape: activations at the second cut, and the head's trainable tensors."""

    hidden: Array = _role("activations", coded=True)
    head: tuple[Array, ...] = _role("weights")


@dataclass(frozen=True)
class HeadGradient:
    """Up, in the U-shape: the loss (1,) float32, and its gradients by the second cut's activations and by the head."""

    gradient: Array = _role("gradient", coded=True)
    loss: Array = _role("losses")
    head: tuple[Array, ...] = _role("weights")


@dataclass(frozen=True)
class Caches:
    """Both ways, first in a round where links remember samples.

    digests: of what this end remembers, (links,) int64. thresholds: down alone, (links,) float32.
    """

    digests: Array = _role("caches")
    thresholds: Array | None = _role("thresholds")


@dataclass(frozen=True)
class Share:
    """Down: agreed slopes as in `History`, and the group of θ that the device measures in this round."""

    first: int = _role("steps")
    slopes: Array = _role("slopes")
    group: int = _role("groups")


@dataclass(frozen=True)
class Turns:
    """Down, behind a `History` whose rows are not numbered as the run's steps: the step of each, (rows,) int32."""

    steps: Array = _role("steps")


@dataclass(frozen=True)
class Exact:
    """Gradients of the exact parameters, (d,) float32, in the order of these in θ.

    Behind `Slopes`, both ways; down also behind `History`, those of its rows one behind the other, (rows · d,).
    """

    values: Array = _role("slopes", coded=True)


@dataclass(frozen=True)
class Masking:
    """Both ways, around a message of which a sum alone is told: keys, sealed shares, opened shares (`phase` 0 to 2).

    clients: that the rows of `values` are of, or are for, (n,) int64. values: (n, bytes of each) uint8.
    """

    phase: int = _role("masks")
    clients: Array = _role("masks")
    values: Array = _role("masks")


@dataclass(frozen=True)
class Both:
    """Two messages that go as one; which two, `PAIRS` says."""

    first: "Part"
    second: "Part"


@dataclass(frozen=True)
class Encoded:
    """In the place of a tensor field: what the codecs of the field's link made of it."""

    parts: tuple[Array, ...]


Part = (
    Nothing
    | Join
    | History
    | Activations
    | CutGradient
    | Slopes
    | Losses
    | Weights
    | MiddleActivations
    | HeadGradient
    | Caches
    | HandOver
    | Share
    | Turns
    | Exact
    | Masking
)
Message = Part | Both
_ALONE: tuple[type[Part], ...] = (
    Nothing,
    Join,
    History,
    Activations,
    CutGradient,
    Slopes,
    Losses,
    Weights,
    MiddleActivations,
    HeadGradient,
    Caches,
    HandOver,
    Share,
)
PAIRS: tuple[tuple[type[Part], type[Part]], ...] = (
    (Slopes, Activations),
    (Slopes, CutGradient),
    (History, Weights),
    (History, Turns),
)
# What a message is made of, one kind or two. The number on the wire is the place in this tuple: append, never reorder.
CODES: tuple[tuple[type[Part], ...], ...] = (
    *((kind,) for kind in _ALONE),
    *PAIRS,
    (Turns,),
    (Slopes, Exact),
    (History, Exact),
    (Masking,),
)
KINDS: tuple[type[Part], ...] = (*_ALONE, Turns, Exact, Masking)


def parts_of(message: Message) -> tuple[Part, ...]:
    """The two messages in `Both`; of another kind itself."""
    return (message.first, message.second) if isinstance(message, Both) else (message,)


def of_parts(parts: Sequence[Part]) -> Message:
    """One message of one, or `Both` of two."""
    return Both(*parts) if len(parts) == 2 else parts[0]


def kinds_of(message: Message) -> tuple[type[Part], ...]:
    """What a message is made of: an entry of `CODES`."""
    return tuple(type(part) for part in parts_of(message))


def name_of(kinds: Sequence[type[Part]]) -> str:
    """How a message of these kinds is called in what is said of it."""
    return "And".join(kind.__name__ for kind in kinds)


class Field(NamedTuple):
    """What the wire knows of a field: its role, and the Python types that it may be of."""

    role: Role
    types: tuple[type, ...]

    @property
    def coded(self) -> bool:
        """Whether a codec's values may stand in its place."""
        return Encoded in self.types


def _types(hint: Any, coded: bool) -> tuple[type, ...]:
    if get_origin(hint) is tuple:
        return (tuple,)
    plain = tuple(np.ndarray if get_origin(each) is np.ndarray else each for each in _alternatives(hint))
    return (*plain, Encoded) if coded else plain


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return (hint,) if get_origin(hint) is np.ndarray else get_args(hint) or (hint,)


FIELDS: dict[type[Part], dict[str, Field]] = {
    kind: {
        entry.name: Field(entry.metadata["role"], _types(get_type_hints(kind)[entry.name], entry.metadata["coded"]))
        for entry in fields(kind)
    }
    for kind in KINDS
}
