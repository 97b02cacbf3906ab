"""What a step costs in a page beside the native device, on the same package: seconds, seconds of the processor, memory.

    cd web && npm ci && cd .. && OMP_NUM_THREADS=1 python benchmarks/browser.py [--steps 5] [--pairs 3] [--threads 1]
        [--cut 2] [--batch 8] [--tokens 64] [--browser /usr/bin/chromium]

MiniLM with LoRA, HO-SFL with two slopes: three forward passes a step, and the update of θ. Each text has as many tokens
as `--tokens`; λ is made up, and the slopes are agreed on as they are, so nothing waits for a server. The native device
(ONNX Runtime), the page's modules under Node, and the same in a worker of headless Chromium take turns, each in a new
process or page; the first step doesn't count. Seconds are medians over all steps of all turns. Seconds of the processor
are those of the process, of Chromium's of its renderers: on a machine that does other things beside they say more than
the clock does. Memory of a page is what it tells its user (the runtime's memory, which never shrinks, and the package),
and what `measureUserAgentSpecificMemory` says; of the others it is what the system counts for the process.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, sync_playwright

import halfback as hb

ROOT = Path(__file__).parents[1]
WEB = ROOT / "web"
MEGA = 1e6
NATIVE = """
import json, sys, time
from pathlib import Path
import numpy as np
from halfback_device.batches import Ragged, Split
from halfback_device.messages import Activations, CutGradient, History, Slopes
from halfback_device.package import Package
from halfback_device.party import Round
from halfback_device.plan import plan_of
from halfback_device.runtime import Bottom
from halfback_device import session
from halfback_device.wire import pack, unpack

folder, scratch, count, tokens, threads = Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:])
session.Bottom = lambda package: Bottom(package, threads=threads)
package = Package.open(folder)
plan = plan_of(package.manifest)
rows = 4 * plan.batch_size
lists = [[1000 + (row * 977 + at * 31) % 5000 for at in range(tokens)] for row in range(rows)]
split = Split(np.arange(rows) % 2, np.arange(rows), Ragged(lists))
client = session.Session(package, plan, split, 0, scratch / "caches")
talk = client.converse(Round(0, count + 1, 0), measure=False)
seconds, said, last, spent = [], next(talk), time.perf_counter(), 0.0
while said is not None:
    message = unpack(said)
    reply = message if isinstance(message, Slopes) else History(0, np.zeros((0, 0), np.float32))
    if isinstance(message, Activations):
        numbers = np.arange(message.hidden.size, dtype=np.int64)
        lam = (numbers * 2654435761 % 2001 / 1e6 - 1e-3).astype(np.float32)
        reply = CutGradient(lam.reshape(message.hidden.shape))
    try:
        said = talk.send(pack(reply))
    except StopIteration:
        said = None
    if isinstance(reply, Slopes):
        seconds.append(time.perf_counter() - last)
        spent, last = spent or time.process_time(), time.perf_counter()
