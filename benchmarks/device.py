"""What a device's process costs, by the operating system: its environment, its memory and its seconds, with and without PyTorch.

    OMP_NUM_THREADS=1 python benchmarks/device.py [--python PATH] [--models minilm smollm2] [--steps 20] [--pairs 3]

`--python`: the interpreter of a device's environment (numpy, onnxruntime, safetensors, tokenizers and halfback-device; by
default the one that runs this). Rows are SST-2's, of HALFBACK_DATA. A reference server in this process trains one client in a
worker process of its own, which is `halfback-device` on a package or the worker with PyTorch, over the socket and with the
frames of a site. Beside these stands a process that does nothing but inference with the same package on the same batches.
All of them take turns, so that a slow minute of the machine meets every one; each begins anew in every pair.

Peaks are `VmHWM`, from a process's start to the end of its last step, mapped files included. Seconds of a step are the
client's own, the median of a run's steps but the first two. Ratios are of the medians over the pairs; what stands behind
them is the smallest and the largest ratio of a pair.
"""

import argparse
import csv
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from halfback import config as configuration
from halfback.assembly import Built, build
from halfback.assembly.remote import remote_server
from halfback.config import RunConfig
from halfback.deploy.relay import Relay
from halfback.deploy.site import SiteConfig
from halfback.engine.remote.frames import Frame, Longest
from halfback.engine.remote.presence import Terms
from halfback.parties.holdings import Round
from halfback.runs.package import package

MODELS = {
    "minilm": ("sst2-minilm-deep", ["model.cut=5", "batch_size=8"]),
    "smollm2": ("sst2-smollm2", ["model.cut=8", "batch_size=4", "bottom.train=lora_b"]),
}
METHODS = {  # settings of the two ways to agree
    "slopes, P=2": ["algorithm.directions=2", "algorithm.exact_blocks=0"],
    "exact, all blocks": ["algorithm.directions=0", "algorithm.exact_blocks=all"],
}
ROWS, HELD = 512, 32  # of SST-2: the client's, and the server's to validate on
WARM = 2  # steps that don't count
MEGA = 1e6
INFERENCE = """
import sys, time
import numpy as np
from halfback_device.package import Package
from halfback_device.runtime import Bottom
package = Package.open(sys.argv[1])
bottom, theta = Bottom(package), package.theta()
with np.load(sys.argv[2]) as file:
    batches = [{key.split("/")[1]: file[key] for key in file if key.startswith(f"{n}/")} for n in range(int(sys.argv[3]))]
seconds = []
for inputs in batches:
    begun = time.perf_counter()
    bottom.forward(inputs, theta.__getitem__)
    seconds.append(time.perf_counter() - begun)
print(sorted(seconds[2:])[len(seconds[2:]) // 2])
print([line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")][0])
"""


@dataclass(frozen=True)
class Cost:
    """Of one process: peak resident bytes, seconds of a step (of a forward pass), seconds until it was ready."""

    peak: float
    step: float
    ready: float = 0.0


class OneSite:
    """Carries questions to one worker."""

    def __init__(self, folder: Path, site: SiteConfig) -> None:
        self.began = time.perf_counter()
        self.ready = 0.0
        self.relay = Relay(site, folder)

    def reachable(self) -> set[int]:
        return {0}

    def is_there(self, client: int) -> bool:
        return client == 0

    def ask(self, questions: Mapping[int, Frame], seconds: float, longest: Longest) -> Mapping[int, Frame]:
        found = {number: self.relay.exchange(question, seconds) for number, question in questions.items()}
        self.ready = self.ready or time.perf_counter() - self.began
        return found


def rows_of(folder: Path) -> tuple[Path, Path]:
    """Files with the first rows of SST-2, of the client and of the server."""
    data = Path(os.environ.get("HALFBACK_DATA", Path(__file__).parents[2] / "shared" / "data")) / "sst2"
    found = []
    for name, file, count in (("client", "train", ROWS), ("server", "validation", HELD)):
        with gzip.open(data / f"{file}.csv.gz", "rt", encoding="utf-8", newline="") as source:
            table = list(csv.DictReader(source))[:count]
        found.append(folder / f"{name}.csv")
        with found[-1].open("w", encoding="utf-8", newline="") as target:
            writer = csv.DictWriter(target, table[0].keys())
            writer.writeheader()
            writer.writerows(table)
    return found[0], found[1]


def trained(config: RunConfig, site: SiteConfig, folder: Path, steps: int) -> Cost:
    """A run of so many steps, with the worker of a site for its one client."""
    built = build(config)
    carrier = OneSite(folder, site)
    try:
        server = remote_server(
            built, configuration.to_tree(config), carrier, os.urandom(8).hex(), Terms(600, None, 600), lambda _: None
        )
        meters, seconds = built.federation.server.meters, []
        for number in range(steps):
            before = meters.client.seconds
            server.run_round(Round(number, 1, number), measure_memory=False)
            seconds.append(meters.client.seconds - before)
        return Cost(peak_of(carrier.relay.pid), statistics.median(seconds[WARM:]), carrier.ready)
    finally:
        carrier.relay.close()


