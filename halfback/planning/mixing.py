"""A cut for each class of devices, where that makes a step shorter than one cut for all."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from halfback.config import RunConfig, build_algorithm
from halfback.config.facts import Chosen
from halfback.config.rules import check
from halfback.errors import UserError
from halfback.planning.allocation import joint
from halfback.planning.choosing import Cohorts, Looked
from halfback.planning.profiles import DeviceClass, Fleet, draw

_TOGETHER = 30  # devices that cuts are looked for with
_WORTH = 0.95  # of the seconds with one cut for all: hardly less isn't worth it


@dataclass(frozen=True)
class Mixed:
    """A cut for each class.

    Attributes:
        config: with the cut of each client. instead_of: what it is quicker than.
        cuts: by class. seconds: of a step, as `Looked.step.total`.
    """

    config: RunConfig
    instead_of: Looked
    cuts: dict[str, int]
    seconds: float


def mixed(recipe: RunConfig, fleet: Fleet, looked: Sequence[Looked], own: Looked) -> Mixed | None:
    """The cuts that a joint allocation gives the classes, with all else as in `own`.

    Args:
        recipe: what is planned.
        fleet: for which.
        looked: the variants of the recipe, those with other cuts among them.
        own: one of them.

    Returns:
        The cuts; None where the method must have one cut for all clients, or they are hardly quicker.
    """
    cohorts = Cohorts(recipe, fleet)
    if len(cohorts.classes) < 2:
        return None
    works = {each.variant.cut: each.work for each in looked if _but_cut(each) == _but_cut(own)}
    some = draw(fleet, min(recipe.clients, _TOGETHER), recipe.seed)
    drawn = {device.name for device in some}
    devices = [*some, *(device for device in cohorts.classes if device.name not in drawn)]  # a rare class has a cut too
    try:
        found = joint(works, devices, for_all(fleet, len(devices) / cohorts.sampled))
    except UserError:
        return None
    cuts = _of_classes(found.cuts, devices)
    seconds = cohorts.seconds({name: works[cut] for name, cut in cuts.items()})
    if seconds >= _WORTH * own.step.total:
        return None
    by_client = [cuts[device.name] for device in cohorts.devices]
    model = own.variant.config.model.model_copy(update={"cut": by_client})
    config = own.variant.config.model_copy(update={"model": model})
    try:
        check(Chosen(config, build_algorithm(config)))
    except UserError:
        return None
    return Mixed(config, own, cuts, seconds)


def _but_cut(looked: Looked) -> tuple[Any, ...]:
    config = looked.variant.config
    return config.algorithm, config.codecs, config.bottom


def for_all(fleet: Fleet, times: float) -> Fleet:
    """A fleet whose shared links and server grow with the devices, so that each has what it has in a cohort."""
    rates = (
        *("uplink_megabits", "downlink_megabits"),
        *("server_operations_per_second", "server_backward_operations_per_second"),
    )
    grown = {name: getattr(fleet, name) for name in rates}
    fixed = {name: getattr(fleet, name) / times for name in ("server_block_seconds", "server_step_seconds")}
    return fleet.model_copy(update={name: rate and rate * times for name, rate in grown.items()} | fixed)


def _of_classes(cuts: Sequence[int], devices: Sequence[DeviceClass]) -> dict[str, int]:
    """The cut that most devices of each class got."""
    got: dict[str, list[int]] = {}
    for cut, device in zip(cuts, devices, strict=True):
        got.setdefault(device.name, []).append(cut)
    return {name: Counter(of).most_common(1)[0][0] for name, of in got.items()}
