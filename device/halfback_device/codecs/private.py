"""Private activations: a sample's rows clipped together, with Gaussian noise on each value (docs/privacy.md).

Sent of a sample, all its rows as one vector x, is x · min(1, clip ÷ ‖x‖) + σ · 2 · clip · z, z from N(0, I), with the
operating system's random numbers: the server has the recipe's seed. A release counts before it is made, in a file that
no kill takes back.
"""

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np

from halfback_device.codecs.chain import Chain
from halfback_device.codecs.protocol import Parts, Samples, State
from halfback_device.errors import DeviceError, PackageError
from halfback_device.messages import Array

RELEASED = "released.txt"  # in a client's folder of one run
_FRACTION = 2.0**-53
_FINE = 20  # bits of the grid below the noise's standard deviation
_MOST = 1 << 40  # releases of a sample that a budget is looked for in


@dataclass(frozen=True)
class _Options:
    """The options.

    Attributes:
        clip: the largest L2 norm of a sample's values, all its rows as one vector.
        noise: standard deviation in units of 2 · clip, or `epsilon` of one release in its place.
        epsilon: see `noise`.
        delta: of `epsilon` and of the budget.
        budget: the largest ε of a sample over all its releases.
    """

    clip: float
    noise: float | None = None
    epsilon: float | None = None
    delta: float = 1e-5
    budget: float | None = None

    def __post_init__(self) -> None:
        for option, least, most in (
            ("clip", 0.0, 1e30),
            ("noise", 1e-3, 1e6),
            ("epsilon", 1e-3, 1e3),
            ("delta", 0.0, 0.5),
            ("budget", 0.0, 1e30),
        ):
            value = getattr(self, option)
            if value is not None and not (_is_number(value) and least <= value <= most and value > 0):
                raise PackageError(f"codec private: {option}={value!r:.40} is not allowed")
        if (self.noise is None) == (self.epsilon is None):
            raise PackageError("codec private: one of noise and epsilon is needed, and only one")


@final
class Private:
    """Clips one sample and adds noise to it."""

    dtype, extras, by_sample = np.dtype(np.float32), 0, True

    def __init__(self, width: int, before: np.dtype[Any], **options: Any) -> None:
        """`options`: as `_Options` has them."""
        own = _Options(**options)
        self.width = width
        self.noise = noise_for(own.epsilon, own.delta) if own.epsilon is not None else float(own.noise or 0)
        self._clip = float(own.clip)
        self.limit = None if own.budget is None else _limit(self.noise, own.budget, own.delta)
        if self.limit == 0:
            raise PackageError(f"codec private: budget={own.budget!r:.40} is less than one release takes")

    def encode(self, matrix: Array) -> tuple[Array, Parts]:
        """Rows of one sample, with noise; in float64 up to the last rounding."""
        values = matrix.astype(np.float64).ravel()
        norm = float(np.linalg.norm(values))
        if norm > self._clip:
            values *= self._clip / norm
        return noised(values, 2 * self._clip, self.noise).reshape(matrix.shape).astype(np.float32), ()

    def decode(self, payload: Array, extras: Parts) -> Array:
        """As it came."""
        return payload


@final
class Releases:
    """How often values of each sample went out: a line for each message, on the disk before anything is sent."""

    def __init__(self, file: Path | None = None) -> None:
        """`file`: goes on from where it is there; None keeps it in memory."""
        self._file = file
        self._counts: Counter[int] = Counter()
        if file is not None and file.exists():
            data = file.read_bytes()
            whole = data.rfind(b"\n") + 1
            if whole < len(data):  # a kill cut its last line short, before anything of it was sent
                os.truncate(file, whole)
            try:
                self._counts.update(int(word) for line in data[:whole].splitlines() for word in line.split())
            except ValueError:
                raise DeviceError(f"{file}: numbers of samples are allowed") from None

    @property
    def most(self) -> int:
        """Of any one sample."""
        return max(self._counts.values(), default=0)

    def of(self, sample: int) -> int:
        """Of this sample."""
        return self._counts[sample]

    def add(self, samples: Sequence[int]) -> None:
        """Counts each once more, on the disk first; DeviceError where that can't be."""
        if samples and self._file is not None:
            try:
                with self._file.open("a", encoding="ascii") as file:
                    file.write(" ".join(map(str, samples)) + "\n")
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                raise DeviceError(f"{self._file} can't be written: {error.strerror}; nothing was sent") from None
        self._counts.update(samples)


