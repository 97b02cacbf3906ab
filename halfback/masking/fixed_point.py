"""Real numbers as whole numbers modulo 2^b, so that what is added up behind masks is exact and cannot wrap.

A value x stands for round(x · scale), to the nearest and of two the even one. The scale is the largest power of two
with which the values of as many clients as a cohort may have, each as large as is allowed, add up to less than half the
modulus. So a sum is never another number modulo 2^b, and its bits do not depend on the order of the clients.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from halfback.errors import Diverged, UserError

Ring = NDArray[Any]
"""Whole numbers modulo 2^32 or 2^64, as uint32 or uint64: NumPy adds and subtracts these without an overflow."""


@dataclass(frozen=True)
class FixedPoint:
    """How values stand for whole numbers.

    Attributes:
        bits: b of the modulus, 32 or 64.
        range: the largest size of a value.
        clients: the most whose values are added up.
    """

    bits: int
    range: float
    clients: int

    @cached_property
    def scale(self) -> float:
        """What a value is multiplied by, a power of two."""
        half = 1 << (self.bits - 1)
        power = math.floor(math.log2(half / (self.clients * self.range)))
        while self.clients * math.ceil(self.range * 2.0**power) >= half:
            power -= 1
        return 2.0**power

    def encode(self, values: Tensor, what: str, share: float = 1.0) -> Ring:
        """The whole numbers of some values, in their order, (n,).

        Args:
            values: floats of any shape.
            what: they are, for a message.
            share: what they count in the sum, up to 1; it multiplies them in float64.

        Raises:
            Diverged: a value is not finite.
            UserError: a value is larger than the range allows. How large it is nobody is told, since the server is.
        """
        exact = values.detach().cpu().double().reshape(-1)
        if not bool(torch.isfinite(exact).all()):
            raise Diverged(what, "are not finite", "lower bottom.lr or top.lr")
        if bool((exact.abs() > self.range).any()):
            raise UserError(f"secure.range={self.range:g}: a value of {what} is larger; set a larger range")
        whole: Ring = torch.round(exact * share * self.scale).to(torch.int64).numpy().view(np.uint64)
        return whole if self.bits == 64 else whole.astype(np.uint32)  # the low half, which is the same number

    def mean(self, total: Ring, count: float) -> Tensor:
        """The mean of the values whose whole numbers add up to `total`, (n,) float64.

        `count`: how many clients they are of, or what the shares of these add up to.
        """
        signed = np.ascontiguousarray(total).view(np.int64 if self.bits == 64 else np.int32)
        return torch.from_numpy(signed.astype(np.float64)) / (count * self.scale)
