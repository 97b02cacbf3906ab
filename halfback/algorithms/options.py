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


def check_sharing(directions_per: str, estimator: str, exact_blocks: int) -> None:
    """Refuses what can't be had together, or means nothing.

    Raises:
        UserError: names the option and what is allowed.
    """
    if exact_blocks < 0:
        raise UserError(f"algorithm.exact_blocks={exact_blocks}: 0 or more are allowed")
    if directions_per == "sample" and estimator == "forward_ad":
        raise UserError(
            "algorithm.estimator=forward_ad: with algorithm.directions_per=sample, forward and central are allowed"
        )


def check_rise(directions: int, steps: int) -> None:
    """Refuses a rise of nothing.

    Raises:
        UserError: names the option and what is allowed.
    """
    if steps < 0 or (steps and directions < 2):
        allowed = "0 or more" if directions > 1 else f"0, with algorithm.directions={directions},"
        raise UserError(f"algorithm.directions_rise={steps}: {allowed} is allowed")


def risen(directions: int, steps: int, step: int) -> int:
    """Directions that are measured in a step, if their number rises over `steps` of them."""
    return directions if step >= steps else -(-directions * (step + 1) // steps)


def check_count(option: str, value: int) -> None:
    """Refuses a number of steps or batches below one.

    Raises:
        UserError: names the option and what is allowed.
    """
    if value < 1:
        raise UserError(f"algorithm.{option}={value}: 1 or more are allowed")
