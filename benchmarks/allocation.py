"""What joint allocation saves: 30 devices drawn from shipped classes share an uplink, HO-SFL on MiniLM at cuts 1 to 5.

    HALFBACK_DATA=DATA python benchmarks/allocation.py [--draws 20] [--devices 30] [--rates 5,20,50,100,200,500]

Nothing is trained: bytes and operations of a step are what a plan says of `sst2-minilm`, seconds follow from the fleet.
Each row is a rate of the shared uplink, its ratios are medians over the draws, with the smallest and the largest.
Equal: one cut for all and equal shares; apart: each device's own best cut at equal shares; sequential: those cuts, then
shares.
"""

import argparse
import statistics
import time

from halfback.config import resolve
from halfback.planning.allocation import Allocation, apart, equal, joint, sequential
from halfback.planning.profiles import DeviceClass, Fleet, draw, read_fleet
from halfback.planning.work import Work, Workload

RECIPE, CUTS = "sst2-minilm", range(1, 6)
BATCH = ("batch_size=16", "algorithm.directions=2")
INT8 = ("codecs.activations_up=[int8]", "codecs.gradient_down=[int8]")
POPULATION = 1000  # clients, of which the first are the cohort: what a draw has of each class differs then
CASES = {  # name: fleet, classes beside its own, codecs, server's operations a second
    "cell": ("cell", (), (), None),
    "cell, int8": ("cell", (), INT8, None),
    "cell with home's classes, int8": ("cell", ("home",), INT8, None),
    "cell, int8, the laptop of `home` as server": ("cell", (), INT8, 99.9978e9),
}


def works(workload: Workload, *settings: str) -> dict[int, Work]:
    """A step by cut."""
    return {cut: workload.work(resolve(RECIPE, [*BATCH, *settings, f"model.cut={cut}"])) for cut in CUTS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--devices", type=int, default=30)
    parser.add_argument("--rates", type=lambda text: [float(rate) for rate in text.split(",")])
    arguments = parser.parse_args()
    rates = arguments.rates or [5.0, 20.0, 50.0, 100.0, 200.0, 500.0]
    heads = [
        "fleet",
        "uplink, Mbit/s",
        "joint, s",
        "÷ equal",
        "÷ apart",
        "÷ sequential",
        "cuts",
        "binds",
        "planned in, CPU s",
    ]
    print(f"| {' | '.join(heads)} |\n|{' --- |' * len(heads)}")
    workload = Workload(resolve(RECIPE, BATCH))
    for name, (fleet_name, beside, links, server) in CASES.items():
        at = works(workload, *links)
        for rate in rates:
            fleet = _fleet(fleet_name, beside, rate, server)
            cohorts = [draw(fleet, POPULATION, seed)[: arguments.devices] for seed in range(arguments.draws)]
            _row(f"{name} | {rate:g}", at, cohorts, fleet)


def _fleet(name: str, beside: tuple[str, ...], uplink: float, server: float | None) -> Fleet:
    """A shipped fleet with other shipped classes beside its own, and another uplink; no shared downlink."""
    fleet = read_fleet(name)
    classes = [*fleet.classes, *(each for other in beside for each in read_fleet(other).classes)]
    changes = {"classes": tuple(classes), "uplink_megabits": uplink, "downlink_megabits": None}
    return fleet.model_copy(update=changes | ({} if server is None else {"server_operations_per_second": server}))


def _row(begin: str, at: dict[int, Work], cohorts: list[tuple[DeviceClass, ...]], fleet: Fleet) -> None:
    ratios: dict[str, list[float]] = {"equal": [], "apart": [], "sequential": []}
    plans: list[Allocation] = []
    took = []
    for cohort in cohorts:
        start = time.process_time()
        plans.append(joint(at, cohort, fleet))
        took.append(time.process_time() - start)
        for way in (equal, apart, sequential):
            ratios[way.__name__].append(plans[-1].seconds / way(at, cohort, fleet).seconds)
    said = [f"{statistics.median(plan.seconds for plan in plans):.2f}"]
    said += [f"{statistics.median(of):.3f} ({min(of):.3f}–{max(of):.3f})" for of in ratios.values()]
    used = sorted({cut for plan in plans for cut in plan.cuts})
    said += [", ".join(map(str, used)), max({p.step.binds for p in plans}, key=[p.step.binds for p in plans].count)]
    print(f"| {begin} | {' | '.join(said)} | {statistics.median(took):.3f} |", flush=True)


if __name__ == "__main__":
    main()
