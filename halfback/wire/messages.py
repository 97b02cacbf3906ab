"""The few message kinds that carry all algorithms: frozen dataclasses, with a role for each field.

A role says what a field holds whatever the algorithm, so the ledger splits bytes by it and a codec is chosen by it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from torch import Tensor

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
ROLES: tuple[Role, ...] = get_args(Role)


def _role(role: Role, *, coded: bool = False) -> Any:
    """A field with this role; `coded`: a codec of the role's link may stand for its tensor."""
    return field(metadata={"role": role, "coded": coded})


@dataclass(frozen=True)
class Nothing:
    """An answer without content: the exchange itself is the signal."""


@dataclass(frozen=True)
class Join:
    """Up, first in a round: where the client stands.

    Attributes:
        position: how many agreed rows of slopes it has already replayed.
    """

    position: int = _role("steps")


@dataclass(frozen=True)
class History:
    """Down: agreed slopes.

    Attributes:
        first: the number of the first row.
        slopes: the rows from there on, (steps, P) float32; P for each group of θ in turn.
    """

    first: int = _role("steps")
    slopes: Tensor = _role("slopes")


@dataclass(frozen=True)
class Activations:
    """Up: what the server needs for the loss of one batch. What was sent earlier in the step is None.

    Attributes:
        hidden: the activations at the cut, (N, H) for the N tokens of B texts one behind the other, or (B, C, H, W).
        lengths: (B,) int32, the tokens of each text; None for images.
        labels: (B,) or (N,) integers; None where they stay on the device (U-shape).
        sample_ids: (B,) int32, the same whenever a row comes again.
    """

    hidden: Tensor = _role("activations", coded=True)
    lengths: Tensor | None = _role("lengths")
    labels: Tensor | None = _role("labels")
    sample_ids: Tensor | None = _role("sample_ids")


@dataclass(frozen=True)
class CutGradient:
    """Down: how the loss changes with the activations.

    Attributes:
        gradient: λ = ∂ℓ/∂z, in the shape of the activations that it answers.
    """

    gradient: Tensor = _role("gradient", coded=True)


@dataclass(frozen=True)
class Slopes:
    """Up: one client's slopes of a step; down: what the cohort has agreed on.

    Attributes:
        step: the number of the agreed row that they are for.
        values: (P,) float32; down as a row of `History`.
    """

    step: int = _role("steps")
    values: Tensor = _role("slopes")


@dataclass(frozen=True)
class Exact:
    """Behind `Slopes`, where blocks have exact gradients. Up: one client's; down: what the cohort has agreed on.

    Behind `History`, down: the agreed ones of its rows.

    Attributes:
        values: the gradients one behind the other, in the order of their parameters in θ, (d,) float32; those of
            several rows one behind the other, (rows · d,).
    """

    values: Tensor = _role("slopes", coded=True)


@dataclass(frozen=True)
class Losses:
    """Down: the loss of a batch.

    Attributes:
        values: of the activations that it answers, (1,) float32.
    """

    values: Tensor = _role("losses")


@dataclass(frozen=True)
class Weights:
    """Both ways: what devices train.

    Attributes:
        tensors: the trainable tensors of what θ belongs to, in the order of their names.
    """

    tensors: tuple[Tensor, ...] = _role("weights")


@dataclass(frozen=True)
class HandOver:
    """From one device to the next; the server only passes it on.

    Attributes:
        tensors: trainable tensors in the order of their names.
    """

    tensors: tuple[Tensor, ...] = _role("weights")


@dataclass(frozen=True)
class MiddleActivations:
    """Down, in the U-shape: what the device needs for the loss of the activations it answers.

    Attributes:
        hidden: activations at the second cut, (N, H) or (B, C, H, W).
        head: the head's trainable tensors in the order of its module tree, none where the head is frozen.
    """

    hidden: Tensor = _role("activations", coded=True)
    head: tuple[Tensor, ...] = _role("weights")


@dataclass(frozen=True)
class HeadGradient:
    """Up, in the U-shape: what the server needs of the loss that the device took on `MiddleActivations`.

    Attributes:
        gradient: of the loss by the activations at the second cut, in their shape.
        loss: (1,) float32.
        head: the gradients of the head's trainable tensors, in their shapes. They have the role of weights, since they
            hold no rows of samples.
    """

    gradient: Tensor = _role("gradient", coded=True)
    loss: Tensor = _role("losses")
    head: tuple[Tensor, ...] = _role("weights")


