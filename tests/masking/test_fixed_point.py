"""Real numbers as whole numbers: how exact they are, and that no sum wraps."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from halfback.errors import Diverged, UserError
from halfback.masking.fixed_point import FixedPoint

BITS = (32, 64)


def made(values: torch.Tensor, fixed: FixedPoint) -> list[Fraction]:
    """The numbers that whole ones stand for, in exact arithmetic."""
    signed = fixed.encode(values, "values").view(f"i{fixed.bits // 8}").tolist()
    return [Fraction(each) / Fraction(fixed.scale) for each in signed]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("clients", [3, 7, 64, 1000])
@pytest.mark.parametrize("most", [1e-3, 1.0, 1000.0, 2.0**20])
def test_the_largest_sum_of_a_cohort_does_not_wrap_and_the_next_scale_would(
    bits: int, clients: int, most: float
) -> None:
    fixed = FixedPoint(bits, most, clients)
    extreme = torch.tensor([most, -most], dtype=torch.float64)
    total = sum([fixed.encode(extreme, "values")] * clients, np.zeros(2, f"u{bits // 8}"))
    assert fixed.mean(total, clients) == pytest.approx(extreme, abs=1 / fixed.scale)  # of which half is the rounding
    assert clients * Fraction(most) * Fraction(2 * fixed.scale) * 2 >= 2 ** (bits - 1) - clients


@pytest.mark.parametrize("bits", BITS)
def test_a_value_is_off_by_half_a_step_at_most_and_a_mean_too(bits: int) -> None:
    """In exact arithmetic: a step is 1 / scale, and rounding to the nearest leaves half of it."""
    fixed = FixedPoint(bits, 100.0, 5)
    said = torch.randn(5, 200, generator=torch.Generator().manual_seed(0)) * 20
    step = 1 / Fraction(fixed.scale)
    numbers = [made(own, fixed) for own in said]
    for own, found in zip(said, numbers, strict=True):
        assert max(abs(Fraction(x) - y) for x, y in zip(own.tolist(), found, strict=True)) <= step / 2
    total = sum((fixed.encode(own, "values") for own in said), np.zeros(200, f"u{bits // 8}"))
    plain = [float(sum(column) / 5) for column in zip(*numbers, strict=True)]
    # The whole total has up to 62 bits and float64 53, the quotient is rounded once more: two roundings.
    assert fixed.mean(total, 5) == pytest.approx(torch.tensor(plain, dtype=torch.float64), rel=2**-51, abs=0)


def test_sixty_four_bits_hold_a_float32_as_it_is_down_to_a_billionth() -> None:
    """At the default range, of ten clients: a step is 2^-49, and a float32 above 2^-25 has no finer digit."""
    fixed = FixedPoint(64, 1024.0, 10)
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    values = values[values.abs() > 2**-25]
    assert fixed.scale == 2**49
    assert made(values, fixed) == [Fraction(x) for x in values.tolist()]


@pytest.mark.parametrize("bits", BITS)
def test_what_is_too_large_or_not_finite_is_an_error_in_one_line(bits: int) -> None:
    fixed = FixedPoint(bits, 8.0, 3)
    fixed.encode(torch.tensor([8.0, -8.0]), "Slopes")
    with pytest.raises(UserError) as told:
        fixed.encode(torch.tensor([1.0, -8.5]), "Slopes")
    # The server is told of it too, so the value's own size is not in it.
    assert str(told.value) == "secure.range=8: a value of Slopes is larger; set a larger range"
    for wrong in (torch.nan, torch.inf):
        with pytest.raises(Diverged, match="Slopes"):
            fixed.encode(torch.tensor([wrong]), "Slopes")
    assert len(fixed.encode(torch.zeros(0), "Slopes")) == 0
