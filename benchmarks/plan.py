"""What a plan says beside what a run costs: peak, bytes and seconds of a step, configuration by configuration.

    OMP_NUM_THREADS=1 python benchmarks/plan.py [--steps 2] [--seconds 2] [RECIPE ...]

The first steps are run with the meter on, for the peak and the bytes; as many more without it, for the seconds of a
client and of the server, against this machine's rates from the same recipe's passes (`halfback profile`). Seconds are
shown as planned over measured: on a shared machine only their ratio means something.
"""

import argparse
import copy
from collections.abc import Iterator
from dataclasses import asdict
from unittest.mock import patch

import torch

from halfback import assembly
from halfback.assembly.given import NOTHING
from halfback.assembly.whole import load
from halfback.config import RunConfig, resolve
from halfback.parties.holdings import Round
from halfback.planning.measure import Link, fleet_of, measured
from halfback.planning.profiles import Fleet
from halfback.planning.steps import step_time
from halfback.planning.work import Work, Workload

COMMON = ["device=cpu", "threads=1"]
CONFIGURATIONS = {
    "sst2-minilm": [
        "",
        "algorithm.directions=1",
        "algorithm.directions=8 model.cut=4",
        "algorithm.estimator=central",
        "algorithm.exact_blocks=1",
        "algorithm.exact_blocks=all algorithm.directions=0 model.cut=3",
        "algorithm.name=frozen_bottom",
        "algorithm.name=split_lora",
        "algorithm.name=hosl algorithm.directions=2",
        "algorithm.name=zo_sfl bottom.train=bias",
        "model.head=0",
        "bottom.weights=int8 client.rows_at_once=4",
        "codecs.activations_up=[int8] codecs.gradient_down=[int8]",
    ],
    "sst2-smollm2": [
        "",
        "model.cut=4 algorithm.directions=4",
        "algorithm.exact_blocks=1",
        "algorithm.name=frozen_bottom",
        "algorithm.name=split_lora model.cut=4",
        "model.head=0 model.cut=4",
    ],
    "quickstart": [
        "",
        "algorithm.directions=8 model.cut=2",
        "algorithm.exact_blocks=1 model.cut=2",
        "algorithm.name=split_lora",
        "algorithm.name=hosl algorithm.directions=2",
        "algorithm.name=ho_sfl_pipelined steps_per_round=2",
        "model.head=1 model.cut=1",
        "algorithm.name=heron_sfl",
        "algorithm.name=cse_fsl",
    ],
}


def later(both: Work, first: Work) -> Work:
    """The second half of the steps, from all of them and the first half."""
    pairs = {name: (value, getattr(first, name)) for name, value in asdict(both).items()}
    return Work(**{name: 2 * mean - half if isinstance(mean, float) else mean for name, (mean, half) in pairs.items()})


def ran(config: RunConfig, steps: int) -> tuple[int, float, float, float, float]:
    """Peak, bytes up and down a step with the meter; seconds of a client and of the server a step without it."""
    built = assembly.build(config)
    federation, server = built.federation, built.federation.server
    counts = [config.steps_per_round] * (steps // config.steps_per_round)
    sampled = 1 if built.ground.algorithm.needs.agreement.pools else config.sampled_clients
    number = taken = 0
    for measures in (True, False):
        begun = server.meters.client.seconds, server.meters.server.seconds
        for count in counts:
            federation.run_round(Round(number, count, taken), measure_memory=measures)
            number, taken = number + 1, taken + count
        if measures:
            up, down = (server.ledger.total(way) / (steps * sampled) for way in ("up", "down"))
    spent = [
        (now - then) / (steps * sampled)
        for now, then in zip((server.meters.client.seconds, server.meters.server.seconds), begun, strict=True)
    ]
    return server.meters.client_peak_bytes, up, down, spent[0], spent[1]


def compared(recipe: str, fewest: int, seconds: float) -> Iterator[str]:
    """A line of the table for each configuration of a recipe."""
    base, steps = resolve(recipe, COMMON), fewest * (10 if recipe == "quickstart" else 1)  # its steps are the shortest
    torch.set_num_threads(1)
    workload = Workload(base)
    loaded = load(base, NOTHING)  # once: every configuration has the same rows, and a copy of the same model
    again = lambda *_, **__: type(loaded)(copy.deepcopy(loaded.whole), *list(vars(loaded).values())[1:])  # noqa: E731
    with patch.object(assembly, "load", again):
        rates = measured(base, seconds=seconds)
        fleet = Fleet.model_validate(fleet_of(rates, Link(), name="this", recipe=recipe))
        for changes in CONFIGURATIONS[recipe]:
            config = resolve(recipe, [*COMMON, *changes.split()])
            workload.steps = steps
            first = workload.work(config)
            workload.steps = 2 * steps
            both = workload.work(config)
            peak, up, down, of_client, of_server = ran(config, steps)
            equal = abs(first.up_bytes - up) + abs(first.down_bytes - down) < 1e-6 * (up + down)
            time_of = step_time(later(both, first), fleet.classes[0], fleet)
            client, server = time_of.compute, time_of.server
            yield (
                f"| {recipe} {changes} | {first.peak_bytes / 1e6:.2f} | {first.peak_bytes / peak:.3f} "
                f"| {up:.0f} / {down:.0f} | {'equal' if equal else f'{first.up_bytes:.0f} / {first.down_bytes:.0f}'} "
                f"| {client / of_client:.2f} | {server / of_server:.2f} "
                f"| {(client + server) / (of_client + of_server):.2f} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("recipes", nargs="*", default=list(CONFIGURATIONS))
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=2.0)
    chosen = parser.parse_args()
    print(
        "| configuration | peak planned, MB | ÷ measured | bytes up / down a step | planned | client s ÷ | server s ÷ "
        "| step s ÷ |\n| --- | --- | --- | --- | --- | --- | --- | --- |"
    )
    for recipe in chosen.recipes:
        for line in compared(recipe, chosen.steps, chosen.seconds):
            print(line, flush=True)


if __name__ == "__main__":
    main()
