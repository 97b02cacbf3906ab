"""Who is in a round's cohort."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from halfback.zeroth.directions import seed_for


class Sampler(Protocol):
    """Draws the cohorts of a run: `sampled` of so many `clients`; `seed` is the run's."""

    @property
    def seed(self) -> int: ...
    @property
    def clients(self) -> int: ...
    @property
    def sampled(self) -> int: ...

    def draw(self, round_number: int, probabilities: Sequence[float] | None) -> list[int]:
        """The numbers of a round's clients, in order; by their probabilities to be in it, or with None all alike."""
        ...


@dataclass(frozen=True)
class Sampling:
    """Draws cohorts that are a pure function of the seed and the round."""

    seed: int
    clients: int
    sampled: int

    def draw(self, round_number: int, probabilities: Sequence[float] | None) -> list[int]:
        """As `Sampler.draw`."""
        generator = np.random.Generator(np.random.Philox(key=seed_for(self.seed, "cohort", round_number)))
        if probabilities is not None and len(set(probabilities)) > 1:
            return dependent_rounding(probabilities, generator)
        return sorted(generator.choice(self.clients, self.sampled, replace=False).tolist())


def dependent_rounding(probabilities: Sequence[float], generator: np.random.Generator) -> list[int]:
    """Distinct numbers in order, each drawn with its own probability, and always as many as these add up to.

    Two probabilities at a time are moved, one up and the other down, until one of them is 0 or 1, so that the mean of
    each stays what it was (Gandhi et al., "Dependent rounding and its applications to approximation algorithms",
    J. ACM 53(3), 2006). The sum must be a whole number.
    """
    drawn = []
    open_one, rest = 0, probabilities[0]  # who is neither in nor out yet, and its probability
    for other, its in enumerate(probabilities[1:], 1):
        total = rest + its
        if total < 1:  # one of them is out
            if generator.random() * total >= rest:
                open_one = other
            rest = total
        else:  # one of them is in
            if generator.random() * (2 - total) < 1 - its:
                drawn.append(open_one)
                open_one = other
            else:
                drawn.append(other)
            rest = total - 1
    if rest > 0.5:  # 0 or 1, up to the rounding of the sums
        drawn.append(open_one)
    return sorted(drawn)
