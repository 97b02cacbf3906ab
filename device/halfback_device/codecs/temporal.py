"""Temporal reuse: send a sample's rows only when they changed since they were last sent (docs/protocol.md).

Both ends remember each sample across epochs. The sender compares a sample's rows, under a random projection of its own,
with what the receiver holds; above the threshold it sends nothing and the receiver takes what it holds, otherwise it
sends the rows through the rest of the chain and both ends remember the result.
"""

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

import numpy as np

from halfback_device.codecs.cache import Cache
from halfback_device.codecs.chain import Chain
from halfback_device.codecs.protocol import Parts, Receiver, Samples, Sender, State, expect
from halfback_device.codecs.stages import quantised
from halfback_device.errors import PackageError, PeerError
from halfback_device.halves import to_bfloat16, widened
from halfback_device.messages import Array


@dataclass(frozen=True)
class Temporal:
    """The options; the threshold comes from the server.

    Attributes:
        cache: dtype of what the receiver remembers.
        cap_mb: megabytes that the receiver remembers for one client's link; None for no limit.
        where: the receiver remembers in `memory` or on `disk`.
        projection: columns of the sender's sketch of a row; None compares the rows themselves.
        norm_guard: how far the norms may be apart, as a share of the remembered one.
        seed: of the projection.
        every: send a sample when it comes for the first time and each so many times after that, whatever it holds; None
            compares.
    """

    cache: Literal["float32", "bfloat16", "int8"] = "bfloat16"
    cap_mb: float | None = None
    where: Literal["memory", "disk"] = "memory"
    projection: int | None = 64
    norm_guard: float = 0.2
    seed: int = 0
    every: int | None = None

    def __post_init__(self) -> None:
        for option, is_right in (
            ("cache", self.cache in ("float32", "bfloat16", "int8")),
            ("cap_mb", self.cap_mb is None or 0 < self.cap_mb * 1e6 < math.inf),
            ("where", self.where in ("memory", "disk")),
            ("projection", self.projection is None or self.projection >= 1),
            ("norm_guard", self.norm_guard >= 0),
            ("seed", 0 <= self.seed < 1 << 64),
            ("every", self.every is None or self.every >= 1),
        ):
            if not is_right:
                raise PackageError(f"codec temporal: {option}={getattr(self, option)} is not allowed")

    @property
    def cap(self) -> int | None:
        """The cap in bytes."""
        return None if self.cap_mb is None else int(self.cap_mb * 1e6)

    def size(self, rows: int, width: int) -> int:
        """Bytes that the receiver stores for a sample."""
        return rows * (width + 4) if self.cache == "int8" else rows * width * (2 if self.cache == "bfloat16" else 4)


