"""The server as an algorithm sees it."""

from bisect import bisect
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from halfback.parties.holdings import Above, Boundary, Round
from halfback.parties.server_robust import Robust
from halfback.zeroth.replay import Replica, Schedule, constant


@dataclass
class Server:
    """The server as an algorithm sees it.

    Attributes:
        top: the server's part of the model; in the U-shape, the middle. With a cut for each client, behind the deepest.
        loss: (logits, labels) → mean loss of a batch, a scalar.
        replica: the agreed bottom, for evaluation and for whoever joins. It may lag behind `history`: see `catch_up`.
        hidden_dtype: the dtype of activations.
        round: the one that runs.
        steps: the run's step that the cohort's next batch belongs to, from which schedules take their factor: where
            the round begins, says the engine (`begin`), and one more for each step that is taken.
        history: the agreed slopes of every step, each float32, of each group of θ in turn; behind them exact gradients,
            as long as `replica` has not taken the step: see `settle`. `settled` rows have none any more.
        turns: where rows of the history are not numbered as the run's steps, because clients take turns: (row, its
            step) of those from which both count on by one.
        above: by client, what is behind a cut that is not the deepest: blocks of θ, moved by replay alone, and the top.
        groups: the groups of θ that a client measures, by client, as in `Client.groups`; all for one that is not there.
        robust: how the slopes of a cohort become those of `history`.
        rows: by client, the training rows by which it counts in means; empty where all count alike.
        optimizer: first-order optimiser of the top; `clip` bounds its gradient norm, and `schedule` gives the factor of
            its learning rate by step. `make_optimizer` makes another like it, for methods with a top for each client.
        top_replica: the top's parameters, when they too are moved along seeded directions.
        hidden_shape: the shape that activations must have behind the batch dimension.
        has_texts: the first of these is the number of tokens, which may be smaller, and a mask comes with them.
        losses: training losses since the engine last took them.
        auxiliary: the devices' auxiliary head, to be called with those of the agreed parameters that are its own.
        kept: what an algorithm keeps between two exchanges of one step, by client.
        lasting: what it keeps of each client from round to round, as named tensors: they are in every checkpoint, count
            as the server's, and are replaced, never changed in place.
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
    turns: list[tuple[int, int]] = field(default_factory=list)
    settled: int = 0
    above: dict[int, Above] = field(default_factory=dict)
    groups: dict[int, Sequence[int]] = field(default_factory=dict)
    robust: Robust = Robust()
    rows: dict[int, int] = field(default_factory=dict)
    optimizer: torch.optim.Optimizer | None = None
    clip: float | None = None
    schedule: Schedule = constant
    make_optimizer: Callable[[Sequence[Tensor]], torch.optim.Optimizer] | None = None
    auxiliary: nn.Module | None = None
    top_replica: Replica | None = None
    losses: list[float] = field(default_factory=list)
    kept: dict[int, Any] = field(default_factory=dict)
    lasting: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    head: dict[str, nn.Parameter] | None = None
    boundaries: Sequence[Boundary] = ()
    passes: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def of(self, client: int) -> Above:
        """What takes this client's activations."""
        return self.above.get(client) or Above(self.top, self.hidden_shape)

    def shares(self, clients: Collection[int]) -> list[float] | None:
        """What each of these clients counts in their mean, all together 1; None where they count alike."""
        counts = [self.rows[client] for client in clients] if self.rows else []
        if len(set(counts)) < 2:
            return None
        return [count / sum(counts) for count in counts]

    def begin(self, round: Round) -> None:
        """A round begins, or where clients take turns, the turn of one of them: the engine says so, and which."""
        self.round, self.steps = round, round.first
        row = len(self.history)
        if row and self.steps_of(row, 1) != [round.first]:
            self.turns = [turn for turn in self.turns if turn[0] != row] + [(row, round.first)]

    def steps_of(self, first: int, count: int) -> list[int]:
        """The run's steps of the history's rows `first`, `first` + 1, …."""
        steps = []
        for row in range(first, first + count):
            place = bisect(self.turns, row, key=lambda turn: turn[0])
            begun, step = self.turns[place - 1] if place else (0, 0)
            steps.append(step + row - begun)
        return steps

    def missed(self, position: int) -> Tensor:
        """The history's rows from `position` on, stacked."""
        rows = self.history[position:]
        return torch.stack(rows) if rows else torch.zeros(0, len(self.history[0]) if self.history else 0)

    def catch_up(self) -> None:
        """Brings the server's replica of the bottom up to the history."""
        if self.history:
            first, rows = self.replica.position, self.missed(self.replica.position)
            self.replica.replay(first, rows, self.steps_of(first, len(rows)))

    def settle(self) -> None:
        """Catches up, and forgets the exact gradients: θ has them now, and they would outgrow it."""
        if exact := self.replica.width(0):
            self.catch_up()
            for place in range(self.settled, len(self.history)):
                self.history[place] = self.history[place][:-exact].clone()
            self.settled = len(self.history)
