"""What both parties work on and hold: batches, rounds, parts of the model, and optimisers of them."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from halfback.models.adapters import trainable
from halfback.models.running import LocalModel
from halfback.models.running import Top as TopModule
from halfback.optimizers.base import OneByOne
from halfback.zeroth.replay import Replica, Schedule, constant


class Batch(Protocol):
    """What a client computes on: `inputs` of the bottom, `labels` and `sample_ids` (B,).

    `scored`: where tokens have labels, the places (S,) of those whose logits the loss takes; else None.
    """

    @property
    def inputs(self) -> dict[str, Tensor]: ...
    @property
    def labels(self) -> Tensor: ...
    @property
    def sample_ids(self) -> Tensor: ...
    @property
    def scored(self) -> Tensor | None: ...


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
        sizes: the shape of its input behind the dimension of the samples, or of the texts' tokens.
    """

    module: TopModule
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
        model: the bottom and the head behind it; the engine installs this client's parameters before it runs.
        loss: (logits, labels) → mean loss of a batch, a scalar; `terms`: labels → how many terms that mean has.
        boundary: for methods whose devices have one each; then the bottom is what lies below it.
    """

    model: LocalModel
    loss: Callable[[Tensor, Tensor], Tensor]
    terms: Callable[[Tensor], int]
    boundary: Boundary | None = None

    def of(self, batch: Batch) -> Tensor:
        """The mean loss of a batch, a scalar."""
        return self.loss(self.model(batch.inputs, batch.scored), batch.labels.long())


@dataclass(frozen=True)
class HiddenForm:
    """What both ends know of hidden states.

    `shape`: of one sample's; of a text, whose tokens are among those of its batch, (the most tokens, features).
    """

    shape: tuple[int, ...]
    has_texts: bool
    dtype: torch.dtype

    @property
    def rows(self) -> int:
        """Rows of the matrix that codecs take, a sample: channels of an image, one of a vector; of texts at most."""
        return self.shape[0] if len(self.shape) > 1 else 1

    @property
    def width(self) -> int:
        """Values in such a row: of a token, of an image's channel, or of a vector."""
        return math.prod(self.shape) // self.rows

    def matrix(self, hidden: Tensor) -> Tensor:
        """Hidden states as codecs take them, (rows, width)."""
        return hidden.reshape(-1, self.width)

    def tensor(self, matrix: Tensor) -> Tensor:
        """Hidden states from their matrix."""
        return matrix if self.has_texts else matrix.reshape(-1, *self.shape)


@dataclass(frozen=True)
class VectorForm:
    """What both ends know of a vector that belongs to no samples: `length` float32 values.

    Codecs take it in rows of `width` values, the last one filled up with zeros. What they make of several such vectors
    may go one behind the other.
    """

    width: ClassVar[int] = 256
    dtype: ClassVar[torch.dtype] = torch.float32

    length: int

    @property
    def rows(self) -> int:
        """Of the matrix that codecs take, a vector."""
        return -(-self.length // self.width)

    def matrix(self, vector: Tensor) -> Tensor:
        """The vector as codecs take it, (rows, width)."""
        return nn.functional.pad(vector, (0, self.rows * self.width - self.length)).view(self.rows, self.width)

    def tensor(self, matrix: Tensor) -> Tensor:
        """The vector from its matrix, or several one behind the other from theirs."""
        return matrix.reshape(-1, self.rows * self.width)[:, : self.length].flatten()


LinkForm = HiddenForm | VectorForm


@dataclass(frozen=True)
class Above:
    """What the server has for one client's activations: the model behind its cut, and their form."""

    module: nn.Module
    form: HiddenForm


@dataclass
class Descent:
    """First order: an optimiser of some parameters, and how it takes a step on the gradients that they hold.

    Attributes:
        make: parameters → an optimiser of them, which goes by their order.
        clip: bound on the gradient's norm; None for no bound.
        schedule: step of the run → factor of the learning rate.
    """

    parameters: Sequence[Tensor]
    make: Callable[[Sequence[Tensor]], torch.optim.Optimizer]
    clip: float | None = None
    schedule: Schedule = constant
    optimizer: torch.optim.Optimizer = field(init=False)
    _moved: bool = field(default=False, init=False)  # some parameters have taken the step that is under way

    def __post_init__(self) -> None:
        self.optimizer = self.make(self.parameters)

    def another(self, parameters: Sequence[Tensor]) -> "Descent":
        """One like it of other parameters, at its start."""
        return Descent(parameters, self.make, self.clip, self.schedule)

    @property
    def has_gradients(self) -> bool:
        """Whether there is anything to take a step on."""
        return self._moved or any(parameter.grad is not None for parameter in self.parameters)

    def begin(self) -> None:
        """Forgets all gradients, before the first backward pass of a step."""
        self._moved = False
        self.optimizer.zero_grad(set_to_none=True)

    @property
    def one_by_one(self) -> OneByOne | None:
        """The optimiser, where it uses and frees each gradient inside the backward pass."""
        return self.optimizer if isinstance(self.optimizer, OneByOne) and self.clip is None else None

    @contextmanager
    def last_pass(self, step: int, passes: int = 1) -> Iterator[None]:
        """For the last backward pass of a step: behind it the gradients are the mean of those of so many passes.

        Where the optimiser moves one tensor at a time and needs no norm of them all, each takes its `step` here, as
        soon as its gradient is whole, and that gradient is freed: there are never all of them. `Descent.step` then
        has only what is left to do, with the same bits.
        """
        one_by_one = self.one_by_one

        def average(parameter: Tensor) -> None:
            if passes > 1 and parameter.grad is not None:
                parameter.grad /= passes

        def take(parameter: Tensor) -> None:
            average(parameter)
            assert one_by_one is not None, "this hook is for these alone"
            one_by_one.move(parameter)
            parameter.grad, self._moved = None, True

        self._set_rate(step)
        hooked = self.parameters if one_by_one is not None else ()
        handles = [parameter.register_post_accumulate_grad_hook(take) for parameter in hooked]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        for parameter in self.parameters:
            average(parameter)

    def step(self, step: int) -> None:
        """One step on the parameters' gradients, which are then used up; `step`: of the run, for the learning rate."""
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self._set_rate(step)
        self.optimizer.step()
        self.begin()

    def _set_rate(self, step: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.optimizer.defaults["lr"] * self.schedule(step)

    @contextmanager
    def moments_for_now(self) -> Iterator[None]:
        """While this context is open the optimiser has moments, which start anew; none are left behind."""
        try:
            yield
        finally:
            self.optimizer.state.clear()
