"""What each variant of a recipe would cost on a fleet, and which one to take.

Nothing says beforehand how many steps a method needs; that is what a pilot is for. What stands here in its place is
*what a step knows*: the share of the gradient, over all values that the recipe trains on either side, that a step has
in hand. An exact gradient counts in full, a frozen value not at all. Of d values P slopes say P / (P + d + 1): how near
their estimate comes to the gradient, as E⟨g, ĝ⟩² / (|g|² · E|ĝ|²) for Gaussian directions **(ours)**.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from statistics import fmean

from halfback.config import RunConfig, build_algorithm
from halfback.engine.sampling import Sampling
from halfback.planning.profiles import Fleet, draw
from halfback.planning.steps import MEGA, StepTime, cohort_time, equal_share, step_time
from halfback.planning.variants import Variant
from halfback.planning.work import Values, Work

ROUNDS = 20  # whose cohorts a step's seconds are a mean over
_SAME = 1e-2  # a hundredth more memory, or less knowledge, is no difference
KNOWN = 0.98  # of the most that a step can know: what is recommended knows no less


@dataclass(frozen=True)
class Looked:
    """A variant and what it costs.

    Attributes:
        variant: the configuration. work: of one client's step.
        known: the share of the gradient that a step has in hand, from 0 to 1.
        step: mean seconds of a step over the first cohorts; its `binds` is what binds the slowest class.
        by_class: a step of each class in such a cohort, by its name.
        lacking: bytes that a class is short of, by the name of each that has no room.
    """

    variant: Variant
    work: Work
    known: float
    step: StepTime
    by_class: Mapping[str, StepTime]
    lacking: Mapping[str, float]

    @property
    def fits(self) -> bool:
        """Whether every class has room."""
        return not self.lacking


class Cohorts:
    """The fleet as the clients of a run meet it."""

    def __init__(self, recipe: RunConfig, fleet: Fleet) -> None:
        self.fleet = fleet
        self.devices = draw(fleet, recipe.clients, recipe.seed)
        self.sampled = min(recipe.sampled_clients, recipe.clients)
        sampling = Sampling(recipe.seed, recipe.clients, self.sampled)
        self.first = [[self.devices[client] for client in sampling.draw(place, None)] for place in range(ROUNDS)]
        self.classes = fleet.classes

    def look(self, variant: Variant, work: Work, trained: Values) -> Looked:
        """What a variant costs these clients."""
        in_turn = build_algorithm(variant.config).needs.turns == "one_by_one"
        by_class = self._by_class({device.name: work for device in self.classes}, in_turn=in_turn)
        steps = self._steps(by_class, in_turn=in_turn)
        slowest = max(steps, key=lambda step: step.total)
        room = {device.name: device.memory_megabytes * MEGA for device in self.classes}
        return Looked(
            variant,
            work,
            known(variant.config, trained),
            replace(slowest, total=fmean(step.total for step in steps)),
            by_class,
            {name: work.peak_bytes - bytes for name, bytes in room.items() if work.peak_bytes > bytes},
        )

    def seconds(self, works: Mapping[str, Work]) -> float:
        """A step's, mean over the first cohorts, with the work of each class."""
        return fmean(step.total for step in self._steps(self._by_class(works, in_turn=False), in_turn=False))

    def _by_class(self, works: Mapping[str, Work], *, in_turn: bool) -> dict[str, StepTime]:
        together = 1 if in_turn else self.sampled
        shares = [equal_share(of, together) for of in (self.fleet.uplink_megabits, self.fleet.downlink_megabits)]
        return {device.name: step_time(works[device.name], device, self.fleet, *shares) for device in self.classes}

    def _steps(self, by_class: Mapping[str, StepTime], *, in_turn: bool) -> list[StepTime]:
        return [cohort_time([by_class[device.name] for device in cohort], in_turn=in_turn) for cohort in self.first]


def known(config: RunConfig, trained: Values) -> float:
    """The share of the gradient that a step has in hand."""
    directions = config.algorithm.options().get("directions", 0)
    along = trained.along * directions / (directions + trained.along + 1) if directions else 0.0
    return (trained.exact + along + trained.top) / (trained.exact + trained.along + trained.top)


def best(looked: Iterable[Looked]) -> list[Looked]:
    """Of those that fit, each than which no other is at once as quick, as small and as knowing; the quickest first."""
    kept: list[Looked] = []
    for each in by_time(each for each in looked if each.fits):
        if not any(_no_worse(other, each) for other in kept):
            kept.append(each)
    return kept


def by_time(looked: Iterable[Looked]) -> list[Looked]:
    """The quickest first; of equal ones the smaller, then the more knowing."""
    return sorted(looked, key=lambda each: (each.step.total, each.work.peak_bytes, -each.known))


def inference_only(recipe: RunConfig, looked: Iterable[Looked]) -> list[Looked]:
    """Those of the recipe's own method, and of methods whose devices don't backpropagate through all that they have.

    For devices are taken to hold inference and no more.
    """
    own = recipe.algorithm.name
    return [each for each in looked if each.variant.config.algorithm.name == own or not _backpropagates(each)]


def recommendable(recipe: RunConfig, looked: Iterable[Looked]) -> list[Looked]:
    """Of those that devices can do, all that fit and whose steps know nearly as much as any that fits.

    The quickest first.
    """
    fitting = [each for each in inference_only(recipe, looked) if each.fits]
    most = max((each.known for each in fitting), default=0.0)
    return by_time(each for each in fitting if each.known >= KNOWN * most)


def _backpropagates(looked: Looked) -> bool:
    return build_algorithm(looked.variant.config).needs.backpropagates


def _no_worse(one: Looked, other: Looked) -> bool:
    as_small = one.work.peak_bytes <= (1 + _SAME) * other.work.peak_bytes
    return one.step.total <= other.step.total and as_small and one.known >= other.known - _SAME
