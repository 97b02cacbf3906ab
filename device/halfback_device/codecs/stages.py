"""Fewer bits a value: `cast` to half precision, `int8` and `int4` with a scale a row, `sign` with a mean a row."""

from typing import Any, Literal, final

import numpy as np

from halfback_device.codecs.protocol import Parts, expect
from halfback_device.errors import PackageError, PeerError
from halfback_device.halves import to_bfloat16, widened
from halfback_device.messages import Array

_LARGEST = {"float16": np.float32(65504.0), "bfloat16": np.uint32(0x7F7F0000).view(np.float32)}


@final
class Cast:
    """Values in half precision."""

    extras = 0

    def __init__(self, width: int, before: np.dtype[Any], dtype: Literal["float16", "bfloat16"] = "bfloat16") -> None:
        """`before`: the dtype of the values that come."""
        if dtype not in _LARGEST:
            raise PackageError(f"codec cast to {dtype}: {' and '.join(_LARGEST)} are allowed")
        if before != np.float32:
            raise PackageError(f"codec cast to {dtype}: the values are of half precision already; leave it away")
        self.width, self._name = width, dtype
        self.dtype = np.dtype(np.uint16 if dtype == "bfloat16" else np.float16)

    def encode(self, matrix: Array) -> tuple[Array, Parts]:
        """Rounds to the nearest; float16 ends at 65,504, and an infinity would stop the run."""
        largest = _LARGEST[self._name]
        bounded = np.clip(matrix, -largest, largest)
        return to_bfloat16(bounded) if self.dtype == np.uint16 else bounded.astype(np.float16), ()

    def decode(self, payload: Array, extras: Parts) -> Array:
        """The values in float32."""
        return widened(payload)


@final
class Int8:
    """Eight bits a value, symmetric, with one float32 scale a row: max |x| ÷ 127."""

    dtype, extras = np.dtype(np.int8), 1

    def __init__(self, width: int, before: np.dtype[Any]) -> None:
        self.width = width

    def encode(self, matrix: Array) -> tuple[Array, Parts]:
        """Whole numbers from -127 to 127, and scales (rows, 1)."""
        return quantised(matrix, 127)

    def decode(self, payload: Array, extras: Parts) -> Array:
        """Number times scale."""
        return payload.astype(np.float32) * _checked_scale(extras[0], len(payload))


@final
class Int4:
    """Four bits a value, symmetric, with one float32 scale a row: max |x| ÷ 7; the low half of a byte comes first."""

    dtype, extras = np.dtype(np.uint8), 1

    def __init__(self, width: int, before: np.dtype[Any]) -> None:
        self._columns = width
        self.width = (width + 1) // 2  # an odd row ends with half a byte unused

    def encode(self, matrix: Array) -> tuple[Array, Parts]:
        """Bytes (rows, half the columns), and scales (rows, 1)."""
        values, scale = quantised(matrix, 7)
        nibbles = np.zeros((len(values), 2 * self.width), dtype=np.uint8)
        nibbles[:, : self._columns] = values.view(np.uint8) & 15
        return nibbles[:, 0::2] | nibbles[:, 1::2] << 4, scale

    def decode(self, payload: Array, extras: Parts) -> Array:
        """Number times scale."""
        nibbles = np.stack((payload & 15, payload >> 4), axis=-1).reshape(len(payload), -1)[:, : self._columns]
        values = nibbles.astype(np.int8)
        return (values - 16 * (values > 7)).astype(np.float32) * _checked_scale(extras[0], len(payload))


@final
class Sign:
    """One bit a value, set where it is negative, with one float32 a row: the mean of |x|."""

    dtype, extras = np.dtype(np.uint8), 1

    def __init__(self, width: int, before: np.dtype[Any]) -> None:
        self._columns = width
        self.width = -(-width // 8)

    def encode(self, matrix: Array) -> tuple[Array, Parts]:
        """Bytes (rows, columns / 8), the lowest bit first, and means (rows, 1)."""
        matrix = widened(matrix)
        return np.packbits(matrix < 0, axis=1, bitorder="little"), (_mean_size(matrix),)

    def decode(self, payload: Array, extras: Parts) -> Array:
        """The mean, with each value's sign."""
        mean = _checked_scale(extras[0], len(payload))
        negative = np.unpackbits(payload, axis=1, count=self._columns, bitorder="little").astype(np.bool_)
        return np.where(negative, -mean, mean)


def _mean_size(matrix: Array) -> Array:
    """Mean of |x| over each row, (rows, 1) float32.

    Summed in float64 by halves (x_i + x_{i + n/2}, again and again; zeros behind it up to a power of two), so that it
    has the same bits everywhere.
    """
    columns = matrix.shape[1]
    sums = np.zeros((len(matrix), 1 << (columns - 1).bit_length()))
    np.abs(matrix, out=sums[:, :columns])
    while sums.shape[1] > 1:
        half = sums.shape[1] // 2
        sums = sums[:, :half] + sums[:, half:]
    mean: Array = sums / columns
    return mean.astype(np.float32)


def quantised(matrix: Array, largest: int) -> tuple[Array, Parts]:
    """Whole numbers up to `largest` as int8, and the scale of each row (rows, 1); halves are rounded to even."""
    matrix = widened(matrix)
    scale = np.abs(matrix).max(axis=1, keepdims=True, initial=0) / np.float32(largest)
    # A row of zeros has the scale 0; what it is divided by does not matter then.
    values = np.rint(matrix / np.where(scale > 0, scale, np.float32(1)))
    return np.clip(values, -largest, largest).astype(np.int8), (scale,)


def _checked_scale(scale: Array, rows: int) -> Array:
    expect("codec: scale", scale, np.float32, rows, 1)
    if not bool(((scale >= 0) & np.isfinite(scale)).all()):
        raise PeerError("codec: scale", "a negative or infinite value", "finite values from 0 are allowed")
    return scale