cpu = time.process_time() - spent
print(json.dumps({"seconds": seconds[1:], "cpu": cpu, "peak": session.peak_bytes()}))
"""


@dataclass
class Cost:
    """Of one way to run: seconds of each step, and of the processor a step, of each turn; bytes at the end."""

    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    bytes: list[float] = field(default_factory=list)
    told: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Ask:
    """What is to be run."""

    package: Path
    scratch: Path
    steps: int
    tokens: int
    threads: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"steps": 5, "pairs": 3, "threads": 1, "cut": 2, "batch": 8, "tokens": 64}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--browser", default="/usr/bin/chromium")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        package = Path(scratch) / "package"
        changes = {"model.cut": chosen.cut, "batch_size": chosen.batch, "task.max_length": chosen.tokens}
        hb.package("sst2-minilm", package, **changes)
        ask = Ask(package, Path(scratch), chosen.steps, chosen.tokens, chosen.threads)
        costs = measured(ask, chosen.pairs, chosen.browser)
    print(told(costs, ask))


def measured(ask: Ask, pairs: int, browser: str) -> dict[str, Cost]:
    """All three ways, in turns."""
    costs = {name: Cost() for name in ("native", "Node", "Chromium")}
    program = _built("bench/node.ts", "bench", "--ssr")
    page = _built("bench", "bench-page")
    with sync_playwright() as playwright, _serving(page, ask.package) as url:
        chromium = playwright.chromium.launch(executable_path=browser)
        for _ in range(pairs):
            _add(costs["native"], _ran([sys.executable, "-c", NATIVE, *_words(ask)]), "peak")
            node = ["node", str(program / "node.js"), str(ask.package), *map(str, (ask.steps, ask.tokens, ask.threads))]
            if ask.threads == 1:  # under Node the runtime looks for its threads where a page has them
                _add(costs["Node"], _ran(node), "rss")
            _add(costs["Chromium"], _in_chromium(chromium, url, ask), "page")
        chromium.close()
    return costs


def _words(ask: Ask) -> list[str]:
    return [str(ask.package), str(ask.scratch), *map(str, (ask.steps, ask.tokens, ask.threads))]


def _add(cost: Cost, figures: dict[str, Any], memory: str) -> None:
    cost.seconds += figures["seconds"]
    cost.cpu.append(figures["cpu"] / len(figures["seconds"]))
    cost.bytes.append(figures[memory])
    cost.told.append(figures.get("bytes", figures[memory]))


def _built(entry: str, name: str, *more: str) -> Path:
    out = WEB / "node_modules" / ".halfback" / name
    command = ["npx", "vite", "build", *more, entry, "--outDir", str(out), "--emptyOutDir", "--base", "./"]
    subprocess.run([*command, "--config", "vite.config.ts", "--logLevel", "warn"], cwd=WEB, check=True)
    return out


def _ran(command: list[str]) -> dict[str, Any]:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "device")}
    ran = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def _in_chromium(browser: Browser, url: str, ask: Ask) -> dict[str, Any]:
    """The same in a page; seconds of the processor are the difference to a visit that takes one step less each."""
    found: list[tuple[dict[str, Any], float]] = []
    for count in (1, 1 + ask.steps):
        page = browser.new_page()
        page.goto(f"{url}/page/index.html")
        sizes = {path.name: path.stat().st_size for path in ask.package.iterdir()}
        wanted = {"folder": f"{url}/package/", "sizes": sizes, "count": count}
        before = _renderers()
        figures = page.evaluate("w => window.measured(w)", wanted | {"tokens": ask.tokens, "threads": ask.threads})
        found.append((figures, _renderers() - before))
        page.close()
    figures = found[1][0]
    figures["seconds"] = figures["seconds"][1:]
    return figures | {"cpu": found[1][1] - found[0][1]}


def _renderers() -> float:
    """Seconds of the processor that the renderers of this process's browser have had."""
    parents, spent, is_renderer = dict[int, int](), dict[int, float](), set[int]()
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            words = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        number = int(folder.name)
        parents[number], spent[number] = int(fields[1]), (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        if b"--type=renderer" in words:
            is_renderer.add(number)

    def is_ours(number: int) -> bool:
        while number in parents and number != os.getpid():
            number = parents[number]
        return number == os.getpid()

    return sum(spent[number] for number in is_renderer if is_ours(number))


@contextmanager
def _serving(page: Path, package: Path) -> Iterator[str]:
    """A server of both folders on this machine, whose pages may use threads."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "page").symlink_to(page)
        (Path(folder) / "package").symlink_to(package)
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=folder))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


class _Handler(SimpleHTTPRequestHandler):
    extensions_map = SimpleHTTPRequestHandler.extensions_map | {".mjs": "text/javascript", ".wasm": "application/wasm"}

    def end_headers(self) -> None:
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


def told(costs: dict[str, Cost], ask: Ask) -> str:
    """A table in Markdown."""
    native = costs["native"]
    lines = ["| where | s a step | × native | s of the processor | × native | MB | MB that it tells |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- |")
    for name, cost in ((name, cost) for name, cost in costs.items() if cost.seconds):
        step, cpu = statistics.median(cost.seconds), statistics.median(cost.cpu)
        ratios = [step / statistics.median(native.seconds), cpu / statistics.median(native.cpu)]
        memory = [statistics.median(values) / MEGA for values in (cost.bytes, cost.told)]
        cells = [
            f"{step:.3f}",
            f"{ratios[0]:.1f}",
            f"{cpu:.3f}",
            f"{ratios[1]:.1f}",
            *(f"{each:.0f}" for each in memory),
        ]
        lines.append(f"| {name}, {ask.threads} thread(s) | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
