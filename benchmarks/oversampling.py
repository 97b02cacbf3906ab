"""What waiting for the fastest alone (`deployment.spare`) saves and costs, where slow devices have rows of their own.

The quick start among 20 clients with two shards of the classes each. The six that have most of three classes are three
times slower than the others; a reply takes its client's pace times a lognormal draw (σ = 0.3). Five take part in a
step: five that were sampled, or the fastest five of six, or of eight. Printed: the seconds of a step, in those of a
quick client's reply; the share of those who took part that was slow; and the accuracy on the three classes and on the
others, as means over seeds with their standard errors, and the differences of pairs.

    OMP_NUM_THREADS=1 python benchmarks/oversampling.py [--steps 200] [--seeds 3]
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from halfback import config as configuration
from halfback.assembly import Built, build
from halfback.engine.attendance import Attended
from halfback.parties.holdings import Round

CLIENTS, TAKEN, SLOW, TIMES, SIGMA = 20, 5, 6, 3.0, 0.3
CLASSES = (7, 8, 9)
SPARES = (0, 1, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[int, list[tuple[float, ...]]] = {spare: [] for spare in SPARES}
    for seed in range(arguments.seeds):
        with tempfile.TemporaryDirectory() as folder:
            for spare in SPARES:
                found[spare].append(measured(spare, seed, arguments.steps, Path(folder) / "pretrained.safetensors"))
                print(seed, spare, *(f"{value:.2f}" for value in found[spare][-1]), flush=True)
    print("\n| of | seconds of a step | slow clients' share | accuracy on their classes | on the others |")
    print("| --- | --- | --- | --- | --- |")
    for spare, rows in found.items():
        values = np.array(rows)
        errors = values.std(axis=0, ddof=1) / np.sqrt(len(rows)) if len(rows) > 1 else values[0] * np.nan
        cells = (f"{mean:.2f} ± {error:.2f}" for mean, error in zip(values.mean(axis=0), errors, strict=True))
        print(f"| {TAKEN + spare} |", " | ".join(cells), "|")
        if spare:
            differences = values - np.array(found[0])
            errors = differences.std(axis=0, ddof=1) / np.sqrt(len(rows)) if len(rows) > 1 else differences[0] * np.nan
            cells = (f"{mean:+.2f} ± {error:.2f}" for mean, error in zip(differences.mean(axis=0), errors, strict=True))
            print(f"| {TAKEN + spare} less {TAKEN} |", " | ".join(cells), "|")


def measured(spare: int, seed: int, steps: int, weights: Path) -> tuple[float, ...]:
    """Seconds of a step, the slow clients' share of those who took part, and two accuracies."""
    changes = {"clients": CLIENTS, "sampled_clients": TAKEN, "steps": steps, "seed": seed, "partition.name": "shards"}
    given = [f"{key}={value}" for key, value in changes.items()]
    built = build(configuration.resolve("quickstart", given), pretrained=weights)
    paces = np.ones(CLIENTS)
    slow = sorted(range(CLIENTS), key=lambda client: -share_of(built, client))[:SLOW]
    paces[slow] = TIMES
    draws = np.random.Generator(np.random.Philox(key=[seed, 1]))
    federation, seconds, rounds = built.federation, 0.0, dict[int, Attended]()
    for number in range(steps):
        asked = draws.choice(CLIENTS, TAKEN + spare, replace=False)
        took = paces[asked] * draws.lognormal(0.0, SIGMA, len(asked))
        first = np.argsort(took)[:TAKEN]
        seconds += float(took[first].max()) / steps
        rounds[number] = Attended(number, tuple(sorted(asked[first].tolist())))
    federation.attendance = rounds
    for number in range(steps):
        federation.run_round(Round(number, 1, number), measure_memory=False)
    present = [client for attended in rounds.values() for client in attended.cohort]
    share = sum(client in slow for client in present) / len(present)
    return seconds, share, *accuracies(built)


def share_of(built: Built, client: int) -> float:
    """Of a client's rows, how many are of the classes that slow ones have."""
    labels = built.clients.sources[client].split.contents()["labels"]
    return float(torch.isin(labels, torch.tensor(CLASSES)).float().mean())


def accuracies(built: Built) -> tuple[float, float]:
    """In percent, on the validation rows of these classes and of the others."""
    built.federation.server.agreed_bottom()
    right, theirs = (torch.cat(parts) for parts in zip(*judged(built), strict=True))
    return float(right[theirs].float().mean()) * 100, float(right[~theirs].float().mean()) * 100


@torch.no_grad()
def judged(built: Built) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """By batch, whether each row is told right, and whether it is of the slow clients' classes."""
    split = built.task.validation
    for rows in torch.arange(len(split)).split(built.config.eval_batch_size):
        batch = split.batch(rows)
        yield (
            built.model.logits(batch.inputs, batch.scored).argmax(dim=-1) == batch.labels,
            torch.isin(batch.labels, torch.tensor(CLASSES)),
        )


if __name__ == "__main__":
    main()
