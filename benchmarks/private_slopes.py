"""What private slopes cost: accuracy at (ε, δ = 1e-5) beside the same run without noise, with the same seeds.

    OMP_NUM_THREADS=1 python benchmarks/private_slopes.py digits [--seeds 5] [--epsilon 8] [--out results.jsonl]
    OMP_NUM_THREADS=1 HALFBACK_DATA=DATA python benchmarks/private_slopes.py sst2 --steps 150

The clip of each unit is first chosen from a grid, by the mean accuracy at that ε, with seeds that are none of those
of the table (1000 to 1002). Then each row of the table runs with seeds 0, 1, …; the difference is seed by seed, with
its standard error. `digits` is DeComFL on the quick start's data and model, `everybody` the same with all ten devices
in each step, `split` HO-SFL there, beside a bottom that nobody trains; `sst2` is HO-SFL with P = 2 on MiniLM and
4,000 rows of SST-2, beside such a bottom too.
"""

import argparse
import json
import statistics
from pathlib import Path

import torch

import halfback as hb

APART = range(1000, 1003)  # seeds of the grid
WORK: dict[str, tuple[str, dict[str, object]]] = {
    "digits": ("quickstart", {"algorithm.name": "decomfl", "beside": [], "eval_every": 1000}),
    "everybody": ("quickstart", {"algorithm.name": "decomfl", "beside": [], "eval_every": 1000, "sampled_clients": 10}),
    "split": ("quickstart", {"beside": [], "eval_every": 1000, "sampled_clients": 10}),
    "sst2": ("sst2-minilm", {"task.train_rows": 4000, "eval_every": 1000, "first_eval_rows": 16, "threads": 1}),
}
ROWS: dict[str, tuple[float, ...]] = {
    "digits": (10, 30, 100),
    "everybody": (30, 100, 300, 1000),
    "split": (1, 3, 10, 100, 1000),
    "sst2": (0.01, 0.03),
}
CLIENTS: dict[str, tuple[float, ...]] = {
    "digits": (10, 40),
    "everybody": (10, 40),
    "split": (1, 10),
    "sst2": (0.003, 0.01, 0.03),
}


class Runs:
    """Runs of one work, each once: what was run before is read from the file of results."""

    def __init__(self, work: str, steps: int, out: Path) -> None:
        self.recipe, self.settings = WORK[work][0], WORK[work][1] | {"steps": steps}
        self.out = out
        self.done = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []

    def accuracy(self, seed: int, changes: dict[str, object]) -> tuple[float, float | None, float | None]:
        """The final accuracy in percent, and the ε and the noise multiplier of a private run."""
        asked = self.settings | changes | {"seed": seed, "recipe": self.recipe}
        found = next((run for run in self.done if run["asked"] == asked), None)
        if found is None:
            settings = {key: value for key, value in asked.items() if key != "recipe"}
            summary = hb.train(self.recipe, progress=False, **settings).summary
            spent = summary.privacy
            came = [summary.metric.final, *((None, None) if spent is None else (spent.epsilon, spent.noise))]
            found = {"asked": asked, "came": came}
            with self.out.open("a") as file:
                file.write(json.dumps(found) + "\n")
            self.done.append(found)
        accuracy, epsilon, noise = found["came"]
        return accuracy, epsilon, noise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", choices=WORK)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--epsilon", type=float, default=8.0)
    parser.add_argument("--units", nargs="+", default=("sample", "client"), choices=("sample", "client"))
    parser.add_argument("--out", type=Path, default=Path("private_slopes.jsonl"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    runs = Runs(arguments.work, arguments.steps, arguments.out)

    def private(unit: str, clip: float) -> dict[str, object]:
        where = "algorithm.clip_samples" if unit == "sample" else "privacy.clip"
        return {"privacy.unit": unit, "privacy.epsilon": arguments.epsilon, where: clip}

    table: dict[str, dict[str, object]] = {"no noise": {}}
    for unit in arguments.units:
        grid = (ROWS if unit == "sample" else CLIENTS)[arguments.work]
        chosen = {clip: statistics.mean(runs.accuracy(seed, private(unit, clip))[0] for seed in APART) for clip in grid}
        print(f"{unit}: " + ", ".join(f"clip {clip:g}: {got:.1f}" for clip, got in chosen.items()))
        best = max(chosen, key=chosen.__getitem__)
        if unit == "sample" and arguments.work == "digits":
            table[f"clip {best:g} of rows, no noise"] = {"algorithm.clip_samples": best}
        table[f"each {unit}, clip {best:g}"] = private(unit, best)
    if arguments.work in ("sst2", "split"):
        table["frozen_bottom"] = {"algorithm.name": "frozen_bottom"}
    plain: list[float] = []
    for name, changes in table.items():
        came = [runs.accuracy(seed, changes) for seed in range(arguments.seeds)]
        finals = [accuracy for accuracy, _, _ in came]
        plain = plain or finals
        apart = [mine - theirs for mine, theirs in zip(finals, plain, strict=True)]
        said = f"{name}: {_mean(finals)}, beside no noise {_mean(apart)}"
        if came[0][1] is not None:
            said += f"; ε {max(epsilon or 0 for _, epsilon, _ in came):.2f}, noise {came[0][2]:.2f}"
        print(said, [round(final, 1) for final in finals], flush=True)


def _mean(values: list[float]) -> str:
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):.1f} ± {error:.1f}"


if __name__ == "__main__":
    main()
