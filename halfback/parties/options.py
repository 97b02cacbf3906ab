"""Options of several algorithms that mean nothing, refused before a run begins."""

import math

from halfback.errors import UserError


def check_probes(
    directions: int,
    radius: float | None,
    clip_samples: float | None = None,
    *,
    fewest: int = 1,
    otherwise: str = "",
) -> None:
    """Refuses options of a zeroth-order algorithm that mean nothing.

    `fewest`: directions that it needs; `otherwise`: what to say of how it could do with fewer.

    Raises:
        UserError: names the option and what is allowed.
    """
    if directions < fewest:
        raise UserError(f"algorithm.directions={directions}: {fewest} or more are allowed{otherwise}")
    if radius is not None and not (radius > 0 and math.isfinite(radius)):
        raise UserError(f"algorithm.radius={radius:g}: a positive number is allowed, or null for the measured default")
    if clip_samples is not None and not (clip_samples > 0 and math.isfinite(clip_samples)):
        raise UserError(f"algorithm.clip_samples={clip_samples:g}: a positive number is allowed, or null for no bound")


def check_count(option: str, value: int, *, fewest: int = 1) -> None:
    """Refuses a number of steps, batches or blocks that is too small.

    Raises:
        UserError: names the option and what is allowed.
    """
    if value < fewest:
        raise UserError(f"algorithm.{option}={value}: {fewest} or more are allowed")
