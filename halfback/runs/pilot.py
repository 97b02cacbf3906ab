"""A pilot: short real runs of a plan's candidates, from which seconds a step become time to a target."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from halfback.config import RunConfig
from halfback.config.schema import BudgetConfig, EarlyStoppingConfig
from halfback.data.tasks import objective_of
from halfback.errors import UserError
from halfback.models.objectives import better
from halfback.planning.choosing import Looked
from halfback.runs.run import Run, train

SEEDS = 3
_EVALUATIONS = 5


@dataclass(frozen=True)
class Pilot:
    """What a pilot came to.

    Attributes:
        chosen: the candidate that was at the target first, in the mean over the seeds.
        values: for `plan.json`.
    """

    chosen: Looked
    values: dict[str, Any]


def piloted(candidates: Sequence[Looked], fleet: str, steps: int, target: float | None) -> Pilot:
    """Runs each candidate for so many steps with a few seeds, on the fleet's clock.

    Args:
        candidates: the likeliest first.
        fleet: its name or file.
        steps: of each run.
        target: the metric to come to; None for the worst mean that a candidate ends with, so that all come there.

    Returns:
        The candidate with the least mean time to the target, of those that came there with every seed; the first of all
        where none did.
    """
    first = candidates[0].variant.config
    seeds = [first.seed + place for place in range(SEEDS)]
    found = [[_curve(each.variant.config, fleet, steps, seed) for seed in seeds] for each in candidates]
    rises = found[0][0].rises
    finals = [[curve.final for curve in curves] for curves in found]
    if target is None:
        whole = [[end for end in of_seeds if end is not None] for of_seeds in finals]
        ends = [fmean(of_seeds) for of_seeds in whole if len(of_seeds) == len(seeds)]
        if not ends:
            raise UserError(f"pilot={steps}: no candidate has a finite {found[0][0].metric} at its end with every seed")
        target = (min if rises else max)(ends)
    times = [[curve.time_to(target) for curve in curves] for curves in found]
    known = {place: [time for time in of if time is not None] for place, of in enumerate(times)}
    means = {place: fmean(of) for place, of in known.items() if len(of) == len(seeds)}
    chosen = min(means, key=lambda place: means[place], default=0)
    values = {
        "steps": steps,
        "seeds": seeds,
        "metric": found[0][0].metric,
        "target": target,
        "chosen": chosen,
        "candidates": [
            {"method": each.variant.method, "cut": each.variant.cut, "finals": ends, "to_target": to_target}
            for each, ends, to_target in zip(candidates, finals, times, strict=True)
        ],
    }
    return Pilot(candidates[chosen], values)


@dataclass(frozen=True)
class Curve:
    """A run's metric by the fleet's seconds.

    Attributes:
        metric: its name. rises: whether more is better. points: (seconds, metric) of the evaluations in turn.
    """

    metric: str
    rises: bool
    points: list[tuple[float, float]]

    @property
    def final(self) -> float | None:
        """The last metric; None where none was finite."""
        return self.points[-1][1] if self.points else None

    def time_to(self, target: float) -> float | None:
        """Seconds until the metric is at the target, on straight lines between evaluations; None if it never is."""
        before: tuple[float, float] | None = None
        for seconds, metric in self.points:
            if metric >= target if self.rises else metric <= target:
                if before is None or metric == before[1]:
                    return seconds
                share = (target - before[1]) / (metric - before[1])
                return before[0] + share * (seconds - before[0])
            before = (seconds, metric)
        return None


def _curve(config: RunConfig, fleet: str, steps: int, seed: int) -> Curve:
    changes = {
        "steps": steps,
        "seed": seed,
        "fleet": fleet,
        "eval_every": max(1, steps // config.steps_per_round // _EVALUATIONS),
        "beside": (),
        "first_eval_rows": None,  # where a curve begins
        "early_stopping": EarlyStoppingConfig(),
        "budget": BudgetConfig(),
    }
    with tempfile.TemporaryDirectory(prefix="halfback-pilot-") as folder:
        run = train(config.model_copy(update=changes), Path(folder) / "run", progress=False)
        return curve_of(run)


def curve_of(run: Run) -> Curve:
    """The curve of a run with a fleet; evaluations whose metric was not finite are left out."""
    summary = run.summary
    found = [(record.simulated_seconds or 0.0, record.metric) for record in run.records if record.metric is not None]
    rises = better(objective_of(run.config.task), 1.0, 0.0)
    return Curve(summary.metric.name, rises, found)
