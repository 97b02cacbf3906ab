"""Whether an adaptive rule finds a best threshold that is known: `python benchmarks/thresholds.py`.

A toy: the bytes of a round grow with the threshold θ in [0.5, 1], its loss is 1 + max(0, 0.8 − θ) times what it is by
itself, for as long as θ stays there. With the weights of `ddpg` 0.8 is best: what a lower one saves in bytes costs five
times as much in loss. 20 rounds are those of the recipe e2e-smollm2-splitcom, with its evaluation every second round.
"""

import math
import random
from statistics import mean

from halfback.controllers import build
from halfback.controllers.protocol import Controller, LinkUse, Observation

LINK, BEST, NEAR, SEEDS = "activations_up", 0.8, 0.05, 5
BOUNDS = {"low": 0.5, "high": 1.0, "initial": 1.0}
LOSSES = {"steady": (0.0, 0.0), "falls from 6 to 2": (4.0, 0.0), "falls, 3 % noise": (4.0, 0.03)}
RULES = {
    20: {"bang_bang": {"step": 0.05}, "ddpg": {"warm_up": 6, "probe_every": 5, "noise_rounds": 10}},
    100: {"ddpg": {"noise_rounds": 60}},
    300: {"ddpg": {}},
}


def late(controller: Controller, rounds: int, falls_by: float, noise: float, seed: int) -> float:
    """The mean threshold of the last quarter of the rounds, without those that `ddpg` probes in."""
    dice, found = random.Random(seed), []
    for number in range(rounds):
        threshold = controller.thresholds()[LINK]
        clean = (2 + falls_by * math.exp(-3 * number / rounds)) * (1 + max(0.0, BEST - threshold))
        share = (threshold - 0.5) / 0.5
        use = LinkUse(threshold, 100, round(100 * (1 - share)), 0.8, 0.1, round(1000 * share), 1000)
        validation = clean if number % 2 else None
        controller.observe(Observation(number, clean * math.exp(noise * dice.gauss(0, 1)), validation, {LINK: use}))
        found.append(threshold)
    chosen = found[-(rounds // 4) :]
    return mean([value for value in chosen if value < 1] or chosen)


def main() -> None:
    print(f"| rounds | rule | loss | mean threshold, seed 0 to {SEEDS - 1} | within {NEAR:g} of {BEST:g} |")
    print("| --- | --- | --- | --- | --- |")
    for rounds, rules in RULES.items():
        for name, options in rules.items():
            for loss, (falls_by, noise) in LOSSES.items():
                ends = [
                    late(build(name, BOUNDS | options, [LINK], seed), rounds, falls_by, noise, seed)
                    for seed in range(SEEDS)
                ]
                hits = sum(abs(end - BEST) <= NEAR for end in ends)
                values = " ".join(f"{end:.2f}" for end in ends)
                print(f"| {rounds} | `{name}` | {loss} | {values} | {hits} of {SEEDS} |", flush=True)


if __name__ == "__main__":
    main()
