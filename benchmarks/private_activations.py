"""What activations with noise cost: accuracy at an ε, beside none, with other codecs before the noise, and reused.

    OMP_NUM_THREADS=1 HALFBACK_DATA=… python benchmarks/private_activations.py [--cut 5] [--seeds 0 1 2] [--steps 100]

The recipe sst2-minilm with `frozen_bottom`, where activations, lengths and labels are all that a client says, so ε is
of the whole run but for these two. A frozen bottom gives the same activations for the same text, so they are computed
once and remembered; all else is a run as `halfback train` makes it. A line of JSON for each run goes to --out, and what
is there already is not run again; then a table: the mean of the seeds and its standard error.
"""

import argparse
import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from halfback import config as configuration
from halfback.assembly import build
from halfback.models.running import Bottom
from halfback.parties.holdings import Round
from halfback.privacy.account import noise_for

MANY, FEW = 12000, 600  # training rows: no row twice in 100 steps; each about eight times
VISITS = 13  # of a row of the few, at most
_KNOWN: dict[tuple[int, tuple[int, ...]], Tensor] = {}
_STRAIGHT = Bottom._activations


def remembered(bottom: Bottom, inputs: Mapping[str, Tensor]) -> Tensor:
    """The activations of texts, each computed once."""
    texts = [tuple(part.tolist()) for part in inputs["input_ids"].split(inputs["lengths"].tolist())]
    place = len(bottom.blocks)
    if missing := [text for text in dict.fromkeys(texts) if (place, text) not in _KNOWN]:
        ids = {"input_ids": torch.tensor([token for text in missing for token in text])}
        lengths = torch.tensor([len(text) for text in missing])
        with torch.no_grad():
            found = _STRAIGHT(bottom, ids | {"lengths": lengths}).split(lengths.tolist())
        _KNOWN.update({(place, text): hidden.clone() for text, hidden in zip(missing, found, strict=True)})
    return torch.cat([_KNOWN[place, text] for text in texts])


def noisy(clip: float, size: int | None = None, *before: Any, **noise: float) -> list[Any]:
    """A chain with noise, behind a projection to so many columns."""
    projected = [] if size is None else [{"name": "projection", "size": size}]
    return [*before, *projected, {"name": "private", "clip": clip, **noise}]


def ways(clip: float, size: int) -> dict[str, tuple[int, list[Any]]]:
    """Training rows and chain, by name."""
    once = {"name": "temporal", "every": 1000}
    often = noise_for(8, 1e-5, VISITS)
    return {
        "no noise": (MANY, []),
        "private ε=8": (MANY, noisy(clip, epsilon=8)),
        f"projection {size}, private ε=8": (MANY, noisy(clip, size, epsilon=8)),
        "private ε=100": (MANY, noisy(clip, epsilon=100)),
        f"projection {size}, private ε=100": (MANY, noisy(clip, size, epsilon=100)),
        "private ε=1000": (MANY, noisy(clip, epsilon=1000)),
        f"projection {size}, private ε=1000": (MANY, noisy(clip, size, epsilon=1000)),
        f"{FEW} rows: no noise": (FEW, []),
        f"{FEW} rows: temporal every, projection {size}, private ε=8": (FEW, noisy(clip, size, once, epsilon=8)),
        f"{FEW} rows: projection {size}, private ε=8 over all visits": (FEW, noisy(clip, size, noise=often)),
    }


def measured(cut: int, seed: int, steps: int, rows: int, chain: list[Any]) -> dict[str, Any]:
    """One run: its accuracy in percent of all validation rows, its bytes, and what its worst sample spent."""
    settings = [f"model.cut={cut}", f"seed={seed}", f"steps={steps}", f"task.train_rows={rows}", "threads=1"]
    settings += ["algorithm={name: frozen_bottom}", "beside=[]", f"codecs.activations_up={json.dumps(chain)}"]
    built = build(configuration.resolve("sst2-minilm", settings))
    federation = built.federation
    losses = [federation.run_round(Round(step, 1, step), measure_memory=False) for step in range(steps)]
    spent = federation.server.private_activations()
    return {
        "accuracy": built.evaluate().metric,
        "loss": statistics.mean(losses[-20:]),
        "up_bytes": federation.server.ledger.total("up"),
        "epsilon": None if spent is None else spent.epsilon,
        "releases": None if spent is None else spent.releases,
    }


def main() -> None:
    """The runs that are not there yet, and the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cut", type=int, default=5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--clip", type=float, default=1.0)
    parser.add_argument("--size", type=int, default=8)
    parser.add_argument("--only", nargs="+", default=None, help="names that begin so")
    parser.add_argument("--out", type=Path, default=Path("private_activations.jsonl"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    Bottom._activations = remembered  # type: ignore[method-assign]
    found = [json.loads(line) for line in asked.out.read_text().splitlines()] if asked.out.exists() else []
    chosen = {
        name: way
        for name, way in ways(asked.clip, asked.size).items()
        if asked.only is None or name.startswith(tuple(asked.only))
    }
    for name, (rows, chain) in chosen.items():
        for seed in asked.seeds:
            run = {"cut": asked.cut, "name": name, "clip": asked.clip if chain else None, "steps": asked.steps}
            run["seed"] = seed
            if any(run.items() <= line.items() for line in found):
                continue
            found.append(run | measured(asked.cut, seed, asked.steps, rows, chain))
            with asked.out.open("a") as file:
                file.write(json.dumps(found[-1]) + "\n")
            print(found[-1], flush=True)
    for name in chosen:
        same = [line for line in found if line["name"] == name and line["cut"] == asked.cut]
        same = [line for line in same if line["seed"] in asked.seeds and line["clip"] in (None, asked.clip)]
        if len(same) < 2:
            continue
        values = [line["accuracy"] for line in same]
        error = statistics.stdev(values) / len(values) ** 0.5
        spent = max((line["epsilon"] or 0.0) for line in same)
        print(f"| {name} | {statistics.mean(values):.1f} ± {error:.1f} | {spent:.4g} | {len(values)} seeds |")


if __name__ == "__main__":
    main()
