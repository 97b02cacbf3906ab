"""Seconds of a step of a cohort in one pass (`one_pass=true`), over those of its clients one by one, on one thread.

    python benchmarks/one_pass.py [--pairs 15] [KEY=VALUE]…

The recipes `quickstart` and `sst2-minilm`, three clients a round, with all that a run does. Both ways take the same
steps in turns; `KEY=VALUE` changes both, as `device=cuda`.
"""

import argparse
import statistics
import time

import torch
from house_speed import RECIPES, interval
from rich.console import Console
from rich.table import Table

from halfback import config as configuration
from halfback.assembly import Built, build
from halfback.parties.holdings import Round

WARM = 2  # steps that don't count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--pairs", type=int, default=15, help="steps of each that count")
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE", help="of the recipe")
    given = parser.parse_args()
    torch.set_num_threads(1)
    table = Table("recipe", "in one pass ÷ one by one", "95 %")
    for recipe, settings in RECIPES.items():
        changes = ["device=cpu", *settings, *given.changes]
        one, other = (build(configuration.resolve(recipe, [*changes, f"one_pass={on}"])) for on in ("false", "true"))
        table.add_row(recipe, *compared(one, other, given.pairs))
    Console().print(table)


def compared(one: Built, other: Built, pairs: int) -> list[str]:
    """The median ratio of a step's seconds, and its interval."""
    times = [(_seconds(one, number), _seconds(other, number)) for number in range(WARM + pairs)][WARM:]
    ratios = [second / first for first, second in times]
    least, most = interval(ratios)
    return [f"{statistics.median(ratios):.2f}", f"{least:.2f} to {most:.2f}"]


def _seconds(run: Built, number: int) -> float:
    _finish(run)
    start = time.perf_counter()
    run.federation.run_round(Round(number, 1, number), measure_memory=False)
    _finish(run)
    return time.perf_counter() - start


def _finish(run: Built) -> None:
    if run.ground.device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
