"""Steps of devices behind a gateway, over a slow link: 20 Mbit/s and 40 ms between the devices and their site.

    HALFBACK_DATA=FOLDER python benchmarks/shaped_gateway.py [--steps 12] [--rate 20e6] [--round-trip 0.04]
        [--rows "ho_sfl+ho_sfl, int8"] [--plain]

As root on Linux, for two network namespaces: a FLARE server and its one site, a gateway, in one; two devices
(`halfback-device join`) in the other, with one wire between them. The work, the wire and the table are those of
`shaped_link.py`, whose sites are at the wire's other end. `--plain`: the same federation in one namespace, on loopback.
"""

import csv
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import trustme
from federation import ADMIN, provision, running
from shaped_link import ROWS, WORK, arguments_of, gone, heads, line
from slow_wire import slow_wire

from halfback.data.sources import data_folder
from halfback.deploy.job import allow
from halfback.deploy.joining import Offer
from halfback.deploy.site import FILE
from halfback.deploy.tokens import add
from halfback.telemetry.records import RECORDS

SERVER, SITE, PORT, LISTENS = "bench-server", "site-1", 8312, 8314
DEVICES = 2


def main() -> None:
    arguments = arguments_of(__doc__, ["ho_sfl", "ho_sfl, int8", "ho_sfl, temporal"])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that nothing stays behind
    names = ("hbgate", "hbdevices")
    near, far = (["ip", "netns", "exec", name] for name in names)
    far = near if arguments.plain else far
    print(heads(), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        kits = provision(place, SERVER, [SITE], PORT, arguments.scheme)
        for name in (SERVER, SITE):
            allow(kits / name)
        certify(place)
        write_rows(place)
        data = {"name": "csv", "validation": str(place / "validation.csv"), "text": "text", "label": "label"}
        (kits / SERVER / "local" / FILE).write_text(json.dumps({"data": data}))  # which is YAML too
        tokens = [add(place / "tokens.json", DEVICES) for _ in range(DEVICES)]
        counts = place / "counts.json"
        wire = slow_wire(names, SERVER, rate=arguments.rate, delay=arguments.round_trip / 2, counts=counts)
        with wire, running(kits, SERVER, [SITE], inside=(near, near)):
            for row in arguments.rows:
                before = gone(counts)
                records = deployed(row, kits, (near, far), place, tokens, arguments.steps)
                after = gone(counts)
                print(line(row, records, [b - a for a, b in zip(before, after, strict=True)], arguments), flush=True)


def certify(place: Path) -> None:
    """A certificate of the gateway, with its key and its authority."""
    authority = trustme.CA()
    issued = authority.issue_cert(SERVER)
    authority.cert_pem.write_to_path(str(place / "authority.pem"))
    issued.cert_chain_pems[0].write_to_path(str(place / "certificate.pem"))
    issued.private_key_pem.write_to_path(str(place / "key.pem"))


def write_rows(place: Path) -> None:
    """The rows of SST-2 that the work of `shaped_link.py` takes: 64 of training, 8 of validation."""
    data = data_folder("sst2")
    if data is None:
        sys.exit("the rows of SST-2 are not here; HALFBACK_DATA names the folder of the data sets")
    for part, count in (("train", 64), ("validation", 8)):
        with gzip.open(data / f"{part}.csv.gz", "rt", encoding="utf-8", newline="") as source:
            rows = list(csv.DictReader(source))[:count]
        with (place / f"{part}.csv").open("w", encoding="utf-8", newline="") as target:
            writer = csv.DictWriter(target, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)


def deployed(
    row: str, kits: Path, inside: tuple[list[str], list[str]], place: Path, tokens: list[str], steps: int
) -> list[dict[str, Any]]:
    """Runs one row with its own device package; its records. `inside`: what stands before a command of each side."""
    near, far = inside
    name = "".join(letter for letter in row if letter.isalnum())
    settings, in_a_round, *_ = ROWS[row]
    task = ["task.name=csv", f"task.train={place / 'train.csv'}", f"task.validation={place / 'validation.csv'}"]
    recipe = ["sst2-minilm", *WORK.split(), *task, "task.text=text", "task.label=label", "beside=[]", *settings.split()]
    recipe += [f"steps={max(steps, 4 * in_a_round)}", f"steps_per_round={in_a_round}"]
    package = place / f"package-{name}"
    _run([sys.executable, "-m", "halfback", "package", *recipe, "--out", str(package)])
    devices = {"listen": f"0.0.0.0:{LISTENS}", "seats": DEVICES, "tokens": str(place / "tokens.json")}
    devices |= {"certificate": str(place / "certificate.pem"), "key": str(place / "key.pem")}
    file = {"runtime": "device", "package": str(package), "devices": devices}
    (kits / SITE / "local" / FILE).write_text(json.dumps(file))
    command = [*near, sys.executable, "-m", "halfback", "deploy", *recipe, "--env", "prod", "--sites", "1"]
    command += ["--kit", str(kits / ADMIN), "--user", ADMIN, "--name", name, "--out", str(place / name)]
    with joined(far, place, name, tokens, package):
        _run(command)
    return [json.loads(text) for text in (place / name / RECORDS).read_text().splitlines()]


@contextmanager
def joined(inside: list[str], place: Path, name: str, tokens: list[str], package: Path) -> Iterator[None]:
    """Devices that come once the gateway is there, and have the package already, as from an earlier run."""
    offer = Offer(package)
    offer.close()
    comes = f'until (exec 3<>/dev/tcp/{SERVER}/{LISTENS}) 2>/dev/null; do sleep 0.2; done; exec "$@"'
    with ExitStack() as stack:
        for number, token in enumerate(tokens):
            folder = place / f"{name}-{number}"
            shutil.copytree(package, folder / "package" / offer.digest)
            command = [*inside, "bash", "-c", comes, "-", sys.executable, "-m", "halfback_device", "join"]
            command += [f"wss://{SERVER}:{LISTENS}", "--token", token, "--ca", str(place / "authority.pem")]
            command += ["--data", str(place / "train.csv"), "--text", "text", "--label", "label", "--shared"]
            command += ["--folder", str(folder)]
            log = stack.enter_context((place / f"{name}-{number}.log").open("w"))
            process = stack.enter_context(
                subprocess.Popen(command, env=_environment(), stdout=log, stderr=subprocess.STDOUT)
            )
            stack.callback(process.kill)
        yield


def _run(command: list[str]) -> None:
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stderr[-3000:]}")


def _environment() -> dict[str, str]:
    root = Path(__file__).resolve().parents[1]
    paths = [str(root), str(root / "device"), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


if __name__ == "__main__":
    main()
