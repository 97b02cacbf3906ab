"""Temporal reuse: send a sample's rows only when they changed since they were last sent (SplitCom, arXiv 2602.10564).

Both ends remember each sample across epochs. The sender compares a sample's rows, under a random projection, with what
the receiver holds; above the threshold it sends nothing and the receiver takes what it holds, otherwise it sends the
rows through the rest of the chain and both ends remember the result.

Ours, because the paper leaves it open: the projection is a sparse ±1 matrix from a seed; cosine ignores scale, so a
norm guard stands beside it; the sender compares with what the receiver really holds, rounding and the rest of the chain
included; the similarities travel with the skip map, so that a controller on the server sees those of every link.
"""

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

import torch
from torch import Tensor

from halfback.codecs.cache import Cache
from halfback.codecs.chain import Chain
from halfback.codecs.protocol import Parts, Receiver, Samples, Seen, Sender, State, expect
from halfback.codecs.quantise import quantised
from halfback.codecs.sparsify import check_seed, sparse_signs
from halfback.errors import PeerError, UserError

CacheDtype = Literal["float32", "bfloat16", "int8"]


@dataclass(frozen=True)
class Temporal:
    """Send what changed. Must be the first of its chain; its threshold comes from the controller.

    Attributes:
        cache: dtype of what the receiver remembers.
        cap_mb: megabytes that the receiver remembers for one client's link; None for no limit.
        where: the receiver remembers in `memory` or on `disk`, in the run's folder.
        projection: columns of the sender's sketch of a row; None compares the rows themselves.
        norm_guard: how far the norms may be apart, as a share of the remembered one.
        seed: of the projection.
        every: send a sample when it comes for the first time and each so many times after that, whatever it holds: no
            similarities are taken or sent. None compares.
    """

    cache: CacheDtype = "bfloat16"
    cap_mb: float | None = None
    where: Literal["memory", "disk"] = "memory"
    projection: int | None = 64
    norm_guard: float = 0.2
    seed: int = 0
    every: int | None = None

    def __post_init__(self) -> None:
        if self.every is not None and self.every < 1:
            raise UserError(f"codec temporal: every={self.every}: 1 or more are allowed, or null to compare")
        if self.cap_mb is not None and not 0 < self.cap_mb * 1e6 < math.inf:
            raise UserError(f"codec temporal: cap_mb={self.cap_mb:g}: a positive number is allowed, or null")
        if self.projection is not None and self.projection < 1:
            raise UserError(f"codec temporal: projection={self.projection}: 1 or more are allowed, or null for none")
        if not self.norm_guard >= 0:
            raise UserError(f"codec temporal: norm_guard={self.norm_guard:g}: 0 or more is allowed")
        check_seed("temporal", self.seed)

    @property
    def cap(self) -> int | None:
        """The cap in bytes."""
        return None if self.cap_mb is None else int(self.cap_mb * 1e6)

    def size(self, rows: int, width: int) -> int:
        """Bytes that the receiver stores for a sample."""
        return rows * (width + 4) if self.cache == "int8" else rows * width * getattr(torch, self.cache).itemsize

    def check_batch(self, rows: int, width: int) -> None:
        """Refuses a cap that can't hold one batch of this many rows: its own samples would push each other out.

        Raises:
            UserError: names the cap and what is needed.
        """
        if self.cap is not None and self.cap < self.size(rows, width):
            raise UserError(
                f"codec temporal: cap_mb={self.cap_mb:g} is less than one batch; at least "
                f"{self.size(rows, width) / 1e6:.3g} are needed, or null for no limit"
            )


