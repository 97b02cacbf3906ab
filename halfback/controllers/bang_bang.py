"""Bang-bang control on the validation perplexity, the first adaptive rule of SplitCom (arXiv 2602.10564).

The paper names the rule and what it watches, and gives neither trigger nor step. Ours: after an evaluation, with p the
validation perplexity and b the best one so far, p included,

    p > b·(1 + tolerance)                  worse than allowed: every threshold goes up by `step`, at most to `high`
    p ≤ b·(1 + tolerance − hysteresis)     good enough: every threshold goes down by `step`, at least to `low`
    between the two                        the hysteresis band: no move

So the upper bound is `tolerance` above the best and the lower one `hysteresis` below the upper; without the band, a
perplexity that lies on a bound would move the thresholds at every evaluation. A step of high − low or more is the
classic controller with two values. A perplexity that is not finite counts as worse than allowed and is never the best.
A round without an evaluation moves nothing. One perplexity is all there is to see, so all links move together.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from halfback.controllers.checks import check_bounds, check_from_zero
from halfback.controllers.protocol import Observation
from halfback.errors import UserError, shown


@dataclass(frozen=True)
class BangBangOptions:
    """Options of the bang-bang rule; a threshold is a cosine similarity.

    Attributes:
        low: the lowest threshold, which sends least.
        high: the highest threshold, which sends most.
        initial: the threshold until the first evaluation.
        step: how far one evaluation moves a threshold.
        tolerance: by how much a perplexity may exceed the best, as a share of it.
        hysteresis: how much of the tolerance is the band in which nothing moves.
    """

    low: float = 0.9
    high: float = 1.0
    initial: float = 0.98
    step: float = 0.02
    tolerance: float = 0.01
    hysteresis: float = 0.005

    def __post_init__(self) -> None:
        check_bounds(self.low, self.high, self.initial)
        check_from_zero("tolerance", self.tolerance)
        check_from_zero("hysteresis", self.hysteresis, most=self.tolerance)
        if not 0 < self.step <= 2:
            raise UserError(f"controller.step={self.step:g}: more than 0, at most 2 is allowed")

    def start(self, links: Sequence[str], seed: int) -> "BangBang":
        """A controller at its initial threshold."""
        return BangBang(self, links)


class BangBang:
    """One threshold for all links, moved after each evaluation."""

    def __init__(self, options: BangBangOptions, links: Sequence[str]) -> None:
        self.options = options
        self.links = tuple(links)
        self._threshold = options.initial
        self._best_loss: float | None = None

    def thresholds(self) -> dict[str, float]:
        """Link → threshold, in [-1, 1]."""
        return dict.fromkeys(self.links, self._threshold)

    def observe(self, seen: Observation) -> None:
        """Moves the thresholds if the round ended in an evaluation."""
        if seen.validation_loss is None:
            return
        options, excess = self.options, self._excess(seen.validation_loss)
        if excess > math.log1p(options.tolerance):
            self._threshold = min(options.high, self._threshold + options.step)
        elif excess <= math.log1p(options.tolerance - options.hysteresis):
            self._threshold = max(options.low, self._threshold - options.step)

    def _excess(self, loss: float) -> float:
        """ln p − ln b ≥ 0: losses are compared, since a perplexity overflows where a loss does not."""
        if not math.isfinite(loss):
            return math.inf
        self._best_loss = loss if self._best_loss is None else min(self._best_loss, loss)
        return loss - self._best_loss

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The threshold and the best validation loss."""
        return {}, {"threshold": self._threshold, "best_loss": self._best_loss}

    def load_state_dict(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Goes on from what `state_dict` gave."""
        best = values["best_loss"]
        if best is not None and not (type(best) in (int, float) and math.isfinite(best)):
            raise UserError(f"controller bang_bang: best_loss={shown(best)}: a finite number is allowed, or null")
        self._threshold, self._best_loss = values["threshold"], best
