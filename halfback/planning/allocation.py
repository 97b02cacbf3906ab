"""A cut and a share of the uplink for each device of a cohort, so that a step is short: jointly, and in simpler ways.

A device k with cut c takes a_k(c) seconds for what it computes, its latency and its download, and has u(c) bits to
send. With b_k bits a second of the uplink its own part of a step takes a_k(c) + u(c)/b_k. The server adds its work for
all devices, and the step ends with the slowest: T + Σ_k s(c_k), with T the longest of the devices' own parts.

- For given cuts the least T has every share b_k = u/(T − a_k), up to the device's own link, and uses up the uplink: the
  sum of what they need falls with T, so a root finder has it (the load-fixed form of arXiv 2003.04544).
- For a given T each device needs this share and no more, whatever the others do. So which cuts can be had together is a
  knapsack: of each device one cut among those that fit its memory and its own link, the shares within the uplink, and
  the least work for the server. Where that doesn't depend on the cuts, each device just takes what needs the least.
- What is left is one number, T. With more time more combinations fit, so the server's least time S(T) never rises with
  T, and no plan whose devices take between T₀ and T₁ is shorter than T₀ + S(T₁). Intervals are halved, the most
  promising first, until this bound leaves nothing to gain: the best plan of all, up to `TOLERANCE`.

The downlink, where it is shared too, is shared equally.
"""

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from halfback.errors import UserError, of_extra
from halfback.planning.profiles import DeviceClass, Fleet
from halfback.planning.steps import MEGA, StepTime, cohort_time, equal_share, server_seconds, step_time
from halfback.planning.work import Work

_Numbers = NDArray[np.float64]

TOLERANCE = 1e-3  # of a step's seconds, by which `joint` may be longer than the best there is


@dataclass(frozen=True)
class Allocation:
    """What each device of a cohort gets.

    Attributes:
        cuts: blocks on each device.
        shares: bits a second of the uplink for each; its own link's where none is shared.
        step: seconds of the cohort's step with these.
    """

    cuts: tuple[int, ...]
    shares: tuple[float, ...]
    step: StepTime

    @property
    def seconds(self) -> float:
        """Of the step."""
        return self.step.total


def equal(works: Mapping[int, Work], devices: Sequence[DeviceClass], fleet: Fleet) -> Allocation:
    """One cut for all, the best of those that every device has room for, and equal shares.

    Args:
        works: of a step, by cut.
        devices: the cohort.
        fleet: its server and what it shares.

    Returns:
        The allocation.

    Raises:
        UserError: a device has room for no cut.
    """
    cohort = _Cohort(works, devices, fleet)
    common = [cut for cut in works if all(cohort.fits(cut, device) for device in devices)]
    plans = (cohort.allocated([cut] * len(devices), cohort.equal_shares()) for cut in common)
    return min(plans, key=lambda plan: plan.seconds)


def apart(works: Mapping[int, Work], devices: Sequence[DeviceClass], fleet: Fleet) -> Allocation:
    """Equal shares, and for each device the cut with which it alone is quickest; as `equal` otherwise."""
    cohort = _Cohort(works, devices, fleet)
    return cohort.allocated(cohort.quickest(), cohort.equal_shares())


def sequential(works: Mapping[int, Work], devices: Sequence[DeviceClass], fleet: Fleet) -> Allocation:
    """First the cuts, as `apart` has them, then the uplink, the bottleneck first; as `equal` otherwise."""
    cohort = _Cohort(works, devices, fleet)
    cuts = cohort.quickest()
    return cohort.allocated(cuts, cohort.best_shares(cuts))


def joint(works: Mapping[int, Work], devices: Sequence[DeviceClass], fleet: Fleet) -> Allocation:
    """Cuts and shares together, the best up to `TOLERANCE`; as `equal` otherwise."""
    cohort = _Cohort(works, devices, fleet)
    best = min(sequential(works, devices, fleet), apart(works, devices, fleet), key=lambda plan: plan.seconds)
    start = cohort.least_time()
    waiting = [(start + cohort.least_server(), start, best.seconds)]
    while waiting:
        bound, low, high = heapq.heappop(waiting)
        if bound >= best.seconds * (1 - TOLERANCE):
            break
        found = cohort.least_server_plan(high)
        if found is None:
            continue
        server, cuts = found
        plan = cohort.allocated(cuts, cohort.best_shares(cuts))
        best = min(best, plan, key=lambda plan: plan.seconds)
        if high - low <= TOLERANCE / 4 * best.seconds:
            continue
        middle = (low + high) / 2
        # Of the lower half the server's time at its upper end is not known yet: it is at least that of the whole.
        heapq.heappush(waiting, (low + server, low, middle))
        heapq.heappush(waiting, (middle + server, middle, high))
    return best


