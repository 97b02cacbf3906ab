"""Private activations: a sample's rows are clipped together, and Gaussian noise is added to each of their values.

The Gaussian mechanism (Dwork and Roth 2014, section 3.5.3 and appendix A), at the sender, on one sample at a time: x is
all rows of a sample as one vector, sent is x · min(1, clip ÷ ‖x‖) + noise · 2 · clip · z, z from N(0, I). Another row
in the sample's place moves the clipped vector by at most 2 · clip, whatever it holds, so one release is (ε, δ)-private
for the noise multiplier σ = `noise`, and n releases are what `privacy.account` says of n. What comes behind it in the
chain sees what is private already. The noise comes from the operating system and never from a recipe's seed, which the
server has.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from halfback.codecs.chain import Chain
from halfback.codecs.protocol import Parts, Samples, State
from halfback.codecs.releases import Releases
from halfback.errors import UserError
from halfback.privacy.account import epsilon as epsilon_of
from halfback.privacy.account import noise_for
from halfback.privacy.noise import noised

_MOST = 1 << 40  # releases of a sample that a budget is looked for in


@dataclass(frozen=True)
class Private:
    """Clip each sample and add noise to it, with a guarantee about everything that is sent of it.

    Attributes:
        clip: the largest L2 norm of a sample's values, all its rows as one vector.
        noise: standard deviation of the noise in units of the sensitivity, which is 2 · clip; this or `epsilon`.
        epsilon: of one release, in place of `noise`.
        delta: of `epsilon` and of the account.
        budget: the largest ε of a sample over all its releases; a sample beyond it isn't sent anew. None for no limit.
    """

    clip: float
    noise: float | None = None
    epsilon: float | None = None
    delta: float = 1e-5
    budget: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.clip < 1e30:
            raise UserError(f"codec private: clip={self.clip:g}: a positive number is allowed")
        if (self.noise is None) == (self.epsilon is None):
            raise UserError("codec private: one of noise and epsilon is needed, and only one")
        if self.noise is not None and not 1e-3 <= self.noise <= 1e6:
            raise UserError(f"codec private: noise={self.noise:g}: 0.001 to 1e6 are allowed")
        if self.epsilon is not None and not 1e-3 <= self.epsilon <= 1e3:
            raise UserError(f"codec private: epsilon={self.epsilon:g}: 0.001 to 1000 are allowed")
        if not 0 < self.delta < 0.5:
            raise UserError(f"codec private: delta={self.delta:g}: more than 0 and less than 0.5 are allowed")
        if self.budget is not None and not self.budget >= self.spent(1) * (1 - 1e-6):
            raise UserError(
                f"codec private: budget={self.budget:g}: one release takes ε = {self.spent(1):.4g}, so as much or more "
                "is allowed"
            )

    @cached_property
    def multiplier(self) -> float:
        """σ: the standard deviation of the noise in units of the sensitivity."""
        return self.noise if self.noise is not None else noise_for(self.epsilon, self.delta, 1)  # type: ignore[arg-type]

    @cached_property
    def limit(self) -> int | None:
        """The most releases of a sample that the budget has room for; None for any number."""
        if self.budget is None:
            return None
        fits, too_many = 1, 2
        while too_many < _MOST and self.spent(too_many) <= self.budget:
            fits, too_many = too_many, 2 * too_many
        while too_many - fits > 1:
            middle = (fits + too_many) // 2
            fits, too_many = (middle, too_many) if self.spent(middle) <= self.budget else (fits, middle)
        return fits

    def spent(self, releases: int) -> float:
        """ε, with `delta`, of a sample after so many releases; 0 of none."""
        return epsilon_of(releases, self.multiplier, self.delta) if releases else 0.0

    def account(self, releases: int) -> "SpentOnActivations":
        """What so many releases of a sample come to."""
        return SpentOnActivations(self.spent(releases), self.delta, self.multiplier, self.clip, releases)

    def bind(self, width: int, dtype: torch.dtype) -> "PrivateStage":
        """The stage for payloads of this width."""
        return PrivateStage(width, self.clip, self.multiplier)


@dataclass(frozen=True)
class SpentOnActivations:
    """What the sample that was sent most often has spent; it is of activations, not of slopes, lengths or labels.

    Attributes:
        epsilon: of all its releases together.
        delta: that goes with it.
        noise: the noise multiplier, in units of 2 · clip.
        clip: the largest norm of a sample's values.
        releases: how often values of it went out.
    """

    epsilon: float
    delta: float
    noise: float
    clip: float
    releases: int


@final
class PrivateStage:
    """Clips and adds noise; what it is handed at once is one sample."""

    dtype, extras, by_sample = torch.float32, 0, True

    def __init__(self, width: int, clip: float, noise: float) -> None:
        """`noise`: the noise multiplier."""
        self.width = width
        self._clip, self._noise = clip, noise

    def encode(self, matrix: Tensor) -> tuple[Tensor, Parts]:
        """Rows of one sample, (rows, width), with noise; in float64 up to the last rounding."""
        values = matrix.detach().double().cpu().numpy().ravel()
        norm = float(np.linalg.norm(values))
        if norm > self._clip:
            values = values * (self._clip / norm)
        noisy = torch.from_numpy(noised(values, 2 * self._clip, self._noise)) if len(values) else matrix.flatten()
        return noisy.view(matrix.shape).float().to(matrix.device), ()

    def decode(self, payload: Tensor, extras: Parts) -> Tensor:
        """As it came."""
        return payload


@final
class PrivateSender:
    """The sending end of a chain with `private` in it: counts releases, and sends noise alone beyond the budget."""

    def __init__(self, options: Private, chain: Chain, releases: Releases, client: int) -> None:
        self._options, self._chain = options, chain
        self._releases, self._client = releases, client

    def is_spent(self, sample: int) -> bool:
        """Whether another release would be beyond the budget."""
        limit = self._options.limit
        return limit is not None and self._releases.of(self._client, sample) >= limit

    def encode(self, matrix: Tensor, samples: Samples) -> Parts:
        """The chain's tensors; each sample counts as released before they are made.

        Raises:
            UserError: the count can't be written.
        """
        whose = samples.whose
        if spent := [self.is_spent(sample) for sample in whose]:
            told = torch.tensor(spent).repeat_interleave(torch.tensor(samples.rows)).to(matrix.device)
            matrix = matrix.masked_fill(told.unsqueeze(1), 0.0)  # noise on zeros says nothing of the sample
        self._releases.add(
            self._client, [sample for sample, is_spent in zip(whose, spent, strict=True) if not is_spent]
        )
        return self._chain.encode(matrix, samples.rows)

    def tensors(self) -> list[Tensor]:
        """None."""
        return []

    def state(self) -> State:
        """Nothing: what was released stays released, whichever checkpoint a run goes on from."""
        return {}, {}

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Nothing to load."""


def private_of(codecs: Sequence[object]) -> Private | None:
    """The codec `private` of a chain; None where it has none."""
    return next((codec for codec in codecs if isinstance(codec, Private)), None)
