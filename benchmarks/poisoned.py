"""Poisoned clients: what they do to the final accuracy (`attack`), and what the setting `robust` leaves of it.

    OMP_NUM_THREADS=1 python benchmarks/poisoned.py [steps=75 …] [--seeds 3] [--poisoned 2] [--attacks …] [--defences …]

The quick start's model and data with all ten clients in every step; the first two of them lie in every step. All runs
of a seed begin with the same pretrained weights and take the same batches. Mean ± standard deviation of the final
metric over the seeds; `diverged` where a value was no longer finite. An attack is a name, and behind a colon its
strength.
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import get_args, get_type_hints

from halfback import config as configuration
from halfback.assembly import build
from halfback.errors import Diverged
from halfback.parties.cohort import Robust
from halfback.parties.holdings import Round

WORK = ("beside=[]", "sampled_clients=10", "batch_size=8", "steps=75")
ATTACKS = ("none", "sign_flip:100", "sign_flip", "noise", "little_is_enough", "label_flip")
DEFENCES = get_args(get_type_hints(Robust)["name"])


def final(settings: list[str], pretrained: Path) -> float | None:
    """The metric at the end; None for a run that diverged."""
    config = configuration.resolve("quickstart", settings)
    run = build(config, pretrained=pretrained)
    try:
        for number in range(0, config.steps, config.steps_per_round):
            steps = min(config.steps_per_round, config.steps - number)
            run.federation.run_round(Round(number, steps, number), measure_memory=False)
    except Diverged:
        return None
    return run.evaluate().metric


def cell(finals: list[float | None]) -> str:
    """One cell of the table."""
    numbers = [number for number in finals if number is not None]
    if len(numbers) < len(finals):
        return f"diverged ({len(finals) - len(numbers)} of {len(finals)})"
    return f"{statistics.mean(numbers):.1f}" + (f" ± {statistics.stdev(numbers):.1f}" if len(numbers) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", help="key=value for every run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--poisoned", type=int, default=2, help="how many of the clients lie")
    parser.add_argument("--attacks", nargs="+", default=ATTACKS)
    parser.add_argument("--defences", nargs="+", choices=DEFENCES, default=DEFENCES)
    arguments = parser.parse_intermixed_args()
    print(f"| {arguments.poisoned} of 10 clients | {' | '.join(f'`{name}`' for name in arguments.defences)} |")
    print("| --- |" + " --- |" * len(arguments.defences))
    with tempfile.TemporaryDirectory() as folder:
        for attack in arguments.attacks:
            name, _, strength = attack.partition(":")
            cells = []
            for defence in arguments.defences:
                given = [
                    *WORK,
                    f"attack={{name: {name}, clients: {arguments.poisoned}, strength: {strength or 'null'}}}",
                ]
                given += [f"robust.{option}={arguments.poisoned}" for option in ("trim", "liars")]
                given += [f"robust.name={defence}", *arguments.settings]
                cells.append(
                    cell([final([*given, f"seed={seed}"], Path(folder) / str(seed)) for seed in range(arguments.seeds)])
                )
            print(f"| `{attack}` | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