@final
class PrivateSender:
    """The sending end of a chain with `private` in it: counts releases, and sends noise alone beyond the budget."""

    def __init__(self, private: Private, chain: Chain, releases: Releases) -> None:
        self._private, self._chain, self._releases = private, chain, releases

    def is_spent(self, sample: int) -> bool:
        """Whether another release would be beyond the budget."""
        limit = self._private.limit
        return limit is not None and self._releases.of(sample) >= limit

    def encode(self, matrix: Array, samples: Samples) -> Parts:
        """The chain's arrays; each sample counts as released before they are made."""
        whose = samples.whose
        if spent := [self.is_spent(sample) for sample in whose]:
            matrix = np.where(np.repeat(spent, samples.rows)[:, None], np.float32(0), matrix)
        self._releases.add([sample for sample, is_spent in zip(whose, spent, strict=True) if not is_spent])
        return self._chain.encode(matrix, samples.rows)

    def state(self) -> State:
        """Nothing: what was released stays released."""
        return {}, {}

    def load_state(self, arrays: Mapping[str, Array], values: Mapping[str, Any]) -> None:
        """Nothing to load."""


def gaussian(count: int) -> Array:
    """Independent values of N(0, 1) in float64, by Box and Muller (1958), from the operating system's numbers."""
    half = (count + 1) // 2
    words = np.frombuffer(os.urandom(16 * half), dtype=np.uint64).reshape(2, half) >> np.uint64(11)
    radius = np.sqrt(-2.0 * np.log((words[0] + np.uint64(1)) * _FRACTION))
    angle = words[1] * (2.0 * math.pi * _FRACTION)
    found: Array = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]
    return found


def noised(values: Array, sensitivity: float, noise: float) -> Array:
    """Values with noise, both on a grid that follows from the noise alone: so no low bit tells of a value.

    What rounding (n,) values adds to the sensitivity is counted.
    """
    grid = 2.0 ** (math.floor(math.log2(noise * sensitivity)) - _FINE)
    deviation = noise * (sensitivity + grid * math.sqrt(len(values)))
    found: Array = (np.round(values / grid) + np.round(deviation / grid * gaussian(len(values)))) * grid
    return found


def delta_of(epsilon: float, noise: float) -> float:
    """δ of one release at ε, for a noise multiplier (Balle and Wang, arXiv 1805.06530, theorem 8)."""
    half, along = 0.5 / noise, epsilon * noise
    return math.exp(_log_normal(half - along)) - math.exp(min(0.0, epsilon + _log_normal(-half - along)))


def noise_for(epsilon: float, delta: float) -> float:
    """The least noise multiplier with which one release is (ε, δ)-private, up to a part in 10^12 and no less."""
    low, high = 1e-6, 1e7
    while high / low > 1 + 1e-12:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if delta_of(epsilon, middle) <= delta else (middle, high)
    return high


def _limit(noise: float, budget: float, delta: float) -> int:
    """The most releases that a budget has room for; n of them tell as much as one with noise ÷ √n."""
    if delta_of(budget, noise) > delta * (1 + 1e-6):
        return 0
    fits, too_many = 1, 2
    while too_many < _MOST and delta_of(budget, noise / math.sqrt(too_many)) <= delta:
        fits, too_many = too_many, 2 * too_many
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        is_within = delta_of(budget, noise / math.sqrt(middle)) <= delta
        fits, too_many = (middle, too_many) if is_within else (fits, middle)
    return fits


def _log_normal(x: float) -> float:
    """The logarithm of the normal distribution function."""
    if x > -20:
        return math.log(0.5 * math.erfc(-x / math.sqrt(2)))
    series = 1 - x**-2 + 3 * x**-4 - 15 * x**-6 + 105 * x**-8
    return -0.5 * x * x - math.log(-x) - 0.5 * math.log(2 * math.pi) + math.log(series)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
