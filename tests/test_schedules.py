"""Schedules against torch's and Transformers' own."""

import pytest
import torch
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from halfback.zeroth.replay import Falls, Shape, schedule

TOTAL = 20


def factors(make: object, warmup: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = make(optimizer, warmup, TOTAL)  # type: ignore[operator]
    found = []
    for _ in range(TOTAL):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize(
    ("shape", "theirs"), [("linear", get_linear_schedule_with_warmup), ("cosine", get_cosine_schedule_with_warmup)]
)
@pytest.mark.parametrize("warmup", [0, 5])
def test_behind_the_warm_up_it_is_transformers_schedule(shape: Shape, theirs: object, warmup: int) -> None:
    ours = [schedule(shape, warmup=warmup, total=TOTAL)(step) for step in range(TOTAL)]
    assert ours[warmup:] == pytest.approx(factors(theirs, warmup)[warmup:], rel=1e-12)


@pytest.mark.parametrize("warmup", [0, 5])
def test_multistep_is_torchs_from_milestone_to_milestone(warmup: int) -> None:
    def theirs(optimizer: torch.optim.Optimizer, _: int, __: int) -> object:
        return torch.optim.lr_scheduler.MultiStepLR(optimizer, [4, 9, 10], gamma=0.3)

    rate = schedule("multistep", warmup=warmup, total=TOTAL, falls=Falls((4, 9, 10), 0.3))
    ours = [rate(step) for step in range(TOTAL)]
    # Ours begins each product anew, theirs goes on with the last rate.
    assert ours[warmup:] == pytest.approx(factors(theirs, warmup)[warmup:], rel=1e-12)
    assert ours[-1] == pytest.approx(0.3**3)


def test_the_warm_up_is_a_line_without_a_step_at_rate_zero() -> None:
    """Theirs begins at zero, a step that moves nothing; ours spreads the rise over the warm-up's steps."""
    rate = schedule("constant", warmup=4, total=TOTAL)
    assert [rate(step) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_it_falls_to_nothing_and_stays_there(shape: Shape) -> None:
    rate = schedule(shape, warmup=0, total=TOTAL)
    assert rate(0) == 1.0
    assert all(rate(step) > rate(step + 1) for step in range(TOTAL - 1))
    assert rate(TOTAL) == rate(10 * TOTAL) == pytest.approx(0.0, abs=1e-15)


def test_a_warm_up_longer_than_the_run_never_divides_by_zero() -> None:
    rate = schedule("cosine", warmup=30, total=TOTAL)
    assert all(0 < rate(step) < 1 for step in range(TOTAL))
