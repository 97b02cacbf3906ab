"""Who is in a cohort, where clients are not drawn alike."""

from collections.abc import Sequence

import numpy as np


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
