"""Where directions look: each aim reshapes a step's random signs by what past slopes have said.

An aim is a function of the agreed slopes alone, so every party has the same one, nothing more is sent, and a replay
rebuilds it **(ours)**. Whatever it makes of a seed's values is the direction: it is probed along, and moved along.

* `Blocks`: a direction moves one block of the model, drawn with odds that follow the energy that slopes have found.
* `Guided`: half of a direction lies along the discounted sum of past updates (guided evolution strategies,
  Maheswaranathan et al., arXiv 1806.10230, section 3, with a subspace of one dimension).
* `Curvature`: divided by the root of a running mean of squared updates, in the manner of HiSo (Li et al., arXiv
  2506.02370).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from halfback.zeroth.directions import Places

AimName = Literal["none", "blocks", "guided", "curvature"]


class Blocks:
    """One block a direction: values are those of block b over √q_b, where q_b are its odds, and 0 elsewhere.

    So E[uuᵀ] = I as for plain directions, and the estimate stays unbiased. Its variance Σ_b d_b E_b / q_b is least with
    q_b ∝ √(d_b E_b), where E_b is the squared norm of the gradient of block b, as its own slopes measure it; a share of
    the odds stays that of the sizes d_b. A block that was not measured yet passes for as dense as those that were.
    """

    SHARE = 0.25
    RATE = 0.1

    def __init__(self, parameters: Mapping[str, Tensor], blocks: Sequence[Sequence[str]]) -> None:
        """`blocks`: names by block; what is not here, or empty, is left out."""
        own = [[name for name in names if name in parameters and parameters[name].numel()] for names in blocks]
        own = [names for names in own if names]
        self._block = {name: place for place, names in enumerate(own) for name in names}
        sizes = [sum(parameters[name].numel() for name in names) for names in own]
        self._sizes = [size / sum(sizes) for size in sizes]
        self._energy = torch.full((len(own),), -1.0, dtype=torch.float64)  # not measured yet

    def moments(self) -> dict[str, dict[str, Tensor]]:
        return {"energy": {"blocks": self._energy}}

    def odds(self) -> list[float]:
        """q, of each block."""
        found = list(zip(self._energy.tolist(), self._sizes, strict=True))
        measured = [(energy, size) for energy, size in found if energy >= 0]
        density = math.fsum(e for e, _ in measured) / (math.fsum(size for _, size in measured) or 1.0)
        wanted = [math.sqrt((energy if energy >= 0 else density * size) * size) for energy, size in found]
        total = math.fsum(wanted)
        if not total > 0:
            return self._sizes
        return [(1 - self.SHARE) * w / total + self.SHARE * size for w, size in zip(wanted, self._sizes, strict=True)]

    def drawn(self, seed: int) -> int:
        """The block that this seed moves."""
        return _drawn(seed, self.odds())

    def reshape(self, name: str, places: Places, seeds: Sequence[int], values: Tensor) -> None:
        odds, mine = self.odds(), self._block[name]
        factors = [1 / math.sqrt(odds[mine]) if _drawn(seed, odds) == mine else 0.0 for seed in seeds]
        values.mul_(torch.tensor(factors, dtype=values.dtype, device=values.device).unsqueeze(1))

    def length(self, seeds: Sequence[int], slopes: Sequence[float]) -> float:
        odds = self.odds()
        blocks = [_drawn(seed, odds) for seed in seeds]
        return math.sqrt(math.fsum(s * s * self._sizes[b] / odds[b] for s, b in zip(slopes, blocks, strict=True)))

    def learn_part(self, name: str, places: Places, estimate: Tensor, coefficients: Sequence[float]) -> None:
        """Nothing: the slopes say it all."""

    def learn(self, seeds: Sequence[int], slopes: Sequence[float], coefficients: Sequence[float]) -> None:
        odds, energies = self.odds(), self._energy.tolist()
        # Where nobody measured along some directions (a client was dropped, a batch has fewer rows, P still rises), the
        # others' slopes count for as many more, so that their mean over all is that over these.
        share = sum(slope != 0 for slope in slopes) / len(slopes)
        seen: dict[int, list[float]] = {}
        for seed, slope in zip(seeds, slopes, strict=True):
            if slope:
                block = _drawn(seed, odds)
                seen.setdefault(block, []).append((slope * share) ** 2 * odds[block])
        for block, found in seen.items():
            mean = math.fsum(found) / len(found)
            old = energies[block]
            self._energy[block] = mean if old < 0 else old * (1 - self.RATE) + mean * self.RATE


class Guided:
    """u = √½ · a plain direction + √½ · s · √d · m/‖m‖, with m the discounted sum of past ĝ and s a sign of the seed's.

    ‖m‖ is a recurrence over the slopes that takes plain directions for orthogonal to each other and to m, so that no
    pass over the parameters is needed; with N directions a step that are not few beside d it is too small. Until there
    is an m, directions are plain.
    """

    DECAY = 0.9
    LEAST = 1e-20  # of ‖m‖: what is left of it after hundreds of steps without a slope is none

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self._sum = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in parameters.items()}
        self._length = torch.zeros((), dtype=torch.float64)
        self._root = math.sqrt(sum(p.numel() for p in parameters.values()))

    def moments(self) -> dict[str, dict[str, Tensor]]:
        return {"guide": self._sum, "guide_length": {"all": self._length}}

    def reshape(self, name: str, places: Places, seeds: Sequence[int], values: Tensor) -> None:
        length = self._length.item()
        if length < self.LEAST:
            return
        guide = self._sum[name].view(-1)[places] * (math.sqrt(0.5) * self._root / length)
        values.mul_(math.sqrt(0.5))
        for row, seed in zip(values, seeds, strict=True):
            row.add_(guide if _sign(seed) > 0 else -guide)

    def length(self, seeds: Sequence[int], slopes: Sequence[float]) -> float:
        return math.hypot(*self._parts(seeds, slopes))

    def _parts(self, seeds: Sequence[int], slopes: Sequence[float]) -> tuple[float, float]:
        """Of Σ_p slopes_p u_p over √d: what lies along m, and the length of the rest."""
        rest = math.sqrt(math.fsum(slope * slope for slope in slopes))
        if self._length.item() < self.LEAST:
            return 0.0, rest
        along = math.fsum(slope * _sign(seed) for slope, seed in zip(slopes, seeds, strict=True))
        return along * math.sqrt(0.5), rest * math.sqrt(0.5)

    def learn_part(self, name: str, places: Places, estimate: Tensor, coefficients: Sequence[float]) -> None:
        mine = self._sum[name].view(-1)
        mine[places] = mine[places] * self.DECAY + estimate

    def learn(self, seeds: Sequence[int], slopes: Sequence[float], coefficients: Sequence[float]) -> None:
        along, rest = self._parts(seeds, coefficients)
        self._length.fill_(math.hypot(self.DECAY * self._length.item() + along * self._root, rest * self._root))


class Curvature:
    """u = a plain direction / √h, with h the running mean of ĝ² over what plain directions would give it.

    So an estimate comes to E[uuᵀ]g = g/h. h begins at 1; with slopes that are all noise it stays there, since
    E[ĝ²] = Σ_p c_p²/h. Dividing by Σ_p c_p² is ours: rates keep their meaning, whatever the size of the slopes. With
    one ±1 direction a step h stays 1 throughout.
    """

    RATE = 0.05

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self._mean = {name: torch.ones_like(p, dtype=torch.float32) for name, p in parameters.items()}

    def moments(self) -> dict[str, dict[str, Tensor]]:
        return {"curvature": self._mean}

    def reshape(self, name: str, places: Places, seeds: Sequence[int], values: Tensor) -> None:
        values.div_(self._mean[name].view(-1)[places].sqrt())

    def length(self, seeds: Sequence[int], slopes: Sequence[float]) -> float:
        return math.sqrt(math.fsum(slope * slope for slope in slopes))

    def learn_part(self, name: str, places: Places, estimate: Tensor, coefficients: Sequence[float]) -> None:
        total = math.fsum(c * c for c in coefficients)
        if total > 0:
            mine = self._mean[name].view(-1)
            mine[places] = mine[places] * (1 - self.RATE) + estimate.square() * (self.RATE / total)

    def learn(self, seeds: Sequence[int], slopes: Sequence[float], coefficients: Sequence[float]) -> None:
        """Nothing: its parts have said it all."""


def _drawn(seed: int, odds: Sequence[float]) -> int:
    """The place that a seed picks with these odds."""
    share, above = (seed >> 11) * 2.0**-53, 0.0
    for place, mine in enumerate(odds):
        above += mine
        if share < above:
            return place
    return len(odds) - 1


def _sign(seed: int) -> float:
    """±1, by the seed's lowest bit."""
    return 1.0 - 2.0 * (seed & 1)
