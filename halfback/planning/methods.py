"""What each method says in a round, by its name in the registry: its closed form of bytes, and its exchanges."""

from collections.abc import Callable
from typing import Any

from halfback.planning import traffic
from halfback.planning.traffic import Formula, Sums

_FORMULAS: dict[str, Callable[[Any], Formula]] = {
    "ho_sfl": lambda _: traffic.ho_sfl,
    "ho_sfl_pipelined": lambda _: traffic.ho_sfl_pipelined,
    "zo_sfl": lambda _: traffic.zo_sfl,
    "hosl": lambda _: traffic.hosl,
    "frozen_bottom": lambda _: traffic.frozen_bottom,
    "split_lora": lambda _: traffic.split_lora,
    "sfl_v1": lambda _: traffic.split_lora,
    "sfl_v2": lambda _: traffic.split_lora,
    "vanilla_split": lambda _: traffic.relay,
    "cse_fsl": lambda options: traffic.own_loss(options.every),
    "fsl_sage": lambda options: traffic.own_loss(options.every),
    "heron_sfl": lambda options: traffic.own_loss(options.every),
    "mu_splitfed": lambda _: traffic.mu_splitfed,
    "decomfl": lambda _: traffic.decomfl,
    "spry": lambda _: traffic.spry,
    "ho_fl": lambda _: traffic.ho_fl,
    "mezo": lambda _: traffic.silent,
    "fedavg": lambda _: traffic.fedavg,
    "centralised": lambda _: traffic.silent,
}

_AT_ONCE = ("decomfl",)  # says the slopes of a round's steps together


def formula_of(name: str, algorithm: Any, *, head: bool, sums: Sums | None = None) -> Formula | None:
    """The formula of a method's rounds; None for one that was registered from elsewhere, of which none is known.

    name: in the registry. algorithm: it with its options. head: the devices have the model's head (the U-shape). sums:
    its secure sums, where it has any.
    """
    if name not in _FORMULAS:
        return None
    plain = _FORMULAS[name](algorithm)
    plain = traffic.u_shaped(plain) if head else plain
    return plain if sums is None else traffic.summed(plain, sums)


def sums_of(name: str, algorithm: Any, *, cohort: int, item: int, told: int) -> Sums:
    """The secure sums of a method; the arguments behind it are as in `Sums`."""
    return Sums(cohort, item, told, algorithm.needs.agreement.averages, name in _AT_ONCE)


def exchanges_of(name: str, algorithm: Any, *, head: bool, steps: int, sums: Sums | None = None) -> float:
    """Messages up with an answer in a step, where a round has so many steps.

    Those at a round's two ends are shared out over its steps. Arguments as of `formula_of`, of which there is one.
    """
    by_step: dict[str, tuple[float, float]] = {
        # of each step, and of each round
        "ho_sfl": (2, 1),
        "ho_sfl_pipelined": (1, 2),
        "zo_sfl": (2 + 2 * algorithm.needs.directions, 1),
        "hosl": (1 + 2 * algorithm.needs.directions, 1),
        "mu_splitfed": (1 + 2 * algorithm.needs.directions, 2),
        "frozen_bottom": (1, 0),
        "spry": (1, 1),
        "ho_fl": (0, 3),
    }
    ends = 0 if algorithm.needs.agreement.pools else 2
    uploads = {"whole": 0.0, "bottom": 1.0, "auxiliary": 1 / getattr(algorithm, "every", 1)}[algorithm.needs.holds]
    of_step, of_round = by_step.get(name, (uploads, ends))
    masking = 0 if sums is None else 3 * sums.count(steps) / steps
    return of_step + head + of_round / steps + masking
