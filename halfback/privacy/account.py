"""What so many releases with Gaussian noise come to: ε at a δ, and the noise for it.

**Adjacency: replace one.** Two data sets are neighbours if one row of one of them (with the unit `client`: all rows of
one client) is another one. How many rows there are, and in which batch each of them is, is the same for both: here it
follows from numbers that everybody knows, so to speak of a row that is added or left out would be to speak of another
schedule. The price is a sensitivity of twice the clip: what takes part is a vector of norm c at most, and two such
vectors are 2c apart at most. Who counts by "zero out" (one row's vector is replaced by zeros: Kairouz et al., arXiv
2103.00039) has a sensitivity of c, so for the same noise an ε that is about half as large, and says less.

**Noise multiplier.** The standard deviation of the noise, over the sensitivity.

**Composition.** n releases of noise multiplier σ, each chosen by what the ones before have said, tell exactly as much
as one release of noise multiplier σ/√n (Dong, Roth, Su, arXiv 1905.02383, corollary 3.3), whose δ(ε) is known in closed
form (Balle and Wang, arXiv 1805.06530, theorem 8). The library `dp-accounting` inverts it. No amplification by sampling
is counted: batches follow from a seed that is no secret.
"""

import math

from halfback.errors import UserError, of_extra


def epsilon(releases: float, noise: float, delta: float) -> float:
    """The ε of so many releases of which one row, or one client, was part.

    Args:
        releases: 0 or more.
        noise: their noise multiplier, more than 0; of releases with several, see `alike`.
        delta: between 0 and 1.

    Returns:
        The smallest ε ≥ 0 so that all of them together are (ε, δ)-differentially private; infinity without noise.

    Raises:
        UserError: `dp-accounting` is not installed, or `delta` is no δ.
    """
    _check("delta", delta, below=1)
    if releases <= 0:
        return 0.0
    if noise <= 0:
        return math.inf
    with of_extra("private"):
        from dp_accounting.gaussian_mechanism import get_epsilon_gaussian
    return float(get_epsilon_gaussian(noise / math.sqrt(releases), delta))


def noise_for(epsilon: float, delta: float, releases: float) -> float:
    """The noise multiplier with which so many releases are (ε, δ)-differentially private.

    Args:
        epsilon: more than 0.
        delta: between 0 and 1.
        releases: of which one row, or one client, is part.

    Returns:
        The smallest one; 0 of no releases.

    Raises:
        UserError: `dp-accounting` is not installed, or ε or δ is none.
    """
    _check("epsilon", epsilon)
    _check("delta", delta, below=1)
    if releases <= 0:
        return 0.0
    with of_extra("private"):
        from dp_accounting.gaussian_mechanism import get_sigma_gaussian
    return float(get_sigma_gaussian(epsilon, delta)) * math.sqrt(releases)


def alike(*parts: tuple[float, float]) -> tuple[float, float]:
    """Releases of several noise multipliers as releases of one.

    Args:
        parts: how many releases there are, and of which noise multiplier.

    Returns:
        The same of releases that together say as much: 1 and its noise multiplier, or 0 where there are none.
    """
    spent = sum(releases / noise**2 if noise > 0 else math.inf for releases, noise in parts if releases > 0)
    return (1.0, 1 / math.sqrt(spent)) if spent else (0.0, math.inf)


def _check(name: str, value: float, *, below: float = math.inf) -> None:
    if not 0 < value < below:
        allowed = "more than 0" if below == math.inf else f"more than 0 and less than {below:g}"
        raise UserError(f"privacy.{name}={value:g}: {allowed} is allowed")
