"""The cut that a plan recommends beside every other cut, by real runs on a fleet's clock.

    HALFBACK_DATA=DATA OMP_NUM_THREADS=1 python benchmarks/plan_cuts.py RECIPE [KEY=VALUE]... [--fleets phones home]
        [--steps 50] [--seeds 2]

For each fleet the recipe is planned, with a pilot of so many steps; then the recommended method, codecs and weights are
run at every cut that fits, for as many steps with each of other seeds. The target lies half of the way from where they
begin to the best cut's end, in the mean over seeds; who isn't there at the end counts with all its time. What is
reported is the time on the fleet until then, of the cut that the plan recommended over the best one's, with the pilot
and without it.
"""

import argparse
import json
import tempfile
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table

from halfback.config import from_tree, to_tree
from halfback.config.recipes import parse_override
from halfback.runs.pilot import Curve, curve_of
from halfback.runs.plan import plan
from halfback.runs.run import train


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("settings", nargs="*")
    parser.add_argument("--fleets", nargs="+", default=["phones", "home"])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=2)
    given = parser.parse_intermixed_args()
    settings = dict(map(parse_override, given.settings))
    found = [of_fleet(given.recipe, settings, fleet, given.steps, given.seeds) for fleet in given.fleets]
    table = Table(
        "fleet",
        "recommended",
        "s a step by cut, planned",
        "s to the target by cut (seeds)",
        "recommended ÷ best",
        "without the pilot",
    )
    for row in found:
        planned = ", ".join(f"{cut}: {seconds:.3g}" for cut, seconds in row["planned"].items())
        times = ", ".join(f"{cut}: {_said(times)}" for cut, times in row["times"].items())
        table.add_row(
            row["fleet"],
            f"{row['method']}, cut {row['cut']}",
            planned,
            times,
            f"{row['ratio']:.2f}",
            f"{row['without']}: {row['ratio_without']:.2f}",
        )
    Console(width=160).print(table)
    print(json.dumps(found))


def of_fleet(recipe: str, settings: dict[str, Any], fleet: str, steps: int, seeds: int) -> dict[str, Any]:
    """Every cut's time to the target on one fleet."""
    made = plan(recipe, devices=fleet, pilot=steps, **settings)
    without = made.values["pilot"]["candidates"][0]  # what would have been recommended
    taken = made.values["variants"][made.values["recommended"]["variant"]]
    alike = [
        row for row in made.values["variants"] if all(row[key] == taken[key] for key in ("method", "codecs", "weights"))
    ]
    fitting = {row["cut"]: row["seconds"] for row in alike if not row["lacking"]}
    own = to_tree(made.recommended)
    curves: dict[int, list[Curve]] = {}
    for seed in range(100, 100 + seeds):  # others than the pilot's
        for cut in fitting:  # in turn, so that a slow minute of the machine meets all
            changes = {
                "model.cut": cut,
                "seed": seed,
                "steps": steps,
                "eval_every": max(1, steps // 10),
                "fleet": fleet,
            }
            with tempfile.TemporaryDirectory() as folder:
                run = train(from_tree(own, changes), Path(folder) / "run", progress=False)
                curves.setdefault(cut, []).append(curve_of(run))
    some = curves[taken["cut"]][0]
    start = fmean(curve.points[0][1] for of_cut in curves.values() for curve in of_cut)
    ends = [fmean(curve.points[-1][1] for curve in of_cut) for of_cut in curves.values()]
    target = (start + (max(ends) if some.rises else min(ends))) / 2
    times = {cut: [curve.time_to(target) for curve in of_cut] for cut, of_cut in curves.items()}
    means = {
        cut: fmean(curve.points[-1][0] if time is None else time for curve, time in zip(curves[cut], of, strict=True))
        for cut, of in times.items()
    }
    return {
        "fleet": fleet,
        "method": taken["method"],
        "cut": taken["cut"],
        "target": target,
        "planned": fitting,
        "times": times,
        "pilot": made.values["pilot"],
        "ratio": means[taken["cut"]] / min(means.values()),
        "without": f"{without['method']}, cut {without['cut']}",
        "ratio_without": means.get(without["cut"], float("nan")) / min(means.values()),
    }


def _said(times: list[float | None]) -> str:
    return "/".join("–" if time is None else f"{time:.3g}" for time in times)


if __name__ == "__main__":
    main()
