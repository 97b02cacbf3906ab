"""Gaussian noise from the operating system's random numbers, of which nobody learns the next from the last.

A seeded generator won't do: whoever has the recipe has the seed, and of PyTorch's and NumPy's generators a few hundred
outputs tell all others.
"""

import math
import os

import numpy as np
import torch
from torch import Tensor

_FRACTION = 2.0**-53


def gaussian(shape: tuple[int, ...]) -> Tensor:
    """Independent values of N(0, 1) in float64, by Box and Muller (1958) from 53 bits each; none is beyond 8.6."""
    count = math.prod(shape)
    half = (count + 1) // 2
    words = np.frombuffer(os.urandom(16 * half), dtype=np.uint64).reshape(2, half) >> np.uint64(11)
    radius = np.sqrt(-2.0 * np.log((words[0] + np.uint64(1)) * _FRACTION))  # of (0, 1]
    angle = words[1] * (2.0 * math.pi * _FRACTION)
    both = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    return torch.from_numpy(both[:count].reshape(shape))
