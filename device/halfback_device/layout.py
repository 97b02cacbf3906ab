"""Texts without padding: how the tokens of a batch are laid out in the rows that a model's blocks run on.

All tokens of a batch are one row in which each text sees itself alone, or, where attention over one row would cost more
than it saves, a few rows of about the same length. The reference lays out alike (`docs/protocol.md`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

# A multiplication within attention costs so many times one in a linear layer: its matrices are small.
_DEAR = 2
LEAST = float(np.finfo(np.float32).min)
"""What is added to the score of a place that is not seen."""


@dataclass(frozen=True)
class Layout:
    """Where each of N tokens of B texts stands in R rows of M places.

    Attributes:
        lengths: tokens of each text.
        place: (N,) int64, row · M + column of each token; None where the tokens are one row as they are.
        positions: (R, M) int64, how far a token is from the first of its text; 0 where no token is.
        texts: (R, M) int64, the number of a token's text; -1 where no token is.
    """

    lengths: tuple[int, ...]
    place: NDArray[np.int64] | None
    positions: NDArray[np.int64]
    texts: NDArray[np.int64]

    def lay(self, tokens: NDArray[Any]) -> NDArray[Any]:
        """(N, …) as (R, M, …), with zeros where no token is."""
        if self.place is None:
            return tokens[None]
        laid = np.zeros((self.texts.size, *tokens.shape[1:]), tokens.dtype)
        laid[self.place] = tokens
        return laid.reshape(*self.texts.shape, *tokens.shape[1:])

    def take(self, laid: NDArray[Any]) -> NDArray[Any]:
        """(R, M, …) as (N, …): undoes `lay`."""
        return laid[0] if self.place is None else laid.reshape(-1, *laid.shape[2:])[self.place]

    def bias(self, *, causal: bool, window: int | None) -> NDArray[np.float32]:
        """What is added to the scores of attention, so that a token sees its own text alone: (R, 1, M, M) float32.

        0 for what the token of a row of the matrix sees, else the least number. With `causal` it sees none behind it,
        and with a `window` no more than so many tokens, itself among them.
        """
        hides = self.texts[:, :, None] != self.texts[:, None]
        if causal:
            ahead = self.positions[:, None] - self.positions[:, :, None]  # of a place, of what it may see
            hides |= ahead > 0
            if window is not None:
                hides |= ahead <= -window
        return np.where(hides, np.float32(LEAST), np.float32(0))[:, None]

    def spots(self) -> list[tuple[int, slice]]:
        """Row and columns of each text, in the order of the texts."""
        firsts = np.array([0, *accumulate(self.lengths)][:-1])
        places = firsts if self.place is None else self.place[firsts]
        width = self.texts.shape[1]
        return [
            (int(first) // width, slice(int(first) % width, int(first) % width + length))
            for first, length in zip(places, self.lengths, strict=True)
        ]


def lay_out(lengths: Sequence[int], width: int) -> Layout:
    """The layout of texts of so many tokens each, 1 or more, for a model with `width` features of a token."""
    counts = tuple(int(length) for length in lengths)
    rows = _shared_out(counts, width)
    numbers = np.repeat(np.arange(len(counts)), counts)
    positions = np.concatenate([np.arange(count) for count in counts])
    if len(rows) == 1:
        return Layout(counts, None, positions[None], numbers[None])
    most, starts = max(sum(counts[text] for text in row) for row in rows), [0] * len(counts)
    for number, row in enumerate(rows):
        start = number * most
        for text in row:
            starts[text] = start
            start += counts[text]
    place = np.array(starts)[numbers] + positions
    laid, texts = np.zeros(len(rows) * most, np.int64), np.full(len(rows) * most, -1, np.int64)
    laid[place], texts[place] = positions, numbers
    return Layout(counts, place, laid.reshape(len(rows), most), texts.reshape(len(rows), most))


def parts_of(lengths: Sequence[int]) -> list[slice]:
    """Where each text's tokens are among those of all."""
    return [slice(start, stop) for start, stop in pairwise((0, *accumulate(lengths)))]


def positions_behind(padding: int, ids: NDArray[np.int64], layout: Layout) -> NDArray[np.int64]:
    """(R, M): how many tokens of its text a token ends that are not the padding's, from behind the padding's number."""
    counted = (ids != padding).astype(np.int64)
    sums = counted.cumsum(1)
    before = np.pad(sums, ((0, 0), (1, 0)))
    firsts = np.arange(ids.shape[1]) - layout.positions
    found: NDArray[np.int64] = (sums - np.take_along_axis(before, firsts, 1)) * counted + padding
    return found


@lru_cache(maxsize=1024)
def _shared_out(lengths: tuple[int, ...], width: int) -> tuple[tuple[int, ...], ...]:
    """The texts of each row, for the number of rows with the least products: a linear layer's and attention's.

    A block has about 12 · width² products a token in its linear layers, and 2 · width · M in attention over M places.
    """
    best: tuple[tuple[int, ...], ...] = (tuple(range(len(lengths))),)
    least = _cost(1, sum(lengths), width)
    count = 2
    while count < 2 * len(lengths):
        rows = _even(lengths, min(count, len(lengths)))
        cost = _cost(len(rows), max(sum(lengths[text] for text in row) for row in rows), width)
        if cost < least:
            best, least = rows, cost
        count *= 2
    return best


def _cost(rows: int, places: int, width: int) -> int:
    return rows * places * (6 * width + _DEAR * places)


def _even(lengths: Sequence[int], count: int) -> tuple[tuple[int, ...], ...]:
    """The texts in so many rows of about as many tokens: the longest first, each where there are the fewest yet."""
    rows: list[list[int]] = [[] for _ in range(count)]
    sizes = [0] * count
    for text in sorted(range(len(lengths)), key=lambda text: -lengths[text]):
        row = sizes.index(min(sizes))
        rows[row].append(text)
        sizes[row] += lengths[text]
    return tuple(tuple(sorted(row)) for row in rows)
