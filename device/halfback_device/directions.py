"""Random directions from a counter-based generator, the same bits as everywhere (docs/protocol.md).

Philox4x32-10 of Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011). Value i of a parameter's
direction is a function of (seed, name, i) alone, so how values are grouped here is nobody else's business: small
parameters share a pack, because a call of NumPy costs as much for one value as for thousands, and large ones are cut in
pieces, which bounds the scratch memory to about a megabyte.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np

from halfback_device.messages import Array
from halfback_device.seeds import Law, Seeds, name_number

_WORD = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
# The multipliers of words 0 and 2, and what is added to the key behind each round.
_MULTIPLIERS = np.array([[[0xD2511F53]], [[0xCD9E8D57]]], dtype=np.uint64)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
VALUES_PER_BLOCK = {"rademacher": 128, "gaussian": 8}
ALIGNMENT = 128
PACK_WIDTH = 1 << 16  # values: a pack's directions, gradient, values and moments take a quarter of a megabyte each
_BLOCKS_AT_ONCE = 1 << 13  # four arrays of two words of 64 bits for each: half a megabyte


def philox(counters: Array, seeds: Sequence[int]) -> Array:
    """Philox4x32-10: four 32-bit words a counter and seed.

    Args:
        counters: (4, n) uint32.
        seeds: the keys, low word first.

    Returns:
        (seeds, n, 4) uint32.
    """
    many, count = len(seeds), counters.shape[1]
    keys = [[seed & 0xFFFFFFFF for seed in seeds], [seed >> 32 for seed in seeds]]
    # Words 0 and 2 are multiplied, words 1 and 3 are not; both pairs go through a round together, in which word 1
    # meets the product of word 2 and word 3 that of word 0.
    even, odd = (np.repeat(counters[at::2, None].astype(np.uint64), many, axis=1) for at in (0, 1))
    product, high = np.empty_like(even), np.empty_like(even)
    for turn in range(_ROUNDS):
        key = np.array(
            [[(word + turn * weyl) & 0xFFFFFFFF for word in words] for words, weyl in zip(keys, _WEYL, strict=True)],
            dtype=np.uint64,
        )[:, :, None]
        np.multiply(even, _MULTIPLIERS, out=product)  # below 2^64, so both halves are exact
        np.right_shift(product[::-1], _HALF, out=high)
        np.bitwise_xor(high, odd, out=even)
        np.bitwise_xor(even, key, out=even)
        np.bitwise_and(product[::-1], _WORD, out=odd)
    words = np.empty((many, count, 4), dtype=np.uint32)
    words[:, :, 0], words[:, :, 2] = even
    words[:, :, 1], words[:, :, 3] = odd
    return words


@lru_cache(maxsize=1)
def _sign_table() -> Array:
    """(256, 8) float32: the eight signs of each byte, lowest bit first; a set bit is -1."""
    bits = (np.arange(256)[:, None] >> np.arange(8)) & 1
    return (1 - 2 * bits).astype(np.float32)


@lru_cache(maxsize=1)
def gaussian_table() -> Array:
    """(65536,) float32: quantiles of the normal law at the mid-points, scaled to unit variance."""
    quantile = NormalDist().inv_cdf
    half = np.fromiter((quantile((i + 0.5) / 65536) for i in range(32768)), dtype=np.float64, count=32768)
    half *= (2 * float(np.square(half).sum()) / 65536) ** -0.5
    return np.concatenate((half, -half[::-1])).astype(np.float32)


@dataclass(frozen=True)
class Segment:
    """Values `start` to `stop` of the flattened parameter `name`, at `place` in their pack."""

    name: str
    start: int
    stop: int
    place: int

    @property
    def here(self) -> slice:
        """Its values in the pack."""
        return slice(self.place, self.place + self.stop - self.start)

    @property
    def there(self) -> slice:
        """Its values in the parameter."""
        return slice(self.start, self.stop)

    @property
    def padded(self) -> int:
        """Its values and the gap behind them."""
        return -(-(self.stop - self.start) // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class Pack:
    """Segments whose directions are made together; each begins on a multiple of `ALIGNMENT`; `width` has the gaps."""

    segments: tuple[Segment, ...]
    width: int

    def directions(self, seeds: Sequence[int], law: Law) -> Iterator["Bits"]:
        """The random bits of each seed's direction, made for as many at once as the scratch memory allows."""
        each = VALUES_PER_BLOCK[law]
        # Those of a piece of a large parameter are quickly made, and not worth remembering.
        counters = (_counters if len(self.segments) == 1 else _remembered_counters)(self.segments, each)
        at_once = max(1, _BLOCKS_AT_ONCE // counters.shape[1])
        for first in range(0, len(seeds), at_once):
            for words in philox(counters, seeds[first : first + at_once]):
                yield Bits(words, law)


def _counters(segments: tuple[Segment, ...], each: int) -> Array:
    """(4, blocks) uint32: number and name of every block of `each` values, low words first."""
    counters = np.zeros((4, sum(segment.padded for segment in segments) // each), dtype=np.uint32)
    place = 0
    for segment in segments:
        first, count, number = segment.start // each, segment.padded // each, name_number(segment.name)
        here = slice(place, place + count)
        blocks = np.arange(first, first + count, dtype=np.uint64)
        counters[0, here], counters[1, here] = blocks & _WORD, blocks >> _HALF
        counters[2, here], counters[3, here] = number & 0xFFFFFFFF, number >> 32
        place += count
    return counters


_remembered_counters = lru_cache(maxsize=16)(_counters)


@dataclass(frozen=True)
class Bits:
    """The random bits of one direction: (blocks, 4) words."""

    words: Array
    law: Law

    def times(self, scale: float) -> Array:
        """(width,) float32: the direction times `scale`, both rounded to float32. Gaps hold noise."""
        factor = np.float32(scale)
        if self.law == "rademacher":
            pieces = self.words.reshape(-1).view(np.uint8)
            return (_sign_table() * factor).take(pieces, axis=0, mode="clip").reshape(-1)
        halves = self.words.reshape(-1).view(np.uint16)
        made = gaussian_table().take(halves, mode="clip")
        made *= factor
        return made


@lru_cache(maxsize=8)
def packs(layout: tuple[tuple[str, int], ...]) -> tuple[Pack, ...]:
    """Cuts parameters, given as (name, number of values), into packs of at most `PACK_WIDTH` values, in order."""
    done: list[Pack] = []
    segments: list[Segment] = []
    place = 0
    for name, size in layout:
        start = 0
        while start < size:
            stop = min(size, start + PACK_WIDTH - place)
            segments.append(Segment(name, start, stop, place))
            place += segments[-1].padded
            start = stop
            if place == PACK_WIDTH:
                done.append(Pack(tuple(segments), place))
                segments, place = [], 0
    if segments:
        done.append(Pack(tuple(segments), place))
    return tuple(done)


def packs_of(parameters: Mapping[str, Array]) -> tuple[Pack, ...]:
    """The packs of some parameters."""
    return packs(tuple((name, parameter.size) for name, parameter in parameters.items()))


def gather(arrays: Mapping[str, Array], pack: Pack) -> Array:
    """(width,) float32: the pack's segments of contiguous arrays, zero in the gaps. Where one is all, a view."""
    if len(pack.segments) == 1 and pack.segments[0].stop - pack.segments[0].start == pack.width:
        (only,) = pack.segments
        return arrays[only.name].reshape(-1)[only.there]
    flat = np.zeros(pack.width, dtype=np.float32)
    for segment in pack.segments:
        flat[segment.here] = arrays[segment.name].reshape(-1)[segment.there]
    return flat


def scatter(flat: Array, arrays: Mapping[str, Array], pack: Pack) -> None:
    """Puts back what `gather` took."""
    for segment in pack.segments:
        arrays[segment.name].reshape(-1)[segment.there] = flat[segment.here]


def direction(seed: int, name: str, shape: tuple[int, ...], law: Law = "rademacher") -> Array:
    """The whole direction of one parameter: float32 of its shape."""
    made = np.empty(int(np.prod(shape)), dtype=np.float32)
    for pack in packs(((name, made.size),)):
        (segment,) = pack.segments
        (bits,) = pack.directions([seed], law)
        made[segment.there] = bits.times(1.0)[segment.here]
    return made.reshape(shape)


class Perturbed:
    """θ + `radius`·u, parameter by parameter, as a graph asks for it; live parameters never change.

    One pack's direction is remembered: graphs ask about in the order of the parameters.
    """

    def __init__(self, parameters: Mapping[str, Array], seeds: Seeds, place: int, radius: float) -> None:
        """`place`: which of the seeds."""
        self._parameters = parameters
        self._seed, self._law, self._radius = seeds.numbers[place], seeds.law, radius
        self._pieces: dict[str, list[tuple[Pack, Segment]]] = {}
        for pack in packs_of(parameters):
            for segment in pack.segments:
                self._pieces.setdefault(segment.name, []).append((pack, segment))
        self._made: tuple[Pack, Array] | None = None

    def __contains__(self, name: str) -> bool:
        return name in self._parameters

    def __call__(self, name: str) -> Array:
        """A fresh array of the parameter's shape."""
        parameter = self._parameters[name]
        moved = np.empty(parameter.size, dtype=np.float32)
        for pack, segment in self._pieces.get(name, ()):
            made = self._direction(pack)[segment.here]
            np.add(parameter.reshape(-1)[segment.there], made, out=moved[segment.there])
        return moved.reshape(parameter.shape)

    def _direction(self, pack: Pack) -> Array:
        if self._made is None or self._made[0] is not pack:
            self._made = None  # its memory is wanted
            (bits,) = pack.directions([self._seed], self._law)
            self._made = pack, bits.times(self._radius)
        return self._made[1]
