"""The few message kinds that carry all algorithms: frozen dataclasses, with a role for each field.

A role says what a field holds whatever the algorithm, so the ledger splits bytes by it and a codec is chosen by it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from torch import Tensor

Role = Literal[
    "activations",
    "mask",
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
]
ROLES: tuple[Role, ...] = get_args(Role)
CODED: tuple[Role, ...] = ("activations", "gradient")  # the roles whose fields a codec may stand for


def _role(role: Role) -> Any:
    return field(metadata={"role": role})


@dataclass(frozen=True)
class Nothing:
    """An answer without content: the exchange itself is the signal."""


@dataclass(frozen=True)
class Join:
    """Up, first in a round: the client says how many steps it has already replayed."""

    position: int = _role("steps")


@dataclass(frozen=True)
class History:
    """Down: agreed slopes of steps `first`, `first` + 1, …: (steps, P) float32; P for each group of θ in turn."""

    first: int = _role("steps")
    slopes: Tensor = _role("slopes")


@dataclass(frozen=True)
class Activations:
    """Up: what the server needs for the loss of one batch.

    `hidden` (B, T, H) or (B, C, H, W); `mask` (B, T) bool or None for images; `labels` (B,) or (B, T) integers, or None
    where they stay on the device (U-shape); `sample_ids` (B,) int32. Mask, labels and ids are None where they were sent
    with an earlier message of the step.
    """

    hidden: Tensor = _role("activations")
    mask: Tensor | None = _role("mask")
    labels: Tensor | None = _role("labels")
    sample_ids: Tensor | None = _role("sample_ids")


@dataclass(frozen=True)
class CutGradient:
    """Down: λ = ∂ℓ/∂z, with the shape of the activations it answers."""

    gradient: Tensor = _role("gradient")


@dataclass(frozen=True)
class Slopes:
    """Up: one client's slopes, (P,) float32; down: the agreed mean, as a row of `History`; of step `step`."""

    step: int = _role("steps")
    values: Tensor = _role("slopes")


@dataclass(frozen=True)
class Losses:
    """Down: the loss of the activations it answers, (1,) float32."""

    values: Tensor = _role("losses")


@dataclass(frozen=True)
class Weights:
    """Trainable tensors of the bottom in the order of their names."""

    tensors: tuple[Tensor, ...] = _role("weights")


@dataclass(frozen=True)
class HandOver:
    """From one device to the next, which the server only passes on: trainable tensors in the order of their names."""

    tensors: tuple[Tensor, ...] = _role("weights")


@dataclass(frozen=True)
class MiddleActivations:
    """Down, in the U-shape: what the device needs for the loss of the activations it answers.

    `hidden` at the second cut, (B, T, H) or (B, C, H, W); `head` the head's trainable tensors in the order of its
    module tree, none where the head is frozen.
    """

    hidden: Tensor = _role("activations")
    head: tuple[Tensor, ...] = _role("weights")


@dataclass(frozen=True)
class HeadGradient:
    """Up, in the U-shape: what the server needs of the loss that the device took on `MiddleActivations`.

    `gradient` with the shape of the activations it answers; `loss` (1,) float32; `head` the gradients of the head's
    trainable tensors, in their shapes. The last have the role of weights, since they hold no rows of samples.
    """

    gradient: Tensor = _role("gradient")
    loss: Tensor = _role("losses")
    head: tuple[Tensor, ...] = _role("weights")


@dataclass(frozen=True)
class Caches:
    """Both ways, first in a round where links remember samples.

    `digests` (links,) int64 of what this end remembers, in the order of the links' names; down also `thresholds`
    (links,) float32, which hold from now on.
    """

    digests: Tensor = _role("caches")
    thresholds: Tensor | None = _role("thresholds")


@dataclass(frozen=True)
class Share:
    """Down: as `History`, and the number of the group of θ that the device measures in this round."""

    first: int = _role("steps")
    slopes: Tensor = _role("slopes")
    group: int = _role("groups")


@dataclass(frozen=True)
class Turns:
    """Down, behind a `History` whose rows are not numbered as the run's steps, because clients take turns.

    `steps` (rows,) int32: of the run, that of each row.
    """

    steps: Tensor = _role("steps")


@dataclass(frozen=True)
class Both:
    """Two messages that go as one; which two, `PAIRS` says.

    Where steps are pipelined: up a client's `Slopes` of a step and its `Activations` of the next one, down the agreed
    `Slopes` of a step and the `CutGradient` of the next one. Down, where blocks have exact gradients: `History`, and as
    `Weights` what these gradients have made of θ: the parameters of these blocks and then their moments, each in the
    order of their names, none where no step was missed. Down, where clients take turns: `History` and `Turns`.
    """

    first: "Part"
    second: "Part"


@dataclass(frozen=True)
class Encoded:
    """In the place of a tensor field: what the codecs of the field's link made of it."""

    parts: tuple[Tensor, ...]


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
CODES: tuple[tuple[type[Part], ...], ...] = (*((kind,) for kind in _ALONE), *PAIRS, (Turns,))
KINDS: tuple[type[Part], ...] = (*_ALONE, Turns)


def parts_of(message: Message) -> tuple[Part, ...]:
    """The messages in a message: two in `Both`, else itself."""
    return (message.first, message.second) if isinstance(message, Both) else (message,)


def of_parts(parts: Sequence[Part]) -> Message:
    """The message of these parts, one or two."""
    return Both(*parts) if len(parts) == 2 else parts[0]


def kinds_of(message: Message) -> tuple[type[Part], ...]:
    """What a message is made of, an entry of `CODES`."""
    return tuple(type(part) for part in parts_of(message))


def name_of(kinds: Iterable[type[Part]]) -> str:
    """How a message of these kinds is called in the ledger, and in what is said of it."""
    return "And".join(kind.__name__ for kind in kinds)


class Field(NamedTuple):
    """What the wire knows of a field: its role and the Python types it may hold."""

    role: Role
    types: tuple[type, ...]


def _types(role: Role, hint: Any) -> tuple[type, ...]:
    if get_origin(hint) is tuple:
        return (tuple,)
    types = get_args(hint) or (hint,)
    return (*types, Encoded) if role in CODED else types


FIELDS: dict[type[Part], dict[str, Field]] = {
    kind: {
        entry.name: Field(entry.metadata["role"], _types(entry.metadata["role"], get_type_hints(kind)[entry.name]))
        for entry in fields(kind)
    }
    for kind in KINDS
}
