"""A client that missed 1,000 steps: seconds of its replay, and whether it has the bits of one that never left.

python benchmarks/catch_up.py [--steps 1000]
"""

import argparse
import time

import torch
from parts import make_bottom

from halfback.models.adapters import trainable
from halfback.wire.messages import History
from halfback.wire.packing import pack
from halfback.zeroth.directions import Directions, seed_for
from halfback.zeroth.replay import Replica
from halfback.zeroth.update import UpdateRule


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--directions", type=int, default=2)
    arguments = parser.parse_args()
    print("| bottom | trained | parameters | optimiser | steps missed | bytes | one pass | step by step | bit-equal |")
    print("|" + " --- |" * 9)
    for name, train, steps in (("minilm", "lora", arguments.steps), ("minilm", "full", arguments.steps // 10)):
        for optimizer in ("sgd", "adamw"):
            print(row(name, train, optimizer, steps, arguments.directions), flush=True)


def row(name: str, train: str, optimizer: str, steps: int, directions: int) -> str:
    """Replays the same history twice: at once, and one step after another."""
    parameters = trainable(make_bottom(name, train)[0])
    rule = UpdateRule(optimizer, lr=1e-4)  # type: ignore[arg-type]

    def replica() -> Replica:
        own = {key: parameter.detach().clone() for key, parameter in parameters.items()}
        return Replica(own, rule, Directions(lambda step, p: seed_for(0, "direction", step, p)))

    slopes = torch.randn(steps, directions, generator=torch.Generator().manual_seed(0))
    away, present = replica(), replica()
    start = time.perf_counter()
    away.replay(0, slopes)
    middle = time.perf_counter()
    for step in range(steps):
        present.replay(step, slopes[step : step + 1])
    end = time.perf_counter()
    equal = all(torch.equal(away.parameters[key], present.parameters[key]) for key in parameters)
    size = sum(parameter.numel() for parameter in parameters.values())
    sent = len(pack(History(0, slopes)).data)
    return (
        f"| {name} | {train} | {size:,} | {optimizer} | {steps:,} | {sent:,} | {middle - start:.2f} s | "
        f"{end - middle:.2f} s | {'yes' if equal else 'NO'} |"
    )


if __name__ == "__main__":
    main()
