"""Learning-rate schedules as functions of the step alone, so that whoever replays a step later takes the same rate."""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

Shape = Literal["constant", "linear", "cosine"]


def schedule(shape: Shape, *, warmup: int, total: int) -> Callable[[int], float]:
    """Step from 0 on → factor of the learning rate.

    It rises in a line over the first `warmup` steps, and then stays at 1, or falls to 0 at step `total` in a line or a
    half cosine (Loshchilov and Hutter, arXiv 1608.03983, without restarts).
    """
    return partial(_factor, shape, warmup, total)


def _factor(shape: Shape, warmup: int, total: int, step: int) -> float:
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if shape == "constant":
        return 1.0
    gone = min((step - warmup) / max(total - warmup, 1), 1.0)
    return 1 - gone if shape == "linear" else (1 + math.cos(math.pi * gone)) / 2