class _Cohort:
    """Works by cut, and the devices that do them: seconds by device and cut."""

    def __init__(self, works: Mapping[int, Work], devices: Sequence[DeviceClass], fleet: Fleet) -> None:
        self.works, self.devices, self.fleet = works, devices, fleet
        self.cuts = list(works)
        self.uplink = None if fleet.uplink_megabits is None else fleet.uplink_megabits * MEGA
        self.down = equal_share(fleet.downlink_megabits, len(devices))
        self.links = np.array([device.up_megabits * MEGA for device in devices])
        self.bits = np.array([8 * works[cut].up_bytes for cut in self.cuts])
        self.server = np.array([server_seconds(works[cut], fleet) for cut in self.cuts])
        kinds = list(dict.fromkeys(devices))  # each with its first device's place below, and how many are alike
        self.kinds = [(devices.index(kind), devices.count(kind)) for kind in kinds]
        self.kind_of = [kinds.index(device) for device in devices]
        times = [[step_time(works[cut], kind, fleet, down=self.down) for cut in self.cuts] for kind in kinds]
        of_all = [times[kind] for kind in self.kind_of]
        fit = np.array([[self.fits(cut, device) for cut in self.cuts] for device in devices])
        if not fit.any(axis=1).all():
            raise UserError(f"a device has room for no cut: the smallest needs {_least(works)}, {_tightest(devices)}")
        # What a device's own part takes without its upload, and all that it computes.
        own = np.array([[time.compute + time.down + time.latency for time in by_cut] for by_cut in of_all])
        self.own = np.where(fit, own, math.inf)

    def fits(self, cut: int, device: DeviceClass) -> bool:
        return self.works[cut].peak_bytes <= device.memory_megabytes * MEGA

    def equal_shares(self) -> _Numbers:
        share = equal_share(self.fleet.uplink_megabits, len(self.devices))
        return self.links if share is None else np.minimum(self.links, share)

    def quickest(self) -> list[int]:
        """For each device the cut with which it alone is quickest at an equal share."""
        alone = self.own + self.bits / self.equal_shares()[:, None] + self.server
        return [self.cuts[place] for place in alone.argmin(axis=1)]

    def best_shares(self, cuts: Sequence[int]) -> _Numbers:
        """For given cuts the shares with which the longest of the devices' own parts is shortest."""
        places = [self.cuts.index(cut) for cut in cuts]
        own, bits = self.own[range(len(places)), places], self.bits[places]
        if self.uplink is None:
            return self.links
        with of_extra("plan"):
            from scipy.optimize import brentq

        fastest = float((own + bits / self.links).max())

        def spare(seconds: float) -> float:
            needed = np.minimum(bits / np.maximum(seconds - own, 1e-300), self.links)
            return float(self.uplink or 0) - float(needed.sum())

        seconds = fastest
        if spare(fastest) < 0:
            # With equal shares all are done by then: what they need is within the uplink.
            slowest = float((own + bits / self.equal_shares()).max())
            slowest = max(slowest, float(own.max() + bits.sum() / self.uplink)) * (1 + 1e-9)
            seconds = float(brentq(spare, fastest, slowest, xtol=1e-12, rtol=1e-12))
        needed = np.minimum(bits / np.maximum(seconds - own, 1e-300), self.links)
        return np.asarray(needed)

    def allocated(self, cuts: Sequence[int], shares: _Numbers) -> Allocation:
        times = [
            step_time(self.works[cut], device, self.fleet, float(share), self.down)
            for cut, device, share in zip(cuts, self.devices, shares, strict=True)
        ]
        return Allocation(tuple(cuts), tuple(float(share) for share in shares), cohort_time(times))

    def least_time(self) -> float:
        """No plan's devices are done with their own parts before."""
        return float((self.own + self.bits / self.links[:, None]).min(axis=1).max())

    def least_server(self) -> float:
        """No plan has less work for the server."""
        return float(np.where(np.isfinite(self.own), self.server, math.inf).min(axis=1).sum())

    def least_server_plan(self, seconds: float) -> tuple[float, list[int]] | None:
        """The least that the server needs of plans whose devices are done within `seconds`, and the cuts of one.

        None where there is no plan.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            needed = np.where(self.own < seconds, self.bits / (seconds - self.own), math.inf)
        slack = 1 + 1e-9  # of the rounding of what devices just reach
        allowed = needed <= self.links[:, None] * slack
        if not allowed.any(axis=1).all():
            return None
        least = np.where(allowed, self.server, math.inf).argmin(axis=1)
        everyone = range(len(self.devices))
        if self.uplink is None or needed[everyone, least].sum() <= self.uplink * slack:
            return float(self.server[least].sum()), [self.cuts[place] for place in least]
        if np.where(allowed, needed, math.inf).min(axis=1).sum() > self.uplink * slack:
            return None
        with of_extra("plan"):
            from scipy.optimize import Bounds, LinearConstraint, milp

        # How many devices of a kind have a cut: those that are alike would only make the knapsack search in vain.
        firsts, counts = [first for first, _ in self.kinds], [count for _, count in self.kinds]
        needed, allowed = needed[firsts], allowed[firsts]
        each_kind = np.kron(np.eye(len(counts)), np.ones(len(self.cuts)))
        within = np.where(allowed, needed, 0).reshape(1, -1) / self.uplink
        solved = milp(
            np.tile(self.server, len(counts)),
            constraints=[LinearConstraint(each_kind, counts, counts), LinearConstraint(within, -math.inf, slack)],
            integrality=np.ones(needed.size),
            bounds=Bounds(0, np.where(allowed, np.array(counts)[:, None], 0).reshape(-1)),
        )
        if solved.x is None:
            return None
        having = solved.x.reshape(needed.shape).round().astype(int)
        left = [[cut for cut, many in zip(self.cuts, row, strict=True) for _ in range(many)] for row in having]
        return float(solved.mip_dual_bound), [left[kind].pop() for kind in self.kind_of]


def _least(works: Mapping[int, Work]) -> str:
    return f"{min(work.peak_bytes for work in works.values()) / MEGA:,.1f} MB"


def _tightest(devices: Sequence[DeviceClass]) -> str:
    tightest = min(devices, key=lambda device: device.memory_megabytes)
    return f"{tightest.name} has {tightest.memory_megabytes:g}"
