"""Cohorts whose clients are not drawn alike: how many, how often, and from the seed alone."""

import math

import numpy as np
import pytest

from halfback.engine.sampling import dependent_rounding
from halfback.testing import small

CASES = {
    "uneven": [0.1, 0.9, 0.35, 0.65, 0.5, 0.5],
    "as-ho-fl": [0.1 + 0.75] * 4 + [0.1] * 6,
    "never-and-always": [0.0, 1.0, 0.0, 0.25, 0.75, 1.0],
    "all": [1.0] * 4,
    "one": [1.0],
    "only-the-smallest": [1.0, 1.0, 0.0, 0.0, 0.0],
    "thirds": [1 / 3] * 9,
}


@pytest.mark.parametrize("case", CASES)
def test_inclusion_is_as_often_as_its_probability(case: str) -> None:
    probabilities, draws = CASES[case], 4000
    generator = np.random.Generator(np.random.Philox(key=7))
    counts = np.zeros(len(probabilities))
    for _ in range(draws):
        drawn = dependent_rounding(probabilities, generator)
        assert len(set(drawn)) == len(drawn) == round(sum(probabilities))
        assert drawn == sorted(drawn)
        counts[drawn] += 1
    for count, p in zip(counts, probabilities, strict=True):
        # Four standard errors of a mean of independent draws; none where a client is never or always in.
        assert abs(count / draws - p) <= 4 * math.sqrt(p * (1 - p) / draws)


def test_a_cohort_of_unequal_devices_has_k_clients_as_often_as_the_formula_says() -> None:
    """p_i = (1-β)/N + β·1{i among the K smallest}/K, here with two of six devices smallest, and K = 2."""
    deep = small.images(
        "ho_fl", clients=6, sampled_clients=2, algorithm__boundaries=[3, 1, 3, 3, 1, 3], algorithm__beta=0.75
    )
    simulation, again = small.built(deep).federation, small.built(deep).federation
    draws = 3000
    cohorts = [simulation.server.cohort(number) for number in range(draws)]
    assert cohorts[:20] == [again.server.cohort(number) for number in reversed(range(20))][::-1]
    assert all(len(set(cohort)) == 2 and cohort == sorted(cohort) for cohort in cohorts)
    for client, p in enumerate(2 * (0.25 / 6 + 0.75 / 2 * smallest) for smallest in (0, 1, 0, 0, 1, 0)):
        share = sum(client in cohort for cohort in cohorts) / draws
        assert abs(share - p) <= 4 * math.sqrt(p * (1 - p) / draws)


def test_devices_that_tie_for_the_last_place_share_it() -> None:
    config = small.images("ho_fl", clients=4, sampled_clients=2, algorithm__boundaries=[1, 2, 2, 3], algorithm__beta=1)
    simulation = small.built(config).federation
    probabilities = simulation.server.algorithm.inclusion(simulation.server.party, 2)  # type: ignore[attr-defined]
    assert probabilities == [1.0, 0.5, 0.5, 0.0]


@pytest.mark.parametrize("changes", [{"algorithm__beta": 0.0, "algorithm__boundaries": [1, 2]}, {}])
def test_devices_that_count_alike_are_drawn_as_by_every_other_method(changes: dict[str, object]) -> None:
    uneven, plain = (
        small.built(small.images(name, clients=9, sampled_clients=4, **options)).federation
        for name, options in (("ho_fl", changes), ("fedavg", {}))
    )
    assert [uneven.server.cohort(number) for number in range(30)] == [
        plain.server.cohort(number) for number in range(30)
    ]
