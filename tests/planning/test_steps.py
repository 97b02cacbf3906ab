"""Seconds of a step against sums by hand."""

from typing import Any

import pytest
from fleets import device, fleet, work

from halfback.planning.steps import cohort_time, step_time


@pytest.mark.parametrize(
    ("of_work", "of_device", "of_fleet", "shares", "seconds", "binds"),
    [
        ({}, {}, {}, (), 3 + 1 + 0.5 + 0.5, "compute"),
        ({}, {"latency_seconds": 0.25}, {}, (), 5.5, "compute"),
        ({}, {"latency_seconds": 4}, {}, (), 13, "latency"),
        ({"passes": 0.5}, {}, {}, (), 2.5, "uplink"),
        ({"passes": 0.1, "down_bytes": 4e6}, {}, {}, (), 5.6, "downlink"),
        ({}, {}, {"server_operations_per_second": 1e9}, (), 9.5, "server"),
        ({}, {}, {"server_backward_operations_per_second": 1e9}, (), 3 + 1 + 0.2 + 3 + 0.5, "server"),
        ({}, {}, {}, (1e6,), 3 + 8 + 0.5 + 0.5, "uplink"),
        ({}, {}, {}, (1e9, 1e6), 3 + 1 + 0.5 + 4, "downlink"),  # a share beyond the own link is worth the own link
        ({"device_backward": 2e9}, {}, {}, (), 7, "compute"),
        ({"device_backward": 2e9}, {"backward_operations_per_second": 5e8}, {}, (), 9, "compute"),
        ({}, {"bytes_per_second": 25e6}, {}, (), 6 + 2, "compute"),  # all weights are read in each pass: 2 s
        ({}, {"block_seconds": 0.1, "step_seconds": 0.2}, {}, (), 5 + 9 * 0.1 + 0.2, "compute"),
        ({}, {}, {"server_block_seconds": 0.5, "server_step_seconds": 1}, (), 5 + 6 * 0.5 + 1, "server"),
        ({}, {"memory_megabytes": 99}, {}, (), 5, "memory"),
    ],
)
def test_a_step_is_the_sum_of_its_parts(
    of_work: Any, of_device: Any, of_fleet: Any, shares: Any, seconds: float, binds: str
) -> None:
    time = step_time(work(**of_work), device(**of_device), fleet(**of_fleet), *shares)
    assert time.total == pytest.approx(seconds, rel=1e-12)  # a few additions of float64
    assert time.binds == binds


def test_a_cohort_waits_for_its_slowest_and_for_one_server() -> None:
    quick, slow = device(operations_per_second=1e10), device("b", up_megabits=0.8)
    times = [step_time(work(), each, fleet()) for each in (quick, slow)]
    together = cohort_time(times)
    assert together.total == pytest.approx(3 + 10 + 0.5 + 2 * 0.5)
    assert (together.up, together.server, together.binds) == (10, 1, "uplink")
    assert cohort_time(times, in_turn=True).total == pytest.approx(0.3 + 1 + 0.5 + 0.5 + 3 + 10 + 0.5 + 0.5)


def test_of_a_cohort_who_has_no_room_binds() -> None:
    times = [step_time(work(), each, fleet()) for each in (device(memory_megabytes=1), device(up_megabits=0.1))]
    assert cohort_time(times).binds == cohort_time(times, in_turn=True).binds == "memory"
    # It is the slow one with room that they wait for: 3 s, 80 s up at 0.1 Mbit/s, both servings, 0.5 s down.
    assert cohort_time(times).total == pytest.approx(3 + 80 + 2 * 0.5 + 0.5)


def test_many_devices_keep_one_server_busy() -> None:
    times = [step_time(work(), device(), fleet())] * 100
    assert cohort_time(times).total == pytest.approx(3 + 1 + 0.5 + 50)
    assert cohort_time(times).binds == "server"
