"""What a recipe says of sums of which nobody learns more."""

from dataclasses import dataclass
from typing import Literal

from halfback.errors import UserError

_LARGEST = float(1 << 20)


@dataclass(frozen=True)
class Secure:
    """Whether the server learns of what clients say of θ the cohort's sum alone; see docs/privacy.md.

    Attributes:
        sum: slopes, exact gradients and weights go up behind masks that fall away in the sum; needs `halfback[secure]`.
        threshold: clients of a cohort that have to stay for a sum, more than half of it; fewer learn nothing of one
            another's secrets. Null: two thirds, and 3 or more.
        bits: of the whole numbers that values are sent as; 32 halve the bytes and leave fewer digits behind the point.
        range: largest size of a value; a larger one is an error of the client that has it.
    """

    sum: bool = False
    threshold: int | None = None
    bits: Literal[32, 64] = 64
    range: float = 1024.0

    def __post_init__(self) -> None:
        if self.threshold is not None and self.threshold < 2:
            raise UserError(f"secure.threshold={self.threshold}: 2 or more are allowed, or null")
        if not 0 < self.range <= _LARGEST:
            raise UserError(f"secure.range={self.range:g}: more than 0 and at most {_LARGEST:.0f} is allowed")

    def threshold_of(self, cohort: int) -> int:
        """Clients that have to stay, of a cohort of so many."""
        return max(-(-2 * cohort // 3), 3) if self.threshold is None else self.threshold
