"""Steps over a slow link: a server and two sites on FLARE, 20 Mbit/s and 40 ms between them.

    HALFBACK_DATA=FOLDER python benchmarks/shaped_link.py [--steps 12] [--rate 20e6] [--round-trip 0.04]
        [--rows ho_sfl,split_lora] [--plain]

As root on Linux, for two network namespaces. All sites are behind one wire, so a step's bytes are those of all
clients, and each has a core's share of this machine. Each row is a run of `halfback deploy --env prod`; its first
steps, in which memory is measured and samples are seen for the first time, are left out, and the rest gives a median.
`--plain`: the same federation in one namespace, on loopback. The link's share: bytes of the ledger each way over the
rate, and one round trip for each question.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

from federation import ADMIN, provision, running
from slow_wire import slow_wire

from halfback.deploy.job import allow
from halfback.deploy.site import FILE

SERVER, SITES, PORT = "bench-server", ["site-1", "site-2"], 8302
WORK = "task.train_rows=64 task.validation_rows=8 clients=2 sampled_clients=2 eval_every=1 memory_every=1000000"
_TEMPORAL = 'codecs.activations_up=["temporal"] codecs.gradient_down=[{"name":"temporal","norm_guard":1.0}]'
_CONTROL = 'controller.per_link={"activations_up":0.98,"gradient_down":0.6}'
ROWS: dict[str, tuple[str, int, int, int]] = {  # settings; steps a round; questions of a round, and of each step in it
    "split_lora": ("algorithm.name=split_lora", 1, 3, 1),
    "split_lora, 10 steps a round": ("algorithm.name=split_lora", 10, 3, 1),
    "ho_sfl": ("algorithm.name=ho_sfl", 1, 2, 2),
    "ho_sfl, 10 steps a round": ("algorithm.name=ho_sfl", 10, 2, 2),
    "ho_sfl, int8": ('algorithm.name=ho_sfl codecs.activations_up=["int8"] codecs.gradient_down=["int8"]', 1, 2, 2),
    "ho_sfl, temporal": (f"algorithm.name=ho_sfl {_TEMPORAL} {_CONTROL}", 1, 3, 2),
}


def main() -> None:
    arguments = arguments_of(__doc__, list(ROWS))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that nothing stays behind
    names = ("hbnear", "hbfar")
    enter = [["ip", "netns", "exec", name] for name in names]
    near, far = (enter[0], enter[0] if arguments.plain else enter[1])
    print(heads(), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        kits = provision(place, SERVER, SITES, PORT, arguments.scheme)
        for name in [SERVER, *SITES]:
            allow(kits / name)
            (kits / name / "local" / FILE).write_text("")
        counts = place / "counts.json"
        wire = slow_wire(names, SERVER, rate=arguments.rate, delay=arguments.round_trip / 2, counts=counts)
        with wire, running(kits, SERVER, SITES, inside=(near, far)):
            for row in arguments.rows:
                before = gone(counts)
                records = deployed(row, kits / ADMIN, near, place, arguments.steps)
                after = gone(counts)
                print(line(row, records, [b - a for a, b in zip(before, after, strict=True)], arguments), flush=True)


def arguments_of(about: str | None, rows: list[str]) -> argparse.Namespace:
    """What the command line says; `rows`: of the table, where it doesn't name any."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--skip", type=int, default=4, help="steps at the beginning that don't count")
    parser.add_argument("--rate", type=float, default=20e6, help="bits a second, each way")
    parser.add_argument("--round-trip", type=float, default=0.04, help="seconds")
    parser.add_argument("--rows", type=lambda text: text.split("+"), default=rows, help="separated by +")
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--scheme", default="http", choices=["http", "grpc", "tcp"])
    return parser.parse_args()


def heads() -> str:
    """The first two lines of the table."""
    names = ["method", "link", "s a step", "MB up", "MB down", "bytes ÷ rate, s", "round trips, s", "link's share"]
    return f"| {' | '.join([*names, 'wire ÷ ledger'])} |\n|{' --- |' * (len(names) + 1)}"


def gone(counts: Path) -> list[int]:
    """Bytes that have gone each way on the wire."""
    return list(json.loads(counts.read_text())) if counts.exists() else [0, 0]


def deployed(row: str, kit: Path, inside: list[str], place: Path, steps: int) -> list[dict[str, Any]]:
    """Runs one row; its records."""
    name = "".join(letter for letter in row if letter.isalnum())
    out = place / name
    command = [*inside, sys.executable, "-m", "halfback", "deploy", "sst2-minilm", *WORK.split()]
    settings, in_a_round, *_ = ROWS[row]
    command += [f"steps={max(steps, 4 * in_a_round)}", f"steps_per_round={in_a_round}", *settings.split()]
    command += ["--env", "prod", "--kit", str(kit), "--user", ADMIN]
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command += ["--name", name, "--out", str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{row}: {done.stderr[-3000:]}")
    return [json.loads(text) for text in (out / "records.jsonl").read_text().splitlines()]


def line(row: str, records: list[dict[str, Any]], wire: list[int], arguments: argparse.Namespace) -> str:
    """One line of the table; `wire`: bytes on the wire during the run, sites' first, server's first."""
    _, in_a_round, of_round, of_step = ROWS[row]
    counted = [record for record in records if record["step"] >= max(arguments.skip, in_a_round)]
    steps = counted[-1]["step"] - counted[0]["step"]
    seconds = [(b["wall_seconds"] - a["wall_seconds"]) / in_a_round for a, b in pairwise(counted)]
    a_step = statistics.median(seconds)
    up, down = ((counted[-1][f"{way}_bytes"] - counted[0][f"{way}_bytes"]) / steps for way in ("up", "down"))
    by_bytes = (up + down) * 8 / arguments.rate
    by_trips = (of_round / in_a_round + of_step) * arguments.round_trip
    share = f"{(by_bytes + by_trips) / a_step:.0%}"
    ledger = records[-1]["up_bytes"] + records[-1]["down_bytes"]
    words = [row, "loopback" if arguments.plain else "slow", f"{a_step:.2f} ({min(seconds):.2f}–{max(seconds):.2f})"]
    words += [f"{up / 1e6:.3f}", f"{down / 1e6:.3f}"]
    if arguments.plain:
        words += ["–"] * 4
    else:
        words += [f"{by_bytes:.2f}", f"{by_trips:.2f}", share, f"{sum(wire) / ledger:.2f}"]
    return f"| {' | '.join(words)} |"


if __name__ == "__main__":
    main()
