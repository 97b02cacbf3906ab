"""What HO-SFL's choices gain on a frozen bottom, and how far first order is from them, and what each costs a device.

    python benchmarks/deep_cut.py sst2-minilm --out runs/deep --figure deep.svg model.cut=5 steps=200 batch_size=8

Runs every setting (or those of `--only`) with every seed as run folders under --out, `--jobs` at once; a finished run
is not run again. Prints a table and draws accuracy against forward passes, bytes and client memory. Other rows than the
recipe's are a setting for every run (`task.name=csv task.train=…`); `other_tasks.py` writes some that nothing was tuned
on.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from halfback.report.differences import difference, recovered, said_difference, said_recovered
from halfback.runs.cells import is_over
from halfback.telemetry.records import read_records, read_summary

FROZEN, FIRST = "frozen bottom", "first order"
FEW = {"bottom.train": "lora_b"}
KINDS = ("lora_b", "bias", "ia3", "norm")
ALL = {"algorithm.exact_blocks": "all", "algorithm.directions": 0}
FEWEST = {  # of which all is sent; the scale of LoRA's product stays, and the top's adapters have the same rank
    "ia3": {"bottom.train": "ia3"},
    "lora_b r2": {"bottom.train": "lora_b", "lora.rank": 2, "lora.alpha": 4},
}
AGREEMENTS: dict[str, dict[str, Any]] = {
    "float32": {},
    "int8": {"codecs.slopes_up": ["int8"], "codecs.slopes_down": ["int8"]},
    "signs": {"codecs.slopes_up": ["sign"], "codecs.slopes_down": ["sign"]},
}
COLOURS = {"forward passes alone": "C0", "backward pass of one block": "C2", "backpropagation": "C3"}
SETTINGS: dict[str, dict[str, Any]] = {
    FROZEN: {"algorithm.name": "frozen_bottom"},
    FIRST: {"algorithm.name": "split_lora"},
    "first order, checkpointed": {"algorithm.name": "split_lora", "algorithm.checkpointing": True},
    "HO-SFL, the paper's": {},
    "normalised": {"bottom.normalize": True, "bottom.optimizer": "sgd"},
    "sign": {"bottom.optimizer": "sign"},
    "momentum": {"bottom.optimizer": "momentum", "bottom.normalize": True},
    **{kind: {"bottom.train": kind} for kind in KINDS},
    **{f"exact {n}": {"algorithm.exact_blocks": n} for n in (1, 2, 3, 4)},
    **{f"exact {n}, P=0": {"algorithm.exact_blocks": n, "algorithm.directions": 0} for n in (1, 2, 3, 4, 6)},
    **{f"lora_b, exact {n}": FEW | {"algorithm.exact_blocks": n} for n in (1, 2, 3, 4, 8)},
    **{f"lora_b, exact {n}, P=0": FEW | {"algorithm.exact_blocks": n, "algorithm.directions": 0} for n in (1, 2, 3, 4)},
    **{f"ia3, exact {n}": {"bottom.train": "ia3", "algorithm.exact_blocks": n} for n in (2, 4)},
    **{f"{kind}, exact all, {how}": FEWEST[kind] | ALL | AGREEMENTS[how] for kind in FEWEST for how in AGREEMENTS},
    **{f"first order, {kind}": {"algorithm.name": "split_lora", "bottom.train": kind} for kind in KINDS},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("settings", nargs="*", help="key=value for every run")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--only", default=";".join(SETTINGS), help="labels behind semicolons")
    parser.add_argument("--lr", default="", help="bottom.lr by label, as `label:1e-3;label:3e-3`")
    arguments = parser.parse_intermixed_args()
    rates = dict(entry.rsplit(":", 1) for entry in arguments.lr.split(";") if entry)
    labels = [label for label in arguments.only.split(";") if label]
    work = [(seed, label) for seed in range(arguments.seeds) for label in labels]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(lambda cell: finish(arguments, rates, *cell), work))
    found = {label: [folder_of(arguments.out, label, seed) for seed in range(arguments.seeds)] for label in labels}
    against = [f"− {FROZEN}", f"− {FIRST}", "gap recovered"]
    columns = ["setting", "lr", "final (seeds)", *against, "validation loss", *against]
    columns += ["client passes", "MB", "client peak", "client s"]
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    summaries = {label: [read_run(folder) for folder in folders] for label, folders in found.items()}
    for label, runs in summaries.items():
        print(row(label, rates.get(label, ""), runs, summaries))
    if FROZEN in found and FIRST in found:
        print("\n| setting | steps to the frozen bottom's final | to 95 % of first order's |\n| --- | --- | --- |")
        frozen, first = (statistics.mean(final_of(run) for run in summaries[label]) for label in (FROZEN, FIRST))
        for label, folders in found.items():
            print(f"| `{label}` | {steps_to(frozen, folders)} | {steps_to(0.95 * first, folders)} |")
    if arguments.figure is not None:
        draw(summaries, arguments.figure)


def folder_of(out: Path, label: str, seed: int) -> Path:
    """Where a run is."""
    return out / f"{label.replace(' ', '_').replace(',', '')}-{seed}"


def finish(arguments: argparse.Namespace, rates: Mapping[str, str], seed: int, label: str) -> None:
    """Runs one setting with one seed, in a process of its own, if that is not done."""
    folder = folder_of(arguments.out, label, seed)
    if is_over(folder):
        return
    changes = [f"{key}={json.dumps(value)}" for key, value in SETTINGS[label].items()]
    rate = [f"bottom.lr={rates[label]}"] if label in rates else []
    command = ["train", arguments.recipe, "beside=[]", *arguments.settings, *changes, *rate, f"seed={seed}"]
    subprocess.run(
        [sys.executable, "-m", "halfback", *command, "--out", str(folder)], check=True, stdout=subprocess.DEVNULL
    )
    print(f"{label}, seed {seed}: {final_of(read_summary(folder)):.2f}", file=sys.stderr, flush=True)


def read_run(folder: Path) -> dict[str, Any]:
    """A summary, with the validation loss at the end."""
    return read_summary(folder) | {"validation_loss": read_records(folder)[-1].validation_loss}


def final_of(run: Mapping[str, Any]) -> float:
    """The metric at the end."""
    return float(run["metric"]["final"])


def loss_of(run: Mapping[str, Any]) -> float:
    """The validation loss at the end: less noisy than an accuracy."""
    return float(run["validation_loss"])


def spread(values: list[float], digits: int) -> str:
    """Mean ± standard deviation."""
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


def row(label: str, rate: str, runs: list[dict[str, Any]], every: Mapping[str, list[dict[str, Any]]]) -> str:
    """One line of the table."""
    finals = [final_of(run) for run in runs]
    passes, megabytes, peak, seconds = costs(runs)
    if FROZEN in every:
        seconds /= costs(every[FROZEN])[3]
    said, losses = ", ".join(f"{final:.1f}" for final in finals), [loss_of(run) for run in runs]
    return (
        f"| `{label}` | {rate} | {spread(finals, 2)} ({said}) | {fences(label, every, final_of, 2)} | "
        f"{spread(losses, 4)} | {fences(label, every, loss_of, 4)} | {passes:,.0f} | {megabytes:.1f} | "
        f"{peak:.3f} | {seconds:.1f} |"
    )


def fences(
    label: str,
    every: Mapping[str, list[dict[str, Any]]],
    measure: Callable[[Mapping[str, Any]], float],
    digits: int,
) -> str:
    """Three cells: differences to the frozen bottom and to first order, and the part of the gap."""
    mine, low, high = ({run["seed"]: measure(run) for run in every.get(name, [])} for name in (label, FROZEN, FIRST))
    found = [None if label == name else difference(mine, fence) for name, fence in ((FROZEN, low), (FIRST, high))]
    part = None if label in (FROZEN, FIRST) else recovered(mine, low, high)
    return " | ".join([*(said_difference(one, f".{digits}f") for one in found), said_recovered(part)])


def costs(runs: list[dict[str, Any]]) -> tuple[float, float, float, float]:
    """Passes of the whole bottom, MB both ways, client peak over its inference, client seconds: means over seeds.

    Passes leave out what exact blocks cost; the seconds have it.
    """
    return (
        statistics.mean(run["forward_passes"] for run in runs),
        statistics.mean(run["up_bytes"] + run["down_bytes"] for run in runs) / 1e6,
        statistics.mean(run["client_peak_bytes"] / run["client_inference_peak_bytes"] for run in runs),
        statistics.mean(run["client_seconds"] for run in runs),
    )


def steps_to(wanted: float, folders: list[Path]) -> str:
    """The first evaluation at which each seed has reached a metric."""
    reached = []
    for folder in folders:
        curve = [(record.step, record.metric) for record in read_records(folder) if record.metric is not None]
        reached.append(next((str(step) for step, metric in curve if metric >= wanted), "–"))
    return ", ".join(reached)


def what_runs(label: str) -> str:
    """What a device needs to be able to, with this setting."""
    if label.startswith(FIRST):
        return "backpropagation"
    return "backward pass of one block" if "exact" in label else "forward passes alone"


def draw(found: Mapping[str, list[dict[str, Any]]], path: Path) -> None:
    """A point for each setting in four panels, named where no cheaper one is as good, and the fences.

    Those that no other beats in both are joined. Colours tell what a device runs.
    """
    figure, panels = plt.subplots(2, 2, figsize=(13, 9), sharey=True, layout="constrained")
    names = ("forward passes of the whole bottom", "MB, up and down", "client peak ÷ plain inference", "client seconds")
    for place, (axes, name) in enumerate(zip(panels.flat, names, strict=True)):
        points = sorted(
            (costs(runs)[place], statistics.mean(final_of(run) for run in runs), label) for label, runs in found.items()
        )
        best: list[tuple[float, float]] = []
        for cost, final, label in points:
            axes.plot(cost, final, "o", color=COLOURS[what_runs(label)], alpha=0.8)
            better = not best or final > best[-1][1]
            if better or label in (FROZEN, FIRST):
                axes.annotate(label, (cost, final), (4, 4), textcoords="offset points", fontsize=7)
            if better:
                best.append((cost, final))
        axes.plot(*zip(*best, strict=True), color="0.6", zorder=0, drawstyle="steps-post")
        axes.set_xlabel(name)
        axes.grid(alpha=0.3)
    for what, colour in COLOURS.items():
        panels[0, 0].plot([], [], "o", color=colour, label=what)
    panels[0, 0].legend(loc="lower right", fontsize=8)
    for axes in panels[:, 0]:
        axes.set_ylabel("accuracy at the end, %")
    figure.savefig(path)


if __name__ == "__main__":
    main()
