"""Texts without padding: how the tokens of a batch are laid out in the rows that a model runs on.

Everywhere else a batch of texts is its tokens one behind the other, (N, …), with the number of tokens of each sample.
A model of Transformers takes all of them as one row in which each sample sees itself alone; where the samples are long,
so that attention over one row would cost more than it saves, as a few rows of about the same length. A module of
somebody's own knows of no such rows, so it gets one for each sample, filled up, and a mask.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise

import torch
from torch import Tensor

# A multiplication within attention costs so many times one in a linear layer: its matrices are small.
_DEAR = 2


@dataclass(frozen=True)
class Layout:
    """Where each of N tokens of B samples stands in R rows of M places.

    Attributes:
        lengths: tokens of each sample.
        place: (N,) int64, row · M + column of each token; None where the tokens are one row as they are.
        positions: (R, M) int64, how far a token is from the first of its sample; 0 where no token is.
        samples: (R, M) int64, the number of a token's sample; -1 where no token is.
    """

    lengths: tuple[int, ...]
    place: Tensor | None
    positions: Tensor
    samples: Tensor

    def lay(self, tokens: Tensor) -> Tensor:
        """(N, …) as (R, M, …), with zeros where no token is."""
        if self.place is None:
            return tokens.unsqueeze(0)
        laid = tokens.new_zeros(self.samples.numel(), *tokens.shape[1:]).index_copy(0, self.place, tokens)
        return laid.view(*self.samples.shape, *tokens.shape[1:])

    def take(self, laid: Tensor) -> Tensor:
        """(R, M, …) as (N, …): undoes `lay`."""
        return laid[0] if self.place is None else laid.flatten(0, 1).index_select(0, self.place)

    def bias(self, dtype: torch.dtype, *, causal: bool) -> Tensor | None:
        """What is added to the scores of attention, so that a token sees its own sample alone.

        (R, 1, M, M): 0 for what the token of a row of the matrix sees, else the least number of `dtype`; with `causal`
        it sees none behind it. None where a row is one sample, for which a model needs no mask.
        """
        if len(self.samples) == len(self.lengths) and (causal or min(self.lengths) == self.samples.shape[1]):
            return None
        hides = self.samples.unsqueeze(2) != self.samples.unsqueeze(1)
        if causal:
            hides |= self.positions.unsqueeze(2) < self.positions.unsqueeze(1)
        bias = torch.zeros(hides.shape, dtype=dtype, device=hides.device)
        return bias.masked_fill_(hides, torch.finfo(dtype).min).unsqueeze(1)

    def ends(self, *, last: bool) -> Tensor:
        """(B,) int64: where in the N tokens each sample's first token is, or its last."""
        behind = torch.tensor(self.lengths, device=self.positions.device).cumsum(0)
        return behind - 1 if last else behind - torch.tensor(self.lengths, device=self.positions.device)

    def spots(self) -> list[tuple[int, slice]]:
        """Row and columns of each sample, in the order of the samples."""
        width, firsts = self.samples.shape[1], self.ends(last=False)
        places = firsts if self.place is None else self.place[firsts]
        return [
            (first // width, slice(first % width, first % width + length))
            for first, length in zip(places.tolist(), self.lengths, strict=True)
        ]


def lay_out(lengths: Tensor, width: int) -> Layout:
    """The layout for a model with `width` features of a token.

    Args:
        lengths: (B,) integers, tokens of each sample, 1 or more.
        width: of the hidden states.

    Returns:
        One row of all tokens, or as many rows as cost the least.
    """
    counts = tuple(lengths.tolist())
    return _layout(counts, _shared_out(counts, width), lengths.device)


def one_a_row(lengths: Tensor, *, left: bool) -> Layout:
    """The layout in which each sample has a row of its own; `left`: filled up on the left."""
    counts = tuple(lengths.tolist())
    return _layout(counts, tuple((sample,) for sample in range(len(counts))), lengths.device, left=left)


def parts_of(lengths: Sequence[int]) -> list[slice]:
    """Where each sample's tokens are among those of all."""
    return [slice(start, stop) for start, stop in pairwise((0, *accumulate(lengths)))]


def parts(values: Tensor, lengths: Tensor | None) -> list[slice]:
    """Where each sample's part of some values is: its tokens, or without lengths (images) one row a sample."""
    return parts_of([1] * len(values) if lengths is None else lengths.tolist())


def within(places: Tensor | None, part: slice) -> Tensor | None:
    """Those of the places that are in a part of a batch's tokens, counted from where it begins; None of none."""
    return None if places is None else places[(places >= part.start) & (places < part.stop)] - part.start


def _layout(
    lengths: tuple[int, ...], rows: tuple[tuple[int, ...], ...], device: torch.device, *, left: bool = False
) -> Layout:
    counts = torch.tensor(lengths, device=device)
    numbers = torch.repeat_interleave(torch.arange(len(lengths), device=device), counts, output_size=sum(lengths))
    positions = torch.arange(len(numbers), device=device) - (counts.cumsum(0) - counts)[numbers]
    if len(rows) == 1:
        return Layout(lengths, None, positions.unsqueeze(0), numbers.unsqueeze(0))
    sizes = [sum(lengths[sample] for sample in row) for row in rows]
    width, starts = max(sizes), [0] * len(lengths)
    for number, (row, size) in enumerate(zip(rows, sizes, strict=True)):
        start = number * width + (width - size if left else 0)
        for sample in row:
            starts[sample] = start
            start += lengths[sample]
    place = torch.tensor(starts, device=device)[numbers] + positions
    laid = torch.zeros(len(rows) * width, dtype=torch.int64, device=device)
    of_rows = [each.index_copy(0, place, values) for each, values in ((laid, positions), (laid - 1, numbers))]
    return Layout(lengths, place, *(each.view(len(rows), width) for each in of_rows))


@lru_cache(maxsize=1024)
def _shared_out(lengths: tuple[int, ...], width: int) -> tuple[tuple[int, ...], ...]:
    """The samples of each row, for the number of rows with the least products: a linear layer's and attention's.

    A block has about 12 · width² products a token in its linear layers, and 2 · width · M in attention over M places.
    """
    best: tuple[tuple[int, ...], ...] = (tuple(range(len(lengths))),)
    least = _cost(1, sum(lengths), width)
    count = 2
    while count < 2 * len(lengths):
        rows = _even(lengths, min(count, len(lengths)))
        cost = _cost(len(rows), max(sum(lengths[sample] for sample in row) for row in rows), width)
        if cost < least:
            best, least = rows, cost
        count *= 2
    return best


def _cost(rows: int, places: int, width: int) -> int:
    return rows * places * (6 * width + _DEAR * places)


def _even(lengths: Sequence[int], count: int) -> tuple[tuple[int, ...], ...]:
    """The samples in so many rows of about as many tokens: the longest first, each where there are the fewest yet."""
    rows: list[list[int]] = [[] for _ in range(count)]
    sizes = [0] * count
    for sample in sorted(range(len(lengths)), key=lambda sample: -lengths[sample]):
        row = sizes.index(min(sizes))
        rows[row].append(sample)
        sizes[row] += lengths[sample]
    return tuple(tuple(sorted(row)) for row in rows)