@final
class TemporalSender:
    """The end that compares, or counts. `inner` encodes what is sent and `chain` decodes it as the receiver will."""

    def __init__(
        self, options: Temporal, inner: Sender, chain: Chain, is_spent: Callable[[int], bool] | None = None
    ) -> None:
        """`is_spent`: of a sample that may not be sent anew; None where all may."""
        self.threshold = 1.0
        self.cache = Cache(options.cap, None)
        self._options, self._inner, self._chain = options, inner, chain
        self._is_spent = is_spent or (lambda sample: False)
        self._visits: dict[int, int] = {}  # since a sample was sent, with `every`
        columns = options.projection if options.every is None else None
        self._signs = (
            sparse_signs(chain.width, columns, options.seed) if columns is not None and columns < chain.width else None
        )

    def encode(self, matrix: Array, samples: Samples) -> Parts:
        """Similarities (B,) float32 (NaN: nothing to compare with), skip map (B,) bool, the chain's of the rest."""
        pieces = samples.split(matrix)
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
        changed = np.concatenate([pieces[place] for place in sent]) if sent else matrix[:0]
        parts = self._inner.encode(changed, Samples(ids, rows, samples.again))
        if samples.ids is not None:
            for place, skipped in enumerate(skip):
                if skipped:
                    self.cache.touch(samples.ids[place])
            if sent:
                self._remember([samples.ids[place] for place in sent], rows, parts)
        return (np.array(similarity, dtype=np.float32), np.array(skip, dtype=np.bool_), *parts)

    def _remember(self, ids: Sequence[int], rows: tuple[int, ...], parts: Parts) -> None:
        held = Samples(None, rows).split(self._chain.decode(parts, sum(rows)))
        for sample, values, check in zip(ids, held, _checks(parts, rows), strict=True):
            rounded = _loaded(_stored(values, self._options.cache))
            size = self._options.size(len(values), self._chain.width)
            self.cache.put(sample, (self._sketch(rounded).copy(),), size=size, check=check)

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

    def _sketch(self, rows: Array) -> Array:
        if self._options.every is not None:
            return np.zeros(len(rows), dtype=np.uint8)  # how many there are is all that is asked
        return rows if self._signs is None else rows @ self._signs

    def _compare(self, now: Array, then: Array) -> tuple[float, bool]:
        """Cosine of all rows of a sample together, and whether shape and norm allow reuse."""
        if now.shape != then.shape:
            return float("nan"), False
        norm, before = float(np.linalg.norm(now)), float(np.linalg.norm(then))
        if norm == 0 or before == 0:
            return float(norm == before), norm == before
        cosine = float(np.vdot(now, then)) / (norm * before)
        return min(max(cosine, -1.0), 1.0), abs(norm - before) <= self._options.norm_guard * before

    def state(self) -> State:
        """The sketches, what the inner end remembers, and visits since samples were sent."""
        arrays, values = _joined(self.cache.state(), self._inner.state())
        return arrays, values | ({} if self._options.every is None else {"visits": [*self._visits.items()]})

    def load_state(self, arrays: Mapping[str, Array], values: Mapping[str, Any]) -> None:
        """Continues from `state`."""
        _parted(arrays, values, self.cache, self._inner)
        self._visits = {sample: visits for sample, visits in values.get("visits", ())}


@final
class TemporalReceiver:
    """The end that remembers the values."""

    def __init__(self, options: Temporal, inner: Receiver, chain: Chain, folder: Path | None) -> None:
        """`folder`: where to remember if that is on disk."""
        self.cache = Cache(options.cap, folder if options.where == "disk" else None)
        self._options, self._inner, self._chain = options, inner, chain

    def decode(self, parts: Parts, samples: Samples) -> Array:
        """The matrix (rows, width).

        Raises:
            PeerError: the skip map names a sample that is not here as it is now, or an array is malformed.
        """
        if len(parts) < 2:
            raise PeerError("codec", f"{len(parts)} tensors", f"{2 + self._chain.parts} are allowed")
        (similarity, skipped), parts = parts[:2], parts[2:]
        expect("codec: similarities", similarity, np.float32, len(samples.rows))
        if not bool(((np.abs(similarity) <= 1) | np.isnan(similarity)).all()):
            raise PeerError("codec: similarities", "one outside [-1, 1] came")
        expect("codec: skip map", skipped, np.bool_, len(samples.rows))
        skip, ids = skipped.tolist(), samples.ids
        if ids is None and any(skip):
            raise PeerError("codec: skip map", "a sample is skipped where all must come, as in a repeated upload")
        if ids is not None:
            check_unique(ids)
            for sample, rows, is_skipped in zip(ids, samples.rows, skip, strict=True):
                if is_skipped:
                    self._check_here(sample, rows)
        sent = [place for place, is_skipped in enumerate(skip) if not is_skipped]
        rows_sent = tuple(samples.rows[place] for place in sent)
        changed = self._inner.decode(
            parts, Samples(None if ids is None else tuple(ids[place] for place in sent), rows_sent)
        )
        return changed if ids is None else self._merged(changed, Samples(ids, samples.rows), skip, parts)

    def _merged(self, changed: Array, samples: Samples, skip: Sequence[bool], parts: Parts) -> Array:
        """What came and what is remembered, in the order of the batch; remembers what came."""
        ids = samples.ids or ()
        sent = [place for place, is_skipped in enumerate(skip) if not is_skipped]
        rows_sent = tuple(samples.rows[place] for place in sent)
        held = iter(Samples(None, rows_sent).split(changed))
        pieces = [
            _loaded(self.cache.get(sample)) if is_skipped else next(held)
            for sample, is_skipped in zip(ids, skip, strict=True)
        ]
        for sample, is_skipped in zip(ids, skip, strict=True):
            if is_skipped:
                self.cache.touch(sample)
        for place, check in zip(sent, _checks(parts, rows_sent), strict=True):
            stored = _stored(pieces[place], self._options.cache)
            size = self._options.size(samples.rows[place], self._chain.width)
            self.cache.put(ids[place], stored, size=size, check=check)
        return np.concatenate(pieces)

    def most(self, rows: int, samples: int) -> tuple[int, int]:
        """With nothing skipped: the chain's, a similarity for each sample and its place in the skip map."""
        size, parts = self._chain.most(rows)
        return size + 5 * samples, parts + 2

    def _check_here(self, sample: int, rows: int) -> None:
        if sample not in self.cache:
            raise PeerError("codec: skip map", f"sample {sample}", "but it was never sent or has left the cache")
        held = len(self.cache.get(sample)[0])
        if held != rows:
            raise PeerError("codec: skip map", f"sample {sample} came with {rows} rows, {held} are in the cache")

    def state(self) -> State:
        """The values, and what the inner end remembers."""
        return _joined(self.cache.state(), self._inner.state())

    def load_state(self, arrays: Mapping[str, Array], values: Mapping[str, Any]) -> None:
        """Continues from `state`."""
        _parted(arrays, values, self.cache, self._inner)


