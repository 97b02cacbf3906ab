"""A learned rule: deep deterministic policy gradient, the second adaptive rule of SplitCom (arXiv 2602.10564).

The paper names the method and says that the reward weighs loss and bytes. All the rest is ours. Each `probe_every`-th
round is a *probe*: all thresholds at `high`. L is a round's training loss, R what it would have been at `high`, on the
line between the probes before and behind it; a *share* is bytes sent ÷ bytes that sending everything would have taken.

    increase  L/R − 1, clipped to [-1, 1]
    reward    −loss_weight · increase − bytes_weight · share of all links together
    state     L/(last probe's loss) − 1, ×10, clipped to [-1, 1]; for each link the mean and standard deviation of the
              similarity, its share, and its threshold, with low…high as -1…1
    action    a number in [-1, 1] for each link, read as a threshold from low to high

So with the default weights a loss 1 % above that of a probe costs as much as a tenth of the bytes. A running average of
the loss would follow a loss that lasts, which then costs nothing; probes don't, and what the loss does by itself is in
them too. They can't see damage that sits in the weights, since a probe has it as well. Rewards wait for the next probe.
`discount` is low because what the loss does later is mostly not this threshold's doing.

The first `warm_up` thresholds are drawn uniformly from the bounds, so that the critic sees all of them; later ones are
the policy's with Gaussian noise, which fades over `noise_rounds` to a tenth. Rounds in which nothing could be compared
(the first epoch) keep the initial threshold and act as probes, since there no threshold has any effect. A loss that
is not finite is an increase of 1 and no reference. Validation losses come too rarely and are not used.

It needs hundreds of rounds: see docs/controllers.md for figures, and take `bang_bang` for fewer.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from halfback.controllers.checks import check_bounds, check_count, check_from_zero
from halfback.controllers.protocol import LinkUse, Observation
from halfback.errors import UserError, of_extra

if TYPE_CHECKING:
    from halfback.controllers.learner import Learner

_SCALE = 10  # a change of the loss by a tenth is the largest that the state tells apart
_LAST_NOISE = 0.1  # of the first noise
_UPDATES = 4  # of the networks, a round


@dataclass(frozen=True)
class DdpgOptions:
    """Options of the learned rule; a threshold is a cosine similarity.

    Attributes:
        low: the lowest threshold, which sends least.
        high: the highest threshold, which sends most.
        initial: the threshold until something could be compared.
        probe_every: decisions from one probe to the next.
        loss_weight: cost of a loss twice as high as that of a probe, a round.
        bytes_weight: cost of sending everything, a round.
        discount: weight of the next round's reward.
        warm_up: rounds with random thresholds, before the policy decides.
        noise: standard deviation of the first noise on the policy's action, whose range is 2.
        noise_rounds: rounds over which the noise fades to a tenth.
    """

    low: float = 0.9
    high: float = 1.0
    initial: float = 0.98
    probe_every: int = 10
    loss_weight: float = 10.0
    bytes_weight: float = 1.0
    discount: float = 0.5
    warm_up: int = 20
    noise: float = 0.3
    noise_rounds: int = 200

    def __post_init__(self) -> None:
        check_bounds(self.low, self.high, self.initial)
        for option in ("loss_weight", "bytes_weight", "noise"):
            check_from_zero(option, getattr(self, option))
        if not 0 <= self.discount < 1:
            raise UserError(f"controller.discount={self.discount:g}: 0 or more, below 1 is allowed")
        check_count("probe_every", self.probe_every, 2)
        check_count("warm_up", self.warm_up, 1)
        check_count("noise_rounds", self.noise_rounds, 1)

    def start(self, links: Sequence[str], seed: int) -> "Ddpg":
        """A controller that has learned nothing yet.

        Raises:
            UserError: TorchRL is not installed.
        """
        with of_extra("rl"):
            from halfback.controllers.learner import Learner
        return Ddpg(self, links, Learner(1 + 4 * len(links), len(links), self.discount, seed))


class Ddpg:
    """Thresholds that follow a policy, learned while the run goes on."""

    def __init__(self, options: DdpgOptions, links: Sequence[str], learner: "Learner") -> None:
        self.options = options
        self.links = tuple(links)
        self._learner = learner
        self._state: Tensor | None = None  # (1 + 4·links,); None before the first decision
        self._action = torch.zeros(len(links))  # what was decided on that state
        self._decisions = 0
        self._reference: float | None = None  # the loss of the last probe
        self._waiting: list[_Round] = []  # since then

    def thresholds(self) -> dict[str, float]:
        """Link → threshold, in [low, high]."""
        options = self.options
        if self._state is None:
            return dict.fromkeys(self.links, options.initial)
        shares = ((self._action.double() + 1) / 2).tolist()
        span = options.high - options.low
        chosen = (min(options.high, options.low + span * share) for share in shares)
        return dict(zip(self.links, chosen, strict=True))

    def observe(self, seen: Observation) -> None:
        """Learns from the round that the last thresholds led to, and decides the next ones."""
        used = [seen.links.get(link, _UNUSED) for link in self.links]
        compared = any(use.compared for use in used)
        probed = not compared or (self._decisions - 1) % self.options.probe_every == 0
        if probed:
            self._settle(seen.train_loss)
        if not compared:
            return
        state = self._state_of(_increase(seen.train_loss, self._reference), used)
        if self._state is not None and not probed:
            sent = _share(sum(use.bytes for use in used), sum(use.full_bytes for use in used))
            self._waiting.append(_Round(self._state, self._action, state, seen.train_loss, sent))
        if self._decisions % self.options.probe_every == 0:
            self._action = torch.ones(len(self.links))
        elif self._decisions < max(self.options.warm_up, self.options.probe_every + 1):  # none is settled before that
            self._action = self._learner.explore()
        else:
            self._learner.learn(_UPDATES)
            faded = min(1.0, max(0, self._decisions - self.options.warm_up) / self.options.noise_rounds)
            self._action = self._learner.act(state, self.options.noise * (1 + faded * (_LAST_NOISE - 1)))
        self._state = state
        self._decisions += 1

    def _settle(self, loss: float) -> None:
        """Takes the loss of a probe, and gives the rounds since the last one their rewards."""
        now = loss if math.isfinite(loss) else self._reference
        before = now if self._reference is None else self._reference
        for place, past in enumerate(self._waiting, 1):
            line = None if now is None or before is None else before + (now - before) * place / (len(self._waiting) + 1)
            reward = -self.options.loss_weight * _increase(past.loss, line) - self.options.bytes_weight * past.sent
            self._learner.remember(past.state, past.action, reward, past.following)
        self._reference, self._waiting = now, []

    def _state_of(self, increase: float, used: Sequence[LinkUse]) -> Tensor:
        options, features = self.options, [increase * _SCALE]
        for link, use in zip(self.links, used, strict=True):
            middle, half = (options.high + options.low) / 2, (options.high - options.low) / 2
            threshold = (self.thresholds()[link] - middle) / half if half else 0.0
            spread = (use.mean_similarity or 0.0, use.std_similarity or 0.0)
            features += [*spread, _share(use.bytes, use.full_bytes), threshold]
        return torch.tensor(features).nan_to_num(0.0).clamp(-1, 1)

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The learner, the last probe, what waits for the next one, and the last decision."""
        tensors, values = self._learner.state_dict()
        tensors = {f"learner.{name}": tensor for name, tensor in tensors.items()} | {"action": self._action}
        if self._state is not None:
            tensors["state"] = self._state
        for place, past in enumerate(self._waiting):
            named = {"state": past.state, "action": past.action, "following": past.following}
            tensors |= {f"waiting.{place}.{name}": tensor.clone() for name, tensor in named.items()}  # some are shared
        waiting = [[past.loss if math.isfinite(past.loss) else None, past.sent] for past in self._waiting]
        own = {"decisions": self._decisions, "reference": self._reference, "waiting": waiting}
        return tensors, own | {"learner": values}

    def load_state_dict(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Goes on, to the bit, from what `state_dict` gave."""
        learner = {name.removeprefix("learner."): t for name, t in tensors.items() if name.startswith("learner.")}
        count, reference = values["decisions"], values["reference"]
        told = [number for pair in values["waiting"] for number in pair]
        if type(count) is not int or count < 0 or not all(map(_is_loss, [reference, *told])):
            raise ValueError("decisions, reference or waiting is not what a learner counts")
        self._learner.load_state_dict(learner, values["learner"])
        actions, states = torch.zeros(len(self.links)), torch.zeros(1 + 4 * len(self.links))
        for name, tensor in tensors.items():
            if not name.startswith("learner."):
                due = actions if name.endswith("action") else states
                if tensor.shape != due.shape or tensor.dtype != due.dtype:
                    raise ValueError(f"tensor {name} is {tensor.dtype} {tuple(tensor.shape)}")
        self._state, self._action = tensors.get("state"), tensors["action"]
        self._decisions, self._reference = values["decisions"], values["reference"]
        self._waiting = []
        for place, (loss, sent) in enumerate(values["waiting"]):
            state, action, following = (tensors[f"waiting.{place}.{name}"] for name in ("state", "action", "following"))
            self._waiting.append(_Round(state, action, following, math.nan if loss is None else loss, sent))


def _is_loss(value: object) -> bool:
    return value is None or (type(value) in (int, float) and math.isfinite(value))  # type: ignore[arg-type]


@dataclass(frozen=True)
class _Round:
    """A round that waits for its reward: what was decided on what, what followed, its loss, and the share sent."""

    state: Tensor
    action: Tensor
    following: Tensor
    loss: float
    sent: float


def _increase(loss: float, reference: float | None) -> float:
    """By how much a loss exceeds another, as a share of it, within [-1, 1]; 1 for one that is not finite."""
    if not math.isfinite(loss):
        return 1.0
    if reference is None or loss == reference:
        return 0.0
    return max(-1.0, min(1.0, (loss - reference) / max(abs(reference), 1e-12)))


_UNUSED = LinkUse(1.0, 0, 0, None, None, 0, 0)


def _share(sent: int, full: int) -> float:
    return sent / full if full else 0.0
