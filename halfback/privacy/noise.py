"""Gaussian noise, of which nobody can know anything beforehand.

It comes from the operating system and never from a run's seed, which the server and every device have. It is in no
checkpoint and drawn only once.

**Low bits.** A sum of floats has low bits that depend on both terms, so noise that hides a value can leave traces of it
there (Mironov, CCS 2012). Here values are rounded to a grid, a power of two far below the noise, before noise that is
rounded to the same grid is added: what comes out is on the grid whatever the value was, and is the same as if the sum
with exact noise had been rounded, which needs no further account. What rounding adds to the sensitivity is counted. The
noise itself is that of 53-bit uniform numbers, which has no more than 8.6 standard deviations.
"""

import math
import os

import numpy as np

_FINE = 20  # bits of the grid below the noise's standard deviation


def gaussian(count: int) -> np.ndarray:
    """Independent normal numbers, by Box and Muller's transform of the operating system's random bytes.

    Args:
        count: how many.

    Returns:
        (count,) float64, of mean 0 and standard deviation 1.
    """
    pairs = -(-count // 2)
    bits = np.frombuffer(os.urandom(16 * pairs), dtype=np.uint64) >> np.uint64(11)
    uniform = (bits.astype(np.float64) + 1) * 2.0**-53  # in (0, 1]
    radius, angle = np.sqrt(-2 * np.log(uniform[:pairs])), 2 * math.pi * uniform[pairs:]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]


def noised(values: np.ndarray, sensitivity: float, noise: float) -> np.ndarray:
    """Values with noise, on a grid that depends on the noise alone.

    Args:
        values: (n,) float64, finite.
        sensitivity: how far apart they can be for two neighbours, in L2 norm.
        noise: the noise multiplier.

    Returns:
        (n,) float64; the noise of each has a standard deviation of `noise` times the sensitivity of the rounded values.
    """
    grid = 2.0 ** (math.floor(math.log2(noise * sensitivity)) - _FINE)
    deviation = noise * (sensitivity + grid * math.sqrt(len(values)))
    rounded: np.ndarray = np.round(values / grid) + np.round(deviation / grid * gaussian(len(values)))
    return rounded * grid
