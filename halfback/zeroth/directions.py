"""Random directions from a counter-based generator: every device rebuilds the same bits.

Philox4x32-10 of Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011), in integer tensor operations
only, or, where it serves, in the compiled kernel with the same bits (`native`). The 128-bit counter is (block number,
64-bit hash of the parameter's name), the 64-bit key is the seed of the direction, and one block yields 128 signs or 8
Gaussian values; so any slice of a direction can be made alone, in any order, on any device, for any dtype of the model,
and is always the same.

Seeds are hashed paths: no arithmetic, so no two paths share a seed by construction of a sum.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import blake2b
from statistics import NormalDist
from typing import Literal

import torch
from torch import Tensor

from halfback.zeroth import native

Law = Literal["rademacher", "gaussian"]

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
VALUES_PER_BLOCK = {"rademacher": 128, "gaussian": 8}


def seed_for(*path: int | str) -> int:
    """The 64-bit seed of a path such as ``(run_seed, "direction", step, 3)``.

    Each element is written with its type and length before hashing, so ``("1", 2)``, ``(1, 2)`` and ``(12,)`` differ.

    Raises:
        TypeError: an element is neither an integer nor a string.
    """
    digest = blake2b(digest_size=8, person=b"halfback.seed")
    for element in path:
        if isinstance(element, bool) or not isinstance(element, int | str):
            raise TypeError(f"a seed path holds integers and strings, not {element!r}")
        kind = b"s" if isinstance(element, str) else b"i"
        text = str(element).encode()
        digest.update(kind + len(text).to_bytes(4, "little") + text)
    return int.from_bytes(digest.digest(), "little")


def seeds_under(*path: int | str) -> Callable[[int, int], int]:
    """The seed of direction p of a row, as (row, p) → seed: that of the path which goes on by these two from `path`."""
    return lambda row, p: seed_for(*path, row, p)


@dataclass(frozen=True)
class Seeds:
    """The directions of one step: a seed each, and the law that all of them have."""

    numbers: tuple[int, ...]
    law: Law = "rademacher"

    def __len__(self) -> int:
        return len(self.numbers)


@dataclass(frozen=True)
class Directions:
    """The directions of all steps: `seed_of(row, p)` is the seed of direction p of a row of the history."""

    seed_of: Callable[[int, int], int]
    law: Law = "rademacher"

    def of(self, row: int, count: int) -> Seeds:
        """The first `count` directions of a row."""
        return Seeds(tuple(self.seed_of(row, p) for p in range(count)), self.law)


def philox(counter: tuple[Tensor | int, ...], key: tuple[Tensor | int, Tensor | int]) -> tuple[Tensor, ...]:
    """Philox4x32-10: four 32-bit words a counter.

    Args:
        counter: four words in 0..2^32-1, int64 tensors that broadcast together or plain integers; at least one tensor.
        key: two words, likewise.

    Returns:
        Four int64 tensors with values in 0..2^32-1.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # A 64-bit product that wraps keeps its low 64 bits, so both halves of the 32×32 product are exact.
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((product1 >> 32) & _WORD) ^ c1 ^ k0,
            product1 & _WORD,
            ((product0 >> 32) & _WORD) ^ c3 ^ k1,
            product0 & _WORD,
        )
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return tuple(torch.as_tensor(word) for word in (c0, c1, c2, c3))


@lru_cache(maxsize=8)
def _sign_table(device: torch.device) -> Tensor:
    """(256, 8) float32: the eight signs of each byte, lowest bit first; a set bit is -1."""
    bits = (torch.arange(256).unsqueeze(1) >> torch.arange(8)) & 1
    return (1 - 2 * bits).to(device, torch.float32)


@lru_cache(maxsize=8)
def _gaussian_table(device: torch.device) -> Tensor:
    """(65536,) float32: quantiles of the normal law at the mid-points, scaled to unit variance.

    A table, because `log` and `erfinv` differ in the last bit between devices; the sum of squares is exact here.
    """
    half = [NormalDist().inv_cdf((i + 0.5) / 65536) for i in range(32768)]
    scale = (2 * sum(value * value for value in half) / 65536) ** -0.5
    values = [value * scale for value in half]
    return torch.tensor(values + [-value for value in reversed(values)], dtype=torch.float64).to(device, torch.float32)


def forget_tables() -> None:
    """Frees what is kept between calls: a memory meter then sees a device make it, whatever the process did before."""
    for kept in (_sign_table, _gaussian_table, _remembered_counters):
        kept.cache_clear()


