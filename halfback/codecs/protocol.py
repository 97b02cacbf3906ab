"""The seam between codecs and links: what a stage of a chain and the two ends of a link are.

A link carries a matrix of float values: one row a token that is no padding, or one row a channel of an image. `Samples`
says which rows belong to which sample, and both ends know it before the matrix arrives.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from halfback.errors import PeerError

Parts = tuple[Tensor, ...]
State = tuple[dict[str, Tensor], dict[str, Any]]
"""Named tensors and plain values, for a checkpoint."""


@dataclass(frozen=True)
class Seen:
    """What an end with temporal reuse saw of one matrix; both ends see the same.

    similarity   (B,) float32, NaN where there was nothing to compare with.
    skipped      (B,) bool.
    sent_bytes, full_bytes   of the values on the wire, and of what they were with nothing skipped.
    """

    similarity: Tensor
    skipped: Tensor
    sent_bytes: int
    full_bytes: int


@dataclass(frozen=True)
class Samples:
    """The samples of a matrix, in order.

    ids    sample ids; None for another matrix of the step's samples, such as a probe, which nobody should remember.
    rows   how many rows of the matrix each sample has.
    """

    ids: tuple[int, ...] | None
    rows: tuple[int, ...]


class Stage(Protocol):
    """One step of a chain, without memory.

    Attributes:
        width: columns of its payload.
        dtype: dtype of its payload.
        extras: tensors that it sends beside its payload.
    """

    width: int
    dtype: torch.dtype
    extras: int

    def encode(self, matrix: Tensor) -> tuple[Tensor, Parts]:
        """(rows, columns) float → payload (rows, `width`) and extras."""
        ...

    def decode(self, payload: Tensor, extras: Parts) -> Tensor:
        """The matrix again, as far as the stage keeps it; the payload's shape and dtype are checked already.

        Raises:
            PeerError: an extra is not what `encode` makes.
        """
        ...


class Sender(Protocol):
    """The sending end of one client's link; `tensors` is what it remembers in memory."""

    def encode(self, matrix: Tensor, samples: Samples) -> Parts: ...
    def tensors(self) -> list[Tensor]: ...
    def state(self) -> State: ...
    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None: ...


class Receiver(Protocol):
    """The receiving end of one client's link; `tensors` is what it remembers in memory.

    `most`: bytes and number of tensors that a matrix of so many rows of so many samples is sent as, at most.
    """

    def decode(self, parts: Parts, samples: Samples) -> Tensor: ...
    def most(self, rows: int, samples: int) -> tuple[int, int]: ...
    def tensors(self) -> list[Tensor]: ...
    def state(self) -> State: ...
    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None: ...


def finite(matrix: Tensor) -> bool:
    """Whether every value is finite; looked at in pieces, because a device has no memory for a second such matrix."""
    return all(bool(torch.isfinite(piece).all()) for piece in matrix.split(256))


def expect(what: str, tensor: Tensor, dtype: torch.dtype, *shape: int) -> None:
    """Refuses a tensor of another dtype or shape.

    Raises:
        PeerError: names what came and what is allowed.
    """
    if tensor.dtype != dtype or tuple(tensor.shape) != shape:
        raise PeerError(what, f"{tensor.dtype} {tuple(tensor.shape)}", f"{dtype} {shape} is allowed")
