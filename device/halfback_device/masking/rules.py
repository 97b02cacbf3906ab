"""What everybody in a secure sum knows before it begins, and real numbers as whole ones modulo 2^b."""

import hashlib
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from halfback_device.errors import DeviceError, Diverged
from halfback_device.messages import Array, Exact, Message, Slopes, parts_of

SECRET = 16
"""Bytes of a secret, and of a share of it."""
PUBLIC = 32
"""Bytes of a public key, and of a commitment."""
KEYS = 3 * PUBLIC
"""Bytes of what a client says first."""
ROWS = 8
"""Bytes behind a client's keys, where clients count by their rows, that say how many all of them have."""


def is_summed(message: Message) -> bool:
    """Whether a device says something of θ with it."""
    return any(isinstance(part, Slopes | Exact) for part in parts_of(message))


@dataclass(frozen=True)
class SumRules:
    """How a cohort adds up.

    Attributes:
        threshold: clients whose shares tell a secret, and the fewest whose values are added up.
        bits: b of the modulus 2^b, 32 or 64. range: the largest size of a value.
        most: clients of a cohort.
        by_rows: a client counts by its training rows.
    """

    threshold: int
    bits: int
    range: float
    most: int
    by_rows: bool

    @property
    def told(self) -> int:
        """Bytes of what a client is told of each at first."""
        return KEYS + (ROWS if self.by_rows else 0)

    @cached_property
    def scale(self) -> float:
        """What a value is multiplied by: the largest power of two with which no sum of a cohort wraps."""
        half = 1 << (self.bits - 1)
        power = math.floor(math.log2(half / (self.most * self.range)))
        while self.most * math.ceil(self.range * 2.0**power) >= half:
            power -= 1
        return 2.0**power

    def encode(self, values: Array, what: str, share: float = 1.0) -> Array:
        """The whole numbers of some values in their order, as uint32 or uint64: NumPy adds these modulo 2^b.

        `share`: what they count; it multiplies them in float64.

        Raises:
            Diverged: a value is not finite.
            DeviceError: one is larger than the range allows. How large it is stays on this device.
        """
        exact = values.astype(np.float64).reshape(-1)
        if not bool(np.isfinite(exact).all()):
            raise Diverged(what, "are not finite", "lower bottom.lr or top.lr")
        if bool((np.abs(exact) > self.range).any()):
            raise DeviceError(f"secure.range={self.range:g}: a value of {what} is larger; set a larger range")
        whole = np.rint(exact * share * self.scale).astype(np.int64).view(np.uint64)
        return whole if self.bits == 64 else whole.astype(np.uint32)  # the low half, which is the same number

    def transcript(self, roster: Mapping[int, bytes]) -> bytes:
        """The digest of who takes part with which keys; every key of a sum is bound to it."""
        digest = hashlib.sha256(struct.pack("<QQ", self.threshold, self.bits))
        for client, told in sorted(roster.items()):
            digest.update(struct.pack("<qQ", client, len(told)) + told)
        return digest.digest()
