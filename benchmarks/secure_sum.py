"""What a secure sum costs: bytes and seconds of a step beside the same run without one.

    OMP_NUM_THREADS=1 python benchmarks/secure_sum.py [--cohorts 3 10 30] [--repeats 15]

The quick start's model and data, without pretraining, all clients in every step, in one process. Seconds are those of
the whole step, of all its parties, with and without in turn: the median of the ratios, and their range. Bytes are one
client's, without the first step. Beside them the seconds of the sum alone, by its parties, for as many values.
"""

import argparse
import statistics
import time
from typing import Any

import torch

from halfback import config as configuration
from halfback.assembly import build
from halfback.engine.federation import Federation
from halfback.masking.collector import Collector
from halfback.masking.fixed_point import FixedPoint
from halfback.masking.participant import Participant
from halfback.masking.rules import SumRules
from halfback.parties.holdings import Round

WORK = ("beside=[]", "model.pretrain=null")
METHODS: dict[str, tuple[str, ...]] = {
    "decomfl: 5 slopes": ("algorithm.name=decomfl", "algorithm.directions=5"),
    "ho_sfl: 5 slopes": ("algorithm.name=ho_sfl",),
    "ho_sfl: exact gradients": ("algorithm.name=ho_sfl", "algorithm.directions=0", "algorithm.exact_blocks=all"),
    "fedavg: weights": ("algorithm.name=fedavg", "algorithm.aggregation=uniform"),
}


def federation(cohort: int, method: tuple[str, ...], *secure: str) -> Federation:
    """A run of so many clients, all of them in each step."""
    clients = (f"clients={cohort}", f"sampled_clients={cohort}")
    return build(configuration.resolve("quickstart", [*WORK, *clients, *method, *secure])).federation


def step(run: Federation, number: int) -> tuple[float, int, int]:
    """Seconds of a step, and bytes up and down of one of its clients."""
    ledger, cohort = run.server.ledger, run.server.sampling.sampled
    before, begun = (ledger.total("up"), ledger.total("down")), time.perf_counter()
    run.run_round(Round(number, 1, number), measure_memory=False)
    seconds = time.perf_counter() - begun
    return seconds, (ledger.total("up") - before[0]) // cohort, (ledger.total("down") - before[1]) // cohort


def alone(cohort: int, values: int, bits: int) -> tuple[float, float]:
    """Seconds of one client, and of the server, for a sum that nobody leaves."""
    rules = SumRules(max(-(-2 * cohort // 3), 3), FixedPoint(bits, 1024.0, cohort))
    spent = {"client": 0.0, "server": 0.0}

    def timed(who: str, work: Any) -> Any:
        begun = time.perf_counter()
        found = work()
        spent[who] += time.perf_counter() - begun
        return found

    said, collector = torch.randn(values), Collector(rules)
    own = timed("client", lambda: {u: Participant(u, rules) for u in range(cohort)})
    keys = timed("client", lambda: {u: each.keys for u, each in own.items()})
    roster = timed("server", lambda: collector.keys(keys))
    shares = timed("client", lambda: {u: each.shares(roster) for u, each in own.items()})
    sealed = timed("server", lambda: collector.shares(shares))
    timed("client", lambda: [each.take(sealed[u]) for u, each in own.items()])
    masked = timed("client", lambda: {u: each.masked(rules.fixed.encode(said, "")) for u, each in own.items()})
    asked = timed("server", lambda: collector.masked(masked))
    opened = timed("client", lambda: {u: each.opened(asked) for u, each in own.items()})
    timed("server", lambda: collector.total(opened))
    return spent["client"] / cohort, spent["server"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cohorts", type=int, nargs="+", default=(3, 10, 30))
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| what is summed | cohort | bits | bytes up, without → with | down | a step's seconds, with ÷ without |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, method in METHODS.items():
        for cohort in arguments.cohorts:
            for bits in (64, 32) if cohort == arguments.cohorts[0] else (64,):
                fitting = ("secure.range=64",) if bits == 32 else ()
                plain = federation(cohort, method)
                secure = federation(cohort, method, "secure.sum=true", f"secure.bits={bits}", *fitting)
                ratios, ups, downs = [], set(), set()
                for number in range(arguments.repeats + 2):
                    without, own_up, own_down = step(plain, number)
                    seconds, up, down = step(secure, number)
                    if number > 1:
                        ratios.append(seconds / without)
                        ups, downs = {(own_up, up)}, {(own_down, down)}
                shown = [f"{a:,} → {b:,}" for ((a, b),) in (ups, downs)]
                spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
                print(f"| {name} | {cohort} | {bits} | {shown[0]} | {shown[1]} | {spread} |", flush=True)
    print("\n| cohort | values | bits | a client's seconds | the server's |")
    print("| --- | --- | --- | --- | --- |")
    for cohort in arguments.cohorts:
        for values in (5, 100_000):
            pairs = [alone(cohort, values, 64) for _ in range(arguments.repeats)]
            client, server = (statistics.median(each) for each in zip(*pairs, strict=True))
            print(f"| {cohort} | {values:,} | 64 | {client:.4f} | {server:.4f} |", flush=True)


if __name__ == "__main__":
    main()
