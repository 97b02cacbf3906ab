"""`plan`: before anything runs, what a recipe could be run as on a fleet, what each would cost, and which to take."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, final

from halfback import config as configuration
from halfback.config import RunConfig
from halfback.config.values import Config, resolve_values
from halfback.errors import UserError
from halfback.planning.choosing import Cohorts, Looked, best, by_time, inference_only, recommendable
from halfback.planning.mixing import Mixed, mixed
from halfback.planning.profiles import Fleet, read_fleet
from halfback.planning.steps import MEGA
from halfback.planning.variants import NOTHING, variants
from halfback.planning.work import Workload
from halfback.report.planned import explained, write_plan
from halfback.runs.folder import as_json, write_results
from halfback.runs.pilot import piloted

FLEET = "phones"  # where nothing says which
PAGE, VALUES, RECIPE = "plan.html", "plan.json", "recommended.yaml"


@final
class Plan:
    """What `plan` came to.

    Attributes:
        recommended: the configuration to run.
        values: everything, as `plan.json` has it.
    """

    def __init__(self, recommended: RunConfig, values: dict[str, Any]) -> None:
        """`plan` makes one."""
        self.recommended = recommended
        self.values = values

    def __repr__(self) -> str:
        return f"<Plan: {self.values['said'][0]}>"

    def explain(self) -> list[str]:
        """Says what binds.

        Returns:
            Sentences: where the time of each class's step goes, and what keeps other variants out.
        """
        return explained(self.values)

    def write(self, out: str | Path) -> Path:
        """Writes the plan as a page, as values, and the recommended recipe as a file that `train` takes.

        Args:
            out: a folder; files of an earlier plan in it are replaced.

        Returns:
            The folder.

        Raises:
            UserError: it can't be written.
        """
        texts = {VALUES: as_json(self.values), RECIPE: self.values["recommended"]["recipe"]}
        return write_results(out, lambda folder: write_plan(self.values, folder / PAGE), texts)


def plan(
    config: Config,
    *,
    devices: str | Path | None = None,
    target: float | None = None,
    pilot: int | None = None,
    **settings: Any,
) -> Plan:
    """Looks at each cut, method, number of directions, codec and precision that a recipe could be run with on a fleet.

    Args:
        config: a recipe's name, a YAML file, or settings.
        devices: a fleet's name or file; by default the recipe's `fleet`, else the shipped one called phones.
        target: metric to say the time of, with `pilot`; by default what all candidates came to.
        pilot: steps of real runs of the best candidates, from which the time to the target is taken; None for none.
        **settings: of the recipe, by section or by path, that are others here.

    Returns:
        The plan.

    Raises:
        UserError: a setting or the fleet is wrong, or nothing fits these devices, whatever is changed.
    """
    if target is not None and pilot is None:
        raise UserError(f"target={target:g}: only a pilot tells the time to it; give pilot=50 too")
    if target is not None and not math.isfinite(target):
        raise UserError(f"target={target}: a finite number is allowed")
    if pilot is not None and not 2 <= pilot <= 100_000:
        raise UserError(f"pilot={pilot}: 2 to 100000 steps are allowed")
    recipe = resolve_values(config, settings)
    named = str(devices or recipe.fleet or FLEET)
    fleet = read_fleet(named)
    recipe, looked, said = _fitting(recipe, fleet)
    chosen = recommendable(recipe, looked)
    found = None if pilot is None else piloted(_candidates(chosen), named, pilot, target)
    taken = chosen[0] if found is None else found.chosen
    by_class = mixed(recipe, fleet, looked, taken)
    config = taken.variant.config if by_class is None else by_class.config
    said = [_recommended(taken, by_class), *said]
    if by_class is None and (other := _mixable(recipe, fleet, looked)) is not None:
        said.append(_of_other(other))
    shown = best(inference_only(recipe, looked))
    shown = by_time(shown if taken in shown else [*shown, taken])
    values = {
        "task": recipe.task.name,
        "fleet": named,
        "said": said,
        "memory_bytes": {each.name: each.memory_megabytes * MEGA for each in fleet.classes},
        "variants": [_row(each) for each in looked],
        "best": [looked.index(each) for each in shown],
        "recommended": {
            "variant": looked.index(taken),
            "cuts": None if by_class is None else by_class.cuts,
            "seconds": taken.step.total if by_class is None else by_class.seconds,
            "recipe": configuration.dump(config),
        },
        "pilot": None if found is None else found.values,
    }
    return Plan(config, values)


def _looked(recipe: RunConfig, workload: Workload, fleet: Fleet) -> list[Looked]:
    """All variants that could run, whether they fit or not; UserError where none could."""
    cohorts = Cohorts(recipe, fleet)
    looked, refused = [], None
    for variant in variants(recipe, workload.blocks):
        try:
            looked.append(cohorts.look(variant, workload.work(variant.config), workload.trained(variant.config)))
        except UserError as error:
            refused = error
    if not looked:
        raise refused or UserError(f"algorithm.name={recipe.algorithm.name}: no variant of it can be planned")
    return looked


def _fitting(recipe: RunConfig, fleet: Fleet) -> tuple[RunConfig, list[Looked], list[str]]:
    """The recipe, or where none of its variants fits, the one with the smallest change that makes one fit.

    Returns:
        It, its variants, and what has to be said about the change.

    Raises:
        UserError: no change is enough; names what is least, and the class that has no room for it.
    """
    workload = Workload(recipe)
    looked = _looked(recipe, workload, fleet)
    if recommendable(recipe, looked):
        return recipe, looked, []
    least = min(inference_only(recipe, looked), key=lambda each: each.work.peak_bytes)
    name = max(least.lacking, key=lambda of: least.lacking[of])
    too_much = f"{least.work.peak_bytes / MEGA:,.1f} MB, {least.lacking[name] / MEGA:,.1f} MB too much"
    short = f"{name} has no room for any: the least peak is {too_much}"
    for change in _changes(recipe):
        try:
            changed = resolve_values(recipe, change)
        except UserError:
            continue
        if changed.task != recipe.task:  # other rows
            workload = Workload(changed)
        again = _looked(changed, workload, fleet)
        if recommendable(changed, again):
            told = ", ".join(f"{path}={value}" for path, value in change.items())
            return changed, again, [f"As the recipe stands, {short}; the smallest change that helps is {told}."]
    raise UserError(
        f"{short}, and fewer rows or shorter ones don't help: leave this class out, or take a smaller model"
    )


def _changes(recipe: RunConfig) -> Iterator[dict[str, Any]]:
    """What makes a device's part smaller, from what changes least of the training on."""
    sizes = [recipe.batch_size >> shift for shift in range(1, recipe.batch_size.bit_length())]
    yield from ({"client.rows_at_once": size} for size in sizes)
    yield from ({"batch_size": size} for size in sizes)
    if recipe.task.max_length:
        lengths = [recipe.task.max_length >> shift for shift in range(1, 4)]
        yield from ({"task.max_length": length, "batch_size": 1} for length in lengths if length >= 8)


