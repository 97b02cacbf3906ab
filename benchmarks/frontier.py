"""Quality against bytes for every codec and controller, on one work: HO-SFL on rows that come again and again.

    python benchmarks/frontier.py sst2-minilm --out runs/frontier --figure frontier.svg steps=300 task.train_rows=240

Prints a table over the run without codecs, which sends padding, and over `int8` alone, which doesn't, so that what is
left of it is what reuse does; draws mean metric against mean bytes. Every run is a run folder under --out, and a
finished one is not run again. `--seeds` for the settings of `--repeated`, one seed for the others.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from halfback import config as configuration
from halfback.runs.cells import check_folder, finish, is_over
from halfback.runs.opening import Given
from halfback.telemetry.records import read_summary

GRADIENT: Any = {"name": "temporal", "norm_guard": 1.0}
THRESHOLDS: Any = {"activations_up": 0.98, "gradient_down": 0.6}


def both(*chain: Any) -> dict[str, Any]:
    """The same chain on both links."""
    return {"codecs.activations_up": chain, "codecs.gradient_down": chain}


def reuse(controller: dict[str, Any], *behind: Any) -> dict[str, Any]:
    """Temporal reuse on both links."""
    chains = {"codecs.activations_up": ["temporal", *behind], "codecs.gradient_down": [GRADIENT, *behind]}
    return {**chains, **{f"controller.{key}": value for key, value in controller.items()}}


ADAPTIVE = {"low": 0.5, "initial": 0.9}
SETTINGS: dict[str, dict[str, Any]] = {
    "none": {},
    "cast": both("cast"),
    "int8": both("int8"),
    "int4": both("int4"),
    "topk 10 %": both("topk"),
    "topk 10 %, feedback": {
        "codecs.activations_up": ["topk"],
        "codecs.gradient_down": [{"name": "topk", "feedback": True}],
    },
    "projection to 128": both("projection"),
    "temporal, fixed": reuse({"per_link": THRESHOLDS}),
    "temporal, bang_bang": reuse({"name": "bang_bang", "step": 0.1, **ADAPTIVE}),
    "temporal, ddpg": reuse({"name": "ddpg", **ADAPTIVE}),
    "temporal, fixed, int8": reuse({"per_link": THRESHOLDS}, "int8"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("settings", nargs="*", help="key=value for every run")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--repeated", default="none;int8;temporal, fixed", help="settings behind semicolons")
    arguments = parser.parse_intermixed_args()
    repeated = arguments.repeated.split(";")
    found: dict[str, list[dict[str, Any]]] = {}
    for name in sorted(SETTINGS, key=lambda name: name not in repeated):
        for seed in range(arguments.seeds if name in repeated else 1):
            changes = [f"{key}={json.dumps(value)}" for key, value in SETTINGS[name].items()] + [f"seed={seed}"]
            folder = arguments.out / f"{name.replace(' ', '_')}-{seed}"
            found.setdefault(name, []).append(finished(arguments, changes, folder))
        print(f"{name}: {[run['metric']['final'] for run in found[name]]}", flush=True)
    print("| codec, controller | final | up ÷ none | down ÷ none | total ÷ none | total ÷ int8 |\n|" + " --- |" * 6)
    for name, runs in found.items():
        print(row(name, runs, found["none"], found["int8"]))
    if arguments.figure is not None:
        draw(found, arguments.figure)


def finished(arguments: argparse.Namespace, changes: list[str], folder: Path) -> dict[str, Any]:
    """The summary of one run, which is made if it is not there."""
    settings = ["algorithm.name=ho_sfl", "beside=[]", *arguments.settings, *changes]
    config = configuration.resolve(arguments.recipe, settings)
    check_folder(config, folder)
    if not is_over(folder):
        finish(config, folder, Given())
    return read_summary(folder)


def row(name: str, runs: list[dict[str, Any]], none: list[dict[str, Any]], int8: list[dict[str, Any]]) -> str:
    """One line of the table; bytes are over the runs without codecs, and by `int8` alone, seed by seed."""
    finals = [run["metric"]["final"] for run in runs]
    said = " ".join(f"{final:.2f}" for final in finals)
    if len(finals) > 1:
        said = f"{statistics.mean(finals):.2f} ± {statistics.stdev(finals):.2f} ({said})"
    both_ways = ("up_bytes", "down_bytes")
    shares = []
    for keys, baseline in ((both_ways[:1], none), (both_ways[1:], none), (both_ways, none), (both_ways, int8)):
        pairs = zip(runs, baseline, strict=False)
        shares.append(statistics.mean(sum(a[key] for key in keys) / sum(b[key] for key in keys) for a, b in pairs))
    return f"| {name} | {said} | {' | '.join(f'{share:.3f}' for share in shares)} |"


def draw(found: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """A point for each setting, its name beside it; bars over seeds."""
    figure, axes = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    for order, (name, runs) in enumerate(found.items()):
        finals = [run["metric"]["final"] for run in runs]
        megabytes = statistics.mean(run["up_bytes"] + run["down_bytes"] for run in runs) / 1e6
        spread = statistics.stdev(finals) if len(finals) > 1 else None
        axes.errorbar(megabytes, statistics.mean(finals), spread, marker="o", color=f"C{order % 10}", capsize=3)
        axes.annotate(name, (megabytes, statistics.mean(finals)), (5, 5), textcoords="offset points", fontsize=8)
    axes.set_xscale("log")
    axes.set_xlabel("MB, up and down, of the whole run")
    axes.set_ylabel(f"{found['none'][0]['metric']['name']} at the end")
    axes.grid(alpha=0.3)
    figure.savefig(path)


if __name__ == "__main__":
    main()
