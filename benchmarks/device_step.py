"""A device with an inference runtime beside one with PyTorch: seconds of a pass and of a step, and a process's memory.

    halfback package sst2-minilm model.cut=5 --out A                                                # P = 2 slopes
    halfback package sst2-minilm model.cut=5 algorithm.exact_blocks=all algorithm.directions=0 --out B
    python benchmarks/device_step.py A B [--rows 8] [--tokens 25] [--repeats 9] [--device PYTHON]

Each side is a process of its own with one thread, whose own seconds count, and they take turns: a ratio is the median
of those of each turn. `--device` is the interpreter of an environment that has the device's packages alone. Memory is
the most that the operating system counted for a process that did nothing else (VmHWM), beside that of inference.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slopes", type=Path, help="a package of all-minilm-l6-v2 with LoRA")
    parser.add_argument("exact", type=Path, help="the same with exact gradients of all blocks")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=25)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", default=sys.executable)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work is not None:
        serve(arguments)
        return
    sides = {
        name: Side(arguments, name, python)
        for name, python in {"slopes": arguments.device, "exact": arguments.device, "torch": sys.executable}.items()
    }
    asked = [("torch", "pass"), ("slopes", "pass"), ("torch", "step"), ("slopes", "step"), ("exact", "step")]
    turns = [{each: sides[each[0]].ask(each[1]) for each in asked} for _ in range(arguments.repeats + 1)][1:]

    def ratio(one: tuple[str, str], other: tuple[str, str]) -> str:
        found = [turn[one] / turn[other] for turn in turns]
        return f"{statistics.median(found):.2f} ({min(found):.2f}–{max(found):.2f})"

    print(f"{arguments.rows} × {arguments.tokens} tokens")
    print(f"a pass ÷ PyTorch's: {ratio(('slopes', 'pass'), ('torch', 'pass'))}")
    print(f"a step with P = 2 ÷ PyTorch's: {ratio(('slopes', 'step'), ('torch', 'step'))}")
    print(f"a step with exact gradients ÷ one with P = 2: {ratio(('exact', 'step'), ('slopes', 'step'))}")
    print(f"import to ready: {sides['slopes'].ready:.2f} s")
    peaks = {}
    for kind, what in (("slopes", "pass"), ("slopes", "step"), ("exact", "step"), ("torch", "pass"), ("torch", "step")):
        side = Side(arguments, kind, sys.executable if kind == "torch" else arguments.device)
        for _ in range(arguments.repeats):
            side.ask(what)
        peaks[kind, what] = side.ask("peak")
    base = peaks["slopes", "pass"]
    print(
        f"MB: inference {base:.0f}, slopes {peaks['slopes', 'step']:.0f} ({peaks['slopes', 'step'] / base:.2f}), ",
        end="",
    )
    print(f"exact {peaks['exact', 'step']:.0f} ({peaks['exact', 'step'] / base:.2f}); PyTorch ", end="")
    print(f"{peaks['torch', 'pass']:.0f} and {peaks['torch', 'step']:.0f}")


class Side:
    """A process that answers with seconds, or megabytes."""

    def __init__(self, arguments: argparse.Namespace, kind: str, python: str) -> None:
        given = [str(arguments.slopes), str(arguments.exact), "--work", kind]
        sizes = ["--rows", str(arguments.rows), "--tokens", str(arguments.tokens)]
        paths = {"PYTHONPATH": f"{ROOT}:{ROOT / 'device'}", "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
        self._process: Any = subprocess.Popen(
            [python, __file__, *given, *sizes],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=paths,
        )
        self.ready = float(self._process.stdout.readline())

    def ask(self, what: str) -> float:
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())


def serve(arguments: argparse.Namespace) -> None:
    begun = time.perf_counter()
    own = of_torch(arguments) if arguments.work == "torch" else of_device(arguments)
    print(time.perf_counter() - begun, flush=True)
    for line in sys.stdin:
        if line.strip() == "peak":
            status = Path("/proc/self/status").read_text().splitlines()
            print(next(int(each.split()[1]) / 1000 for each in status if each.startswith("VmHWM")), flush=True)
            continue
        begun = time.process_time()
        own[line.strip()]()
        print(time.process_time() - begun, flush=True)


def of_device(arguments: argparse.Namespace) -> dict[str, Callable[[], object]]:
    import numpy as np

    from halfback_device.batches import Batch
    from halfback_device.messages import CutGradient
    from halfback_device.methods import _measured
    from halfback_device.package import Package
    from halfback_device.party import Party, take_agreed
    from halfback_device.plan import plan_of, replica_of
    from halfback_device.runtime import Bottom

    package = Package.open(arguments.exact if arguments.work == "exact" else arguments.slopes)
    plan, random = plan_of(package.manifest), np.random.default_rng(0)
    ids = random.integers(5, 30000, arguments.rows * arguments.tokens)
    inputs = {"input_ids": ids, "lengths": np.full(arguments.rows, arguments.tokens)}
    batch = Batch(inputs, np.zeros(arguments.rows, np.int64), np.arange(arguments.rows))
    feed: Any = None  # its one batch is at hand
    theta = replica_of(plan, package.manifest, package.theta())
    party = Party(Bottom(package), None, theta, feed, plan.probe, exact_blocks=plan.exact_blocks)
    gradient = random.standard_normal((len(ids), package.manifest["model"]["width"])).astype(np.float32) * 1e-3

    def step() -> None:
        talk = _measured(party, batch)
        next(talk)
        try:
            talk.send(CutGradient(gradient))
        except StopIteration as ended:
            take_agreed(theta, ended.value, plan.probe.directions)

    return {"pass": lambda: party.forward(batch), "step": step}


def of_torch(arguments: argparse.Namespace) -> dict[str, Callable[[], object]]:
    import torch
    from client_cost import ho_sfl_step
    from parts import OneBatch, make_batch, make_bottom

    from halfback.models.adapters import trainable
    from halfback.parties.client import Client, Feed, Theta
    from halfback.zeroth.directions import Directions, seed_for
    from halfback.zeroth.replay import Replica
    from halfback.zeroth.update import UpdateRule

    torch.set_num_threads(1)
    cut = json.loads((arguments.slopes / "manifest.json").read_text())["model"]["cut"]
    bottom, vocabulary = make_bottom("minilm", "lora", blocks=cut)
    batch = make_batch(vocabulary, arguments.rows, arguments.tokens)
    rule = UpdateRule("adamw", lr=1e-4)
    replica = Replica(trainable(bottom), rule, Directions(lambda step, p: seed_for(0, "direction", step, p)))
    client = Client(0, bottom, Theta(replica), Feed(OneBatch(batch)))

    def forward() -> None:
        with torch.no_grad():
            bottom(batch.inputs)

    return {"pass": forward, "step": lambda: ho_sfl_step(client, 2)}


if __name__ == "__main__":
    main()
