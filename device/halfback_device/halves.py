"""bfloat16, which NumPy has not: as uint16, the upper half of a float32's bits."""

import numpy as np

from halfback_device.messages import Array


def to_bfloat16(values: Array) -> Array:
    """Rounds float32 to the nearest bfloat16, of two alike to the one whose last bit is 0: uint16. No NaN may come."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + ((bits >> np.uint32(16)) & np.uint32(1)) + np.uint32(0x7FFF)) >> np.uint32(16)).astype(np.uint16)


def from_bfloat16(bits: Array) -> Array:
    """The float32 values of these bits."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def widened(values: Array) -> Array:
    """Floats of any width, bfloat16 among them, as float32."""
    return from_bfloat16(values) if values.dtype == np.uint16 else values.astype(np.float32, copy=False)
