"""Seconds a step of two checkouts of this repository, in turns on the same machine.

    python benchmarks/house_speed.py --before PATH --after PATH [--recipes quickstart sst2-minilm …] [--pairs 20]

Each checkout trains the recipe in a process of its own. One computes a few rounds while the other waits, then the
other does, so that a slow minute of the machine meets both. Counted is the time of training rounds alone.
"""

import argparse
import importlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

RECIPES = {
    "quickstart": ["model.pretrain.steps=20", "task.validation_rows=50"],
    "sst2-minilm": ["task.validation_rows=32"],
    "e2e-smollm2-hosfl-temporal": ["task.validation_rows=4", "task.generated_rows=0"],
}
_WARM = 2  # blocks of rounds that don't count


class Checkout:
    """A process that trains a recipe with a checkout's code, a block of rounds whenever it is asked to."""

    def __init__(self, path: Path, recipe: str, block: int, blocks: int, scratch: str) -> None:
        last = str(block * (blocks + 1) + 1)  # never reached, so nothing is evaluated or saved after the beginning
        cadences = [f"{name}={last}" for name in ("steps", "eval_every", "checkpoint_every", "memory_every")]
        settings = [*cadences, "device=cpu", "beside=[]", "steps_per_round=1", *RECIPES[recipe]]
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--worker", scratch, str(block), recipe, *settings],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=path,
            env={**os.environ, "PYTHONPATH": str(path)},
        )
        came = self._line()
        if Path(came) != path / "halfback":
            raise SystemExit(f"{path}: Python found the package in {came}")

    def seconds_a_step(self) -> float:
        """Trains a block of rounds, of one step each."""
        assert self._process.stdin is not None
        print("go", file=self._process.stdin, flush=True)
        return float(self._line())

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _line(self) -> str:
        assert self._process.stdout is not None
        if line := self._process.stdout.readline():
            return line.strip()
        raise SystemExit(f"{self._process.args}: ended with {self._process.wait()}")


def work(out: Path, block: int, recipe: str, settings: list[str]) -> None:
    """The process of one checkout: its answers go to the standard output, the time of each block for each line read."""
    import halfback
    from halfback import config

    answers, sys.stdout = sys.stdout, sys.stderr
    print(Path(halfback.__file__).parent, file=answers, flush=True)
    rounds, began = -1, 0.0  # the first that is told of is the beginning, before any round or behind the first

    def watch(*_: object) -> None:
        nonlocal rounds, began
        rounds += 1
        if rounds % block == 0:
            if rounds:
                print((time.perf_counter() - began) / block, file=answers, flush=True)
            if not sys.stdin.readline():
                raise SystemExit
            began = time.perf_counter()

    if hasattr(halfback, "train"):
        halfback.train(config.resolve(recipe, settings), out, on_round=watch, progress=False)
    else:  # the layout before the rooms
        run = importlib.import_module("halfback.run")
        run.train(config.resolve(recipe, settings), out, watch=watch)


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        scratch, block, recipe, *settings = sys.argv[2:]
        work(Path(scratch), int(block), recipe, settings)
        return
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--before", type=Path, required=True, help="a checkout")
    parser.add_argument("--after", type=Path, required=True, help="another")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--pairs", type=int, default=20, help="blocks of each checkout that count")
    parser.add_argument("--block", type=int, default=4, help="rounds of a block")
    chosen = parser.parse_args()
    table = Table("recipe", "before, s a step", "after", "before ÷ after", "95 %")
    for recipe in chosen.recipes:
        with tempfile.TemporaryDirectory() as scratch:
            blocks = chosen.pairs + _WARM
            two = [
                Checkout(path.resolve(), recipe, chosen.block, blocks, f"{scratch}/{name}")
                for name, path in (("before", chosen.before), ("after", chosen.after))
            ]
            try:
                pairs = [_pair(two, turned=bool(number % 2)) for number in range(blocks)][_WARM:]
            finally:
                for checkout in two:
                    checkout.end()
        ratios = [before / after for before, after in pairs]
        before, after = (statistics.median(times) for times in zip(*pairs, strict=True))
        least, most = interval(ratios)
        figures = (f"{before:.4f}", f"{after:.4f}", f"{statistics.median(ratios):.3f}", f"{least:.3f} to {most:.3f}")
        table.add_row(recipe, *figures)
    Console().print(table)


def interval(ratios: list[float]) -> tuple[float, float]:
    """The percentile interval (95 %) of the median, by 10,000 resamples of the pairs."""
    generator = np.random.default_rng(0)
    resampled = np.median(generator.choice(ratios, (10_000, len(ratios))), axis=1)
    least, most = np.percentile(resampled, [2.5, 97.5])
    return float(least), float(most)


def _pair(two: list[Checkout], *, turned: bool) -> tuple[float, float]:
    """(before, after), whichever is first."""
    if turned:
        after, before = two[1].seconds_a_step(), two[0].seconds_a_step()
    else:
        before, after = two[0].seconds_a_step(), two[1].seconds_a_step()
    return before, after


if __name__ == "__main__":
    main()
