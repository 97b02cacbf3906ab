"""What a recipe says of noise on what clients say of θ."""

import math
from dataclasses import dataclass
from typing import Literal

from halfback.errors import UserError

Unit = Literal["sample", "client"]


@dataclass(frozen=True)
class Privacy:
    """Clipped slopes and Gaussian noise on their mean, with a stated (ε, δ); see docs/privacy.md.

    Attributes:
        unit: whose presence the noise hides: one row's (`sample`, clipped by `algorithm.clip_samples`), or all rows of
            one client (`client`, clipped by `privacy.clip`); null for no noise.
        noise: the noise multiplier: standard deviation of the noise over the sensitivity; instead of `epsilon`.
        epsilon: from which the noise follows for the steps that are planned, with `halfback[private]`; a run whose ε
            would become larger ends.
        delta: at which ε is counted.
        clip: for `client`, the largest L2 norm of what a client says of θ in a step.
        where: `central`: the server adds the noise, and is trusted to; `distributed`: each client adds a share of it
            before its values go behind masks, so with `secure.sum`.
    """

    unit: Unit | None = None
    noise: float | None = None
    epsilon: float | None = None
    delta: float = 1e-5
    clip: float | None = None
    where: Literal["central", "distributed"] = "central"

    def __post_init__(self) -> None:
        for name in ("noise", "epsilon", "clip"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise UserError(f"privacy.{name}={value:g}: a positive number is allowed, or null")
        if not 0 < self.delta < 1:
            raise UserError(f"privacy.delta={self.delta:g}: more than 0 and less than 1 is allowed")
