"""The two ends of a link whose chain needs no comparison: plain, or with error feedback."""

from collections.abc import Mapping
from typing import Any, final

import numpy as np

from halfback_device.codecs.chain import Chain
from halfback_device.codecs.protocol import Parts, Samples, State, finite
from halfback_device.errors import PeerError
from halfback_device.messages import Array


@final
class Plain:
    """Either end of a chain without memory."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain

    def encode(self, matrix: Array, samples: Samples) -> Parts:
        """The chain's arrays."""
        return self._chain.encode(matrix, samples.rows)

    def decode(self, parts: Parts, samples: Samples) -> Array:
        """The matrix; raises as `Chain.decode`, and for values that are not finite, before anyone remembers them."""
        matrix = self._chain.decode(parts, sum(samples.rows))
        if not finite(matrix):
            raise PeerError("codec: payload", "a value came that is not finite")
        return matrix

    def most(self, rows: int, samples: int) -> tuple[int, int]:
        """The chain's."""
        return self._chain.most(rows)

    def state(self) -> State:
        """Nothing."""
        return {}, {}

    def load_state(self, arrays: Mapping[str, Array], values: Mapping[str, Any]) -> None:
        """Nothing to load."""


@final
class FeedbackSender:
    """Adds to a sample's rows what the chain lost of them when they were last sent."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self._lost: dict[int, Array] = {}

    def encode(self, matrix: Array, samples: Samples) -> Parts:
        """The chain's arrays of the corrected rows."""
        if samples.ids is None:
            return self._chain.encode(matrix)
        corrected = matrix.copy()
        for sample, piece in zip(samples.ids, samples.split(corrected), strict=True):
            if sample in self._lost and self._lost[sample].shape == piece.shape:
                piece += self._lost[sample]
        parts = self._chain.encode(corrected)
        lost = np.subtract(corrected, self._chain.decode(parts, len(corrected)), out=corrected)
        for sample, rest in zip(samples.ids, samples.split(lost), strict=True):
            self._lost[sample] = rest.copy()
        return parts

    def state(self) -> State:
        """What was lost, by sample."""
        return {str(sample): rest for sample, rest in self._lost.items()}, {}

    def load_state(self, arrays: Mapping[str, Array], values: Mapping[str, Any]) -> None:
        """Continues from `state`."""
        self._lost = {int(sample): rest for sample, rest in arrays.items()}
