"""What a secure sum costs devices behind a gateway: bytes and seconds of a step, with and without in turns.

    OMP_NUM_THREADS=1 python benchmarks/secure_gateway.py [--cohorts 3 10] [--pairs 5] [--steps 60]

The parties of `gateway_crowd.py`: the server is this process, the gateway one of its own, the devices connect to it
over TLS and share a third; a small random Llama by HO-SFL with 5 slopes, or with exact gradients of all that is
trained, all devices in every step. Two such crowds stand side by side, whose packages differ in `secure.sum` alone.
Seconds are those of a whole step, of all parties, behind the first third of a run; bytes are one device's.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import torch
from device_sites import write_rows
from gateway_crowd import crowd, deployed
from worker_memory import write_model

from halfback import config as configuration
from halfback.config import RunConfig
from halfback.telemetry.records import read_records

METHODS = {
    "5 slopes": ("algorithm.directions=5",),
    "exact gradients": ("algorithm.directions=0", "algorithm.exact_blocks=all"),
}


def recipe_of(place: Path, cohort: int, steps: int, *more: str) -> RunConfig:
    """The settings of a run."""
    said = [
        *("task.name=csv", f"task.train={place / 'rows.csv'}", "task.text=note", "task.label=mood", "batch_size=4"),
        *("task.max_length=16", f"model.name={place / 'model'}", "model.cut=1", "algorithm.name=ho_sfl", "device=cpu"),
        *("bottom.train=lora", "top.train=lora", "bottom.lr=1e-3", "top.lr=1e-3", f"eval_every={steps // 3}"),
        *(f"clients={cohort}", f"sampled_clients={cohort}", f"steps={steps}", "checkpoint_every=1000000"),
        *("memory_every=1000000", "deployment.patience=600", *more),
    ]
    return configuration.resolve(None, said)


def step_of(folder: Path, cohort: int) -> tuple[float, float, float]:
    """Seconds of a step behind the first third, and bytes up and down of a device."""
    first, *_, last = [record for record in read_records(folder) if record.step]
    steps = last.step - first.step
    took = (last.wall_seconds - first.wall_seconds) / steps
    up, down = last.up_bytes - first.up_bytes, last.down_bytes - first.down_bytes
    return took, up / steps / cohort, down / steps / cohort


def main() -> None:
    """All of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cohorts", type=int, nargs="+", default=(3, 10))
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for cohort in chosen.cohorts:
        for name, method in METHODS.items():
            with tempfile.TemporaryDirectory() as folder:
                place = Path(folder)
                write_model(place / "model", blocks=2, hidden=32)
                write_rows(place / "rows.csv", 0, 16 * cohort)
                plain = recipe_of(place, cohort, chosen.steps, *method)
                secure = recipe_of(place, cohort, chosen.steps, *method, "secure.sum=true")
                found: list[tuple[tuple[float, float, float], tuple[float, float, float]]] = []
                with (
                    crowd(place / "plain", plain, cohort) as (one, _),
                    crowd(place / "secure", secure, cohort) as (
                        other,
                        _,
                    ),
                ):
                    for pair in range(chosen.pairs):
                        without = step_of(deployed(plain, one, place, f"plain-{pair}"), cohort)
                        found.append((without, step_of(deployed(secure, other, place, f"secure-{pair}"), cohort)))
                ratios = [own[0] / without[0] for without, own in found]
                seconds = [statistics.median(1000 * pair[which][0] for pair in found) for which in (0, 1)]
                ups, downs = ([f"{found[0][which][at]:,.0f}" for which in (0, 1)] for at in (1, 2))
                spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
                took = " → ".join(f"{each:.0f}" for each in seconds)
                rows.append(f"| {name} | {cohort} | {' → '.join(ups)} | {' → '.join(downs)} | {took} | {spread} |")
                print(rows[-1], flush=True)
    print("\n| what is summed | cohort | bytes up | down | a step's ms | ÷ without |")
    print("| --- | --- | --- | --- | --- | --- |")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
