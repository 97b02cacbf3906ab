"""200 devices on one gateway, 20 of them in each step: its pace beside one process, its memory, and who took part.

    OMP_NUM_THREADS=1 python benchmarks/gateway_crowd.py [--devices 200] [--sampled 20] [--steps 2000] [--pairs 3]

A small random Llama by HO-SFL. The server is this process; the gateway is one of its own, called as FLARE calls it; the
devices are those of `halfback-device join`, each with its folder, its rows and its connection over TLS, in the threads
of a third process. First come short runs in turns with the same ones in one process (`client.runtime=device`), then a
long one, in which the gateway's resident memory is read each second: its median in each tenth of the steps, and a line
fitted behind the first quarter.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from device_sites import differing, write_rows
from gateway_process import Proxy, gateway
from worker_memory import write_model

from halfback import config as configuration
from halfback.config import RunConfig
from halfback.deploy.flare import FlareCarrier, seats_of
from halfback.deploy.serving import ENDED, RUN, Surroundings, serve
from halfback.deploy.site import SiteConfig
from halfback.deploy.tokens import add
from halfback.runs import run
from halfback.telemetry.records import RECORDS, read_records

SHORT, WARM = 150, 50  # steps of a run that is timed, of which the first are not


def recipe_of(place: Path, chosen: argparse.Namespace, steps: int) -> RunConfig:
    """The settings of a run."""
    said = [
        *("task.name=csv", f"task.train={place / 'rows.csv'}", "task.text=note", "task.label=mood", "batch_size=4"),
        *("task.max_length=16", f"model.name={place / 'model'}", "model.cut=1", "algorithm.name=ho_sfl", "device=cpu"),
        *("algorithm.directions=2", "bottom.train=lora", "top.train=lora", "bottom.lr=1e-3", "top.lr=1e-3"),
        *(f"clients={chosen.devices}", f"sampled_clients={chosen.sampled}", f"steps={steps}", f"eval_every={WARM}"),
        *("checkpoint_every=250", "memory_every=1000000", "deployment.patience=600"),
    ]
    return configuration.resolve(None, said)


def join_all(url: str, folder: Path, rows: Path) -> None:
    """All devices, of which each has a token in a line of what is read; until there is no more."""
    from halfback_device.data import Rows
    from halfback_device.join import Joining, Terms

    own = Rows(str(rows), text="note", label="mood", shared=True)
    joined = []
    for number, token in enumerate(json.loads(sys.stdin.readline())):
        device = Joining(Terms(url, token, own, folder / str(number), folder.parent / "gateway" / "ca.pem"))
        threading.Thread(target=device.work, daemon=True).start()
        joined.append(device)
    sys.stdin.read()
    for device in joined:
        device.stop()


def deployed(config: RunConfig, site: Proxy, place: Path, name: str) -> Path:
    """The folder of a run over the gateway."""
    serve(
        name,
        configuration.to_tree(config),
        Surroundings(
            site=lambda: SiteConfig(trial=True),
            folder=lambda _: place / "server",
            sites=lambda: seats_of({"gateway": site}),
            carrier=lambda seats: FlareCarrier({"gateway": site}, seats),
            job=place / "jobs" / name,
            listen=lambda _: None,
        ),
    )
    left = place / "jobs" / name / RUN
    ended = json.loads((left / ENDED).read_text())
    if ended["how"] != "finished":
        raise SystemExit(f"the run ended so: {ended}")
    return left


def alone(config: RunConfig, folder: Path) -> Path:
    """The folder of the same run in one process."""
    tree = configuration.to_tree(config)
    run.train(configuration.from_tree(tree, {"client.runtime": "device"}), folder)
    return folder


def pace(folder: Path) -> float:
    """Steps a second behind the warm-up."""
    first, *_, last = [record for record in read_records(folder) if record.step >= WARM]
    return (last.step - first.step) / (last.wall_seconds - first.wall_seconds)


class Watched:
    """A process's resident memory in MB, each second, with the step that the run had come to."""

    def __init__(self, pid: int, records: Path) -> None:
        self.points: list[tuple[int, float]] = []
        self._pid, self._records, self._over = pid, records, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._over.wait(1.0):
            status = Path(f"/proc/{self._pid}/status").read_text()
            if self._records.exists() and (lines := self._records.read_text().splitlines()):
                self.points.append((json.loads(lines[-1])["step"], int(status.split("VmRSS:")[1].split()[0]) / 1024))

    def end(self) -> str:
        """MB in each tenth of the steps, and a 1,000 steps."""
        self._over.set()
        self._thread.join()
        points = np.array(self.points)
        late = points[points[:, 0] >= points[-1, 0] / 4]
        slope = np.polyfit(late[:, 0], late[:, 1], 1)[0] * 1000
        tenths = np.minimum(points[:, 0] * 10 // (points[-1, 0] + 1), 9)
        medians = [np.median(points[tenths == tenth, 1]) for tenth in range(10) if (tenths == tenth).any()]
        return f"{' '.join(f'{median:.0f}' for median in medians)} MB; {slope:+.1f} MB a 1,000 steps"


def told_of_parts(begun: dict[int, int], devices: int, rounds: int, sampled: int) -> str:
    """A row: least and most rounds that a device had, how many are expected, and χ² over its degrees of freedom.

    A cohort is drawn without replacement, so the variance of a device's count is n·p·(1 − p).
    """
    counts = np.array([begun.get(place, 0) for place in range(devices)])
    share = sampled / devices
    expected = rounds * share
    chi = float(((counts - expected) ** 2).sum() / (expected * (1 - share)) * (devices - 1) / devices)
    return f"{counts.min()} | {expected:.0f} | {counts.max()} | {chi:.0f} of {devices - 1}"


@contextmanager
def crowd(place: Path, recipe: RunConfig, devices: int) -> Iterator[tuple[Proxy, int]]:
    """A gateway with all devices at work, whose package is of this recipe: what calls it, and its process number."""
    place.mkdir()
    (place / "recipe.yaml").write_text(configuration.dump(recipe))
    command = [sys.executable, "-m", "halfback", "package", str(place / "recipe.yaml"), "--out", str(place / "package")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with gateway(place / "gateway", place / "package", devices) as (site, port, pid), (place / "log").open("w") as log:
        tokens = [add(place / "gateway" / "tokens.json", devices) for _ in range(devices)]
        command = [sys.executable, __file__, "--join", f"wss://localhost:{port}", str(place)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=log, text=True) as joined:
            assert joined.stdin is not None
            print(json.dumps(tokens), file=joined.stdin, flush=True)
            begun = time.monotonic()
            while len(site.present()[1]) < devices:
                time.sleep(0.2)
            print(f"{devices} devices are there after {time.monotonic() - begun:.0f} s", flush=True)
            yield site, pid
            print({name: count for name, count in site.present()[2].items() if count})
            joined.stdin.close()
    said = (place / "gateway" / "gateway.log").read_text()
    print(f"the gateway's log has {len(said.splitlines())} lines{', and a traceback' * ('Traceback' in said)}")


def in_turns(place: Path, chosen: argparse.Namespace) -> None:
    """Short runs over the gateway and in one process, in turns."""
    config, ratios = recipe_of(place, chosen, SHORT), []
    with crowd(place / "short", config, chosen.devices) as (site, _):
        for pair in range(chosen.pairs):
            there = deployed(config, site, place, f"short-{pair}")
            here = alone(config, place / f"alone-{pair}")
            if wrong := differing(there, here):
                raise SystemExit(f"different: {', '.join(wrong)}")
            ratios.append(pace(there) / pace(here))
            print(f"steps a second: {pace(there):.2f}, in one process {pace(here):.2f}; the same bits", flush=True)
    print(f"over one process: {statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})")


def at_length(place: Path, chosen: argparse.Namespace) -> None:
    """The long run."""
    config = recipe_of(place, chosen, chosen.steps)
    with crowd(place / "long", config, chosen.devices) as (site, pid):
        watched = Watched(pid, place / "server" / "runs" / "long" / RECORDS)
        there = deployed(config, site, place, "long")
        memory = watched.end()
        print(f"{chosen.steps} steps, {pace(there):.2f} a second")
        print(f"the gateway's memory: {memory}")
        print("\n| least rounds | expected | most | χ² |\n| --- | --- | --- | --- |")
        print(f"| {told_of_parts(site.begun(), chosen.devices, chosen.steps, chosen.sampled)} |")


def main() -> None:
    """All of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=200)
    parser.add_argument("--sampled", type=int, default=20)
    parser.add_argument("--steps", type=int, default=2000, help="of the long run; 0: none")
    parser.add_argument("--pairs", type=int, default=3, help="of short runs; 0: none")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write_model(place / "model", blocks=2, hidden=32)
        write_rows(place / "rows.csv", 0, 4 * chosen.devices)
        if chosen.pairs:
            in_turns(place, chosen)
        if chosen.steps:
            at_length(place, chosen)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--join"]:
        join_all(sys.argv[2], Path(sys.argv[3]) / "devices", Path(sys.argv[3]).parent / "rows.csv")
    else:
        main()
