"""What clients say of θ, clipped and behind noise, with an account of it: no algorithm knows.

The server's side stands where messages come in, behind lies and secure sums: it writes the release down, and hands the
algorithm each client's message with the cohort's mean and its noise in the place of the client's own values, as a
secure sum does. Who clips is the client: each row's slopes where they are measured, all that a client says of a step
here, on its side.
"""

import math
from collections.abc import Callable, Mapping
from typing import final

import numpy as np
import torch
from torch import Tensor

from halfback.engine.sums import put, said_of
from halfback.errors import BudgetSpent, Diverged, PeerError
from halfback.parties.cohort import Cohort, mean
from halfback.parties.holdings import Round
from halfback.privacy.noise import noised
from halfback.privacy.rules import PrivacyRules, rows_of_batch
from halfback.privacy.spending import Part, Spending
from halfback.wire.messages import Exact, Message, kinds_of, name_of, parts_of


@final
class Private:
    """The server's side: the account, and central noise.

    Attributes:
        rules: what a message may hold, and the noise.
        spent: the releases so far.
        rows: the training rows of each client, by its number.
    """

    def __init__(self, rules: PrivacyRules, rows: Mapping[int, int], enough: Callable[[int], str | None]) -> None:
        """`enough`: why a row or a client may not be part of so many releases; None where it may."""
        self.rules = rules
        self.spent = Spending(rules.unit, rules.size)
        self.rows = dict(rows)
        self._enough = enough
        self._next: dict[int, int] = {}
        self._counts: dict[int, float] = {}  # of the clients of the release that was written down
        self._largest = math.inf  # share of one of them

    def begin(self, round: Round, cursors: Mapping[int, int]) -> None:
        """A round begins of these clients, by the number of each one's next batch.

        Raises:
            BudgetSpent: with it, more would be released than the budget allows; nothing has moved yet.
        """
        planned = {client: Part(first, round.steps, self.rows[client]) for client, first in cursors.items()}
        if (why := self._enough(self.spent.most_with(planned))) is not None:
            raise BudgetSpent(why)
        self._next = dict(cursors)

    def spend(self, messages: Mapping[int, Message], cohort: Cohort) -> None:
        """Writes down that the mean of these messages is about to be released.

        Raises:
            PeerError: one is of another size than the others.
        """
        steps = _steps(next(iter(messages.values())), self.rules)
        most = max(_count(message) for message in messages.values())
        for client, message in messages.items():
            if (count := _count(message)) != most or count % steps:
                field, allowed = (
                    name_of(kinds_of(message)),
                    "as many as of the others, and of a whole step, are allowed",
                )
                raise PeerError(field, f"{count} values", allowed, sender=client)
        shares = cohort.shares(messages) or [1 / len(messages)] * len(messages)
        self._largest, self._counts = max(shares), {}
        parts = {client: Part(self._next[client], steps, self.rows[client]) for client in messages}
        for client, part in parts.items():
            self._next[client] += steps
            there = rows_of_batch(part.first, part.rows, self.rules.size)
            self._counts[client] = 1.0 if self.rules.masked else self.rules.counts(there)
        self.spent.add(parts)

    def noisy(self, messages: Mapping[int, Message], cohort: Cohort) -> Mapping[int, Message]:
        """The messages that were written down, each with the mean and its noise; as they are where clients add it.

        Raises:
            Diverged: a value is not finite.
        """
        if self.rules.sharers is not None:
            return messages
        said = {client: _flat(message) * self._counts[client] for client, message in messages.items()}
        if wrong := [client for client, values in said.items() if not bool(values.isfinite().all())]:
            raise Diverged("slopes", "are not finite", "lower bottom.lr or top.lr", sender=wrong[0])
        agreed = mean(torch.stack(list(said.values())), cohort.shares(messages))
        # Of several steps at once each is a release of its own, with the noise of one.
        steps = _steps(next(iter(messages.values())), self.rules)
        pieces = agreed.numpy().reshape(steps, -1)
        sensitivity = self._largest * self.rules.sensitivity
        noisy = np.concatenate([noised(piece, sensitivity, self.rules.noise) for piece in pieces])
        return {client: put(message, torch.from_numpy(noisy)) for client, message in messages.items()}


@final
class Hiding:
    """A client's side: what it says of a step is clipped, and has its share of the noise where clients add it.

    Behind masks nobody else knows which batch its values are of, so it also has them count by their rows.
    """

    def __init__(self, rules: PrivacyRules) -> None:
        self._rules = rules

    def hidden(self, message: Message, batch: int, rows: int) -> tuple[Message, int]:
        """A message that says something of θ, as it may be said, and the batch that the next such one is of.

        Args:
            message: the client's own.
            batch: the number of the first batch that it is of.
            rows: that the client has.

        Raises:
            Diverged: a value is not finite.
        """
        rules, steps = self._rules, _steps(message, self._rules)
        there = rows_of_batch(batch, rows, rules.size)
        values = _flat(message)
        if not bool(values.isfinite().all()):
            raise Diverged("slopes", "are not finite", "lower bottom.lr or top.lr")
        pieces = []
        for piece in values.numpy().reshape(steps, -1):
            if rules.unit == "client":
                piece = piece * min(1.0, rules.bound / max(float(np.linalg.norm(piece)), 1e-300))
            else:
                piece = piece * rules.counts(there)
            if rules.sharers is not None:
                piece = noised(piece, rules.sensitivity, rules.noise / math.sqrt(rules.sharers))
            pieces.append(piece)
        return put(message, torch.from_numpy(np.concatenate(pieces))), batch + steps


def _flat(message: Message) -> Tensor:
    """(n,) float64 on the CPU: what a message says of θ."""
    return torch.cat([each.detach().reshape(-1).double().cpu() for part in parts_of(message) for each in said_of(part)])


def _count(message: Message) -> int:
    return sum(each.numel() for part in parts_of(message) for each in said_of(part))


def _steps(message: Message, rules: PrivacyRules) -> int:
    """Of how many steps a message's values are; exact gradients are of one."""
    if any(isinstance(part, Exact) for part in parts_of(message)):
        return 1
    return max(_count(message) // rules.directions, 1)
