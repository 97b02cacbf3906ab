"""The device's numbers in NumPy against the reference's, in tensor operations and in its kernel: ratios of seconds.

    python benchmarks/device_numerics.py [--rows 100] [--directions 2] [--rounds 15]

One process and one thread, whose own seconds are counted; a round measures each once, in turn, and a ratio is one of
medians. θ is LoRA (r = 8) on query and value of MiniLM's first five blocks. *Catch-up*: `--rows` missed rows at once;
*a step*: the same rows one by one, as a client that is there takes them; *weights*: θ + μu of all parameters, which a
probe asks for one by one.
"""

import argparse
from typing import Any

import numpy as np
import torch
from direction_speed import Work, by_tensors, in_turn, ratio
from torch import nn

from halfback.zeroth import directions as their_directions
from halfback.zeroth import replay as their_replay
from halfback.zeroth.slopes import perturbed as their_perturbed
from halfback.zeroth.update import UpdateRule as TheirRule
from halfback_device.replay import Replica
from halfback_device.seeds import Directions, Law, seeds_under
from halfback_device.slopes import perturbed
from halfback_device.update import UpdateRule

SHAPES = {
    f"layer.{block}.attention.self.{name}.lora_{side}.default.weight": shape
    for block in range(5)
    for name in ("query", "value")
    for side, shape in (("A", (8, 384)), ("B", (384, 8)))
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--directions", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = np.random.default_rng(0).standard_normal((arguments.rows, arguments.directions), dtype=np.float32)
    print("| law | rule | catch-up ÷ tensors | ÷ kernel | a step ÷ tensors | ÷ kernel | weights ÷ tensors | ÷ kernel |")
    print("|" + " --- |" * 8)
    laws: tuple[Law, ...] = ("rademacher", "gaussian")
    for law in laws:
        weights = against(*of_weights(law), 20 * arguments.rounds)
        for optimizer in ("sgd", "adamw"):
            at_once = against(*of_replay(law, optimizer, rows, len(rows)), arguments.rounds)
            step = against(*of_replay(law, optimizer, rows[:10], 1), arguments.rounds)
            print(f"| {law} | {optimizer} | {at_once} | {step} | {weights} |", flush=True)


def against(mine: Work, theirs: Work, rounds: int) -> str:
    numpy, tensors, kernel = in_turn([mine, lambda: by_tensors(theirs), theirs], rounds)
    return f"{ratio(numpy, tensors)} | {ratio(numpy, kernel)}"


def of_replay(law: Law, optimizer: Any, rows: np.ndarray, at_once: int) -> tuple[Work, Work]:
    """Both replays of these rows, so many at once, each from where it was left."""
    path = (0, "direction", "bottom")
    mine = Replica(
        {name: np.zeros(shape, dtype=np.float32) for name, shape in SHAPES.items()},
        UpdateRule(optimizer),
        Directions(seeds_under(*path), law),
    )
    theirs = their_replay.Replica(
        {name: torch.zeros(shape) for name, shape in SHAPES.items()},
        TheirRule(optimizer),
        their_directions.Directions(their_directions.seeds_under(*path), law),
    )
    tensor = torch.from_numpy(rows)

    def with_numpy() -> None:
        for first in range(0, len(rows), at_once):
            mine.replay(mine.position, rows[first : first + at_once])

    def with_torch() -> None:
        for first in range(0, len(rows), at_once):
            theirs.replay(theirs.position, tensor[first : first + at_once])

    return with_numpy, with_torch


class _Layer(nn.Module):
    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(shape))

    def forward(self) -> None:
        pass


def of_weights(law: Law) -> tuple[Work, Work]:
    """Both ways to θ + μu, of which nothing is computed."""
    layers = nn.ModuleList([_Layer(shape) for shape in SHAPES.values()])
    parameters = dict(zip(SHAPES, layers.parameters(), strict=True))
    theta = {name: np.zeros(shape, dtype=np.float32) for name, shape in SHAPES.items()}
    seeds = Directions(seeds_under(0), law).of(0, 1)

    def with_numpy() -> None:
        weight = perturbed(theta, theta, seeds, 0, 1e-4)
        for name in theta:
            weight(name)

    def with_torch() -> None:
        with torch.no_grad(), their_perturbed(layers, parameters, seeds.numbers[0], 1e-4, law=law):
            for layer in layers:
                layer()

    return with_numpy, with_torch


if __name__ == "__main__":
    main()
