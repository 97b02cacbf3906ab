"""Random directions from a counter-based generator: every device rebuilds the same bits.

Philox4x32-10 of Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011), in integer tensor operations
only. The 128-bit counter is (block number, 64-bit hash of the parameter's name), the 64-bit key is the seed of the
direction, and one block yields 128 signs or 8 Gaussian values; so any slice of a direction can be made alone, in any
order, on any device, for any dtype of the model, and is always the same.
"""

from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from statistics import NormalDist
from typing import Literal

import torch
from torch import Tensor

Law = Literal["rademacher", "gaussian"]

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
VALUES_PER_BLOCK = {"rademacher": 128, "gaussian": 8}


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


@lru_cache(maxsize=4096)
def _name_words(name: str) -> tuple[int, int]:
    value = int.from_bytes(blake2b(name.encode(), digest_size=8, person=b"halfback.name").digest(), "little")
    return value & _WORD, value >> 32


def _words(seeds: Sequence[int], name: str, blocks: Tensor) -> Tensor:
    """(seeds, blocks, 4) int32 whose bits are the generator's output for those keys and block numbers."""
    low, high = _name_words(name)
    halves = [[seed & _WORD for seed in seeds], [seed >> 32 for seed in seeds]]
    key = torch.tensor(halves, dtype=torch.int64, device=blocks.device).unsqueeze(-1)  # (2, seeds, 1)
    words = philox((blocks & _WORD, blocks >> 32, low, high), (key[0], key[1]))
    stacked = torch.stack(words, dim=-1)
    return torch.where(stacked > 0x7FFFFFFF, stacked - (1 << 32), stacked).to(torch.int32)


def _block_values(seeds: Sequence[int], name: str, blocks: Tensor, law: Law) -> Tensor:
    """(seeds, blocks · values per block) float32."""
    words = _words(seeds, name, blocks)
    if law == "rademacher":
        pieces = torch.stack([(words >> shift) & 0xFF for shift in (0, 8, 16, 24)], dim=-1)
        table = _sign_table(blocks.device)
    else:
        pieces = torch.stack([words & 0xFFFF, (words >> 16) & 0xFFFF], dim=-1)
        table = _gaussian_table(blocks.device)
    return table.index_select(0, pieces.flatten()).view(len(seeds), -1)


def direction_slices(
    seeds: Sequence[int],
    name: str,
    start: int,
    stop: int,
    *,
    law: Law = "rademacher",
    device: torch.device | None = None,
) -> Tensor:
    """Values `start` to `stop` of the flattened directions of one parameter: (len(seeds), stop - start) float32.

    A direction is a function of (seed, `name`, index) alone: slices, batches of seeds and devices agree bit for bit.
    """
    per_block = VALUES_PER_BLOCK[law]
    first = start // per_block
    blocks = torch.arange(first, -(-stop // per_block), dtype=torch.int64, device=device)
    return _block_values(seeds, name, blocks, law)[:, start - first * per_block : stop - first * per_block]


def direction_rows(seed: int, name: str, rows: Tensor, width: int, *, law: Law = "rademacher") -> Tensor:
    """Chosen rows of the direction of a (·, `width`) parameter: (len(rows), width) float32.

    Only the blocks that these rows touch are generated, so an embedding table costs what its batch uses.
    """
    per_block = VALUES_PER_BLOCK[law]
    start = rows.to(torch.int64).unsqueeze(1) * width
    # A row may begin anywhere inside a block: take every block that it can touch, then cut the row out.
    span = torch.arange(-(-(width - 1) // per_block) + 1, device=rows.device)
    blocks = start // per_block + span
    values = _block_values([seed], name, blocks.flatten(), law).view(len(rows), -1)
    return values.gather(1, start % per_block + torch.arange(width, device=rows.device))
