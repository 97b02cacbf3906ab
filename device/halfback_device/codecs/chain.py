"""Stages one behind the other, without memory: what one gives is what the next one takes."""

from collections.abc import Sequence
from typing import final

import numpy as np

from halfback_device.codecs.protocol import Parts, Stage, expect
from halfback_device.errors import PeerError
from halfback_device.halves import widened
from halfback_device.messages import Array


@final
class Chain:
    """Encodes a matrix (rows, `width`) of float32 into arrays and back; without stages the matrix is sent as it is."""

    dtype = np.dtype(np.float32)

    def __init__(self, stages: Sequence[Stage], width: int) -> None:
        self.stages = tuple(stages)
        self.width = width
        self.parts = 1 + sum(stage.extras for stage in stages)
        # All sizes are a row's times the rows, so one row tells.
        self.row_bytes = sum(part.nbytes for part in self.encode(np.zeros((1, width), dtype=np.float32)))

    def most(self, rows: int) -> tuple[int, int]:
        """Bytes and number of the arrays that `encode` makes of so many rows."""
        return rows * self.row_bytes, self.parts

    def encode(self, matrix: Array, rows: Sequence[int] = ()) -> Parts:
        """The payload of the last stage, then the extras of each stage; `rows`: of each sample, none for one sample."""
        extras: Parts = ()
        for stage in self.stages:
            by_sample = len(rows) > 0 and getattr(stage, "by_sample", False)
            matrix, more = _of_each(stage, matrix, rows) if by_sample else stage.encode(matrix)
            extras += more
        return (matrix, *extras)

    def decode(self, parts: Parts, rows: int) -> Array:
        """(rows, `width`) float32.

        Raises:
            PeerError: another number of arrays came, or one has another shape or dtype than `encode` gives.
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
        return widened(matrix)


def _of_each(stage: Stage, matrix: Array, rows: Sequence[int]) -> tuple[Array, Parts]:
    """What a stage makes of each sample's rows by themselves, one behind the other."""
    pieces = np.split(matrix, np.cumsum(rows)[:-1])
    payloads, extras = zip(*(stage.encode(piece) for piece in pieces), strict=True)
    return np.concatenate(payloads), tuple(np.concatenate(of_each) for of_each in zip(*extras, strict=True))
