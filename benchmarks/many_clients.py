"""Peak memory and seconds of a whole simulation with 10, 1,000 and 10,000 clients, each in a process of its own.

    python benchmarks/many_clients.py [--steps 40]

Ten clients a step, of the recipe `cifar10-resnet`, whose task has a row and more for each.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RECIPE = ["cifar10-resnet", "sampled_clients=10", "batch_size=4", "eval_every=1000", "task.validation_rows=100"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--clients", type=int, help="run this many in this process (used by the script itself)")
    arguments = parser.parse_args()
    if arguments.clients is not None:
        from halfback import config as configuration
        from halfback.runs import run

        settings = [*RECIPE[1:], f"clients={arguments.clients}", f"steps={arguments.steps}"]
        with tempfile.TemporaryDirectory() as folder:
            run.train(configuration.resolve(RECIPE[0], settings), Path(folder) / "run")
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time())
        return
    print("| clients | peak RSS, MB | over 10 clients | CPU seconds over 10 clients |\n| --- | --- | --- | --- |")
    first: list[float] = []
    for clients in (10, 1000, 10000):
        command = [sys.executable, __file__, "--clients", str(clients), "--steps", str(arguments.steps)]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-2:]
        kilobytes, seconds = (float(figure) for figure in said)
        first = first or [kilobytes, seconds]
        ratios = f"{kilobytes / first[0]:.3f} | {seconds / first[1]:.3f}"
        print(f"| {clients:,} | {kilobytes / 1024:.0f} | {ratios} |", flush=True)


if __name__ == "__main__":
    main()
