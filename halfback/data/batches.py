"""Encoded rows, batches of them, and those of one client in an order of its own."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import chain
from typing import final

import numpy as np
import torch
from torch import Tensor

from halfback.data.augment import Augmentation

IGNORED = -100  # the label of positions that the loss leaves out, as torch's cross_entropy has it


@dataclass(frozen=True)
class Batch:
    """B rows ready for a model.

    inputs: for texts `input_ids` (N,) int64, the N tokens of all rows one behind the other, and `lengths` (B,) int64,
    how many are of each, with `token_type_ids` (N,) int64 for sentence pairs of tokenizers that have them; for images
    `pixel_values` (B, C, H, W) float32. labels: (B,) int64 class numbers, or for language modelling and generation
    (N,) int64: the tokens, not shifted, -100 on prompts and on each row's first. sample_ids: (B,) int64 row numbers
    in the split. scored: where tokens have labels, the places (S,) int64 of those behind which a label other than -100
    comes: of no others are logits needed; else None.
    """

    inputs: dict[str, Tensor]
    labels: Tensor
    sample_ids: Tensor
    scored: Tensor | None = None

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with every tensor on `device`."""
        inputs = {name: tensor.to(device) for name, tensor in self.inputs.items()}
        scored = None if self.scored is None else self.scored.to(device)
        return Batch(inputs, self.labels.to(device), self.sample_ids.to(device), scored)


@final
class Split:
    """Encoded rows of one split: images (N, C, H, W), or token lists."""

    def __init__(
        self,
        labels: Tensor,
        *,
        images: Tensor | None = None,
        tokens: list[list[int]] | None = None,
        token_types: list[list[int]] | None = None,
        unscored: list[int] | None = None,
    ) -> None:
        """`unscored`: how many tokens at a row's beginning have no loss, 1 or more, where tokens have one at all."""
        if (images is None) == (tokens is None):
            raise ValueError("a split holds either images or tokens")
        if unscored is not None and min(unscored, default=1) < 1:
            raise ValueError("a row's first token has no loss: nothing is before it")
        self.labels = labels
        self._images = images
        self._tokens = tokens
        self._token_types = token_types
        self._unscored = unscored

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Sequence[int] | Tensor) -> Batch:
        """The rows `indices` (at least one, in this order)."""
        rows = torch.as_tensor(indices, dtype=torch.int64)
        labels = self.labels[rows]
        if self._images is not None:
            return Batch({"pixel_values": self._images[rows]}, labels, rows)
        assert self._tokens is not None
        input_ids = _joined(self._tokens, rows)
        inputs = {"input_ids": input_ids, "lengths": torch.tensor([len(self._tokens[row]) for row in rows.tolist()])}
        if self._token_types is not None:
            inputs["token_type_ids"] = _joined(self._token_types, rows)
        if self._unscored is not None:
            firsts = inputs["lengths"].cumsum(0) - inputs["lengths"]
            labels = input_ids.clone()
            for first, row in zip(firsts.tolist(), rows.tolist(), strict=True):
                labels[first : first + self._unscored[row]] = IGNORED
            return Batch(inputs, labels, rows, (labels[1:] != IGNORED).nonzero().squeeze(1))
        return Batch(inputs, labels, rows)

    def longest(self) -> int:
        """Tokens of the longest row; 0 for images."""
        return max((len(row) for row in self._tokens or []), default=0)

    def tokens_of(self, row: int) -> int:
        """Tokens of one row; 0 for images."""
        return 0 if self._tokens is None else len(self._tokens[row])

    def last_tokens(self) -> set[int]:
        """The tokens that rows end with; empty for images."""
        return {row[-1] for row in self._tokens or []}

    def largest(self) -> tuple[int, int]:
        """The largest token and the largest token type; -1 where there are none."""
        tokens, types = (
            max((max(row) for row in rows or []), default=-1) for rows in (self._tokens, self._token_types)
        )
        return tokens, types

    def some_tokens(self, rows: int) -> list[list[int]]:
        """The tokens of the first rows, this many at most; empty for images."""
        return (self._tokens or [])[:rows]

    def take(self, rows: Sequence[int]) -> Split:
        """The split of these rows alone, in this order."""
        return Split(
            self.labels[rows],
            images=None if self._images is None else self._images[rows],
            tokens=None if self._tokens is None else [self._tokens[row] for row in rows],
            token_types=None if self._token_types is None else [self._token_types[row] for row in rows],
            unscored=None if self._unscored is None else [self._unscored[row] for row in rows],
        )

    def labelled(self, labels: Tensor) -> Split:
        """The same rows with other labels, (N,), of classes."""
        other = copy(self)
        other.labels = labels
        return other

    def contents(self) -> dict[str, Tensor]:
        """All that batches are made of: token lists as one row of ids each, and their lengths."""
        found = {"labels": self.labels} if self._images is None else {"labels": self.labels, "images": self._images}
        for name, lists in {"tokens": self._tokens, "token_types": self._token_types}.items():
            if lists is not None:
                ids = np.fromiter(chain.from_iterable(lists), dtype=np.int64)
                found |= {name: torch.from_numpy(ids), f"{name}.lengths": torch.tensor([len(row) for row in lists])}
        return found if self._unscored is None else found | {"unscored": torch.tensor(self._unscored)}


