"""Two sites without PyTorch and one with it in a FLARE run over mutual TLS, in which each site's worker is killed once.

    OMP_NUM_THREADS=1 python benchmarks/device_sites.py [--steps 200] [--python PATH]

A small random Llama, packaged by `halfback package`; site-1 and site-2 do their work with `halfback-device`, in the
environment of `--python` (by default this one), site-3 with PyTorch; links reuse what they remember, so a state that
comes back wrong shows in the bits. The run is made twice, once in peace and once with `kill -9` of each worker at a
moment of its own; printed is what became of it, and the exit status is 1 unless all bits are equal.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from worker_memory import write_model

from halfback import config as configuration
from halfback.deploy.environments import poc
from halfback.deploy.folder import EVENTS
from halfback.deploy.site import FILE
from halfback.engine import checkpoint
from halfback.runs.folder import CHECKPOINT
from halfback.telemetry.records import RECORDS

SITES = ("site-1", "site-2", "site-3")  # the last with PyTorch
GOOD, BAD = range(0, 40), range(40, 80)  # words that decide a row's class
PATIENCE = 1800.0  # seconds for one run


def write_rows(path: Path, seed: int, count: int) -> None:
    """Rows of 3 to 12 words, of which one tells the class."""
    dice = random.Random(seed)
    lines = ["note,mood"]
    for row in range(count):
        words = [f"w{dice.randint(100, 990)}" for _ in range(dice.randint(2, 11))]
        words.insert(dice.randint(0, len(words)), f"w{dice.choice(GOOD if row % 2 else BAD)}")
        lines.append(f"{' '.join(words)},{'good' if row % 2 else 'bad'}")
    path.write_text("\n".join(lines) + "\n")


def recipe_of(place: Path, steps: int) -> list[str]:
    """The settings of the run."""
    return [
        *("task.name=csv", f"task.train={place / 'server.csv'}", "task.text=note", "task.label=mood"),
        *("task.max_length=16", f"model.name={place / 'model'}", "model.cut=3", "algorithm.name=ho_sfl"),
        *("algorithm.directions=2", "algorithm.exact_blocks=1", "bottom.train=lora", "top.train=lora"),
        *("bottom.optimizer=adamw", "bottom.lr=1e-3", "top.lr=1e-3", "device=cpu", "batch_size=8"),
        *("clients=3", "sampled_clients=3", f"steps={steps}", f"eval_every={max(steps // 10, 1)}"),
        *("checkpoint_every=5", "memory_every=1000000", "codecs.activations_up=[temporal, int8]"),
    ]


def files_of(place: Path, python: str) -> dict[str, str]:
    """The file of each site."""
    files = {"server": {"data": _data(place, "validation", "server"), "model": str(place / "model")}}
    device = {"runtime": "device", "package": str(place / "package"), "interpreter": python}
    for name in SITES:
        own = {"model": str(place / "model")} if name == SITES[-1] else device
        files[name] = {"data": _data(place, "train", name)} | own
    return {name: json.dumps(file) for name, file in files.items()}  # which is YAML too


def _data(place: Path, part: str, name: str) -> dict[str, str]:
    return {"name": "csv", part: str(place / f"{name}.csv"), "text": "note", "label": "mood"}


def worker_of(kit: Path) -> int | None:
    """The process number of a site's worker: the one that keeps its states below the site's kit."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_text() if entry.name.isdigit() else ""
            if f'"{kit / "halfback-site"}"' in words and "worker" in words:
                return int(entry.name)
    return None


def deployed(place: Path, kit: Path, user: str, name: str, kills: dict[str, int]) -> float:
    """A run of this name; each site in `kills` loses its worker once so many records are there. Seconds it took."""
    command = [sys.executable, "-m", "halfback", "deploy", str(place / "recipe.yaml"), "--env", "prod"]
    command += ["--kit", str(kit), "--user", user, "--name", name, "--out", str(place / name)]
    records, begun = kit.parent / "server" / "halfback-site" / "runs" / name / RECORDS, time.monotonic()
    left = dict(kills)
    with (place / f"{name}.log").open("w") as output, subprocess.Popen(command, stdout=output, stderr=output) as run:
        while run.poll() is None:
            if time.monotonic() - begun > PATIENCE:
                run.kill()
            time.sleep(0.05)
            written = len(records.read_text().splitlines()) if records.exists() else 0
            for site in [site for site, after in left.items() if written >= after]:
                time.sleep(random.Random(site).uniform(0, 0.3))  # a moment of its own, in a round or between two
                if (number := worker_of(kit.parent / site)) is not None:
                    os.kill(number, signal.SIGKILL)
                    print(f"{name}: worker {number} of {site} killed behind record {written}", flush=True)
                    del left[site]
    if run.returncode or left:
        raise SystemExit(f"{name} ended with status {run.returncode}:\n{(place / f'{name}.log').read_text()[-3000:]}")
    return time.monotonic() - begun


def differing(one: Path, other: Path) -> list[str]:
    """The tensors of θ, of the top and of the history that differ by a bit, or are in one of two runs alone."""
    mine, theirs = (checkpoint.load(folder / CHECKPOINT) for folder in (one, other))
    assert mine is not None
    assert theirs is not None
    names = [name for name in {**mine[1], **theirs[1]} if name.startswith(("bottom", "top", "history"))]
    return [n for n in names if n not in mine[1] or n not in theirs[1] or not torch.equal(mine[1][n], theirs[1][n])]


def main() -> int:
    """Both runs, and what came of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--python", default=sys.executable)
    chosen = parser.parse_args()
    root = (
        Path(__file__).resolve().parents[1]
    )  # for all processes that are started here, FLARE's and its sites' workers
    os.environ["PYTHONPATH"] = os.pathsep.join([str(root), str(root / "device"), os.environ.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write_model(place / "model", blocks=4, hidden=32)
        for seed, name in enumerate((*SITES, "server")):
            write_rows(place / f"{name}.csv", seed, 40)
        halfback = [sys.executable, "-m", "halfback"]
        recipe = configuration.resolve(None, recipe_of(place, chosen.steps))
        (place / "recipe.yaml").write_text(configuration.dump(recipe))
        subprocess.run([*halfback, "package", str(place / "recipe.yaml"), "--out", str(place / "package")], check=True)
        with poc(len(SITES), place / "sites") as (kit, user):
            for name, text in files_of(place, chosen.python).items():
                (kit.parent / name / "local" / FILE).write_text(text)
            calm = deployed(place, kit, user, "calm", {})
            killed = deployed(place, kit, user, "killed", {site: 3 + number for number, site in enumerate(SITES)})
        events = [json.loads(line) for line in (place / "killed" / EVENTS).read_text().splitlines()]
        back = [event["site"] for event in events if event["event"] == "returned"]
        wrong = differing(place / "calm", place / "killed")
        print(f"{chosen.steps} steps: in peace {calm:.0f} s, with kills {killed:.0f} s; returned: {', '.join(back)}")
        print(f"went back {sum(event['event'] == 'went back' for event in events)} times")
        print("all bits are equal" if not wrong else f"different: {', '.join(wrong)}")
        return int(bool(wrong) or sorted(back) != sorted(SITES))


if __name__ == "__main__":
    sys.exit(main())
