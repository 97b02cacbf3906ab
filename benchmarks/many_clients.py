"""Peak resident memory of a whole simulation with 10, 100 and 1,000 clients, each in a process of its own.

python benchmarks/many_clients.py [--steps 40]
"""

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

RECIPE = ["quickstart", "beside=[]", "sampled_clients=10", "batch_size=4", "eval_every=1000"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--clients", type=int, help="run this many in this process (used by the script itself)")
    arguments = parser.parse_args()
    if arguments.clients is not None:
        from halfback import config as configuration
        from halfback.runs import run

        settings = [*RECIPE[1:], f"clients={arguments.clients}", f"steps={arguments.steps}"]
        with tempfile.TemporaryDirectory() as folder:
            run.train(configuration.resolve(RECIPE[0], settings), Path(folder) / "run")
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        return
    print("| clients | peak RSS, MB | over 10 clients |\n| --- | --- | --- |")
    first = None
    for clients in (10, 100, 1000):
        command = [sys.executable, __file__, "--clients", str(clients), "--steps", str(arguments.steps)]
        kilobytes = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
        first = first or kilobytes
        print(f"| {clients:,} | {kilobytes / 1024:.0f} | {kilobytes / first:.3f} |", flush=True)


if __name__ == "__main__":
    main()