@dataclass(frozen=True)
class Caches:
    """Both ways, first in a round where links remember samples.

    Attributes:
        digests: of what this end remembers, (links,) int64 in the order of the links' names.
        thresholds: down alone, (links,) float32: the similarities below which samples are sent from now on.
    """

    digests: Tensor = _role("caches")
    thresholds: Tensor | None = _role("thresholds")


@dataclass(frozen=True)
class Share:
    """Down: agreed slopes, and the device's part of the work.

    Attributes:
        first: the number of the first row.
        slopes: the rows from there on, (steps, P) float32; P for each group of θ in turn.
        group: the number of the group of θ that the device measures in this round.
    """

    first: int = _role("steps")
    slopes: Tensor = _role("slopes")
    group: int = _role("groups")


@dataclass(frozen=True)
class Masking:
    """Both ways, around a message of which a sum alone is told (`secure.sum`): docs/protocol.md says which is which.

    Attributes:
        phase: 0 keys, 1 sealed shares, 2 whose values came, and opened shares of these and the others.
        clients: that the rows of `values` are of, or are for: (n,) int64.
        values: (n, bytes of each) uint8.
    """

    phase: int = _role("masks")
    clients: Tensor = _role("masks")
    values: Tensor = _role("masks")


@dataclass(frozen=True)
class Turns:
    """Down, behind a `History` whose rows are not numbered as the run's steps, because clients take turns.

    Attributes:
        steps: of the run, that of each row: (rows,) int32.
    """

    steps: Tensor = _role("steps")


@dataclass(frozen=True)
class Both:
    """Two messages that go as one; which two, `PAIRS` says.

    Where steps are pipelined: up a client's `Slopes` of a step and its `Activations` of the next one, down the agreed
    `Slopes` of a step and the `CutGradient` of the next one. Where blocks have exact gradients: both ways `Slopes` and
    `Exact`; down also `History` and the `Exact` of its rows, or where that is more, as `Weights`, what these gradients
    have made of θ: the parameters of these blocks and then their moments, each in the order of their names, none where
    no step was missed. Down, where clients take turns: `History` and `Turns`.

    Attributes:
        first: the one message.
        second: the other.
    """

    first: "Part"
    second: "Part"


@dataclass(frozen=True)
class Encoded:
    """In the place of a tensor field: what the codecs of the field's link made of it.

    Attributes:
        parts: the tensors that it is sent as.
    """

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
    | Exact
    | Masking
)
Message = Part | Both
KINDS: tuple[type[Part], ...] = get_args(Part)
_ALONE = KINDS[: KINDS.index(Turns)]
PAIRS: tuple[tuple[type[Part], type[Part]], ...] = (
    (Slopes, Activations),
    (Slopes, CutGradient),
    (History, Weights),
    (History, Turns),
    (Slopes, Exact),
    (History, Exact),
)
# What a message is made of, one kind or two. The number on the wire is the place in this tuple: append, never reorder.
CODES: tuple[tuple[type[Part], ...], ...] = (
    *((kind,) for kind in _ALONE),
    *PAIRS[:4],
    (Turns,),
    *PAIRS[4:],
    (Masking,),
)


def parts_of(message: Message) -> tuple[Part, ...]:
    """Takes `Both` apart.

    Args:
        message: of any kind.

    Returns:
        The two messages in `Both`; of another kind itself.
    """
    return (message.first, message.second) if isinstance(message, Both) else (message,)


def of_parts(parts: Sequence[Part]) -> Message:
    """Makes one message of two.

    Args:
        parts: one message, or two.

    Returns:
        The message, or `Both`.
    """
    return Both(*parts) if len(parts) == 2 else parts[0]


def kinds_of(message: Message) -> tuple[type[Part], ...]:
    """Says what a message is made of.

    Args:
        message: of any kind.

    Returns:
        One kind, or two: an entry of `CODES`.
    """
    return tuple(type(part) for part in parts_of(message))


def name_of(kinds: Iterable[type[Part]]) -> str:
    """How a message is called in the ledger, and in what is said of it.

    Args:
        kinds: what it is made of.

    Returns:
        Their names, joined by "And".
    """
    return "And".join(kind.__name__ for kind in kinds)
