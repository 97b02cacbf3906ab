"""Fewer bits a value: `cast` to half precision, `int8` and `int4` with a scale a row, `sign` with a size a row."""

from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from halfback.codecs.protocol import Parts, Stage, expect
from halfback.errors import PeerError, UserError


@dataclass(frozen=True)
class Cast:
    """Values in half precision.

    Attributes:
        dtype: `bfloat16` keeps the range of float32, `float16` has more digits.
    """

    dtype: Literal["bfloat16", "float16"] = "bfloat16"

    def bind(self, width: int, dtype: torch.dtype) -> Stage:
        """The stage for payloads of this width and dtype."""
        to = getattr(torch, self.dtype)
        if dtype.itemsize <= to.itemsize:
            raise UserError(f"codec cast to {self.dtype}: the values are {str(dtype)[6:]} already; leave it away")
        return _Cast(width, to)


@dataclass(frozen=True)
class Int8:
    """Eight bits a value, symmetric, with one float32 scale a row: max |x| ÷ 127."""

    def bind(self, width: int, dtype: torch.dtype) -> Stage:
        """The stage for payloads of this width and dtype."""
        return _Int8(width)


@dataclass(frozen=True)
class Int4:
    """Four bits a value, symmetric, with one float32 scale a row: max |x| ÷ 7."""

    def bind(self, width: int, dtype: torch.dtype) -> Stage:
        """The stage for payloads of this width and dtype."""
        return _Int4(width)


@dataclass(frozen=True)
class Sign:
    """One bit a value, and one float32 a row: the mean size of its values (Bernstein et al. 2018; Seide et al. 2014).

    Attributes:
        feedback: keep what was lost, and add it the next time; without it, what is sent stays off by as much as the
            values of a row differ in size (Karimireddy et al., arXiv 1901.09847).
    """

    feedback: bool = True

    def bind(self, width: int, dtype: torch.dtype) -> Stage:
        """The stage for payloads of this width and dtype."""
        return _Sign(width)


@final
class _Cast:
    extras = 0

    def __init__(self, width: int, dtype: torch.dtype) -> None:
        self.width, self.dtype = width, dtype

    def encode(self, matrix: Tensor) -> tuple[Tensor, Parts]:
        largest = torch.finfo(self.dtype).max  # float16 ends at 65,504: an infinity would stop the run
        return matrix.clamp(-largest, largest).to(self.dtype), ()

    def decode(self, payload: Tensor, extras: Parts) -> Tensor:
        return payload.float()


@final
class _Int8:
    dtype, extras = torch.int8, 1

    def __init__(self, width: int) -> None:
        self.width = width

    def encode(self, matrix: Tensor) -> tuple[Tensor, Parts]:
        return quantised(matrix, 127)

    def decode(self, payload: Tensor, extras: Parts) -> Tensor:
        return payload.float() * _checked_scale(extras[0], len(payload))


@final
class _Int4:
    dtype, extras = torch.uint8, 1

    def __init__(self, width: int) -> None:
        self.columns = width
        self.width = (width + 1) // 2  # two values a byte; an odd row ends with half a byte unused

    def encode(self, matrix: Tensor) -> tuple[Tensor, Parts]:
        values, scale = quantised(matrix, 7)
        nibbles = torch.nn.functional.pad(values, (0, self.columns % 2)).to(torch.uint8) & 15
        return nibbles[:, 0::2] | nibbles[:, 1::2] << 4, scale

    def decode(self, payload: Tensor, extras: Parts) -> Tensor:
        nibbles = torch.stack((payload & 15, payload >> 4), dim=-1).flatten(1)[:, : self.columns].to(torch.int8)
        values = torch.where(nibbles > 7, nibbles - 16, nibbles)
        return values.float() * _checked_scale(extras[0], len(payload))


@final
class _Sign:
    dtype, extras = torch.uint8, 1

    def __init__(self, width: int) -> None:
        self.columns = width
        self.width = -(-width // 8)  # eight values a byte; what is left of the last byte is not used
        self._places = torch.arange(8, dtype=torch.uint8)

    def encode(self, matrix: Tensor) -> tuple[Tensor, Parts]:
        matrix = matrix.float()
        bits = torch.nn.functional.pad((matrix < 0).to(torch.uint8), (0, -self.columns % 8)).unflatten(1, (-1, 8))
        payload = (bits << self._places.to(bits.device)).sum(dim=2, dtype=torch.uint8)
        return payload, (_mean_size(matrix),)

    def decode(self, payload: Tensor, extras: Parts) -> Tensor:
        size = _checked_scale(extras[0], len(payload))
        bits = (payload.unsqueeze(2) >> self._places.to(payload.device) & 1).flatten(1)[:, : self.columns]
        return torch.where(bits.bool(), -size, size)


def _mean_size(matrix: Tensor) -> Tensor:
    """Mean of |x| over each row, (rows, 1) float32.

    Summed in float64 by halves (x_i + x_{i + n/2}, again and again; zeros behind it up to a power of two), so that it
    is the same on every device and in every implementation; a few rows at a time, as a device has no memory for more.
    """
    columns, sizes = matrix.shape[1], []
    for rows in matrix.split(256):
        sums = torch.nn.functional.pad(rows.abs().double(), (0, (1 << (columns - 1).bit_length()) - columns))
        while sums.shape[1] > 1:
            half = sums.shape[1] // 2
            sums = sums[:, :half] + sums[:, half:]
        sizes.append((sums / columns).float())
    return torch.cat(sizes)


def quantised(matrix: Tensor, largest: int) -> tuple[Tensor, Parts]:
    """Whole numbers up to `largest` as int8, and the scale of each row (rows, 1)."""
    matrix = matrix.float()
    scale = matrix.abs().amax(dim=1, keepdim=True) / largest
    # A row of zeros has the scale 0; what it is divided by does not matter then.
    values = (matrix / torch.where(scale > 0, scale, 1)).round_().clamp_(-largest, largest)
    return values.to(torch.int8), (scale,)


def _checked_scale(scale: Tensor, rows: int) -> Tensor:
    expect("codec: scale", scale, torch.float32, rows, 1)
    if not bool(((scale >= 0) & torch.isfinite(scale)).all()):
        raise PeerError("codec: scale", "a negative or infinite value", "finite values from 0 are allowed")
    return scale
