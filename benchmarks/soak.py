"""Memory of every process of a deployed run over many steps: a line fitted behind the warm-up.

    python benchmarks/soak.py --steps 3000

A federation of FLARE's own processes on this machine with mutual TLS, a ResNet-8 on digits, two clients. Resident
memory (VmRSS) is read every five seconds; the first third of the steps is warm-up.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from federation import resident

from halfback import config as configuration
from halfback.deploy.environments import poc
from halfback.deploy.site import FILE
from halfback.telemetry.records import read_records
from halfback.testing import small

KINDS = {
    "server's job": "server.runner_process",
    "client's job": "client.worker_process",
    "client's worker": "halfback.deploy.worker",
    "FLARE server": "server.server_train",
    "FLARE client": "client.client_train",
}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3000)
    steps = parser.parse_args().steps
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        recipe = small.images(
            "ho_sfl",
            clients=2,
            sampled_clients=2,
            steps=steps,
            eval_every=25,
            checkpoint_every=100,
            memory_every=10**6,
            bottom__normalize=True,  # at a rate that lets it go on for long
            bottom__lr=1e-4,
            top__lr=1e-4,
        )
        (place / "recipe.yaml").write_text(configuration.dump(recipe))
        points: dict[str, list[tuple[int, float]]] = {kind: [] for kind in KINDS}
        with poc(2, place / "sites") as (kit, user):
            for site in ("server", "site-1", "site-2"):
                (kit.parent / site / "local" / FILE).write_text("")
            command = [sys.executable, "-m", "halfback", "deploy", str(place / "recipe.yaml"), "--env", "prod"]
            command += ["--kit", str(kit), "--user", user, "--name", "soak", "--out", str(place / "out")]
            begun = time.monotonic()
            with subprocess.Popen(command, stdout=subprocess.DEVNULL) as run:
                while run.poll() is None:
                    time.sleep(5)
                    try:
                        step = read_records(kit.parent / "server" / "halfback-site" / "runs" / "soak")[-1].step
                    except Exception:
                        continue  # not there yet, or just being written
                    for kind, (size, _) in resident(str(place), KINDS).items():
                        points[kind].append((step, size))
            if run.returncode:
                raise SystemExit(f"the run ended with status {run.returncode}")
            minutes = (time.monotonic() - begun) / 60
    print(f"{steps} steps in {minutes:.1f} minutes\n")
    print("| process | MB after the warm-up | MB at the end | MB a 1,000 steps, fitted |\n| --- | --- | --- | --- |")
    for kind, found in points.items():
        late = np.array([point for point in found if point[0] >= steps / 3])
        slope = np.polyfit(late[:, 0], late[:, 1], 1)[0] * 1000
        print(f"| {kind} | {late[0, 1]:.0f} | {late[-1, 1]:.0f} | {slope:+.1f} |")


if __name__ == "__main__":
    main()