@lru_cache(maxsize=4096)
def name_number(name: str) -> int:
    """The 64 bits by which a parameter's name stands in a counter."""
    return int.from_bytes(blake2b(name.encode(), digest_size=8, person=b"halfback.name").digest(), "little")


def _name_words(name: str) -> tuple[int, int]:
    return name_number(name) & _WORD, name_number(name) >> 32


def native_table(law: Law) -> Tensor | None:
    """What the kernel takes for a law: the normal law's quantiles, or none for signs."""
    return _gaussian_table(torch.device("cpu")) if law == "gaussian" else None


def _values(
    seeds: Sequence[int],
    blocks: Tensor,
    low: Tensor | int,
    high: Tensor | int,
    law: Law,
    scales: Sequence[float] | None = None,
) -> Tensor:
    """(seeds, blocks · values per block) float32, for block numbers of the parameters with name words (low, high).

    Values are multiplied by their seed's scale: in the table where that is smaller, which saves a pass over the result.
    """
    halves = [[seed & _WORD for seed in seeds], [seed >> 32 for seed in seeds]]
    key = torch.tensor(halves, dtype=torch.int64, device=blocks.device).unsqueeze(-1)  # (2, seeds, 1)
    stacked = torch.stack(philox((blocks & _WORD, blocks >> 32, low, high), (key[0], key[1])), dim=-1)
    words = torch.where(stacked > 0x7FFFFFFF, stacked - (1 << 32), stacked).to(torch.int32)  # (seeds, blocks, 4)
    if law == "rademacher":
        pieces = torch.stack([(words >> shift) & 0xFF for shift in (0, 8, 16, 24)], dim=-1)
        table = _sign_table(blocks.device)
    else:
        pieces = torch.stack([words & 0xFFFF, (words >> 16) & 0xFFFF], dim=-1)
        table = _gaussian_table(blocks.device)
    if scales is None:
        return table.index_select(0, pieces.flatten()).view(len(seeds), -1)
    factors = torch.tensor(scales, dtype=torch.float32, device=blocks.device)
    if table.numel() * len(seeds) > pieces.numel():
        return table.index_select(0, pieces.flatten()).view(len(seeds), -1).mul_(factors.unsqueeze(1))
    tables = factors.view(-1, *[1] * table.ndim) * table
    own = torch.arange(len(seeds), dtype=torch.int32, device=blocks.device).view(-1, 1, 1, 1) * len(table)
    return tables.flatten(0, 1).index_select(0, (pieces + own).flatten()).view(len(seeds), -1)


