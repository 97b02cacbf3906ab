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
"""The tensors that a matrix is sent as."""
State = tuple[dict[str, Tensor], dict[str, Any]]
"""Named tensors, and values that JSON can hold, for a checkpoint."""


@dataclass(frozen=True)
class Seen:
    """What an end with temporal reuse saw of one matrix; both ends see the same.

    Attributes:
        similarity: of each sample's rows to those that were remembered, as the cosine of the angle between them: (B,)
            float32, NaN where there was nothing to compare with.
        skipped: which samples were not sent: (B,) bool.
        sent_bytes: of the values on the wire.
        full_bytes: what they would have been with nothing skipped.
    """

    similarity: Tensor
    skipped: Tensor
    sent_bytes: int
    full_bytes: int


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


class Stage(Protocol):
    """One step of a chain, without memory.

    Attributes:
        width: columns of its payload.
        dtype: dtype of its payload.
        extras: tensors that it sends beside its payload.

    A stage with a true attribute `by_sample` is handed the rows of one sample at a time when it encodes.
    """

    width: int
    dtype: torch.dtype
    extras: int

    def encode(self, matrix: Tensor) -> tuple[Tensor, Parts]:
        """Makes what is sent of a matrix.

        Args:
            matrix: (rows, columns), floats.

        Returns:
            The payload, (rows, `width`) of `dtype`, which the next stage takes; and `extras` tensors that are sent
            beside it, each with one row for each row of the matrix.
        """
        ...

    def decode(self, payload: Tensor, extras: Parts) -> Tensor:
        """Makes the matrix again, as far as the stage keeps it.

        Args:
            payload: (rows, `width`) of `dtype`, which is checked already.
            extras: tensors as `encode` makes them; these are not checked.

        Returns:
            (rows, columns), floats.

        Raises:
            PeerError: an extra is not what `encode` makes.
        """
        ...


class Coding(Protocol):
    """A codec with its settings: a frozen dataclass whose fields are the options."""

    def bind(self, width: int, dtype: torch.dtype) -> Stage:
        """Makes the stage for payloads of `width` columns of floats.

        Args:
            width: columns of the payload, of which each row is coded by itself.
            dtype: of the payload.

        Returns:
            The stage.

        Raises:
            UserError: the codec can't take these.
        """
        ...


class Remembering(Protocol):
    """What an end of a link says of its memory."""

    def tensors(self) -> list[Tensor]:
        """What the end remembers in memory, not on disk.

        Returns:
            The tensors, which count as memory of the party that has this end.
        """
        ...

    def state(self) -> State:
        """Everything that the next messages depend on, for a checkpoint.

        Returns:
            Named tensors, and values that JSON can hold.
        """
        ...

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Goes on, to the bit, from what `state` gave.

        Args:
            tensors: the first of what it gave.
            values: the second, after it was written as JSON and read again.
        """
        ...


class Sender(Remembering, Protocol):
    """The sending end of one client's link."""

    def encode(self, matrix: Tensor, samples: Samples) -> Parts:
        """Makes what is sent of a matrix, and remembers what it needs for the next one.

        Args:
            matrix: (rows, columns), floats.
            samples: whose rows these are.

        Returns:
            The tensors that are sent.
        """
        ...


class Receiver(Remembering, Protocol):
    """The receiving end of one client's link."""

    def decode(self, parts: Parts, samples: Samples) -> Tensor:
        """Makes the matrix again, and remembers what the sender takes for granted that it does.

        Args:
            parts: the tensors that came; nothing about them is checked yet.
            samples: whose rows these are.

        Returns:
            (rows, columns), floats.

        Raises:
            PeerError: the sender can't have made these tensors; then nothing is remembered.
        """
        ...

    def most(self, rows: int, samples: int) -> tuple[int, int]:
        """Bounds what a matrix is sent as, before any of it is read.

        Args:
            rows: of the matrix.
            samples: that these rows belong to.

        Returns:
            Bytes, and number of tensors, at most.
        """
        ...


def finite(matrix: Tensor) -> bool:
    """Looks for values that are not finite, in pieces, because a device has no memory for a second such matrix.

    Args:
        matrix: (rows, columns), floats.

    Returns:
        Whether there is none.
    """
    return all(bool(torch.isfinite(piece).all()) for piece in matrix.split(256))


def expect(what: str, tensor: Tensor, dtype: torch.dtype, *shape: int) -> None:
    """Refuses a tensor of another dtype or shape.

    Args:
        what: how the error calls it, such as "int8: scales".
        tensor: that came.
        dtype: that it must have.
        *shape: that it must have.

    Raises:
        PeerError: names what came and what is allowed.
    """
    if tensor.dtype != dtype or tuple(tensor.shape) != shape:
        raise PeerError(what, f"{tensor.dtype} {tuple(tensor.shape)}", f"{dtype} {shape} is allowed")
