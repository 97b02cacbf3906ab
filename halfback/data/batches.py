"""The batches of one client, in an order that follows from the seed and the batch's number alone."""

from __future__ import annotations

from typing import final

import numpy as np
import torch

from halfback.data.encode import Batch, Split


@final
class ClientData:
    """One client's rows of a split.

    Batch `number` is a pure function of (seed, number), so that a run resumed at any step, or a client that sat out a
    round, needs no state. Every epoch is a new permutation of all rows; a batch never straddles two epochs, so the
    last of an epoch is smaller where `batch_size` does not divide the rows.
    """

    def __init__(self, split: Split, rows: np.ndarray, *, batch_size: int, seed: int) -> None:
        if not len(rows):
            raise ValueError("a client needs at least one row")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        self._split = split
        self._rows = np.asarray(rows, dtype=np.int64)
        self._size = batch_size
        self._seed = seed

    def __len__(self) -> int:
        """The number of rows."""
        return len(self._rows)

    @property
    def rows(self) -> np.ndarray:
        """The client's row numbers in the split."""
        return self._rows

    def batch(self, number: int) -> Batch:
        """Batch `number`, counted from 0 over all epochs."""
        if number < 0:
            raise ValueError(f"batch number {number} must be at least 0")
        a_epoch = -(-len(self) // self._size)
        epoch, place = divmod(number, a_epoch)
        stream = np.random.SeedSequence([self._seed, epoch])
        order = np.random.Generator(np.random.Philox(stream)).permutation(self._rows)
        return self._split.batch(torch.from_numpy(order[place * self._size : (place + 1) * self._size]))
