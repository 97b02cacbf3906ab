"""What each variant of a recipe would cost on a fleet, and which one to take.

Nothing says beforehand how many steps a method needs; that is what a pilot is for. What stands here in its place is
*what a step knows*: the share of the gradient, over all values that the recipe trains on either side, that a step has in
hand. An exact gradient counts in full, a frozen value not at all. Of d values P slopes say P / (P + d + 1): how near
their estimate comes to the gradient, as E⟨g, ĝ⟩² / (|g|² · E|ĝ|²) for Gaussian directions **(ours)**.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from halfback.config import RunConfig, build_algorithm
from halfback.engine.sampling import Sampling
from halfback.errors import UserError
from halfback.planning.profiles import DeviceClass, Fleet, draw
from halfback.planning.steps import MEGA, StepTime, cohort_time, equal_share, step_time
from halfback.planning.variants import Variant
from halfback.planning.work import Values, Work

ROUNDS = 20  # whose cohorts a step's seconds are a mean over
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
        self.classes = list({device.name: device for device in self.devices}.values())

    def look(self, variant: Variant, work: Work, trained: Values) -> Looked:
        """What a variant costs these clients."""
        shares = [equal_share(of, self.sampled) for of in (self.fleet.uplink_megabits, self.fleet.downlink_megabits)]
        by_class = {device.name: step_time(work, device, self.fleet, *shares) for device in self.classes}
        steps = [cohort_time([by_class[device.name] for device in cohort]) for cohort in self.first]
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


def known(config: RunConfig, trained: Values) -> float:
    """The share of the gradient that a step has in hand."""
    directions = config.algorithm.options().get("directions", 0)
    along = trained.along * directions / (directions + trained.along + 1) if directions else 0.0
    return (trained.exact + along + trained.top) / (trained.exact + trained.along + trained.top)


def best(looked: Sequence[Looked]) -> list[Looked]:
    """Of those that fit, each than which no other is at once as quick, as small and as knowing; the quickest first."""
    fitting = sorted((each for each in looked if each.fits), key=_cost)
    kept: list[Looked] = []
    for each in fitting:
        if not any(_no_worse(other, each) for other in kept):
            kept.append(each)
    return kept


def recommended(recipe: RunConfig, looked: Sequence[Looked]) -> Looked:
    """The quickest that fits and whose steps know nearly as much as any that fits.

    Of methods whose devices backpropagate through all that they have, only the recipe's own is recommended.

    Raises:
        UserError: none fits; names the class that is shortest of memory.
    """
    allowed = [each for each in looked if not _backpropagates(each) or each.variant.config.algorithm.name == recipe.algorithm.name]
    fitting = [each for each in allowed if each.fits]
    if not fitting:
        least = min(allowed, key=lambda each: each.work.peak_bytes)
        name = max(least.lacking, key=lambda of: least.lacking[of])
        raise UserError(
            f"no variant fits {name}: the least peak is {least.work.peak_bytes / MEGA:,.1f} MB "
            f"({least.variant.method}, cut {least.variant.cut}), {least.lacking[name] / MEGA:,.1f} MB more than it has"
        )
    most = max(each.known for each in fitting)
    return min((each for each in fitting if each.known >= KNOWN * most), key=_cost)


def _backpropagates(looked: Looked) -> bool:
    return build_algorithm(looked.variant.config).needs.backpropagates


def _cost(looked: Looked) -> tuple[float, int, float]:
    return looked.step.total, looked.work.peak_bytes, -looked.known


def _no_worse(one: Looked, other: Looked) -> bool:
    return (
        one.step.total <= other.step.total
        and one.work.peak_bytes <= other.work.peak_bytes
        and one.known >= other.known
    )