def peak_of(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def inferred(python: str, package_folder: Path, batches: Path, steps: int) -> Cost:
    """Inference alone, by the same runtime on the same package."""
    command = [python, "-c", INFERENCE, str(package_folder), str(batches), str(steps)]
    seconds, kilobytes = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return Cost(float(kilobytes) * 1024, float(seconds))


def environment(python: str) -> tuple[float, float]:
    """Bytes of what pip has installed for an interpreter, without pip and the tools of packaging, and with halfback-device."""
    program = (
        "import sysconfig, halfback_device; print(sysconfig.get_path('purelib')); print(halfback_device.__path__[0])"
    )
    found = subprocess.run([python, "-c", program], check=True, capture_output=True, text=True).stdout.splitlines()
    installed, own = (Path(line) for line in found)
    left_out = ("pip", "setuptools", "pkg_resources", "_distutils_hack")
    kept = [entry for entry in installed.iterdir() if not entry.name.startswith(left_out) and entry != own]
    return sum(size_of(entry) for entry in kept) + size_of(own), len(kept)


def size_of(path: Path) -> float:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return float(sum(file.stat().st_size for file in files))


def spread(found: Mapping[str, list[Cost]], over: tuple[str, str], what: str) -> str:
    """The ratio of two processes' medians, and the smallest and the largest of a pair."""
    above, below = ([getattr(cost, what) for cost in found[name]] for name in over)
    each = [one / other for one, other in zip(above, below, strict=True)]
    return f"{statistics.median(above) / statistics.median(below):.2f} ({min(each):.2f}–{max(each):.2f})"


def measured(model: str, python: str, steps: int, pairs: int, folder: Path) -> dict[str, list[Cost]]:
    """By process: what it cost, in each pair."""
    recipe, own = MODELS[model]
    train, held = rows_of(folder)
    common = [
        *own,
        *("task.name=csv", f"task.train={train}", f"task.validation={held}", "task.text=sentence", "task.label=label"),
        *("clients=1", "sampled_clients=1", f"steps={steps}", "device=cpu", "threads=1", "beside=[]"),
    ]
    data = {"name": "csv", "train": str(train), "text": "sentence", "label": "label"}
    torch_site = SiteConfig.model_validate({"data": data})
    processes: dict[str, Any] = {}
    for how, settings in METHODS.items():
        config = configuration.resolve(recipe, [*common, *settings])
        for weights in ("float32", "int8"):
            changed = configuration.resolve(recipe, [*common, *settings, f"bottom.weights={weights}"])
            place = folder / f"{how}-{weights}".replace(" ", "-").replace(",", "")
            package(changed, place)
            device_site = SiteConfig.model_validate(
                {"data": data, "runtime": "device", "package": str(place), "interpreter": python}
            )
            batches = place.with_suffix(".npz")
            write_batches(build(changed), batches, steps)
            processes[f"device, {weights}, inference for {how}"] = lambda place=place, batches=batches, n=0: inferred(
                python, place, batches, steps
            )
            processes[f"device, {weights}, {how}"] = lambda config=changed, site=device_site, n=0: trained(
                config, site, folder / f"states-{n}", steps
            )
        processes[f"PyTorch, {how}"] = lambda config=config, n=0: trained(
            config, torch_site, folder / f"states-{n}", steps
        )
    found: dict[str, list[Cost]] = {name: [] for name in processes}
    for pair in range(pairs):
        for name, run in processes.items():
            found[name].append(run(n=f"{pair}-{len(name)}"))
    return found


def write_batches(built: Built, path: Path, steps: int) -> None:
    """The inputs of a run's first batches, for a process that has NumPy alone."""
    data = built.federation.client(0).party.feed.data
    arrays = {
        f"{number}/{name}": tensor.numpy()
        for number in range(steps)
        for name, tensor in data.batch(number).inputs.items()
    }
    np.savez(path, **arrays)  # type: ignore[arg-type]


def shown(model: str, found: Mapping[str, list[Cost]]) -> None:
    """The costs, and their ratios as the goals are stated."""
    console = Console(width=160)
    table = Table("process", "peak, MB", "ms a step (a pass)", "s until ready", title=model)
    for name, costs in found.items():
        peak, step, ready = (
            statistics.median(getattr(cost, what) for cost in costs) for what in ("peak", "step", "ready")
        )
        table.add_row(name, f"{peak / MEGA:.0f}", f"{1000 * step:.0f}", f"{ready:.2f}" if ready else "–")
    console.print(table)
    slopes, exact = METHODS
    ratios = Table("what", slopes, exact, title=f"{model}: ratios of medians (of a pair, least–most)")
    rows: Sequence[tuple[str, str, str, str]] = [
        ("peak, training ÷ inference", "device, float32, {}", "device, float32, inference for {}", "peak"),
        ("peak, device ÷ PyTorch", "device, float32, {}", "PyTorch, {}", "peak"),
        ("peak, int8 ÷ float32", "device, int8, {}", "device, float32, {}", "peak"),
        ("seconds a step, device ÷ PyTorch", "device, float32, {}", "PyTorch, {}", "step"),
        ("seconds a step, int8 ÷ float32", "device, int8, {}", "device, float32, {}", "step"),
    ]
    for what, one, other, of in rows:
        ratios.add_row(what, *(spread(found, (one.format(how), other.format(how)), of) for how in (slopes, exact)))
    pair = (f"device, float32, {exact}", f"device, float32, {slopes}")
    ratios.add_row("seconds a step, exact ÷ slopes, on the device", "", spread(found, pair, "step"))
    console.print(ratios)
    print(json.dumps({model: {name: [vars(cost) for cost in costs] for name, costs in found.items()}}))


def main() -> None:
    """Prints the tables, and all figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=3)
    chosen = parser.parse_args()
    size, count = environment(chosen.python)
    print(f"environment of {chosen.python}: {size / MEGA:.0f} MB in {count:g} entries, without pip and setuptools")
    for model in chosen.models:
        with tempfile.TemporaryDirectory() as folder:
            shown(model, measured(model, chosen.python, chosen.steps, chosen.pairs, Path(folder)))


if __name__ == "__main__":
    main()
