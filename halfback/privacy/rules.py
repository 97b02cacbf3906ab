"""How large what a row or a client says of θ may be, and how much noise that takes."""

from dataclasses import dataclass

from halfback.privacy.settings import Unit

_ROUNDING = 2.0**-22  # of a mean that is said in float32, beside the bound of its values


@dataclass(frozen=True)
class PrivacyRules:
    """What both sides of a private run know before it begins.

    Attributes:
        unit: whose presence is hidden.
        bound: the largest L2 norm of what a row, or a client, says in one step: c·√P of slopes that are each bounded by
            c, or `privacy.clip`.
        noise: the noise multiplier.
        size: rows of a batch, in the recipe.
        directions: P.
        masked: the server hears sums of clients alone.
        sharers: where clients add the noise, how many of them must stay at least, so that shares of so many are enough;
            None where the server adds it.
    """

    unit: Unit
    bound: float
    noise: float
    size: int
    directions: int
    masked: bool = False
    sharers: int | None = None

    @property
    def sensitivity(self) -> float:
        """How far apart a client's values can be with one row (all rows) and with another in its place, in L2 norm."""
        return 2 * self.bound * (1 / (self.size if self.unit == "sample" else 1) + _ROUNDING)

    def counts(self, rows: int) -> float:
        """What a client's values are multiplied by, of a batch with so many rows.

        They are a mean over these. Each row counts as in a batch of full size, or noise would have to be as large as
        the smallest batch needs.
        """
        return rows / self.size if self.unit == "sample" else 1.0


def rows_of_batch(number: int, rows: int, size: int) -> int:
    """How many rows a batch has: a client's epoch is cut into batches of `size`, and the last may be smaller.

    Args:
        number: of the batch, from 0 over all epochs.
        rows: of the client.
        size: of a batch.
    """
    place = number % batches_of_epoch(rows, size)
    return min(size, rows - place * size)


def batches_of_epoch(rows: int, size: int) -> int:
    """Batches in which each row of a client is once."""
    return -(-rows // size)
