"""One device as an algorithm sees it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from halfback.models.running import Bottom
from halfback.parties.holdings import Batch, BatchSource, Descent, Head, Local, Round
from halfback.zeroth.directions import Seeds
from halfback.zeroth.replay import Replica


@dataclass
class Theta:
    """A client's view of the trained parameters θ.

    Attributes:
        replica: the parameters. In one process, clients whose θ are equal by construction share one.
        position: agreed rows of slopes that this client has replayed.
        groups: the groups of θ that this client measures, by their place in `replica.groups`; None for all.
    """

    replica: Replica
    position: int = 0
    groups: Sequence[int] | None = None

    @property
    def parameters(self) -> dict[str, Tensor]:
        """All of θ, by name."""
        return self.replica.parameters

    @property
    def trained(self) -> dict[str, Tensor]:
        """Those of θ that gradients move: all but running statistics, which go with it."""
        return {name: parameter for name, parameter in self.replica.parameters.items() if parameter.requires_grad}

    @property
    def measured(self) -> Mapping[str, Tensor]:
        """The parameters along which this client takes its slopes: θ without the exact ones, or its groups of it."""
        groups = range(len(self.replica.groups)) if self.groups is None else self.groups
        return {name: self.replica.parameters[name] for place in groups for name in self.replica.groups[place]}

    @property
    def exact(self) -> Mapping[str, Tensor]:
        """The parameters whose gradient this client takes exactly."""
        return {name: self.replica.parameters[name] for name in self.replica.exact}

    def seeds(self, directions: int, *, step: int | None = None) -> Seeds:
        """Says along which directions a step takes its slopes; every party makes the same ones.

        Args:
            directions: how many, P.
            step: the number of the agreed row of slopes that they belong to; None for the next one to be replayed.

        Returns:
            What the P directions are made from: nothing of them is in memory yet.
        """
        return self.replica.seeds(directions, step=step)

    def take_state(self, first: int, slopes: Tensor, exact: Sequence[Tensor]) -> None:
        """Takes agreed steps without their exact gradients, and what these have made of θ.

        Args:
            first: the number of the first agreed row of slopes.
            slopes: the rows from there on, (steps, slopes of a row).
            exact: the values of the exact parameters behind these steps, in the order of `exact`.
        """
        self.replica.take_state(first, slopes, exact)
        self.position = max(self.position, first + len(slopes))

    def replay(self, first: int, slopes: Tensor, steps: Sequence[int] | None = None) -> None:
        """Moves θ along agreed slopes; rows that it has taken already are left out.

        Args:
            first: the number of the first agreed row of slopes.
            slopes: the rows from there on, (steps, slopes of a row), float32.
            steps: of the run, to which the rows belong, for their rates; None where they are the rows' numbers.
        """
        self.replica.replay(first, slopes, steps)
        self.position = max(self.position, first + len(slopes))

    def step(self, slopes: Tensor, step: int) -> None:
        """Moves a θ of the client's own along its own slopes.

        Args:
            slopes: one for each direction of `seeds`, (P,).
            step: of the run, for the learning rate.
        """
        self.replica.replay(self.replica.position, slopes.unsqueeze(0), [step])


@dataclass
class Feed:
    """What a client computes on.

    Attributes:
        data: its batches by number.
        cursor: the number of the next one.
        ahead: a batch that was made before its turn, by its number.
    """

    data: BatchSource
    cursor: int = 0
    ahead: tuple[int, Batch] | None = None

    def next(self) -> Batch:
        """Looks at the batch at the cursor, without going on.

        Returns:
            The one that `batches` then yields.
        """
        if self.ahead is None or self.ahead[0] != self.cursor:
            self.ahead = (self.cursor, self.data.batch(self.cursor))
        return self.ahead[1]

    def batches(self, round: Round) -> Iterator[Batch]:
        """Goes on through the client's batches, in an order of its own.

        Args:
            round: that they belong to.

        Yields:
            As many batches as the round has steps.
        """
        for _ in range(round.steps):
            batch, self.ahead = self.next(), None
            self.cursor += 1
            yield batch


@dataclass
class Client:
    """One device as an algorithm sees it.

    Attributes:
        id: the client's number, from 0.
        bottom: the device's part of the model; the engine installs this client's parameters before it runs.
        theta: the trained parameters θ, as this client has them.
        feed: what it computes on.
        descent: how gradients move θ, for methods whose devices backpropagate.
        head: in the U-shape, what takes the loss on the device.
        local: the device's own model, for methods with an auxiliary head or without a cut.
        losses: training losses that the device took itself, for an engine's records; no message of a method has them.
        beside: what runs the bottom for this client and others at once; None where it runs for this one alone.
    """

    id: int
    bottom: Bottom
    theta: Theta
    feed: Feed
    descent: Descent | None = None
    head: Head | None = None
    local: Local | None = None
    losses: list[float] = field(default_factory=list)
    beside: Callable[[Batch], Tensor] | None = None

    @property
    def own(self) -> Local:
        """The device's own model, of a method that needs one."""
        assert self.local is not None, "an algorithm whose device holds more than the bottom gets a model of its own"
        return self.local

    @torch.no_grad()
    def forward(self, batch: Batch) -> Tensor:
        """Runs the device's part of the model, without a graph for backpropagation.

        Args:
            batch: of B rows.

        Returns:
            The activations at the cut: of texts (N, width) for their N tokens, of images (B, channels, height, width).
        """
        return self.bottom(batch.inputs) if self.beside is None else self.beside(batch)

    @property
    def first_order(self) -> Descent:
        """How gradients move θ, in a method whose devices backpropagate."""
        assert self.descent is not None, "an algorithm that backpropagates gets an optimiser"
        return self.descent

    def descend(self, step: int) -> None:
        """Takes a step of θ on the gradients that its parameters hold, which are then used up.

        Args:
            step: of the run, for the learning rate.
        """
        self.first_order.step(step)

    def take_losses(self) -> list[float]:
        """Hands the training losses on to whoever keeps records.

        Returns:
            Those since the last call.
        """
        losses, self.losses = self.losses, []
        return losses
