"""Fewer values: `topk` sends the largest of each row, `projection` a row's image under a random matrix."""

import math
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from halfback.codecs.protocol import Parts, Stage, expect
from halfback.errors import PeerError, UserError


@dataclass(frozen=True)
class TopK:
    """The largest values of each row by magnitude, with their places.

    Attributes:
        ratio: the share of a row's values that are sent, at least one.
        feedback: keep for each sample what was not sent, and add it when the sample comes again (Seide et al. 2014;
            Stich et al., arXiv 1809.07599). For gradients: the sum of what is sent follows the sum of what was meant.
    """

    ratio: float = 0.1
    feedback: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1:
            raise UserError(f"codec topk: ratio={self.ratio:g}: more than 0 and up to 1 are allowed")

    def bind(self, width: int, dtype: torch.dtype) -> Stage:
        """The stage for payloads of this width and dtype."""
        return _TopK(max(1, math.ceil(self.ratio * width)), width, dtype)


@dataclass(frozen=True)
class Projection:
    """A row times a sparse ±1 matrix (Achlioptas 2003), both ends make it from the seed; rebuilt by least squares.

    Attributes:
        size: columns of the image; a row loses what the matrix does not see, the share 1 − size ÷ width of its energy
            where it is spread evenly.
        seed: of the matrix.
    """

    size: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        check_seed("projection", self.seed)

    def bind(self, width: int, dtype: torch.dtype) -> Stage:
        """The stage for payloads of this width and dtype."""
        if not 1 <= self.size < width:
            raise UserError(f"codec projection: size={self.size}: 1 to {width - 1} are allowed, below a row's width")
        return _Projection(self.size, width, self.seed)


def check_seed(codec: str, seed: int) -> None:
    """Refuses what is no key of a generator.

    Raises:
        UserError: names the codec and what is allowed.
    """
    if not 0 <= seed < 1 << 64:
        raise UserError(f"codec {codec}: seed={seed}: 0 to 2^64 - 1 are allowed")


def sparse_signs(width: int, size: int, seed: int) -> Tensor:
    """(width, size) float32: ±√(3 ÷ size) with probability 1/6 each, else 0; keeps a row's squared norm on average.

    Drawn with NumPy's Philox: the same on every machine.
    """
    draws = np.random.Generator(np.random.Philox(key=seed)).integers(0, 6, size=(width, size))
    signs = (draws == 0).astype(np.float32) - (draws == 1).astype(np.float32)
    return torch.from_numpy(signs * np.float32(math.sqrt(3 / size)))


@final
class _TopK:
    extras = 1

    def __init__(self, kept: int, columns: int, dtype: torch.dtype) -> None:
        self.width, self.columns, self.dtype = kept, columns, dtype
        self.places = torch.int16 if columns <= 1 << 15 else torch.int32

    def encode(self, matrix: Tensor) -> tuple[Tensor, Parts]:
        places = matrix.abs().topk(self.width, dim=1, sorted=False).indices
        return matrix.gather(1, places), (places.to(self.places),)

    def decode(self, payload: Tensor, extras: Parts) -> Tensor:
        expect("codec: places", extras[0], self.places, len(payload), self.width)
        places = extras[0].long()
        if places.numel() and not 0 <= int(places.min()) <= int(places.max()) < self.columns:
            raise PeerError("codec: places", "one outside the row", f"0 to {self.columns - 1} are allowed")
        return payload.new_zeros(len(payload), self.columns).scatter_(1, places, payload)


@final
class _Projection:
    dtype, extras = torch.float32, 0

    def __init__(self, size: int, columns: int, seed: int) -> None:
        self.width = size
        self._matrix = sparse_signs(columns, size, seed)
        self._back = torch.linalg.pinv(self._matrix.double()).float()

    def encode(self, matrix: Tensor) -> tuple[Tensor, Parts]:
        return matrix.float() @ self._matrix.to(matrix.device), ()

    def decode(self, payload: Tensor, extras: Parts) -> Tensor:
        return payload @ self._back.to(payload.device)