def _joined(lists: list[list[int]], rows: Tensor) -> Tensor:
    """The numbers of some rows, one behind the other."""
    return torch.tensor([number for row in rows.tolist() for number in lists[row]])


@final
class ClientData:
    """One client's rows of a split.

    Batch `number` is a pure function of (seed, number), so that a run resumed at any step, or a client that sat out a
    round, needs no state. Every epoch is a new permutation of all rows; a batch never straddles two epochs, so the
    last of an epoch is smaller where `batch_size` does not divide the rows.
    """

    def __init__(
        self,
        split: Split,
        rows: np.ndarray,
        *,
        batch_size: int,
        seed: int,
        augment: Augmentation | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """`rows` are numbers of rows of `split`; `augment`: of images; batches are put on `device`."""
        if not len(rows):
            raise ValueError("a client needs at least one row")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        self._split = split
        self._rows = np.asarray(rows, dtype=np.int64)
        self._size = batch_size
        self._seed = seed
        self._augment = augment
        self._device = device

    def __len__(self) -> int:
        """The number of rows."""
        return len(self._rows)

    @property
    def rows(self) -> np.ndarray:
        """The client's row numbers in the split."""
        return self._rows

    @property
    def split(self) -> Split:
        """The client's rows alone."""
        return self._split.take(self._rows.tolist())

    def mislabelled(self, classes: int) -> ClientData:
        """The same rows, each of class `classes` − 1 − y in the place of y."""
        other = copy(self)
        other._split = self._split.labelled(classes - 1 - self._split.labels)
        return other

    def longest(self, behind: int) -> Batch:
        """As many rows as a batch has, those with the most tokens: no batch has more of them.

        The longest come first, but for the `behind` shortest, which stand before them.
        """
        order = sorted(self._rows.tolist(), key=lambda row: -self._split.tokens_of(row))[: self._size]
        first = len(order) - behind
        return self._split.batch(order[first:] + order[:first]).to(self._device)

    def batch(self, number: int) -> Batch:
        """Batch `number`, counted from 0 over all epochs."""
        if number < 0:
            raise ValueError(f"batch number {number} must be at least 0")
        a_epoch = -(-len(self) // self._size)
        epoch, place = divmod(number, a_epoch)
        stream = np.random.SeedSequence([self._seed, epoch])
        order = np.random.Generator(np.random.Philox(stream)).permutation(self._rows)
        rows = torch.from_numpy(order[place * self._size : (place + 1) * self._size])
        batch = self._split.batch(rows)
        if self._augment is not None:
            changed = self._augment.of(batch.inputs["pixel_values"], rows, epoch)
            batch = replace(batch, inputs={"pixel_values": changed})
        return batch.to(self._device)
