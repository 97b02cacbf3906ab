"""What a method gains over the two fences, paired by seed, and the part of the gap between them that it recovers.

The *gap* is first order − frozen bottom. A part of it is a ratio of two noisy numbers, so it is given only where the
gap is *established*: first order ends better, with three seeds or more, and the 95 % interval of its mean by Student's
t excludes 0. That is beyond 4.3 standard errors with three seeds, 2.8 with five. The part is a ratio of means, with the
percentile interval of a bootstrap over seeds. With three seeds that interval runs from the least to the largest seed's
own ratio, and promises less than 95 %: were the three drawn around the true one as their median, it would lie outside
in one of four cases.
"""

import itertools
import math
import statistics
from collections.abc import Mapping
from typing import Any

import numpy as np

from halfback.report.tables import NOTHING

CONFIDENCE = 0.95
FEWEST = 3  # seeds; two have but three different resamples
RESAMPLES = 10_000  # or all of them, where there are no more: up to five seeds
BySeed = Mapping[int, float]
Difference = dict[str, Any]


def difference(mine: BySeed, theirs: BySeed) -> Difference | None:
    """Mean and standard error of `mine` − `theirs` over the seeds that both have, and what it is on each.

    None without such a seed; the standard error of one is None.
    """
    by_seed = {seed: value - theirs[seed] for seed, value in mine.items() if seed in theirs}
    if not by_seed:
        return None
    values = list(by_seed.values())
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    named = {str(seed): value for seed, value in by_seed.items()}
    return {"mean": statistics.fmean(values), "se": error, "by_seed": named}


def recovered(mine: BySeed, frozen: BySeed, first: BySeed, *, rises: bool) -> dict[str, Any] | None:
    """The part of the gap between `frozen` and `first` that `mine` recovers, over the seeds that all three have.

    `rises`: a higher metric is better.

    Returns the `gap` as a difference, `established`, and where it is that the `ratio` with its interval from `low` to
    `high` and the number of `resamples`, else None for each. None without such a seed.
    """
    seeds = [seed for seed in mine if seed in frozen and seed in first]
    gap = difference({seed: first[seed] for seed in seeds}, frozen)
    if gap is None:
        return None
    found = {"gap": gap, "established": False, "ratio": None, "low": None, "high": None, "resamples": None}
    if not excludes_zero(gap) or (gap["mean"] > 0) != rises:
        return found
    ours = np.array([mine[seed] - frozen[seed] for seed in seeds])
    gaps = np.array(list(gap["by_seed"].values()))
    drawn = _resamples(len(seeds))
    gained, wide = ours[drawn].mean(axis=1), gaps[drawn].mean(axis=1)
    if not bool((wide * gap["mean"] > 0).all()):  # a resample without this gap: no ratio that means the same
        return found
    tail = (1 - CONFIDENCE) / 2
    # Outwards to a resample's own value, so that few of them make the interval no narrower.
    low = np.quantile(gained / wide, tail, method="lower")
    high = np.quantile(gained / wide, 1 - tail, method="higher")
    ratio = statistics.fmean(ours.tolist()) / gap["mean"]
    interval = {"low": float(low), "high": float(high), "resamples": len(drawn)}
    return found | {"established": True, "ratio": ratio, **interval}


def excludes_zero(found: Difference) -> bool:
    """Whether a difference is one: of three seeds or more, with 0 outside of its 95 % interval by Student's t."""
    seeds = len(found["by_seed"])
    if seeds < FEWEST or found["mean"] == 0:
        return False
    return found["se"] == 0 or within(abs(found["mean"]) / found["se"], seeds - 1) > CONFIDENCE


def within(t: float, freedom: int) -> float:
    """The probability that Student's t lies between −t and t ≥ 0, for whole degrees of freedom ≥ 1.

    The finite sums of Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4.
    """
    angle = math.atan(t / math.sqrt(freedom))
    term = math.cos(angle) if freedom % 2 else 1.0
    total = 0.0
    for place in range(1 + freedom % 2, freedom, 2):
        total += term
        term *= math.cos(angle) ** 2 * place / (place + 1)
    return 2 / math.pi * (angle + math.sin(angle) * total) if freedom % 2 else math.sin(angle) * total


def _resamples(seeds: int) -> np.ndarray:
    """(resamples, `seeds`) places to draw: every way there is, or `RESAMPLES` at random, always the same."""
    if seeds**seeds <= RESAMPLES:
        return np.array([*itertools.product(range(seeds), repeat=seeds)])
    return np.random.default_rng(0).integers(seeds, size=(RESAMPLES, seeds))


def said_difference(found: Difference | None, form: str) -> str:
    """`+1.80 ± 0.29`: signed mean and standard error, in a number's format."""
    if found is None:
        return NOTHING
    return f"{found['mean']:+{form}}" + ("" if found["se"] is None else f" ± {found['se']:{form}}")


def said_recovered(found: Mapping[str, Any] | None) -> str:
    """`0.47 (0.41 to 0.60)`, or that there is no gap to recover."""
    if found is None:
        return NOTHING
    if not found["established"]:
        return "no gap to recover"
    return f"{found['ratio']:.2f} ({found['low']:.2f} to {found['high']:.2f})"