def _candidates(chosen: Sequence[Looked]) -> list[Looked]:
    """The quickest, and the quickest with an earlier and with a later cut; where all have one cut, with another method.

    On both sides, since how far a step gets may grow or fall with the cut: seconds of a step don't tell.
    """
    first = chosen[0]
    earlier = [each for each in chosen if each.variant.cut < first.variant.cut]
    later = [each for each in chosen if each.variant.cut > first.variant.cut]
    others = [*earlier[:1], *later[:1]]
    others = others or [each for each in chosen if each.variant.method != first.variant.method][:1]
    return [first, *others]


def _mixable(recipe: RunConfig, fleet: Fleet, looked: Sequence[Looked]) -> Mixed | None:
    """A cut for each class, of the recipe's own algorithm where its options as they stand can have that."""
    options = recipe.algorithm.options()
    own = by_time(each for each in looked if each.fits and each.variant.config.algorithm.options() == options)
    return mixed(recipe, fleet, looked, own[0]) if own else None


def _recommended(taken: Looked, by_class: Mixed | None) -> str:
    own = taken.variant
    cut = f"cut {own.cut}" if by_class is None else _cuts(by_class)
    codecs = "" if own.codecs == NOTHING else f", {own.codecs} on the links"
    seconds = taken.step.total if by_class is None else by_class.seconds
    told = f"{own.method}, {cut}{codecs}, {own.weights} weights"
    return f"Recommended: {told}: {seconds:.3g} s a step, bound by {taken.step.binds}."


def _of_other(other: Mixed) -> str:
    own = other.instead_of
    return (
        f"{own.variant.method} could have {_cuts(other)}: {other.seconds:.3g} s a step instead of {own.step.total:.3g} "
        f"with cut {own.variant.cut}."
    )


def _cuts(found: Mixed) -> str:
    return "cut " + ", ".join(f"{cut} for {name}" for name, cut in found.cuts.items())


def _row(looked: Looked) -> dict[str, Any]:
    own = looked.variant
    return {
        "algorithm": own.config.algorithm.name,
        "method": own.method,
        "cut": own.cut,
        "codecs": own.codecs,
        "weights": own.weights,
        "seconds": looked.step.total,
        "binds": looked.step.binds,
        "known": looked.known,
        "lacking": dict(looked.lacking),
        "by_class": {name: asdict(step) for name, step in looked.by_class.items()},
        **asdict(looked.work),
    }
