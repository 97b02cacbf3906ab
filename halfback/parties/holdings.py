"""What the two parties work on and hold: batches, rounds, and parts of the model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from halfback.models.adapters import trainable
from halfback.models.cut import Device, Top
from halfback.zeroth.replay import Replica


class Batch(Protocol):
    """What a client computes on: `inputs` of the bottom, `labels` and `sample_ids` (B,)."""

    @property
    def inputs(self) -> dict[str, Tensor]: ...
    @property
    def labels(self) -> Tensor: ...
    @property
    def sample_ids(self) -> Tensor: ...


class BatchSource(Protocol):
    """A client's data: batch `number` is a pure function of the number; the length is the number of training rows."""

    def batch(self, number: int) -> Batch: ...
    def __len__(self) -> int: ...


@dataclass(frozen=True)
class Round:
    """One conversation with each sampled client: `steps` batches each, after `first` steps of earlier rounds."""

    number: int
    steps: int
    first: int


@dataclass(frozen=True)
class Head:
    """The last part of the model, in the U-shape on the device.

    Attributes:
        module: the head; its trainable tensors are the server's to say, anew in each step.
        loss: (logits, labels) → mean loss of a batch, a scalar; `terms`: labels → how many terms that mean has.
        sizes: the shape of its input behind the batch dimension (and, for texts, behind the tokens).
    """

    module: Top
    loss: Callable[[Tensor, Tensor], Tensor]
    terms: Callable[[Tensor], int]
    sizes: tuple[int, ...]

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The trainable tensors by name."""
        return trainable(self.module)


@dataclass(frozen=True)
class Boundary:
    """Where, in a device's own model, zeroth order ends and backpropagation begins.

    Attributes:
        below: names of the parameters below it, in the order of θ.
        replica: (these parameters, first step of a round) → what moves them from there: directions of the client's own,
            moments that start anew, and a pace of its own.
    """

    below: tuple[str, ...]
    replica: Callable[[Mapping[str, Tensor], int], Replica]


@dataclass(frozen=True)
class Local:
    """A model of the device's own, from the inputs to the loss: for methods with an auxiliary head or without a cut.

    Attributes:
        device: the bottom and the head behind it; the engine installs this client's parameters before it runs.
        loss: (logits, labels) → mean loss of a batch, a scalar; `terms`: labels → how many terms that mean has.
        boundary: for methods whose devices have one each; then the bottom is what lies below it.
    """

    device: Device
    loss: Callable[[Tensor, Tensor], Tensor]
    terms: Callable[[Tensor], int]
    boundary: Boundary | None = None

    def of(self, batch: Batch) -> Tensor:
        """The mean loss of a batch, a scalar."""
        return self.loss(self.device(batch.inputs), batch.labels.long())


@dataclass(frozen=True)
class Above:
    """What the server has for one client's activations: the model behind its cut, and their shape, as in `Server`."""

    top: nn.Module
    hidden_shape: tuple[int, ...]
