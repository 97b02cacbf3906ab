"""Differences to the fences and the part of the gap, against numbers worked out by hand."""

import itertools
import math
import statistics
from typing import Any

import pytest
from scipy.special import stdtr

from halfback.report.comparison import summarise
from halfback.report.comparison_tables import results_table
from halfback.report.differences import RESAMPLES, difference, recovered, said_difference, said_recovered, within

FROZEN = {0: 80.0, 1: 81.0, 2: 82.0}


def gaps(*widths: float) -> tuple[dict[int, float], dict[int, float]]:
    """The fences with these gaps."""
    frozen = dict.fromkeys(range(len(widths)), 80.0)
    return frozen, {seed: 80.0 + width for seed, width in enumerate(widths)}


def test_a_difference_is_of_the_seeds_that_both_have() -> None:
    found = difference({0: 3.0, 1: 5.0, 7: 9.0}, {1: 1.0, 7: 3.0, 2: 100.0})
    assert found == {"mean": 5.0, "se": 1.0, "by_seed": {"1": 4.0, "7": 6.0}}  # sd √2 over √2 seeds
    assert said_difference(found, ".2f") == "+5.00 ± 1.00"
    alone = difference({0: 3.0}, {0: 5.0})
    assert alone == {"mean": -2.0, "se": None, "by_seed": {"0": -2.0}}
    assert said_difference(alone, ".1f") == "-2.0"
    assert difference({0: 3.0}, {1: 5.0}) is None
    assert difference({}, {}) is None
    assert said_difference(None, ".2f") == said_recovered(None) == "–"


def test_the_part_of_an_established_gap_is_a_ratio_of_means() -> None:
    first = {0: 84.0, 1: 85.0, 2: 87.0}  # gaps 4, 4, 5: 13 standard errors of a third
    found = recovered({0: 81.0, 1: 83.0, 2: 85.0}, FROZEN, first, rises=True)  # gains 1, 2, 3
    assert found is not None
    assert found["gap"]["mean"] == pytest.approx(13 / 3)
    assert found["gap"]["se"] == pytest.approx(1 / 3)
    assert found["established"] is True
    assert found["ratio"] == pytest.approx(6 / 13)  # where the mean of the seeds' own ratios is 0.45
    # Of all 27 resamples the outermost are three times seed 0 and three times seed 2.
    assert (found["low"], found["high"], found["resamples"]) == (pytest.approx(1 / 4), pytest.approx(3 / 5), 27)
    assert said_recovered(found) == "0.46 (0.25 to 0.60)"


def test_a_metric_that_falls_has_a_gap_below_zero() -> None:
    frozen, first = gaps(-4.0, -4.0, -5.0)
    found = recovered({0: 79.0, 1: 78.0, 2: 77.0}, frozen, first, rises=False)
    assert found is not None
    assert found["ratio"] == pytest.approx(6 / 13)
    assert (found["low"], found["high"]) == (pytest.approx(1 / 4), pytest.approx(3 / 5))


@pytest.mark.parametrize(
    ("widths", "rises", "established"),
    [
        ((2.0, 3.0, 4.0), True, True),  # 3 over 1/√3: 5.2 standard errors, and t(2) at 97.5 % is 4.303
        ((1.0, 2.0, 3.0), True, False),  # 3.5: more than two, and yet not
        ((-2.0, -3.0, -4.0), False, True),
        ((-2.0, -3.0, -4.0), True, False),  # first order ends worse: a gap, and none to recover
        ((2.0, 3.0, 4.0), False, False),
        ((1.0, 2.0, 3.0, 2.0, 2.0), True, True),  # 2 over √0.5/√5: 6.3, and t(4) is 2.776
        ((0.0, 2.0, 3.0, 0.0, 0.0), True, False),  # 1 over √2/√5: 1.6
        ((10.0, 10.0, 10.0, 10.0, -0.5), True, False),  # 3.8, but one of the 3,125 resamples has a gap the other way
        ((1.0, -1.0, 0.0), True, False),
        ((0.0, 0.0, 0.0), True, False),  # the fences end alike
        ((0.5, 0.5, 0.5), True, True),  # no spread at all
        ((0.5, 0.5), True, False),  # too few seeds to tell
        ((7.0,), True, False),
    ],
)
def test_where_a_gap_is_established(widths: tuple[float, ...], rises: bool, established: bool) -> None:
    frozen, first = gaps(*widths)
    found = recovered(dict.fromkeys(frozen, 81.0), frozen, first, rises=rises)
    assert found is not None
    assert found["established"] is established
    if established:
        assert found["ratio"] == pytest.approx(len(widths) / sum(widths))
    else:
        assert [found[key] for key in ("ratio", "low", "high", "resamples")] == [None] * 4
        assert said_recovered(found) == "no gap to recover"


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 9, 28, 101])
@pytest.mark.parametrize("t", [0.0, 0.3, 2.0, 4.302652729911275, 40.0])
def test_students_t_is_that_of_another_library(t: float, freedom: int) -> None:
    # Both are sums in float64 of at most fifty terms below one.
    assert within(t, freedom) == pytest.approx(2 * stdtr(freedom, t) - 1, abs=1e-13)


def test_seeds_that_one_of_the_three_lacks_are_left_out() -> None:
    frozen, first = gaps(4.0, 4.0, 5.0, 4.0)
    mine = {0: 81.0, 1: 82.0, 2: 83.0, 9: 0.0}
    found = recovered(mine, frozen, first, rises=True)
    assert found is not None
    assert found["ratio"] == pytest.approx(6 / 13)
    assert recovered(mine, {3: 1.0}, first, rises=True) is None
    assert recovered(mine, {}, first, rises=True) is recovered({}, frozen, first, rises=True) is None
    fewer = recovered({0: 81.0, 1: 82.0}, frozen, first, rises=True)
    assert fewer is not None
    assert said_recovered(fewer) == "no gap to recover"


