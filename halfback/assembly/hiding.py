"""Noise on what clients say of θ: from a recipe's settings to the two sides, and to what is said of it."""

import math
from collections.abc import Mapping

from halfback.config import RunConfig
from halfback.engine.private import Hiding, Private
from halfback.engine.sampling import Sampler
from halfback.parties.protocol import Algorithm
from halfback.privacy.account import epsilon, noise_for
from halfback.privacy.rules import PrivacyRules
from halfback.privacy.spending import Part, Spending

_SLACK = 1e-9  # of ε, which is the root of an equation


def hiding_of(config: RunConfig, algorithm: Algorithm) -> Hiding | None:
    """What a client does to its messages; None where the rows' clip is all, and the server does the rest."""
    privacy = config.privacy
    if privacy.unit is None or (privacy.unit == "sample" and not config.secure.sum):
        return None
    return Hiding(_rules(config, algorithm, privacy.noise or 0.0))


def private_of(config: RunConfig, algorithm: Algorithm, rows: Mapping[int, int], sampling: Sampler) -> Private | None:
    """The server's side, with the noise that the settings say or that follows from ε; None without noise.

    Args:
        config: the settings.
        algorithm: the method.
        rows: the training rows of each client, as far as they are known before the run.
        sampling: who is drawn in a round.

    Raises:
        UserError: `dp-accounting` is not there.
    """
    privacy = config.privacy
    if privacy.unit is None:
        return None
    epsilon(1, 1.0, privacy.delta)  # before anything is trained
    noise, most = privacy.noise, privacy.epsilon
    if noise is None:
        assert most is not None, "one of the two is there, by the rules"
        noise = noise_for(most, privacy.delta, planned(config, rows, sampling))

    def enough(releases: int) -> str | None:
        if most is None or (at := epsilon(releases, noise, privacy.delta)) <= most * (1 + _SLACK):
            return None
        return f"the next round would come to epsilon {at:.4g}; privacy.epsilon={most:g} is used up"

    return Private(_rules(config, algorithm, noise), rows, enough)


def planned(config: RunConfig, rows: Mapping[int, int], sampling: Sampler) -> int:
    """Releases of which one row, or one client, is part at most, if all goes as planned."""
    assert config.privacy.unit is not None
    spending, cursors = Spending(config.privacy.unit, config.batch_size), dict.fromkeys(rows, 0)
    for number in range(math.ceil(config.steps / config.steps_per_round)):
        steps = min(config.steps_per_round, config.steps - number * config.steps_per_round)
        cohort = sampling.draw(number, None)
        spending.add({client: Part(cursors[client], steps, rows[client]) for client in cohort})
        for client in cohort:
            cursors[client] += steps
    return spending.most


def _rules(config: RunConfig, algorithm: Algorithm, noise: float) -> PrivacyRules:
    privacy, probe = config.privacy, algorithm.needs.probe
    directions = algorithm.needs.directions
    if privacy.unit == "sample":
        assert probe is not None, "by the rules"
        assert probe.clip is not None, "by the rules"
        bound = probe.clip * math.sqrt(directions)
    else:
        assert privacy.clip is not None, "by the rules"
        bound = privacy.clip
    assert privacy.unit is not None
    sharers = config.secure.threshold_of(config.sampled_clients) if privacy.where == "distributed" else None
    return PrivacyRules(privacy.unit, bound, noise, config.batch_size, directions, config.secure.sum, sharers)
