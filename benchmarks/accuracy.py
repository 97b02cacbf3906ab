"""Methods compared on the same work: equal steps, several seeds, each method's learning rate tuned over one grid.

    python benchmarks/accuracy.py sst2-minilm --out runs/sst2 --cuts 2,5 --seeds 3 steps=200 batch_size=8

A method is an algorithm's name, with settings behind commas (`split_lora,steps_per_round=10`). Tuning holds back part
of the training rows and never sees the validation rows; seed 0 chooses. Every run is a run folder under --out, and a
finished one is not run again, so the table can be stopped, continued and extended. MB counts both directions; client
peak is over the same client's inference peak.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch

from halfback import config as configuration
from halfback import run
from halfback.errors import Diverged
from halfback.telemetry.records import SUMMARY, read_summary

METHODS = ("ho_sfl", "split_lora", "zo_sfl", "frozen_bottom")


def finished(arguments: argparse.Namespace, method: str, changes: list[str], folder: Path) -> dict[str, Any]:
    """The summary of one run, which is made if it is not there or was another one."""
    name, *settings = method.split(",")
    settings = [f"algorithm.name={name}", "beside=[]", *arguments.settings, *changes, *settings]
    config = configuration.resolve(arguments.recipe, settings)
    if not (folder / SUMMARY).exists() or configuration.load(folder / run.CONFIG) != config:
        run.train(config, folder, overwrite=True)
    return read_summary(folder)


def tuned(arguments: argparse.Namespace, method: str, place: str, at: list[str]) -> str:
    """The learning rate of the grid with the best held-back metric."""
    scores = {}
    for lr in arguments.grid.split(","):
        changes = [*at, *rates(arguments, lr), f"task.holdout={arguments.holdout}", f"steps={arguments.tune_steps}"]
        folder = arguments.out / "tune" / place / f"{method}-{lr}"
        try:
            scores[lr] = finished(arguments, method, [*changes, "eval_every=100000"], folder)["metric"]["final"]
        except Diverged:
            scores[lr] = float("-inf")
    print(f"{place} {method}: held-back metric by learning rate {scores}", flush=True)
    return max(scores, key=lambda lr: scores[lr])


def rates(arguments: argparse.Namespace, lr: str) -> list[str]:
    """The settings that a learning rate of the grid stands for."""
    return [f"{key}={lr}" for key in arguments.tune.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("settings", nargs="*", help="key=value for every run")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cuts", help="comma-separated; by default the recipe's")
    parser.add_argument("--method", action="append", dest="methods", help="may be repeated; by default all four")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--grid", help="learning rates to tune over; by default the recipe's rates are used")
    parser.add_argument("--tune", default="bottom.lr,top.lr", help="the settings that take the grid's values")
    parser.add_argument("--tune-steps", type=int, default=100)
    parser.add_argument("--holdout", type=float, default=0.013, help="share of the training rows that tuning scores on")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_intermixed_args()
    arguments.methods = arguments.methods or METHODS
    torch.set_num_threads(arguments.threads)
    cuts = arguments.cuts.split(",") if arguments.cuts else [None]
    columns = ("cut", "method", "lr", "final, mean ± sd (seeds)", "gap recovered", "client passes", "MB", "client peak")
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    for cut in cuts:
        at = [f"model.cut={cut}"] if cut else []
        place = f"cut{cut}" if cut else "recipe"
        results: dict[str, list[dict[str, Any]]] = {}
        chosen = {}
        for method in arguments.methods:
            chosen[method] = tuned(arguments, method, place, at) if arguments.grid else None
            changes = [*at, *(rates(arguments, chosen[method]) if chosen[method] else [])]
            results[method] = [
                finished(arguments, method, [*changes, f"seed={seed}"], arguments.out / place / f"{method}-{seed}")
                for seed in range(arguments.seeds)
            ]
        for method in arguments.methods:
            print(row(str(cut or "recipe"), method, chosen[method], results), flush=True)


def row(cut: str, method: str, rate: str | None, results: dict[str, list[dict[str, Any]]]) -> str:
    """One line of the table; the gap is (method − frozen) ÷ (first order − frozen), of each seed."""
    runs = results[method]
    finals = [summary["metric"]["final"] for summary in runs]
    gaps = []
    for summary, frozen, first in zip(
        runs, results.get("frozen_bottom", []), results.get("split_lora", []), strict=False
    ):
        low, high = frozen["metric"]["final"], first["metric"]["final"]
        if high != low:
            gaps.append((summary["metric"]["final"] - low) / (high - low))
    values = ", ".join(f"{final:.1f}" for final in finals)
    gap = f"{spread(gaps)}" if gaps else "–"
    first = runs[0]
    megabytes = (first["up_bytes"] + first["down_bytes"]) / 1e6
    ratio = first["client_peak_bytes"] / first["client_inference_peak_bytes"]
    return (
        f"| {cut} | {method} | {rate or 'recipe'} | {spread(finals)} ({values}) | {gap} | "
        f"{first['forward_passes']:,} | {megabytes:.1f} | {ratio:.3f} |"
    )


def spread(values: list[float]) -> str:
    """Mean ± standard deviation."""
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values) if len(values) > 1 else 0:.2f}"


if __name__ == "__main__":
    main()
