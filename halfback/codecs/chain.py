"""Stages one behind the other, without memory: what one gives is what the next one takes."""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from halfback.codecs.protocol import Parts, Stage, expect
from halfback.errors import PeerError


@final
class Chain:
    """Encodes a matrix (rows, `width`) of `dtype` into tensors and back; without stages the matrix is sent as it is."""

    def __init__(self, stages: Sequence[Stage], *, width: int, dtype: torch.dtype) -> None:
        self.stages = tuple(stages)
        self.width = width
        self.dtype = dtype
        self.parts = 1 + sum(stage.extras for stage in stages)
        # All sizes are a row's times the rows, so one row tells.
        self.row_bytes = sum(part.nbytes for part in self.encode(torch.zeros(1, width, dtype=dtype)))

    def most(self, rows: int) -> tuple[int, int]:
        """Bytes and number of the tensors that `encode` makes of so many rows."""
        return rows * self.row_bytes, self.parts

    def encode(self, matrix: Tensor, rows: Sequence[int] = ()) -> Parts:
        """The payload of the last stage, then the extras of each stage; `rows`: of each sample, none for one sample."""
        extras: Parts = ()
        for stage in self.stages:
            by_sample = bool(rows) and getattr(stage, "by_sample", False)
            matrix, more = _of_each(stage, matrix, rows) if by_sample else stage.encode(matrix)
            extras += more
        return (matrix, *extras)

    def decode(self, parts: Parts, rows: int) -> Tensor:
        """(rows, `width`) of `dtype`.

        Raises:
            PeerError: another number of tensors came, or one has another shape or dtype than `encode` gives.
        """
        if len(parts) != self.parts:
            raise PeerError("codec", f"{len(parts)} tensors", f"{self.parts} are allowed")
        matrix, extras = parts[0], parts[1:]
        last = self.stages[-1] if self.stages else self
        expect("codec: payload", matrix, last.dtype, rows, last.width)
        for stage in reversed(self.stages):
            mine = len(extras) - stage.extras
            matrix = stage.decode(matrix, extras[mine:])
            extras = extras[:mine]
        return matrix.to(self.dtype)


def _of_each(stage: Stage, matrix: Tensor, rows: Sequence[int]) -> tuple[Tensor, Parts]:
    """What a stage makes of each sample's rows by themselves, one behind the other."""
    payloads, extras = zip(*(stage.encode(piece) for piece in matrix.split(list(rows))), strict=True)
    return torch.cat(payloads), tuple(torch.cat(of_each) for of_each in zip(*extras, strict=True))
