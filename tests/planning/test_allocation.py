"""Allocations against all combinations of cuts, each with shares by another way than the code under test."""

import itertools
import random
from collections.abc import Mapping, Sequence

import pytest
from fleets import device, fleet, work

from halfback.errors import UserError
from halfback.planning.allocation import TOLERANCE, Allocation, apart, equal, joint, sequential
from halfback.planning.profiles import DeviceClass, Fleet
from halfback.planning.steps import StepTime, step_time
from halfback.planning.work import Work


def by_hand(parts: Sequence[StepTime], links: Sequence[float], uplink: float) -> float:
    """The least seconds of a cohort whose devices alone take these: halved until the uplink is just enough.

    `links`: megabits a second of each device's own, at which the uploads of `parts` are; `uplink`: that they share.
    """
    low, high = 0.0, 1e6
    for _ in range(70):  # to 1e-15 of where it began
        middle = (low + high) / 2
        left = [middle - (time.total - time.server - time.up) for time in parts]
        shares = [time.up / own for time, own in zip(parts, left, strict=True)]  # of its own link
        enough = min(left) > 0 and max(shares) <= 1
        needed = sum(share * link for share, link in zip(shares, links, strict=True))
        low, high = (low, middle) if enough and needed <= uplink else (middle, high)
    return high + sum(time.server for time in parts)


def best_of_all(works: Mapping[int, Work], devices: Sequence[DeviceClass], of: Fleet) -> float:
    room = [
        [step_time(w, at, of) for w in works.values() if w.peak_bytes <= at.memory_megabytes * 1e6] for at in devices
    ]
    links = [at.up_megabits for at in devices]
    return min(by_hand(chosen, links, of.uplink_megabits or 1e12) for chosen in itertools.product(*room))


def drawn(chance: random.Random, cuts: int) -> dict[int, Work]:
    """Deeper cuts take more memory and passes of a device, less of the server, and send more or less."""
    return {
        cut: work(
            peak_bytes=int(1e7 * cut),
            device_forward=chance.uniform(0.1, 1) * 1e9 * cut,
            up_bytes=chance.uniform(0.2, 2) * 1e6,
            server_forward=chance.uniform(0, 1) * 1e10 * (cuts - cut),
            server_backward=0.0,
        )
        for cut in range(1, cuts + 1)
    }


def cohort(chance: random.Random, count: int) -> list[DeviceClass]:
    return [
        device(
            str(n),
            operations_per_second=10 ** chance.uniform(8, 10),
            memory_megabytes=chance.uniform(10, 50),
            up_megabits=10 ** chance.uniform(0, 2),
            latency_seconds=chance.uniform(0, 0.1),
        )
        for n in range(count)
    ]


@pytest.mark.parametrize("seed", range(12))
def test_joint_is_the_best_of_all_combinations(seed: int) -> None:
    chance = random.Random(seed)
    works, devices = drawn(chance, 4), cohort(chance, 2 + seed % 2)
    devices += devices[seed % 2 + 1 :]  # with an even seed two are alike
    of = fleet(uplink_megabits=[None, 1, 10, 100][seed // 2 % 4])
    best = best_of_all(works, devices, of)
    found = joint(works, devices, of)
    assert best * (1 - 1e-9) <= found.seconds <= best * (1 + 2 * TOLERANCE)
    for other in (sequential, apart):
        assert other(works, devices, of).seconds >= found.seconds
    assert sum(found.shares) <= (of.uplink_megabits or 1e12) * 1e6 * (1 + 1e-6)


def test_shares_for_given_cuts_are_the_closed_form() -> None:
    """One cut, two devices that differ in speed: with T seconds each has 8·u/(T − a), and these add up to the uplink.

    a = 1 and 3 s, 8·u = 8 Mbit, 8 Mbit a second: 8/(T − 1) + 8/(T − 3) = 8 has T = 3 + √2.
    """
    works = {1: work(passes=1, down_bytes=0, exchanges=0, server_forward=0, server_backward=0)}
    devices = [device(up_megabits=1000), device("b", operations_per_second=1e9 / 3, up_megabits=1000)]
    found = joint(works, devices, fleet(uplink_megabits=8))
    assert found.seconds == pytest.approx(3 + 2**0.5, rel=1e-9)  # what the root finder leaves
    assert found.shares == pytest.approx([8e6 / (2 + 2**0.5), 8e6 / 2**0.5], rel=1e-9)
    assert sum(found.shares) == pytest.approx(8e6, rel=1e-9)


def test_more_of_anything_never_makes_a_step_longer() -> None:
    chance = random.Random(5)
    works, devices = drawn(chance, 4), cohort(chance, 4)

    def seconds(uplink: float, faster: float = 1, memory: float = 1) -> float:
        others = [
            each.model_copy(
                update={
                    "operations_per_second": each.operations_per_second * faster,
                    "memory_megabytes": each.memory_megabytes * memory,
                }
            )
            for each in devices
        ]
        return joint(works, others, fleet(uplink_megabits=uplink)).seconds

    base, slack = seconds(5), 1 + 2 * TOLERANCE
    assert seconds(10) <= base * slack
    assert seconds(5, faster=2) <= base * slack
    assert seconds(5, memory=2) <= base * slack


def test_memory_is_a_limit_that_nothing_outweighs() -> None:
    works = {1: work(peak_bytes=10**7, passes=100), 2: work(peak_bytes=2 * 10**7)}
    small, large = device("small", memory_megabytes=15), device("large", memory_megabytes=25)
    of = fleet(uplink_megabits=8)
    for way in (joint, sequential, apart):
        assert way(works, [small, large], of).cuts == (1, 2)
    assert equal(works, [small, large], of).cuts == (1, 1)
    with pytest.raises(UserError, match=r"the smallest needs 10\.0 MB, tiny has 5"):
        joint(works, [device("tiny", memory_megabytes=5)], of)
    with pytest.raises(UserError, match=r"the smallest needs 20\.0 MB, small has 15"):
        equal({2: works[2]}, [small, large], of)


def test_thirty_devices_are_planned_in_a_moment() -> None:
    chance = random.Random(1)
    works, devices = drawn(chance, 6), cohort(chance, 30)
    devices = [each.model_copy(update={"memory_megabytes": 60}) for each in devices]
    found: Allocation = joint(works, devices, fleet(uplink_megabits=20))
    assert found.seconds <= sequential(works, devices, fleet(uplink_megabits=20)).seconds
    assert found.seconds <= equal(works, devices, fleet(uplink_megabits=20)).seconds
