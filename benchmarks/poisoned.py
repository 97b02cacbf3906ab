"""Poisoned clients in HO-SFL: what they do to the final accuracy, and what the setting `robust` leaves of it.

    OMP_NUM_THREADS=1 python benchmarks/poisoned.py [steps=75 …] [--seeds 3] [--poisoned 2] [--attacks …] [--defences …]

The quick start's model and data with all ten clients in every step; the first two of them lie in every step. All runs
of a seed begin with the same pretrained weights and take the same batches. Mean ± standard deviation of the final
metric over the seeds; `diverged` where a value was no longer finite.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from halfback import config as configuration
from halfback.assembly import build
from halfback.errors import Diverged
from halfback.parties.client import Client
from halfback.parties.holdings import Round
from halfback.parties.protocol import Conversation
from halfback.testing.wrapped import give
from halfback.wire.messages import Activations, Message, Slopes

Lie = Callable[[Message, torch.Generator], Message]
WORK = ("beside=[]", "sampled_clients=10", "batch_size=8", "steps=75")


def slopes(change: Callable[[Tensor, torch.Generator], Tensor]) -> Lie:
    """A lie about slopes alone."""
    return lambda said, noise: replace(said, values=change(said.values, noise)) if isinstance(said, Slopes) else said


def wrong_labels(said: Message, _: torch.Generator) -> Message:
    """Digit y becomes 9 − y."""
    honest = not isinstance(said, Activations) or said.labels is None
    return said if honest else replace(said, labels=9 - said.labels)


ATTACKS: dict[str, tuple[str, Lie | None]] = {
    "none": ("the truth", None),
    "scaled": ("slopes times −100", slopes(lambda values, _: -100 * values)),
    "constant": ("every slope 1,000", slopes(lambda values, _: torch.full_like(values, 1e3))),
    "noise": ("slopes N(0, 1,000²)", slopes(lambda values, noise: 1e3 * torch.randn(len(values), generator=noise))),
    "flipped": ("slopes times −1", slopes(lambda values, _: -values)),
    "labels": ("honest slopes, wrong labels", wrong_labels),
}
DEFENCES = ("none", "clip", "median", "trimmed_mean")


class Poisoned:
    """An algorithm some of whose clients lie."""

    def __init__(self, algorithm: Any, liars: range, lie: Lie) -> None:
        self.honest, self.liars, self.lie = algorithm, liars, lie
        self.needs, self.answer = algorithm.needs, algorithm.answer

    def client_round(self, client: Client, round: Round) -> Conversation:
        """The honest conversation, of which a liar changes what it says."""
        noise = torch.Generator().manual_seed(1000 * client.id + round.number)
        talk, reply = self.honest.client_round(client, round), None
        while True:
            try:
                said = talk.send(reply)
            except StopIteration:
                return
            reply = yield self.lie(said, noise) if client.id in self.liars else said


def final(settings: list[str], pretrained: Path, liars: int, lie: Lie | None) -> float | None:
    """The metric at the end; None for a run that diverged."""
    config = configuration.resolve("quickstart", settings)
    run = build(config, pretrained=pretrained)
    if lie is not None:
        give(run.federation, Poisoned(run.federation.server.algorithm, range(liars), lie))
    try:
        for number in range(config.steps):
            run.federation.run_round(Round(number, 1, number), measure_memory=False)
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
    parser.add_argument("--attacks", nargs="+", choices=ATTACKS, default=["none", "scaled", "noise", "labels"])
    parser.add_argument("--defences", nargs="+", choices=DEFENCES, default=DEFENCES)
    arguments = parser.parse_intermixed_args()
    print(f"| {arguments.poisoned} of 10 clients say | {' | '.join(f'`{name}`' for name in arguments.defences)} |")
    print("| --- |" + " --- |" * len(arguments.defences))
    with tempfile.TemporaryDirectory() as folder:
        for what, lie in (ATTACKS[name] for name in arguments.attacks):
            cells = []
            for defence in arguments.defences:
                given = [*WORK, f"robust.name={defence}", f"robust.trim={arguments.poisoned}", *arguments.settings]
                finals = [
                    final([*given, f"seed={seed}"], Path(folder) / str(seed), arguments.poisoned, lie)
                    for seed in range(arguments.seeds)
                ]
                cells.append(cell(finals))
            print(f"| {what} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
