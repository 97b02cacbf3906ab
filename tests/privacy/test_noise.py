"""The noise: its law, that it is new each time, and that it leaves no trace of a value in the low bits."""

import math

import numpy as np
import pytest
from scipy import stats

from halfback.privacy.noise import gaussian, noised

DRAWS = 200_000
RARE = 1e-9  # how unlikely a wrong alarm is


def test_it_is_normal_and_independent() -> None:
    drawn = gaussian(DRAWS + 1)
    assert len(drawn) == DRAWS + 1
    assert stats.kstest(drawn, "norm").pvalue > RARE
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 6.5 / math.sqrt(DRAWS)
    assert abs(np.corrcoef(drawn[: DRAWS // 2], drawn[DRAWS // 2 : DRAWS])[0, 1]) < 9 / math.sqrt(DRAWS)


def test_it_is_new_each_time_whatever_generators_are_seeded() -> None:
    np.random.seed(0)
    first = gaussian(8)
    np.random.seed(0)
    assert not np.array_equal(first, gaussian(8))


@pytest.mark.parametrize(("sensitivity", "noise"), [(2.0, 0.6), (1e-3, 10.0), (300.0, 1.0)])
def test_its_variance_is_that_of_the_multiplier_and_the_sensitivity(sensitivity: float, noise: float) -> None:
    values = np.full(DRAWS, 0.123 * sensitivity)
    added = noised(values, sensitivity, noise) - values
    expected = noise * sensitivity
    # (n − 1) s² / σ² has χ² of n − 1 degrees; what rounding adds to the sensitivity is below it.
    ratio = added.var(ddof=1) * (DRAWS - 1) / expected**2
    allowed = (1 + noise * 2.0**-20 * math.sqrt(DRAWS)) ** 2
    assert stats.chi2.ppf(RARE, DRAWS - 1) < ratio < stats.chi2.ppf(1 - RARE, DRAWS - 1) * allowed
    assert abs(added.mean()) < 6.5 * expected / math.sqrt(DRAWS)


def test_what_comes_out_is_on_one_grid_whatever_the_value_was() -> None:
    """Floats of another value have other low bits; with them an attacker would tell 0.1 from 0.3 behind any noise."""
    for value in (0.0, 0.1, 0.3, -7.0):
        out = noised(np.full(1000, value), 1.0, 1.0) * 2.0**20
        assert np.array_equal(out, np.round(out))
    plain = (0.1 + gaussian(1000)) * 2.0**20
    assert not np.array_equal(plain, np.round(plain))
