"""Bytes of a run beyond what no split method can save: activations, cut gradients, labels and lengths.

python benchmarks/overhead_bytes.py runs/quickstart [more run folders]
"""

import argparse
from pathlib import Path

from halfback.telemetry.records import read_summary

NEEDED = ("activations", "gradient", "labels", "lengths")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    print("| run | needed, a client's step | beyond, a client's step | beyond ÷ needed | of it: slopes and history |")
    print("| --- | --- | --- | --- | --- |")
    for folder in parser.parse_args().folders:
        summary = read_summary(folder)
        client_steps = summary["steps"] * summary["sampled_clients"]
        needed = slopes = total = 0
        for kinds in summary["bytes_by_kind"].values():
            for roles in kinds.values():
                total += sum(roles.values())
                needed += sum(roles.get(role, 0) for role in NEEDED)
                slopes += roles.get("slopes", 0)
        cells = (
            f"{summary['algorithm']}, {summary['task']}",
            f"{needed / client_steps:,.0f}",
            f"{(total - needed) / client_steps:,.1f}",
            f"{(total - needed) / needed:.3%}",
            f"{slopes / client_steps:.1f}",
        )
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