def check_unique(ids: Sequence[int]) -> None:
    """Refuses a batch that has a sample twice.

    Raises:
        PeerError: names the sample.
    """
    if len(set(ids)) < len(ids):
        twice = next(sample for place, sample in enumerate(ids) if sample in ids[:place])
        raise PeerError("codec", f"sample id {twice} came twice in one batch; temporal reuse needs one id a sample")


def sparse_signs(width: int, size: int, seed: int) -> Array:
    """(width, size) float32: ±√(3 ÷ size) with probability 1/6 each, else 0; keeps a row's squared norm on average.

    The receiver never needs it, so that any other projection would do as well.
    """
    draws = np.random.Generator(np.random.Philox(key=seed)).integers(0, 6, size=(width, size))
    signs = (draws == 0).astype(np.float32) - (draws == 1).astype(np.float32)
    found: Array = signs * np.float32(math.sqrt(3 / size))
    return found


def _stored(values: Array, dtype: str) -> Parts:
    if dtype == "int8":
        payload, extras = quantised(values, 127)
        return (payload, *extras)
    return (to_bfloat16(values),) if dtype == "bfloat16" else (values.copy(),)  # a slice would keep the batch alive


def _loaded(parts: Parts) -> Array:
    return widened(parts[0]) * parts[1] if len(parts) == 2 else widened(parts[0])


def _checks(parts: Parts, rows: Sequence[int]) -> list[int]:
    """A checksum of what was sent for each sample: the same bytes at both ends."""
    sums, begin = [], 0
    for count in rows:
        check = 0
        for part in parts:
            check = zlib.crc32(part[begin : begin + count].tobytes(), check)
        sums.append(check)
        begin += count
    return sums


def _joined(cache: State, inner: State) -> State:
    arrays = {f"cache.{name}": a for name, a in cache[0].items()} | {f"inner.{name}": a for name, a in inner[0].items()}
    return arrays, {"cache": cache[1], "inner": inner[1]}


def _parted(arrays: Mapping[str, Array], values: Mapping[str, Any], cache: Cache, inner: Sender | Receiver) -> None:
    for name, end in (("cache", cache), ("inner", inner)):
        mine = {key.removeprefix(f"{name}."): a for key, a in arrays.items() if key.startswith(f"{name}.")}
        end.load_state(mine, values[name])
