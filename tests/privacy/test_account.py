"""The account against closed forms, against a sum over a discretised loss, and its library against published values."""

import math

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from scipy.stats import norm

from halfback.errors import UserError
from halfback.privacy.account import alike, epsilon, noise_for


def delta_of(eps: float, mu: float) -> float:
    """δ(ε) of a μ-GDP mechanism, written out: Dong et al. corollary 1, Balle and Wang theorem 8 with μ = Δ/σ."""
    return float(norm.cdf(-eps / mu + mu / 2) - math.exp(eps) * norm.cdf(-eps / mu - mu / 2))


@pytest.mark.parametrize(("releases", "noise"), [(1, 0.6), (1, 3.73), (7, 2.0), (100, 10.0), (2500, 40.0)])
@pytest.mark.parametrize("delta", [1e-5, 1e-3, 1e-7])
def test_epsilon_is_that_of_the_closed_form(releases: int, noise: float, delta: float) -> None:
    found = epsilon(releases, noise, delta)
    assert delta_of(found, math.sqrt(releases) / noise) == pytest.approx(delta, rel=1e-6)
    assert noise_for(found, delta, releases) == pytest.approx(noise, rel=1e-6)


@pytest.mark.parametrize(("releases", "noise"), [(1, 1.0), (20, 5.0)])
def test_epsilon_is_that_of_the_losses_of_each_release_added_up(releases: int, noise: float) -> None:
    """By another way: the distribution of one release's privacy loss, convolved with itself."""
    step = 1e-3
    mu = 1 / noise
    losses = np.arange(-12, 12, step)  # N(μ²/2, μ²) in cells, rounded up, so that the sum is on the safe side
    cells = np.diff(norm.cdf(losses, loc=mu**2 / 2, scale=mu), prepend=0.0)
    size = 1 << 20
    together = np.fft.irfft(np.fft.rfft(cells, size) ** releases, size)
    total = releases * losses[0] + step * np.arange(size)

    def delta(eps: float) -> float:
        above = total > eps
        return float((together[above] * -np.expm1(eps - total[above])).sum())

    found = epsilon(releases, noise, 1e-5)
    assert delta(found) == pytest.approx(1e-5, rel=0.05)
    assert delta(found * 1.003) < 1e-5 < delta(found * 0.997)  # so three digits agree


@pytest.mark.parametrize(
    ("rate", "noise", "steps", "published"),
    [
        (0.01, 4.0, 10_000, 1.26),  # Abadi et al., CCS 2016, section 3.2: the moments accountant
        (256 / 60_000, 1.2, 10 * 60_000 // 256, 1.20),  # TensorFlow Privacy, tutorials/README.md
        (256 / 60_000, 0.7, 70 * 60_000 // 256, 8.68),  # Bu et al., Harvard Data Science Review 2.3, figure 4
    ],
)
def test_the_library_has_the_published_values_of_the_moments_accountant(
    rate: float, noise: float, steps: int, published: float
) -> None:
    orders = [1 + tenth / 10 for tenth in range(1, 100)] + list(range(12, 64))
    event = SelfComposedDpEvent(PoissonSampledDpEvent(rate, GaussianDpEvent(noise)), steps)
    best = math.inf
    for order in orders:
        accountant = RdpAccountant([order])
        accountant.compose(event)
        # Abadi et al. theorem 2.2, by which these were published; the library's own conversion is a tighter one.
        best = min(best, float(accountant._rdp[0]) + math.log(1e5) / (order - 1))
    assert best == pytest.approx(published, abs=5e-3)
    assert PLDAccountant().compose(event).get_epsilon(1e-5) < best


def test_the_librarys_numeric_accountant_has_the_same_values() -> None:
    numeric = PLDAccountant().compose(SelfComposedDpEvent(GaussianDpEvent(10.0), 100)).get_epsilon(1e-5)
    assert epsilon(100, 10.0, 1e-5) == pytest.approx(numeric, rel=1e-3)


def test_nothing_costs_nothing_and_no_noise_costs_everything() -> None:
    assert epsilon(0, 1.0, 1e-5) == 0.0
    assert epsilon(3, 0.0, 1e-5) == math.inf
    assert noise_for(8.0, 1e-5, 0) == 0.0


def test_releases_of_several_noises_are_those_of_one() -> None:
    assert alike() == (0.0, math.inf)
    assert epsilon(*alike((3, 2.0), (0, 0.0)), 1e-5) == pytest.approx(epsilon(3, 2.0, 1e-5))
    mu = math.hypot(math.sqrt(3) / 2.0, math.sqrt(5) / 4.0)
    assert delta_of(epsilon(*alike((3, 2.0), (5, 4.0)), 1e-5), mu) == pytest.approx(1e-5, rel=1e-6)


@pytest.mark.parametrize(("eps", "delta", "named"), [(0.0, 1e-5, "epsilon"), (1.0, 0.0, "delta"), (1.0, 1.0, "delta")])
def test_what_is_no_epsilon_or_delta_is_refused(eps: float, delta: float, named: str) -> None:
    with pytest.raises(UserError, match=f"privacy.{named}="):
        noise_for(eps, delta, 1)
