"""`plan`: before anything runs, what a recipe could be run as on a fleet, what each would cost, and which to take."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, final

from halfback import config as configuration
from halfback.config import RunConfig, build_algorithm
from halfback.config.facts import Chosen, method_of
from halfback.config.rules import check
from halfback.config.values import Config, resolve_values
from halfback.errors import UserError
from halfback.planning.allocation import Allocation, joint
from halfback.planning.choosing import Cohorts, Looked, allowed, best, by_time, recommended
from halfback.planning.profiles import Fleet, draw, read_fleet
from halfback.planning.steps import MEGA
from halfback.planning.variants import variants
from halfback.planning.work import Workload
from halfback.report.planned import explained, write_plan
from halfback.runs.pilot import piloted
from halfback.telemetry.records import replace_text

FLEET = "phones"  # where nothing says which
PAGE, VALUES, RECIPE = "plan.html", "plan.json", "recommended.yaml"
_TOGETHER = 30  # devices that a cut for each class is looked for with
_WORTH = 0.95  # of the step's seconds with one cut for all: a cut for each class must be quicker


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
        folder = Path(out)
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder} is no folder")
        write_plan(self.values, folder / PAGE)
        try:
            replace_text(folder / VALUES, json.dumps(self.values, indent=1, allow_nan=False) + "\n")
            replace_text(folder / RECIPE, self.values["recommended"]["recipe"])
        except OSError as error:
            raise UserError(f"{folder} cannot be written: {error.strerror}") from None
        return folder


@dataclass(frozen=True)
class _Mixed:
    """A cut for each class, where that is quicker than one for all."""

    config: RunConfig
    cuts: dict[str, int]
    seconds: float


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
        target: metric to say the time of, with `pilot`; by default what both candidates came to.
        pilot: steps of real runs of the two best candidates, from which the time to the target is taken; None for none.
        **settings: of the recipe, by section or by path, that are others here.

    Returns:
        The plan.

    Raises:
        UserError: a setting or the fleet is wrong, or nothing fits these devices, whatever is changed.
    """
    if target is not None and pilot is None:
        raise UserError(f"target={target:g}: only a pilot tells the time to it; give pilot=50 too")
    if pilot is not None and not 2 <= pilot <= 100_000:
        raise UserError(f"pilot={pilot}: 2 to 100000 steps are allowed")
    recipe = resolve_values(config, settings)
    named = str(devices or recipe.fleet or FLEET)
    fleet = read_fleet(named)
    recipe, looked, said = _fitting(recipe, fleet)
    chosen, measured = recommended(recipe, looked), None
    if pilot is not None:
        measured = piloted(_candidates(recipe, looked, chosen), named, pilot, target)
        chosen = measured.chosen
    return _plan_of(recipe, named, fleet, looked, chosen, said, None if measured is None else measured.values)
