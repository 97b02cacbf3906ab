"""The two ends of a link whose chain needs no comparison: plain, or with error feedback."""

from collections.abc import Mapping
from typing import Any, final

from torch import Tensor

from halfback.codecs.chain import Chain
from halfback.codecs.protocol import Parts, Samples, State, finite
from halfback.errors import PeerError


@final
class Plain:
    """Either end of a chain without memory."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain

    def encode(self, matrix: Tensor, samples: Samples) -> Parts:
        """The chain's tensors."""
        return self._chain.encode(matrix, samples.rows)

    def decode(self, parts: Parts, samples: Samples) -> Tensor:
        """The matrix; raises as `Chain.decode`, and for values that are not finite, before anyone remembers them."""
        matrix = self._chain.decode(parts, sum(samples.rows))
        if not finite(matrix):
            raise PeerError("codec: payload", "a value came that is not finite")
        return matrix

    def most(self, rows: int, samples: int) -> tuple[int, int]:
        """The chain's."""
        return self._chain.most(rows)

    def tensors(self) -> list[Tensor]:
        """None."""
        return []

    def state(self) -> State:
        """Nothing."""
        return {}, {}

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Nothing to load."""


@final
class FeedbackSender:
    """Adds to a sample's rows what the chain lost of them when they were last sent."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self._lost: dict[int, Tensor] = {}

    def encode(self, matrix: Tensor, samples: Samples) -> Parts:
        """The chain's tensors of the corrected rows."""
        if samples.ids is None:
            return self._chain.encode(matrix)
        corrected = matrix.clone()  # and changed in place from here on: a device has no memory for more of them
        pieces = dict(zip(samples.ids, corrected.split(samples.rows) if samples.ids else (), strict=True))
        for sample, piece in pieces.items():
            if self._fits(sample, piece):
                piece += self._lost[sample].to(piece)
        parts = self._chain.encode(corrected)
        corrected -= self._chain.decode(parts, len(corrected))
        for sample, rest in pieces.items():
            self._lost[sample] = rest.clone()
        return parts

    def _fits(self, sample: int, piece: Tensor) -> bool:
        return sample in self._lost and self._lost[sample].shape == piece.shape

    def tensors(self) -> list[Tensor]:
        """What was lost."""
        return list(self._lost.values())

    def state(self) -> State:
        """What was lost, by sample."""
        return {str(sample): rest for sample, rest in self._lost.items()}, {}

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Continues from `state`."""
        self._lost = {int(sample): rest for sample, rest in tensors.items()}