def test_the_interval_is_that_of_all_resamples() -> None:
    """Of four seeds, counted anew with other tools: the 7th from either end of 256."""
    widths, gains = (3.0, 4.0, 6.0, 5.0), (2.0, 1.0, 5.0, 3.5)
    frozen, first = gaps(*widths)
    found = recovered({seed: 80.0 + gain for seed, gain in enumerate(gains)}, frozen, first, rises=True)
    assert found is not None
    ratios = sorted(
        statistics.mean(gains[n] for n in draw) / statistics.mean(widths[n] for n in draw)
        for draw in itertools.product(range(4), repeat=4)
    )
    assert found["resamples"] == len(ratios) == 256
    assert found["low"] == pytest.approx(ratios[math.floor(0.025 * 255)])
    assert found["high"] == pytest.approx(ratios[math.ceil(0.975 * 255)])


def test_many_seeds_are_drawn_the_same_way_each_time() -> None:
    widths = [4.0 + 0.1 * seed for seed in range(12)]
    frozen, first = gaps(*widths)
    mine = {seed: 81.0 + 0.2 * seed for seed in frozen}
    found = recovered(mine, frozen, first, rises=True)
    assert found is not None
    assert found == recovered(mine, frozen, first, rises=True)
    assert found["resamples"] == RESAMPLES
    assert found["low"] < found["ratio"] < found["high"]
    # Linearised: the ratio's standard error by hand, and 1.96 of it either way.
    ratio, wide = found["ratio"], statistics.mean(widths)
    left = [mine[seed] - 80.0 - ratio * width for seed, width in enumerate(widths)]
    error = statistics.pstdev(left) / math.sqrt(12) / wide
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * error, rel=0.05)


def cells(*finals: float | None, diverged: tuple[int, ...] = ()) -> list[dict[str, Any]]:
    """Cells as `compare.json` has them, one a seed."""
    found: list[dict[str, Any]] = []
    for seed, final in enumerate(finals):
        if seed in diverged:
            found.append({"seed": seed, "status": "diverged", "after_step": 3, "curve": []})
            continue
        costs = dict.fromkeys(("up_bytes", "down_bytes", "client_peak_bytes", "client_inference_peak_bytes"), 1)
        times = dict.fromkeys(("forward_passes", "client_seconds", "server_seconds", "wall_seconds"), 1.0)
        metric = {"name": "accuracy", "initial": 50.0, "final": final, "best": final}
        summary = {
            "seed": seed,
            "steps": 5,
            "metric": metric,
            "bytes_by_kind": {"up": {}, "down": {}},
            **costs,
            **times,
        }
        found.append({"seed": seed, "status": "finished", "curve": [], "summary": summary})
    return found


COMPARISON = {"metric": {"name": "accuracy"}, "target": {"value": None}, "tuning": None}


def table(methods: dict[str, list[dict[str, Any]]]) -> tuple[list[str], dict[str, list[str]]]:
    """The header and each row of the printed table."""
    header, body = results_table({"methods": summarise(methods, target=None, rises=True)}, COMPARISON)
    return header, {row[0]: row for row in body}


def test_the_table_has_both_differences_and_the_part() -> None:
    methods = {
        "mine": cells(81, 83, 85),
        "split_lora": cells(84, 85, 87),
        "frozen_bottom": cells(80, 81, 82),
        "lost": cells(81, 83, 85, diverged=(1,)),
        "unlucky": cells(81, None, 0, diverged=(2,)),  # a metric that was not finite comes back as None
    }
    header, rows = table(methods)
    at = header.index("− frozen_bottom")
    assert header[at : at + 3] == ["− frozen_bottom", "− split_lora", "gap recovered"]
    assert rows["mine"][at : at + 3] == ["+2.00 ± 0.58", "-2.33 ± 0.33", "0.46 (0.25 to 0.60)"]
    assert rows["split_lora"][at : at + 3] == ["+4.33 ± 0.33", "–", "–"]
    assert rows["frozen_bottom"][at : at + 3] == ["–", "-4.33 ± 0.33", "–"]
    assert rows["lost"][at : at + 3] == ["+2.00 ± 1.00", "-2.50 ± 0.50", "no gap to recover"]
    assert rows["unlucky"][at : at + 3] == ["+1.00", "-3.00", "no gap to recover"]


def test_a_peak_that_nobody_measured_is_no_number() -> None:
    """As of clients on device packages in one process."""
    unmeasured = cells(81)
    unmeasured[0]["summary"] |= dict.fromkeys(("client_peak_bytes", "client_inference_peak_bytes"), 0)
    header, rows = table({"mine": unmeasured})
    at = header.index("client peak")
    assert rows["mine"][at : at + 2] == ["–", "–"]


def test_a_fence_that_is_not_there_has_no_column() -> None:
    header, rows = table({"mine": cells(81, 83, 85), "frozen_bottom": cells(80, 81, 82)})
    at = header.index("− frozen_bottom")
    assert rows["mine"][at] == "+2.00 ± 0.58"
    assert "− split_lora" not in header
    assert "gap recovered" not in header
    header, _ = table({"mine": cells(81, 83), "other": cells(80, 81)})
    assert not [name for name in header if name.startswith("−") or "gap" in name]
    # Both fences, and nobody between them: the gap itself, and no part of it.
    header, rows = table({"split_lora": cells(84), "frozen_bottom": cells(80)})
    assert rows["split_lora"][header.index("− frozen_bottom")] == "+4.00"
    assert "gap recovered" not in header
