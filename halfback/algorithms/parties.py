"""The two parties as an algorithm sees them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from halfback.algorithms.holdings import Above, Batch, BatchSource, Boundary, Head, Local, Round
from halfback.algorithms.robust import Robust
from halfback.models.cut import Bottom
from halfback.zeroth.replay import Replica, Schedule, constant
from halfback.zeroth.sharing import Sharing


@dataclass
class Client:
    """One device as an algorithm sees it.

    Attributes:
        bottom: the device's part of the model; the engine installs this client's parameters before it runs.
        replica: the trainable parameters θ. In a simulation, clients whose θ are equal by construction share one.
        data: batches by number; `cursor` is the next number.
        hidden_dtype: the dtype of activations.
        position: agreed steps this client has replayed.
        groups: the groups of θ that this client measures, by their place in `replica.groups`; None for all.
        sharing: who measures which directions; `seat`: this client's place in the cohort of the round.
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
    sharing: Sharing = Sharing()
    seat: int = 0
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

    def seeds(self, directions: int) -> list[int]:
        """The seeds of this client's own directions of the next step: P, or P for each row of a batch in turn."""
        return self.replica.seeds(self.sharing.of_cohort(directions))[self.sharing.place(self.seat, directions)]

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

    def replay(self, first: int, slopes: Tensor) -> None:
        """Takes agreed steps `first`, … with rows `slopes` (steps, `replica.width`)."""
        self.replica.replay(first, slopes)
        self.position = max(self.position, first + len(slopes))


@dataclass
class Server:
    """The server as an algorithm sees it.

    Attributes:
        top: the server's part of the model; in the U-shape, the middle. With a cut for each client, behind the deepest.
        loss: (logits, labels) → mean loss of a batch, a scalar.
        replica: the agreed bottom, for evaluation and for whoever joins. It may lag behind `history`: see `catch_up`.
        hidden_dtype: the dtype of activations.
        round: the one that runs.
        steps: steps taken: one for each batch of a cohort.
        history: the agreed slopes of every step, each float32, of each group of θ in turn; behind them exact gradients,
            as long as `replica` has not taken the step: see `settle`. `settled` rows have none any more.
        above: by client, what is behind a cut that is not the deepest: blocks of θ, moved by replay alone, and the top.
        groups: the groups of θ that a client measures, by client, as in `Client.groups`; all for one that is not there.
        sharing: as the clients'; `seats`: the clients' places in the cohort of the round.
        robust: how the slopes of a cohort become those of `history`.
        optimizer: first-order optimiser of the top; `clip` bounds its gradient norm, and `schedule` gives the factor of
            its learning rate by step. `make_optimizer` makes another like it, for methods with a top for each client.
        top_replica: the top's parameters, when they too are moved along seeded directions.
        hidden_shape: the shape that activations must have behind the batch dimension.
        has_texts: the first of these is the number of tokens, which may be smaller, and a mask comes with them.
        losses: training losses since the engine last took them.
        auxiliary: the devices' auxiliary head, to be called with those of the agreed parameters that are its own.
        kept: what an algorithm keeps between two exchanges of one step, by client.
        head: in the U-shape, the trainable tensors of the devices' head, moved by `optimizer` too; else None.
        boundaries: of the clients by number, for methods whose devices have one each.
        passes: in the U-shape, by client, what came at the first cut and went at the second, with the graph between.
    """

    top: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    replica: Replica
    hidden_shape: tuple[int, ...]
    has_texts: bool
    hidden_dtype: torch.dtype
    round: Round = Round(0, 0, 0)
    steps: int = 0
    history: list[Tensor] = field(default_factory=list)
    settled: int = 0
    above: dict[int, Above] = field(default_factory=dict)
    groups: dict[int, Sequence[int]] = field(default_factory=dict)
    sharing: Sharing = Sharing()
    seats: dict[int, int] = field(default_factory=dict)
    robust: Robust = Robust()
    optimizer: torch.optim.Optimizer | None = None
    clip: float | None = None
    schedule: Schedule = constant
    make_optimizer: Callable[[Sequence[Tensor]], torch.optim.Optimizer] | None = None
    auxiliary: nn.Module | None = None
    top_replica: Replica | None = None
    losses: list[float] = field(default_factory=list)
    kept: dict[int, Any] = field(default_factory=dict)
    head: dict[str, nn.Parameter] | None = None
    boundaries: Sequence[Boundary] = ()
    passes: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def of(self, client: int) -> Above:
        """What takes this client's activations."""
        return self.above.get(client) or Above(self.top, self.hidden_shape)

    def missed(self, position: int) -> Tensor:
        """The history's rows from `position` on, stacked."""
        rows = self.history[position:]
        return torch.stack(rows) if rows else torch.zeros(0, len(self.history[0]) if self.history else 0)

    def catch_up(self) -> None:
        """Brings the server's replica of the bottom up to the history."""
        if self.history:
            self.replica.replay(self.replica.position, self.missed(self.replica.position))

    def settle(self) -> None:
        """Catches up, and forgets the exact gradients: θ has them now, and they would outgrow it."""
        if exact := self.replica.width(0):
            self.catch_up()
            for place in range(self.settled, len(self.history)):
                self.history[place] = self.history[place][:-exact].clone()
            self.settled = len(self.history)