@final
class TemporalSender:
    """The end that compares, or counts. `inner` encodes what is sent and `chain` decodes it as the receiver will."""

    def __init__(
        self, options: Temporal, inner: Sender, chain: Chain, is_spent: Callable[[int], bool] | None = None
    ) -> None:
        """`is_spent`: of a sample that may not be sent anew; None where all may."""
        self.threshold = 1.0
        self.seen: list[Seen] = []  # since somebody last took it
        self.cache = Cache(options.cap, None)
        self._options, self._inner, self._chain = options, inner, chain
        self._is_spent = is_spent or (lambda sample: False)
        self._visits: dict[int, int] = {}  # since a sample was sent, with `every`
        columns = options.projection if options.every is None else None
        self._signs = (
            sparse_signs(chain.width, columns, options.seed) if columns is not None and columns < chain.width else None
        )

    def encode(self, matrix: Tensor, samples: Samples) -> Parts:
        """Similarities (B,) float32 (NaN: nothing to compare with), skip map (B,) bool, the chain's of the rest."""
        pieces = matrix.split(samples.rows)
        similarity, skip = [float("nan")] * len(pieces), [False] * len(pieces)
        if samples.ids is not None:
            check_unique(samples.ids)
            for place, (sample, piece) in enumerate(zip(samples.ids, pieces, strict=True)):
                if self._options.every is not None:
                    skip[place] = not self._is_due(sample, len(piece), self._options.every)
                elif sample in self.cache:
                    similarity[place], near = self._compare(self._sketch(piece), self.cache.get(sample)[0])
                    skip[place] = near and similarity[place] > self.threshold
        sent = [place for place, skipped in enumerate(skip) if not skipped]
        rows = tuple(samples.rows[place] for place in sent)
        ids = None if samples.ids is None else tuple(samples.ids[place] for place in sent)
        changed = torch.cat([pieces[place] for place in sent]) if sent else matrix[:0]
        parts = self._inner.encode(changed, Samples(ids, rows, samples.again))
        if samples.ids is not None:
            for place, skipped in enumerate(skip):
                if skipped:
                    self.cache.touch(samples.ids[place])
            if sent:
                self._remember(samples.ids, sent, rows, parts)
        told = torch.tensor(similarity, dtype=torch.float32), torch.tensor(skip)
        self.seen.append(_seen(*told, parts, len(matrix) * self._chain.row_bytes))
        return (*told, *parts)

    def _remember(self, ids: Sequence[int], sent: Sequence[int], rows: Sequence[int], parts: Parts) -> None:
        held = self._chain.decode(parts, sum(rows)).split(rows)
        checks = _checks(parts, rows)
        for place, values, check in zip(sent, held, checks, strict=True):
            rounded = _loaded(_stored(values, self._options.cache))
            size = self._options.size(len(values), self._chain.width)
            self.cache.put(ids[place], (self._sketch(rounded),), size=size, check=check)

    def _is_due(self, sample: int, rows: int, every: int) -> bool:
        """Whether a sample is sent, by nothing that follows from its values."""
        if sample not in self.cache or len(self.cache.get(sample)[0]) != rows:
            self._visits[sample] = 0
            return True
        self._visits[sample] += 1
        if self._visits[sample] < every or self._is_spent(sample):
            return False
        self._visits[sample] = 0
        return True

    def _sketch(self, rows: Tensor) -> Tensor:
        if self._options.every is not None:
            return rows.new_zeros(len(rows), dtype=torch.bool)  # how many there are is all that is asked
        rows = rows.float()
        return rows if self._signs is None else rows @ self._signs.to(rows.device)

    def _compare(self, now: Tensor, then: Tensor) -> tuple[float, bool]:
        """Cosine of all rows of a sample together, and whether shape and norm allow reuse."""
        if now.shape != then.shape:
            return float("nan"), False
        then = then.to(now.device)
        norm, before = float(now.norm()), float(then.norm())
        if norm == 0 or before == 0:
            return float(norm == before), norm == before
        cosine = float((now * then).sum()) / (norm * before)
        return min(max(cosine, -1.0), 1.0), abs(norm - before) <= self._options.norm_guard * before

    def tensors(self) -> list[Tensor]:
        """The sketches, and what the inner end remembers."""
        return [*self.cache.tensors(), *self._inner.tensors()]

    def state(self) -> State:
        """The sketches, what the inner end remembers, and visits since samples were sent."""
        tensors, values = _joined(self.cache.state(), self._inner.state())
        return tensors, values | ({} if self._options.every is None else {"visits": [*self._visits.items()]})

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Continues from `state`."""
        _parted(tensors, values, self.cache, self._inner)
        self._visits = {sample: visits for sample, visits in values.get("visits", ())}


@final
class TemporalReceiver:
    """The end that remembers the values."""

    def __init__(self, options: Temporal, inner: Receiver, chain: Chain, folder: Path | None) -> None:
        """`folder`: where to remember if that is on disk."""
        self.seen: list[Seen] = []
        self.cache = Cache(options.cap, folder if options.where == "disk" else None)
        self._options, self._inner, self._chain = options, inner, chain

    def decode(self, parts: Parts, samples: Samples) -> Tensor:
        """The matrix (rows, width).

        Raises:
            PeerError: the skip map names a sample that is not here as it is now, or a tensor is malformed.
        """
        if len(parts) < 2:
            raise PeerError("codec", f"{len(parts)} tensors", f"{2 + self._chain.parts} are allowed")
        (similarity, skipped), parts = parts[:2], parts[2:]
        expect("codec: similarities", similarity, torch.float32, len(samples.rows))
        if not bool(((similarity.abs() <= 1) | similarity.isnan()).all()):  # a controller reckons with them
            raise PeerError("codec: similarities", "one outside [-1, 1] came")
        expect("codec: skip map", skipped, torch.bool, len(samples.rows))
        skip = skipped.tolist()
        if samples.ids is None and any(skip):
            raise PeerError("codec: skip map", "a sample is skipped where all must come, as in a repeated upload")
        ids = samples.ids
        if ids is not None:
            check_unique(ids)
            for sample, rows, is_skipped in zip(ids, samples.rows, skip, strict=True):
                if is_skipped:
                    self._check_here(sample, rows)
        sent = [place for place, is_skipped in enumerate(skip) if not is_skipped]
        rows_sent = tuple(samples.rows[place] for place in sent)
        sent_ids = None if ids is None else tuple(ids[place] for place in sent)
        changed = self._inner.decode(parts, Samples(sent_ids, rows_sent))
        if ids is None:
            self.seen.append(_seen(similarity, skipped, parts, len(changed) * self._chain.row_bytes))
            return changed
        held = iter(changed.split(rows_sent))
        pieces = [
            _loaded(self.cache.get(sample)).to(changed) if is_skipped else next(held)
            for sample, is_skipped in zip(ids, skip, strict=True)
        ]
        for sample, is_skipped in zip(ids, skip, strict=True):
            if is_skipped:
                self.cache.touch(sample)
        for place, check in zip(sent, _checks(parts, rows_sent), strict=True):
            stored = _stored(pieces[place], self._options.cache)
            size = self._options.size(samples.rows[place], self._chain.width)
            self.cache.put(ids[place], stored, size=size, check=check)
        matrix = torch.cat(pieces)
        self.seen.append(_seen(similarity, skipped, parts, len(matrix) * self._chain.row_bytes))
        return matrix

    def most(self, rows: int, samples: int) -> tuple[int, int]:
        """With nothing skipped: the chain's, a similarity for each sample and its place in the skip map."""
        size, parts = self._chain.most(rows)
        return size + 5 * samples, parts + 2

    def tensors(self) -> list[Tensor]:
        """The values, where they are in memory."""
        return self.cache.tensors()

    def _check_here(self, sample: int, rows: int) -> None:
        if sample not in self.cache:
            raise PeerError("codec: skip map", f"sample {sample}", "but it was never sent or has left the cache")
        held = len(self.cache.get(sample)[0])
        if held != rows:
            raise PeerError("codec: skip map", f"sample {sample} came with {rows} rows, {held} are in the cache")

    def state(self) -> State:
        """The values, and what the inner end remembers."""
        return _joined(self.cache.state(), self._inner.state())

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Continues from `state`."""
        _parted(tensors, values, self.cache, self._inner)


def _seen(similarity: Tensor, skipped: Tensor, parts: Parts, full_bytes: int) -> Seen:
    return Seen(similarity.cpu(), skipped.cpu(), sum(part.nbytes for part in parts), full_bytes)


def check_unique(ids: Sequence[int]) -> None:
    """Refuses a batch that has a sample twice.

    Raises:
        PeerError: names the sample.
    """
    if len(set(ids)) < len(ids):
        twice = next(sample for place, sample in enumerate(ids) if sample in ids[:place])
        raise PeerError("codec", f"sample id {twice} came twice in one batch; temporal reuse needs one id a sample")


def _stored(values: Tensor, dtype: CacheDtype) -> Parts:
    if dtype == "int8":
        payload, extras = quantised(values, 127)
        return (payload, *extras)
    # Of its own memory: a slice would keep the whole batch alive.
    return (values.to(getattr(torch, dtype), copy=True),)


def _loaded(parts: Parts) -> Tensor:
    return parts[0].float() * parts[1] if len(parts) == 2 else parts[0].float()


def _checks(parts: Parts, rows: Sequence[int]) -> list[int]:
    """A checksum of what was sent for each sample: the same bytes at both ends, whatever they are computed on."""
    pieces = [part.detach().cpu().contiguous().split(list(rows)) for part in parts]
    sums = []
    for of_sample in zip(*pieces, strict=True):
        check = 0
        for piece in of_sample:
            check = zlib.crc32(piece.contiguous().view(torch.uint8).numpy().data, check)
        sums.append(check)
    return sums


def _joined(cache: State, inner: State) -> State:
    tensors = {f"cache.{name}": t for name, t in cache[0].items()} | {
        f"inner.{name}": t for name, t in inner[0].items()
    }
    return tensors, {"cache": cache[1], "inner": inner[1]}


def _parted(tensors: Mapping[str, Tensor], values: Mapping[str, Any], cache: Cache, inner: Sender | Receiver) -> None:
    for name, end in (("cache", cache), ("inner", inner)):
        mine = {key.removeprefix(f"{name}."): t for key, t in tensors.items() if key.startswith(f"{name}.")}
        end.load_state(mine, values[name])
