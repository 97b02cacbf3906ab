"""Encoded rows, and batches of them in an order of the client's own."""

import hashlib
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np

IGNORED = -100  # the label of positions that the loss leaves out


@dataclass(frozen=True)
class Batch:
    """B rows ready for the bottom.

    Attributes:
        inputs: for texts `input_ids` (N,) int64, the N tokens of all rows one behind the other, and `lengths` (B,)
            int64, how many are of each, with `token_type_ids` (N,) int64 for sentence pairs of tokenizers that have
            them; for images `pixel_values` (B, C, H, W) float32.
        labels: (B,) int64 class numbers, or for language modelling and generation (N,) int64: the tokens, not shifted,
            -100 on prompts and on each row's first.
        sample_ids: (B,) int64, numbers of rows, the same whenever a row comes again.
        scored: where tokens have labels, the places (S,) int64 of those behind which a label other than -100 comes; of
            no others are logits needed. Else None.
    """

    inputs: Mapping[str, np.ndarray]
    labels: np.ndarray
    sample_ids: np.ndarray
    scored: np.ndarray | None = None


@final
class Ragged:
    """Lists of whole numbers in one array: as Python's own they would take a dozen times the memory."""

    def __init__(self, lists: Iterable[Sequence[int]]) -> None:
        """`lists` are taken one by one, so that they need not all be there at once."""
        values, counts = array("i"), array("q", [0])
        for numbers in lists:
            values.extend(numbers)
            counts.append(len(numbers))
        self.values = np.frombuffer(values, dtype=np.int32) if values else np.zeros(0, dtype=np.int32)
        self.ends = np.cumsum(np.frombuffer(counts, dtype=np.int64))

    def __len__(self) -> int:
        """How many lists."""
        return len(self.ends) - 1

    def __getitem__(self, place: int) -> np.ndarray:
        """One of the lists, int32."""
        return self.values[self.ends[place] : self.ends[place + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """(n,) int64, numbers of each list."""
        return np.diff(self.ends)

    def joined(self, places: np.ndarray) -> np.ndarray:
        """The numbers of some lists, one behind the other, int64."""
        return np.concatenate([self[place] for place in places.tolist()]).astype(np.int64)


@final
@dataclass(frozen=True)
class Split:
    """A client's encoded rows.

    Attributes:
        labels: (n,) int64.
        ids: (n,) int64, numbers of the rows among all that the run trains on.
        tokens: of each row; None for images. token_types: likewise, where the model has them.
        unscored: (n,) how many tokens at a row's beginning have no loss, 1 or more, where tokens have one at all.
        images: (n, C, H, W) float32 as they are, or (n, H, W, 3) uint8, which `image_form` makes values of.
        image_form: `scale` of the pixels, None for a division by 255 in float32; `mean` and `std` of each colour.
    """

    labels: np.ndarray
    ids: np.ndarray
    tokens: Ragged | None = None
    token_types: Ragged | None = None
    unscored: np.ndarray | None = None
    images: np.ndarray | None = None
    image_form: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        """Rows."""
        return len(self.labels)

    def batch(self, places: np.ndarray) -> Batch:
        """The rows at these places (at least one, in this order)."""
        labels, ids = self.labels[places], self.ids[places]
        if self.tokens is None:
            assert self.images is not None, "a split has tokens or images"
            return Batch({"pixel_values": self._values(self.images[places])}, labels, ids)
        inputs = {"input_ids": self.tokens.joined(places), "lengths": self.tokens.lengths[places]}
        if self.token_types is not None:
            inputs["token_type_ids"] = self.token_types.joined(places)
        if self.unscored is None:
            return Batch(inputs, labels, ids)
        firsts = np.cumsum(inputs["lengths"]) - inputs["lengths"]
        labels = inputs["input_ids"].copy()
        for first, count in zip(firsts.tolist(), self.unscored[places].tolist(), strict=True):
            labels[first : first + count] = IGNORED
        return Batch(inputs, labels, ids, np.flatnonzero(labels[1:] != IGNORED).astype(np.int64))

    def digest(self) -> str:
        """One text that differs where a row does, or how many there are."""
        sha = hashlib.sha256()
        parts = [self.labels, self.ids, self.unscored, self.images]
        for ragged in (self.tokens, self.token_types):
            parts += [] if ragged is None else [ragged.values, ragged.ends]
        for part in parts:
            sha.update(b"-" if part is None else f"{part.dtype}{part.shape}".encode())
            sha.update(b"" if part is None else np.ascontiguousarray(part).data.cast("B"))
        return sha.hexdigest()

    def _values(self, images: np.ndarray) -> np.ndarray:
        if images.dtype != np.uint8:
            return images
        form = self.image_form
        scaled = images / np.float32(255)
        if form["scale"] is not None:
            scaled = (images.astype(np.float64) * form["scale"]).astype(np.float32)
        values = (scaled - np.asarray(form["mean"], np.float32)) / np.asarray(form["std"], np.float32)
        return np.ascontiguousarray(values.transpose(0, 3, 1, 2))


@final
class Feed:
    """A client's batches: batch `number` is a function of (seed, number) alone, so nothing of it needs to be kept.

    Every epoch is a new permutation of all rows; a batch never straddles two epochs, so the last of an epoch is smaller
    where the size does not divide the rows.

    Attributes:
        cursor: the number of the next batch.
    """

    def __init__(self, split: Split, *, size: int, seed: int) -> None:
        """`split`: of at least one row; `size`: of a batch."""
        self._split, self._size, self._seed = split, size, seed
        self.cursor = 0

    def __len__(self) -> int:
        """The number of rows."""
        return len(self._split)

    def batch(self, number: int) -> Batch:
        """Batch `number`, counted from 0 over all epochs."""
        epoch, place = divmod(number, -(-len(self) // self._size))
        stream = np.random.SeedSequence([self._seed, epoch])
        order = np.random.Generator(np.random.Philox(stream)).permutation(len(self))
        return self._split.batch(order[place * self._size : (place + 1) * self._size])

    def next(self) -> Batch:
        """The batch at the cursor, which goes on."""
        batch = self.batch(self.cursor)
        self.cursor += 1
        return batch
