"""What a device's process costs, by the operating system: environment, memory and seconds, beside PyTorch's.

    OMP_NUM_THREADS=1 python benchmarks/device.py [--python PATH] [--models minilm smollm2] [--steps 20] [--pairs 3]

`--python`: the interpreter of a device's environment (numpy, onnxruntime, safetensors, tokenizers and halfback-device;
by default the one that runs this). Rows are SST-2's, of HALFBACK_DATA. A reference server in this process trains one
client in a worker process of its own, which is `halfback-device` on a package or the worker with PyTorch, over the
socket and with the frames of a site. Beside these stands `halfback-device infer`: inference alone, of the same package
on the same batches. All of them take turns, so that a slow minute of the machine meets every one; each begins anew in
every pair.

Peaks are `VmHWM`, from a process's start to the end of its last step, mapped files included. Seconds of a step are the
client's own, the median of a run's steps but the first two. Ratios are of the medians over the pairs; what stands
behind them is the smallest and the largest ratio of a pair.
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
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from halfback import config as configuration
from halfback.assembly import build
from halfback.assembly.remote import remote_server
from halfback.config import RunConfig
from halfback.data.sources import data_folder
from halfback.deploy.relay import Relay
from halfback.deploy.site import SiteConfig
from halfback.engine.remote.frames import Frame, Longest
from halfback.engine.remote.presence import Terms
from halfback.parties.holdings import Round
from halfback.runs.package import package

MODELS = {
    "minilm": ("sst2-minilm-deep", ["model.cut=5", "batch_size=8"]),
    "smollm2": ("sst2-smollm2", ["model.cut=8", "batch_size=4"]),
}
METHODS = {  # settings of the two ways to agree
    "slopes, P=2": ["algorithm.directions=2", "algorithm.exact_blocks=0"],
    "exact, all blocks": ["algorithm.directions=0", "algorithm.exact_blocks=all"],
}
ROWS, HELD = 512, 32  # of SST-2: the client's, and the server's to validate on
WARM = 2  # steps that don't count
MEGA = 1e6


@dataclass(frozen=True)
class Cost:
    """Of one process: peak resident bytes, seconds of a step (of a forward pass), seconds until it was ready."""

    peak: float
    step: float
    ready: float = 0.0


class OneSite:
    """Carries questions to one worker, which is started with the first."""

    def __init__(self, folder: Path, site: SiteConfig) -> None:
        self._start = partial(Relay, site, folder)
        self.relay: Relay | None = None
        self.ready = 0.0  # seconds from the process's start to its reply to the first question

    def reachable(self) -> set[int]:
        return {0}

    def is_there(self, client: int) -> bool:
        return client == 0

    def ask(
        self, questions: Mapping[int, Frame], seconds: Mapping[int, float], longest: Longest
    ) -> Generator[tuple[int, Frame], None, None]:
        is_new = self.relay is None
        self.relay = self.relay or self._start()
        found = {number: self.relay.exchange(question, seconds[number]) for number, question in questions.items()}
        if is_new:
            ticks = int(Path(f"/proc/{self.relay.pid}/stat").read_text().rpartition(")")[2].split()[19])
            self.ready = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
        yield from found.items()


def rows_of(folder: Path) -> tuple[Path, Path]:
    """Files with the first rows of SST-2, of the client and of the server."""
    data = data_folder("sst2")
    if data is None:
        sys.exit("the rows of SST-2 are not here; HALFBACK_DATA names the folder of the data sets")
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


def trained(config: RunConfig, site: SiteConfig, steps: int, folder: Path) -> Cost:
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
        assert carrier.relay is not None
        return Cost(peak_of(carrier.relay.pid), statistics.median(seconds[WARM:]), carrier.ready)
    finally:
        if carrier.relay is not None:
            carrier.relay.close()


def peak_of(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def inferred(python: str, place: Path, train: Path, steps: int, _: Path) -> Cost:
    """Inference alone, by the same runtime on the same package."""
    command = [python, "-m", "halfback_device", "infer", str(place), "--data", str(train)]
    command += ["--text", "text", "--label", "label", "--batches", str(steps)]
    told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    return Cost(told["peak_bytes"], told["batch_seconds"])


def environment(python: str) -> tuple[float, int]:
    """Bytes and entries of what pip has installed for an interpreter, with halfback-device and without pip itself."""
    program = (
        "import sysconfig, halfback_device as own; print(sysconfig.get_path('purelib'), own.__path__[0], sep='\\n')"
    )
    found = subprocess.run([python, "-c", program], check=True, capture_output=True, text=True).stdout.splitlines()
    installed, own = (Path(line) for line in found)
    left_out = ("pip", "setuptools", "pkg_resources", "_distutils_hack", "distutils-precedence")
    kept = [entry for entry in installed.iterdir() if not entry.name.startswith(left_out) and entry != own]
    return sum(map(size_of, kept)) + size_of(own), len(kept) + 1


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
        *("task.name=csv", f"task.train={train}", f"task.validation={held}", "task.text=text", "task.label=label"),
        *("clients=1", "sampled_clients=1", f"steps={steps}", "device=cpu", "threads=1", "beside=[]"),
    ]
    data = {"name": "csv", "train": str(train), "text": "text", "label": "label"}
    processes: dict[str, Callable[[Path], Cost]] = {}
    for how, settings in METHODS.items():
        for weights in ("float32", "int8"):
            config = configuration.resolve(recipe, [*common, *settings, f"bottom.weights={weights}"])
            place = folder / f"package-{len(processes)}"
            package(config, place)
            processes[f"device, {weights}, inference for {how}"] = partial(inferred, python, place, train, steps)
            site = {"runtime": "device", "package": str(place), "interpreter": python}
            processes[f"device, {weights}, {how}"] = partial(trained, config, _site(data, site), steps)
        config = configuration.resolve(recipe, [*common, *settings])
        processes[f"PyTorch, {how}"] = partial(trained, config, _site(data, {}), steps)
    found: dict[str, list[Cost]] = {name: [] for name in processes}
    for pair in range(pairs):
        for number, (name, run) in enumerate(processes.items()):
            found[name].append(run(folder / f"states-{pair}-{number}"))
            print(f"{model}, pair {pair}: {name}: {found[name][-1]}", flush=True)
    return found


def _site(data: dict[str, str], more: dict[str, str]) -> SiteConfig:
    return SiteConfig.model_validate({"data": data} | more)


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
    root = Path(__file__).resolve().parents[1]  # for the workers, where the packages are not installed
    os.environ["PYTHONPATH"] = os.pathsep.join([str(root), str(root / "device"), os.environ.get("PYTHONPATH", "")])
    size, count = environment(chosen.python)
    print(f"environment of {chosen.python}: {size / MEGA:.0f} MB in {count:g} entries, without pip and setuptools")
    for model in chosen.models:
        with tempfile.TemporaryDirectory() as folder:
            shown(model, measured(model, chosen.python, chosen.steps, chosen.pairs, Path(folder)))


if __name__ == "__main__":
    main()