@dataclass(frozen=True)
class Segment:
    """Values `start` to `stop` of the flattened parameter `name`, at `place` in their pack."""

    name: str
    start: int
    stop: int
    place: int

    @property
    def padded(self) -> int:
        """Its values and the gap behind them."""
        return -(-(self.stop - self.start) // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class Pack:
    """Segments whose directions are made together, because a call costs as much for one value as for thousands.

    Each segment begins on a multiple of `ALIGNMENT`, and so does what follows it: `width` counts the gaps.
    """

    segments: tuple[Segment, ...]
    width: int

    @cached_property
    def stretches(self) -> tuple[native.Stretch, ...]:
        """The segments for the kernel, each with the gap behind it."""
        return tuple(native.Stretch(name_number(s.name), s.start, s.padded, s.place) for s in self.segments)

    def directions(
        self,
        seeds: Sequence[int],
        *,
        law: Law,
        device: torch.device,
        scales: Sequence[float] | None = None,
    ) -> Tensor:
        """(len(seeds), width) float32, a function of (seed, name, index) alone, times `scales`. Gaps hold noise."""
        if native.serves(device):
            made = torch.empty(len(seeds), self.width, dtype=torch.float32, device="cpu")
            for row, seed, scale in zip(made, seeds, scales or [1.0] * len(seeds), strict=True):
                for stretch in self.stretches:
                    native.move(row, None, stretch, seed, scale, native_table(law))
            return made
        return _values(seeds, *_counters(self.segments, VALUES_PER_BLOCK[law], device), law, scales)


ALIGNMENT = 128
PACK_WIDTH = 1 << 17  # bounds the scratch memory of a call to about a megabyte


@lru_cache(maxsize=256)
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
            place += -(-(stop - start) // ALIGNMENT) * ALIGNMENT
            start = stop
            if place == PACK_WIDTH:
                done.append(Pack(tuple(segments), place))
                segments, place = [], 0
    if segments:
        done.append(Pack(tuple(segments), place))
    return tuple(done)


def layout_of(parameters: Mapping[str, Tensor]) -> tuple[tuple[str, int], ...]:
    """What `packs` takes."""
    return tuple((name, parameter.numel()) for name, parameter in parameters.items())


def packs_of(parameters: Mapping[str, Tensor]) -> Iterator[Pack]:
    """The packs of some parameters, those of each dtype by themselves: a pack is rounded as a whole."""
    for dtype in {parameter.dtype for parameter in parameters.values()}:
        yield from packs(layout_of({name: p for name, p in parameters.items() if p.dtype == dtype}))


def gather(tensors: Mapping[str, Tensor], pack: Pack, device: torch.device) -> Tensor:
    """(width,) float32, contiguous: the pack's segments of the tensors, zero in the gaps. Where one is all, a view."""
    if len(pack.segments) == 1 and pack.segments[0].stop - pack.segments[0].start == pack.width:
        (only,) = pack.segments
        return tensors[only.name].view(-1)[only.start : only.stop].float().contiguous()
    flat = torch.zeros(pack.width, dtype=torch.float32, device=device)
    for segment in pack.segments:
        size = segment.stop - segment.start
        flat[segment.place : segment.place + size] = tensors[segment.name].view(-1)[segment.start : segment.stop]
    return flat


def scatter(flat: Tensor, tensors: Mapping[str, Tensor], pack: Pack) -> None:
    """Puts back what `gather` took."""
    for segment in pack.segments:
        size = segment.stop - segment.start
        tensors[segment.name].view(-1)[segment.start : segment.stop] = flat[segment.place : segment.place + size]


def _counters(
    segments: tuple[Segment, ...], per_block: int, device: torch.device
) -> tuple[Tensor, Tensor | int, Tensor | int]:
    """Block numbers and name words of every block of a pack."""
    if len(segments) == 1:  # a piece of a large parameter: not worth remembering
        return _blocks(segments[0], per_block, device), *_name_words(segments[0].name)
    return _remembered_counters(segments, per_block, device)


@lru_cache(maxsize=64)
def _remembered_counters(
    segments: tuple[Segment, ...], per_block: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    blocks = [_blocks(segment, per_block, device) for segment in segments]
    names = [_name_words(segment.name) for segment in segments]
    low = [torch.full_like(b, words[0]) for b, words in zip(blocks, names, strict=True)]
    high = [torch.full_like(b, words[1]) for b, words in zip(blocks, names, strict=True)]
    return torch.cat(blocks), torch.cat(low), torch.cat(high)


def _blocks(segment: Segment, per_block: int, device: torch.device) -> Tensor:
    first = segment.start // per_block
    return torch.arange(first, first + segment.padded // per_block, dtype=torch.int64, device=device)


def direction_of(seed: int, name: str, parameter: Tensor, *, law: Law = "rademacher") -> Tensor:
    """The whole direction of one parameter, in its shape, dtype and place."""
    pieces = [
        pack.directions([seed], law=law, device=parameter.device)[0, : pack.segments[0].stop - pack.segments[0].start]
        for pack in packs(((name, parameter.numel()),))
    ]
    if not pieces:
        return parameter.new_zeros(parameter.shape)
    return torch.cat(pieces).view(parameter.shape).to(parameter.dtype)


def direction_rows(seed: int, name: str, rows: Tensor, width: int, *, law: Law = "rademacher") -> Tensor:
    """Chosen rows of the direction of a (·, `width`) parameter: (len(rows), width) float32.

    Only the blocks that these rows touch are generated, so an embedding table costs what its batch uses.
    """
    if not len(rows):
        return torch.empty(0, width, device=rows.device)
    if native.serves(rows.device):
        return native.rows(rows.to(torch.int64) * width, width, name_number(name), seed, native_table(law))
    per_block = VALUES_PER_BLOCK[law]
    start = rows.to(torch.int64).unsqueeze(1) * width
    # A row may begin anywhere inside a block: take every block that it can touch, then cut the row out.
    span = torch.arange(-(-(width - 1) // per_block) + 1, device=rows.device)
    blocks = start // per_block + span
    values = _values([seed], blocks.flatten(), *_name_words(name), law).view(len(rows), -1)
    columns = torch.arange(width, device=rows.device)
    return values[:, :width] if width % per_block == 0 else values.gather(1, start % per_block + columns)
