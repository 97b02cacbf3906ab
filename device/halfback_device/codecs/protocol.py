"""The seam between codecs and links: what a stage of a chain and the two ends of a link are.

A link carries a matrix of float32 values: one row a token, a channel of an image, or 256 values of a vector. `Samples`
says which rows belong to which sample, and both ends know it before the matrix arrives.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from halfback_device.errors import PeerError
from halfback_device.halves import widened
from halfback_device.messages import Array
from halfback_device.wire import described, type_name

Parts = tuple[Array, ...]
"""The arrays that a matrix is sent as."""
State = tuple[dict[str, Array], dict[str, Any]]
"""Named arrays, and values that JSON can hold, for a checkpoint."""


@dataclass(frozen=True)
class Samples:
    """The samples of a matrix, in order.

    Attributes:
        ids: a number for each sample, the same whenever the sample comes again; None for another matrix of the step's
            samples, such as a probe, which nobody should remember.
        rows: how many rows of the matrix each sample has.
        again: the ids where `ids` is None, for whoever counts what goes out of each sample.
    """

    ids: tuple[int, ...] | None
    rows: tuple[int, ...]
    again: tuple[int, ...] = ()

    @property
    def whose(self) -> tuple[int, ...]:
        """The ids, be it the first matrix of these samples in a step or not."""
        return self.again if self.ids is None else self.ids

    def split(self, matrix: Array) -> list[Array]:
        """Each sample's rows of the matrix, as views."""
        return np.split(matrix, np.cumsum(self.rows)[:-1]) if self.rows else []


class Stage(Protocol):
    """One step of a chain, without memory.

    Attributes:
        width: columns of its payload.
        dtype: dtype of its payload; uint16 for bfloat16.
        extras: arrays that it sends beside its payload.

    A stage with a true attribute `by_sample` is handed the rows of one sample at a time when it encodes.
    """

    width: int
    dtype: np.dtype[Any]
    extras: int

    def encode(self, matrix: Array) -> tuple[Array, Parts]:
        """(rows, columns) floats → the payload (rows, `width`), and `extras` arrays with a row for each row."""
        ...

    def decode(self, payload: Array, extras: Parts) -> Array:
        """The payload, which is checked, and the extras, which are not → (rows, columns) float32, or PeerError."""
        ...


class Remembering(Protocol):
    """What an end of a link remembers."""

    def state(self) -> State:
        """Everything that the next messages depend on, for a checkpoint."""
        ...

    def load_state(self, arrays: Mapping[str, Array], values: Mapping[str, Any]) -> None:
        """Goes on, to the bit, from what `state` gave."""
        ...


class Sender(Remembering, Protocol):
    """The sending end of a link."""

    def encode(self, matrix: Array, samples: Samples) -> Parts:
        """What is sent of a matrix (rows, columns)."""
        ...


class Receiver(Remembering, Protocol):
    """The receiving end of a link."""

    def decode(self, parts: Parts, samples: Samples) -> Array:
        """The matrix again. PeerError where the sender can't have made these arrays; then nothing is remembered."""
        ...

    def most(self, rows: int, samples: int) -> tuple[int, int]:
        """Bytes and number of the arrays that a matrix of so many rows and samples is sent as, at most."""
        ...


def finite(matrix: Array) -> bool:
    """Whether every value is finite; looked at in pieces, because a device has no memory for a second such matrix."""
    return all(bool(np.isfinite(widened(matrix[at : at + 256])).all()) for at in range(0, len(matrix), 256))


def expect(what: str, array: Array, dtype: Any, *shape: int) -> None:
    """Refuses an array of another dtype or shape.

    Raises:
        PeerError: names what came and what is allowed.
    """
    if array.dtype != dtype or array.shape != shape:
        raise PeerError(what, described(array), f"{type_name(np.dtype(dtype))} {shape} is allowed")
