"""One device as an algorithm sees it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from halfback.models.cut import Bottom
from halfback.parties.holdings import Batch, BatchSource, Head, Local, Round
from halfback.zeroth.replay import Replica, Schedule, constant


@dataclass
class Client:
    """One device as an algorithm sees it.

    Attributes:
        bottom: the device's part of the model; the engine installs this client's parameters before it runs.
        replica: the trainable parameters θ. In a simulation, clients whose θ are equal by construction share one.
        data: batches by number; `cursor` is the next number.
        hidden_dtype: the dtype of activations.
        position: agreed rows of slopes that this client has replayed.
        groups: the groups of θ that this client measures, by their place in `replica.groups`; None for all.
        optimizer: for clients that backpropagate.
        clip: bound on the gradient norm, for clients that backpropagate.
        schedule: step of the run → factor of the learning rate, for clients that backpropagate.
        head: in the U-shape, what takes the loss on the device.
        local: the device's own model, for methods with an auxiliary head or without a cut.
        losses: training losses that the device took itself, for an engine's records; no message of a method has them.
    """

    id: int
    bottom: Bottom
    replica: Replica
    data: BatchSource
    hidden_dtype: torch.dtype = torch.float32
    position: int = 0
    groups: Sequence[int] | None = None
    cursor: int = 0
    optimizer: torch.optim.Optimizer | None = None
    clip: float | None = None
    schedule: Schedule = constant
    head: Head | None = None
    local: Local | None = None
    losses: list[float] = field(default_factory=list)

    @property
    def measured(self) -> Mapping[str, Tensor]:
        """The parameters along which this client takes its slopes: θ without the exact ones, or its groups of it."""
        groups = range(len(self.replica.groups)) if self.groups is None else self.groups
        return {name: self.replica.parameters[name] for place in groups for name in self.replica.groups[place]}

    @property
    def exact(self) -> Mapping[str, Tensor]:
        """The parameters whose gradient this client takes exactly."""
        return {name: self.replica.parameters[name] for name in self.replica.exact}

    def batches(self, round: Round) -> Iterator[Batch]:
        """The batches of this round, in the client's own order."""
        for _ in range(round.steps):
            batch = self.data.batch(self.cursor)
            self.cursor += 1
            yield batch

    def take_losses(self) -> list[float]:
        """The training losses since the last call."""
        losses, self.losses = self.losses, []
        return losses

    def take_state(self, first: int, slopes: Tensor, exact: Sequence[Tensor]) -> None:
        """Takes agreed steps without their exact gradients, and what these have made of θ."""
        self.replica.take_state(first, slopes, exact)
        self.position = max(self.position, first + len(slopes))

    def replay(self, first: int, slopes: Tensor, steps: Sequence[int] | None = None) -> None:
        """Takes agreed rows `first`, … of `slopes` (steps, `replica.width`); `steps` as in `Replica.replay`."""
        self.replica.replay(first, slopes, steps)
        self.position = max(self.position, first + len(slopes))
